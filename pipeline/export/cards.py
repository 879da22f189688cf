"""What the model cards of all exports share: origin and licence, front matter for the hub, measured results."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from pipeline.base import LeafError, Similarity, markdown, parse_yaml, shortened
from pipeline.params import ExportParams, public_name

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
MAX_FRONT_MATTER = 2**20  # characters
METRICS = {"ndcg@10": "nDCG@10", "recall@100": "recall@100", "mrr@10": "MRR@10"}
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "distillation"]


@dataclass(frozen=True)
class Origin:
    """What a student comes from: hub ids where they are known, the inherited licence, and evaluate's figures."""

    teacher: str | None
    """Its hub id."""
    base_models: tuple[str, ...]
    license: str | None
    retrieval: dict[str, Any]
    similarity: Similarity = "cosine"
    """What vectors are compared by, in these figures too."""
    model: str = "its teacher"
    """The teacher by its public name, which stands for a hub id where none is known."""

    @property
    def teacher_name(self) -> str:
        """What a card calls the teacher, in Markdown."""
        return markdown(self.teacher or self.model)

    @property
    def title(self) -> str:
        """What the hub calls the student, which has no name of its own."""
        return f"A student of {self.teacher or self.model}"


def origin_of(
    params: ExportParams,
    teacher: str,
    checkpoint: str,
    directories: tuple[Path | None, Path | None],
    evaluation: dict[str, Any],
    *,
    vectors_license: str | None,
) -> Origin:
    """The origin of a student.

    Args:
        params: ids and licence in it come before what is inferred here.
        teacher: `teacher.model` in the parameters.
        checkpoint: `fit.student.model` in the parameters.
        directories: of teacher (None: behind an API) and checkpoint (None: unknown); their cards tell the licence.
        evaluation: metrics of the evaluate stage; may be empty.
        vectors_license: of the stored vectors that the student was fitted to, where it was stated.
    """
    ids = [
        (hub_id(teacher) if directories[0] is not None else None) or params.teacher_id,
        hub_id(checkpoint) or params.student_id,
    ]
    licenses = {license_of(directory) if directory else None for directory in directories}
    if vectors_license:
        licenses.add(vectors_license.lower())  # as the hub writes licences
    inherited = licenses.pop() if len(licenses) == 1 else "other" if None not in licenses else None
    known = tuple(dict.fromkeys(name for name in ids if name))
    measured = evaluation.get("retrieval", {}), evaluation.get("similarity", "cosine")
    name = Path(teacher).name if Path(teacher).is_dir() else public_name(teacher)
    return Origin(ids[0], known, params.license or inherited, *measured, name)


def hub_id(model: str) -> str | None:
    """`model` itself if it is an id on the hub and not a place on this machine."""
    local = model.startswith(("package:", ".", "/", "~")) or Path(model).is_dir()
    return None if local else model


def license_of(directory: Path) -> str | None:
    """The `license` in the front matter of the directory's README.md; None without any."""
    try:
        with (directory / "README.md").open(encoding="utf-8") as file:
            matter = FRONT_MATTER.match(file.read(MAX_FRONT_MATTER))
        document = parse_yaml(matter[1]) if matter else None
    except (OSError, UnicodeDecodeError, LeafError):
        return None
    name = document.get("license") if isinstance(document, dict) else None
    return shortened(name) if isinstance(name, str) else None


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
                {
                    "type": f"{origin.similarity}_{metric}",
                    "value": figures[mode][metric],
                    "name": f"{origin.similarity.capitalize()} {shown}",
                }
                for metric, shown in METRICS.items()
            ],
        }
        for source, figures in sorted(origin.retrieval.items())
        for mode in modes
    ]
    if results:
        data["model-index"] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def results_table(origin: Origin, modes: Sequence[str]) -> str:
    """The retrieval results in Markdown, the teacher's first; empty if nothing was evaluated."""
    if not origin.retrieval:
        return ""
    lines = [
        "## Results",
        "",
        "| data set | mode | nDCG@10 | 95 % interval | recall@100 | MRR@10 | share of the teacher |",
        "|---|---|---|---|---|---|---|",
    ]
    for source, figures in sorted(origin.retrieval.items()):
        lines += [f"| {markdown(source)} | {mode} | {_result_cells(figures[mode])} |" for mode in ("teacher", *modes)]
    return "\n".join(lines) + "\n"


def _result_cells(figures: Mapping[str, Any]) -> str:
    span, share = figures["interval"]["ndcg@10"], figures.get("retention")
    cells = [
        f"{figures['ndcg@10']:.4f}",
        f"{span[0]:.4f} to {span[1]:.4f}" if span else "",
        f"{figures['recall@100']:.4f}",
        f"{figures['mrr@10']:.4f}",
        "" if share is None else f"{share:.1%}",
    ]
    return " | ".join(cells)


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    """The body of a card: a file below `templates/` with its `$names` replaced."""
    text = files("pipeline.export").joinpath(f"templates/{template}").read_text(encoding="utf-8")
    return "\n" + Template(text).substitute(values).rstrip() + "\n"
