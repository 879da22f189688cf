"""The corpus as token ids: written once for a corpus and a tokenizer, and mapped from disk from then on.

Files of a cache, rows in the order of the corpus (sorted by key): `ids.bin` (all token ids end to end, uint16, or int32
for vocabularies above 65,536), `offsets.bin` (int64 [rows + 1]), `keys.bin` (16 bytes a row), `train.bin` (bool).
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tqdm import tqdm

from pipeline.base import KEY_DTYPE, LeafError, TokenIds, made_once
from pipeline.corpus import check_rows, part_files, rows_within

BATCH_ROWS = 8192  # texts tokenised at a time, at most


@dataclass(frozen=True)
class Tokens:
    """Token ids of every text of a corpus: `ids[offsets[i]:offsets[i + 1]]` is text i, and `keys[i]` its key."""

    ids: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    train: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of each of these texts."""
        lengths: np.ndarray = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def __getitem__(self, row: int) -> np.ndarray:
        text: np.ndarray = self.ids[self.offsets[row] : self.offsets[row + 1]]
        return text


def token_counts(tokens: Tokens) -> np.ndarray:
    """How often each token stands in the training texts, `[ids]` int64 up to the highest id that does."""
    total = np.zeros(0, dtype=np.int64)
    with tqdm(total=len(tokens), desc="vocabulary", unit="text", unit_scale=True) as bar:
        for start in range(0, len(tokens), BATCH_ROWS):
            rows = np.arange(start, min(start + BATCH_ROWS, len(tokens)))
            ids = tokens.ids[tokens.offsets[rows[0]] : tokens.offsets[rows[-1] + 1]]
            counts = np.bincount(ids[np.repeat(tokens.train[rows], tokens.lengths(rows))], minlength=len(total))
            total = np.pad(total, (0, len(counts) - len(total))) + counts
            bar.update(len(rows))
    return total


def tokenize(corpus: Path, digest: str, tokenizer: Tokenizer, caches: Path) -> Tokens:
    """The cache of this corpus (whose `corpus_digest` is `digest`) and tokenizer, made if it is not there yet.

    Raises:
        LeafError: the corpus is empty, damaged or changed by hand, or another process is making this cache.
    """
    name = hashlib.sha256(f"{digest} {tokenizer.to_str()}".encode()).hexdigest()[:16]
    ids_dtype = np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.int32)
    write = partial(_write, corpus, tokenizer, ids_dtype)
    path = made_once(caches / name, "token cache", f"{corpus}: tokenising it for a fit", write)
    kinds = {"ids": ids_dtype, "offsets": np.dtype(np.int64), "keys": KEY_DTYPE, "train": np.dtype(np.bool_)}
    # As plain arrays: slicing a memmap takes eight times as long, and the loader slices often.
    return Tokens(**{name: np.asarray(np.memmap(path / f"{name}.bin", kind, "r")) for name, kind in kinds.items()})


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or KeyErrors
        raise LeafError(f"{file}: cannot be read: {error}; run the stage `corpus` again") from None


def _rows(file: Path) -> int:
    with _reading(file):
        return int(pq.read_metadata(file).num_rows)


def _batches(files: list[Path]) -> Iterator[pl.DataFrame]:
    for file in files:
        with _reading(file), pq.ParquetFile(file) as parquet:
            rows_at_once = min(BATCH_ROWS, rows_within(parquet.metadata))
            for batch in parquet.iter_batches(rows_at_once, columns=["key", "role", "id", "text", "split"]):
                rows = pl.DataFrame(pl.from_arrow(batch))
                check_rows(rows, str(file))
                yield rows


def _write(corpus: Path, tokenizer: Tokenizer, ids_dtype: np.dtype, path: Path) -> None:
    files = part_files(corpus)
    total = sum(map(_rows, files))
    if total == 0:
        raise LeafError(f"{corpus}: the corpus is empty; nothing can be fitted")
    token_ids = TokenIds(tokenizer)
    with ExitStack() as stack:
        opened = {n: stack.enter_context((path / f"{n}.bin").open("wb")) for n in ("ids", "offsets", "keys", "train")}
        bar = stack.enter_context(tqdm(total=total, desc="tokens", unit="text", unit_scale=True))
        end = np.zeros(1, dtype=np.int64)
        end.tofile(opened["offsets"])
        for frame in _batches(files):
            texts = token_ids(frame["text"].to_list())
            lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
            np.concatenate([np.asarray(ids, dtype=ids_dtype) for ids in texts]).tofile(opened["ids"])
            offsets = end[-1] + np.cumsum(lengths)
            offsets.tofile(opened["offsets"])
            end = offsets
            opened["keys"].write(b"".join(frame["key"].to_list()))
            (frame["split"] == "train").to_numpy().astype(np.bool_).tofile(opened["train"])
            bar.update(len(frame))
