"""Made for measurements of data paths: texts of random words, a corpus, teachers that cost next to nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus import build
from pipeline.params import CorpusParams, SourceParams
from pipeline.store import StoreMeta
from pipeline.teacher import TokenisedTexts

DIM = 768
WORDS = 20_000
BATCH = 50_000
SEED = 0
TEACHER = StoreMeta("0" * 64, {"model": "made for a measurement"}, DIM, "float16", True)


def vocabulary() -> list[str]:
    """Different random words of 2 to 10 letters."""
    random = np.random.default_rng(SEED)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzéß"))
    made = ("".join(random.choice(letters, length)) for length in random.integers(2, 11, WORDS))
    return list(dict.fromkeys(made))


def write_texts(file: Path, rows: int, first: int = 0, long: float = 0.0) -> None:
    """Texts number `first` to `first + rows`, of 4 to 24 words each; every twentieth repeats the one before.

    `long` is the share of texts of 25 to 80 words, which is up to 256 tokens and more.
    """
    words = np.array(vocabulary())
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(first, first + rows, BATCH):
            random = np.random.default_rng([SEED, start])
            numbers = range(start, min(start + BATCH, first + rows))
            lengths = random.integers(4, 25, len(numbers))
            if long:
                lengths = np.where(random.random(len(numbers)) < long, random.integers(25, 81, len(numbers)), lengths)
            chosen = words[random.integers(0, len(words), int(lengths.sum()))].tolist()
            ends = np.cumsum(lengths).tolist()
            made = [" ".join(chosen[end - length : end]) for end, length in zip(ends, lengths.tolist(), strict=True)]
            made[1::20] = made[::20][: len(made[1::20])]
            writer.write_table(pa.table({"id": [str(n) for n in numbers], "text": made}, schema=schema))


def source(*files: Path) -> CorpusParams:
    """Parameters of the corpus stage for files of `write_texts`."""
    made = [
        SourceParams(name=file.stem, kind="parquet", path=str(file), role="document", id_field="id") for file in files
    ]
    return CorpusParams(sources=tuple(made), heldout=0.02)


def corpus(directory: Path, rows: int, long: float = 0.0) -> Path:
    """A corpus of about 95 % of `rows` texts, as the stage builds it, in `directory/corpus`."""
    write_texts(directory / "texts.parquet", rows, long=long)
    build(source(directory / "texts.parquet"), directory / "corpus")
    return directory / "corpus"


def rows_frame(corpus: Path) -> pl.DataFrame:
    """What a store holds of each text besides its vector."""
    frame = pl.read_parquet(sorted(corpus.glob("*.parquet")), columns=["key", "role", "id", "source"])
    return frame.with_columns(tokens=pl.lit(16, pl.Int32))


class FreeTeacher:
    """Stands where the teacher stands and gives vectors that cost nothing, so that what is left is the data path."""

    dim = DIM
    rows = 8192

    def __init__(self) -> None:
        vectors = unit_vectors(self.rows, DIM)
        self._twice, self._turn = np.hstack([vectors, vectors]), 0

    def load(self) -> None:
        """Nothing to load."""

    def tokenize_rows(self, rows: pl.DataFrame) -> TokenisedTexts:
        """One token each."""
        return TokenisedTexts([[0]] * len(rows), rows["role"].to_list(), [0] * len(rows))

    def parts(self, token_ids: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row numbers and unit vectors [texts, DIM] float32; each batch is turned by a column, lest files be equal."""
        for start in range(0, len(token_ids), self.rows):
            rows = np.arange(start, min(start + self.rows, len(token_ids)))
            yield rows, self._twice[: len(rows), self._turn : self._turn + DIM]
            self._turn = (self._turn + 1) % DIM


def unit_vectors(rows: int, dim: int) -> np.ndarray:
    """Random vectors [rows, dim] float32 of length one."""
    vectors = np.random.default_rng(SEED).standard_normal((rows, dim), dtype=np.float32)
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def tiny_teacher(directory: Path) -> Path:
    """A real sentence-transformers model in `directory`: one BERT layer 32 wide, random weights, a head to DIM.

    Its tokenizer knows whole words. Everything is what it is for a real teacher, except the time of a forward pass.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = {word: number for number, word in enumerate([*special, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    torch.manual_seed(SEED)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    model = BertModel(BertConfig(vocab_size=len(known), max_position_embeddings=256, **shape))
    plain = directory.with_name(f"{directory.name}-plain")
    model.save_pretrained(plain)
    marks: dict[str, Any] = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, model_max_length=254, **marks).save_pretrained(plain)
    head = Dense(32, DIM, activation_function=torch.nn.Identity())
    modules = [Transformer(str(plain), max_seq_length=254), Pooling(32, pooling_mode="mean"), head, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory))
    return directory
