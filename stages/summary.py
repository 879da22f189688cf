"""Print what the pipeline made: a short table and the paths. Reads the metrics, computes nothing."""

import json
from pathlib import Path
from typing import Any

from pipeline.base import LeafError
from stages.common import command, echo
from stages.evaluate import table

METRICS = Path("metrics")
OUTPUTS = {
    "models/student": "the student, for sentence_transformers.SentenceTransformer",
    "models/student/README.md": "its model card",
    "models/asymmetric": "queries through the student, documents through the teacher, in one model",
    "models/onnx": "the student for onnxruntime, float32 and int8; `leaf search` uses it",
    "data/embeddings": "the teacher's vectors (docs/format.md)",
    "metrics/evaluate.json": "every figure above and its interval",
    "reports/report.html": "all of it on one page, for a browser",
    "plots/evaluation.svg": "the figures as a picture; `dvc plots show` draws the curves",
}


@command
def main() -> None:
    """Print the results of the last run and where its files are."""
    corpus, encode, fit, evaluate = (
        _read(METRICS / f"{name}.json") for name in ("corpus", "encode", "fit", "evaluate")
    )
    echo(f"\ncorpus    {corpus['total']:,} texts, {corpus['splits'].get('heldout', 0):,} of them held out")
    echo(f"encode    {encode['rows_encoded']:,} texts encoded, {encode['rows_reused']:,} reused")
    echo(f"fit       {fit['presentations']:,} presentations, {fit['samples_per_s']:,} a second")
    echo("\n".join(["evaluate", *(f"  {line}" for line in table(evaluate)), ""]))
    for path, description in OUTPUTS.items():
        echo(f"{path:26}{description}")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeafError(f"{path}: cannot be read ({error}); run `dvc repro` first") from None


if __name__ == "__main__":
    main()
