"""The layers and the dropout of any transformers model, found by what its modules and its configuration hold."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.base import LeafError

PLACES = ("layer_idx", "layer_id", "layer_index", "seed")  # the last in BigBird
"""Attributes by which a layer knows its place ..."""
COUNTS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")
"""... and by which a model knows how many it has."""


def keep_layers(model: Any, layers: Sequence[int]) -> None:
    """Drop all layers of a transformers model but these, given by number from 0, in ascending order.

    Raises:
        LeafError: the layers are not one list, or the model would no longer be what its configuration describes, so
            that it could not be saved: the first layer of some families (ModernBERT, T5) is unlike the others.
    """
    config, count = model.config, int(model.config.num_hidden_layers)
    if getattr(config, "num_hidden_groups", None) == 1:  # ALBERT runs one layer again and again
        config.num_hidden_layers = len(layers)
        return
    lists = layer_lists(model, count)
    if len(lists) != 1:
        raise LeafError(f"fit.student.layers: the layers of {config.model_type} models cannot be cut; leave it out")
    kept = [lists[0][number] for number in layers]
    del lists[0][:]
    lists[0].extend(kept)
    _renumber(model, lists[0])
    for configuration in {id(c): c for c in _configurations(model)}.values():
        _cut_configuration(configuration, count, layers)
    if differing := _unlike_its_configuration(model):
        raise LeafError(
            f"fit.student.layers: {list(layers)} cannot be kept of a {config.model_type} model: its layers are not all "
            f"alike (`{differing}` differs); name others, from 0 on, or leave it out"
        )


def layer_lists(model: nn.Module, count: int) -> list[nn.ModuleList]:
    """The lists of so many modules in a transformers model: if there is one, it is that of its layers."""
    return [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]


def _configurations(model: Any) -> Iterator[Any]:
    return (module.config for module in model.modules() if hasattr(module, "config"))


def _cut_configuration(config: Any, count: int, layers: Sequence[int]) -> None:
    """The number of layers, and every list with an entry for each."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count and count > 1:
            setattr(config, name, type(value)(value[number] for number in layers))
    config.num_hidden_layers = len(layers)


def _renumber(model: nn.Module, layers: nn.ModuleList) -> None:
    places = {module: place for place, layer in enumerate(layers) for module in layer.modules()}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in PLACES and isinstance(value, int):
                setattr(module, name, places[module])
            elif name in COUNTS:
                setattr(module, name, len(layers))


def _unlike_its_configuration(model: Any) -> str | None:
    """The first module or weight that is not as a new model of the same configuration has it; None if all are."""
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        fresh = type(model)(type(config).from_dict(config.to_dict()))
    expected, found = _description(fresh), _description(model)
    return next((name for name in [*found, *expected] if found.get(name) != expected.get(name)), None)


def _description(model: nn.Module) -> dict[str, object]:
    """Class, numbers and words of each module, shapes of its weights."""
    description: dict[str, object] = {name: value.shape for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str)}
        description[f"{name}."] = (type(module), {k: v for k, v in plain.items() if k != "training" and k[0] != "_"})
    return description


def set_dropout(model: nn.Module, share: float) -> None:
    """Use this dropout wherever a transformers model drops out in training, and say so in its configuration."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        for name in _dropouts(module):
            setattr(module, name, share)
    for config in _configurations(model):
        for name in _dropouts(config):
            setattr(config, name, share)


def _dropouts(owner: Any) -> list[str]:
    """Attributes that hold a share of dropout; those of heads for other tasks, which a backbone lacks, are left."""
    return [
        name
        for name, value in vars(owner).items()
        if type(value) in (int, float) and ("dropout" in name or name.endswith("pdrop"))
        if not name.startswith(("classifier", "summary"))
    ]
