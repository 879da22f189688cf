"""The student's model card, filled in from `templates/student.md`.

It holds no times and no paths, so that equal runs write equal cards.
"""

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from pipeline.base import LONGEST_NAME, code_span, markdown, printable, string_literal
from pipeline.corpus import scan
from pipeline.model import Student
from pipeline.params import FitParams, Pooling, name_in_code, public_name, public_params
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
LONGEST_LICENSE = 500  # characters
LONGEST_JSON = 20_000


def write_card(meta: StoreMeta, corpus: Path, params: FitParams, metrics: dict[str, Any], student: Student) -> str:
    """The card's text, in Markdown."""
    start, end = metrics["validation_at_start"], metrics["validation"] or metrics["validation_at_start"]
    prompts = meta.teacher.get("prompts") or {}
    shown = {role: prompt for role, prompt in sorted(prompts.items()) if prompt}
    return Template(files("pipeline.fit").joinpath("templates/student.md").read_text(encoding="utf-8")).substitute(
        teacher=markdown(public_name(str(meta.teacher.get("model", "unknown")))),
        unverified=f" The vectors are unverified: {UNVERIFIED}." if meta.unverified else "",
        fingerprint=meta.fingerprint,
        license=markdown(meta.license or "not stated", LONGEST_LICENSE),
        base=markdown(public_name(params.student.model)) + ORIGINS[params.student.weights],
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
        prompts=f" ({code_span(json.dumps(shown, ensure_ascii=False))})" if shown else "",
        corpus=corpus_table(corpus),
        validation_rows=metrics["validation_rows"],
        loss=params.loss,
        start_loss=_figure(start, "loss"),
        end_loss=_figure(end, "loss"),
        start_cosine=_figure(start, "cosine"),
        end_cosine=_figure(end, "cosine"),
        steps=f"{metrics['steps']:,}",
        processes=_processes(metrics.get("processes", {}), params),
        presentations=f"{metrics['presentations']:,}",
        params=_json(public_params(asdict(params))),
        identity=_json(_identity(meta.teacher)),
    )


def _json(content: dict[str, Any]) -> str:
    """JSON for a block of code, at most LONGEST_JSON characters of it."""
    text = printable(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))
    return text if len(text) <= LONGEST_JSON else f"{text[:LONGEST_JSON]}\n..."


def _architecture(student: Student) -> str:
    layers, width = student.backbone.layers, student.width
    return f"{layers} layers, {width} features" if layers else f"a table of token vectors, {width} wide, and no layers"


def _processes(counts: dict[int, int], params: FitParams) -> str:
    """A sentence where not one process computed all steps; `counts` are by the step from which on they did."""
    if not counts:
        return ""
    if params.replicas > 1:
        return f" {params.replicas} replicas trained side by side and were averaged every {params.average_every} steps."
    shares = ", ".join(f"{count} from step {step:,}" for step, count in counts.items())
    return f" So many processes shared each batch: {shares}."


def corpus_table(corpus: Path) -> str:
    """Rows per source, role and split, as a Markdown table."""
    groups = ["source", "role", "split"]
    counts = scan(corpus).group_by(groups).len("rows").sort(groups).collect(engine="streaming")
    lines = ["| source | role | split | texts |", "|---|---|---|---|"]
    lines += [
        f"| {markdown(source)} | {role} | {split} | {rows:,} |" for source, role, split, rows in counts.iter_rows()
    ]
    return "\n".join(lines)


def _documents(teacher: dict[str, Any], prompt: str) -> str:
    """Code that embeds documents with the teacher."""
    name = string_literal(name_in_code(str(teacher.get("model", "unknown")))[:LONGEST_NAME])
    if teacher.get("kind") == "several":
        return (
            "# These vectors are those of several teachers side by side, each of length one, scaled to length one:\n"
            + "\n".join(
                f"# {part['dim']} dimensions of {printable(str(part['model']))[:LONGEST_NAME]}"
                for part in teacher["parts"]
            )
            + "\n# To compare with one teacher's documents, take its columns of the student's vectors.\n"
            "documents = ..."
        )
    if teacher.get("kind") == "api":
        texts = printable(json.dumps([f"{prompt}A text.", f"{prompt}Another text."], ensure_ascii=False))
        fields = (teacher.get("extra") or {}).get("document")
        extra = f", extra_body={fields}" if fields else ""
        return (
            "from openai import OpenAI  # and numpy as np\n\n"
            f'answer = OpenAI(base_url="https://...").embeddings.create(model={name}, input={texts}{extra})\n'
            "documents = np.array([one.embedding for one in answer.data], np.float32)"
        )
    given = f", prompt={prompt!r}" if prompt else ""
    return f'teacher = SentenceTransformer({name})\ndocuments = teacher.encode(["A text.", "Another text."]{given})'


def _identity(teacher: dict[str, Any]) -> dict[str, Any]:
    """The identity for readers: without the model's place, and without a probe's vectors, which are in the store."""
    shown = {**teacher, "model": public_name(str(teacher.get("model", "unknown")))}
    if isinstance(probe := teacher.get("probe"), dict):
        shown["probe"] = {name: value for name, value in probe.items() if name != "vectors"}
    return shown


def _figure(values: dict[str, float], name: str) -> str:
    return f"{values[name]:.4f}" if name in values else "not measured"
