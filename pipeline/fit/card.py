"""The student's model card, filled in from `templates/student.md`.

It holds no times and no paths, so that equal runs write equal cards.
"""

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from pipeline.corpus import scan
from pipeline.model import Student
from pipeline.params import FitParams, Pooling, public_name
from pipeline.store import UNVERIFIED, StoreMeta

POOLING_WORDS: dict[Pooling, str] = {
    "cls": "first token",
    "max": "maximum",
    "mean": "mean",
    "mean_sqrt_len_tokens": "sum over the root of the length",
    "weightedmean": "mean weighted by position",
    "lasttoken": "last token",
}
ORIGINS = {"checkpoint": "", "random": " (configuration and tokenizer; its weights began at random)"}
TOKENS = {
    "checkpoint": "tokens",
    "corpus": "of its tokens: those of the training texts, special tokens, characters and bytes",
}
FLOAT_BYTES = 4


def write_card(meta: StoreMeta, corpus: Path, params: FitParams, metrics: dict[str, Any], student: Student) -> str:
    """The card's text, in Markdown."""
    start, end = metrics["validation_at_start"], metrics["validation"] or metrics["validation_at_start"]
    prompts = meta.teacher.get("prompts") or {}
    shown = {role: prompt for role, prompt in sorted(prompts.items()) if prompt}
    return Template(files("pipeline.fit").joinpath("templates/student.md").read_text(encoding="utf-8")).substitute(
        teacher=public_name(str(meta.teacher.get("model", "unknown"))),
        unverified=f" The vectors are unverified: {UNVERIFIED}." if meta.unverified else "",
        fingerprint=meta.fingerprint,
        license=meta.license or "not stated",
        base=public_name(params.student.model) + ORIGINS[params.student.weights],
        architecture=_architecture(student),
        vocabulary=f"{student.backbone.token_embeddings.num_embeddings:,} {TOKENS[params.student.vocabulary]}",
        parameters=f"{metrics['parameters']:,} ({metrics['parameters'] * FLOAT_BYTES / 1e6:,.1f} MB)",
        max_length=student.max_length,
        pooling=", ".join(POOLING_WORDS[mode] for mode in student.backbone.pooling),
        needs=student.backbone.needs,
        dim=student.dim,
        normalized="of length one" if student.normalize else "not normalised",
        comparison=meta.comparison,
        documents=_documents(meta.teacher, prompts.get("document") or ""),
        prompts=f" ({json.dumps(shown, ensure_ascii=False)})" if shown else "",
        corpus=corpus_table(corpus),
        validation_rows=metrics["validation_rows"],
        loss=params.loss,
        start_loss=_figure(start, "loss"),
        end_loss=_figure(end, "loss"),
        start_cosine=_figure(start, "cosine"),
        end_cosine=_figure(end, "cosine"),
        steps=f"{metrics['steps']:,}",
        presentations=f"{metrics['presentations']:,}",
        params=json.dumps(_public_params(params), indent=1, sort_keys=True, ensure_ascii=False),
        identity=json.dumps(_identity(meta.teacher), indent=1, sort_keys=True, ensure_ascii=False),
    )


def _architecture(student: Student) -> str:
    layers, width = student.backbone.layers, student.width
    return f"{layers} layers, {width} features" if layers else f"a table of token vectors, {width} wide, and no layers"


def corpus_table(corpus: Path) -> str:
    """Rows per source, role and split, as a Markdown table."""
    groups = ["source", "role", "split"]
    counts = scan(corpus).group_by(groups).len("rows").sort(groups).collect(engine="streaming")
    lines = ["| source | role | split | texts |", "|---|---|---|---|"]
    lines += [f"| {source} | {role} | {split} | {rows:,} |" for source, role, split, rows in counts.iter_rows()]
    return "\n".join(lines)


def _documents(teacher: dict[str, Any], prompt: str) -> str:
    """Code that embeds documents with the teacher."""
    name = public_name(str(teacher.get("model", "unknown")))
    if teacher.get("kind") == "several":
        return (
            "# These vectors are those of several teachers side by side, each of length one, scaled to length one:\n"
            + "\n".join(f"# {part['dim']} dimensions of {part['model']}" for part in teacher["parts"])
            + "\n# To compare with one teacher's documents, take its columns of the student's vectors.\n"
            "documents = ..."
        )
    if teacher.get("kind") == "api":
        texts = json.dumps([f"{prompt}A text.", f"{prompt}Another text."], ensure_ascii=False)
        fields = (teacher.get("extra") or {}).get("document")
        extra = f", extra_body={fields}" if fields else ""
        return (
            "from openai import OpenAI  # and numpy as np\n\n"
            f'answer = OpenAI(base_url="https://...").embeddings.create(model="{name}", input={texts}{extra})\n'
            "documents = np.array([one.embedding for one in answer.data], np.float32)"
        )
    given = f", prompt={prompt!r}" if prompt else ""
    return f'teacher = SentenceTransformer("{name}")\ndocuments = teacher.encode(["A text.", "Another text."]{given})'


def _public_params(params: FitParams) -> dict[str, Any]:
    shown = asdict(params)
    shown["student"]["model"] = public_name(params.student.model)
    shown["further_stores"] = [public_name(place) for place in params.further_stores]
    for section, name in (("anchor", "store"), ("candidates", "path")):
        if shown[section]:
            shown[section][name] = public_name(shown[section][name])
    return shown


def _identity(teacher: dict[str, Any]) -> dict[str, Any]:
    """The identity for readers: without the model's place, and without a probe's vectors, which are in the store."""
    shown = {**teacher, "model": public_name(str(teacher.get("model", "unknown")))}
    if isinstance(probe := teacher.get("probe"), dict):
        shown["probe"] = {name: value for name, value in probe.items() if name != "vectors"}
    return shown


def _figure(values: dict[str, float], name: str) -> str:
    return f"{values[name]:.4f}" if name in values else "not measured"
