"""What `leaf init` shows: sources as they will be read, texts as they will be stored, and how long it will take."""

from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.base import on_one_line
from pipeline.corpus import Preview, notices_of_split
from pipeline.params import FitParams, SourceParams, TeacherParams
from stages import suggested
from stages.common import echo
from stages.estimate import measure, model_size

LONG = 1600  # characters, more than many teachers read
WIDTH, ID_WIDTH = 88, 48  # characters of an example and of its id, at most
HOUR = 3600  # seconds
LONG_RUN = 20 * 60  # seconds, from which on it is said what makes a stage shorter
_KEYS = ("role", "query_field", "document_field", "text_field", "title_field", "role_field", "id_field", "encoding")
_PLURAL = {"query": "queries", "document": "documents"}


def _described(source: SourceParams) -> str:
    """What a source was taken for, in a line."""
    said = [f"{key} `{value}`" for key in _KEYS if (value := getattr(source, key))]
    said += [f"a text is a {source.unit}"] if source.kind == "text" else []
    said += [f"no header, {len(source.columns)} columns"] if source.columns else []
    return f"kind {source.kind}, {', '.join(said) or 'queries and documents in BEIR layout'}"


def show_source(source: SourceParams, seen: Preview) -> None:
    """Print what a source was taken for, how many texts it has, and some of them."""
    echo(f"\n{source.name}: {_described(source)}")
    more = "" if seen.whole else "more than "
    for role, number in seen.texts.items():
        median, most, longest = seen.lengths[role]
        echo(
            f"  {more}{number:,} {role if number == 1 else _PLURAL[role]}: {median:,} characters in the median, 95 % "
            f"have at most {most:,}, the longest has {longest:,}"
        )
    echo(f"  language: {seen.language or 'not recognised'}")
    if seen.short:
        echo(f"  {seen.short:,} texts are empty or too short, and will be dropped")
    if seen.duplicates:
        echo(f"  {seen.duplicates:,} texts repeat others, and will be dropped")
    if source.title_field and not source.query_field:
        echo(
            "  titles can stand in for queries, to train and test on: "
            f"--query-field {source.title_field} --document-field {source.text_field}"
        )
    if any(most > LONG for _, most, _ in seen.lengths.values()):
        echo("  many are longer than teachers read, and what is not read is not found")
        echo("  (`passages: {characters: 1200}` in its entry of corpus.sources cuts them, after")
        echo("  `pip install 'leaf-pipeline[passages]'`: `leaf params corpus` explains it)")
    echo("  as they will be stored:")
    width = max([16, *(len(on_one_line(identifier)) for identifier in seen.examples.get_column("id", default=[]))])
    for role, identifier, text in seen.examples.iter_rows():
        name = _cut(on_one_line(identifier), ID_WIDTH)
        echo(f"    {role:9} {name:{min(width, ID_WIDTH)}}  {_cut(on_one_line(text), WIDTH)}")


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def show_run(
    teacher: TeacherParams, fit: FitParams, heldout: float, previews: Sequence[Preview], *, has_collections: bool
) -> None:
    """Print the models, what is held out, and how long encode and fit will take here, or how much an API will be sent.

    `has_collections`: whether the student is measured on collections of its own too.
    """
    texts, tokens = sum(seen.distinct for seen in previews), sum(seen.tokens for seen in previews)
    echo(f"\nteacher {teacher.model}, student from {fit.student.model}, {100 * heldout:g} % of the records held out")
    if not has_collections:
        _show_split(heldout, previews)
    machine, student, size = measure(), model_size(fit.student.model), model_size(teacher.model)
    steps = suggested.steps(fit, previews, heldout)
    fit_seconds = machine.fit_seconds(steps, tokens / max(1, texts), student, fit.batch_size)
    least = "" if all(seen.whole for seen in previews) else "more than "
    fitting = (
        f"about {_duration(fit_seconds)} to fit, {steps * fit.batch_size:,} presentations of "
        f"{least}{round(texts * (1 - heldout)):,} texts in {steps:,} steps"
    )
    encode_seconds = 0.0 if teacher.api else machine.encode_seconds(tokens, size)
    if teacher.api:
        echo(f"on this machine {fitting}; {least}{tokens:,} tokens go to the API")
    else:
        encoding = f"{least or 'about '}{_duration(encode_seconds)} to encode {tokens:,} tokens"
        told = "; sizes of models were told from their names" if size.is_guess or student.is_guess else ""
        echo(f"on this machine ({machine.kind}) {encoding}, {fitting}, some minutes for the rest{told}")
    for sentence in _shorter(encode_seconds, fit_seconds, steps):
        echo(sentence)
    echo("")


def _show_split(heldout: float, previews: Sequence[Preview]) -> None:
    """Print what there is to test with, where it is too little."""
    texts, tested = Counter[str](), Counter[str]()
    for seen in previews:
        texts.update(seen.texts)
        tested.update(seen.heldout(heldout))
    if set(texts) == {"document"}:
        echo("no queries: how well they find documents is measured only with collections (--evaluation)")
    for sentence in notices_of_split(texts, tested, heldout):
        echo(sentence)


def _shorter(encode_seconds: float, fit_seconds: float, steps: int) -> Iterator[str]:
    """Which parameters make a long run shorter, and what they would be for an hour or a quarter of one."""
    if encode_seconds > LONG_RUN:
        goal, words = _goal(encode_seconds)
        share = f"{goal / encode_seconds:.2g}"
        yield f"`sample: {share}` in each entry of corpus.sources has the texts of about {words} encoded, and fitted to"
    if fit_seconds > LONG_RUN:
        goal, words = _goal(fit_seconds)
        most = float(f"{steps * goal / fit_seconds:.2g}")
        yield f"`max_steps: {most:.0f}` in the section fit makes the fit take about {words}"


def _goal(seconds: float) -> tuple[float, str]:
    """What a run that takes so long may be shortened to."""
    return (HOUR, "an hour") if seconds > 2 * HOUR else (HOUR / 4, "a quarter of an hour")


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{seconds / HOUR:.1f} hours" if minutes >= 60 else f"{minutes} minute{'s' * (minutes > 1)}"
