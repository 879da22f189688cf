"""How well a student stands in for its teacher: alignment, neighbours, retrieval.

Three modes: `teacher` (both sides), `standard` (the student on both sides), `asymmetric` (the student's queries
against the teacher's documents). Corpus texts are those held out of training, with the vectors of the store.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline import beir, metrics
from pipeline.corpus import scan
from pipeline.encode import ensure
from pipeline.errors import LeafError
from pipeline.params import EncodeParams, EvaluateParams, TeacherParams
from pipeline.store import Store
from pipeline.teacher import describe

Array = np.ndarray
StudentVectors = Callable[[Sequence[str], str], Array]  # texts and their role -> [n, dim] float32
TeacherVectors = Callable[[pl.DataFrame], Array]  # frame key, role, id, source, text -> [n, dim] float32
ROLES = ("query", "document")
MODES = ("teacher", "standard", "asymmetric")
NEIGHBOURS = 10
BLOCK_ROWS = 4096  # texts the student is given at once; the progress bar moves as often
DIGITS = 6  # of the figures; what follows differs between machines


@dataclass(frozen=True)
class Both:
    """Vectors `[n, dim]` of the same texts, by teacher and by student."""

    teacher: Array
    student: Array

    def __getitem__(self, rows: Array) -> "Both":
        return Both(self.teacher[rows], self.student[rows])

    def __len__(self) -> int:
        return len(self.teacher)


@dataclass(frozen=True)
class Evaluation:
    """The figures as they are written, and the held-out cosines behind them, by role, for a histogram."""

    figures: dict[str, Any]
    cosines: dict[str, Array]


def evaluate(
    corpus: Path,
    embeddings: Path,
    student: StudentVectors,
    teacher_of: Callable[[Store], TeacherVectors],
    params: EvaluateParams,
) -> Evaluation:
    """Measure a student on the held-out texts of the corpus and on the BEIR directories of `params`.

    `teacher_of(store)` gives the function for teacher vectors of texts outside the store (see `pooled`).

    Raises:
        LeafError: bad corpus, store or BEIR directory; a held-out text has no vector in the store; the student's
            vectors have another dimension than the teacher's; nothing to evaluate on.
    """
    collections = _collections(params)
    store = Store.open(embeddings)
    held = scan(corpus).filter(pl.col("split") == "heldout").sort("role", "key").collect()
    if held.is_empty() and not collections:
        raise LeafError(f"{corpus}: holds no held-out texts and evaluate.beir names none: set corpus.heldout above 0")
    vectors = Both(store.lookup(held["key"].to_list()), _encode(held, student, store.meta.dim))
    by_role = {role: vectors[(held["role"] == role).to_numpy()] for role in ROLES}
    by_role = {role: both for role, both in by_role.items() if len(both)}
    results: dict[str, Any] = {}
    for name, asking, asked, judged in pairs(held):
        results[name] = retrieval(vectors[asking], vectors[asked], judged, params)
    for one in collections:
        if one.name in results:
            raise LeafError(f"evaluate.beir: `{one.name}` is a source of the corpus too; rename the directory")
        teacher = teacher_of(store)
        queries, documents = (
            Both(teacher(texts), _encode(texts, student, store.meta.dim)) for texts in (one.queries, one.documents)
        )
        results[one.name] = retrieval(queries, documents, one.judged, params, one.itself)
    figures = {
        "alignment": {role: metrics.alignment(both.student, both.teacher) for role, both in by_role.items()},
        "neighbours": neighbours(by_role.get("query"), by_role.get("document"), params),
        "retrieval": results,
    }
    cosines = {role: metrics.cosines(both.student, both.teacher) for role, both in by_role.items()}
    return Evaluation(_rounded(figures), cosines)


def _collections(params: EvaluateParams) -> list[beir.Collection]:
    names = [Path(path).expanduser().resolve().name for path in params.beir]
    if twice := [name for name in names if names.count(name) > 1]:
        raise LeafError(f"evaluate.beir: two directories are named `{twice[0]}`; rename one")
    return [beir.read(Path(path)) for path in params.beir]


def _encode(texts: pl.DataFrame, student: StudentVectors, dim: int) -> Array:
    """The student's vectors `[n, dim]` of a frame `role, source, text`, in its order."""
    vectors = np.empty((len(texts), dim), np.float32)
    with tqdm(total=len(texts), unit="text", desc="student") as bar:
        for role in ROLES:
            rows = np.flatnonzero((texts["role"] == role).to_numpy())
            for start in range(0, len(rows), BLOCK_ROWS):
                block = rows[start : start + BLOCK_ROWS]
                found = student(texts["text"][block].to_list(), role)
                if found.shape != (len(block), dim):
                    raise LeafError(
                        f"the student's vectors have {found.shape[-1]} dimensions, but those of the store {dim}: "
                        "it was not fitted to this store"
                    )
                vectors[block] = found
                bar.update(len(block))
    if not np.isfinite(vectors).all():
        row = int((~np.isfinite(vectors).all(1)).argmax())
        raise LeafError(f"the student's vector of text `{texts['id'][row]}` is not finite; it cannot be measured")
    return vectors


