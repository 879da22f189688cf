"""Shared by the commands of all stages: the option for the parameter file, errors as messages, writing metrics."""

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pipeline.base import LeafError, access, first_line, is_panic, printable, written_file
from pipeline.params import EncodeParams, Permits, TeacherParams
from pipeline.store import VectorSource, check_fitted_to
from stages.recorded import removed_by_dvc

if TYPE_CHECKING:
    from pipeline.teacher import Teacher  # only for its name: commands without a model do not wait for torch

params_option = click.option(
    "--params", type=Path, default=Path("params.yaml"), show_default=True, help="Parameter file."
)


class _PrintableRecord(logging.LogRecord):
    """A message of any library's log, which may quote a model's or a server's words."""

    def getMessage(self) -> str:  # noqa: N802  the name is logging's
        """The message, with nothing that a terminal would obey."""
        return printable(super().getMessage())


class _Command(click.Command):
    """A click command that ends with a message and exit code 1 on bad input, and ends orderly on SIGTERM.

    It ends without a word where nobody reads its output any more (`leaf search ... | head -1`).
    """

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        logging.setLogRecordFactory(_PrintableRecord)
        try:
            with access():
                result = super().invoke(ctx)
            sys.stdout.flush()  # while a closed pipe can still be told from other errors
            return result
        except LeafError as error:
            hints = [*removed_by_dvc(_paths(ctx)), *_elsewhere(ctx, str(error))]
            raise click.ClickException("\n".join([str(error), *hints])) from None
        except BaseException as error:
            if is_panic(error):
                raise click.ClickException(f"a library's native code gave up: {printable(first_line(error))}") from None
            if not isinstance(error, OSError):
                raise
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left, Python writes at its end
                return None
            raise click.ClickException(
                printable(f"{error.filename or 'the system'}: {error.strerror or error}")
            ) from None


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


def _elsewhere(ctx: click.Context, message: str) -> list[str]:
    """A sentence where a command lacks what lies in a project, and is called in a directory that is none."""
    is_default = {name: ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT for name in ctx.params}
    places = [value for name, value in ctx.params.items() if is_default[name] and isinstance(value, Path)]
    if Path("dvc.yaml").exists() or not any(str(place) in message and not place.exists() for place in places):
        return []
    return ["there is no dvc.yaml in this directory: is it that of a project (`leaf init DIR` makes one)?"]


def _terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def command(function: Callable[..., None]) -> click.Command:
    """Make a stage's command of a function."""
    return click.command(cls=_Command)(function)


def api_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that allow a parameter file more than any file may do; the function gets them as `permits`."""

    @wraps(function)
    def with_permits(*args: Any, key_env: str | None, plain_http: str | None, **options: Any) -> None:
        function(*args, permits=Permits(key_env, plain_http), **options)

    key_env = click.option(
        "--key-env", envvar="LEAF_KEY_ENV", metavar="NAME", help="Let teacher.api.key_env name this variable."
    )
    plain_http = click.option(
        "--plain-http", envvar="LEAF_PLAIN_HTTP", metavar="HOST", help="Let teacher.api.base_url be http:// there."
    )
    return key_env(plain_http(with_permits))


def open_teacher(
    params: TeacherParams, encode: EncodeParams, permits: Permits, store: VectorSource | None = None
) -> "Teacher":
    """`pipeline.teacher.open_teacher`, after saying what is sent to whom."""
    from pipeline.teacher import open_teacher as opened  # here: commands that need no model do not wait for torch

    teacher = opened(params, encode, store, permits)
    if api := params.api:
        key = f"the key in {api.key_env}" if os.environ.get(api.key_env) else f"no key, as {api.key_env} is not set"
        echo(f"teacher.api: texts that have no vector yet are sent to {api.base_url}, with {key}", err=True)
    return teacher


def echo(message: object, err: bool = False) -> None:
    """Print a line. Texts, ids and names in it come from other people: what a terminal would obey is written out."""
    click.echo(printable(str(message)), err=err)


def check_student(model: Path, fingerprint: str, place: str, teacher: "Teacher | None" = None) -> None:
    """Refuse a model that was fitted to other vectors than those at `place`; a word where it does not say to which.

    `teacher`, where it is known, tells the fingerprints that it had in earlier versions.
    """
    word = check_fitted_to(model, fingerprint, place, lambda: teacher.earlier_fingerprints if teacher else ())
    if word:
        echo(word, err=True)


def with_part(model: Path, fingerprint: str) -> Path:
    """The student at `model` for vectors of this fingerprint (`pipeline.model.part_of`), until the command ends."""
    from pipeline.model import part_of  # only now: commands without a model do not wait for torch

    return click.get_current_context().with_resource(part_of(model, fingerprint))


def write_json(path: Path, figures: Mapping[str, object]) -> None:
    """Write metrics as JSON with sorted keys; a kill leaves the old file or the new one, never a part."""
    with written_file(path) as file:
        file.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")
