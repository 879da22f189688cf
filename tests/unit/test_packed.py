"""The forward pass without padding gives what transformers' own padded one gives."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import nn
from transformers import AutoConfig, AutoModel

from pipeline import serve
from pipeline.base.errors import LeafError
from pipeline.model import attention as attention_module
from pipeline.model.attention import attention, fused_attention
from pipeline.model.backbones.packed import PackedBackbone
from pipeline.model.batch import pack, split, token_batches
from tests import families

MODELS: dict[str, dict[str, Any]] = {
    "bert": {},
    "bert, gelu_new": {"hidden_act": "gelu_new"},
    "bert, gelu_fast": {"hidden_act": "gelu_fast"},
    "bert, gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "bert, relu": {"hidden_act": "relu"},
    "bert, silu": {"hidden_act": "silu"},
    "bert, swish": {"hidden_act": "swish"},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {"pad_token_id": 3},
    "distilbert": {},
    "distilbert, relu": {"activation": "relu"},
    "electra": {"embedding_size": 16},
    "electra, one width": {"embedding_size": 32},
    "ernie": {},
    "ernie, task types": {"use_task_id": True},
    "mpnet": {},
}
"""Settings of each model, by its type and what is special."""
LIMIT = 30  # tokens of a text
FAMILIES = [name for name in MODELS if "," not in name]


def make(name: str, **settings: Any) -> Any:
    """A transformers model of three layers with random weights, none of them 0 or alike."""
    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape["intermediate_size"] = shape["hidden_dim"] = 64
    kind = name.partition(",")[0]
    config = AutoConfig.for_model(kind, **{"max_position_embeddings": 40, **MODELS.get(name, {}), **settings})
    for setting, value in shape.items():
        setattr(config, setting, value)
    torch.manual_seed(0)
    model: Any = AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture(scope="module", params=MODELS)
def backbone(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def padded(model: Any, texts: list[list[int]]) -> torch.Tensor:
    """Mean-pooled vectors by the model's own forward pass over a padded batch."""
    longest = max(map(len, texts))
    pad = model.config.pad_token_id
    ids = torch.tensor([text + [pad] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).float()
    pooled: torch.Tensor = (hidden * weights).sum(1) / weights.sum(1)
    return pooled


RUNS = tuple[tuple[int, int], ...]
# Any id may be the padding token's: a text that has its name in it has that token.
TEXTS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=LIMIT), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None)
@given(texts=TEXTS)
def test_any_mix_of_lengths_equals_the_padded_forward(backbone: torch.nn.Module, texts: list[list[int]]) -> None:
    with torch.no_grad():
        expected, features = padded(backbone, texts), PackedBackbone(backbone).features(pack(texts))
    assert torch.allclose(features, expected, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(texts=TEXTS)
def test_the_inference_encoder_stays_within_bfloat16_of_it(backbone: torch.nn.Module, texts: list[list[int]]) -> None:
    with torch.no_grad():
        expected = padded(backbone, texts)
    vectors = PackedBackbone(backbone).compiled(256)(pack(texts))
    assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.999


def test_gradients_equal_those_of_the_padded_forward(backbone: torch.nn.Module) -> None:
    texts = [[5, 6, 7], [8, 9], [10, 11, 1, 12, 13, 14], [5, 6, 7], [9] * LIMIT]
    grads = []
    for forward in (padded, lambda model, rows: PackedBackbone(model).features(pack(rows))):
        backbone.zero_grad()
        forward(backbone, texts).square().sum().backward()  # type: ignore[no-untyped-call]
        grads.append({n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, expected in grads[0].items():
        assert torch.allclose(grads[1][name], expected, atol=1e-3, rtol=1e-3), name


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_that_are_kept_are_those_of_the_transformers_model(name: str, tmp_path: Path) -> None:
    backbone = PackedBackbone(make(name))
    texts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    with torch.no_grad():
        whole = backbone.features(pack(texts))
        backbone.keep_layers([0, 2])
        backbone.model.save_pretrained(tmp_path)
        kept, expected = backbone.features(pack(texts)), padded(AutoModel.from_pretrained(tmp_path).eval(), texts)
    assert backbone.layers == 2
    assert torch.allclose(kept, expected, atol=1e-5) and not torch.allclose(kept, whole, atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_is_where_transformers_has_it(name: str, tmp_path: Path) -> None:
    model, texts = make(name), [[5, 6, 7], [8, 9, 10, 11, 12]]
    backbone = PackedBackbone(model)
    backbone.set_dropout(1.0)  # of everything, so that what is left does not depend on chance
    setattr(model.config, backbone.family.attention_dropout_setting, 0.0)
    model.save_pretrained(tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        evaluated = backbone.features(pack(texts))
        assert torch.allclose(backbone.train().features(pack(texts)), padded(theirs.train(), texts), atol=1e-5)
        assert torch.allclose(evaluated, padded(theirs.eval(), texts), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_model_trains_with_dropout(name: str) -> None:
    backbone = PackedBackbone(make(name)).train()
    backbone.set_dropout(0.1)
    head, batch = nn.Linear(32, 8), pack([[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]])
    weights = [*head.parameters(), *(p for p in backbone.parameters() if p.requires_grad)]
    optimiser, target = torch.optim.SGD(weights, 2e-2), torch.randn(3, 8)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = (head(backbone.features(batch, torch.bfloat16)) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(weight.grad is not None for weight in weights)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "model",
    [
        lambda: make("bert", is_decoder=True),
        lambda: make("bert", hidden_act="quick_gelu"),
        lambda: make("bert", position_embedding_type="relative_key"),
        lambda: make("albert", embedding_size=16),
        lambda: adapted(make("roberta")),
        lambda: type("BertModel", (type(make("bert")),), {})(make("bert").config),
    ],
    ids=["decoder", "activation", "relative positions", "other layers", "adapter", "code of its own"],
)
def test_what_transformers_would_compute_otherwise_is_not_supported(model: Callable[[], Any]) -> None:
    assert not PackedBackbone.supports(model())


@pytest.mark.parametrize("kind", [0, 1])
def test_a_tokenizer_that_gives_another_type_than_0_is_not_supported(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = replace(families.TOKENIZERS["bert"], template=f"[CLS]:{kind} $A [SEP]")
    monkeypatch.setitem(families.TOKENIZERS, "bert", typed)
    transformer: Any = Transformer(str(families.make_family(tmp_path, "bert")))
    assert PackedBackbone.supports(transformer.auto_model, ("mean",), transformer) == (kind == 0)


@pytest.mark.parametrize("name", MODELS)
def test_the_models_of_these_tests_are_supported(name: str) -> None:
    assert PackedBackbone.supports(make(name))


class Adapted(nn.Linear):
    """A linear layer with an adapter, or quantised."""


def adapted(model: Any) -> Any:
    """The model with one layer's projection to queries replaced."""
    model.encoder.layer[1].attention.self.query = Adapted(32, 32)
    return model


@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, budget=st.integers(1, 200))
def test_parts_hold_every_text_once_within_the_budget(texts: list[list[int]], budget: int) -> None:
    seen: dict[int, list[int]] = {}
    for batch, rows in split(pack(texts), budget):
        start = 0
        lengths = [length for count, length in batch.length_groups for _ in range(count)]
        for place, row in enumerate(rows[torch.argsort(batch.order)].tolist()):
            assert row not in seen
            seen[row] = batch.ids[start : start + lengths[place]].tolist()
            start += lengths[place]
        assert start <= budget or len(rows) == 1
    assert [seen[row] for row in range(len(texts))] == texts


@given(
    lengths=st.lists(st.integers(1, 90), max_size=60),
    budget=st.integers(1, 300),
    run_in_parallel=st.integers(1, 4),
)
def test_every_text_is_in_one_batch_and_no_batch_of_several_exceeds_the_budget(
    lengths: list[int], budget: int, run_in_parallel: int
) -> None:
    found = np.array(lengths, np.int64)
    batches = token_batches(found, budget, run_in_parallel)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or found[batch].sum() <= budget for batch in batches)


@pytest.mark.parametrize("texts", [50, 130, 400])
def test_those_who_work_side_by_side_get_equal_shares(texts: int) -> None:
    lengths = np.random.default_rng(texts).integers(4, 60, texts)
    tokens = [int(lengths[batch].sum()) for batch in token_batches(lengths, 1000, 4)]
    assert len(tokens) % 4 == 0
    assert len(tokens) - 4 < lengths.sum() / 1000  # no more than it takes
    assert max(tokens) - min(tokens) < 60  # a text


def plain_attention(qkv: torch.Tensor, length_groups: RUNS, biases: list[torch.Tensor]) -> torch.Tensor:
    """PyTorch's own attention, text after text."""
    rows, start = [], 0
    for place, (count, length) in enumerate(length_groups):
        for _ in range(count):
            q, k, v = qkv[start : start + length].view(length, 3, 4, -1).permute(1, 2, 0, 3)
            bias = biases[place][0] if biases else None
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            rows.append(mixed.transpose(0, 1).reshape(length, -1))
            start += length
    return torch.cat([*rows, torch.zeros(len(qkv) - start, qkv.shape[1] // 3)])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kept", [attention_module.KEPT, 1100, 1])  # all; texts by themselves; none
def test_attention_and_its_gradients_equal_pytorchs_own(
    biased: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "KEPT", kept)
    random = torch.Generator().manual_seed(0)
    length_groups = ((2, 1), (3, 4), (1, 7), (2, 33))
    qkv = torch.randn(2 * 1 + 3 * 4 + 7 + 66 + 3, 3 * 16, generator=random, requires_grad=True)
    whole = torch.randn(1, 4, 33, 33, generator=random, requires_grad=True)
    biases = [whole[:, :, :length, :length] for _, length in length_groups] if biased else []
    outward = torch.randn(len(qkv), 16, generator=random)
    results = []
    with torch.inference_mode():
        inference = attention(qkv.detach(), length_groups, 4, biases)
    for mixed in (
        plain_attention(qkv, length_groups, biases),
        attention(qkv, length_groups, 4, biases),
        fused_attention(qkv, length_groups, 4, biases[-1] if biases else None),
    ):
        wanted = [qkv, whole] if biased else [qkv]
        results.append([mixed.detach(), *torch.autograd.grad((mixed * outward).sum(), wanted, retain_graph=True)])
    assert torch.allclose(inference, results[0][0], atol=1e-5)
    for found in results[1:]:
        for ours, expected in zip(found, results[0], strict=True):
            assert torch.allclose(ours, expected, atol=1e-5)


def test_what_was_prepared_for_encoding_serves_a_backward_pass() -> None:
    length_groups = ((2, 3), (1, 5))
    qkv = torch.randn(11, 48, requires_grad=True)
    with torch.inference_mode():
        before = fused_attention(qkv.detach(), length_groups, 4, None)
    after = fused_attention(qkv, length_groups, 4, None)
    after.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(before, after.detach())
    assert qkv.grad is not None and qkv.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_memory_held_before_is_in_no_result(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "_SPARES", [])
    length_groups = ((3, 3), (1, 5), (2, 40))
    qkv = torch.randn(9 + 5 + 80, 48, dtype=dtype)
    expected = attention(qkv, length_groups, 4)
    with torch.inference_mode():
        attention(torch.full((200, 48), float("nan"), dtype=torch.float32), ((2, 100),), 4)
        (spare,) = attention_module._SPARES
        assert spare.view(torch.float32).isnan().all()
        assert torch.equal(attention(qkv, length_groups, 4), expected)
    assert torch.equal(attention(qkv, length_groups, 4), expected)  # memory of inference serves outside of it


def test_dropout_without_gradients_holds_probabilities_of_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "KEPT", 1)
    with torch.no_grad():
        mixed = attention(torch.randn(100, 48), ((1, 40), (1, 60)), 4, dropout=0.5)
    assert mixed.isfinite().all()


def test_dropout_of_attention_keeps_the_mean_and_its_gradient_is_that_of_what_was_kept() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(11, 48, dtype=torch.float64, requires_grad=True)
    length_groups = ((2, 3), (1, 5))
    mean = torch.stack([attention(qkv, length_groups, 4, dropout=0.5).detach() for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, attention(qkv, length_groups, 4).detach(), atol=0.1)

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return attention(x, length_groups, 4, dropout=0.5)

    assert torch.autograd.gradcheck(seeded, (qkv,))


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(LeafError, match="at least one token"):
        pack([[1, 2], []])


def test_rows_come_back_in_the_order_they_were_given(backbone: torch.nn.Module) -> None:
    texts = [[5] * n for n in (7, 1, 4, 2, 7)]
    with torch.no_grad():
        together = PackedBackbone(backbone).features(pack(texts)).numpy()
        alone = np.concatenate([PackedBackbone(backbone).features(pack([text])).numpy() for text in texts])
    assert np.allclose(together, alone, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(texts=TEXTS)
def test_what_an_exported_graph_computes_equals_the_padded_forward(
    backbone: torch.nn.Module, texts: list[list[int]]
) -> None:
    inputs = serve.padded(texts)
    ids, mask = (torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask"))
    with torch.no_grad():
        states, expected = PackedBackbone(backbone).padded_states(ids, mask), padded(backbone, texts)
    pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    assert torch.allclose(pooled, expected, atol=1e-5)
