"""The student as one ONNX graph with pooling, head and normalisation inside, in float32 and in int8."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.base import Array, cosines, first_line, import_optional
from pipeline.export.cards import fill_template, front_matter, results_table
from pipeline.export.exporter import ExportedEncoder, ExportJob, LeftOut
from pipeline.export.onnx_files import STATES, write_library_files
from pipeline.model import Student, pack
from pipeline.serve import MODELS, TOKENIZER, VECTORS, OnnxEncoder, padded
from pipeline.store import FITTED_TO, FittedTo, write_fitted_to

OPSET = 18
EXAMPLE_SHAPE = (2, 8)  # texts, tokens of the traced batch; both are free in the graph
LOWEST_COSINES = {"float32": 0.9999, "int8": 0.9}  # to PyTorch's vectors that a written graph may have
PROBE_LENGTHS = (3, 4, 7, 12, 20, 33, 65, 200)  # tokens of made texts by which a graph is tried
NOISE = 0.01  # most that a graph's vector may differ from PyTorch's, as a share of its length
INT8_CARD = """\
The int8 graph is made for processors with products of int8 (VNNI of x86, the dot product of ARM), where it is the
faster one. On others its sums may overflow: use `model.onnx` there. The activations of a batch share one scale, so the
last digits of a vector depend on what it is batched with."""
NO_INT8_CARD = "There is no int8 graph: its vectors would be too far from PyTorch's."


class OnnxExporter:
    """The student for onnxruntime, in float32 and int8."""

    name = "onnx"
    directory = "onnx"

    def write(self, job: ExportJob, directory: Path) -> LeftOut | None:
        """Both graphs and the tokenizer; left out is a family that has no right graph. LeafError as `write_graphs`."""
        if not (reason := write_graphs(job.student, directory)):
            if (job.student_directory / FITTED_TO).is_file():
                write_fitted_to(directory, FittedTo.of(job.meta))
            return None
        reason = f"a student of type `{job.student.backbone.model_type}` has no ONNX graph: {reason}"
        card = f"# No ONNX model\n\nLeft out: {reason}. `models/student` runs with sentence-transformers.\n"
        return LeftOut(reason, card)

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        """By precision, each with the cosine to PyTorch that it must have."""
        return {
            precision: ExportedEncoder(
                OnnxEncoder(directory, precision).encode,
                "query",
                LOWEST_COSINES[precision],
                directory / file,
            )
            for precision, file in MODELS.items()
            if (directory / file).is_file()
        }

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> str:
        """What each file loses, how to use them, and the retrieval results."""
        modes = ("standard", "asymmetric")
        rows = []
        for precision, entry in figures.items():
            loss = "not measured" if entry["loss"] is None else f"{entry['loss']:.2%}"
            cells = [
                f"`{MODELS[precision]}`",
                precision,
                f"{entry['bytes'] / 1e6:.0f}",
                f"{entry['cosine']['lowest']:.4f}",
                loss,
            ]
            rows.append(f"| {' | '.join(cells)} |")
        values = {
            "teacher": job.origin.teacher_name,
            "dim": job.student.dim,
            "pooling": " and ".join(job.student.backbone.pooling),
            "comparison": job.meta.comparison,
            "max_length": job.student.max_length,
            "table": "\n".join(rows),
            "int8": INT8_CARD if "int8" in figures else NO_INT8_CARD,
            "file": MODELS["int8" if "int8" in figures else "float32"],
            "results": results_table(job.origin, modes),
        }
        return front_matter(f"{job.origin.title}, ONNX", job.origin, modes, library="onnx") + fill_template(
            "onnx.md", values
        )


class Graph(nn.Module):
    """`input_ids`, `attention_mask` [texts, tokens] int64, padded on the right -> vectors [texts, dim] float32.

    And the same once more as the only state of each text, [texts, 1, dim], for libraries that pool (`onnx_files`).
    """

    def __init__(self, model: Any) -> None:
        """`model` is a Student, or has its `backbone` and `finish` (what follows the pooled hidden states)."""
        from sentence_transformers.sentence_transformer.modules import Pooling

        super().__init__()
        self.model = model
        self.pooling = Pooling(model.backbone.hidden_size, pooling_mode=list(model.backbone.pooling))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pools by the library's module, which is written to be traced."""
        states = self.model.backbone.padded_states(input_ids, attention_mask)
        pooled = self.pooling({"token_embeddings": states, "attention_mask": attention_mask})
        vectors: Tensor = self.model.finish(pooled["sentence_embedding"])
        return vectors, vectors[:, None]


