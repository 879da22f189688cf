"""What `leaf init` suggests where nobody says otherwise: models, how to fit, what to hold out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.base import LeafError
from pipeline.corpus import FEW_HELDOUT, Preview, field_names
from pipeline.params import FitParams, StudentParams
from stages.estimate import ModelSize

MODELS = ("sentence-transformers/all-mpnet-base-v2", "sentence-transformers/all-MiniLM-L6-v2")
"""Teacher and student for English: the pair of docs/benchmarks.md."""
MULTILINGUAL = (
    "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
)
HELDOUT = 0.1  # share of the records
TESTED = 2000  # held-out records that are enough to test with
PRESENTATIONS = 1_000_000  # of a fit at most; docs/benchmarks.md shows what more or fewer are worth
_COLUMNS = {"sts": {"sentence1", "sentence2", "score"}, "classification": {"text", "label"}}


def models(previews: Sequence[Preview]) -> tuple[str, str]:
    """Teacher and student for the language of the texts."""
    return MODELS if {seen.language for seen in previews} <= {"English", None} else MULTILINGUAL


def fit(name: str, size: ModelSize, teacher: ModelSize | None, previews: Sequence[Preview]) -> FitParams:
    """How to fit a student that starts from the model `name`.

    As measured for embedding models (docs/benchmarks.md, all-mpnet-base-v2), as the paper does for other checkpoints.
    """
    suggested = FitParams(StudentParams(name))
    if size.embeds:
        suggested = replace(suggested, learning_rate=2e-4, dropout=0.0)
        if teacher is not None and teacher.width >= size.width:
            suggested = replace(suggested, student=StudentParams(name, head="rotation"))
    most = PRESENTATIONS // suggested.batch_size
    return replace(suggested, max_steps=most) if steps(suggested, previews) > most else suggested


def steps(params: FitParams, previews: Sequence[Preview], heldout: float = 0) -> int:
    """Steps of a fit to these texts."""
    texts = sum(seen.distinct for seen in previews) * (1 - heldout)
    of_all_epochs = max(1, int(texts) * params.cycles * params.epochs_per_cycle // params.batch_size)
    return min(of_all_epochs, params.max_steps or of_all_epochs)


def heldout(records: int) -> float:
    """A tenth; less of so many records that fewer are enough, more of few."""
    share = 2 * HELDOUT if records * HELDOUT < FEW_HELDOUT else min(HELDOUT, TESTED / records)
    return float(f"{share:.1g}")


def evaluation_kind(path: Path) -> str:
    """The key of the section `evaluate` that a file or directory belongs to.

    Raises:
        LeafError: there is none.
    """
    if path.is_dir():
        return "beir"
    if not path.is_file():
        raise LeafError(f"--evaluation {path}: no such file or directory")
    names = field_names(path)
    kind = next((kind for kind, columns in _COLUMNS.items() if columns <= names), None)
    if kind is None:
        raise LeafError(
            f"--evaluation {path}: must have the columns sentence1, sentence2, score, or text, label, or be a "
            "directory in BEIR layout"
        )
    return kind
