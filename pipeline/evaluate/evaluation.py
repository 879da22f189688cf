"""How well a student replaces its teacher: alignment, neighbours, retrieval, compressed vectors, tasks from files.

Corpus texts are those held out of training, with the stored vectors of the teacher.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base import ROLES, Array, LeafError, cosines
from pipeline.corpus import further_records, scan
from pipeline.evaluate import collection as beir
from pipeline.evaluate import metrics, tasks
from pipeline.evaluate.bootstrap import bootstrap_means, interval
from pipeline.evaluate.datasets import (
    Dataset,
    HeldoutPairs,
    PairedVectors,
    Sides,
    StudentVectors,
    TeacherVectors,
    heldout_pairs,
)
from pipeline.evaluate.moved_queries import moved_queries
from pipeline.evaluate.quantisation import Calibration, quantisation
from pipeline.evaluate.retrieval import neighbours, ranking_figures, retrieval
from pipeline.evaluate.truncation import truncation
from pipeline.evaluate.vector_map import Point, map_points
from pipeline.params import EvaluateParams
from pipeline.serve import START
from pipeline.store import VectorSource

_NO_CORPUS = {**dict.fromkeys(("id", "text", "role", "source", "split"), pl.String), "key": pl.Binary}
OWN_CALIBRATION = "int8 was calibrated on its own texts, as there are no training texts"
BLOCK_ROWS = 4096  # texts given to the student at once; the progress bar moves as often


@dataclass(frozen=True)
class Evaluation:
    """The figures as they are written, and the data behind them, for tables and pictures."""

    figures: dict[str, Any]
    cosines: dict[str, Array]
    """Of student to teacher for each held-out text, by role."""
    map_points: list[Point] = field(default_factory=list)
    moved: list[dict[str, Any]] = field(default_factory=list)
    """What `moved_queries` returns."""
    timed: tuple[list[str], list[str]] = ([], [])
    """Documents and queries to measure `cost` on, as many as `cost` wants: held-out ones, else of the collections."""


@dataclass(frozen=True)
class Encoders:
    """Where the vectors of both models come from."""

    source: VectorSource
    student: StudentVectors
    teacher: TeacherVectors
    """For texts that `source` does not hold."""
    start: StudentVectors | None = None
    """The untouched checkpoint that the student was made from."""

    def of_start(self, queries: pl.DataFrame, documents: pl.DataFrame) -> Sides | None:
        """Vectors of both sides (frames `role, id, text`) by the untouched checkpoint; None if it is unknown."""
        if self.start is None:
            return None
        return _encoded(self.start, queries, "start"), _encoded(self.start, documents, "start")

    def stored(self, texts: pl.DataFrame) -> PairedVectors:
        """Vectors of corpus texts (frame `key, role, id, text`): the teacher's are stored.

        Raises:
            LeafError: a text has no stored vector; the student's vectors are not finite or not of the teacher's dim.
        """
        return PairedVectors(self.source.lookup(texts["key"].to_list()), self._student_vectors(texts))

    def computed(self, texts: pl.DataFrame) -> PairedVectors:
        """Vectors of any texts (frame `key, role, id, source, text`); LeafError as `stored`."""
        return PairedVectors(self._teacher_vectors(texts), self._student_vectors(texts))

    def _teacher_vectors(self, texts: pl.DataFrame) -> Array:
        """`[n, dim]` float32: stored ones, and the teacher's of other texts; where all are stored it is not asked."""
        keys = texts["key"].to_list()
        stored = self.source.locate(keys) >= 0
        if not stored.any():
            return self.teacher(texts)
        vectors = np.empty((len(texts), self.source.meta.dim), np.float32)
        vectors[stored] = self.source.lookup([keys[row] for row in np.flatnonzero(stored)])
        if not stored.all():
            vectors[~stored] = self.teacher(texts.filter(pl.Series(~stored)))
        return vectors

    def _student_vectors(self, texts: pl.DataFrame) -> Array:
        """`[n, dim]` float32, in the order of the frame."""
        vectors, dim = _encoded(self.student, texts, "student"), self.source.meta.dim
        if len(texts) and vectors.shape[1] != dim:
            raise LeafError(
                f"the student's vectors have {vectors.shape[1]} dimensions, but those of the store {dim}: it was not "
                "fitted to this store"
            )
        return vectors if len(texts) else np.empty((0, dim), np.float32)


