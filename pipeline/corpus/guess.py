"""What files hold, guessed: which kind of source they are, and which of their fields are queries, documents and ids.

Guesses are for a person to look at before anything is made of them; the readers themselves guess nothing of this.
"""

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from pipeline.base import ROLES, LeafError, glob_root, quoted
from pipeline.corpus.readers import jsonl, markdown, parquet, plain_text, table
from pipeline.corpus.readers.beginning import Records, encoding_of, missing_header, records, unit_of
from pipeline.corpus.readers.beir import CORPUS, QUERIES
from pipeline.corpus.readers.contents import HEAD, nature
from pipeline.corpus.readers.fields import is_hidden, source_files
from pipeline.corpus.readers.lines import text_form
from pipeline.params import SourceParams

Kind = Literal["parquet", "arrow", "jsonl", "csv", "tsv", "text", "markdown", "beir", "huggingface", "docstrings"]
SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": parquet.PARQUET_SUFFIXES,
    "arrow": parquet.ARROW_SUFFIXES,
    "jsonl": jsonl.SUFFIXES,
    **table.SUFFIXES,
    "text": plain_text.SUFFIXES,
    "markdown": markdown.SUFFIXES,
}
TEXT_KINDS = ("jsonl", "csv", "tsv", "text", "markdown")
"""Whose files are text, in an encoding."""
_BELOW_HEADER = ", only a first line that names its columns"
_SHOWN = 3  # files in a message

_NAMES = {
    "query": "query question questions anchor prompt instruction utterance search frage pregunta domanda pergunta "
    "vraag pytanie вопрос 问题 質問 質問文 q",
    "document": "answer answers response document doc passage context positive pos output reply completion antwort "
    "respuesta réponse risposta resposta antwoord odpowiedź ответ 答案 回答 a",
    "text": "text body content contents description abstract article message comment review summary sentence texte "
    "texto inhalt 内容",
    "title": "title headline heading subject titel titre título titolo",
    "id": "id _id qid docid doc_id query_id pid uid uuid guid key url number nr no",
}
_WORDS = {part: names.split() for part, names in _NAMES.items()}


@dataclass(frozen=True)
class Fields:
    """What files and the fields of their records are, where somebody says so; what is None is guessed."""

    query: str | None = None
    document: str | None = None
    text: str | None = None
    title: str | None = None
    id: str | None = None
    role: Literal["query", "document"] | None = None
    encoding: str | None = None
    """Of files of text."""

    @property
    def names_any(self) -> bool:
        """Whether they name a field at all."""
        return self.name_texts or bool(self.title or self.id)

    @property
    def name_texts(self) -> bool:
        """Whether they say which fields hold texts."""
        return bool(self.query or self.document or self.text)


def guess_sources(
    path: str, given: Fields = Fields(), names: Sequence[str] = (), tell: Callable[[str], None] = lambda _: None
) -> list[SourceParams]:
    """The sources that a file, a glob, a directory or a data set of the hub is: one for each kind of file in it.

    `names` are those that other sources have already. `tell` is given a sentence for what a directory holds that is
    left out.

    Raises:
        LeafError: there is no such file, it cannot be read, or no field of its records looks like texts; of a
            directory, if that goes for all that is in it.
    """
    place, taken, sources = Path(path).expanduser(), list(names), list[SourceParams]()
    reasons = list[tuple[str, LeafError]]()
    for kind in _kinds(place, path, tell):
        is_here = place.exists() or glob_root(place) != place
        source = SourceParams(_name(path, taken), cast(Kind, kind), str(place) if is_here else path)
        try:
            sources.append(_described(source, given))
        except LeafError as error:
            reasons.append((kind, error))
            continue
        taken.append(source.name)
    if not sources:
        raise reasons[0][1]
    for kind, reason in reasons:
        tell(left_out(kind, reason))
    return sources


def left_out(kind: str, error: LeafError) -> str:
    """The sentence that a directory's files of a kind are not read, and why."""
    return f"left out, what is of kind {kind}: {error}"


def _name(path: str, taken: Sequence[str]) -> str:
    root = glob_root(Path(path.rstrip("/")).expanduser())
    stem = re.sub(r"[^\w-]+", "-", root.name.split(".")[0]).strip("-") or "texts"
    return stem if stem not in taken else next(f"{stem}-{n}" for n in range(2, 999) if f"{stem}-{n}" not in taken)


