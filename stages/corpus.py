"""Build the corpus: texts of all sources, cleaned, without duplicates, split and sharded."""

from pathlib import Path

import click

from pipeline.base import check_writable
from pipeline.corpus import CORPUS_KIND, build, corpus_digest, unread_files
from pipeline.params import CorpusParams, load_section
from stages.common import command, echo, params_option, write_json
from stages.watched import name_outside, warn_unwatched


@command
@params_option
@click.option("--out", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory to write.")
@click.option("--metrics", type=Path, default=Path("metrics/corpus.json"), show_default=True, help="Metrics file.")
def main(params: Path, out: Path, metrics: Path) -> None:
    """Read the texts of all sources into one sorted, sharded corpus of Parquet files.

    If it is killed, the corpus that was there stays as it was. Section read: corpus.
    """
    settings = load_section(params, "corpus", CorpusParams)
    check_writable([metrics], {out: CORPUS_KIND})
    name_outside([source.path for source in settings.sources if source.path], "corpus.sources")
    warn_unwatched([source.path for source in settings.sources if source.path], "corpus")
    figures = build(settings, out, _find_model)
    write_json(metrics, figures | {"digest": corpus_digest(out)})
    echo(f"{'source':24}{'role':10}{'train':>12}{'heldout':>10}")
    for source, roles in figures["rows"].items():
        for role, splits in sorted(roles.items()):
            echo(f"{source:24}{role:10}{splits['train']:>12,}{splits['heldout']:>10,}")
    for source, more in figures["passages_more"].items():
        echo(f"{source}: {more:,} texts more, as documents were cut into passages")
    for source, reasons in figures["dropped"].items():
        if dropped := [f"{number:,} {reason.replace('_', ' ')}" for reason, number in reasons.items() if number]:
            echo(f"{source}: of {figures['read'][source]:,} texts were dropped: {', '.join(dropped)}")
    notices = [*figures["notices"], *unread_files(settings.sources)]
    echo("\n".join([*notices, str(out), str(metrics)]))


def _find_model(name: str) -> Path:
    from pipeline.model import resolve_model  # imports PyTorch, which this stage needs for nothing else

    return resolve_model(name)


if __name__ == "__main__":
    main()