def _encoded(encode: StudentVectors, texts: pl.DataFrame, name: str) -> Array:
    """`[n, d]` float32: vectors of a frame `role, id, text` in its order, block by block.

    Raises:
        LeafError: one is not finite.
    """
    vectors = np.empty((len(texts), 0), np.float32)
    with tqdm(total=len(texts), unit="text", desc=name) as bar:
        for role in ROLES:
            rows = np.flatnonzero((texts["role"] == role).to_numpy())
            for start in range(0, len(rows), BLOCK_ROWS):
                block = rows[start : start + BLOCK_ROWS]
                block_vectors = encode(texts["text"][block].to_list(), role)
                if not vectors.shape[1]:
                    vectors = np.empty((len(texts), block_vectors.shape[1]), np.float32)
                vectors[block] = block_vectors
                bar.update(len(block))
    if not np.isfinite(vectors).all():
        row = int((~np.isfinite(vectors).all(1)).argmax())
        raise LeafError(f"the {name}'s vector of text `{texts['id'][row]}` is not finite; it cannot be measured")
    return vectors


def evaluate(
    corpus: Path | None,
    source: VectorSource,
    student: StudentVectors,
    teacher: TeacherVectors,
    params: EvaluateParams,
    *,
    start: StudentVectors | None = None,
) -> Evaluation:
    """Measure a student on the held-out texts of the corpus and on the BEIR directories and files of `params`.

    `source` holds the teacher's vectors of the corpus; `teacher` is called only for texts of those directories and
    files that `source` does not hold. Without a corpus, only the directories and files are measured. Where there are no
    training texts to calibrate quantisation on, each collection is calibrated on its own texts, and a notice says so.
    `start` is the untouched checkpoint that the student was made from: it is measured in retrieval as a fourth mode.

    Raises:
        LeafError: bad corpus, source, BEIR directory or file; a held-out text has no stored vector; the student's
            vectors have another dimension than the teacher's; nothing to evaluate on.
    """
    collections, indexes = _collections(params)
    texts = source.answered(scan(corpus) if corpus else pl.LazyFrame(schema=_NO_CORPUS))
    heldout = texts.filter(pl.col("split") == "heldout").sort("role", "key").collect()
    if heldout.is_empty() and not collections and not indexes:
        raise LeafError(
            f"{corpus or 'no corpus'}: holds no held-out texts and evaluate.beir names no collections: name one, or "
            "hold out a larger share (corpus.heldout) of more records"
        )
    encoders = Encoders(source, student, teacher, start)
    vectors = encoders.stored(heldout)
    by_role = {role: vectors[(heldout["role"] == role).to_numpy()] for role in ROLES}
    by_role = {role: of_role for role, of_role in by_role.items() if len(of_role)}
    pairs = heldout_pairs(heldout, further_records(corpus)) if corpus else []
    datasets = list(_datasets(heldout, vectors, pairs, collections, encoders, shown="text" if params.texts else "id"))
    calibration = _calibration(texts, encoders, params) if datasets else None
    calibrations = [calibration or _own_calibration(data, params) for data in datasets if params.calibration_rows]
    similarity = source.meta.similarity
    figures: dict[str, Any] = {
        "similarity": similarity,
        "alignment": {role: _alignment(of_role, params) for role, of_role in by_role.items()},
        "neighbours": neighbours(by_role.get("query"), by_role.get("document"), params, similarity=similarity),
        "retrieval": {data.name: _retrieval_figures(data, params) for data in _counted(datasets, "retrieval")},
        "truncation": {data.name: truncation(data, params) for data in _counted(datasets, "truncation")},
    }
    if note := source.meta.similarity_note:
        figures["similarity_note"] = note
    if indexes:
        figures["indexes"] = {index.name: _search_index(index, encoders, params) for index in indexes}
    own = (OWN_CALIBRATION,) if calibrations and calibration is None else ()
    notices = [f"{data.name}: {notice}" for data in datasets for notice in (*data.notices, *own)]
    outside = [data.name for data in datasets if not data.heldout]
    if notices := [*notices, *_losses_by_fitting({name: figures["retrieval"][name] for name in outside})]:
        figures["notices"] = notices
    if calibrations:
        pairs_of = zip(_counted(datasets, "quantisation"), calibrations, strict=True)
        figures["quantisation"] = {data.name: quantisation(data, ranges, params) for data, ranges in pairs_of}
    figures |= _labelled_figures(encoders, params)
    return Evaluation(
        metrics.rounded(figures),
        {role: cosines(of_role.student, of_role.teacher) for role, of_role in by_role.items()},
        map_points(heldout, vectors, params),
        moved_queries(datasets, params),
        _timed(heldout, collections, params),
    )


