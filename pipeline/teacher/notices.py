"""What a person should know about a local teacher before hours go into its vectors, a sentence for each matter."""

from typing import Any

from pipeline.params import TeacherParams
from pipeline.store import similarity_note
from pipeline.teacher.layout import DEFAULT_MAX_LENGTH, ROLES, Layout, own_limit
from pipeline.teacher.local_identity import normalizes
from pipeline.teacher.runners import PROBES


def notices(params: TeacherParams, layout: Layout) -> list[str]:
    """About the prompts and the measure of a model, from its files."""
    similarity = similarity_note(layout.similarity, normalizes(params, layout))
    return [*_prompts(params, layout), *([similarity] if similarity else []), *_length(params, layout)]


def _length(params: TeacherParams, layout: Layout) -> list[str]:
    paths = {route[0].path for route in layout.routes.values() if route[0].kind == "Transformer"}
    if params.max_length is not None or all(own_limit(path) for path in paths):
        return []
    return [
        f"the model names no most length of a text, so texts are cut to {DEFAULT_MAX_LENGTH} tokens; "
        "teacher.max_length sets another"
    ]


def _prompts(params: TeacherParams, layout: Layout) -> list[str]:
    sentences, own = [], layout.prompts
    for role in ROLES:
        given, text = getattr(params.prompts, role), own.get(role, "")
        if given is None and text:
            sentences.append(f"the model's own prompt {text!r} is put before each {role}")
        elif text and given != text:
            sentences.append(f"the model's own prompt {text!r} for each {role} is replaced by {given!r}")
    default = layout.settings.get("default_prompt_name")
    unused = sorted(name for name, text in own.items() if text and name not in ROLES and name in ("passage", default))
    if unused and params.prompts.document is None:
        sentences.append(
            f"the model's prompts {', '.join(unused)} are not used, as encode_query and encode_document use only "
            "`query` and `document`; give the texts under teacher.prompts if you want them"
        )
    return sentences


def pooling_notice(model: Any) -> list[str]:
    """About a pooling that takes the last token of a text where that is no special token but one of a word."""
    for pooling in (module for module in model.modules() if type(module).__name__ == "Pooling"):
        modes = pooling.pooling_mode
        if "lasttoken" not in ((modes,) if isinstance(modes, str) else modes):
            continue
        tokenizer = model.tokenizer
        words = tokenizer(PROBES[1], add_special_tokens=False)["input_ids"]
        if words and tokenizer(PROBES[1])["input_ids"][-len(words) :] == words:
            return [
                "the last token of a text is pooled, but the tokenizer adds no end token, so that a piece of the last "
                "word is taken; if the model was trained with one, switch it on in its tokenizer (add_eos_token)"
            ]
    return []
