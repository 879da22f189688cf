"""A saved model in the form that sentence-transformers 4 and 5 read too: names of modules, their settings.

Version 6 reads these names as well. Tokenizers keep their class's name where transformers 4 knows it. What the older
versions cannot compute is left in the newer form, which they refuse.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pipeline.model.pooling import poolings_of
from pipeline.params import Pooling

MODULES = "sentence_transformers.models"
POOLING_KEYS: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
DENSE_KEYS = ("in_features", "out_features", "bias", "activation_function")


def write_older_form(directory: Path, modules: Sequence[Any]) -> None:
    """Rewrite the settings of a directory to which sentence-transformers has just saved these modules."""
    file = directory / "modules.json"
    listed = _read(file)
    for entry, module in zip(listed, modules, strict=True):
        if type(module).__name__ == "StaticEmbedding" and not entry["path"]:
            entry["path"] = _in_its_own_directory(directory)
        entry["type"] = _rewritten(directory / entry["path"], module)
    _write(file, listed)


def _in_its_own_directory(directory: Path) -> str:
    """Move a StaticEmbedding from the top, where version 4 looks for nothing but a Transformer; returns its path."""
    path = "0_StaticEmbedding"
    (directory / path).mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (directory / name).rename(directory / path / name)
    return path


def _rewritten(place: Path, module: Any) -> str:
    """Rewrite the settings of one module, and return the name by which all versions know its class."""
    own, kind = type(module).__module__, type(module).__name__
    if not own.startswith("sentence_transformers."):
        return f"{own}.{kind}"
    if rewrite := {"Transformer": _transformer, "Pooling": _pooling, "Dense": _dense, "Router": _router}.get(kind):
        rewrite(place, module)
    return f"{MODULES}.{kind}"


def _transformer(place: Path, module: Any) -> None:
    file = place / "sentence_bert_config.json"
    if module.modalities == ["text"]:
        _write(file, {"max_seq_length": module.max_seq_length, "do_lower_case": module.do_lower_case})
    _rename_tokenizer(place / "tokenizer_config.json", module.tokenizer.model_input_names)


def _pooling(place: Path, module: Any) -> None:
    """The older keys are switches, whose vectors stand in a fixed order; others are left in the newer form."""
    modes = poolings_of(module)
    if [mode for mode in get_args(Pooling) if mode in modes] == list(modes):
        _write(place / "config.json", pooling_settings(module.embedding_dimension, modes, module.include_prompt))


def pooling_settings(width: int, modes: Sequence[Pooling], include_prompt: bool = True) -> dict[str, Any]:
    """The config.json of a Pooling over states of `width` in the older keys."""
    switches = {key: mode in modes for mode, key in POOLING_KEYS.items()}
    return {"word_embedding_dimension": width, **switches, "include_prompt": include_prompt}


def _dense(place: Path, module: Any) -> None:
    """A Dense that maps other vectors than a text's, or adds them to its own, is left in the newer form."""
    if module.module_input_name == module.module_output_name == "sentence_embedding" and not module.use_residual:
        settings = module.get_config_dict()
        _write(place / "config.json", {key: settings[key] for key in DENSE_KEYS})


def _router(place: Path, module: Any) -> None:
    """A Router's modules lie in directories of its own; each is known by the first route and place it stands at."""
    file = place / "router_config.json"
    settings = _read(file)
    for route, names in settings["structure"].items():
        for name, part in zip(names, module.sub_modules[route], strict=True):
            settings["types"][name] = _rewritten(place / name, part)
    if not settings["parameters"].get("route_mappings"):
        settings["parameters"].pop("route_mappings", None)  # which version 5 does not know
    _write(file, settings)


def _rename_tokenizer(file: Path, inputs: Sequence[str]) -> None:
    """transformers 5 calls a tokenizer that is all in tokenizer.json by a name that version 4 does not know.

    By the name that it knows, version 4 would give every model token types, unless `inputs` says which it takes.
    """
    settings = _read(file)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        known = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": list(inputs)}
        _write(file, settings | known)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, settings: Any) -> None:
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
