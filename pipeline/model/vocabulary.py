"""A checkpoint with only some of its tokens: tokenizer, configuration and table of embeddings are cut alike.

What is kept besides the tokens asked for has every text still tokenised, and a text whose tokens are all kept tokenised
as before: special tokens, single characters and bytes, and in BPE all that may be merged on the way to a kept token.
Tokens keep their order.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer
from torch import nn

from pipeline.base import LeafError, first_line

KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
FIRST_IDS = 1000
"""Where the padding id is below this, all ids up to it keep their place: RoBERTa and others count positions from it."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
CONFIG_ID = re.compile(".*_token_id|(bos|eos|pad|unk|mask)_index")  # the latter are XLM's
State = dict[str, Any]
"""A tokenizer, or a part of it, in the form of tokenizer.json."""


def cut_vocabulary(transformer: Any, used: Iterable[int]) -> dict[int, int]:
    """Cut a sentence-transformers Transformer, in place, to the tokens `used` and those that are needed besides.

    Args:
        transformer: the module; its tokenizer is one of the library tokenizers.
        used: ids of the tokens to keep, in any order.

    Returns:
        The new id of each token that was kept by its old one.

    Raises:
        LeafError: the tokenizer is of another kind, or cannot be cut.
    """
    tokenizer, model = transformer.tokenizer, transformer.auto_model
    state: State = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] not in KINDS:
        raise LeafError(
            f"a vocabulary of the kind {state['model']['type']} cannot be cut; known are {', '.join(KINDS)}"
        )
    needed = {*used, *tokenizer.all_special_ids, *_config_ids(model.config)}
    for padding in {tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None)} - {None}:
        needed |= set(range(padding + 1)) if padding < FIRST_IDS else set()
    rows = model.get_input_embeddings().num_embeddings
    kept = sorted(number for number in _with_needed(state, needed) if number < rows)
    new_ids = {old: new for new, old in enumerate(kept)}
    transformer.processor = _like(tokenizer, _renumbered(state, new_ids))
    _cut_table(model, kept)
    _renumber_config(model.config, new_ids)
    return new_ids


def _ids_of(model: State) -> dict[str, int]:
    """The ids by token of a tokenizer's model."""
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _with_needed(state: State, needed: set[int]) -> set[int]:
    """The ids `needed` that the tokenizer has, and those of all that it needs besides."""
    model, added = state["model"], state["added_tokens"]
    ids = _ids_of(model)
    kept = needed | {token["id"] for token in added if token["special"]} | set(_processor_ids(state["post_processor"]))
    kept |= {number for token, number in ids.items() if _is_single(token, model)}
    kept &= {*ids.values(), *(token["id"] for token in added)}
    if model["type"] == "Unigram":
        # An unknown character scores below the lowest of all pieces: without that one, it would score higher.
        kept |= {min(ids.values(), key=lambda number: float(model["vocab"][number][1]))}
        kept |= {model["unk_id"]} - {None}
    elif model.get("unk_token") in ids:
        kept.add(ids[model["unk_token"]])
    return _with_parts(model, ids, kept) if model["type"] == "BPE" else kept


def _is_single(token: str, model: State) -> bool:
    """Whether the token is a character, in the middle of a word or not, or a byte."""
    inner = token.removeprefix(model.get("continuing_subword_prefix") or "")
    inner = inner.removesuffix(model.get("end_of_word_suffix") or "")
    return len(inner) <= 1 or BYTE.fullmatch(token) is not None


def _merges(model: State) -> Iterator[tuple[Any, str, str, str]]:
    """The merges of a BPE model: each as it stands there, its two parts, and what they become."""
    inner = len(model["continuing_subword_prefix"] or "")
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        yield merge, left, right, left + right[inner:]


def _with_parts(model: State, ids: Mapping[str, int], kept: set[int]) -> set[int]:
    """`kept`, and the parts that each of them can be merged from, and theirs."""
    parts: dict[int, list[int]] = {}
    for _, left, right, merged in _merges(model):
        parts.setdefault(ids[merged], []).extend((ids[left], ids[right]))
    reached, waiting = set(kept), list(kept)
    while waiting:
        new = set(parts.get(waiting.pop(), ())) - reached
        reached |= new
        waiting.extend(new)
    return reached


