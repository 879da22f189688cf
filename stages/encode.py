"""Stage one: encode the corpus with the teacher into the embedding store."""

from pathlib import Path
from typing import cast

import click

from pipeline.base import check_writable
from pipeline.encode import encode, engine_on
from pipeline.params import ClusterParams, EncodeParams, Permits, TeacherParams, load_section
from pipeline.store import STORE_KIND, Store
from stages.common import api_options, command, echo, open_teacher, params_option, write_json
from stages.recorded import check_recorded
from stages.watched import name_outside


@command
@params_option
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory.")
@click.option("--out", type=Path, default=Path("data/embeddings"), show_default=True, help="Store to publish.")
@click.option("--metrics", type=Path, default=Path("metrics/encode.json"), show_default=True, help="Metrics file.")
@api_options
def main(params: Path, corpus: Path, out: Path, metrics: Path, permits: Permits) -> None:
    """Encode every text of the corpus that the shard cache does not hold yet, and publish the embedding store.

    Killed at any moment, it continues from the last finished shard. Sections read: teacher, encode, and for
    where it runs, cluster.
    """
    settings = load_section(params, "encode", EncodeParams)
    check_writable([metrics], {out: STORE_KIND})
    name_outside(settings.reuse, "encode.reuse")
    check_recorded(corpus)
    teacher = open_teacher(load_section(params, "teacher", TeacherParams), settings, permits)
    cluster = load_section(params, "cluster", ClusterParams, ClusterParams())
    figures = encode(corpus, teacher, settings, out, engine_on(cluster, teacher, settings))
    write_json(metrics, figures | {"digest": Store.open(out).digest()})
    echo(
        f"encoded {figures['rows_encoded']:,} texts, reused {figures['rows_reused']:,}, "
        f"{figures['tokens_per_s']:,} tokens/s"
    )
    cut = cast(dict[str, float], figures.get("cut", {}))
    if cut.get("texts"):
        echo(
            f"{cut['texts']:,} of these texts are longer than the teacher reads: {cut['unread_share']:.1%} of "
            "all characters were never read (teacher.max_length; corpus.sources[].passages cuts texts into passages)"
        )
    echo(f"{out}\n{metrics}")
    if "license" in figures:
        echo(f"the store's licence is {figures['license']}: shards taken over keep theirs (store.json)", err=True)
    for name, compared in cast(dict[str, str], figures.get("compared", {})).items():
        echo(f"{name}: encoded again {compared}", err=True)
    for name, reason in cast(dict[str, str], figures.get("passed_over", {})).items():
        echo(f"not reused: {name}: {reason.removeprefix(f'{name}: ')}", err=True)
    for name in ("items_per_request", "tokens_per_request"):
        if limit := cast(dict[str, int], figures.get("api", {})).get(name):
            echo(f"the server takes no larger requests than teacher.api.{name}: {limit}; set it", err=True)
    if refused := cast(list[dict[str, str]], figures.get("refused", [])):
        echo(f"left out {len(refused):,} texts that the server refused, all listed in {metrics}:", err=True)
        echo("\n".join(f"  {refusal['id']}: {refusal['reason']}" for refusal in refused[:20]), err=True)


if __name__ == "__main__":
    main()
