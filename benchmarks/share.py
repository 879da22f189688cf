"""What `fit.start_share` is worth: retention of one run's student for several shares of its start.

python -m benchmarks.share --params recipes/mpnet-minilm.yaml --run runs/mpnet-minilm

The run must have step 0 among its snapshots. Weights are averages of what it saved, so nothing is fitted again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.dose import measured, table
from pipeline.base import LeafError
from pipeline.fit import start_shares
from pipeline.model import Student
from pipeline.params import FitParams, load_section
from stages.common import command

SHARES = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)


@command
@click.option("--params", type=Path, required=True, help="Parameter file of the run.")
@click.option("--run", "folder", type=Path, required=True, help="Directory that `make recipe` filled.")
@click.option("--model", default="student", show_default=True, help="What to average with the start, below RUN.")
@click.option("--share", "shares", type=click.FloatRange(0, 1), multiple=True, default=SHARES, show_default=True)
@click.option("--first", type=click.FloatRange(0, 1), help="Share in the first layer, graded from there (LiNeS).")
def main(params: Path, folder: Path, model: str, shares: tuple[float, ...], first: float | None) -> None:
    """Print a row for each share of the start in the weights."""
    if not (folder / "student-snapshots/step-0").is_dir():
        raise LeafError(f"{folder}: holds no snapshot of step 0; name it in fit.snapshots before the run")
    start, saved = (Student.load(folder / name).state_dict() for name in ("student-snapshots/step-0", model))
    # What was saved holds its share of the start already: extrapolating gives the weights after the last step.
    student, measure = Student.load(folder / model), measured(params, folder)
    settings = load_section(params, "fit", FitParams)
    held = start_shares(student, settings.start_share, settings.start_share_first)
    end = {name: torch.lerp(start[name], value, 1 / (1 - held[name])) for name, value in saved.items()}

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for share in shares:
            graded = start_shares(student, share, first)
            student.load_state_dict({name: torch.lerp(end[name], start[name], graded[name]) for name in end})
            yield f"{share:g}", measure(student)

    table("start's share", rows())


if __name__ == "__main__":
    main()
