"""What `leaf init` shows: sources as they will be read, texts as they will be stored, and how long it will take."""

from collections.abc import Sequence

from pipeline.base import on_one_line
from pipeline.corpus import Preview
from pipeline.params import FitParams, SourceParams, TeacherParams
from stages import suggested
from stages.common import echo
from stages.estimate import measure, model_size

LONG = 1600  # characters, more than many teachers read
WIDTH, ID_WIDTH = 88, 48  # characters of an example and of its id, at most
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
    if source.title_field and not source.query_field:
        echo(
            "  titles can stand in for queries, to train and test on: "
            f"--query-field {source.title_field} --document-field {source.text_field}"
        )
    if any(most > LONG for _, most, _ in seen.lengths.values()):
        echo("  many are longer than teachers read, and what is not read is not found")
        echo("  (`passages` of a source cuts its documents: `leaf params corpus` explains it)")
    echo("  as they will be stored:")
    width = max([16, *(len(on_one_line(identifier)) for identifier in seen.examples.get_column("id", default=[]))])
    for role, identifier, text in seen.examples.iter_rows():
        name = _cut(on_one_line(identifier), ID_WIDTH)
        echo(f"    {role:9} {name:{min(width, ID_WIDTH)}}  {_cut(on_one_line(text), WIDTH)}")


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def show_run(teacher: TeacherParams, fit: FitParams, heldout: float, previews: Sequence[Preview]) -> None:
    """Print the models, and how long encode and fit will take here, or how much an API will be sent."""
    roles = {role for seen in previews for role in seen.texts}
    tokens, texts = sum(seen.tokens for seen in previews), sum(sum(seen.texts.values()) for seen in previews)
    echo(f"\nteacher {teacher.model}, student from {fit.student.model}, {100 * heldout:g} % of the records held out")
    if roles == {"document"}:
        echo("no queries: how well they find documents is measured only with collections (--evaluation)")
    machine, student = measure(), model_size(fit.student.model)
    steps = suggested.steps(fit, previews, heldout)
    seconds = machine.fit_seconds(steps, tokens / max(1, texts), student, fit.batch_size)
    fitting = f"about {_duration(seconds)} to fit {steps * fit.batch_size:,} texts in {steps:,} steps"
    least = "" if all(seen.whole for seen in previews) else "more than "
    if teacher.api:
        echo(f"on this machine {fitting}; {least}{tokens:,} tokens go to the API\n")
        return
    size = model_size(teacher.model)
    encoding = f"{least or 'about '}{_duration(machine.encode_seconds(tokens, size))} to encode {tokens:,} tokens"
    told = "; sizes of models were told from their names" if size.is_guess or student.is_guess else ""
    echo(f"on this machine ({machine.kind}) {encoding}, {fitting}, some minutes for the rest{told}\n")


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{seconds / 3600:.1f} hours" if minutes >= 60 else f"{minutes} minute{'s' * (minutes > 1)}"
