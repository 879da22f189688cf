"""What libraries look for beside an ONNX graph: tokenizer and configuration in parts, and modules that pool.

They run a graph and then pool the states of a text's tokens themselves, each by a file of its own. The graph gives them
one state a text, its final vector, and these files say so (docs/serve.md).
"""

import json
from pathlib import Path
from typing import Any

from pipeline.model import Student, older_form

STATES = "last_hidden_state"  # the name that libraries know, of the output [texts, 1, dim]
INPUTS = ["input_ids", "attention_mask"]


def write_library_files(student: Student, directory: Path) -> None:
    """Write them into a directory that holds the graph of `student` in `onnx/` and its tokenizer.json."""
    special = student.backbone.special_tokens
    contents = {
        "config.json": _config(student, student.tokenizer().token_to_id(special["pad_token"]) or 0),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": INPUTS,
            "model_max_length": student.max_length,
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            **special,
        },
        "special_tokens_map.json": special,
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": f"{older_form.MODULES}.{kind}"}
            for place, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
        ],
        "sentence_bert_config.json": {"max_seq_length": student.max_length, "do_lower_case": False},
        "1_Pooling/config.json": older_form.pooling_settings(student.dim, ["cls"]),
        "config_sentence_transformers.json": {
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": student.similarity,
        },
    }
    for name, content in contents.items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(student: Student, pad_token_id: int) -> dict[str, Any]:
    """An encoder as wide as the vectors, whatever family is inside the graph: nothing else is asked of it.

    By the family's own configuration a library would expect its width, and feed a decoder's graph a cache.
    """
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": student.dim,
        "intermediate_size": student.dim,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": student.max_length,
        "vocab_size": student.backbone.token_embeddings.num_embeddings,
        "pad_token_id": pad_token_id,
    }
