"""The student as one ONNX graph with pooling, head and normalisation inside, in float32 and in int8."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base import import_optional
from pipeline.export.cards import fill_template, front_matter, results_table
from pipeline.export.exporter import ExportedEncoder, ExportJob, LeftOut
from pipeline.model import Student
from pipeline.serve import MODELS, TOKENIZER, OnnxEncoder

OPSET = 18
EXAMPLE_SHAPE = (2, 8)  # texts, tokens of the traced batch; both are free in the graph
LOWEST_COSINE = 0.9999  # of the float32 graph to PyTorch


class OnnxExporter:
    """The student for onnxruntime, in float32 and int8."""

    name = "onnx"
    directory = "onnx"

    def left_out(self, job: ExportJob) -> LeftOut | None:
        """Never."""
        return None

    def write(self, job: ExportJob, directory: Path) -> None:
        """Both graphs and the tokenizer; LeafError as `write_graphs`."""
        write_graphs(job.student, directory)

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        """By precision; only float32 must agree with PyTorch."""
        return {
            precision: ExportedEncoder(
                OnnxEncoder(directory, precision).encode,
                "query",
                LOWEST_COSINE if precision == "float32" else None,
                directory / file,
            )
            for precision, file in MODELS.items()
        }

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> str:
        """What each file loses, how to use them, and the retrieval results."""
        modes = ("standard", "asymmetric")
        rows = []
        for precision, file in MODELS.items():
            entry = figures[precision]
            loss = "not measured" if entry["loss"] is None else f"{entry['loss']:.2%}"
            cells = [f"`{file}`", precision, f"{entry['bytes'] / 1e6:.0f}", f"{entry['cosine']['lowest']:.4f}", loss]
            rows.append(f"| {' | '.join(cells)} |")
        values = {
            "name": self.name,
            "teacher": job.origin.teacher_name,
            "dim": job.student.dim,
            "pooling": " and ".join(job.student.backbone.pooling),
            "comparison": job.meta.comparison,
            "max_length": job.student.max_length,
            "table": "\n".join(rows),
            "results": results_table(job.origin, modes),
        }
        return front_matter(self.name, job.origin, modes, library="onnx") + fill_template("onnx.md", values)


class Graph(nn.Module):
    """`input_ids`, `attention_mask` [texts, tokens] int64 -> vectors [texts, dim] float32."""

    def __init__(self, model: nn.Module) -> None:
        """`model` is a Student, or has its `backbone` and `finish` (what follows the mean of the hidden states)."""
        super().__init__()
        self.model: Any = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Makes the additive 4-D mask itself: the libraries' functions branch on shapes, which tracing would fix."""
        mask = attention_mask.to(torch.float32)
        hidden_by = (1 - mask)[:, None, None, :] * torch.finfo(torch.float32).min
        states = self.model.backbone.model(input_ids=input_ids, attention_mask=hidden_by).last_hidden_state
        vectors: Tensor = self.model.finish((states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))
        return vectors


def write_graphs(student: Student, directory: Path) -> None:
    """Write `model.onnx`, `model_int8.onnx` and `tokenizer.json` into an existing directory.

    Raises:
        LeafError: the package `onnx` or `onnxruntime` is missing.
    """
    for module in ("onnx", "onnxruntime"):
        import_optional(module, "onnx", "export to ONNX")
    _trace(student, directory / MODELS["float32"])
    _quantise(directory / MODELS["float32"], directory / MODELS["int8"])
    student.tokenizer().save(str(directory / TOKENIZER))


def _trace(student: Student, file: Path) -> None:
    """Write the float32 graph by TorchScript: `torch.export` takes four times as long and two more packages."""
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
    """Write the int8 graph: weights quantised with a scale per output channel, activations while it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it warns that the model should be prepared, which it is
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_dynamic(prepared, file, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        root.setLevel(level)
