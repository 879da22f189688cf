"""The list of backbones, from which the first that supports a model is taken."""

from typing import Any

from pipeline.base import LeafError
from pipeline.model.backbones.backbone import Backbone, Pooling
from pipeline.model.backbones.packed import PackedBackbone

BACKBONES: list[type[Backbone]] = [PackedBackbone]


def find_backbone(model: Any) -> type[Backbone] | None:
    """The class that can run a transformers model; None if none can."""
    return next((kind for kind in BACKBONES if kind.supports(model)), None)


def backbone_for(model: Any, pooling: Pooling = "mean") -> Backbone:
    """The backbone of a transformers model; LeafError if no class supports it."""
    if kind := find_backbone(model):
        return kind(model, pooling)
    supported = "; ".join(kind.scope for kind in BACKBONES)
    raise LeafError(f"backbone of type `{model.config.model_type}` cannot be run: supported are {supported}")
