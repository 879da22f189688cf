"""How well a student stands in for its teacher: alignment, neighbours, retrieval, with whole vectors and with less.

The modes are those of `pipeline.retrieval`. Corpus texts are those held out of training, with the vectors of the store.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base.arrays import Array, cosines
from pipeline.base.errors import LeafError
from pipeline.base.keys import ROLES
from pipeline.corpus.files import scan
from pipeline.evaluate import collection as beir
from pipeline.evaluate import examples, metrics, tasks
from pipeline.evaluate.datasets import Dataset, PairedVectors, StudentVectors, TeacherVectors, pairs, sides
from pipeline.evaluate.quantisation import Calibration, quantisation
from pipeline.evaluate.truncation import truncation
from pipeline.evaluate.uncertainty import difference
from pipeline.params.sections import EvaluateParams
from pipeline.serve.modes import MODES
from pipeline.store.store import Store

NEIGHBOURS = 10
BLOCK_ROWS = 4096  # texts the student is given at once; the progress bar moves as often


@dataclass(frozen=True)
class Evaluation:
    """The figures as they are written, and what lies behind them, for tables and pictures."""

    figures: dict[str, Any]
    cosines: dict[str, Array]
    """Of held-out texts, by role."""
    points: list[tuple[str, str, str, float, float]] = field(default_factory=list)
    """As `examples.project` gives them."""
    moved: list[dict[str, Any]] = field(default_factory=list)
    """As `examples.moved` gives them."""


def evaluate(
    corpus: Path,
    embeddings: Path,
    student: StudentVectors,
    teacher_of: Callable[[Store], TeacherVectors],
    params: EvaluateParams,
) -> Evaluation:
    """Measure a student on the held-out texts of the corpus and on the BEIR directories and files of `params`.

    `teacher_of(store)` gives the function for teacher vectors of texts outside the store (see `vectors_on_demand`).

    Raises:
        LeafError: bad corpus, store, BEIR directory or file; a held-out text has no vector in the store; the student's
            vectors have another dimension than the teacher's; nothing to evaluate on.
    """
    collections = _collections(params)
    store = Store.open(embeddings)
    texts = store.answered(scan(corpus))
    held = texts.filter(pl.col("split") == "heldout").sort("role", "key").collect()
    if held.is_empty() and not collections:
        raise LeafError(f"{corpus}: holds no held-out texts and evaluate.beir names none: set corpus.heldout above 0")
    vectors = PairedVectors(store.lookup(held["key"].to_list()), _encode(held, student, store.meta.dim))
    by_role = {role: vectors[(held["role"] == role).to_numpy()] for role in ROLES}
    by_role = {role: both for role, both in by_role.items() if len(both)}

    def outside(frame: pl.DataFrame) -> PairedVectors:
        return PairedVectors(teacher_of(store)(frame), _encode(frame, student, store.meta.dim))

    datasets = list(_datasets(held, vectors, collections, outside))
    calibration = _calibration(texts, store, student, params) if datasets else None
    figures = {
        "alignment": {role: _alignment(both, params) for role, both in by_role.items()},
        "neighbours": neighbours(by_role.get("query"), by_role.get("document"), params),
        "retrieval": {
            one.name: retrieval(one.queries, one.documents, one.judged, params, one.itself) for one in datasets
        },
        "truncation": {one.name: truncation(one, params) for one in datasets},
    }
    if calibration is not None:
        figures["quantisation"] = {one.name: quantisation(one, calibration, params) for one in datasets}
    for kind, measure in (("sts", tasks.sts), ("classification", tasks.classification)):
        if files := _named(getattr(params, kind), kind):
            figures[kind] = {name: measure(file, outside, params) for name, file in files.items()}
    cosines = {role: cosines(both.student, both.teacher) for role, both in by_role.items()}
    return Evaluation(
        metrics.rounded(figures), cosines, examples.project(held, vectors, params), examples.moved(datasets, params)
    )


def _datasets(
    held: pl.DataFrame, vectors: PairedVectors, collections: Sequence[beir.Collection], outside: tasks.Encode
) -> Iterator[Dataset]:
    texts, names = held["text"], set()
    for name, asking, asked, judged in pairs(held):
        names.add(name)
        both = texts[asking].to_list(), texts[asked].to_list()
        yield Dataset(name, vectors[asking], vectors[asked], judged, both)
    for one in collections:
        if one.name in names:
            raise LeafError(f"evaluate.beir: `{one.name}` is a source of the corpus too; rename the directory")
        both = one.queries["text"].to_list(), one.documents["text"].to_list()
        yield Dataset(one.name, outside(one.queries), outside(one.documents), one.judged, both, one.itself, False)


def _alignment(both: PairedVectors, params: EvaluateParams) -> dict[str, Any]:
    found: dict[str, Any] = metrics.alignment(both.student, both.teacher)
    means = metrics.bootstrap(cosines(both.student, both.teacher)[:, None], params.bootstrap, params.seed)
    return {**found, "interval": metrics.interval(means[:, 0])}


def _calibration(
    texts: pl.LazyFrame, store: Store, student: StudentVectors, params: EvaluateParams
) -> Calibration | None:
    """Vectors of training texts, the first by key (keys are random, so any are a fair sample); None if unwanted.

    A role without training texts takes the other's; without any at all there is no quantisation.
    """
    found: dict[str, PairedVectors] = {}
    for role in ROLES:
        of = (pl.col("split") == "train") & (pl.col("role") == role)
        frame = texts.filter(of).head(params.calibration_rows).collect()
        if len(frame):
            found[role] = PairedVectors(store.lookup(frame["key"].to_list()), _encode(frame, student, store.meta.dim))
    if not found:
        return None
    other = next(iter(found.values()))
    return Calibration(found.get("query", other), found.get("document", other))


def _named(files: Sequence[str], kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        path = Path(file).expanduser()
        if path.stem in found:
            raise LeafError(f"evaluate.{kind}: two files are named `{path.stem}`; rename one")
        found[path.stem] = path
    return found


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


def retrieval(
    queries: PairedVectors,
    documents: PairedVectors,
    judged: Sequence[dict[int, int]],
    params: EvaluateParams,
    itself: Array | None = None,
) -> dict[str, Any]:
    """nDCG@10, recall@100 and MRR@10 of the three modes, with 95 % bootstrap intervals over the queries.

    `retention` is the share of the teacher's nDCG@10, its interval paired by query; None where the teacher has 0.
    `difference` is that of nDCG@10 to the teacher's, paired likewise; `gain` that of asymmetric to standard.

    Args:
        judged: for each query, the grade of documents, by row of `documents`; above 0 is relevant.
        itself: for each query, the document that must not be found because it is the query; -1 for none.
    """
    of = sides(queries, documents)
    found = {mode: metrics.nearest(*side, metrics.DEPTH, itself) for mode, side in of.items()}
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
            result[mode]["difference"] = difference(means[at, 0] - means[0, 0], samples[:, at, 0] - samples[:, 0, 0])
        result[mode]["interval"] = intervals
    result["asymmetric"]["gain"] = difference(means[2, 0] - means[1, 0], samples[:, 2, 0] - samples[:, 1, 0])
    return result


def neighbours(
    queries: PairedVectors | None, documents: PairedVectors | None, params: EvaluateParams
) -> dict[str, Any]:
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
    shares = {"standard": metrics.shared(standard, wanted), "asymmetric": metrics.shared(asymmetric, wanted)}
    samples = metrics.bootstrap(np.stack(list(shares.values()), axis=1), params.bootstrap, params.seed)
    return {
        "k": NEIGHBOURS,
        "queries": len(queries),
        "documents": len(documents),
        **{mode: float(share.mean()) for mode, share in shares.items()},
        "interval": {mode: metrics.interval(samples[:, at]) for at, mode in enumerate(shares)},
    }


def _sample(both: PairedVectors, params: EvaluateParams) -> PairedVectors:
    if len(both) <= params.neighbours_rows:
        return both
    rows = np.random.default_rng(params.seed).choice(len(both), params.neighbours_rows, replace=False)
    return both[np.sort(rows)]