def _renumbered(state: State, new_ids: Mapping[int, int]) -> Tokenizer:
    """The tokenizer with the ids that are kept; LeafError if the library numbers them in another way."""
    model = dict(state["model"])
    ids = {token: new_ids[number] for token, number in _ids_of(model).items() if number in new_ids}
    added = [token | {"id": new_ids[token["id"]]} for token in state["added_tokens"] if token["id"] in new_ids]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new_ids]
        model["unk_id"] = new_ids.get(model["unk_id"])
    else:
        model["vocab"] = ids
    if model["type"] == "BPE":
        model["merges"] = [merge for merge, *tokens in _merges(model) if ids.keys() >= set(tokens)]
    processor = _renumbered_processor(state["post_processor"], new_ids)
    changed = {"model": model, "added_tokens": added, "post_processor": processor, "truncation": None, "padding": None}
    try:
        tokenizer = Tokenizer.from_str(json.dumps(state | changed))
    except Exception as error:  # the library raises no other kind
        raise LeafError(f"the tokenizer cannot be cut: {first_line(error)}") from None
    expected = ids | {token["content"]: token["id"] for token in added}
    if wrong := [token for token, number in expected.items() if tokenizer.token_to_id(token) != number]:
        raise LeafError(f"the tokenizer cannot be cut: `{wrong[0]}` would not get the id {expected[wrong[0]]}")
    return tokenizer


def _processor_ids(processor: State | None) -> Iterator[int]:
    """The ids of the special tokens that a post-processor adds."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        yield from _processor_ids(inner)
    for token in (processor.get("special_tokens") or {}).values():
        yield from token["ids"]
    yield from (processor[name][1] for name in ("sep", "cls") if name in processor)


def _renumbered_processor(processor: State | None, new_ids: Mapping[int, int]) -> State | None:
    if processor is None:
        return None
    changed = dict(processor)
    if "processors" in processor:
        changed["processors"] = [_renumbered_processor(inner, new_ids) for inner in processor["processors"]]
    if "special_tokens" in processor:
        changed["special_tokens"] = {
            name: token | {"ids": [new_ids[number] for number in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    for name in {"sep", "cls"} & processor.keys():
        token, number = processor[name]
        changed[name] = [token, new_ids[number]]
    return changed


def _like(tokenizer: Any, backend: Tokenizer) -> Any:
    """A tokenizer of transformers around `backend` with the settings of `tokenizer`.

    Of the general class: those of the families make their post-processors anew, with ids of their own.
    """
    from transformers import PreTrainedTokenizerFast

    names = ("model_max_length", "padding_side", "truncation_side", "model_input_names")
    special = tokenizer.special_tokens_map.items()
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=backend,
        **{name: getattr(tokenizer, name) for name in names},
        **{name: token for name, token in special if backend.token_to_id(str(token)) is not None},
    )


def token_table(model: Any) -> Any:
    """The module that holds a transformer's token embeddings.

    None where the model has none (Canine), or one for each of several modalities (CLIP).
    """
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _cut_table(model: Any, kept: list[int]) -> None:
    """Keep these rows of the table of token embeddings, under whatever names the model has it."""
    weight = model.get_input_embeddings().weight
    rows = nn.Parameter(weight.detach()[kept].clone(), weight.requires_grad)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight is weight:
            module.weight, module.num_embeddings = rows, len(kept)
            module.padding_idx = kept.index(module.padding_idx) if module.padding_idx in kept else None


def _config_ids(config: Any) -> Iterator[int]:
    """The token ids that a configuration names."""
    for name, value in vars(config).items():
        if CONFIG_ID.fullmatch(name):
            yield from [value] if isinstance(value, int) else value or ()


def _renumber_config(config: Any, new_ids: Mapping[int, int]) -> None:
    for name, value in list(vars(config).items()):
        if CONFIG_ID.fullmatch(name) and value is not None:
            single = isinstance(value, int)
            ids = [new_ids[number] for number in ([value] if single else value) if number in new_ids]
            setattr(config, name, next(iter(ids), None) if single else ids)
    config.vocab_size = len(new_ids)
