"""How deep each weight of a student lies, and weights that do not train."""

from torch import nn

from pipeline.base import LeafError
from pipeline.model.backbones.backbone import Backbone
from pipeline.model.backbones.layers import layer_lists
from pipeline.model.student import Student


def weight_depths(student: Student) -> dict[str, float]:
    """The depth of every weight by its name in `state_dict`, 0 for the first layer and 1 for the last and the head.

    What stands before the layers (embeddings) has the depth 0, and what stands behind them 1. A backbone of one layer
    or none has the depth 0.

    Raises:
        LeafError: the family's layers cannot be told apart.
    """
    layers = _layers(student.backbone, "fit.start_share_first")
    place = {id(weight): number for number, layer in enumerate(layers) for weight in layer.parameters()}
    depths, reached, last = {}, False, max(1, len(layers) - 1)
    for name, weight in student.state_dict(keep_vars=True).items():
        reached = reached or id(weight) in place
        outside = float(name.startswith("head.") or (reached and len(layers) > 1))
        depths[name] = place[id(weight)] / last if id(weight) in place else outside
    return depths


def freeze(student: Student, count: int) -> None:
    """Keep the weights of the backbone as they are, but for those of the layers behind the first `count`.

    Raises:
        LeafError: there are not so many layers, or none would train, or the family's layers cannot be told apart.
    """
    layers = _layers(student.backbone, "fit.frozen_layers")
    if count >= len(layers):
        raise LeafError(f"fit.frozen_layers: {count} is impossible; the student has {len(layers)} layers: name fewer")
    trained = {id(weight) for layer in layers[count:] for weight in layer.parameters()}
    for weight in student.backbone.parameters():
        if id(weight) not in trained:
            weight.requires_grad_(False)


def _layers(backbone: Backbone, parameter: str) -> list[nn.Module]:
    if not backbone.layers:
        return []
    found = layer_lists(backbone.model, backbone.layers)
    if len(found) != 1:
        raise LeafError(f"{parameter}: the layers of {backbone.model_type} models cannot be told apart; leave it out")
    return list(found[0])
