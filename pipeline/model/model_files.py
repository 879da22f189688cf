"""The files of a pretrained model: finding them, checking their digest, and loading them with the usual libraries.

Weights are safetensors (heads beside them may be pickled tensors, which the library reads with `weights_only`), and no
code that lies beside a model is run unless that is asked for.
"""

import hashlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from pipeline.base import LeafError, file_sha256, first_line, panics_as_errors
from pipeline.model.device import best_device
from pipeline.model.model_settings import read_json, settings
from pipeline.model.trust import MOST_RANDOM, check_requests, limited_size, stored_numbers

PACKAGE = "package:"
# Of pickled weights only those of heads, which have a directory of their own; the model's must be safetensors.
READ = (*("*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.codes", "*.jinja", "*.py", "*/pytorch_model.bin"),)
"""Files of a model that are fetched from a hub, and pinned."""
NOT_READ = ("onnx/*", "openvino/*", ".*", "*/.*")
DECIDING_FILES = ("*.json", "vocab*", "merges.txt", "*.codes", "*.model", "*.spm")
LOADING: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
LONGEST_NAME = 255  # bytes that file systems take for one
_LOADING_LOCK = threading.Lock()  # while a model is loaded, a method of the library is replaced


def resolve_model(model: str, revision: str | None = None) -> Path:
    """Directory of a model given as `package:NAME/DIRECTORY`, as a local directory, or as a hub id.

    Raises:
        LeafError: there is no such package, directory or hub model.
    """
    if "\0" in model or any(len(part.encode(errors="replace")) > LONGEST_NAME for part in model.split("/")):
        raise LeafError(f"model {model!r:.60}: is no name of a model or of a directory")
    if model.startswith(PACKAGE):
        name, _, inside = model.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise LeafError(f"model `{model}`: the package `{name}` is not installed; install it with pip")
        package = Path(next(iter(spec.submodule_search_locations)))
        directory = package / inside
        if not Path(os.path.normpath(directory)).is_relative_to(package):
            raise LeafError(f"model `{model}`: `{inside}` is not inside the package `{name}`; name a directory in it")
        if not directory.is_dir():
            raise LeafError(f"model `{model}`: the package `{name}` has no directory `{inside}`")
        return directory
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")):
        raise LeafError(f"model `{model}`: no such directory")
    return _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    read, not_read = list(READ), list(NOT_READ)
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=read, ignore_patterns=not_read))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise LeafError(
            f"model `{model}`: neither a local directory nor to be had from the model hub ({first_line(error)})"
        ) from None


