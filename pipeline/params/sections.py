"""`params.yaml`, parsed once into one frozen dataclass per stage.

Defaults live in the dataclasses below and nowhere else. Whatever is unknown, of the wrong type or impossible is
refused with the key's full name (`fit.batch_size`) and what would be right.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline.base.errors import LeafError
from pipeline.params.parsing import bounded, load_section, parse, positive

__all__ = ["bounded", "load_section", "parse", "positive"]


@dataclass(frozen=True)
class SourceParams:
    """One entry of `corpus.sources`. Which fields a kind needs is checked by `pipeline.sources`."""

    name: str
    kind: Literal["parquet", "jsonl", "csv", "tsv", "text", "beir", "huggingface", "docstrings"]
    path: str | None = None
    """File, glob, BEIR directory, or data set name on the hub."""
    role: Literal["query", "document"] | None = None
    """The role of every text; or leave it out and name `role_field`, `query_field` and/or `document_field`."""
    id_field: str | None = None
    text_field: str | None = None
    role_field: str | None = None
    query_field: str | None = None
    document_field: str | None = None
    id_suffix: str | None = None
    """Regular expression removed from ids, so that a query and its document get one id (`/q$`)."""
    unit: Literal["line", "paragraph"] = "line"
    """What one text is, of kind `text`."""
    packages: tuple[str, ...] = ()
    """Of kind `docstrings`; `stdlib` is the standard library."""
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    """These three are of kind `huggingface`: which part of the data set."""
    limit: int | None = field(default=None, metadata=positive())
    """Records read."""
    sample: float = field(default=1.0, metadata=bounded(0, 1))
    """Share of the records that is kept, chosen by `corpus.seed`."""
    heldout: float | None = field(default=None, metadata=bounded(0, 1))
    """Share held out of training; `corpus.heldout` where it is left out."""


@dataclass(frozen=True)
class CorpusParams:
    """Section `corpus`: where the texts come from and how they are cleaned and split."""

    sources: tuple[SourceParams, ...]
    heldout: float = field(metadata=bounded(0, 1))
    seed: int = field(default=0, metadata=bounded(0))
    min_characters: int = field(default=3, metadata=bounded(1))
    near_duplicates: float | None = field(default=None, metadata=bounded(0.5, 1))
    """Jaccard similarity from which two texts of a role count as one; None keeps both."""
    shard_rows: int = field(default=262_144, metadata=positive())


@dataclass(frozen=True)
class Prompts:
    """What the teacher puts before a text, by role."""

    query: str = ""
    document: str = ""


@dataclass(frozen=True)
class ApiParams:
    """`teacher.api`: an OpenAI-compatible `/embeddings` endpoint instead of a model on this machine: `docs/api.md`."""

    base_url: str
    """What comes before `/embeddings`, `https://api.openai.com/v1`; not part of the fingerprint."""
    dimensions: int | None = field(default=None, metadata=positive())
    """Asked of the server, where it can shorten vectors."""
    max_characters: int | None = field(default=None, metadata=positive())
    """Prompt and text are cut to this length; None sends them whole."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server that wants none needs none."""
    items_per_request: int = field(default=128, metadata=bounded(1, 2048))
    tokens_per_request: int = field(default=32_768, metadata=positive())
    """Counted as three bytes a token, which is more than most texts have."""
    concurrency: int = field(default=4, metadata=bounded(1, 64))
    """Requests under way at once."""
    requests_per_minute: int | None = field(default=None, metadata=positive())
    tokens_per_minute: int | None = field(default=None, metadata=positive())
    timeout: float = field(default=60.0, metadata=positive())
    """Seconds until a request's answer must have arrived whole."""
    retries: int = field(default=8, metadata=bounded(0, 100))
    """Of one request."""
    spending_limit: int | None = field(default=None, metadata=positive())
    """Tokens, as the server counts them, after which a run stops; the next one continues."""
    encoding: Literal["auto", "base64", "float"] = "auto"
    """Of vectors on their way; `auto` asks for base64 and takes what it gets."""
    refused: Literal["stop", "leave_out"] = "stop"
    """What a text that the server refuses does: end the run, or be left out and listed in the store."""
    probe_cosine: float = field(default=0.999, metadata=bounded(0, 1))
    """Lowest cosine of a probe text's vector to the first one; below, the model behind the name has changed."""

    def __post_init__(self) -> None:
        """Refuse what cannot be, without repeating what may be a secret."""
        try:
            url = urlsplit(self.base_url)
            possible = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:  # a bracket that is not closed, a port that is no number
            possible = False
        if not possible:
            raise LeafError(
                "teacher.api.base_url: must begin with http:// or https:// and name a host, and a port by number only"
            )
        if url.username or url.password or url.query or url.fragment:
            raise LeafError(
                "teacher.api.base_url: must hold no user, password or query: parameters are not the place for secrets; "
                "put the key into the environment variable that teacher.api.key_env names"
            )
        if not _VARIABLE.fullmatch(self.key_env):
            raise LeafError(
                "teacher.api.key_env: must be the name of an environment variable (OPENAI_API_KEY), not the key itself"
            )
        if self.tokens_per_minute is not None and self.tokens_per_minute < self.tokens_per_request:
            raise LeafError(
                f"teacher.api.tokens_per_minute: {self.tokens_per_minute} is less than one request may hold "
                f"(teacher.api.tokens_per_request, {self.tokens_per_request})"
            )


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_OF_A_MODEL_HERE = {
    "sha256": "the weights of an API cannot be hashed",
    "revision": "an API has no revisions; name the version in teacher.model",
    "max_length": "the tokens of an API cannot be counted here; cut texts with teacher.api.max_characters",
}


