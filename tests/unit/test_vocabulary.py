"""Cutting a checkpoint to some of its tokens changes no text that is made of them, and refuses none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.base import LeafError
from pipeline.model import backbone_for, pack
from pipeline.model.model_files import load_transformer
from pipeline.model.vocabulary import cut_vocabulary
from tests.conftest import sentence

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXTS = [sentence(number) for number in range(300)] + ["naïve café für 東京 の ошибка", "sorted(list), 12.5%"] * 3
USED = TEXTS[::9]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def _trained(model: Any, trainer: Any, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(TEXTS, trainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = _trained(models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer, pre_tokenizers.Whitespace())
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def _byte_level() -> Tokenizer:
    def trainer(**options: Any) -> Any:
        return trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)

    tokenizer = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("never met", normalized=False)])
    return tokenizer


def _byte_fallback() -> Tokenizer:
    """As the BPE of Llama 2: a merge for every way of putting a piece together, and bytes for what it does not know."""
    pieces = _trained(models.BPE(), trainers.BpeTrainer, pre_tokenizers.Metaspace()).get_vocab()
    ids = {token: number for number, token in enumerate([*SPECIAL, *BYTES, *sorted(pieces.keys() - set(SPECIAL))])}
    merges = [(t[:n], t[n:]) for t in ids for n in range(1, len(t)) if t[:n] in ids and t[n:] in ids and t[0] != "<"]
    model = models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])]
    )
    return tokenizer


def _unigram() -> Tokenizer:
    def trainer(**options: Any) -> Any:
        return trainers.UnigramTrainer(unk_token="<unk>", **options)

    tokenizer = _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    return tokenizer


def _words() -> Tokenizer:
    return _trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, pre_tokenizers.Whitespace())


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": _word_piece,
    "byte-level BPE": _byte_level,
    "BPE with byte fallback": _byte_fallback,
    "Unigram": _unigram,
    "WordLevel": _words,
}


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RoBERTa, whose positions are counted from the padding id, with a tokenizer of each kind."""
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    directory = tmp_path_factory.mktemp("checkpoint")
    tokenizer = KINDS[request.param]()
    torch.manual_seed(0)
    shape: dict[str, Any] = {**SHAPE, "max_position_embeddings": 128}
    ids: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    rows = tokenizer.get_vocab_size() + 3  # tables are often rounded up
    RobertaModel(RobertaConfig(vocab_size=rows, **shape, **ids)).save_pretrained(directory)
    fast: Any = PreTrainedTokenizerFast
    named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    fast(tokenizer_object=tokenizer, model_max_length=126, **named).save_pretrained(directory)
    return directory


def _plain(transformer: Any) -> Tokenizer:
    return Tokenizer.from_str(transformer.tokenizer.backend_tokenizer.to_str())


def _ids(transformer: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in _plain(transformer).encode_batch(texts)]


def _cut(checkpoint: Path, texts: list[str]) -> tuple[Any, dict[int, int]]:
    transformer = load_transformer(checkpoint, "tiny")
    return transformer, cut_vocabulary(transformer, {number for ids in _ids(transformer, texts) for number in ids})


def test_texts_of_kept_tokens_keep_their_tokens_and_their_vectors(checkpoint: Path) -> None:
    whole = load_transformer(checkpoint, "tiny")
    cut, new_ids = _cut(checkpoint, USED)
    assert len(new_ids) < _plain(whole).get_vocab_size()
    assert cut.auto_model.get_input_embeddings().weight.shape == (len(new_ids), 16)
    before = _ids(whole, TEXTS)
    kept = [number for number, ids in enumerate(before) if new_ids.keys() >= set(ids)]
    assert len(kept) >= len(USED)
    after = _ids(cut, [TEXTS[number] for number in kept])
    assert after == [[new_ids[token] for token in before[number]] for number in kept]
    features = [backbone_for(module.auto_model, ("mean",), module).eval().features for module in (whole, cut)]
    old, new = features[0](pack([before[number] for number in kept])), features[1](pack(after))
    assert torch.equal(old, new)


@pytest.fixture(scope="module")
def small(checkpoint: Path) -> Any:
    """The checkpoint cut to the tokens of one text."""
    return _cut(checkpoint, USED[:1])[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(TEXTS))
def test_any_text_is_tokenised_with_the_tokens_that_are_left(small: Any, text: str) -> None:
    ids = _ids(small, [text])[0]
    rows = small.auto_model.get_input_embeddings().num_embeddings
    assert max(ids, default=0) < rows
    assert rows == _plain(small).get_vocab_size() == small.auto_model.config.vocab_size


def test_known_characters_are_still_known(checkpoint: Path) -> None:
    cut, _ = _cut(checkpoint, USED[:1])
    if isinstance(_plain(cut).model, models.WordLevel):
        pytest.skip("a tokenizer of whole words knows no characters")
    assert cut.tokenizer.unk_token_id not in _ids(cut, ["naïve café für 東京 の ошибка"])[0]


def test_special_tokens_keep_their_parts(checkpoint: Path) -> None:
    cut, new_ids = _cut(checkpoint, USED[:1])
    tokenizer, config = cut.tokenizer, cut.auto_model.config
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    assert tokenizer.mask_token_id == new_ids[4]
    assert tokenizer.model_max_length == 126


def test_the_same_tokens_give_the_same_files(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        _cut(checkpoint, USED)[0].save(str(tmp_path / name))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "tokenizer.json" in files
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_ids_that_stand_behind_the_others_are_moved(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

    tokenizer = _byte_level()
    tokenizer.add_special_tokens(["<end>"])
    end = tokenizer.get_vocab()["<end>"]
    tokenizer.post_processor = processors.TemplateProcessing("$A <end>", None, [("<end>", end)])
    shape: dict[str, Any] = {**SHAPE, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=end + 1, eos_token_id=end, pad_token_id=None, **shape)
    Qwen2Model(config).save_pretrained(tmp_path)
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(tmp_path)
    cut, new_ids = _cut(tmp_path, USED)
    assert new_ids[end] == cut.tokenizer.eos_token_id == cut.auto_model.config.eos_token_id == len(new_ids) - 1
    assert _ids(cut, ["a"])[0][-1] == new_ids[end]


def test_other_kinds_of_tokenizers_are_refused_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.model.vocabulary.KINDS", ("Syllables",))
    with pytest.raises(LeafError, match="known are Syllables"):
        _cut(checkpoint, USED)
