"""The seam Backbone: how the features of a transformers model are computed, with gradients and for inference."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pipeline.base import LeafError
from pipeline.model.batch import Batch
from pipeline.model.pooling import Pooling

NEWER_SETTINGS = ("rope_parameters", "layer_types")
"""What transformers 5 writes into a configuration and version 4 passes over without a word."""


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
    """Whether `features` also takes texts padded to one length (`Batch.lengths`), and does the same work for all such
    batches of one shape, without waiting for the device: steps that can be recorded are made of that."""
    shortest: ClassVar[int] = 1
    """Fewest tokens of a text."""
    causal = False
    """Whether no token's hidden state depends on the tokens behind it, as in decoders."""

    def __init__(self, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> None:
        """`model` is a transformers model that `supports` accepts; its parameters become those of the backbone.

        `pooling` are the ways in which a text's tokens become one vector each, side by side. `transformer` is the
        sentence-transformers module that the model is part of, with its tokenizer; None where features are all that
        is asked for.
        """
        super().__init__()
        self.model = model
        self.pooling = tuple(pooling)
        self._transformer = [transformer]  # in a list, so that its parameters are not registered a second time

    @classmethod
    @abstractmethod
    def supports(cls, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> bool:
        """Whether this class computes what the transformers model would; the parameters are those of `__init__`."""

    @property
    def model_type(self) -> str:
        """The family's name in transformers, for messages."""
        return str(self.model.config.model_type)

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Dimension of a token's hidden state."""

    @property
    def width(self) -> int:
        """Dimension of the features."""
        return self.hidden_size * len(self.pooling)

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

    def features_at(self, batch: Batch, dtype: torch.dtype, depths: Sequence[int]) -> list[Tensor]:
        """`features` as they are behind each of these numbers of layers, ascending, computed in one pass.

        Raises:
            LeafError: the backbone cannot do that.
        """
        raise LeafError(f"fit.assistants.depths: must be left out with a backbone of type `{self.model_type}`")

    @abstractmethod
    def compiled(self, token_budget: int) -> CompiledBackbone:
        """The same for inference, in bfloat16 where the device is fast at it; `token_budget` is a batch's usual size.

        Puts the model into evaluation mode.
        """

    def padded_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states `[texts, tokens, hidden_size]` of texts that are padded on the right.

        `ids` and `mask` (1 for a text's tokens, 0 behind them) are `[texts, tokens]` int64. In operations that can be
        traced for any number of texts and tokens, because exported graphs compute it.
        """
        states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    @property
    def max_length(self) -> int:
        """Most tokens of a text that are read, special tokens included."""
        return int(min(self._transformer[0].max_seq_length or self.max_tokens, self.max_tokens))

    @max_length.setter
    def max_length(self, tokens: int) -> None:
        self._transformer[0].max_seq_length = tokens

    @property
    def needs(self) -> str:
        """The libraries that load the saved modules as they were, in words."""
        config = self.model.config.to_dict()
        newer = any(config.get(name) for name in NEWER_SETTINGS)
        return "sentence-transformers 4 or later" + " with transformers 5 or later" * newer

    def tokenizer(self) -> Tokenizer:
        """A copy of the tokenizer that cuts at `max_length` and does not pad."""
        tokenizer = Tokenizer.from_str(self._transformer[0].tokenizer.backend_tokenizer.to_str())
        tokenizer.enable_truncation(self.max_length, direction=self._transformer[0].tokenizer.truncation_side)
        tokenizer.no_padding()
        return tokenizer

    @property
    def special_tokens(self) -> dict[str, str]:
        """The tokenizer's special tokens by what they are for, as transformers names that; always `pad_token`."""
        return dict(self._transformer[0].tokenizer.special_tokens_map)

    def sentence_modules(self) -> list[nn.Module]:
        """Copies, on the CPU, of the sentence-transformers modules that compute the features from a text."""
        from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

        transformer: nn.Module = copy.deepcopy(self._transformer[0]).cpu()
        return [transformer, PoolingModule(self.hidden_size, pooling_mode=list(self.pooling))]