@dataclass(frozen=True)
class TeacherParams:
    """Section `teacher`: the model whose vectors are the targets."""

    model: str
    """Hub id, local directory, or `package:NAME/DIRECTORY` inside an installed package; with `api`, its name there."""
    sha256: str | None = None
    """Of the weights; checked before they are loaded."""
    revision: str | None = None
    prompts: Prompts = Prompts()
    max_length: int | None = field(default=None, metadata=bounded(4))
    """Tokens, specials included; the model's own limit where it is left out."""
    normalize: bool = True
    license: str | None = None
    """The model's licence (SPDX, `Apache-2.0`), told to whoever gets the store; not part of the fingerprint."""
    api: ApiParams | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense with an API."""
        for name, reason in _OF_A_MODEL_HERE.items():
            if self.api is not None and getattr(self, name) is not None:
                raise LeafError(f"teacher.{name}: must be left out with teacher.api: {reason}")


@dataclass(frozen=True)
class EncodeParams:
    """Section `encode`: stage one."""

    shard_rows: int = field(default=65_536, metadata=positive())
    """Texts in one shard. A killed run loses at most two: the one in computation and the one being written."""
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """Of stored vectors; int8 has a scale for each row."""
    reuse: tuple[str, ...] = ()
    """Other stores with the same fingerprint (paths or s3:// URLs), whose vectors are taken instead of computed."""
    license: str | None = None
    """Licence of the vectors (SPDX, `CC-BY-4.0`), written into the store."""
    pool: str = ".cache/pool"
    token_budget: int = field(default=8192, metadata=bounded(64))
    """Tokens under way at once: in one forward pass, or in those that a CPU's cores make side by side."""
    verify_rows: int = field(default=32, metadata=bounded(0))
    """Rows of each reused store, and one of each of its shards, that are encoded again and compared before it is
    trusted; 0 compares none."""


@dataclass(frozen=True)
class StudentParams:
    """`fit.student`: the checkpoint the student starts from."""

    model: str
    """Hub id, local directory, or `package:NAME/DIRECTORY`."""
    sha256: str | None = None
    revision: str | None = None
    layers: tuple[int, ...] | None = None
    """Layers of the checkpoint to keep, counted from 0, in order; all where it is left out."""
    max_length: int | None = field(default=None, metadata=bounded(4))
    head_bias: bool = True
    head: Literal["ridge", "rotation"] = "ridge"
    """Closed-form start of the head: the regression onto the teacher's vectors, which is nearest to them on this
    corpus, or the nearest rotation, which keeps the checkpoint's own angles and so its way with other texts (the
    teacher's vectors must be normalised and no narrower than the student)."""
    ridge: float = field(default=1e-2, metadata=bounded(0))
    """Regularisation of the head `ridge`, as a share of the mean feature variance."""
    head_rows: int = field(default=8192, metadata=positive())


@dataclass(frozen=True)
class FitParams:
    """Section `fit`: stage two. The defaults are LEAF's full-size recipe (arXiv 2509.12539)."""

    student: StudentParams
    loss: Literal["l2", "mse", "cosine"] = "l2"
    """Mean over a batch of the distance to the teacher's vector, of its square, or of one less the cosine."""
    cycles: int = field(default=3, metadata=positive())
    epochs_per_cycle: int = field(default=10, metadata=positive())
    """An epoch visits every training text once."""
    learning_rate: float = field(default=1e-4, metadata=positive())
    """At the beginning of each cycle, falling in a line to `learning_rate_end` at its end."""
    learning_rate_end: float = field(default=1e-5, metadata=bounded(0))
    warmup_steps: int = field(default=0, metadata=bounded(0))
    weight_decay: float = field(default=0.01, metadata=bounded(0))
    clip_norm: float | None = field(default=1.0, metadata=positive())
    batch_size: int = field(default=32, metadata=positive())
    dropout: float = field(default=0.1, metadata=bounded(0, 0.9))
    start_share: float = field(default=0.0, metadata=bounded(0, 0.99))
    """Share of the weights before the first step in those that are saved, the rest being those after the last (WiSE-FT,
    arXiv 2109.01903): above 0 the student ranks texts unlike the corpus better, and follows the teacher less closely
    on texts like it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = field(default=0, metadata=bounded(0))
    max_steps: int | None = field(default=None, metadata=positive())
    """Stops early with the schedule unchanged in form but stretched over this many steps; None: all cycles."""
    buffer_rows: int = field(default=65_536, metadata=positive())
    """Rows held by the loader at a time."""
    validate_every: int = field(default=1000, metadata=positive())
    validation_rows: int = field(default=2048, metadata=positive())
    checkpoint_every: int = field(default=1000, metadata=positive())
    snapshots: tuple[int, ...] = ()
    """Steps after which the student is also saved, for a dose curve."""


@dataclass(frozen=True)
class CostParams:
    """`evaluate.cost`: how fast teacher and student are on this machine, alternating."""

    texts: int = field(default=256, metadata=bounded(0))
    """Documents of one measurement of throughput; 0 leaves cost out."""
    queries: int = field(default=100, metadata=positive())
    """Queries asked one at a time."""
    rounds: int = field(default=5, metadata=positive())


@dataclass(frozen=True)
class EvaluateParams:
    """Section `evaluate`: what the student is measured on."""

    beir: tuple[str, ...] = ()
    """Directories in BEIR layout; the last part of the path is the name."""
    sts: tuple[str, ...] = ()
    classification: tuple[str, ...] = ()
    """Files: pairs (sentence1, sentence2, score); texts (text, label and, where it is fixed, split: train, test)."""
    dims: tuple[int, ...] = field(
        default=(768, 512, 384, 256, 128, 64), metadata={"check": (lambda dims: min(dims, default=1) > 0, "positive")}
    )
    """Widths that vectors are cut to; those not below the teacher's are left out."""
    calibration_rows: int = field(default=4096, metadata=bounded(0))
    """Training texts of each role that int8 is calibrated on; 0 leaves quantisation out."""
    cost: CostParams = CostParams()
    moved: int = field(default=20, metadata=bounded(0))
    """Queries in the report: those whose ranking moved most."""
    map_texts: int = field(default=300, metadata=bounded(0))
    """Held-out texts on the report's map."""
    neighbours_rows: int = field(default=2000, metadata=positive())
    bootstrap: int = field(default=1000, metadata=bounded(0))
    """Samples behind each 95 % interval; 0 leaves intervals out."""
    seed: int = field(default=0, metadata=bounded(0))


@dataclass(frozen=True)
class ExportParams:
    """Section `export`: the models made for serving, their cards, and how far they are compared."""

    rows: int = field(default=1000, metadata=positive())
    """Held-out queries, and a tenth as many documents, whose exported vectors are compared with the original ones."""
    speed_texts: int = field(default=64, metadata=bounded(0))
    """Texts in one timed round; 0 measures no speed."""
    bootstrap: int = field(default=1000, metadata=bounded(0))
    seed: int = field(default=0, metadata=bounded(0))
    license: str | None = None
    """Of the student; that of teacher and checkpoint, as their model cards have it, where it is left out."""
    teacher_id: str | None = None
    """The teacher's hub id, where `teacher.model` is none but a directory, a package or an API's name."""
    student_id: str | None = None
    """The hub id of the student's checkpoint, where `fit.student.model` is a directory or a package."""


def name_of(model: str) -> str:
    """A local path's last part: where a model lay on somebody's machine is nobody's business."""
    return Path(model).name if Path(model).is_absolute() or model.startswith((".", "~")) else model
