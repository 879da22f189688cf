"""Average the weights of several students: `leaf soup models/a models/b --out models/student`."""

from pathlib import Path

import click

from pipeline.base import check_writable
from pipeline.store import MODEL_KIND
from stages.common import command, echo


@command
@click.argument("models", nargs=-1, required=True, type=Path)
@click.option("--out", type=Path, required=True, help="Student to write.")
def main(models: tuple[Path, ...], out: Path) -> None:
    """Write the student whose weights are the mean of those of MODELS, directories of students of one shape.

    They must have started from one checkpoint with one head: runs that differ in texts, order or parameters, or
    snapshots of one run.
    """
    from pipeline.fit import soup  # only now: `leaf` answers without waiting for torch

    check_writable([], {out: MODEL_KIND})
    soup(models, out)
    echo(out)


if __name__ == "__main__":
    main()