def base_directory(directory: Path) -> Path:
    """Where a transformer's configuration lies: in its directory, or in that of the base model of an adapter (PEFT).

    Raises:
        LeafError: the adapter names no base model, or it cannot be found.
    """
    adapter = directory / "adapter_config.json"
    if not adapter.exists():
        return directory
    base = settings(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise LeafError(f"model file {adapter}: does not name the base model of the adapter; get the model again")
    return resolve_model(base, None)


def model_places(directory: Path) -> list[Path]:
    """The directories that hold files of a model: its own, and that of the base model of an adapter."""
    return list(dict.fromkeys([directory, base_directory(directory / first_module(directory)[1])]))


def stored_modules(directory: Path) -> list[tuple[str, str]]:
    """Class and subdirectory ("" for none) of each module that a sentence-transformers directory names.

    Empty for a directory of transformers alone.

    Raises:
        LeafError: its list of modules is damaged.
    """
    listing = directory / "modules.json"
    if not listing.is_file():
        return []
    try:
        modules = [(module["type"].rpartition(".")[2], module["path"]) for module in read_json(listing)]
        for _, path in modules:
            check_inside(directory, path)
    except (TypeError, KeyError, AttributeError) as error:
        raise LeafError(f"{listing}: cannot be read as a list of modules ({first_line(error)})") from None
    return modules


def check_inside(directory: Path, path: str) -> Path:
    """The place that a model's files name by a path below its directory; LeafError where it lies elsewhere."""
    joined = directory / path
    if len(path.encode(errors="replace")) > LONGEST_NAME:
        raise LeafError(
            f"model {directory}: names a module by {len(path):,} characters ({path!r:.60}); do not trust it"
        )
    if "\0" in path or not joined.resolve().is_relative_to(directory.resolve()):
        raise LeafError(f"model {directory}: names a module outside of its directory ({path!r:.60}); do not trust it")
    return joined


def first_module(directory: Path) -> tuple[str, str]:
    """Class and subdirectory of what computes a checkpoint's token vectors; LeafError as `stored_modules`."""
    return (stored_modules(directory) or [("Transformer", "")])[0]


def _weight_files(directory: Path) -> list[Path]:
    files = sorted((directory / first_module(directory)[1]).glob("*.safetensors"))
    if not files:
        raise LeafError(
            f"{directory.name}: holds no *.safetensors; weights in other formats are not loaded, as they can run code "
            "(transformers converts them: `AutoModel.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)`)"
        )
    return files


def weights_sha256(directory: Path) -> str:
    """SHA-256 of `model.safetensors`; of the lines `name sha256` where the weights are split over several files.

    Of a sentence-transformers directory those of its first module are meant, wherever they lie.
    """
    files = _weight_files(directory)
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def files_of_model(directory: Path) -> dict[str, Path]:
    """Every file of a model that its vectors may depend on, or that may run, by its path in the directory.

    They are those that would be fetched from a hub. What an adapter's base model lends is under `base/`.
    """
    files: dict[str, Path] = {}
    base = base_directory(directory / first_module(directory)[1])
    elsewhere = [] if base.is_relative_to(directory) else [(base, "base/")]
    for place, prefix in [(directory, ""), *elsewhere]:
        for file in sorted(place.rglob("*")):
            name = file.relative_to(place).as_posix()
            read = any(fnmatch(name, pattern) for pattern in READ)
            if read and not any(fnmatch(name, pattern) for pattern in NOT_READ) and file.is_file():
                files[prefix + name] = file
    return files


def model_sha256(directory: Path) -> str:
    """SHA-256 over the lines `name sha256` of all `files_of_model`, sorted: what `sha256` in the parameters pins."""
    lines = sorted(f"{name} {file_sha256(file)}\n" for name, file in files_of_model(directory).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_model_sha256(directory: Path, expected: str | None, name: str) -> None:
    """Compare `model_sha256` with what a parameter wants, if it wants any; `name` is the parameter's.

    Raises:
        LeafError: it differs. Says which it is.
    """
    if expected is None or (digest := model_sha256(directory)) == expected.lower():
        return
    hint = ""
    with suppress(LeafError):  # a Router has no weights of its own
        if weights_sha256(directory) == expected.lower():
            hint = " (that is the digest of the weights alone, which earlier versions wanted)"
    raise LeafError(
        f"{name}: the files of the model in {directory} have SHA-256 {digest} together, but the parameters want "
        f"{expected}{hint}; do not trust them, or correct the parameter if you meant to change models"
    )


def code_files(directory: Path) -> list[Path]:
    """The Python files beside a model, which run only with `trust_remote_code`."""
    return sorted(file for file in directory.rglob("*.py") if file.is_file())


def load_sentence_transformer(directory: Path, name: str, code_revision: str | None = None) -> Any:
    """The SentenceTransformer in a directory, in float32 and for inference, adapters merged into their base model.

    `code_revision` is the commit whose code may run (`teacher.trust_remote_code`); None runs none.

    Raises:
        LeafError: it cannot be loaded, or lacks weights.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    trusted = {"revision": code_revision, "code_revision": code_revision} if code_revision else {}
    check_requests(model_places(directory), f"model `{name}`")
    with (
        load_errors(f"model `{name}`: cannot be loaded as a sentence-transformers model"),
        limited_size(stored_numbers(model_places(directory)), f"model `{name}`"),
        _whole_checkpoints(name),
    ):
        model = SentenceTransformer(
            str(directory),
            device=str(best_device()),
            trust_remote_code=code_revision is not None,
            local_files_only=code_revision is None,
            model_kwargs=LOADING | trusted,
        ).eval()
        for module in model.modules():
            if isinstance(module, Transformer):
                _merge_adapters(module)
                _check_pooler(module, f"model `{name}`")
    return model


def load_transformer(directory: Path, name: str, random: bool = False) -> Any:
    """The sentence-transformers Transformer module of a student's checkpoint, in float32.

    `name` is what `fit.student.model` says. If `random`, the directory needs no weights: PyTorch's generator draws them
    as the model's family does before its training.

    Raises:
        LeafError: it cannot be loaded, or lacks weights.
    """
    from sentence_transformers.sentence_transformer.modules import Transformer

    called = f"fit.student.model `{name}`"
    if not random:
        _weight_files(directory)
    places = model_places(directory)
    check_requests(places, called)
    with (
        load_errors(f"{called}: cannot be loaded"),
        limited_size(MOST_RANDOM if random else stored_numbers(places), called),
        _new_weights() if random else _whole_checkpoints(name, called),
    ):
        module = Transformer.load(
            str(directory), local_files_only=True, trust_remote_code=False, model_kwargs=dict(LOADING)
        )
        _merge_adapters(module)
    return module


def checkpoint_digest(directory: Path, with_weights: bool = True) -> str:
    """One SHA-256 of all files that decide what a student starts from: weights, settings, tokenizer, an adapter's base.

    LeafError as `weights_sha256` and `base_directory`.
    """
    first = directory / first_module(directory)[1]
    base = base_directory(first)
    lines = []
    for place in [directory] if base == first else [directory, base]:
        if with_weights:
            lines.append(f"weights {weights_sha256(place)}")
        files = sorted({file for pattern in DECIDING_FILES for file in place.rglob(pattern) if file.is_file()})
        lines += [f"{file.relative_to(place).as_posix()} {file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_words(tokenizer: Any, called: str) -> None:
    """Refuse a tokenizer without words: transformers makes one of special tokens alone where its files are missing.

    Raises:
        LeafError: it knows nothing but special tokens. `called` begins the message.
    """
    ids = set(tokenizer.get_vocab().values())
    if ids and ids <= set(tokenizer.all_special_ids):
        raise LeafError(
            f"{called}: its tokenizer knows no words but {len(ids)} special tokens; the model's directory lacks "
            "tokenizer.json or the files that its tokenizer is built from (vocab.txt, tokenizer.model)"
        )


@contextmanager
def load_errors(message: str) -> Iterator[None]:
    """Make of whatever the libraries raise about a model within the block a LeafError that begins with `message`."""
    try:
        with panics_as_errors():
            yield
    except LeafError:
        raise
    except Exception as error:  # every library below raises its own; the person needs one sentence
        needs_code = "trust_remote_code" in str(error)
        advice = "; read the code beside it, then see teacher.trust_remote_code" if needs_code else ""
        raise LeafError(f"{message}: {first_line(error)}{advice}") from None


def _whole_checkpoints(name: str, called: str | None = None) -> AbstractContextManager[None]:
    """Refuse a checkpoint that lacks weights: transformers would fill them with noise and only log it.

    Its own report of what was loaded is asked for, because only it knows how a family's weights were once called.
    """

    def reporting(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        model, report = original(cls, *args, **_with_own_attention(kwargs), output_loading_info=True)
        missing = sorted(report["missing_keys"])
        poolers = [key for key in missing if key.startswith("pooler.")]  # seldom read: see `_check_pooler`
        model.missing_poolers = poolers
        _refuse_missing(called or f"model `{name}`", [key for key in missing if key not in poolers])
        return model

    return _loading_by(reporting)


def _refuse_missing(called: str, missing: list[str]) -> None:
    if missing:
        raise LeafError(
            f"{called}: the checkpoint lacks {len(missing)} of the weights that its configuration names, first "
            f"`{missing[0]}`; it is damaged or belongs to another configuration"
        )


def _check_pooler(transformer: Any, called: str) -> None:
    """Refuse a model whose vectors are those of a pooler that has no weights; elsewhere nothing reads it."""
    outputs = {way["method_output_name"] for way in transformer.modality_config.values()}
    if "pooler_output" in outputs:
        _refuse_missing(called, getattr(transformer.auto_model, "missing_poolers", []))


def _new_weights() -> AbstractContextManager[None]:
    """Models are made from their configurations alone."""

    def drawing(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
        return cls._from_config(_with_own_attention(kwargs)["config"], dtype=LOADING["dtype"])

    return _loading_by(drawing)


def _with_own_attention(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained` without a model's wish for an attention: its name may be that of a kernel."""
    if kwargs.get("config") is not None:
        kwargs["config"]._attn_implementation = None
        kwargs["config"]._experts_implementation = None
    return {name: value for name, value in kwargs.items() if name != "attn_implementation"}


@contextmanager
def _loading_by(load: Callable[..., Any]) -> Iterator[None]:
    """Have transformers load models by a function, which is given its own one first, then the class."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    with _LOADING_LOCK:
        by = classmethod(lambda cls, *args, **kwargs: load(original.__func__, cls, *args, **kwargs))
        PreTrainedModel.from_pretrained = by  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            PreTrainedModel.from_pretrained = original  # type: ignore[method-assign]


def _merge_adapters(transformer: Any) -> None:
    """Add the weights of adapters (PEFT) to those of the layers that they stand beside, and drop them."""
    model = transformer.auto_model
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    # Else it would be saved as the adapters that it no longer has, and under the names of their weights.
    model._hf_peft_config_loaded = False
    if hasattr(model, "_weight_conversions"):
        del model._weight_conversions
