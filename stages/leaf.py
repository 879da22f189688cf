"""The command `leaf`: a project, the stages of its pipeline, and what people do with what they made."""

from importlib import import_module
from typing import cast

import click

COMMANDS = {
    "A project": {
        "init": "Start one: look at texts, ask, write its files.",
        "repro": "Run what is out of date.",
        "params": "Explain the keys of params.yaml.",
    },
    "Stages of the pipeline": {
        "corpus": "Texts of all sources, cleaned, split and sharded.",
        "encode": "Stage one: the teacher's vectors of the corpus.",
        "fit": "Stage two: the student, fitted to the stored vectors.",
        "evaluate": "How much of the teacher's quality the student keeps.",
        "export": "The student ready to serve, and its model cards.",
        "report": "A page about the run, for a browser.",
    },
    "What they made": {
        "search": "Search the documents.",
        "index": "The stored vectors for other search engines.",
        "store": "Inspect, check and share embedding stores.",
        "push-hub": "Upload an exported model to the model hub.",
    },
}
"""Headings, and the commands below each with their help in a line. A command is `main` of the module of its name."""


class _Commands(click.Group):
    """A group that imports a command when it is called, so that none waits for the libraries of the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return cast(click.Command, import_module(f"stages.{cmd_name.replace('-', '_')}").main)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(list(commands.items()))


@click.command(cls=_Commands)
def main() -> None:
    """Distil a large text-embedding model into a small one that serves its index."""


if __name__ == "__main__":
    main()
