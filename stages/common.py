"""What the stages' commands share: the parameter file, errors as one sentence, metrics written whole."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from pipeline.base.errors import LeafError

params_option = click.option(
    "--params", type=Path, default=Path("params.yaml"), show_default=True, help="Parameter file."
)


class _Command(click.Command):
    """A click command whose bad input ends in one message and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except LeafError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'the system'}: {error.strerror or error}") from None


def _terminate(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def command(function: Callable[..., None]) -> click.Command:
    """Turn a function into a stage's command."""
    return click.command(cls=_Command)(function)


def write_json(path: Path, figures: Mapping[str, object]) -> None:
    """Write metrics as JSON with sorted keys, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
