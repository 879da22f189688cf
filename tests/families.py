"""Tiny models of many families with random weights, made on the fly, one for each mechanism they differ in.

Each has a tokenizer of its family's kind: its algorithm, special tokens and their ids, what is put around a text, the
side of the padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tests.conftest import WORDS

MAX_TOKENS = 48
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT_LIKE: dict[str, Any] = {**WIDE, "intermediate_size": 48, "max_position_embeddings": 64}
LLAMA_LIKE: dict[str, Any] = {**BERT_LIKE, "num_key_value_heads": 2}
GEMMA_LIKE: dict[str, Any] = {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
T5_LIKE: dict[str, Any] = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 3}
T5_TAME: dict[str, Any] = {**T5_LIKE, "initializer_factor": 0.3}  # else rounding in bfloat16 turns its attention around
GPT2_LIKE: dict[str, Any] = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64}
RELATIVE: dict[str, Any] = {**BERT_LIKE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
MOBILE = ("embedding_size", "intra_bottleneck_size", "true_hidden_size")
SQUEEZE = tuple(f"{part}_groups" for part in ("q", "k", "v", "post_attention", "intermediate", "output"))
LUKE: dict[str, Any] = {**BERT_LIKE, "entity_vocab_size": 4, "entity_emb_size": 8}
NYSTROM: dict[str, Any] = {**BERT_LIKE, "num_landmarks": 48, "segment_means_seq_len": 48}
EXPERTS: dict[str, Any] = {
    **{**LLAMA_LIKE, "head_dim": 8, "moe_intermediate_size": 24},
    **{"num_experts": 4, "num_experts_per_tok": 2},
}
XLM_LIKE: dict[str, Any] = {"emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64, "pad_index": 0}
GPT_NEO: dict[str, Any] = {
    **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": 8},
    "attention_types": [[["global", "local"], 1]],
}
OPT: dict[str, Any] = {**WIDE, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}


def _word_pieces(special: list[str]) -> Any:
    """Lower-case words, half of them whole, the others as pieces (BERT)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = [*special, *WORDS[::2], *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_first(special, "unk")))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _byte_pairs(special: list[str]) -> Any:
    """Bytes, and half of the words merged from them (GPT-2, RoBERTa)."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    merges = [(f"Ġ{word}"[:end], f"Ġ{word}"[end]) for word in WORDS[::2] for end in range(1, len(word) + 1)]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _unigrams(special: list[str]) -> Any:
    """The most probable pieces, spaces among them (SentencePiece: XLM-R, T5, Gemma)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = [(f"▁{word}", -3.0) for word in WORDS[::2] if len(word) > 1]
    letters = [(letter, -6.0) for letter in ("▁", *LETTERS)]
    pieces = [*((token, 0.0) for token in special), *words, *letters]
    tokenizer = Tokenizer(models.Unigram(pieces, special.index(_first(special, "unk")), False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *".,"]


def _first(special: list[str], name: str) -> str:
    return next(token for token in special if name in token.lower())


@dataclass(frozen=True)
class TokenizerKind:
    """What the tokenizers of several families have in common."""

    pieces: Callable[[list[str]], Any]
    special: dict[str, str]
    """Special tokens in the order of their ids, by the name of the setting; one token may have several names."""
    template: str = ""
    """What is put around a text `$A`; `:2` is a token type."""
    left: bool = False
    """Whether padding stands before the text."""
    types: bool = False
    """Whether the model reads token types."""


BERT_TOKENS = {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
ROBERTA_TOKENS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
XLNET_TOKENS = {name: f"<{name}>" for name in ("unk", "cls", "sep", "pad", "mask")}
LLAMA_TOKENS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "</s>"}
END_OF_TEXT = {"pad": "<|endoftext|>", "eos": "<|endoftext|>"}
TOKENIZERS = {
    "bert": TokenizerKind(_word_pieces, BERT_TOKENS, "[CLS] $A [SEP]", types=True),
    "bert without types": TokenizerKind(_word_pieces, BERT_TOKENS, "[CLS] $A [SEP]"),
    "bert of pieces": TokenizerKind(_unigrams, BERT_TOKENS, "[CLS] $A [SEP]", types=True),
    "funnel": TokenizerKind(_word_pieces, BERT_TOKENS, "[CLS]:2 $A [SEP]", types=True),
    "roberta": TokenizerKind(_byte_pairs, ROBERTA_TOKENS, "<s> $A </s>"),
    "xlm-roberta": TokenizerKind(_unigrams, ROBERTA_TOKENS, "<s> $A </s>"),
    "xlnet": TokenizerKind(_unigrams, XLNET_TOKENS, "$A <sep> <cls>:2", left=True, types=True),
    "t5": TokenizerKind(_unigrams, {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, "$A </s>"),
    "gpt2": TokenizerKind(_byte_pairs, END_OF_TEXT, left=True),
    "opt": TokenizerKind(_byte_pairs, {"bos": "<s>", "pad": "<pad>", "eos": "</s>"}, "</s> $A"),
    "qwen": TokenizerKind(_byte_pairs, END_OF_TEXT, "$A <|endoftext|>", left=True),
    "llama": TokenizerKind(_unigrams, LLAMA_TOKENS, "<s> $A </s>"),
    "gemma": TokenizerKind(
        _unigrams, {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}, "<bos> $A <eos>"
    ),
}


@dataclass(frozen=True)
class Family:
    """A tiny model of a family."""

    model: str
    """Its class in transformers."""
    shape: dict[str, Any]
    """Settings of its configuration, besides what the tokenizer decides."""
    tokenizer: str
    """The kind of tokenizer that it has."""
    pooling: Literal["mean", "cls", "lasttoken"] = "mean"
    """The pooling that its embedding models have."""


def _decoder(model: str, shape: dict[str, Any], tokenizer: str) -> Family:
    return Family(model, shape, tokenizer, "lasttoken")


FAMILIES: dict[str, Family] = {
    "bert": Family("BertModel", BERT_LIKE, "bert"),
    "xlm-roberta": Family("XLMRobertaModel", BERT_LIKE, "xlm-roberta"),
    "distilbert": Family(
        "DistilBertModel", {"dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 3}, "bert without types"
    ),
    "modernbert": Family("ModernBertModel", {**BERT_LIKE, "local_attention": 8}, "bert without types", "cls"),
    "deberta": Family("DebertaModel", RELATIVE, "roberta", "cls"),
    "deberta-v2": Family(
        "DebertaV2Model",
        {**RELATIVE, "position_biased_input": False, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
        "bert of pieces",
    ),
    "albert": Family("AlbertModel", {**BERT_LIKE, "embedding_size": 16}, "bert of pieces"),
    "gpt2": _decoder("GPT2Model", GPT2_LIKE, "gpt2"),
    "qwen3": _decoder("Qwen3Model", {**LLAMA_LIKE, "head_dim": 8}, "qwen"),
    "gemma3": Family("Gemma3TextModel", {**GEMMA_LIKE, "use_bidirectional_attention": True}, "gemma"),
    "t5": Family("T5EncoderModel", T5_TAME, "t5"),
    "xlnet": Family("XLNetModel", {"d_model": 32, "n_head": 4, "d_inner": 48, "n_layer": 3}, "xlnet"),
    "funnel": Family(
        "FunnelModel", {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48}, "funnel"
    ),
}
RELATIVES: dict[str, Family] = {
    "bert, gelu_new": Family("BertModel", {**BERT_LIKE, "hidden_act": "gelu_new"}, "bert", "cls"),
    "bert-generation": Family("BertGenerationEncoder", BERT_LIKE, "t5"),
    "roberta": Family("RobertaModel", BERT_LIKE, "roberta"),
    "roberta-prelayernorm": Family("RobertaPreLayerNormModel", BERT_LIKE, "roberta"),
    "camembert": Family("CamembertModel", BERT_LIKE, "xlm-roberta"),
    "xlm-roberta-xl": Family("XLMRobertaXLModel", BERT_LIKE, "xlm-roberta"),
    "electra": Family("ElectraModel", {**BERT_LIKE, "embedding_size": 16}, "bert"),
    "ernie": Family("ErnieModel", BERT_LIKE, "bert", "cls"),
    "mpnet": Family("MPNetModel", BERT_LIKE, "roberta"),
    "luke": Family("LukeModel", LUKE, "roberta"),
    "eurobert": Family("EuroBertModel", LLAMA_LIKE, "bert without types"),
    "nomic-bert": Family("NomicBertModel", BERT_LIKE, "bert"),
    "gte": Family("GteModel", BERT_LIKE, "bert", "cls"),
    "jina-embeddings-v3": Family("JinaEmbeddingsV3Model", BERT_LIKE, "xlm-roberta"),
    "mobilebert": Family("MobileBertModel", {**BERT_LIKE, **dict.fromkeys(MOBILE, 16)}, "bert"),
    "squeezebert": Family("SqueezeBertModel", {**BERT_LIKE, "embedding_size": 32, **dict.fromkeys(SQUEEZE, 1)}, "bert"),
    "convbert": Family("ConvBertModel", {**BERT_LIKE, "embedding_size": 32, "head_ratio": 2}, "bert"),
    "big-bird": Family("BigBirdModel", {**BERT_LIKE, "attention_type": "original_full"}, "bert of pieces"),
    "longformer": Family("LongformerModel", {**BERT_LIKE, "attention_window": [8, 8, 8]}, "roberta"),
    "nystromformer": Family("NystromformerModel", NYSTROM, "bert of pieces"),
    "roformer": Family("RoFormerModel", {**BERT_LIKE, "embedding_size": 32}, "bert"),
    "megatron-bert": Family("MegatronBertModel", BERT_LIKE, "bert"),
    "rembert": Family("RemBertModel", {**BERT_LIKE, "input_embedding_size": 16}, "bert of pieces"),
    "ibert": Family("IBertModel", BERT_LIKE, "roberta"),
    "data2vec-text": Family("Data2VecTextModel", BERT_LIKE, "roberta"),
    "fnet": Family(
        "FNetModel", {key: value for key, value in BERT_LIKE.items() if key != "num_attention_heads"}, "bert of pieces"
    ),
    "xlm": Family("XLMModel", XLM_LIKE, "bert without types"),
    "mt5": Family("MT5EncoderModel", T5_TAME, "t5"),
    "umt5": Family("UMT5EncoderModel", T5_TAME, "t5"),
    "longt5": Family("LongT5EncoderModel", {**T5_LIKE, "local_radius": 7}, "t5"),
    "opt": _decoder("OPTModel", OPT, "opt"),
    "gpt-neo": _decoder("GPTNeoModel", GPT_NEO, "gpt2"),
    "gpt-neox": _decoder("GPTNeoXModel", BERT_LIKE, "gpt2"),
    "gptj": _decoder("GPTJModel", {**GPT2_LIKE, "rotary_dim": 4}, "gpt2"),
    "bloom": _decoder("BloomModel", {"hidden_size": 32, "n_layer": 3, "n_head": 4}, "qwen"),
    "falcon": _decoder("FalconModel", WIDE, "gpt2"),
    "llama": _decoder("LlamaModel", LLAMA_LIKE, "llama"),
    "mistral": _decoder("MistralModel", {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 8}, "llama"),
    "qwen2": _decoder("Qwen2Model", LLAMA_LIKE, "qwen"),
    "qwen3-moe": _decoder("Qwen3MoeModel", EXPERTS, "qwen"),
    "gemma": _decoder("GemmaModel", {**LLAMA_LIKE, "head_dim": 8}, "gemma"),
    "gemma2": _decoder("Gemma2Model", GEMMA_LIKE, "gemma"),
    "phi": _decoder("PhiModel", BERT_LIKE, "gpt2"),
    "phi3": _decoder("Phi3Model", LLAMA_LIKE, "llama"),
    "olmo2": _decoder("Olmo2Model", LLAMA_LIKE, "qwen"),
    "smollm3": _decoder("SmolLM3Model", LLAMA_LIKE, "qwen"),
    "modernbert-decoder": _decoder("ModernBertDecoderModel", {**BERT_LIKE, "local_attention": 8}, "qwen"),
}
"""Further families, which differ from those above in nothing that a test of its own would show."""
LEFT = sorted(name for name, family in FAMILIES.items() if TOKENIZERS[family.tokenizer].left)


def make_family(directory: Path, family: str) -> Path:
    """A checkpoint of transformers alone."""
    import transformers

    chosen = (FAMILIES | RELATIVES)[family]
    tokenizer, kind = _tokenizer(TOKENIZERS[chosen.tokenizer]), getattr(transformers, chosen.model)
    names = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")]
    ids = {name: number for name in names if (number := getattr(tokenizer, name)) is not None}
    torch.manual_seed(3)
    model = kind(kind.config_class(vocab_size=len(tokenizer), **ids, **chosen.shape))
    _spread(model, chosen.pooling)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _spread(model: Any, pooling: str) -> None:
    """Scale the weights, lest the vectors of all texts be nearly equal, as they are with the usual initial weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4 if pooling == "mean" else 8)  # one token must hear from the others
        if pooling == "mean":
            model.get_input_embeddings().weight.mul_(4)  # tokens must differ


def make_teacher(directory: Path, family: str) -> Path:
    """A sentence-transformers model with the family's pooling; the checkpoint lies beside it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(make_family(directory.with_name(f"{directory.name}-checkpoint"), family)))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=(FAMILIES | RELATIVES)[family].pooling)
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    model.save(str(directory), create_model_card=False)
    return directory


def _tokenizer(kind: TokenizerKind) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(kind.special.values()))
    tokenizer = kind.pieces(special)
    if kind.template:
        ids = [(token, number) for number, token in enumerate(special)]
        tokenizer.post_processor = processors.TemplateProcessing(kind.template, None, ids)
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        padding_side="left" if kind.left else "right",
        model_input_names=["input_ids", *(["token_type_ids"] if kind.types else []), "attention_mask"],
        **{f"{name}_token": token for name, token in kind.special.items()},
    )
