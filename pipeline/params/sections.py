"""All parameters: a frozen dataclass for each section of `params.yaml`, with every key, its default and its limits.

Defaults are set here and nowhere else. A key without a default must be given. `pipeline.params.parsing` parses a
section and refuses keys that are unknown, of the wrong type or impossible.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pipeline.base import LeafError
from pipeline.params.parsing import bounded, one_character, positive

Role = Literal["query", "document"]
"""What a text is to a search."""


@dataclass(frozen=True)
class PassageParams:
    """`passages` of a source: cuts its documents at the ends of sentences, as a teacher reads only so much of a text.

    The passages of a document keep its id: they are held out together, and are all relevant to its queries.
    """

    tokens: int | None = field(default=None, metadata=positive())
    """Most tokens of a passage by `tokenizer`, special tokens and prompt not included."""
    characters: int | None = field(default=None, metadata=positive())
    """Most characters of a passage: give this or `tokens`. Some hundred times as fast."""
    overlap: int = field(default=0, metadata=bounded(0))
    """Most tokens or characters that a passage repeats from the one before."""
    tokenizer: str | None = None
    """With `tokens`: the model whose tokens are counted, named as `teacher.model` is."""

    def __post_init__(self) -> None:
        """Refuse what gives no passages."""
        place = "corpus.sources[].passages"
        if (self.tokens is None) == (self.characters is None):
            raise LeafError(f"{place}: needs one of `tokens` and `characters`")
        if (self.tokens is None) != (self.tokenizer is None):
            raise LeafError(f"{place}: `tokens` needs `tokenizer`, the model that counts them, and `characters` none")
        if self.overlap >= (size := self.tokens or self.characters or 0):
            raise LeafError(f"{place}.overlap: {self.overlap} is impossible; it must be less than a passage, {size}")


@dataclass(frozen=True)
class ViewParams:
    """`views` of a source: further texts made of its documents, each a text of its own for the teacher.

    They stand under the source `NAME/views`, on the same side of the split as their document, and are in no pairs.
    """

    crops: int = field(default=0, metadata=bounded(0, 8))
    """Pieces of each document, each of 1 to 10 sentences in a row."""
    first_sentence: bool = False
    """The first sentence of each document."""
    title: bool = False
    """The title of each document (`title_field`), as a query."""
    share: float = field(default=1.0, metadata=bounded(0, 1))
    """Share of the documents that have views, chosen by their text and `corpus.seed`."""


@dataclass(frozen=True)
class SourceParams:
    """An entry of `corpus.sources`. Which keys a kind needs is checked by `pipeline.corpus.readers.source`."""

    name: str
    """Stands in the corpus's column `source`, and in metrics; each source has its own."""
    kind: Literal["parquet", "arrow", "jsonl", "csv", "tsv", "text", "markdown", "beir", "huggingface", "docstrings"]
    """How the files are read (`docs/sources.md` has an example of each): `arrow` is Feather too, `jsonl` also JSON that
    is one array or object."""
    path: str | None = None
    """A file, compressed or not, a glob, a directory of files, or the name of a data set on the hub."""
    role: Literal["query", "document"] | None = None
    """Role of every text. Otherwise give `role_field`, or `query_field` and/or `document_field`."""
    id_field: str | None = None
    """Field that holds a record's id. Without it, records are numbered.

    Any field may be a path into nested ones (`translation.en`, `0` for the first of an array) and hold a list, which
    gives several texts with the record's id. A list under `[]` (`data[].paragraphs[].context`) holds records."""
    text_field: str | None = None
    """Field that holds the text; `text` if it is left out."""
    title_field: str | None = None
    """Field whose text is put before the text, or before the document of a pair."""
    role_field: str | None = None
    """Field that holds the text's role, `query` or `document`."""
    query_field: str | None = None
    """Field that holds a query. With `document_field` as well, a record gives a query and a document with one id."""
    document_field: str | None = None
    """Field that holds a document."""
    id_suffix: str | None = None
    """Regular expression that is removed from ids, so that a query and its document get the same id (`/q$`). As Polars
    reads it: without references to what was matched before, and without looking around."""
    page_suffix: str | None = None
    """Regular expression that is removed from ids, after `id_suffix`, to know the records of one page (`\\.[0-9]+$`):
    they are sampled, drawn and held out together, and each keeps its id and so its own queries. Left out, sections of
    one file are a page where kind `markdown` reads several; `^$` makes each section one."""
    encoding: str | None = None
    """Of files of text, where it is not UTF-8 and no byte-order mark tells it (`cp1252`, what Excel writes in Western
    Europe; `gb18030`)."""
    columns: tuple[str, ...] = ()
    """Kinds `csv` and `tsv`: names of the columns of a file whose first line is a record."""
    delimiter: str | None = field(default=None, metadata=one_character())
    """Kinds `csv` and `tsv`: what separates fields. Left out, the first of the kind's own, comma, semicolon, tab and
    bar in which the rows at the file's beginning fit; more than one is refused where `columns` stand for a header."""
    quote: str | None = field(default=None, metadata=one_character(or_none=True))
    """Kinds `csv` and `tsv`: what stands around a field, twice for itself inside; `""` if quotes are letters. Left out,
    double quotes in CSV, and in TSV if the file's beginning shows that they are used so."""
    escape: str | None = field(default=None, metadata=one_character())
    """Kinds `csv` and `tsv`: what stands before a quote inside a field (Spark's backslash). Left out, a backslash if
    the file's beginning fits in no other way."""
    unit: Literal["line", "paragraph"] = "line"
    """Kind `text`: what a text is."""
    packages: tuple[str, ...] = ()
    """Kind `docstrings`: the packages; `stdlib` is the standard library."""
    config: str | None = None
    """Kind `huggingface`: configuration of the data set."""
    revision: str | None = None
    """Kind `huggingface`: branch, tag or commit of the data set."""
    split: str = "train"
    """Kind `huggingface`: split of the data set."""
    limit: int | None = field(default=None, metadata=positive())
    """Most records to take, counted after sampling; all if it is left out."""
    sample: float = field(default=1.0, metadata=bounded(0, 1))
    """Share of the records to take, chosen by record id and `corpus.seed`."""
    source_field: str | None = None
    """Field that says where a record is from, in a file of several origins: what `cap` counts by."""
    cap: int | None = field(default=None, metadata=positive())
    """Most records of each origin (of the whole source without `source_field`), drawn by record id and `corpus.seed`;
    those of a page count as one. Files are read twice."""
    balance: Literal["cap", "square_root"] = "cap"
    """With `cap`: `square_root` gives the largest origin `cap` records, and the others as many as are in proportion to
    the square root of what they have: neither do large ones crowd out small ones, nor do they count for no more."""
    heldout: float | None = field(default=None, metadata=bounded(0, 1))
    """Share of the records to hold out of training; `corpus.heldout` if it is left out."""
    passages: PassageParams | None = None
    """Cuts documents into passages; left out, documents stay whole, however much of them the teacher reads."""
    views: ViewParams | None = None
    """Adds crops, first sentences or titles of the documents as texts of their own."""


