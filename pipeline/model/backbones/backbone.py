"""The seam Backbone: how the features of a transformers model are computed, with gradients and for inference."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.model.batch import Batch

Pooling = Literal["mean", "cls"]


class CompiledBackbone(Protocol):
    """A backbone laid out for inference on its device. Its weights are copies: later training does not reach them."""

    device: torch.device

    def __call__(self, batch: Batch) -> Tensor:
        """Pooled features `[texts, width]` float32, in the order given to `pack`."""


class Backbone(nn.Module, ABC):
    """A transformers model and the computation of one feature vector per text from it."""

    scope: ClassVar[str]
    """The models that it can run, for messages."""
    takes_padding: ClassVar[bool] = False
    """Whether `features` also takes texts padded to one length (`Batch.lengths`), without waiting for the device."""

    def __init__(self, model: Any, pooling: Pooling = "mean") -> None:
        """`model` is a transformers model that `supports` accepts; its parameters become those of the backbone."""
        super().__init__()
        self.model = model
        self.pooling = pooling

    @classmethod
    @abstractmethod
    def supports(cls, model: Any) -> bool:
        """Whether this class computes what the transformers model itself would compute."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Dimension of the features."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of transformer layers."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Most tokens of a text, special tokens included, that the model has positions for."""

    @property
    @abstractmethod
    def token_embeddings(self) -> nn.Embedding:
        """The table of token embeddings; a training batch touches few of its rows."""

    @abstractmethod
    def keep_layers(self, layers: Sequence[int]) -> None:
        """Drop all layers but these, given by number from 0, in ascending order."""

    @abstractmethod
    def set_dropout(self, share: float) -> None:
        """Use this dropout wherever the model drops out in training."""

    @abstractmethod
    def features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pooled features `[texts, width]` float32, in the order given to `pack`, with gradients.

        Computed in `dtype` from the float32 parameters; dropout only while `training`.
        """

    @abstractmethod
    def compiled(self, token_budget: int) -> CompiledBackbone:
        """The same for inference, in bfloat16 where the device is fast at it; `token_budget` is a batch's usual size.

        Puts the model into evaluation mode.
        """
