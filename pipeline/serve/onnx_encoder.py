"""Embeds texts with an ONNX model, using onnxruntime and tokenizers alone (no torch, no sentence-transformers)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import LeafError, TokenIds, first_line, import_optional

MODELS = {"float32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
VECTORS = "sentence_embedding"  # the output `[texts, dim]`; the others are for other libraries (docs/serve.md)
TOKENIZER = "tokenizer.json"  # truncates to the model's maximal length and does not pad
BATCH_TEXTS = 32


class OnnxEncoder:
    """A directory such as `models/onnx`: a tokenizer, and a graph that pools, projects and normalises."""

    def __init__(self, directory: Path, precision: str = "float32", threads: int = 0) -> None:
        """`threads` is the number of threads of onnxruntime, 0 for all cores that the process may use.

        Raises:
            LeafError: onnxruntime is missing, or the directory holds no whole model.
        """
        onnxruntime = import_optional("onnxruntime", "onnx", "a model in ONNX")
        from tokenizers import Tokenizer

        model = directory / MODELS[precision]
        if not model.is_file() or not (directory / TOKENIZER).is_file():
            why = "its README.md may say why" if (directory / "README.md").is_file() else "run the export stage first"
            raise LeafError(f"{directory}: holds no {MODELS[precision]} with its {TOKENIZER}; {why}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or _usable_cores()
        try:
            self._token_ids = TokenIds(Tokenizer.from_file(str(directory / TOKENIZER)))
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # both libraries raise bare exceptions of their own
            raise LeafError(f"{model}: cannot be loaded ({first_line(error)}); run the export stage again") from None
        self.dim = next(int(output.shape[1]) for output in self._session.get_outputs() if output.name == VECTORS)

    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Vectors `[texts, dim]` float32 in the texts' order. `role` is ignored: a student embeds both roles alike.

        In int8 a batch shares the scale of its activations, so a text's last digits depend on the others in its batch.
        """
        token_ids = self._token_ids(texts)
        order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        vectors = np.empty((len(token_ids), self.dim), np.float32)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            vectors[rows] = self._session.run([VECTORS], padded([token_ids[row] for row in rows]))[0]
        return vectors


def padded(token_ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The graph's inputs, both `[texts, longest]` int64. Padding is masked, so the padding id does not matter."""
    lengths = np.array([len(ids) for ids in token_ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([np.asarray(text_ids, np.int64) for text_ids in token_ids])
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