@dataclass(frozen=True)
class CorpusParams:
    """Section `corpus`: where the texts come from and how they are cleaned and split."""

    sources: tuple[SourceParams, ...]
    heldout: float = field(metadata=bounded(0, 1))
    """Share of the records to hold out of training, for validation and evaluation; chosen by record id."""
    seed: int = field(default=0, metadata=bounded(0))
    """Of samples and of the hashes that find near duplicates."""
    min_characters: int = field(default=3, metadata=bounded(1))
    """Texts shorter than this are dropped. A character of a script without spaces (Chinese, Thai) counts as two."""
    near_duplicates: float | None = field(default=None, metadata=bounded(0.5, 1))
    """Jaccard similarity from which the later of two texts with one role is dropped; None keeps both."""
    shard_rows: int = field(default=262_144, metadata=positive())
    """Texts in a Parquet file of the corpus."""


@dataclass(frozen=True)
class Prompts:
    """What is put before a text before the teacher encodes it, by the text's role.

    Left out, it is the prompt that the model itself brings for the role, if any; `""` is none. An API brings none.
    """

    query: str | None = None
    document: str | None = None


@dataclass(frozen=True)
class RoleFields:
    """`teacher.api.extra`: fields that are added to the JSON of a request, by the role of its texts.

    For servers that want to be told (`input_type`, `task`). They are part of the fingerprint.
    """

    query: Mapping[str, Any] = field(default_factory=dict, hash=False)
    document: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Refuse fields that have a parameter of their own, and such as hold secrets."""
        for role in get_args(Role):
            for name in self.of(role):
                if parameter := _OWN_FIELDS.get(name):
                    raise LeafError(f"teacher.api.extra.{role}.{name}: is sent by itself; {parameter}")
                if _SECRET_NAME.search(name):
                    raise LeafError(
                        f"teacher.api.extra.{role}.{name}: parameters are not the place for secrets; put the key into "
                        "the environment variable that teacher.api.key_env names"
                    )

    def of(self, role: Role) -> dict[str, Any]:
        """The fields for texts of this role."""
        return dict(self.query if role == "query" else self.document)


@dataclass(frozen=True)
class ApiParams:
    """`teacher.api`: an OpenAI-compatible `/embeddings` endpoint instead of a model on this machine (`docs/api.md`)."""

    base_url: str
    """URL without `/embeddings` (`https://api.openai.com/v1`); not part of the fingerprint."""
    api_version: str | None = None
    """Azure's `api-version`, in the query of every URL; the key is then sent as Azure wants it. Not part of the
    fingerprint."""
    extra: RoleFields = RoleFields()
    """Fields that are added to each request by the role of its texts: `{query: {input_type: query}, document: ...}`."""
    dimensions: int | None = field(default=None, metadata=positive())
    """Dimension to request from a server that can shorten vectors; None requests none."""
    max_characters: int | None = field(default=None, metadata=positive())
    """Prompt and text together are cut to this length; None sends them whole."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the API key. It need not exist if the server requires no key."""
    items_per_request: int = field(default=128, metadata=bounded(1, 2048))
    """Most texts in a request."""
    tokens_per_request: int = field(default=32_768, metadata=positive())
    """Most tokens in a request, estimated at three bytes a token, which overestimates the tokens of most texts."""
    concurrency: int = field(default=4, metadata=bounded(1, 64))
    """Requests in progress at the same time."""
    requests_per_minute: int | None = field(default=None, metadata=positive())
    """Rate limit; None is no limit of ours."""
    tokens_per_minute: int | None = field(default=None, metadata=positive())
    """Rate limit; None is no limit of ours."""
    timeout: float = field(default=60.0, metadata=positive())
    """Seconds within which the whole response to a request must arrive."""
    retries: int = field(default=8, metadata=bounded(0, 100))
    """Retries of a request."""
    spending_limit: int | None = field(default=None, metadata=positive())
    """Tokens, as the server counts them, after which a run stops; the next run continues. None is no limit."""
    encoding: Literal["auto", "base64", "float"] = "auto"
    """Encoding of vectors in responses; `auto` requests base64 and accepts either."""
    refused: Literal["stop", "leave_out"] = "stop"
    """If the server gives a text no vector: `stop` the run, or `leave_out` the text and list it in the store."""
    probe_cosine: float = field(default=0.999, metadata=bounded(0, 1))
    """Lowest cosine of a probe text's vector now to its first one; if it is lower, the API's model has changed."""

    def __post_init__(self) -> None:
        """Refuse impossible values; the messages do not repeat values that may be secrets."""
        try:
            url = urlsplit(self.base_url)
            valid = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:  # a bracket that is not closed, a port that is not a number
            valid = False
        if not valid:
            raise LeafError(
                "teacher.api.base_url: must begin with http:// or https:// and name a host, and a port by number only"
            )
        if url.username or url.password or url.query or url.fragment:
            raise LeafError(
                "teacher.api.base_url: must hold no user, password or query: parameters are not the place for secrets; "
                "put the key into the environment variable that teacher.api.key_env names"
            )
        if not _VARIABLE_NAME.fullmatch(self.key_env):
            raise LeafError(
                "teacher.api.key_env: must be the name of an environment variable (OPENAI_API_KEY), not the key itself"
            )
        if self.tokens_per_minute is not None and self.tokens_per_minute < self.tokens_per_request:
            raise LeafError(
                f"teacher.api.tokens_per_minute: {self.tokens_per_minute} is less than one request may hold "
                f"(teacher.api.tokens_per_request, {self.tokens_per_request})"
            )


