"""The teacher on OpenVINO in bfloat16, as fast as its settings make it: what stage one is compared with."""

import copy
import warnings
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.export import Graph
from pipeline.model import Backbone, backbone_for, token_batches, worker_count
from pipeline.teacher import LocalTeacher


class Settings(NamedTuple):
    """Of one encoder: its hint for the device, the tokens of a batch, and how transformers writes attention down."""

    hint: str
    budget: int
    attention: str


class _Normalised(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def finish(self, features: Tensor) -> Tensor:
        return functional.normalize(features, dim=1)


class OpenVino:
    """One way to run the teacher's backbone. Batches are padded to the longest of texts of similar length."""

    def __init__(self, teacher: LocalTeacher, settings: Settings) -> None:
        import openvino  # type: ignore[import-not-found, unused-ignore]

        self.teacher, self.settings = teacher, settings
        backbone = backbone_for(copy.deepcopy(teacher._model[0].auto_model).float().eval())
        backbone.model.set_attn_implementation(settings.attention)
        example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = openvino.convert_model(Graph(_Normalised(backbone)), example_input=example)
        for entry in model.inputs:
            entry.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
        model.validate_nodes_and_infer_types()
        options = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": settings.hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.compiled = openvino.Core().compile_model(model, "CPU", options)
        self.queue = openvino.AsyncInferQueue(self.compiled)
        self.queue.set_callback(self._keep)
        self._vectors = np.empty((0, 0), np.float32)

    def _keep(self, request: Any, rows: np.ndarray) -> None:
        self._vectors[rows] = request.get_output_tensor(0).data

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [texts, dim] float32."""
        ids = self.teacher.tokenize(list(texts), "document")
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        self._vectors = np.empty((len(ids), self.teacher.dim), np.float32)
        for rows in token_batches(lengths, self.settings.budget, worker_count(self.teacher._model.device)):
            mask = np.arange(lengths[rows].max()) < lengths[rows][:, None]
            padded = np.full(mask.shape, self.teacher._model.tokenizer.pad_token_id, np.int64)
            padded[mask] = np.concatenate([ids[row] for row in rows])
            self.queue.start_async({0: padded, 1: mask.astype(np.int64)}, rows)
        self.queue.wait_all()
        return self._vectors


def candidates(teacher: LocalTeacher, budget: int) -> list[Settings]:
    """Settings worth trying, among them those of the batches that stage one cuts from `budget`."""
    budgets = (own_budget(teacher, budget), budget // 8, budget)
    ways = ["eager"] if teacher._model[0].auto_model.config.model_type == "mpnet" else ["eager", "sdpa"]
    return [Settings(*one) for one in product(("LATENCY", "THROUGHPUT"), budgets, ways)]


def own_budget(teacher: LocalTeacher, budget: int) -> int:
    """Tokens of one of the batches that stage one has under way at once."""
    return budget // worker_count(teacher._model.device)