def pooled(teacher: TeacherParams, encode: EncodeParams, store: Store) -> TeacherVectors:
    """Teacher vectors through the pool of stage one: a text is encoded once, whatever asks for it.

    Raises:
        LeafError: `store` was made by another teacher than `teacher`.
    """
    meta = describe(teacher, encode.dtype)
    if meta.fingerprint != store.meta.fingerprint:
        raise LeafError(
            f"{store.path}: holds vectors of fingerprint {store.meta.fingerprint[:16]}, but the section `teacher` "
            f"describes {meta.fingerprint[:16]}: run encode and fit again, or use the parameters that they ran with"
        )

    def vectors(texts: pl.DataFrame) -> Array:
        # Beside the pool, so that hard links reach it.
        name = f"{meta.fingerprint[:16]}-{encode.dtype}-{texts['source'][0]}"
        view = Path(encode.pool).with_name("evaluation") / name
        return ensure(texts, teacher, encode, view).lookup(texts["key"].to_list())

    return vectors


def pairs(held: pl.DataFrame) -> Iterator[tuple[str, Array, Array, list[dict[int, int]]]]:
    """For each source that has pairs: its name, rows of the queries, rows of the documents, judgments.

    Relevant to a query are the documents of its record (same source and id); the collection is all of the source's
    held-out documents. Judgments are as in `retrieval`.
    """
    for name in sorted(held["source"].unique().to_list()):
        of = held.with_row_index("row").filter(pl.col("source") == name)
        documents = of.filter(pl.col("role") == "document")
        places: dict[str, list[int]] = {}
        for place, record in enumerate(documents["id"].to_list()):
            places.setdefault(record, []).append(place)
        queries = of.filter((pl.col("role") == "query") & pl.col("id").is_in(list(places)))
        if len(queries):
            judged = [dict.fromkeys(places[record], 1) for record in queries["id"].to_list()]
            yield name, queries["row"].to_numpy(), documents["row"].to_numpy(), judged


def retrieval(
    queries: Both,
    documents: Both,
    judged: Sequence[dict[int, int]],
    params: EvaluateParams,
    itself: Array | None = None,
) -> dict[str, Any]:
    """nDCG@10, recall@100 and MRR@10 of the three modes, with 95 % bootstrap intervals over the queries.

    `retention` is the share of the teacher's nDCG@10, its interval paired by query; None where the teacher has 0.

    Args:
        judged: for each query, the grade of documents, by row of `documents`; above 0 is relevant.
        itself: for each query, the document that must not be found because it is the query; -1 for none.
    """
    sides = {
        "teacher": (queries.teacher, documents.teacher),
        "standard": (queries.student, documents.student),
        "asymmetric": (queries.student, documents.teacher),
    }
    found = {mode: metrics.nearest(*side, metrics.DEPTH, itself) for mode, side in sides.items()}
    values = np.stack([metrics.ranking(found[mode], judged) for mode in MODES], axis=1)  # [queries, modes, measures]
    means = values.mean(0)
    flat = values.reshape(len(values), -1)
    samples = metrics.bootstrap(flat, params.bootstrap, params.seed).reshape(-1, *means.shape)
    result: dict[str, Any] = {"queries": len(queries), "documents": len(documents)}
    for at, mode in enumerate(MODES):
        intervals = {name: metrics.interval(samples[:, at, i]) for i, name in enumerate(metrics.MEASURES)}
        result[mode] = {"n": len(queries), **dict(zip(metrics.MEASURES, means[at].tolist(), strict=True))}
        if mode != "teacher":
            result[mode]["retention"] = float(means[at, 0] / means[0, 0]) if means[0, 0] > 0 else None
            with np.errstate(divide="ignore", invalid="ignore"):
                intervals["retention"] = metrics.interval(samples[:, at, 0] / samples[:, 0, 0])
        result[mode]["interval"] = intervals
    return result


def neighbours(queries: Both | None, documents: Both | None, params: EvaluateParams) -> dict[str, Any]:
    """Share of the teacher's 10 nearest documents that the student finds, among a seeded sample of documents.

    Without queries the documents ask, and do not find themselves. Empty where there are fewer than 12.
    """
    if documents is None or min(len(documents), params.neighbours_rows) < NEIGHBOURS + 2:
        return {}
    documents = _sample(documents, params)
    itself = np.arange(len(documents)) if queries is None else None
    queries = documents if queries is None else _sample(queries, params)
    wanted = metrics.nearest(queries.teacher, documents.teacher, NEIGHBOURS, itself)
    standard = metrics.nearest(queries.student, documents.student, NEIGHBOURS, itself)
    asymmetric = metrics.nearest(queries.student, documents.teacher, NEIGHBOURS, itself)
    return {
        "k": NEIGHBOURS,
        "queries": len(queries),
        "documents": len(documents),
        "standard": float(metrics.shared(standard, wanted).mean()),
        "asymmetric": float(metrics.shared(asymmetric, wanted).mean()),
    }


def _sample(both: Both, params: EvaluateParams) -> Both:
    if len(both) <= params.neighbours_rows:
        return both
    rows = np.random.default_rng(params.seed).choice(len(both), params.neighbours_rows, replace=False)
    return both[np.sort(rows)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return [_rounded(one) for one in value]
    return round(value, DIGITS) if isinstance(value, float) else value
