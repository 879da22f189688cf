"""The average of several students' weights, a soup (arXiv 2203.05482): runs from one start over different data, say."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.base import LeafError
from pipeline.model import Student
from pipeline.store import FittedTo

CARD = """# An average of {count} students

A student whose weights are the mean of those of {names}.
They were fitted to vectors of the fingerprint `{fingerprint}`.
It loads as they do: `SentenceTransformer("path/to/this/directory")`. Their cards say what they were fitted on.
"""


@torch.no_grad()
def soup(models: Sequence[Path], out: Path) -> None:
    """Write the student whose weights are the mean of those of `models` to `out`.

    The students must come from one start, or their mean computes nothing; that is not checked.

    Raises:
        LeafError: fewer than two, no students, or such as differ in shape, tokens or teacher.
    """
    if len(models) < 2:
        raise LeafError("an average needs at least two students: name more directories")
    fitted = FittedTo.read(models[0])
    student = Student.load(models[0])
    sums = {name: value.double() for name, value in student.state_dict().items()}
    for path in models[1:]:
        if FittedTo.read(path) != fitted:
            raise LeafError(f"{path}: was fitted to the vectors of another teacher than {models[0]}")
        other = Student.load(path)
        if difference := _difference(student, other):
            raise LeafError(f"{path}: has {difference} than {models[0]}: only students of one shape can be averaged")
        for name, value in other.state_dict().items():
            sums[name] += value
    student.load_state_dict({name: (value / len(models)).float() for name, value in sums.items()})
    names = ", ".join(f"`{path.name}`" for path in models)
    fingerprint = fitted.fingerprint if fitted else "unknown"
    student.save(out, CARD.format(count=len(models), names=names, fingerprint=fingerprint), fitted)


def _difference(first: Student, second: Student) -> str | None:
    """In what two students differ beside their weights, in words; None if in nothing."""
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (first, second)]
    differs = {
        "other shapes of weights": shapes[0] != shapes[1],
        "another architecture": first.backbone.model_type != second.backbone.model_type,
        "another pooling": first.backbone.pooling != second.backbone.pooling,
        "another longest text": first.max_length != second.max_length,
        "other tokens": first.tokenizer().to_str() != second.tokenizer().to_str(),
        "another normalisation": (first.normalize, first.similarity) != (second.normalize, second.similarity),
    }
    return next((words for words, found in differs.items() if found), None)
