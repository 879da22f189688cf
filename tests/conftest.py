"""Shared by all tests: a tiny real model, a tiny real corpus, and the stages run as processes."""

import os
import subprocess
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from pipeline.base.keys import keys
from tests.forked import Forks, Process

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
WORDS = (
    "the a of to and in is for that with this file list string number value index return call open read write "
    "close copy move sort key name path test error code line text word small large fast slow new old first last"
).split()


MAY_BE_SKIPPED = (
    "only root may give files to others",
    "needs the right to mount",  # a machine may not give it
    "needs Chromium",  # only root can install it
    "the variables are those of x86 processors",
    "reads the peak of memory from Linux",
    "a tokenizer of whole words knows no characters",  # two parameters that do not go together
)
"""Beginnings of the reasons for which a test may be skipped in a run that is meant to be whole (`.ci/run`)."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Where nothing is to be skipped, a skip for any other reason is a failure."""
    report = yield
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    if report.skipped and os.environ.get("LEAF_SKIP_NOTHING") and not reason.startswith(MAY_BE_SKIPPED):
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: skipped, and nothing is to be: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same for a whole file of tests that is skipped."""
    report = yield
    if report.skipped and os.environ.get("LEAF_SKIP_NOTHING"):
        report.outcome, report.longrepr = "failed", f"{collector.nodeid}: skipped, and nothing is to be"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory of real texts and collections beside the checkout; tests that need it are skipped if it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the directory shared/ beside the checkout")
    return SHARED


def make_model(
    directory: Path, width: int = 32, layers: int = 2, seed: int = 0, family: str = "bert", positions: int = 64
) -> Path:
    """A sentence-transformers model with random weights and a word tokenizer over WORDS."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": positions,
    }
    model = BertModel(BertConfig(**shape)) if family == "bert" else MPNetModel(MPNetConfig(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # with the usual initial weights, the vectors of all texts are nearly equal
    plain = directory.with_name(f"{directory.name}-plain")
    model.save_pretrained(plain)
    fast: Any = PreTrainedTokenizerFast
    fast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=positions - 2,
    ).save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=48)
    pooling = Pooling(width, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(str(directory))
    return directory


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random teacher, 32-d."""
    return make_model(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random checkpoint for students, 16-d."""
    return make_model(tmp_path_factory.mktemp("models") / "student", width=16, seed=1)


def sentence(number: int) -> str:
    """Number `number` of a fixed list of different word sequences, which are 4 to 14 words long."""
    length = 2 + number % 11
    words = [WORDS[(number * 7 + place * place * 3 + number // 13 * place) % len(WORDS)] for place in range(length)]
    return " ".join([*words, WORDS[number % len(WORDS)], WORDS[number // len(WORDS) % len(WORDS)]])


def corpus_frame(rows: int, heldout_every: int = 10) -> pl.DataFrame:
    """A corpus as stage `corpus` writes it: pairs of query and document, some held out, sorted by key."""
    texts = [sentence(number) for number in range(rows)]
    roles = ["query" if number % 2 else "document" for number in range(rows)]
    splits = ["heldout" if (number // 2) % heldout_every == 0 else "train" for number in range(rows)]
    frame = pl.DataFrame(
        {
            "key": keys(roles, texts),
            "id": [f"record-{number // 2}" for number in range(rows)],
            "text": texts,
            "role": roles,
            "source": ["tiny"] * rows,
            "split": splits,
        }
    )
    return frame.unique("key", keep="first", maintain_order=True).sort("key")


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> Path:
    """Directory of a corpus of about 400 texts."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    corpus_frame(400).write_parquet(directory / "part-00000.parquet")
    return directory


@pytest.fixture
def write_params(tmp_path: Path, tiny_teacher: Path, tiny_student: Path) -> Callable[..., Path]:
    """Writes a params.yaml for the tiny models; keyword arguments replace keys of a section."""

    def write(**sections: dict[str, Any]) -> Path:
        params: dict[str, dict[str, Any]] = {
            "corpus": {"sources": [], "heldout": 0.1},
            "teacher": {"model": str(tiny_teacher)},
            "encode": {"shard_rows": 64, "pool": str(tmp_path / "pool"), "token_budget": 512},
            "fit": {
                "student": {"model": str(tiny_student)},
                "cycles": 1,
                "epochs_per_cycle": 2,
                "learning_rate": 1e-3,
                "learning_rate_end": 1e-4,
                "batch_size": 8,
                "validate_every": 20,
                "checkpoint_every": 10,
            },
            "evaluate": {"bootstrap": 50},
        }
        for section, changes in sections.items():
            params[section] = {**params.get(section, {}), **changes}
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(params), encoding="utf-8")
        return file

    return write


@pytest.fixture
def tiny_store(tiny_corpus: Path, write_params: Callable[..., Path], tmp_path: Path) -> Any:
    """The store of the tiny corpus's vectors, as stage `encode` makes it."""
    from click.testing import CliRunner

    from pipeline.store import Store
    from stages.encode import main

    arguments = ["--params", str(write_params()), "--corpus", str(tiny_corpus), "--out", str(tmp_path / "store")]
    result = CliRunner().invoke(main, [*arguments, "--metrics", str(tmp_path / "encode.json")])
    assert result.exit_code == 0, result.output
    return Store.open(tmp_path / "store")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts modules as processes that have the large libraries imported."""
    with Forks() as forks:
        yield forks


@pytest.fixture
def start(forks: Forks, tmp_path: Path) -> Callable[..., Process]:
    """Starts `python -m stages.NAME` in `tmp_path` as a process; keyword arguments are environment variables."""

    def starting(name: str, *arguments: str, **environment: str) -> Process:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
        return forks.start(f"stages.{name}", arguments, tmp_path, env)

    return starting


@pytest.fixture
def stage(start: Callable[..., Process]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`start`, until it has ended."""

    def run(name: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        process = start(name, *arguments, **environment)
        try:
            printed = process.communicate(300)
        finally:
            process.kill()
        return subprocess.CompletedProcess([name, *arguments], process.wait(), *printed)

    return run


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """An S3-compatible server: the environment variables by which clients find it."""
    server = pytest.importorskip("moto.server", reason="needs moto: pip install -e '.[dev]'")
    running = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "AKIDLEAKPROBE0001",
        "AWS_SECRET_ACCESS_KEY": "secret-leak-probe-0002",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    running.stop()


@pytest.fixture
def bucket(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A new bucket of that server as a boto3 resource; this process and its children have the variables to find it."""
    import boto3  # type: ignore[import-untyped, unused-ignore]

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "remote-cache"))
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    return boto3.resource("s3").create_bucket(Bucket=name)
