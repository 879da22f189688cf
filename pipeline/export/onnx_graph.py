"""The student as one ONNX graph with pooling, head and normalisation inside, in float32 and in int8."""

import copy
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.optional import import_optional
from pipeline.model.student import Student, model_directory
from pipeline.serve.onnx_encoder import MODELS, TOKENIZER

OPSET = 18
EXAMPLE_SHAPE = (2, 8)  # texts, tokens: what is traced; both are free in the graph


class Graph(nn.Module):
    """`input_ids`, `attention_mask` [texts, tokens] int64 -> vectors [texts, dim] float32."""

    def __init__(self, model: nn.Module) -> None:
        """`model` has a `backbone` and what is done with its mean hidden states, `finish`: a Student has."""
        super().__init__()
        self.model: Any = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Additive 4-D mask, made here: the libraries' own mask functions branch on shapes, which tracing would fix."""
        mask = attention_mask.to(torch.float32)
        hidden_by = (1 - mask)[:, None, None, :] * torch.finfo(torch.float32).min
        states = self.model.backbone.model(input_ids=input_ids, attention_mask=hidden_by).last_hidden_state
        vectors: Tensor = self.model.finish((states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))
        return vectors


def export_onnx(student: Student, out: Path) -> None:
    """Write `model.onnx`, `model_int8.onnx` and `tokenizer.json` into the directory `out`, all or nothing.

    Raises:
        LeafError: the package `onnx` or `onnxruntime` is missing.
    """
    for module in ("onnx", "onnxruntime"):
        import_optional(module, "onnx", "export to ONNX")
    with model_directory(out) as directory:
        _trace(student, directory / MODELS["float32"])
        _quantise(directory / MODELS["float32"], directory / MODELS["int8"])
        student.tokenizer().save(str(directory / TOKENIZER))


def _trace(student: Student, file: Path) -> None:
    """By TorchScript: the exporter through `torch.export` takes four times as long and two more packages."""
    graph = Graph(copy.deepcopy(student)).float().cpu().eval()
    backbone: Any = graph.model.backbone.model
    backbone.set_attn_implementation("eager")
    inputs = tuple(torch.ones(EXAMPLE_SHAPE, dtype=torch.int64) for _ in range(2))
    free = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            inputs,
            str(file),
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamic_axes={"input_ids": free, "attention_mask": free, "vectors": {0: "texts"}},
            opset_version=OPSET,
            dynamo=False,
        )


def _quantise(source: Path, file: Path) -> None:
    """Weights to int8, a scale per output channel; activations are quantised on the fly."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises by warning what has been done here
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_dynamic(prepared, file, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        root.setLevel(level)
