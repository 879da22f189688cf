"""What `fit.start_share` is worth: retention of one run's student for several shares of its start.

python -m benchmarks.share --project runs/mpnet-minilm

The run must have step 0 among its snapshots. Weights are averages of what it saved, so nothing is fitted again.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.dose import PARAMS, SNAPSHOTS, STUDENT, measured, project_option, table
from pipeline.base import LeafError
from pipeline.fit import start_shares
from pipeline.model import Student
from pipeline.params import FitParams, load_section
from stages.common import command

SHARES = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)


@command
@project_option
@click.option("--model", type=Path, default=STUDENT, show_default=True, help="What to average with the start.")
@click.option("--share", "shares", type=click.FloatRange(0, 1), multiple=True, default=SHARES, show_default=True)
@click.option("--first", type=click.FloatRange(0, 1), help="Share in the first layer, graded from there (LiNeS).")
def main(project: Path, model: Path, shares: tuple[float, ...], first: float | None) -> None:
    """Print a row for each share of the start in the weights."""
    os.chdir(project)
    if not (SNAPSHOTS / "step-0").is_dir():
        raise LeafError(f"{project}: holds no snapshot of step 0; name it in fit.snapshots before the run")
    start, saved = (Student.load(place).state_dict() for place in (SNAPSHOTS / "step-0", model))
    # What was saved holds its share of the start already: extrapolating gives the weights after the last step.
    student, measure = Student.load(model), measured()
    settings = load_section(PARAMS, "fit", FitParams)
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
