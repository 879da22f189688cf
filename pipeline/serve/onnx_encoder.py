"""Embeds texts with an ONNX model, using onnxruntime and tokenizers alone (no torch, no sentence-transformers)."""

import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import LeafError, TokenIds, first_line, import_optional, panics_as_errors

MODELS = {"float32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
VECTORS = "sentence_embedding"  # the output `[texts, dim]`; the others are for other libraries (docs/serve.md)
TOKENIZER = "tokenizer.json"  # truncates to the model's maximal length and does not pad
BATCH_TOKENS = 256  # padding included: what a layer computes of so many still lies in a core's cache


class OnnxEncoder:
    """A directory such as `models/onnx`: a tokenizer, and a graph that pools, projects and normalises."""

    def __init__(self, directory: Path, precision: str | None = None, threads: int = 0) -> None:
        """Open a graph.

        Args:
            directory: where the export stage wrote it.
            precision: a key of MODELS; None for the fastest that this processor computes as it was checked.
            threads: most cores that are used at once; 0 for all that the process may use.

        Raises:
            LeafError: onnxruntime is missing, or the directory holds no whole model.
        """
        import_optional("onnxruntime", None, "a model in ONNX")
        from tokenizers import Tokenizer

        model = directory / MODELS[precision or fastest(directory)]
        if not model.is_file() or not (directory / TOKENIZER).is_file():
            why = "its README.md may say why" if (directory / "README.md").is_file() else "run the export stage first"
            raise LeafError(f"{directory}: holds no {model.relative_to(directory)} with its {TOKENIZER}; {why}")
        self._threads = threads or _usable_cores()
        try:
            with panics_as_errors():
                tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
            self._token_ids = TokenIds(tokenizer)
            self._model = model.read_bytes()
            self._session = self._opened(self._threads)
        except Exception as error:  # both libraries raise bare exceptions of their own
            raise LeafError(f"{model}: cannot be loaded ({first_line(error)}); run the export stage again") from None
        self.dim = next(int(output.shape[1]) for output in self._session.get_outputs() if output.name == VECTORS)

    def encode(self, texts: Sequence[str], role: str = "query") -> np.ndarray:
        """Vectors `[texts, dim]` float32 in the texts' order. `role` is ignored: a student embeds both roles alike.

        One batch is computed by all threads together, several side by side by a thread each, which never wait for one
        another. In int8 a batch shares the scale of its activations, so a text's last digits depend on its neighbours.
        """
        token_ids = self._token_ids(texts)
        vectors = np.empty((len(token_ids), self.dim), np.float32)
        batches = list(_batches(token_ids))
        session = self._session if len(batches) < 2 else self._session_of_one_thread

        def run(rows: list[int]) -> None:
            vectors[rows] = session.run([VECTORS], padded([token_ids[row] for row in rows]))[0]

        if len(batches) < 2 or self._threads == 1:
            for rows in batches:
                run(rows)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(run, reversed(batches)))  # the longest first, so that the last to end is a short one
        return vectors

    @cached_property
    def _session_of_one_thread(self) -> Any:
        """A session whose runs, each on its caller's thread, go on side by side; its weights are a second copy."""
        session = self._session if self._threads == 1 else self._opened(1)
        self._model = b""  # of no more use
        return session

    def _opened(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])


def fastest(directory: Path) -> str:
    """The key of MODELS that is best to use here: int8 where there is such a graph and the processor is made for it."""
    return "int8" if (directory / MODELS["int8"]).is_file() and _multiplies_int8() else "float32"


def _multiplies_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has int8 products that sum up in 32 bits: VNNI of x86, the dot product of ARM.

    Without it onnxruntime sums up pairs in 16 bits, where they may overflow, and is hardly faster than in float32.
    """
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return platform.machine() == "arm64"  # of Apple, which has it
    return not flags.isdisjoint(("avx512_vnni", "avx_vnni", "asimddp"))


def _batches(token_ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows of texts of similar length, the shortest first: a text, or as many as fit into BATCH_TOKENS."""
    batch: list[int] = []
    for row in sorted(range(len(token_ids)), key=lambda row: len(token_ids[row])):
        if batch and (len(batch) + 1) * len(token_ids[row]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded(token_ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The graph's inputs, both `[texts, longest]` int64. Padding is masked, so the padding id does not matter."""
    lengths = np.array([len(ids) for ids in token_ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([np.asarray(text_ids, np.int64) for text_ids in token_ids])
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
