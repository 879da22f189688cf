"""A static backbone: a table of token vectors. A text's features are the mean of its tokens' rows, in whatever order.

It is saved as sentence-transformers' StaticEmbedding, which reads a text without special tokens. The table starts from
a checkpoint's vectors of its tokens, each computed as a text of its own (as Model2Vec does,
https://github.com/MinishLab/model2vec), so that it begins with what the checkpoint knows of words.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pipeline.base import LeafError
from pipeline.model.backbones.backbone import Backbone
from pipeline.model.batch import Batch, pack, token_batches
from pipeline.model.pooling import Pooling, pooled

UNLIMITED = 1 << 30  # tokens of a text, where no truncation is set
TABLE_TOKENS = 8192  # tokens computed at once while a table is made


class StaticBackbone(Backbone):
    """A table of token vectors and the tokenizer that names its rows."""

    scope = "tables of token vectors"

    def __init__(self, table: nn.Embedding, tokenizer: Tokenizer) -> None:
        """`tokenizer` adds no special tokens; where it cuts texts, it is saved so."""
        super().__init__(nn.ModuleDict({"embedding": table}))
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.post_processor = None  # type: ignore[assignment, unused-ignore]
        self._tokenizer.no_padding()

    @classmethod
    def supports(cls, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> bool:
        """No transformers model: `from_backbone` makes a static one of it."""
        return False

    @classmethod
    def from_backbone(cls, backbone: Backbone) -> "StaticBackbone":
        """The table of a checkpoint's own vectors of its tokens, and its tokenizer with its most length."""
        tokenizer = backbone.tokenizer()
        rows = backbone.token_embeddings.num_embeddings
        texts = [_alone(tokenizer, number) for number in range(rows)]
        vectors = torch.empty(rows, backbone.width)
        compiled = backbone.compiled(TABLE_TOKENS)
        for batch in token_batches(torch.tensor([len(text) for text in texts]).numpy(), TABLE_TOKENS):
            vectors[torch.from_numpy(batch)] = compiled(pack([texts[row] for row in batch])).float().cpu()
        static = cls(_table(vectors), tokenizer)
        static.max_length = backbone.max_length
        return static

    @classmethod
    def from_module(cls, module: Any) -> "StaticBackbone":
        """The backbone that a StaticEmbedding of sentence-transformers is."""
        return cls(_table(module.embedding.weight.detach().float()), module.tokenizer)

    @property
    def model_type(self) -> str:
        """See `Backbone.model_type`."""
        return "static"

    @property
    def hidden_size(self) -> int:
        """See `Backbone.hidden_size`."""
        return int(self.token_embeddings.embedding_dim)

    @property
    def layers(self) -> int:
        """None: 0."""
        return 0

    @property
    def max_tokens(self) -> int:
        """See `Backbone.max_tokens`; nothing limits a mean."""
        return UNLIMITED

    @property
    def max_length(self) -> int:
        """See `Backbone.max_length`."""
        truncation: Any = self._tokenizer.truncation
        return int(truncation["max_length"]) if truncation else UNLIMITED

    @max_length.setter
    def max_length(self, tokens: int) -> None:
        self._tokenizer.enable_truncation(tokens)

    @property
    def needs(self) -> str:
        """See `Backbone.needs`."""
        return "sentence-transformers 5 or later"

    @property
    def token_embeddings(self) -> nn.Embedding:
        """See `Backbone.token_embeddings`."""
        table: Any = self.model.embedding
        assert isinstance(table, nn.Embedding)
        return table

    def keep_layers(self, layers: Sequence[int]) -> None:
        """There are none: LeafError."""
        raise LeafError("fit.student.layers: a static student has no layers; leave it out")

    def set_dropout(self, share: float) -> None:
        """Nothing: a table drops out nothing."""

    def tokenizer(self) -> Tokenizer:
        """See `Backbone.tokenizer`; it adds no special tokens."""
        return Tokenizer.from_str(self._tokenizer.to_str())

    def features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Backbone.features`; in float32, as there is nothing to multiply."""
        rows = self.token_embeddings(batch.ids)
        blocks, start = [], 0
        for count, length in batch.length_groups:
            blocks.append(rows[start : start + count * length].view(count, length, -1))
            start += count * length
        return pooled(blocks, batch.order, self.pooling)

    def compiled(self, token_budget: int) -> "CompiledStatic":
        """See `Backbone.compiled`."""
        return CompiledStatic(copy.deepcopy(self).eval())

    def padded_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `Backbone.padded_states`."""
        states: Tensor = self.token_embeddings(ids)
        return states

    def sentence_modules(self) -> list[nn.Module]:
        """See `Backbone.sentence_modules`."""
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        weight = self.token_embeddings.weight.detach().cpu().clone()
        return [StaticEmbedding(self.tokenizer(), embedding_weights=weight)]


def _table(vectors: Tensor) -> nn.Embedding:
    rows, width = vectors.shape
    return nn.Embedding(rows, width, _weight=vectors.clone())


def _alone(tokenizer: Tokenizer, number: int) -> list[int]:
    """A token's id among the special tokens that the tokenizer puts around a text."""
    encoding = tokenizer.encode("a")
    first = [place for place, special in enumerate(encoding.special_tokens_mask) if not special] or [0]
    return [*encoding.ids[: first[0]], number, *encoding.ids[first[-1] + 1 :]]


class CompiledStatic:
    """A static backbone for inference."""

    def __init__(self, backbone: StaticBackbone) -> None:
        """`backbone` is a copy that nobody trains."""
        self.backbone = backbone
        self.device = backbone.token_embeddings.weight.device

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """See `CompiledBackbone.__call__`."""
        return self.backbone.features(batch.to(self.device))
