"""Shared by the commands of all stages: the option for the parameter file, errors as messages, writing metrics."""

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pipeline.base import LeafError, access, written_file
from pipeline.store import check_fitted_to
from stages.recorded import removed_by_dvc

if TYPE_CHECKING:
    from pipeline.teacher import Teacher  # only for its name: commands without a model do not wait for torch

params_option = click.option(
    "--params", type=Path, default=Path("params.yaml"), show_default=True, help="Parameter file."
)


class _Command(click.Command):
    """A click command that ends with a message and exit code 1 on bad input, and ends orderly on SIGTERM.

    It ends without a word where nobody reads its output any more (`leaf search ... | head -1`).
    """

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            with access():
                result = super().invoke(ctx)
            sys.stdout.flush()  # while a closed pipe can still be told from other errors
            return result
        except LeafError as error:
            raise click.ClickException("\n".join([str(error), *removed_by_dvc(_paths(ctx))])) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left, Python writes at its end
                return None
            raise click.ClickException(f"{error.filename or 'the system'}: {error.strerror or error}") from None


def _nobody_reads() -> bool:
    """Whether the reader of standard output has gone: a broken pipe may also be a connection to a server."""
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), select.POLLOUT)
    except OSError:  # it is kept in memory
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def _paths(ctx: click.Context) -> list[Path]:
    return [value for value in ctx.params.values() if isinstance(value, Path)]


def _terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def command(function: Callable[..., None]) -> click.Command:
    """Make a stage's command of a function."""
    return click.command(cls=_Command)(function)


def check_student(model: Path, fingerprint: str, place: str, teacher: "Teacher | None" = None) -> None:
    """Refuse a model that was fitted to other vectors than those at `place`; a word where it does not say to which.

    `teacher`, where it is known, tells the fingerprints that it had in earlier versions.
    """
    word = check_fitted_to(model, fingerprint, place, lambda: teacher.earlier_fingerprints if teacher else ())
    if word:
        click.echo(word, err=True)


def with_part(model: Path, fingerprint: str) -> Path:
    """The student at `model` for vectors of this fingerprint (`pipeline.model.part_of`), until the command ends."""
    from pipeline.model import part_of  # only now: commands without a model do not wait for torch

    return click.get_current_context().with_resource(part_of(model, fingerprint))


def write_json(path: Path, figures: Mapping[str, object]) -> None:
    """Write metrics as JSON with sorted keys; a kill leaves the old file or the new one, never a part."""
    with written_file(path) as file:
        file.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")
