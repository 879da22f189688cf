"""A table of token vectors and nothing else: a text's features are the mean of its tokens' vectors.

No special tokens are added to a text: they would add the same to all. A text without tokens has features of zero. It is
saved as the StaticEmbedding of sentence-transformers, which computes the same.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pipeline.base import LeafError
from pipeline.model.backbones.backbone import Backbone
from pipeline.model.backbones.padded import UNLIMITED
from pipeline.model.batch import Batch, pack
from pipeline.model.device import best_device, traits_of
from pipeline.model.pooling import Pooling

SIF = 1e-3
"""The share of all tokens at which a token counts half as much as a rare one."""


class StaticBackbone(Backbone):
    """A table of token vectors."""

    scope = "tables of token vectors"
    shortest = 0

    def __init__(self, tokenizer: Tokenizer, table: Tensor, max_length: int) -> None:
        """`table` [tokens, width] float32 has a row for each id of `tokenizer`; of a text, `max_length` are read."""
        super().__init__(nn.Embedding(table.shape[0], table.shape[1], _weight=table.clone()))
        self._tokenizer, self._max_length = _without_special_tokens(tokenizer), max_length

    @classmethod
    def of_module(cls, module: Any) -> "StaticBackbone":
        """That of a StaticEmbedding of sentence-transformers."""
        limit = (module.tokenizer.truncation or {}).get("max_length", UNLIMITED)
        return cls(module.tokenizer, module.embedding.weight.detach(), limit)

    @classmethod
    def of_transformer(cls, backbone: Backbone, tokenizer: Any) -> "StaticBackbone":
        """From the vectors of a transformer's tokens, each as a text of its own; `tokenizer` is of transformers."""
        table = token_vectors(backbone, tokenizer.backend_tokenizer)
        return cls(tokenizer.backend_tokenizer, table, backbone.max_length)

    def weigh(self, counts: np.ndarray) -> None:
        """Make frequent tokens count less: a vector is scaled by a / (a + the token's share of all tokens).

        That is smooth inverse frequency (SIF: Arora, Liang and Ma, ICLR 2017). `counts` [ids] are the tokens' own in a
        corpus; ids behind the last that occurs may be left out.
        """
        counts = np.pad(counts, (0, self.token_embeddings.num_embeddings - len(counts)))
        weights = SIF / (SIF + torch.from_numpy(counts / max(1, counts.sum())).float())
        with torch.no_grad():
            self.token_embeddings.weight.mul_(weights[:, None])

    @classmethod
    def supports(cls, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> bool:
        """See `Backbone.supports`; a table is no transformers model, and is asked for by name."""
        return False

    @property
    def model_type(self) -> str:
        """See `Backbone.model_type`."""
        return "static"

    @property
    def hidden_size(self) -> int:
        """See `Backbone.hidden_size`."""
        return self.token_embeddings.embedding_dim

    @property
    def layers(self) -> int:
        """None."""
        return 0

    @property
    def max_tokens(self) -> int:
        """See `Backbone.max_tokens`."""
        return UNLIMITED

    @property
    def token_embeddings(self) -> nn.Embedding:
        """See `Backbone.token_embeddings`."""
        table: nn.Embedding = self.model
        return table

    def keep_layers(self, layers: Sequence[int]) -> None:
        """Refused."""
        raise LeafError("a table of token vectors has no layers to keep")

    def set_dropout(self, share: float) -> None:
        """There is nothing to drop out."""

    def features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Backbone.features`; in float32 whatever `dtype`, as there is no product to speed up."""
        return _means(batch, self.model.weight, self.model.sparse)

    def compiled(self, token_budget: int) -> "CompiledStatic":
        """See `Backbone.compiled`."""
        return CompiledStatic(self.model.weight.detach().clone())

    @property
    def max_length(self) -> int:
        """See `Backbone.max_length`."""
        return self._max_length

    @max_length.setter
    def max_length(self, tokens: int) -> None:
        self._max_length = tokens

    @property
    def needs(self) -> str:
        """See `Backbone.needs`."""
        return "sentence-transformers 4 or later"

    def tokenizer(self) -> Tokenizer:
        """See `Backbone.tokenizer`."""
        tokenizer = copy.deepcopy(self._tokenizer)
        if self.max_length < UNLIMITED:
            tokenizer.enable_truncation(self.max_length)
        return tokenizer

    @property
    def special_tokens(self) -> dict[str, str]:
        """See `Backbone.special_tokens`; what padding is does not matter, as it is masked."""
        added = (str(token) for token in self._tokenizer.get_added_tokens_decoder().values() if token.special)
        return {"pad_token": str(next(added, None) or self._tokenizer.id_to_token(0))}

    def padded_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `Backbone.padded_states`."""
        states: Tensor = self.token_embeddings(ids)
        return states

    def sentence_modules(self) -> list[nn.Module]:
        """See `Backbone.sentence_modules`."""
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        return [StaticEmbedding(self.tokenizer(), embedding_weights=self.model.weight.detach().cpu().clone())]


class CompiledStatic:
    """A copy of a table."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.device = table, table.device

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """See `CompiledBackbone.__call__`."""
        return _means(batch.to(self.device), self.table)


def token_vectors(backbone: Backbone, tokenizer: Tokenizer) -> Tensor:
    """The features `[tokens, width]` float32 of every token of a transformer as a text of its own, on the CPU."""
    encoding = tokenizer.encode("a")
    special = [number for number, mask in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if mask]
    words = [place for place, mask in enumerate(encoding.special_tokens_mask) if not mask] or [0]
    before, after = special[: words[0]], special[words[0] :]
    rows = backbone.token_embeddings.num_embeddings
    device = best_device()
    budget = traits_of(device).encode_tokens
    compiled = backbone.to(device).compiled(budget)
    step = budget // (len(special) + 1)
    table = torch.empty(rows, backbone.width)
    with tqdm(total=rows, desc="token vectors", unit="token", unit_scale=True) as bar:
        for start in range(0, rows, step):
            ids = range(start, min(start + step, rows))
            table[ids.start : ids.stop] = compiled(pack([[*before, number, *after] for number in ids])).cpu()
            bar.update(len(ids))
    return table


def _means(batch: Batch, table: Tensor, sparse: bool = False) -> Tensor:
    counts, each = torch.tensor(batch.length_groups, device=table.device).unbind(1)
    lengths = each.repeat_interleave(counts)
    ids = batch.ids[: sum(count * length for count, length in batch.length_groups)]
    offsets = lengths.cumsum(0) - lengths
    return functional.embedding_bag(ids, table, offsets, mode="mean", sparse=sparse)[batch.order]


def _without_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither adds special tokens nor cuts nor pads."""
    state = json.loads(tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(state | {"post_processor": None, "truncation": None, "padding": None}))
