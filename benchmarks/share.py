"""What `fit.start_share` is worth: retention of one run's student for several shares of its start.

python -m benchmarks.share --params recipes/mpnet-minilm.yaml --run runs/mpnet-minilm

The run must have step 0 among its snapshots. Weights are averages of what it saved, so nothing is fitted again.
"""

import dataclasses
from functools import partial
from pathlib import Path

import click
import torch

from pipeline.evaluate import evaluate, pooled
from pipeline.params import EncodeParams, EvaluateParams, FitParams, TeacherParams, load_section
from pipeline.student import Student, StudentEncoder


@click.command()
@click.option("--params", type=Path, required=True, help="Parameter file of the run.")
@click.option("--run", "folder", type=Path, required=True, help="Directory that `make recipe` filled.")
@click.option("--model", default="student", show_default=True, help="What to average with the start, below RUN.")
@click.option("--shares", default="0,0.15,0.3,0.5,0.7,1", show_default=True, help="Shares of the start.")
def main(params: Path, folder: Path, model: str, shares: str) -> None:
    """Print a row for each share: held-out cosine, then standard and asymmetric retention of each collection."""
    saved_share = load_section(params, "fit", FitParams).start_share
    start, saved = (Student.load(folder / name).state_dict() for name in ("snapshots/step-0", model))
    # What was saved holds its share of the start already: extrapolating gives the weights after the last step.
    end = {name: torch.lerp(start[name], value, 1 / (1 - saved_share)) for name, value in saved.items()}
    student = Student.load(folder / model)
    teacher_of = partial(
        pooled, load_section(params, "teacher", TeacherParams), load_section(params, "encode", EncodeParams)
    )
    settings = load_section(params, "evaluate", EvaluateParams)
    settings = dataclasses.replace(settings, calibration_rows=0, bootstrap=0, dims=(1,), moved=0, map_texts=0)
    titles: list[str] = []
    for share in map(float, shares.split(",")):
        student.load_state_dict({name: torch.lerp(end[name], start[name], share) for name in end})
        encoder = StudentEncoder(student)
        found = evaluate(folder / "corpus", folder / "embeddings", encoder.encode, teacher_of, settings).figures
        names = sorted(found["retrieval"])
        if not titles:
            titles = [f"{name} {mode}" for name in names for mode in ("standard", "asymmetric")]
            click.echo(f"| start's share | held-out cosine | {' | '.join(titles)} |\n{'|---' * (2 + len(titles))}|")
        alignment = found["alignment"].values()
        cosine = sum(one["cosine"]["mean"] * one["n"] for one in alignment) / sum(one["n"] for one in alignment)
        cells = [found["retrieval"][n][mode]["retention"] for n in names for mode in ("standard", "asymmetric")]
        click.echo(f"| {share:g} | {cosine:.3f} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
