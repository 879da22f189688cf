"""A student of several teachers, cut back to the part of its vectors that is one teacher's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.model.student import Student
from pipeline.store import FittedTo


@contextmanager
def part_of(model: Path, fingerprint: str) -> Iterator[Path]:
    """The directory of the student at `model` as it is to be used with vectors of this fingerprint.

    Of a student of several teachers that is its part for that teacher, a student like any other, until the block ends;
    of any other student it is `model` itself.
    """
    fitted = FittedTo.read(model)
    columns = fitted.columns(fingerprint) if fitted else None
    if columns is None:
        yield model
        return
    card = model / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    with TemporaryDirectory(prefix="leaf-part-") as folder:
        place = Path(folder) / model.resolve().name
        Student.load(model).part(columns).save(place, text, FittedTo(fingerprint))
        yield place
