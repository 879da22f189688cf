"""Relevance judgments (qrels) of a retrieval collection, in the forms in which they are published.

BEIR's (query, document, score), TREC's (query, iteration, document, score), without a score, with or without a line of
column names. A file may judge documents that a collection leaves out: ArguAna's does, and that of every subsample.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base import LeafError
from pipeline.corpus import lines

DIRECTORY = "qrels"
SPLITS = ("test", "dev", "validation")
"""Names of the file; the first that is there is read. Those for training are not for measuring."""
_KIND = re.compile(r"(tsv|txt|trec|qrels?)(\.(gz|bz2|xz|zst))?")
NAMES = {
    "query": re.compile(r"(q(uery|uestion)?|topic)([-_ ]?id)?"),
    "document": re.compile(r"(corpus|doc(ument)?|passage|p|d)([-_ ]?(id|no))?"),
    "score": re.compile(r"score|rel(evance)?|label|grade|judge?ment"),
}
"""What the columns are called where a line names them, in any case."""
WITHOUT_NAMES = {2: ("query", "document"), 3: ("query", "document", "score"), 4: ("query", "", "document", "score")}
"""What the columns are where no line names them, by their number."""
FORMS = "query, document and perhaps score, or TREC's four columns"
MOST = 2**31  # of a grade


@dataclass
class Judgments:
    """Grades of documents, by query, and how many judgments were passed over."""

    file: Path
    grades: dict[str, dict[int, int]] = field(default_factory=dict)
    """Query id -> row of a document -> its grade, for the queries with at least one relevant document."""
    judgments: int = 0
    """Of the file, without repeats among those that are known."""
    unknown: int = 0
    """Of these, the ones of a query or document that the collection does not have."""
    first_unknown: str = ""
    """The first of them, with its place."""
    untested: int = 0
    """Queries of the collection whose relevant documents are all unknown."""

    def figures(self) -> dict[str, object]:
        """What was read and what was passed over, for the metrics."""
        return {
            "file": f"{DIRECTORY}/{self.file.name}",
            "judgments": self.judgments,
            "unknown": self.unknown,
            "queries_without_document": self.untested,
        }

    def notices(self) -> list[str]:
        """What a person should know about them, a sentence each."""
        sentences = []
        if self.file.name.partition(".")[0] != SPLITS[0]:
            sentences.append(f"measured by {DIRECTORY}/{self.file.name}, as there are no judgments named {SPLITS[0]}")
        if self.unknown:
            sentences.append(
                f"{self.unknown:,} of {self.judgments:,} judgments are left out, as their query or document is not in "
                f"the collection (first {self.first_unknown})"
            )
        if self.untested:
            sentences.append(f"{self.untested:,} queries are not tested, as no relevant document is in the collection")
        return sentences


def find(directory: Path) -> Path:
    """The file of judgments of the collection in `directory`: `qrels/test.tsv`, or the first that SPLITS names.

    Raises:
        LeafError: there is none.
    """
    names = {
        file.name.partition(".")[0]: file
        for file in sorted((directory / DIRECTORY).glob("*"), reverse=True)
        if file.is_file() and _KIND.fullmatch(file.name.partition(".")[2])
    }
    for split in SPLITS:
        if split in names:
            return names[split]
    raise LeafError(
        f"evaluate.beir: {directory / DIRECTORY / 'test.tsv'}: no such file; judgments are in "
        f"{', '.join(f'{DIRECTORY}/{split}.tsv' for split in SPLITS)}, the first that is there"
    )


def read(file: Path, row_of: Mapping[str, int], queries: Container[str]) -> Judgments:
    """Judgments of the known `queries` and of the documents that `row_of` gives rows.

    Raises:
        LeafError: a line is malformed or contradicts an earlier one, or no known document is relevant to a known query.
    """
    result = Judgments(file)
    unanswered: set[str] = set()  # queries with a relevant document that is unknown
    layout: tuple[str, ...] = ()
    for number, line in enumerate(lines(file), 1):
        if not (parts := _parts(line)):
            continue
        place = f"{file}, line {number}"
        if not layout:
            layout, named = _layout(place, parts, row_of, queries)
            if named:
                continue
        query, document, grade = _judgment(place, parts, layout)
        if query in queries and document in row_of:
            _add(result, place, query, row_of[document], grade)
            continue
        result.judgments += 1
        result.unknown += 1
        result.first_unknown = result.first_unknown or f"{query!r:.60} and {document!r:.60} in line {number}"
        if grade > 0 and query in queries:
            unanswered.add(query)
    result.grades = {query: grades for query, grades in result.grades.items() if max(grades.values()) > 0}
    result.untested = len(unanswered - result.grades.keys())
    if not result.grades:
        raise LeafError(
            f"{file}: judges no document relevant (score above 0) to a query, of those that the collection has: there "
            f"is nothing to measure{''.join(f'; {sentence}' for sentence in result.notices())}"
        )
    return result


def _add(result: Judgments, place: str, query: str, document: int, grade: int) -> None:
    grades = result.grades.setdefault(query, {})
    result.judgments += document not in grades
    if grades.setdefault(document, grade) != grade:
        raise LeafError(f"{place}: judges the same query and document a second time, differently")


def _parts(line: str) -> list[str]:
    """The columns of a line: between tabs, or, where it has none, between spaces."""
    line = line.strip("\r\n")
    return [part.strip() for part in line.split("\t")] if "\t" in line.strip() else line.split()


def _layout(
    place: str, parts: list[str], row_of: Mapping[str, int], queries: Container[str]
) -> tuple[tuple[str, ...], bool]:
    """What each column holds, from the first line, and whether that line names them."""
    names = tuple(next((key for key, name in NAMES.items() if name.fullmatch(part.lower())), "") for part in parts)
    if {"query", "document"} <= set(names) and parts[names.index("query")] not in queries:
        if len({*names} - {""}) < sum(map(bool, names)):
            raise LeafError(f"{place}: two columns have names of the same meaning: {', '.join(parts)!s:.120}")
        return names, True
    layout = WITHOUT_NAMES.get(len(parts))
    if layout is None or ("score" in layout and _grade(parts[layout.index("score")]) is None):
        raise LeafError(
            f"{place}: neither names its columns (query-id, corpus-id, score, say) nor holds a judgment ({FORMS}): "
            f"{' '.join(parts)!r:.120}"
        )
    return layout, False


def _judgment(place: str, parts: list[str], layout: tuple[str, ...]) -> tuple[str, str, int]:
    """Query id, document id and grade of a line; 1 where there are no scores."""
    if len(parts) != len(layout):
        raise LeafError(f"{place}: must have {len(layout)} columns, with tabs or spaces between, not {len(parts)}")
    named = dict(zip(layout, parts, strict=True))
    score = named.get("score", "1")
    grade = _grade(score)
    if grade is None:
        raise LeafError(f"{place}: the score must be a whole number, not {score!r:.40}")
    if not -MOST <= grade < MOST:
        raise LeafError(f"{place}: the score {score:.40} is impossible")
    return named["query"], named["document"], grade


def _grade(score: str) -> int | None:
    """The whole number that a score writes, as `1` or `1.0`; None if it is none."""
    try:
        number = float(score)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None