_OWN_FIELDS = {
    "model": "set teacher.model",
    "input": "the texts are the corpus's",
    "dimensions": "set teacher.api.dimensions",
    "encoding_format": "set teacher.api.encoding",
}
_SECRET_NAME = re.compile(r"(?i)(^|[_-])(api[_-]?key|key|secret|password|authorization|token)$")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_LOCAL_ONLY = {
    "sha256": "the weights of an API cannot be hashed",
    "revision": "an API has no revisions; name the version in teacher.model",
    "max_length": "the tokens of an API cannot be counted here; cut texts with teacher.api.max_characters",
    "dim": "ask the server for fewer dimensions with teacher.api.dimensions",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class TeacherParams:
    """Section `teacher`: the model whose vectors are the regression targets."""

    model: str
    """Hub id, local directory, or `package:NAME/DIRECTORY` inside an installed package; with `api`, the API's name for
    the model."""
    sha256: str | None = None
    """Digest of all files of the model that decide its vectors or run: weights, settings, tokenizer, code. Checked
    before they are loaded; the message names the right one."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    prompts: Prompts = Prompts()
    max_length: int | None = field(default=None, metadata=bounded(4))
    """Most tokens of a text, special tokens included; the model's own limit if it is left out."""
    normalize: bool = True
    """Whether vectors are scaled to length 1."""
    dim: int | None = field(default=None, metadata=positive())
    """First dimensions to keep of the vectors of a Matryoshka model; if it is left out, those that the model was saved
    with (`truncate_dim`), else all. With `normalize`, what is kept is scaled to length 1 again."""
    trust_remote_code: bool = False
    """Whether code that lies beside the model may run. Needs `revision` to be a commit in full, and that commit's code
    becomes part of the fingerprint."""
    license: str | None = None
    """Licence of the model (SPDX, `Apache-2.0`), written into the store; not part of the fingerprint."""
    api: ApiParams | None = None
    """An API that runs the model; without it, the model runs on this machine."""

    def __post_init__(self) -> None:
        """Refuse keys that only a model on this machine can have, if there is an API, and code that is not pinned."""
        for name, reason in _LOCAL_ONLY.items():
            if self.api is not None and getattr(self, name) is not None:
                raise LeafError(f"teacher.{name}: must be left out with teacher.api: {reason}")
        if self.trust_remote_code and not _COMMIT.fullmatch(self.revision or ""):
            raise LeafError(
                "teacher.trust_remote_code: needs teacher.revision to be a commit (40 hexadecimal digits), so that no "
                "other code than the one that you have read can run"
            )


@dataclass(frozen=True)
class EncodeParams:
    """Section `encode`: stage one, which stores the teacher's vectors of the corpus."""

    shard_rows: int = field(default=65_536, metadata=positive())
    """Texts in one shard. A killed run loses at most two: the one in computation and the one being written."""
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """Type of the stored vectors; int8 has a scale for each row."""
    reuse: tuple[str, ...] = ()
    """Other stores with the same fingerprint (paths, or s3:// and http(s):// URLs), or places that hold many, of which
    those are used that have it; their vectors are taken instead of encoding."""
    license: str | None = None
    """Licence of the vectors (SPDX, `CC-BY-4.0`), written into the store."""
    pool: str = ".cache/pool"
    """Directory of the shard cache, which keeps finished shards between runs."""
    token_budget: int | None = field(default=None, metadata=bounded(64))
    """Tokens in progress at once: in a forward pass, or in all those that run in parallel on a CPU's cores. Left out:
    8192 on a CPU, 65,536 on an accelerator."""
    verify_rows: int = field(default=256, metadata=bounded(0))
    """Rows of each reused store, drawn by chance, that are encoded again and compared with the stored vectors before
    the store is trusted, besides a row of each of its shards; 0 compares none. 256 notice a hundredth of wrong vectors
    with 92 %."""


@dataclass(frozen=True)
class ClusterParams:
    """Section `cluster`: where the stages run. It decides no result and is no input of any stage in `dvc.yaml`."""

    engine: Literal["local", "ray"] = "local"
    """`local`: stage one runs in the process that is started. `ray`: on the workers of a Ray cluster, all of which see
    the project's directory, its shard cache and the Python environment under the same paths."""
    address: str | None = None
    """Of the cluster's head (`10.0.0.1:6379`; `auto` for the one of this machine). Left out, the run starts a Ray of
    its own on this machine, for several GPUs or for trying it out."""
    cpus: int = field(default=2, metadata=positive())
    """CPU cores of a worker, which are also its threads: vectors are those of a local run with as many."""
    gpus: float = field(default=0, metadata=bounded(0))
    """GPUs of a worker."""
    memory: float | None = field(default=None, metadata=positive())
    """GB of memory that a worker asks for; left out, it is placed by cores and GPUs alone."""
    shards_per_task: int = field(default=4, metadata=positive())
    """Shards that a worker is given at a time: enough for a minute of work."""
    shards: str | None = None
    """An `s3://` URL where workers put finished shards, if they do not see the shard cache; the run fetches them from
    there. The server must know conditional writes."""
    attempts: int = field(default=3, metadata=positive())
    """Times that a shard may end with the death of its worker or node before the run stops."""
    fit_ranks: int = field(default=1, metadata=positive())
    """Processes of this machine that compute a share of each training batch: GPUs, or several on a CPU. The student is
    that of one process but for rounding. Several machines are started with `torchrun` (docs/scale.md)."""
    same_bits: bool = True
    """Whether all workers must compute the same bits: the same versions, kind of device and number of threads.
    `false` takes others too, if their vectors of a few texts agree as those of a reused store must."""


@dataclass(frozen=True)
class FilterParams:
    """Section `filter`: an optional stage between encode and fit, which judges pairs by the stored vectors alone."""

    nearest: int | None = field(default=50, metadata=positive())
    """A query and its documents stay if one of these is among so many documents that the teacher finds for the query in
    the whole corpus (KaLM-Embedding, arXiv 2501.01028, takes 50; Arctic-Embed, arXiv 2412.04506, takes 20). None drops
    nothing."""
    candidates: int = field(default=20, metadata=bounded(0))
    """Nearest documents of each query that are written with their similarities, for losses that rank; 0 writes none."""

    def __post_init__(self) -> None:
        """Refuse a stage that does nothing."""
        if self.nearest is None and not self.candidates:
            raise LeafError("filter: neither drops pairs (filter.nearest) nor writes candidates (filter.candidates)")


Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How the vectors of a text's tokens become one: the modes of sentence-transformers' Pooling, in its order."""


def pooling_modes(pooling: str) -> tuple[Pooling, ...]:
    """The modes that a text joins by `+`, in sentence-transformers' order; empty if it names others, or one twice."""
    names = pooling.split("+")
    modes: tuple[Pooling, ...] = tuple(mode for mode in get_args(Pooling) if mode in names)
    return modes if len(modes) == len(names) else ()


@dataclass(frozen=True)
class StudentParams:
    """`fit.student`: the checkpoint that the student starts from, and how its head is initialised."""

    model: str
    """Hub id, local directory, or `package:NAME/DIRECTORY` inside an installed package."""
    sha256: str | None = None
    """Digest of all files of the checkpoint, as `teacher.sha256`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    layers: tuple[int, ...] | None = None
    """Layers of the checkpoint to keep, counted from 0, in order; all if it is left out."""
    architecture: Literal["transformer", "static"] = "transformer"
    """`static`: a table of token vectors and no layers; a text's features are the mean over its tokens, and a query
    costs microseconds. The table starts from the checkpoint's vectors of its tokens, each as a text of its own, and
    learns best at some ten times the `learning_rate` of a transformer."""
    vocabulary: Literal["checkpoint", "corpus"] = "checkpoint"
    """`corpus`: of the checkpoint's tokens only those that the training texts use, and what any text needs: special
    tokens, single characters, bytes. Texts with other tokens are cut into smaller ones."""
    weights: Literal["checkpoint", "random"] = "checkpoint"
    """`random`: the directory's configuration and tokenizer are used alone, with weights drawn by `fit.seed`."""
    max_length: int | None = field(default=None, metadata=bounded(4))
    """Most tokens of a text, special tokens included; the model's own limit if it is left out."""
    pooling: str | None = field(
        default=None,
        metadata={"check": (pooling_modes, f"{', '.join(get_args(Pooling))}, or several of these joined by `+`")},
    )
    """How the vectors of a text's tokens become one: `mean`, `cls` (the first), `lasttoken`, `max`,
    `mean_sqrt_len_tokens` or `weightedmean`; of several joined by `+` the head is given all, side by side. Left out:
    the checkpoint's own, else `lasttoken` for decoders and `mean` for all others."""
    head_bias: bool = True
    """Whether the head, the linear map to the teacher's dimension, has a bias."""
    head: Literal["ridge", "rotation"] = "ridge"
    """Closed-form initial weights of the head. `ridge`: regression onto the teacher's vectors, which is closest to them
    on this corpus. `rotation`: the best rotation onto them, which keeps the angles between the checkpoint's vectors
    and so its behaviour on other texts; the teacher's vectors must be normalised and no narrower than the student's."""
    ridge: float = field(default=1e-2, metadata=bounded(0))
    """Regularisation of the head `ridge`, as a share of the mean feature variance."""
    head_rows: int = field(default=8192, metadata=positive())
    """Training texts that the head's initial weights are computed from; more than there are takes all."""
    head_queries: float | None = field(default=None, metadata=bounded(0, 1))
    """Share of the queries among those, by weight, however many they are; left out, every text counts the same."""

    def __post_init__(self) -> None:
        """Refuse keys that contradict each other."""
        if self.weights == "random" and self.sha256 is not None:
            raise LeafError("fit.student.sha256: must be left out with `weights: random`, which reads no weights")
        if self.architecture == "static" and self.layers is not None:
            raise LeafError("fit.student.layers: must be left out with `architecture: static`, which has no layers")
        if self.architecture == "static" and self.pooling not in (None, "mean"):
            raise LeafError(
                f"fit.student.pooling: `{self.pooling}` is impossible with `architecture: static`, which is a mean of "
                "token vectors; leave it out"
            )


@dataclass(frozen=True)
class SimilarityParams:
    """`fit.similarity`: a term that compares the texts of a batch with each other (Jasper, arXiv 2412.19048).

    The mean squared difference of the student's and the teacher's cosines over all pairs of a batch's texts.
    """

    weight: float = field(default=0.0, metadata=bounded(0))
    """Of the term in the loss; Jasper's are 10 for `cosine`, 200 for this and 20 for `relative`."""
    fade: float | None = field(default=None, metadata=bounded(0.001, 1))
    """Share of the run's steps in which the weight falls linearly to 0; left out, it stays."""


@dataclass(frozen=True)
class RelativeParams:
    """`fit.relative`: a term that wants the more similar of two pairs of texts to be the more similar (Jasper).

    For pairs of pairs of a batch's texts with t_ij > t_mn: the mean of max(0, s_mn - s_ij + margin).
    """

    weight: float = field(default=0.0, metadata=bounded(0))
    """Of the term in the loss."""
    margin: float = field(default=0.015, metadata=bounded(0))
    draws: int = field(default=4096, metadata=positive())
    """Pairs of pairs drawn for a batch: all of them are the fourth power of its size."""


@dataclass(frozen=True)
class AnchorParams:
    """`fit.anchor`: keeps the backbone's features near stored ones, usually the start's own (LDIFS, arXiv 2308.13320).

    The L2 distance between a text's features, scaled to length one, and its vector in `store`.
    """

    store: str
    """Store of the same corpus's vectors by the student's own checkpoint: a path, or an s3:// or http(s):// URL."""
    weight: float = field(default=0.1, metadata=positive())
    """Of the term in the loss."""


@dataclass(frozen=True)
class CandidatesParams:
    """`fit.candidates`: soft distillation, a term for the order of a query's candidates (KaLM, arXiv 2506.20923).

    KL(softmax(teacher's cosines / t) || softmax(student's / t)), where the student's are between its vector of the
    query and the teacher's stored vectors of the candidates, as in asymmetric mode; 0 for texts without candidates.
    """

    path: str
    """Parquet file of the filter stage, with the columns key (16 bytes, in the corpus's order), candidates (keys) and
    cosines."""
    weight: float = field(default=1.0, metadata=positive())
    """Of the term in the loss."""
    temperature: float = field(default=0.05, metadata=positive())
    """t, by which cosines are divided."""
    count: int = field(default=32, metadata=positive())
    """Candidates that are read of each text, the first ones."""


@dataclass(frozen=True)
class AssistantParams:
    """`fit.assistants`: further students behind the first layers of the same backbone, in one fit (MatTA, 2505.23337).

    Each has a head of its own, and is saved beside the student, in OUT-depths/N.
    """

    depths: tuple[int, ...] = ()
    """Layers of each further student, fewer than the student's own."""
    weight: float = field(default=1.0, metadata=positive())
    """Of a further student's loss, beside that of the student itself."""
    distill: float = field(default=0.0, metadata=bounded(0))
    """Weight of a further student's distance to the vectors of the student itself; it rises from 0 over the run."""


@dataclass(frozen=True)
class FitParams:
    """Section `fit`: stage two, training. The defaults are LEAF's full-size recipe (arXiv 2509.12539)."""

    student: StudentParams
    loss: Literal["l2", "mse", "cosine"] = "l2"
    """Mean over a batch of: the L2 distance to the teacher's vector, its square (`mse`), or 1 - cosine."""
    loss_weight: float = field(default=1.0, metadata=bounded(0))
    """Of that loss, beside the terms `similarity`, `relative`, `anchor` and `candidates`."""
    similarity: SimilarityParams = SimilarityParams()
    relative: RelativeParams = RelativeParams()
    prefixes: tuple[int, ...] = field(
        default=(), metadata={"check": (lambda dims: min(dims, default=1) > 0, "positive")}
    )
    """First dimensions of the student's vectors (Matryoshka) that `similarity` and `relative` are computed for as well;
    the terms are means over these and the whole. The teacher need not be made for truncation."""
    anchor: AnchorParams | None = None
    candidates: CandidatesParams | None = None
    assistants: AssistantParams = AssistantParams()
    further_stores: tuple[str, ...] = ()
    """Stores of further teachers' vectors of the same corpus (paths, or s3:// and http(s):// URLs). The target is then
    the concatenation of all teachers' vectors, each of length one, scaled to length one. Stages that are given one of
    these stores use that teacher's part of the student's vectors."""
    one_source_batches: bool = False
    """Whether all texts of a batch come from one source of the corpus, for terms that compare them (Arctic-Embed, arXiv
    2412.04506)."""
    cycles: int = field(default=3, metadata=positive())
    """Times that the learning rate starts anew."""
    epochs_per_cycle: int = field(default=10, metadata=positive())
    """An epoch visits every training text once."""
    learning_rate: float = field(default=1e-4, metadata=positive())
    """Learning rate at the start of each cycle, from which it falls to `learning_rate_end` by the `schedule`."""
    learning_rate_end: float = field(default=1e-5, metadata=bounded(0))
    """Learning rate at the end of each cycle."""
    schedule: Literal["linear", "cosine", "stable"] = "linear"
    """How the learning rate falls within a cycle: evenly, by half a cosine wave, or not at all until the last
    `decay_share` of the cycle's steps, in which it falls linearly (warm-up, stable, decay: WSD, arXiv 2404.06395)."""
    decay_share: float = field(default=0.2, metadata=bounded(0, 1))
    """With `schedule: stable`: the share of a cycle's steps in which the learning rate falls."""
    warmup_steps: int = field(default=0, metadata=bounded(0))
    """Steps at the very start over which the learning rate rises linearly from 0."""
    weight_decay: float = field(default=0.01, metadata=bounded(0))
    """Of AdamW."""
    clip_norm: float | None = field(default=1.0, metadata=positive())
    """Norm to which gradients are clipped; None clips none."""
    batch_size: int = field(default=32, metadata=positive())
    replicas: int = field(default=1, metadata=positive())
    """Copies of the student that train side by side, in a process each with batches of its own (post-local SGD, arXiv
    1808.07217): so many times fewer steps for the same epochs."""
    average_every: int = field(default=16, metadata=positive())
    """Steps after which weights and moments of all replicas become their mean."""
    dropout: float = field(default=0.1, metadata=bounded(0, 0.9))
    start_share: float = field(default=0.0, metadata=bounded(0, 0.99))
    """Share of the weights before the first step in the saved weights; the rest are those after the last step (WiSE-FT,
    arXiv 2109.01903). Above 0 the student ranks texts unlike the corpus better, and follows the teacher less closely on
    texts like it."""
    start_share_first: float | None = field(default=None, metadata=bounded(0, 0.99))
    """The same share in the embeddings and the first layer; from there it goes linearly to `start_share` in the last
    layer and the head (LiNeS, arXiv 2410.17146). Left out, it is `start_share` everywhere."""
    average_last: int = field(default=1, metadata=positive())
    """The saved weights are the mean of those after the last step and at so many - 1 points before it (LAWA, arXiv
    2209.14981)."""
    average_spacing: int = field(default=100, metadata=positive())
    """Steps between the points of `average_last`."""
    head_steps: int = field(default=0, metadata=bounded(0))
    """First steps, which train the head alone and take less than half the time (LP-FT, arXiv 2202.10054)."""
    frozen_layers: int = field(default=0, metadata=bounded(0))
    """So many of the student's first layers, and the embeddings, keep their weights, which saves the backward pass
    through them and their part of the update; 0 trains everything."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward passes; `auto` is bfloat16 on devices where that is fast."""
    seed: int = field(default=0, metadata=bounded(0))
    """Of everything random: sampled rows, the order of texts, dropout."""
    max_steps: int | None = field(default=None, metadata=positive())
    """Most steps of the fit: all its cycles are kept and become shorter. None trains all epochs."""
    buffer_rows: int = field(default=65_536, metadata=positive())
    """Rows that the loader holds in memory at a time."""
    validate_every: int = field(default=1000, metadata=positive())
    """Steps between validations."""
    validation_rows: int = field(default=2048, metadata=positive())
    """Held-out texts of a validation."""
    checkpoint_every: int = field(default=1000, metadata=positive())
    """Steps between checkpoints. One is also written every five minutes or so; a killed run loses what came after the
    last one."""
    snapshots: tuple[int, ...] = ()
    """Steps after which the student is saved as well, to measure how quality grows with training."""

    @property
    def files(self) -> tuple[str, ...]:
        """What is read besides corpus and store: other stores, and the file of candidates."""
        anchor = [self.anchor.store] if self.anchor else []
        return (*self.further_stores, *anchor, *([self.candidates.path] if self.candidates else []))

    def __post_init__(self) -> None:
        """Refuse terms that cannot have an effect."""
        if self.prefixes and not (self.similarity.weight or self.relative.weight):
            raise LeafError("fit.prefixes: needs fit.similarity.weight or fit.relative.weight, whose terms it extends")
        if not (self.loss_weight or self.similarity.weight or self.relative.weight or self.candidates):
            raise LeafError("fit.loss_weight: 0 leaves nothing to learn from; give another term a weight")
        if list(self.assistants.depths) != sorted({depth for depth in self.assistants.depths if depth > 0}):
            raise LeafError("fit.assistants.depths: must be numbers of layers above 0, ascending, each once")


@dataclass(frozen=True)
class CostParams:
    """`evaluate.cost`: measures the speed of teacher and student on this machine, which take turns."""

    texts: int = field(default=256, metadata=bounded(0))
    """Documents in a measurement of throughput; 0 measures no cost."""
    queries: int = field(default=100, metadata=positive())
    """Queries in a measurement of latency, encoded one at a time."""
    rounds: int = field(default=5, metadata=positive())
    """Turns of each model: in each it encodes all documents and its share of the queries."""


@dataclass(frozen=True)
class EvaluateParams:
    """Section `evaluate`: what the student is measured on."""

    beir: tuple[str, ...] = ()
    """Retrieval collections: directories in BEIR's layout, named by the last part of the path. In one that has
    `vectors.parquet` (columns id, vector) in the place of `corpus.jsonl`, the documents are these vectors alone: it is
    searched by the queries of teacher and student."""
    sts: tuple[str, ...] = ()
    """Semantic textual similarity: files with the columns sentence1, sentence2, score."""
    classification: tuple[str, ...] = ()
    """Files with the columns text, label and, if the split is fixed, split (train, test)."""
    clustering: tuple[str, ...] = ()
    """Files with the columns text and label: texts are put into as many clusters as there are labels."""
    dims: tuple[int, ...] = field(
        default=(768, 512, 384, 256, 128, 64), metadata={"check": (lambda dims: min(dims, default=1) > 0, "positive")}
    )
    """Dimensions that vectors are truncated to (Matryoshka); those not below the teacher's are left out."""
    calibration_rows: int = field(default=4096, metadata=bounded(0))
    """Training texts of each role that int8 quantisation is calibrated on; 0 leaves quantisation out."""
    cost: CostParams = CostParams()
    moved: int = field(default=20, metadata=bounded(0))
    """Queries that the report shows, those whose ranking changed most."""
    texts: bool = True
    """Whether `plots/moved.json`, and so the report, hold texts of queries and documents; else their ids. `dvc push`
    sends both."""
    map_texts: int = field(default=300, metadata=bounded(0))
    """Held-out texts on the report's map."""
    neighbours_rows: int = field(default=2000, metadata=positive())
    """Most held-out queries, and most documents, in the comparison of nearest neighbours with the teacher's."""
    bootstrap: int = field(default=1000, metadata=bounded(0))
    """Bootstrap samples for each 95 % interval; 0 leaves intervals out."""
    seed: int = field(default=0, metadata=bounded(0))
    """Of samples of texts and of the bootstrap."""


@dataclass(frozen=True)
class ExportParams:
    """Section `export`: models for serving and their cards, and how they are compared with the student."""

    rows: int = field(default=1000, metadata=positive())
    """Held-out queries whose vectors by an exported model and by the student are compared, besides a tenth as many
    documents."""
    speed_texts: int = field(default=64, metadata=bounded(0))
    """Texts in a timed round; 0 measures no speed."""
    bootstrap: int = field(default=1000, metadata=bounded(0))
    """Bootstrap samples for each 95 % interval; 0 leaves intervals out."""
    seed: int = field(default=0, metadata=bounded(0))
    """Of the bootstrap."""
    license: str | None = None
    """Licence of the student; if it is left out, that of teacher and checkpoint, taken from their model cards."""
    teacher_id: str | None = None
    """Hub id of the teacher, if `teacher.model` is a directory, a package or an API's name."""
    student_id: str | None = None
    """Hub id of the student's checkpoint, if `fit.student.model` is a directory or a package."""