def write_graphs(student: Student, directory: Path) -> str | None:
    """Write `onnx/model.onnx`, `onnx/model_int8.onnx`, the tokenizer and what libraries look for into a directory.

    The int8 graph is left out where its vectors of made texts are further from PyTorch's than LOWEST_COSINES allows.

    Returns:
        None; or, for a model that has no right graph, why. What lies in the directory is then of no use.

    Raises:
        LeafError: the package `onnx` or `onnxruntime` is missing.
    """
    for module in ("onnx", "onnxruntime"):
        import_optional(module, None, "export to ONNX")
    exact = directory / MODELS["float32"]
    exact.parent.mkdir()
    graph = Graph(copy.deepcopy(student)).float().cpu().eval()
    try:
        _trace(graph, exact)
    except OSError:
        raise
    except Exception as error:  # whatever a family's own code and the tracer raise
        return f"its computation cannot be traced ({first_line(error):.200})"
    texts, expected = _probed(graph.model)
    if reason := _wrong(exact, texts, expected):
        return reason
    coarse = directory / MODELS["int8"]
    _quantise(exact, coarse)
    if not cosines(_opened(coarse)(texts), expected).min() >= LOWEST_COSINES["int8"]:
        coarse.unlink()
    student.tokenizer().save(str(directory / TOKENIZER))
    write_library_files(student, directory)
    return None


def _trace(graph: Graph, file: Path) -> None:
    """Write the float32 graph by TorchScript: `torch.export` takes four times as long and two more packages."""
    backbone: Any = graph.model.backbone.model
    if hasattr(backbone, "set_attn_implementation"):
        backbone.set_attn_implementation("eager")
        backbone.config.use_cache = False
    ids, mask = torch.ones(2, *EXAMPLE_SHAPE, dtype=torch.int64)
    mask[-1, -2:] = 0  # so that no code that passes by padding where there is none is what is traced
    free = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad(), _masks_by_broadcasting():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (ids, mask),
            str(file),
            input_names=["input_ids", "attention_mask"],
            output_names=[VECTORS, STATES],
            dynamic_axes={"input_ids": free, "attention_mask": free, VECTORS: {0: "texts"}, STATES: {0: "texts"}},
            opset_version=OPSET,
            dynamo=False,
        )


@contextmanager
def _masks_by_broadcasting() -> Iterator[None]:
    """Have transformers make every attention mask by broadcasting; for some (Gemma 3) it uses vmap: it has no trace."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    functions: Any = ALL_MASK_ATTENTION_FUNCTIONS
    make = functions["eager"]
    functions["eager"] = lambda *args, **given: make(*args, **{**given, "use_vmap": False})
    try:
        yield
    finally:
        functions["eager"] = make


def _probed(student: Student) -> tuple[list[list[int]], Array]:
    """Made texts of several lengths, as token ids, and their vectors in PyTorch."""
    rows = student.backbone.token_embeddings.num_embeddings
    lengths = sorted({min(length, student.max_length) for length in PROBE_LENGTHS})
    texts = [[(rows // 2 + place) % rows for place in range(length)] for length in lengths]
    with torch.inference_mode():
        return texts, torch.cat([student(pack([text])) for text in texts]).numpy()


def _opened(file: Path) -> Callable[[list[list[int]]], Array]:
    """A graph, ready to compute the vectors of token ids in one batch. Raises what onnxruntime raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it prints what it raises
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(texts: list[list[int]]) -> Array:
        vectors: Array = session.run(None, padded(texts))[0]
        return vectors

    return run


def _wrong(file: Path, texts: list[list[int]], expected: Array) -> str | None:
    """What is wrong with a graph, tried on texts alone and in one batch; None if it gives the expected vectors."""
    try:
        run = _opened(file)
        alone, together = np.concatenate([run([text]) for text in texts]), run(texts)
    except Exception as error:  # bare exceptions of its own
        return f"onnxruntime cannot run it ({first_line(error):.200})"
    if not _near(alone, expected):
        return "it gives other vectors than PyTorch"
    return None if _near(together, expected) else "its vectors depend on how far a batch is padded"


def _near(vectors: Array, expected: Array) -> bool:
    differences = np.linalg.norm(vectors - expected, axis=1)
    return bool((differences <= NOISE * np.linalg.norm(expected, axis=1)).all())


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
    _strip(file)


def _strip(file: Path) -> None:
    """Drop what a quantised graph does not need.

    That is the zero points of weights, which are 0, while onnxruntime corrects every product for those that are given;
    and the sets of operations that it declares and does not use, which another runtime may not know.
    """
    import onnx

    model = onnx.load(file)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger" and len(node.input) == 4 and node.input[3] in tensors:
            zero_points = tensors[node.input[3]]
            if not onnx.numpy_helper.to_array(zero_points).any():
                del node.input[3]
    used = {name for node in model.graph.node for name in node.input}
    domains = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
    del model.graph.initializer[:], model.opset_import[:]
    model.graph.initializer.extend(tensor for name, tensor in tensors.items() if name in used)
    model.opset_import.extend(opsets)
    onnx.save(model, file)
