"""The student: a small backbone with pooling, and a linear head into the teacher's space.

It is saved as a plain sentence-transformers directory (the backbone's modules, Dense and, where the teacher normalises,
Normalize), which `SentenceTransformer(path)` loads with no code of this project.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from pipeline.base import LeafError, Similarity, TokenIds, first_line, keep_pages, panics_as_errors, written_directory
from pipeline.model.backbones.backbone import Backbone
from pipeline.model.backbones.padded import UNLIMITED
from pipeline.model.backbones.registry import backbone_for, backbone_of_modules
from pipeline.model.backbones.static import StaticBackbone
from pipeline.model.batch import Batch, pack
from pipeline.model.model_files import (
    check_model_sha256,
    check_words,
    first_module,
    load_errors,
    load_sentence_transformer,
    load_transformer,
    resolve_model,
)
from pipeline.model.older_form import write_older_form
from pipeline.model.parallel import vectors_in_parts
from pipeline.model.pooling import stored_pooling
from pipeline.model.vocabulary import cut_vocabulary
from pipeline.params import StudentParams, pooling_modes
from pipeline.store import MODEL_KIND, FittedTo, write_fitted_to

TOKEN_BUDGET = 8192  # tokens computed at once in inference
PROBE_TOKENS = 16  # by which a backbone is compared before and after its vocabulary is cut
TokenCounts = Callable[[Tokenizer], np.ndarray]
"""How often each token of a tokenizer stands in a corpus, `[ids]`; ids behind the last that does may be left out."""


def no_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """The counts of an empty corpus."""
    return np.zeros(0, dtype=np.int64)


class Student(nn.Module):
    """Backbone with pooling, head, and (if `normalize`) vectors of length one. All of it trains."""

    def __init__(self, backbone: Backbone, head: nn.Linear, normalize: bool, similarity: Similarity = "cosine") -> None:
        """`backbone` has its tokenizer; `similarity` is what its users are told to compare vectors by.

        Raises:
            LeafError: the head does not fit the backbone's features.
        """
        super().__init__()
        self.backbone = backbone
        if head.in_features != self.backbone.width:
            raise LeafError(
                f"student: the head takes {head.in_features} features, but the backbone gives {self.backbone.width}"
            )
        self.head = head
        self.further_heads = nn.ModuleDict()
        """Heads of students that end behind fewer layers, by their number, while they are fitted together."""
        self.normalize = normalize
        self.similarity = similarity

    @property
    def dim(self) -> int:
        """Dimension of the vectors, which is the teacher's."""
        return self.head.out_features

    @property
    def width(self) -> int:
        """Dimension of the pooled features."""
        return self.head.in_features

    @property
    def max_length(self) -> int:
        """Most tokens of a text that are read, special tokens included."""
        return self.backbone.max_length

    def features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pooled hidden states `[texts, width]` float32, computed in `dtype`."""
        return self.backbone.features(batch, dtype)

    def forward(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """Vectors `[texts, dim]` float32, in the order given to `pack`; the head runs in float32 whatever `dtype`."""
        return self.finish(self.features(batch, dtype))

    def finish(self, features: Tensor) -> Tensor:
        """Head and normalisation: `[texts, width]` -> `[texts, dim]`."""
        vectors: Tensor = self.head(features)
        return functional.normalize(vectors, dim=1) if self.normalize else vectors

    def add_further(self, depths: Sequence[int]) -> None:
        """Add heads with random weights behind these numbers of layers, ascending.

        Raises:
            LeafError: there are not so many layers, or the backbone gives no features at several depths.
        """
        if depths and depths[-1] >= self.backbone.layers:
            raise LeafError(
                f"fit.assistants.depths: {depths[-1]} is impossible; it must be fewer layers than the student's "
                f"{self.backbone.layers}"
            )
        for depth in depths:
            self.further_heads[str(depth)] = nn.Linear(self.width, self.dim, bias=self.head.bias is not None)

    @property
    def depths(self) -> tuple[int, ...]:
        """The numbers of layers behind which there are further heads."""
        return tuple(map(int, self.further_heads))

    def all_features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Pooled hidden states `[texts, width]` float32 at each of `depths`, and the last: `features`."""
        if not self.depths:
            return [self.features(batch, dtype)]
        return self.backbone.features_at(batch, dtype, (*self.depths, self.backbone.layers))

    def finish_further(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`finish` of the features at `depths` by the heads there."""
        vectors = (head(rows) for head, rows in zip(self.further_heads.values(), features, strict=True))
        return tuple(functional.normalize(rows, dim=1) if self.normalize else rows for rows in vectors)

    def at_depth(self, depth: int) -> "Student":
        """A copy that ends behind so many layers, with the head that is there."""
        student = copy.deepcopy(self)
        student.backbone.keep_layers(range(depth))
        head = student.further_heads[str(depth)]
        return Student(student.backbone, cast(nn.Linear, head), self.normalize, self.similarity)

    def part(self, columns: slice) -> "Student":
        """A copy that gives these columns of the vectors alone, scaled to length one again."""
        student = copy.deepcopy(self)
        weight, bias = student.head.weight.detach()[columns], student.head.bias
        student.head = nn.Linear(self.width, len(weight), bias=bias is not None)
        student.head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias.detach()[columns]}))
        return student.eval()

    def tokenizer(self) -> Tokenizer:
        """A copy of the tokenizer that cuts at `max_length` and does not pad."""
        return self.backbone.tokenizer()

    def save(self, path: Path, card: str | None = None, fitted: FittedTo | None = None) -> None:
        """Write a sentence-transformers directory; what was at `path` is replaced only once the new one is whole.

        `card` becomes its README.md; `fitted`, the vectors that it was fitted to, is recorded.

        Raises:
            LeafError: it cannot be written; the disk is full, say.
        """
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize

        with torch.random.fork_rng(devices=[]):  # a snapshot must not change what dropout draws afterwards
            dense = Dense(self.width, self.dim, bias=self.head.bias is not None, activation_function=nn.Identity())
        dense.linear.load_state_dict({name: value.cpu() for name, value in self.head.state_dict().items()})
        modules = [*self.backbone.sentence_modules(), dense, *[Normalize()] * self.normalize]
        model = SentenceTransformer(modules=modules, device="cpu")
        model.similarity_fn_name = self.similarity
        with model_directory(path, card) as directory:
            model.save(str(directory), create_model_card=False, safe_serialization=True)
            write_older_form(directory, modules)
            if fitted is not None:
                write_fitted_to(directory, fitted)

    @classmethod
    def load(cls, path: Path) -> "Student":
        """Read a directory written by `save`; LeafError if it is none, or computes something else than a student."""
        if not (path / "modules.json").is_file():
            raise LeafError(f"{path}: holds no student (no modules.json); run the fit stage first")
        model = load_sentence_transformer(path, str(path))
        modules, similarity = list(model), model.similarity_fn_name
        try:
            backbone, tail = backbone_of_modules(modules)
        except LeafError as error:
            raise LeafError(f"{path}: is not a student: {error}") from None
        if backbone.max_length < 1:
            raise LeafError(f"{path}: is not a student: it reads {backbone.max_length} tokens of a text")
        kinds = [type(module).__name__ for module in tail]
        if kinds not in (["Dense"], ["Dense", "Normalize"]):
            raise LeafError(
                f"{path}: is not a student: its modules are {', '.join(type(module).__name__ for module in modules)}"
            )
        _check_plain(path, tail[0])
        return cls(backbone, tail[0].linear, len(tail) == 2, "dot" if similarity == "dot" else "cosine").eval()


def _check_plain(path: Path, dense: Any) -> None:
    """Refuse modules that sentence-transformers computes and a Student does not: its vectors would differ."""
    differences = []
    if not isinstance(dense.activation_function, nn.Identity):
        differences.append(f"the activation {type(dense.activation_function).__name__}")
    if dense.use_residual:
        differences.append("a residual around its head")
    if differences:
        raise LeafError(
            f"{path}: is not a student: it has {', '.join(differences)}, and a student has a linear head; name a "
            "directory that the fit stage wrote"
        )


@contextmanager
def model_directory(path: Path, card: str | None = None) -> Iterator[Path]:
    """`written_directory` for a model; `card` becomes its README.md.

    Raises:
        LeafError: something cannot be written; what was at `path` is still there.
    """
    with write_errors(path), written_directory(path, MODEL_KIND) as directory:
        yield directory
        if card is not None:
            (directory / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Any error while a model is written to `path` becomes a LeafError that says what to do."""
    try:
        with panics_as_errors():
            yield
    except LeafError:
        raise
    except Exception as error:  # for a full disk safetensors and tokenizers raise exceptions of their own
        raise LeafError(f"{path}: cannot be written ({first_line(error)}); see to the disk and run again") from None


def build(
    params: StudentParams,
    dim: int,
    normalize: bool,
    dropout: float = 0.0,
    seed: int = 0,
    *,
    similarity: Similarity = "cosine",
    count_tokens: TokenCounts = no_tokens,
) -> Student:
    """A student from a checkpoint: its chosen layers, and a head (width -> dim) with random weights.

    `count_tokens` is asked where the vocabulary is the corpus's, and for a static student.

    Raises:
        LeafError: the checkpoint is missing, damaged, not the expected one, or the shapes asked for are impossible.
    """
    directory = resolve_model(params.model, params.revision)
    if first_module(directory)[0] in ("Router", "Asym"):
        raise LeafError(
            f"fit.student.model `{params.model}`: is a Router of several models; name the directory of one of them "
            "(document_0_Transformer, say)"
        )
    if params.weights == "checkpoint":
        check_model_sha256(directory, params.sha256, "fit.student.sha256")
    if dim < 1:
        raise LeafError(f"student: a head into {dim} dimensions is impossible; the store's dim is wrong")
    torch.manual_seed(seed)  # a checkpoint without a pooler gets a random one, which must not differ between runs
    is_table = first_module(directory)[0] == "StaticEmbedding"
    with load_errors(f"fit.student.model `{params.model}`: cannot be a student"):
        backbone = _table(directory, params) if is_table else _backbone(directory, params, count_tokens)
    backbone.set_dropout(dropout)
    head = nn.Linear(backbone.width, dim, bias=params.head_bias)
    return Student(backbone, head, normalize, similarity)


def untouched(params: StudentParams) -> Student:
    """The checkpoint that a student starts from: the layers and pooling that it keeps, no head, vectors of length 1.

    Raises:
        LeafError: it says nothing by itself (its weights are drawn at random, or its table is computed from a corpus),
            or as `build`.
    """
    if params.weights == "random":
        raise LeafError("a checkpoint with random weights says nothing before it is fitted")
    if params.architecture == "static":
        directory = resolve_model(params.model, params.revision)
        if first_module(directory)[0] != "StaticEmbedding":
            raise LeafError("the table of a static student is made by its corpus, and is no checkpoint of its own")
    built = build(replace(params, vocabulary="checkpoint"), 1, normalize=True)
    head = nn.Linear(built.width, built.width, bias=False)
    nn.init.eye_(head.weight)
    return Student(built.backbone, head, normalize=True).eval()


def _table(directory: Path, params: StudentParams) -> Backbone:
    """The table of a checkpoint that is one already, with its vectors as they are."""
    wanted = {"architecture": "static", "vocabulary": "checkpoint", "weights": "checkpoint"}
    for name, value in wanted.items():
        if getattr(params, name) != value:
            raise LeafError(
                f"fit.student.{name}: must be `{value}`, as `{params.model}` holds a table of token vectors"
            )
    backbone = StaticBackbone.of_module(load_sentence_transformer(directory, params.model)[0])
    _limit_length(backbone, params.max_length)
    return backbone


def _backbone(directory: Path, params: StudentParams, count_tokens: TokenCounts) -> Backbone:
    """A transformer's chosen layers, vocabulary and pooling, or the table made of it."""
    transformer = load_transformer(
        directory / first_module(directory)[1], params.model, random=params.weights == "random"
    )
    _check_tokenizer(transformer.tokenizer, params.model)
    pooling = stored_pooling(directory) if params.pooling is None else pooling_modes(params.pooling)
    backbone = backbone_for(transformer.auto_model, pooling or ("mean",), transformer)
    if pooling is None and backbone.causal:
        backbone.pooling = ("lasttoken",)  # the only token that has seen the whole text
    if params.layers is not None:
        _check_layers(params.layers, backbone.layers)
        backbone.keep_layers(params.layers)
    _limit_length(backbone, params.max_length)
    if params.vocabulary == "corpus":
        backbone = _with_vocabulary(backbone, transformer, count_tokens(backbone.tokenizer()), params.model)
    if params.architecture == "static":
        backbone = StaticBackbone.of_transformer(backbone, transformer.tokenizer)
        backbone.weigh(count_tokens(backbone.tokenizer()))
    return backbone


@torch.no_grad()
def _with_vocabulary(backbone: Backbone, transformer: Any, counts: np.ndarray, name: str) -> Backbone:
    """The backbone with only the tokens that are there (see TokenCounts) and those that its tokenizer needs.

    Raises:
        LeafError: it cannot be cut, or would give other features.
    """
    used = np.flatnonzero(counts).tolist()
    probe = used[:: max(1, len(used) // PROBE_TOKENS)][: backbone.max_length]
    before = backbone.eval().features(pack([probe]))
    try:
        new_ids = cut_vocabulary(transformer, used)
        cut = backbone_for(transformer.auto_model, backbone.pooling, transformer)
        same = torch.equal(before, cut.eval().features(pack([[new_ids[number] for number in probe]])))
    except (LeafError, IndexError, KeyError, RuntimeError) as error:
        raise LeafError(f"fit.student.vocabulary: that of `{name}` cannot be cut: {first_line(error)}") from None
    if not same:
        raise LeafError(
            f"fit.student.vocabulary: that of `{name}` cannot be cut, as the model computes other vectors without the "
            "tokens that are left out; use `checkpoint`"
        )
    return cut


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that a student cannot use, and have the others pad so that any model can be saved with them.

    Padded on the left, a text's vectors depend on its neighbours in models that count positions from there (GPT-2).
    """
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise LeafError(
            f"fit.student.model `{name}`: its tokenizer ({type(tokenizer).__name__}) runs Python code for every text, "
            "which students do not; start from a checkpoint with a tokenizer.json"
        )
    check_words(tokenizer, f"fit.student.model `{name}`")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)


def _check_layers(layers: Sequence[int], count: int) -> None:
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise LeafError(
            f"fit.student.layers: {list(layers)} is impossible; it must name some of the checkpoint's layers "
            f"0 to {count - 1}, each once, in ascending order"
        )


def _limit_length(backbone: Backbone, max_length: int | None) -> None:
    most = backbone.max_tokens
    if max_length is not None and max_length > most:
        raise LeafError(f"fit.student.max_length: {max_length} is impossible; the checkpoint has {most} positions")
    if max_length is None and backbone.max_length >= UNLIMITED:
        raise LeafError(
            "fit.student.max_length: missing; neither the checkpoint's tokenizer nor its configuration limits the "
            "tokens of a text; set it (512, say)"
        )
    if max_length is None and backbone.max_length < 1:
        raise LeafError(f"fit.student.model: reads {backbone.max_length} tokens of a text by its own settings")
    backbone.max_length = max_length or backbone.max_length


class StudentEncoder:
    """The student laid out for inference: no padding, bfloat16 where the hardware is fast at it."""

    def __init__(self, student: Student, token_budget: int = TOKEN_BUDGET) -> None:
        """Copies the weights of `student`, which is put into evaluation mode."""
        self.student, self.token_budget = student.eval(), token_budget
        self._token_ids = TokenIds(student.tokenizer())
        keep_pages()
        self._compiled = student.backbone.compiled(token_budget)

    @classmethod
    def load(cls, path: Path) -> "StudentEncoder":
        """From a directory written by `Student.save`."""
        return cls(Student.load(path))

    def encode(self, texts: Sequence[str], role: str = "document") -> np.ndarray:
        """Vectors `[texts, dim]` float32. The student reads plain text: `role` changes nothing."""
        token_ids = self._token_ids(texts)
        vectors = np.empty((len(token_ids), self.student.dim), dtype=np.float32)
        for rows, part in vectors_in_parts(self._forward, token_ids, self.token_budget, self._compiled.device):
            vectors[rows] = part
        return vectors

    @torch.inference_mode()
    def _forward(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        return self.student.finish(self._compiled(pack(token_ids, self.student.backbone.shortest))).float()
