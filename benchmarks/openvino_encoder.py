"""A model on OpenVINO in bfloat16, as fast as its settings make it: what stage one and graphs are compared with."""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.export import Graph
from pipeline.model import Backbone, backbone_for, token_batches, worker_count
from pipeline.teacher import LocalTeacher

HOPELESS = 3  # a setting whose first run takes so many times the best one's gets no second


class Settings(NamedTuple):
    """Of one encoder: its hint for the device, the tokens of a batch, and how transformers writes attention down."""

    hint: str
    budget: int
    attention: str


class _TransformersOwn(nn.Module):
    """A backbone whose hidden states are those of the model's own forward pass in transformers."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.hidden_size, self.pooling = backbone, backbone.hidden_size, backbone.pooling

    def padded_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return Backbone.padded_states(self.backbone, ids, mask)


class _Normalised(nn.Module):
    """A backbone and the modules behind its pooling."""

    def __init__(self, backbone: nn.Module, behind: Sequence[nn.Module]) -> None:
        super().__init__()
        self.backbone, self.behind = backbone, nn.ModuleList(behind)

    def finish(self, features: Tensor) -> Tensor:
        for module in self.behind:
            features = module({"sentence_embedding": features})["sentence_embedding"]
        return functional.normalize(features, dim=1)


class OpenVino:
    """One way to run the teacher's backbone. Batches are padded to the longest of texts of similar length."""

    def __init__(self, teacher: LocalTeacher, settings: Settings, graph: Path | None = None) -> None:
        """`graph` is an ONNX graph of the teacher that is run in place of its PyTorch module."""
        import openvino  # type: ignore[import-not-found, unused-ignore]

        self.teacher, self.settings = teacher, settings
        model = openvino.Core().read_model(graph) if graph else _converted(teacher, settings.attention)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": settings.hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.compiled = openvino.Core().compile_model(model, "CPU", options)
        self.queue = openvino.AsyncInferQueue(self.compiled)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [texts, dim] float32."""
        ids = self.teacher.tokenize(list(texts), "document")
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        vectors = np.empty((len(ids), self.teacher.dim), np.float32)

        def keep(request: Any, rows: np.ndarray) -> None:  # no method: the queue would hold this engine for ever
            vectors[rows] = request.get_output_tensor(0).data

        self.queue.set_callback(keep)
        for rows in token_batches(lengths, self.settings.budget, worker_count(self.teacher._model.device)):
            mask = np.arange(lengths[rows].max()) < lengths[rows][:, None]
            padded = np.full(mask.shape, self.teacher._model.tokenizer.pad_token_id, np.int64)
            padded[mask] = np.concatenate([ids[row] for row in rows])
            self.queue.start_async({0: padded, 1: mask.astype(np.int64)}, rows)
        self.queue.wait_all()
        return vectors


def _converted(teacher: LocalTeacher, attention: str) -> Any:
    """The teacher's backbone with pooling and normalisation, by OpenVINO's converter from PyTorch."""
    import openvino  # type: ignore[import-not-found, unused-ignore]

    transformer, _, *behind = copy.deepcopy(teacher._model).float().eval()
    backbone = backbone_for(transformer.auto_model)
    backbone.model.set_attn_implementation(attention)
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(Graph(_Normalised(_TransformersOwn(backbone), behind)), example_input=example)
    for entry in model.inputs:
        entry.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model


def timed(
    make: Callable[[Settings], OpenVino], settings: Sequence[Settings], texts: Sequence[str]
) -> dict[Settings, float]:
    """Seconds in which an engine of each setting encodes the texts, not the first time."""
    measured: dict[Settings, float] = {}
    for setting in settings:
        engine = make(setting)
        seconds = _seconds(engine, texts)  # warms up
        if not measured or seconds < HOPELESS * min(measured.values()):
            seconds = _seconds(engine, texts)
        measured[setting] = seconds
        print(f"OpenVINO {setting.hint}, {setting.budget} tokens, {setting.attention}: {seconds:.2f} s", flush=True)
    return measured


def _seconds(engine: OpenVino, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    engine.encode(texts)
    return time.perf_counter() - start


def candidates(teacher: LocalTeacher, budget: int) -> list[Settings]:
    """Settings worth trying, among them those of the batches that stage one cuts from `budget`."""
    budgets = (own_budget(teacher, budget), budget // 8, budget)
    ways = ["eager"] if teacher._model[0].auto_model.config.model_type == "mpnet" else ["eager", "sdpa"]
    return [Settings(*one) for one in product(("LATENCY", "THROUGHPUT"), budgets, ways)]


def own_budget(teacher: LocalTeacher, budget: int) -> int:
    """Tokens of one of the batches that stage one has under way at once."""
    return budget // worker_count(teacher._model.device)
