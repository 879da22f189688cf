"""Checkpoints of many families with tiny random weights, made on the fly, one for each mechanism they differ in."""

from pathlib import Path
from typing import Any

import torch

from tests.conftest import WORDS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROWS = len(SPECIAL) + len(WORDS)
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT_LIKE: dict[str, Any] = {**WIDE, "intermediate_size": 48, "max_position_embeddings": 64}
LLAMA_LIKE: dict[str, Any] = {**BERT_LIKE, "num_key_value_heads": 2, "pad_token_id": 0}
GEMMA_LIKE: dict[str, Any] = {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
T5_LIKE: dict[str, Any] = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 3, "pad_token_id": 0}
MOBILE = ("embedding_size", "intra_bottleneck_size", "true_hidden_size")
SQUEEZE = tuple(f"{part}_groups" for part in ("q", "k", "v", "post_attention", "intermediate", "output"))
XLM_LIKE: dict[str, Any] = {"emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64, "pad_index": 0}
GPT_NEO: dict[str, Any] = {
    **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": 8},
    "attention_types": [[["global", "local"], 1]],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", BERT_LIKE),
    "xlm-roberta": ("XLMRobertaModel", {**BERT_LIKE, "pad_token_id": 0}),
    "distilbert": ("DistilBertModel", {"dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 3}),
    "modernbert": ("ModernBertModel", {**BERT_LIKE, "pad_token_id": 0, "local_attention": 8, "cls_token_id": 2}),
    "deberta": ("DebertaModel", {**BERT_LIKE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": (
        "DebertaV2Model",
        {
            **BERT_LIKE,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    "albert": ("AlbertModel", {**BERT_LIKE, "embedding_size": 16}),
    "gpt2": ("GPT2Model", {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64}),
    "qwen3": ("Qwen3Model", {**LLAMA_LIKE, "head_dim": 8}),
    "gemma3": ("Gemma3TextModel", {**GEMMA_LIKE, "use_bidirectional_attention": True}),
    "t5": ("T5EncoderModel", T5_LIKE),
    "xlnet": ("XLNetModel", {"d_model": 32, "n_head": 4, "d_inner": 48, "n_layer": 3}),
    "funnel": ("FunnelModel", {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48}),
}
RELATIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert, gelu_new": ("BertModel", {**BERT_LIKE, "hidden_act": "gelu_new"}),
    "roberta": ("RobertaModel", {**BERT_LIKE, "pad_token_id": 0}),
    "camembert": ("CamembertModel", {**BERT_LIKE, "pad_token_id": 0}),
    "electra": ("ElectraModel", {**BERT_LIKE, "embedding_size": 16}),
    "ernie": ("ErnieModel", {**BERT_LIKE, "pad_token_id": 0}),
    "mpnet": ("MPNetModel", {**BERT_LIKE, "pad_token_id": 0}),
    "deberta": ("DebertaModel", {**BERT_LIKE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "eurobert": ("EuroBertModel", LLAMA_LIKE),
    "nomic-bert": ("NomicBertModel", {**BERT_LIKE, "pad_token_id": 0}),
    "jina-embeddings-v3": ("JinaEmbeddingsV3Model", {**BERT_LIKE, "pad_token_id": 0}),
    "mobilebert": ("MobileBertModel", {**BERT_LIKE, **dict.fromkeys(MOBILE, 16)}),
    "squeezebert": ("SqueezeBertModel", {**BERT_LIKE, "embedding_size": 32, **dict.fromkeys(SQUEEZE, 1)}),
    "convbert": ("ConvBertModel", {**BERT_LIKE, "embedding_size": 32, "head_ratio": 2}),
    "big-bird": ("BigBirdModel", {**BERT_LIKE, "attention_type": "original_full", "pad_token_id": 0}),
    "longformer": ("LongformerModel", {**BERT_LIKE, "attention_window": [8, 8, 8], "pad_token_id": 0}),
    "roformer": ("RoFormerModel", {**BERT_LIKE, "embedding_size": 32, "pad_token_id": 0}),
    "megatron-bert": ("MegatronBertModel", BERT_LIKE),
    "rembert": ("RemBertModel", {**BERT_LIKE, "input_embedding_size": 16}),
    "data2vec-text": ("Data2VecTextModel", {**BERT_LIKE, "pad_token_id": 0}),
    "fnet": ("FNetModel", {key: value for key, value in BERT_LIKE.items() if key != "num_attention_heads"}),
    "xlm": ("XLMModel", XLM_LIKE),
    "umt5": ("UMT5EncoderModel", T5_LIKE),
    "gpt-neo": ("GPTNeoModel", GPT_NEO),
    "gpt-neox": ("GPTNeoXModel", BERT_LIKE),
    "bloom": ("BloomModel", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "llama": ("LlamaModel", LLAMA_LIKE),
    "mistral": ("MistralModel", {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 8}),
    "gemma": ("GemmaModel", {**LLAMA_LIKE, "head_dim": 8}),
    "gemma2": ("Gemma2Model", GEMMA_LIKE),
    "phi3": ("Phi3Model", LLAMA_LIKE),
}
"""Further families, which differ from those above in nothing that a test of its own would show."""
LEFT = ("gpt2", "xlnet", "qwen3")  # their tokenizers pad on the left
CAUSAL = ("gpt2", "qwen3", "gpt-neo", "gpt-neox", "bloom", "llama", "mistral", "gemma", "gemma2", "phi3")


def make_family(directory: Path, family: str) -> Path:
    """A checkpoint of transformers alone, with a word tokenizer over WORDS."""
    import transformers

    name, shape = (FAMILIES | RELATIVES)[family]
    kind: Any = getattr(transformers, name)
    torch.manual_seed(3)
    model = kind(kind.config_class(vocab_size=ROWS, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # with the usual initial weights, the vectors of all texts are nearly equal
    model.save_pretrained(directory)
    fast: Any = transformers.PreTrainedTokenizerFast
    tokens = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if family in TYPES else {}
    fast(
        tokenizer_object=_tokenizer(family),
        padding_side="left" if family in LEFT else "right",
        model_max_length=48,
        **tokens,
        **types,
    ).save_pretrained(directory)
    return directory


TYPES = {"bert": 0, "xlnet": 2, "funnel": 2}
"""Families with token types: that of [CLS]."""


def _tokenizer(family: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    cls = f"[CLS]:{TYPES.get(family, 0)}"
    template = {"xlnet": f"$A [SEP] {cls}", "t5": "$A [SEP]"}.get(family, f"{cls} $A [SEP]")
    if family not in CAUSAL:
        special = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(template, None, special)
    return tokenizer
