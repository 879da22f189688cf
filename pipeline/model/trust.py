"""What the files of a pretrained model may ask for: settings by a list, and memory by the size of its weights.

A model's configuration reaches the loaders of transformers as keyword arguments. Some of these load kernels, which are
native code, from a hub; others choose sizes that no weight stands behind.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.base import LeafError, quoted
from pipeline.model.model_settings import settings

# Read when transformers is imported: no kernel is fetched from a hub, whatever a model or its family asks for.
os.environ["USE_HUB_KERNELS"] = "NO"

SETTINGS_FILES = ("sentence_bert_config.json", *(f"sentence_{name}_config.json" for name in (
    "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"
)))  # fmt: skip
"""Files in which versions of sentence-transformers keep the settings of the module Transformer; the first counts."""
_FOR_MODEL = frozenset(
    # The types of numbers and the attention are this program's choice: what is asked for there is passed over.
    "dtype torch_dtype attn_implementation use_safetensors add_pooling_layer "
    "unpad_inputs use_memory_efficient_attention rotary_scaling_factor".split()
)
_FOR_TOKENIZER = frozenset(
    "model_max_length max_length padding_side truncation_side padding use_fast legacy fix_mistral_regex "
    "add_prefix_space add_bos_token add_eos_token clean_up_tokenization_spaces split_special_tokens do_lower_case "
    "strip_accents tokenize_chinese_chars bos_token eos_token unk_token sep_token cls_token pad_token mask_token "
    "chat_template min_pixels max_pixels".split()
)
_FOR_CONFIGURATION = frozenset("use_cache is_causal is_decoder num_labels hidden_act".split()) | _FOR_MODEL
ALLOWED = {
    "model_kwargs": _FOR_MODEL,
    "model_args": _FOR_MODEL,
    "processor_kwargs": _FOR_TOKENIZER,
    "tokenizer_args": _FOR_TOKENIZER,
    "config_kwargs": _FOR_CONFIGURATION,
    "config_args": _FOR_CONFIGURATION,
}
"""Settings that a model's files may pass on to transformers, under the names of several versions."""
_REPEATED = ("layers", "layer", "blocks", "block", "depth", "depths", "labels", "experts", "groups", "codebooks")
MOST_REPEATED = 10_000
"""Layers, labels and the like: lists of this length are made before any weight is compared with them."""
MOST_TENSORS = 100_000
SPARE_NUMBERS = 1 << 24
"""Parameters that no weight need stand behind: those of poolers and of new layers."""
MOST_RANDOM = 1 << 30
"""Parameters of a model that begins at random: 4 GiB."""


def check_requests(places: Iterable[Path], called: str) -> None:
    """Refuse a model whose files ask its loaders for more than ALLOWED, for quantisation, or for absurd sizes.

    `places` are the directories of its files.

    Raises:
        LeafError: names the file and the setting; `called` begins the message.
    """
    for place in places:
        for name in SETTINGS_FILES:
            for file in place.rglob(name):
                _check_arguments(file, called)
        for file in place.rglob("config.json"):
            _check_configuration(file, called)


def _check_arguments(file: Path, called: str) -> None:
    content = settings(file)
    for group, allowed in ALLOWED.items():
        arguments = content.get(group) or {}
        if not isinstance(arguments, dict):
            raise LeafError(f"{called}: {file.name}: `{group}` must map settings to values; do not trust it")
        if unknown := sorted(set(arguments) - allowed - {"trust_remote_code"}):  # which the library passes over
            raise LeafError(
                f"{called}: {file.name}: `{group}` asks for `{unknown[0]:.60}`, which a model's files may not choose "
                "here; remove it there if you know what it does, or use another model"
            )


def _check_configuration(file: Path, called: str) -> None:
    for name, value in _nested(settings(file)):
        if name == "quantization_config" and value:
            raise LeafError(
                f"{called}: {file.name}: its weights are quantised, which needs code from elsewhere; get the model in "
                "float32, float16 or bfloat16"
            )
        counts = value if isinstance(value, list) else [value]
        repeated = name.rpartition("_")[2] in _REPEATED
        if repeated and any(isinstance(count, int | float) and count > MOST_REPEATED for count in counts):
            raise LeafError(f"{called}: {file.name}: `{name}` is {quoted(value, 40)}: no model has so many; refused")


def _nested(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All settings, those of parts of a model among them."""
    for name, value in content.items():
        yield name, value
        if isinstance(value, dict):
            yield from _nested(value)


def stored_numbers(places: Iterable[Path]) -> int:
    """The most numbers that the weights of a model in these directories can hold: one in a byte."""
    files = {file for place in places for pattern in ("*.safetensors", "*.bin") for file in place.rglob(pattern)}
    return sum(file.stat().st_size for file in files)


@contextmanager
def limited_size(numbers: int, called: str) -> Iterator[None]:
    """Refuse, within the block, to build a model of more parameters than `numbers` and SPARE_NUMBERS.

    They are counted as each is registered: transformers builds a model without memory first, and PyTorch's layers ask
    for theirs without touching it. Of other threads nothing is counted.

    Raises:
        LeafError: the model is larger; `called` begins the message.
    """
    thread, limit = threading.get_ident(), numbers + SPARE_NUMBERS
    seen: dict[tuple[int, str], int] = {}
    total = 0

    def count(module: torch.nn.Module, name: str, tensor: Any) -> None:
        if threading.get_ident() != thread or not isinstance(tensor, torch.Tensor):
            return
        nonlocal total
        total += tensor.numel() - seen.get((id(module), name), 0)
        seen[id(module), name] = tensor.numel()
        if total > limit or len(seen) > MOST_TENSORS:
            raise LeafError(
                f"{called}: its configuration names a model of more than {limit:,} parameters, but its weights are of "
                f"{numbers:,} bytes: one of the two is damaged or forged"
            )

    register = torch.nn.modules.module
    hooks = [
        register.register_module_parameter_registration_hook(count),
        register.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
