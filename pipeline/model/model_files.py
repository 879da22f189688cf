"""The files of a pretrained model: finding them, checking their digest, and loading them with the usual libraries.

Weights are safetensors (heads beside them may be pickled tensors, which the library reads with `weights_only`), and no
code that lies beside a model is run unless that is asked for.
"""

import hashlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.base import LeafError, access, first_line, sha256
from pipeline.model.device import best_device

PACKAGE = "package:"
DECIDING_FILES = ("*.json", "vocab*", "merges.txt", "*.codes", "*.model", "*.spm")
LOADING: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
_LOADING_LOCK = threading.Lock()  # while a model is loaded, a method of the library is replaced


def resolve_model(model: str, revision: str | None = None) -> Path:
    """Directory of a model given as `package:NAME/DIRECTORY`, as a local directory, or as a hub id.

    Raises:
        LeafError: there is no such package, directory or hub model.
    """
    if model.startswith(PACKAGE):
        name, _, inside = model.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise LeafError(f"model `{model}`: the package `{name}` is not installed; install it with pip")
        directory = Path(next(iter(spec.submodule_search_locations))) / inside
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

    # Of pickled weights only those of heads, which have a directory of their own; the model's must be safetensors.
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja", "*.py", "*/pytorch_model.bin"]
    other_formats = ["onnx/*", "openvino/*"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=other_formats))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise LeafError(
            f"model `{model}`: neither a local directory nor to be had from the model hub ({first_line(error)})"
        ) from None


def read_json(path: Path) -> Any:
    """The JSON that a model's file holds; LeafError if it cannot be read."""
    try:
        with access():
            return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LeafError(f"model file {path}: cannot be read: {error}") from None


def settings(path: Path) -> dict[str, Any]:
    """The JSON object that a model's file holds; LeafError if it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise LeafError(f"model file {path}: must hold a JSON object of settings; get the model again")
    return content


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
        return [(module["type"].rpartition(".")[2], module["path"]) for module in read_json(listing)]
    except (TypeError, KeyError, AttributeError) as error:
        raise LeafError(f"{listing}: cannot be read as a list of modules ({first_line(error)})") from None


def first_module(directory: Path) -> tuple[str, str]:
    """Class and subdirectory of what computes a checkpoint's token vectors; LeafError as `stored_modules`."""
    return (stored_modules(directory) or [("Transformer", "")])[0]


def weights_sha256(directory: Path) -> str:
    """SHA-256 of `model.safetensors`; of the lines `name sha256` where the weights are split over several files.

    Of a sentence-transformers directory those of its first module are meant, wherever they lie.
    """
    files = sorted((directory / first_module(directory)[1]).glob("*.safetensors"))
    if not files:
        raise LeafError(
            f"{directory.name}: holds no *.safetensors; weights in other formats are not loaded, as they can run code "
            "(transformers converts them: `AutoModel.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)`)"
        )
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{file.name} {sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def check_sha256(directory: Path, expected: str | None, name: str) -> str:
    """Return the digest of the weights; LeafError as `check_digest`."""
    digest = weights_sha256(directory)
    check_digest(digest, expected, name)
    return digest


def check_digest(digest: str, expected: str | None, name: str) -> None:
    """LeafError if `expected` is given and differs from the weights' digest. `name` is the parameter's."""
    if expected is not None and digest != expected.lower():
        raise LeafError(
            f"{name}: the weights have SHA-256 {digest}, but the parameters want {expected}; "
            "do not trust them, or correct the parameter if you meant to change models"
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
    with _load_errors(f"model `{name}`: cannot be loaded as a sentence-transformers model"), _whole_checkpoints(name):
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
    with _load_errors(f"{called}: cannot be loaded"), _new_weights() if random else _whole_checkpoints(name, called):
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
        lines += [f"{file.relative_to(place).as_posix()} {sha256(file)}" for file in files]
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
def _load_errors(message: str) -> Iterator[None]:
    try:
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
        model, report = original(cls, *args, **{**kwargs, "output_loading_info": True})
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
    return _loading_by(lambda original, cls, *args, config, **kwargs: cls._from_config(config, dtype=LOADING["dtype"]))


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
