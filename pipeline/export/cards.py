"""Model cards of what is exported: front matter for the hub with the measured results, and how to use each model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from pipeline.params.sections import ExportParams, StudentParams, TeacherParams, public_name

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
MEASURES = {"ndcg@10": "Cosine nDCG@10", "recall@100": "Cosine recall@100", "mrr@10": "Cosine MRR@10"}
NAMELESS = "the teacher"
NAMED = ("# A student of {}\n", "**{}**", "| teacher | {} |", 'SentenceTransformer("{}")')
"""Where fit's card names the teacher. Elsewhere the same word is none: a directory may be called `teacher`."""
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "distillation"]
USAGE = {
    "inside": 'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("path/to/this")',
    "named": "from asymmetric import load  # asymmetric.py lies beside this card\n\nmodel = load()",
}


@dataclass(frozen=True)
class Origin:
    """What a student comes from: hub ids where they are known, the inherited licence, and evaluate's figures."""

    teacher: str | None
    base_models: tuple[str, ...]
    license: str | None
    retrieval: dict[str, Any]


def origin(
    params: ExportParams,
    teacher: TeacherParams,
    student: StudentParams,
    directories: Sequence[Path | None],
    evaluation: dict[str, Any],
) -> Origin:
    """`directories` of teacher and checkpoint (None where it is not at hand): their cards tell the licence."""
    ids = [
        (hub_id(teacher.model) if teacher.api is None else None) or params.teacher_id,
        hub_id(student.model) or params.student_id,
    ]
    licenses = {license_of(directory) if directory else None for directory in directories}
    inherited = licenses.pop() if len(licenses) == 1 else "other" if None not in licenses else None
    known = tuple(dict.fromkeys(name for name in ids if name))
    return Origin(ids[0], known, params.license or inherited, evaluation.get("retrieval", {}))


def hub_id(model: str) -> str | None:
    """`model` itself where it is an id on the hub and not a place on this machine."""
    local = model.startswith(("package:", ".", "/", "~")) or Path(model).is_dir()
    return None if local else model


def license_of(directory: Path) -> str | None:
    """The `license` in the front matter of the directory's card; None where there is none."""
    try:
        found = FRONT_MATTER.match((directory / "README.md").read_text(encoding="utf-8").replace("\r\n", "\n"))
        document = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    name = document.get("license") if isinstance(document, dict) else None
    return name if isinstance(name, str) else None


def front_matter(name: str, origin: Origin, modes: Sequence[str], library: str = "sentence-transformers") -> str:
    """YAML for the hub: licence, base models, and `model-index` with a result per data set and mode."""
    data: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "sentence-similarity",
        "tags": TAGS if library == TAGS[0] else [library, *TAGS[1:]],
    }
    if origin.license:
        data["license"] = origin.license
    if origin.base_models:
        data["base_model"] = list(origin.base_models)
    results = [
        {
            "task": {"type": "information-retrieval", "name": f"Information Retrieval ({mode})"},
            "dataset": {"name": source, "type": "unknown"},
            "metrics": [
                {"type": f"cosine_{measure}", "value": figures[mode][measure], "name": shown}
                for measure, shown in MEASURES.items()
            ],
        }
        for source, figures in sorted(origin.retrieval.items())
        for mode in modes
    ]
    if results:
        data["model-index"] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def results(origin: Origin, modes: Sequence[str]) -> str:
    """The same results as a table for people, beside the teacher's; empty where nothing was evaluated."""
    if not origin.retrieval:
        return ""
    lines = [
        "## Results",
        "",
        "| data set | mode | nDCG@10 | 95 % interval | recall@100 | MRR@10 | share of the teacher |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for source, figures in sorted(origin.retrieval.items()):
        for mode in ("teacher", *modes):
            one = figures[mode]
            low_high = one["interval"]["ndcg@10"]
            between = f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
            share = one.get("retention")
            values = [
                source,
                mode,
                f"{one['ndcg@10']:.4f}",
                between,
                f"{one['recall@100']:.4f}",
                f"{one['mrr@10']:.4f}",
            ]
            lines.append(f"| {' | '.join(values)} | {'' if share is None else f'{share:.1%}'} |")
    return "\n".join(lines) + "\n"


def student_card(card: str, origin: Origin, teacher: str) -> str:
    """The card that fit wrote, with the front matter and the results that are known now.

    Where it names the teacher, which is `teacher.model` in the parameters, readers get the hub id, if there is one.
    """
    modes = ("standard", "asymmetric")
    head, parameters, rest = FRONT_MATTER.sub("", card).strip().partition("\n## Parameters")
    called = Path(teacher).name if Path(teacher).is_dir() else public_name(teacher)
    for place in NAMED if origin.teacher else ():
        head = head.replace(place.format(called), place.format(origin.teacher))
    body = head + parameters + rest
    table = results(origin, modes).replace("## Results", "## Retrieval")
    return "\n".join([front_matter("student", origin, modes), body, "", table])


def asymmetric_card(kind: str, origin: Origin, dim: int, prompt: str) -> str:
    """`kind`: `inside` or `named`, as the keys of USAGE."""
    modes = ("asymmetric",)
    name = "asymmetric" if kind == "inside" else "asymmetric-named"
    usage = USAGE[kind] if kind == "inside" or origin.teacher else USAGE[kind].replace("()", "(teacher=DIRECTORY)")
    shown = {"name": name, "teacher": origin.teacher or NAMELESS, "dim": dim, "prompt": _code(prompt), "usage": usage}
    return front_matter(name, origin, modes) + _fill("asymmetric.md", shown | {"results": results(origin, modes)})


def onnx_card(origin: Origin, dim: int, max_length: int, rows: Sequence[Sequence[str]]) -> str:
    """`rows` of the table of files: file, precision, megabytes, lowest cosine, loss."""
    modes = ("standard", "asymmetric")
    shown = {"name": "onnx", "teacher": origin.teacher or NAMELESS, "dim": dim, "max_length": max_length}
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    body = _fill("onnx.md", shown | {"table": table, "results": results(origin, modes)})
    return front_matter("onnx", origin, modes, library="onnx") + body


def _code(prompt: str) -> str:
    return f"the prompt `{prompt}`" if prompt else "no prompt"


def _fill(template: str, values: dict[str, Any]) -> str:
    text = files("pipeline.export").joinpath(f"templates/{template}").read_text(encoding="utf-8")
    return "\n" + Template(text).substitute(values).rstrip() + "\n"