def _counted(datasets: Sequence[Dataset], measure: str) -> Iterable[Dataset]:
    """The data sets, with a progress bar that names the measure."""
    return tqdm(datasets, desc=measure, unit="data set")


def _retrieval_figures(data: Dataset, params: EvaluateParams) -> dict[str, Any]:
    sides = data.queries, data.documents
    figures = retrieval(*sides, data.judged, params, data.itself, similarity=data.similarity, start=data.start)
    return {"judgments": data.judgments, **figures}


def _labelled_figures(encoders: Encoders, params: EvaluateParams) -> dict[str, Any]:
    """Figures of the files with scores or labels, by task and name of the file."""
    similarity = encoders.source.meta.similarity
    measures: dict[str, tuple[Sequence[str], Callable[..., dict[str, Any]]]] = {
        "sts": (params.sts, partial(tasks.sts, similarity=similarity)),
        "classification": (params.classification, tasks.classification),
        "clustering": (params.clustering, tasks.clustering),
    }
    return {
        kind: {name: measure(file, encoders.computed, params) for name, file in _by_name(files, kind).items()}
        for kind, (files, measure) in measures.items()
        if files
    }


def needs_of_teacher(params: EvaluateParams, source: VectorSource) -> list[str]:
    """The parameters that name texts without a vector in `source`, so that only the teacher itself can give it.

    Raises:
        LeafError: a collection or file cannot be read.
    """
    collections, indexes = _collections(params)
    tables = [("beir", frame) for data in collections for frame in (data.documents, data.queries)]
    tables += [("beir", index.queries) for index in indexes]
    for task in tasks.TEXT_COLUMNS:
        tables += [(task, tasks.task_texts(file, task)) for file in _by_name(getattr(params, task), task).values()]
    missing = {name for name, frame in tables if (source.locate(frame["key"].to_list()) < 0).any()}
    return [f"evaluate.{name}" for name in ("beir", *tasks.TEXT_COLUMNS) if name in missing]


def _timed(
    heldout: pl.DataFrame, collections: Sequence[beir.Collection], params: EvaluateParams
) -> tuple[list[str], list[str]]:
    """`Evaluation.timed`; a role without texts takes the other's. Where all documents are vectors there are none."""
    counts = {"document": params.cost.texts, "query": params.cost.queries}
    frames = [heldout.select("role", "text")] if len(heldout) else []
    frames = frames or [
        frame.select("role", "text").head(max(counts.values()))
        for data in collections
        for frame in (data.documents, data.queries)
    ]
    if not frames:
        return [], []
    texts = pl.concat(frames)
    documents, queries = (
        texts.filter(pl.col("role") == role)["text"].head(count).to_list() for role, count in counts.items()
    )
    return documents or queries, queries or documents


def _datasets(
    heldout: pl.DataFrame,
    vectors: PairedVectors,
    heldout_pairs: Iterable[HeldoutPairs],
    collections: Sequence[beir.Collection],
    encoders: Encoders,
    *,
    shown: str,
) -> Iterator[Dataset]:
    """Pairs by source of the held-out texts, whose vectors are given, then the BEIR collections.

    `shown` is the column that stands for a text in what people read.
    """
    names, texts = set(), heldout[shown]
    for pairs in heldout_pairs:
        names.add(pairs.source)
        pair_texts = texts[pairs.queries].to_list(), texts[pairs.documents].to_list()
        both_sides = heldout[pairs.queries], heldout[pairs.documents]
        yield Dataset(
            pairs.source,
            vectors[pairs.queries],
            vectors[pairs.documents],
            pairs.judged,
            pair_texts,
            similarity=encoders.source.meta.similarity,
            judgments=pairs.figures(),
            notices=pairs.notices(),
            start=encoders.of_start(*both_sides),
        )
    for data in collections:
        if data.name in names:
            raise LeafError(f"evaluate.beir: `{data.name}` is a source of the corpus too; rename the directory")
        yield Dataset(
            data.name,
            encoders.computed(data.queries),
            encoders.computed(data.documents),
            data.judged,
            (data.queries[shown].to_list(), data.documents[shown].to_list()),
            data.itself,
            heldout=False,
            similarity=encoders.source.meta.similarity,
            judgments=data.judgments.figures(),
            notices=data.judgments.notices(),
            start=encoders.of_start(data.queries, data.documents),
        )