def _kinds(place: Path, path: str, tell: Callable[[str], None]) -> list[str]:
    """The kinds of files at a place, the most frequent first."""
    if place.is_dir():
        if all(any(place.glob(f"{name}*")) for name in (CORPUS, QUERIES)):
            return ["beir"]
        return _kinds_of_files(place, sorted(_visible(place)), tell)
    if place.is_file():
        return [_kind_of_file(place)]
    if glob_root(place) != place:
        return [_kind_of_glob(place)]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return ["huggingface"]
    raise LeafError(f"{path}: no such file or directory, and no name of a data set on the hub (NAME/DATASET)")


def _kinds_of_files(place: Path, files: Sequence[Path], tell: Callable[[str], None]) -> list[str]:
    """The kinds of a directory's files; those of no kind are told."""
    kinds = {file: _kind_by_name(file) for file in files}
    counts = Counter(filter(None, kinds.values()))
    if not counts:
        raise LeafError(f"{place}: holds no files of a kind that can be read ({_known_suffixes()})")
    if others := [file for file, kind in kinds.items() if kind is None]:
        tell(f"left out, as their names end like those of no kind that can be read: {_shown(others)}")
    return [kind for kind, _ in counts.most_common()]


def _shown(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
    return ", ".join(map(str, files[:_SHOWN])) + more


def _kind_of_glob(place: Path) -> str:
    """The one kind of all files that a glob matches, as a source reads all of them alike."""
    if next(glob.iglob(str(place), recursive=True), None) is None:  # noqa: PTH207
        raise LeafError(f"{place}: no file matches")
    by_kind: dict[str, Path] = {}
    for file in source_files(SourceParams(_name(str(place), ()), "text", str(place)), ()):
        by_kind.setdefault(_kind_of_file(file), file)
    if len(by_kind) > 1:
        raise LeafError(
            f"{place}: matches files of several kinds ({', '.join(map(str, by_kind.values()))}); end it as the names "
            "of one kind end (`*.md`), and give the option again for another"
        )
    return next(iter(by_kind))


def unread_files(sources: Sequence[SourceParams]) -> list[str]:
    """A sentence for each directory that is a source and holds files which no source reads.

    Raises:
        LeafError: a source has no files.
    """
    of_files = [source for source in sources if source.path and source.kind in SUFFIXES]
    read = {file for source in of_files for file in source_files(source, SUFFIXES[source.kind])}
    places = dict.fromkeys(Path(cast(str, source.path)).expanduser() for source in of_files)
    unread = {place: sorted(set(_visible(place)) - read) for place in places if place.is_dir()}
    return [f"{place}: holds files that no source reads: {_shown(files)}" for place, files in unread.items() if files]


def _visible(directory: Path) -> Iterator[Path]:
    for file in directory.rglob("*"):
        if file.is_file() and not any(map(is_hidden, file.relative_to(directory).parts)):
            yield file


def _kind_by_name(file: Path) -> str | None:
    ends = file.name.lower().split(".")[1:]
    return next((kind for kind, suffixes in SUFFIXES.items() if not set(suffixes).isdisjoint(ends)), None)


def _known_suffixes() -> str:
    return ", ".join(f".{suffix}" for suffixes in SUFFIXES.values() for suffix in suffixes)


def _kind_of_file(file: Path) -> str:
    """By the name's end, else by the first bytes."""
    if kind := _kind_by_name(file):
        return kind
    with file.open("rb") as raw:
        what = nature(raw.read(HEAD)) or ""
    if "kind `" in what:
        return what.partition("kind `")[2].partition("`")[0]
    return "jsonl" if text_form(file).head.lstrip()[:1] in ("{", "[") else "text"


def _described(source: SourceParams, given: Fields) -> SourceParams:
    """The source with encoding, unit, roles and fields."""
    if source.kind == "beir":
        return replace(source, role=given.role)
    file = None if source.kind == "huggingface" else source_files(source, SUFFIXES[source.kind])[0]
    if file and source.kind in TEXT_KINDS:
        source = replace(source, encoding=given.encoding or encoding_of(file))
    if source.kind == "markdown":
        return replace(source, role=given.role or "document")
    if file and source.kind == "text":
        return replace(source, unit=unit_of(file, source.encoding), role=given.role or "document")
    if file and source.kind in ("csv", "tsv"):
        source = replace(source, columns=missing_header(source, file))
        _check_repeated(source, file)
    return _with_fields(source, file or source.path, records(source, file), given)


def _check_repeated(source: SourceParams, file: Path) -> None:
    """Refuse a table whose first line names a column twice: taken for a record, it would be a text."""
    names = [name.strip() for name in table.first_rows(source, file)[0]] if source.columns else []
    repeated = [name for name in names if names.count(name) > 1]
    known = {word for words in _WORDS.values() for word in words}
    if repeated and any(name.lower() in known for name in names):
        raise LeafError(
            f"{file}: names more than one column {quoted(repeated[0])}; rename all but one in its first line"
        )


@dataclass(frozen=True)
class _Column:
    """A field over the sampled records."""

    name: str
    values: list[str]
    """Its texts; of lists, all of their elements."""
    filled: float
    """Share of the records that have it."""

    @property
    def is_text(self) -> bool:
        """Whether it holds texts of people: several words as a rule, or characters of a script without spaces."""
        wordy = sum(" " in value.strip() or (len(value) > 3 and not value.isascii()) for value in self.values)
        return bool(self.values) and wordy > len(self.values) / 2

    @property
    def length(self) -> float:
        """Mean characters."""
        return sum(map(len, self.values)) / max(1, len(self.values))

    @property
    def asks(self) -> bool:
        """Whether most of its texts end as questions do."""
        return sum(value.rstrip()[-1:] in "??؟" for value in self.values if value.strip()) > len(self.values) / 3

    def rank(self, part: str) -> int:
        """How well its name says that it is `part`: 0 not at all, higher is better."""
        last = re.split(r"\.|\[\]", self.name)[-1].lower()
        words = re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", re.split(r"\.|\[\]", self.name)[-1])
        names = _WORDS[part]
        if last in names:
            return 100 - names.index(last)
        return 50 if any(word.lower() in names and len(word) > 1 for word in words) else 0


def _with_fields(source: SourceParams, place: object, records: Records, given: Fields) -> SourceParams:
    """The source with its fields named, as given, and where nothing is given as guessed by the records of `place`."""
    if not records:
        raise LeafError(f"{place}: has no records{_BELOW_HEADER if source.kind in ('csv', 'tsv') else ''}")
    columns = _columns(records)
    identifier = given.id or _identifier(columns)
    source = replace(source, id_field=identifier, title_field=given.title)
    if given.name_texts:
        role = given.role if given.text else None
        return replace(source, query_field=given.query, document_field=given.document, text_field=given.text, role=role)
    texts = [column for column in columns if column.is_text and column.name not in (identifier, given.title)]
    if not texts:
        shown = ", ".join(column.name for column in columns[:12]) or "none"
        raise LeafError(f"{place}: no field looks like texts (fields: {shown}); name them")
    if roles := next((column for column in columns if column.values and {*column.values} <= {*ROLES}), None):
        return replace(source, text_field=_best(texts, "text").name, role_field=roles.name)
    return _with_texts(source, texts, given)


def _with_texts(source: SourceParams, texts: list[_Column], given: Fields) -> SourceParams:
    """The source with its queries, documents and titles, guessed of fields that hold texts."""
    query = _best(texts, "query") if any(column.rank("query") for column in texts) else None
    others = [column for column in texts if column is not query]
    if query is None and len(texts) > 1 and (asking := [column for column in texts if column.asks]):
        query = min(asking, key=lambda column: column.length)
        others = [column for column in texts if column is not query]
    if given.role or not query or not others:
        text = _best(texts, "document" if any(column.rank("document") for column in texts) else "text")
        role = given.role or ("query" if query or text.asks else "document")
        return replace(_titled(source, texts, text), text_field=text.name, role=role)
    is_document = any(column.rank("document") for column in others)
    document = _best(others, "document" if is_document else "text")
    return replace(_titled(source, others, document), query_field=query.name, document_field=document.name)


def _titled(source: SourceParams, texts: list[_Column], text: _Column) -> SourceParams:
    titles = [column for column in texts if column.rank("title") and column is not text]
    return source if source.title_field or not titles else replace(source, title_field=titles[0].name)


def _best(columns: Sequence[_Column], part: str) -> _Column:
    """The field that is most likely `part`: by its name, then by the length of its texts."""
    return max(columns, key=lambda column: (column.rank(part), column.length))


def _identifier(columns: Sequence[_Column]) -> str | None:
    named = [column for column in columns if column.rank("id") and column.filled == 1 and not column.is_text]
    return _best(named, "id").name if named else None


def _columns(records: Records) -> list[_Column]:
    names = dict.fromkeys(name for record in records for name in record)
    columns = []
    for name in names:
        cells = [record.get(name) for record in records]
        values = [value for cell in cells for value in (cell if isinstance(cell, list) else [cell])]
        texts = [str(value) for value in values if isinstance(value, str | int) and value != ""]
        columns.append(_Column(name, texts, sum(cell not in (None, "") for cell in cells) / len(cells)))
    return columns


def field_names(file: Path) -> set[str]:
    """Names of the fields of the records in a file.

    Raises:
        LeafError: it cannot be read.
    """
    kind = _kind_of_file(file)
    if kind == "text":
        return set()
    found = records(SourceParams(file.stem, cast(Kind, kind), str(file)), file)
    return {name for record in found for name in record}
