"""The list of backbones, from which the first that supports a model is taken."""

from collections.abc import Sequence
from typing import Any

from pipeline.base import LeafError
from pipeline.model.backbones.backbone import Backbone
from pipeline.model.backbones.packed import PackedBackbone
from pipeline.model.backbones.padded import PaddedBackbone
from pipeline.model.backbones.static import StaticBackbone
from pipeline.model.pooling import Pooling, poolings_of

BACKBONES: list[type[Backbone]] = [PackedBackbone, PaddedBackbone]


def find_backbone(model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> type[Backbone] | None:
    """The class that can run a transformers model (see `Backbone`); None if none can."""
    return next((kind for kind in BACKBONES if kind.supports(model, pooling, transformer)), None)


def backbone_for(model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> Backbone:
    """The backbone of a transformers model (see `Backbone`); LeafError if no class supports it."""
    if kind := find_backbone(model, pooling, transformer):
        return kind(model, pooling, transformer)
    supported = "; ".join(kind.scope for kind in BACKBONES)
    raise LeafError(f"backbone of type `{model.config.model_type}` cannot be run: supported are {supported}")


def backbone_of_modules(modules: Sequence[Any]) -> tuple[Backbone, list[Any]]:
    """The backbone that the first modules of a saved sentence-transformers model are, and the modules behind it.

    Raises:
        LeafError: no class supports them.
    """
    kinds = [type(module).__name__ for module in modules]
    if kinds[:1] == ["StaticEmbedding"]:
        return StaticBackbone.of_module(modules[0]), list(modules[1:])
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise LeafError(f"its modules are {', '.join(kinds)}")
    return backbone_for(modules[0].auto_model, poolings_of(modules[1]), modules[0]), list(modules[2:])
