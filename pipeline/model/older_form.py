"""A saved student in the form that sentence-transformers 5 reads too: names of modules, pooling and settings.

Version 6 reads these names as well. Tokenizers keep their class's name where transformers 4 knows it.
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


def write_older_form(directory: Path, modules: list[Any]) -> None:
    """Rewrite the settings of a directory to which sentence-transformers has just saved these modules."""
    listed = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    for entry, module in zip(listed, modules, strict=True):
        kind = type(module).__name__
        entry["type"] = f"{MODULES}.{kind}"
        place = directory / entry["path"]
        if kind == "Transformer":
            limits = {"max_seq_length": module.max_seq_length, "do_lower_case": module.do_lower_case}
            _write(place / "sentence_bert_config.json", limits)
            _rename_tokenizer(place / "tokenizer_config.json", module.tokenizer.model_input_names)
        elif kind == "Pooling":
            _write(place / "config.json", _pooling(module))
        elif kind == "Dense":
            settings = module.get_config_dict()
            _write(place / "config.json", {key: settings[key] for key in DENSE_KEYS})
    _write(directory / "modules.json", listed)


def _pooling(module: Any) -> dict[str, Any]:
    """The older keys are switches, whose vectors stand in a fixed order; others are left in the newer form."""
    modes = poolings_of(module)
    if [mode for mode in get_args(Pooling) if mode in modes] != list(modes):
        settings: dict[str, Any] = module.get_config_dict()
        return settings
    return pooling_settings(module.embedding_dimension, modes, module.include_prompt)


def pooling_settings(width: int, modes: Sequence[Pooling], include_prompt: bool = True) -> dict[str, Any]:
    """The config.json of a Pooling over states of `width` in the older keys."""
    switches = {key: mode in modes for mode, key in POOLING_KEYS.items()}
    return {"word_embedding_dimension": width, **switches, "include_prompt": include_prompt}


def _rename_tokenizer(file: Path, inputs: list[str]) -> None:
    """transformers 5 calls a tokenizer that is all in tokenizer.json by a name that version 4 does not know.

    By the name that it knows, version 4 would give every model token types, unless `inputs` says which it takes.
    """
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        known = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": list(inputs)}
        _write(file, settings | known)


def _write(file: Path, settings: Any) -> None:
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