def _losses_by_fitting(results: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each of these collections on which standard mode is worse than the untouched checkpoint."""
    for name, result in results.items():
        change = result["standard"].get("since_start")
        if change is not None and change["verdict"] == "lower":
            low, high = change["interval"]
            yield (
                f"{name}: fitting has made standard mode worse than the untouched checkpoint: nDCG@10 "
                f"{result[START]['ndcg@10']:.4f} to {result['standard']['ndcg@10']:.4f} (95 % interval of the change "
                f"{low:.4f} to {high:.4f}). Texts of other kinds in the corpus help, and a larger fit.start_share "
                "(README: A narrow corpus)"
            )


def _alignment(vectors: PairedVectors, params: EvaluateParams) -> dict[str, Any]:
    """`metrics.alignment` and the interval of the mean cosine."""
    means = bootstrap_means(cosines(vectors.student, vectors.teacher)[:, None], params.bootstrap, params.seed)
    return {**metrics.alignment(vectors.student, vectors.teacher), "interval": interval(means[:, 0])}


def _calibration(texts: pl.LazyFrame, encoders: Encoders, params: EvaluateParams) -> Calibration | None:
    """Vectors of the first training texts by key (keys are random, so they are a fair sample).

    A role without training texts takes the other's; None without any, or if `params` asks for none.
    """
    by_role: dict[str, PairedVectors] = {}
    for role in ROLES:
        training = texts.filter((pl.col("split") == "train") & (pl.col("role") == role))
        frame = training.head(params.calibration_rows).collect()
        if len(frame):
            by_role[role] = encoders.stored(frame)
    if not by_role:
        return None
    other = next(iter(by_role.values()))
    return Calibration(by_role.get("query", other), by_role.get("document", other))


def _own_calibration(data: Dataset, params: EvaluateParams) -> Calibration:
    """Vectors of a seeded sample of a collection's own texts, of each role at most `calibration_rows`."""
    random = np.random.default_rng(params.seed)

    def sample(vectors: PairedVectors) -> PairedVectors:
        count = min(params.calibration_rows, len(vectors))
        return vectors[np.sort(random.choice(len(vectors), count, replace=False))]

    return Calibration(sample(data.queries), sample(data.documents))


def _by_name(files: Sequence[str], kind: str) -> dict[str, Path]:
    """The files by name without suffix, which must be unique."""
    paths: dict[str, Path] = {}
    for file in files:
        path = Path(file).expanduser()
        if path.stem in paths:
            raise LeafError(f"evaluate.{kind}: two files are named `{path.stem}`; rename one")
        paths[path.stem] = path
    return paths


def _search_index(index: beir.Index, encoders: Encoders, params: EvaluateParams) -> dict[str, Any]:
    """Retrieval in an index of vectors without texts: by the teacher's queries, and by the student's.

    Raises:
        LeafError: the vectors have another dimension than the teacher's.
    """
    dim = encoders.source.meta.dim
    if index.vectors.shape[1] != dim:
        raise LeafError(
            f"evaluate.beir: {index.name}: holds vectors of {index.vectors.shape[1]} dimensions, but the teacher's have"
            f" {dim}: it is an index of another model"
        )
    queries = encoders.computed(index.queries)
    modes = {"teacher": (queries.teacher, index.vectors), "asymmetric": (queries.student, index.vectors)}
    figures = ranking_figures(modes, index.judged, params, None, encoders.source.meta.similarity)
    return {"judgments": index.judgments.figures(), **figures}


def _collections(params: EvaluateParams) -> tuple[list[beir.Collection], list[beir.Index]]:
    """The directories of `evaluate.beir`: collections with texts, and indexes of vectors alone."""
    names = [Path(path).expanduser().resolve().name for path in params.beir]
    if twice := [name for name in names if names.count(name) > 1]:
        raise LeafError(f"evaluate.beir: two directories are named `{twice[0]}`; rename one")
    paths = [Path(path) for path in params.beir]
    indexes = [beir.read_index(path) for path in paths if beir.is_index(path)]
    return [beir.read(path) for path in paths if not beir.is_index(path)], indexes
