"""The seams of the fit: another backbone and another source of vectors go through the real stage as they are."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError
from pipeline.fit.trainer import fit
from pipeline.model.backbones import registry
from pipeline.model.backbones.backbone import Backbone, CompiledBackbone
from pipeline.model.backbones.packed import PackedBackbone
from pipeline.model.batch import Batch
from pipeline.model.pooling import Pooling
from pipeline.model.student import StudentEncoder
from pipeline.params.file import load_section
from pipeline.params.sections import FitParams
from pipeline.store.shard_cache import ShardCache
from pipeline.store.source import VectorSource
from pipeline.store.store import Store
from stages.encode import main as encode_stage
from stages.fit import main as fit_stage
from tests.conftest import sentence

WriteParams = Callable[..., Path]


class OwnBackbone(Backbone):
    """Any transformers encoder, by its own forward pass over padded texts."""

    scope = "anything, in a test"

    @classmethod
    def supports(cls, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> bool:
        return True

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def layers(self) -> int:
        return len(self.model.transformer.layer)

    @property
    def max_tokens(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def token_embeddings(self) -> nn.Embedding:
        table: nn.Embedding = self.model.get_input_embeddings()
        return table

    def keep_layers(self, layers: Sequence[int]) -> None:
        self.model.transformer.layer = nn.ModuleList([self.model.transformer.layer[i] for i in layers])
        self.model.config.n_layers = len(layers)

    def set_dropout(self, share: float) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = share

    def features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        lengths = torch.tensor([length for count, length in batch.length_groups for _ in range(count)])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        ids[mask] = batch.ids[: int(lengths.sum())]
        hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = mask[:, :, None].float()
        pooled: Tensor = (hidden * weights).sum(1) / weights.sum(1)
        return pooled[batch.order]

    def compiled(self, token_budget: int) -> CompiledBackbone:
        self.eval()
        return Compiled(self)


class Compiled:
    device = torch.device("cpu")

    def __init__(self, backbone: OwnBackbone) -> None:
        self.backbone = backbone

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        return self.backbone.features(batch)


@pytest.fixture
def distilbert(tiny_student: Path, tmp_path: Path) -> Path:
    """A checkpoint that the packed backbone does not run, for its activation; transformers files alone."""
    directory = tmp_path / "distilbert"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_student)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": 16, "n_heads": 2, "hidden_dim": 32, "n_layers": 3, "max_position_embeddings": 64}
    shape["activation"] = "tanh"
    DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def run(stage: Any, *arguments: str) -> str:
    result = CliRunner().invoke(stage, arguments)
    if isinstance(result.exception, BaseException) and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_another_backbone_goes_through_the_fit_stage(
    distilbert: Path, tiny_corpus: Path, write_params: WriteParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = write_params(fit={"student": {"model": str(distilbert), "layers": [0, 2]}, "max_steps": 12})
    places = ["--params", str(params), "--corpus", str(tiny_corpus)]
    run(encode_stage, *places, "--out", "store", "--metrics", "encode.json")
    arguments = [*places, "--embeddings", "store", "--out", "student", "--metrics", "fit.json", "--curve", "curve.csv"]

    monkeypatch.setattr(registry, "BACKBONES", [PackedBackbone])
    assert "backbone of type `distilbert` cannot be run" in run(fit_stage, *arguments)
    monkeypatch.setattr(registry, "BACKBONES", [PackedBackbone, OwnBackbone])
    assert "texts in 12 steps" in run(fit_stage, *arguments)

    texts = [sentence(number) for number in range(20)]
    plain = SentenceTransformer(str(tmp_path / "student"))
    transformer: Any = plain[0]
    assert len(transformer.auto_model.transformer.layer) == 2
    ours = StudentEncoder.load(tmp_path / "student").encode(texts)
    assert np.abs(ours - plain.encode(texts)).max() < 1e-5


class SideBySide(VectorSource):
    """Two stores of one teacher, read as if they were one."""

    def __init__(self, *stores: Store) -> None:
        self.stores = stores
        self.meta = stores[0].meta
        if any(store.meta.fingerprint != self.meta.fingerprint for store in stores):
            raise LeafError("stores of different teachers cannot be read together")

    @property
    def name(self) -> str:
        return " and ".join(store.name for store in self.stores)

    @property
    def parts(self) -> Sequence[int]:
        return [rows for store in self.stores for rows in store.parts]

    def locate(self, keys: Sequence[bytes] | Array) -> Array:
        rows = np.full(len(keys), -1, np.int64)
        first = 0
        for store in self.stores:
            own = store.locate(keys)
            rows = np.where((rows < 0) & (own >= 0), own + first, rows)
            first += store.rows
        return rows

    def read(self, part: int, start: int = 0, stop: int | None = None) -> Array:
        for store in self.stores:
            if part < len(store.parts):
                return store.read(part, start, stop)
            part -= len(store.parts)
        raise IndexError(part)

    def verify(self) -> None:
        for store in self.stores:
            store.verify()

    def digest(self) -> str:
        return " ".join(store.digest() for store in self.stores)


def test_two_stores_side_by_side_are_fitted_to_as_one(
    tiny_corpus: Path, write_params: WriteParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_params(fit={"validate_every": 1000})
    params = load_section(file, "fit", FitParams)
    run(encode_stage, "--params", str(file), "--corpus", str(tiny_corpus), "--out", "store", "--metrics", "e.json")
    whole = Store.open(tmp_path / "store")
    halves = []
    for half in range(2):
        with ShardCache(tmp_path / f"half-{half}", whole.meta) as cache:
            for shard in range(half, len(whole.shards), 2):
                cache.adopt(whole.path, whole.shards[shard])
            halves.append(cache.publish(tmp_path / f"store-{half}", cache.keys()))

    with pytest.raises(LeafError, match="lacks the vectors of"):
        fit(tiny_corpus, halves[0], params, tmp_path / "student", tmp_path / "work")
    result = fit(tiny_corpus, SideBySide(*halves), params, tmp_path / "student", tmp_path / "work")
    frame = pl.read_parquet(tiny_corpus)
    assert result.metrics["training_rows"] == len(frame.filter(pl.col("split") == "train"))
    assert result.metrics["validation"]["loss"] < result.metrics["validation_at_start"]["loss"]
    result.discard_state()
    assert not result.state.exists()
