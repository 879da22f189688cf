"""The command `leaf`: a project, the stages of its pipeline, and what people do with what they made."""

from importlib import import_module
from typing import cast

import click

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "A project": {
        "init": ("init.main", "Start one: look at texts, ask, write its files."),
        "repro": ("repro.main", "Run what is out of date."),
        "params": ("params.main", "Explain the keys of params.yaml."),
    },
    "Stages of the pipeline": {
        "corpus": ("corpus.main", "Texts of all sources, cleaned, split and sharded."),
        "encode": ("encode.main", "Stage one: the teacher's vectors of the corpus."),
        "fit": ("fit.main", "Stage two: the student, fitted to the stored vectors."),
        "evaluate": ("evaluate.main", "How much of the teacher's quality the student keeps."),
        "export": ("export.main", "The student ready to serve, and its model cards."),
        "report": ("report.main", "A page about the run, for a browser."),
    },
    "Many machines": {
        "plan": ("plan.main", "What the corpus and the parameters will cost."),
        "plan-shards": ("shards.plan", "Orders for the jobs of a batch system."),
        "encode-shards": ("shards.encode", "Carry out orders: what a job of a batch system runs."),
    },
    "What they made": {
        "search": ("search.main", "Search the documents."),
        "index": ("index.main", "The stored vectors for other search engines."),
        "rotate": ("rotate.main", "The teacher and its vectors turned onto their principal axes."),
        "store": ("store.main", "Inspect, check and share embedding stores."),
        "soup": ("soup.main", "Average the students of several runs."),
        "push-hub": ("push_hub.main", "Upload an exported model to the model hub."),
    },
}
"""Headings, and the commands below each: where it stands in this package, and its help in a line."""


class _Commands(click.Group):
    """A group that imports a command when it is called, so that none waits for the libraries of the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        places = {name: place for commands in COMMANDS.values() for name, (place, _) in commands.items()}
        if cmd_name not in places:
            return None
        module, _, function = places[cmd_name].rpartition(".")
        return cast(click.Command, getattr(import_module(f"stages.{module}"), function))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, words) for name, (_, words) in commands.items()])


@click.command(cls=_Commands)
def main() -> None:
    """Distil a large text-embedding model into a small one that serves its index."""


if __name__ == "__main__":
    main()
