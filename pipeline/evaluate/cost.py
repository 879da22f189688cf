"""What teacher and student cost on this machine: texts a second, latency of a query, memory, bytes, parameters.

Each model runs in a process of its own, so that its resident memory is measured alone. The two take turns, so that a
slow moment of the machine affects both.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.base import Array, LeafError, under_way
from pipeline.evaluate.bootstrap import bootstrap_means, interval
from pipeline.params import EncodeParams, EvaluateParams, TeacherParams
from pipeline.teacher import Teacher

MODELS = ("teacher", "student")
WARM_UP_TEXTS = 8  # encoded before anything is timed
LATENCY_PERCENTILES = (50, 95)
MIB = 2**20


@dataclass(frozen=True)
class Subject:
    """The model that a process loads: a teacher, or the directory of a student."""

    model: TeacherParams | Path
    token_budget: int | None


def cost(
    teacher: Teacher,
    student: Path,
    token_budget: int | None,
    texts: tuple[Sequence[str], Sequence[str]],
    params: EvaluateParams,
) -> dict[str, Any]:
    """Measure teacher and student on the same texts, with one thread and with all; empty if `cost.texts` is 0.

    `student` is its directory, `texts` are documents and queries. Latency is that of a single query, tokenisation
    included. `ratio` is student to teacher, paired by turn. A teacher behind an API is left out, and `left_out` says
    so: its speed is that of its server and of the network.

    Raises:
        LeafError: a model cannot be loaded, or its process ended.
    """
    settings = params.cost
    documents, queries = texts[0][: settings.texts], texts[1][: settings.queries]
    if not settings.texts or not documents or not queries:
        return {}
    context = multiprocessing.get_context("spawn")
    subjects: dict[str, TeacherParams | Path] = {"student": student}
    if teacher.directory is not None:
        subjects = {"teacher": teacher.params, "student": student}
    measured = {name: Subject(model, token_budget) for name, model in subjects.items()}
    workers = {name: _start(context, subject) for name, subject in measured.items()}
    try:
        figures: dict[str, Any] = {"texts": len(documents), "queries": len(queries), "rounds": settings.rounds}
        if reasons := [f"the {name} is an API" for name in MODELS if name not in measured]:
            figures["left_out"] = f"{reasons[0]}: its speed and size are not those of this machine"
        pipes = {name: pipe for name, (_, pipe) in workers.items()}
        with under_way("cost: models are loaded"):
            figures["models"] = {name: _request(pipe, "load") for name, pipe in pipes.items()}
        threads = sorted({1, len(os.sched_getaffinity(0))})
        figures["threads"] = {str(n): _take_turns(pipes, n, documents, queries, params) for n in threads}
        for name, pipe in pipes.items():
            figures["models"][name]["resident_mib"] = _request(pipe, "resident")
        return figures
    finally:
        for process, pipe in workers.values():
            pipe.close()
            process.join(5)
            process.kill()


def _start(context: Any, subject: Subject) -> tuple[Any, Connection]:
    """A process that serves the model, and this end of the pipe to it."""
    pipe, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(other_end, subject), daemon=True)
    # Ctrl-C is sent to all processes of a terminal: this one ends the other, which would only print where it was.
    resource_tracker.ensure_running()  # whose start would take the mask away
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # with the mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    other_end.close()
    return process, pipe


def _request(pipe: Connection, name: str, *arguments: Any) -> Any:
    """Call one of HANDLERS in the measuring process."""
    try:
        pipe.send((name, *arguments))
        succeeded, answer = pipe.recv()
    except (EOFError, OSError):
        raise LeafError("evaluate.cost: a measuring process ended; is there enough memory for both models?") from None
    if not succeeded:
        raise LeafError(f"evaluate.cost: {answer}")
    return answer


def _take_turns(
    pipes: Mapping[str, Connection],
    threads: int,
    documents: Sequence[str],
    queries: Sequence[str],
    params: EvaluateParams,
) -> dict[str, Any]:
    """Figures of the models with `threads` threads; in each round each model has one turn."""
    rounds = params.cost.rounds
    seconds = np.empty((rounds, len(pipes)))
    latencies: list[list[float]] = [[] for _ in pipes]
    query_rows = np.array_split(np.arange(len(queries)), rounds)
    for turn, rows in enumerate(tqdm(query_rows, desc=f"cost, threads: {threads}", unit="round")):
        for m, pipe in enumerate(pipes.values()):
            seconds[turn, m] = _request(pipe, "throughput", threads, list(documents))
            latencies[m] += _request(pipe, "latency", threads, [queries[i] for i in rows])
    rates = len(documents) / seconds
    samples = bootstrap_means(rates, params.bootstrap, params.seed)
    figures: dict[str, Any] = {}
    for m, name in enumerate(pipes):
        figures[name] = {"texts_per_s": _figure(rates[:, m].mean(), samples[:, m], rounds)}
        for q in LATENCY_PERCENTILES:
            figures[name][f"latency_p{q}_ms"] = _percentile(np.array(latencies[m]), q, params)
    if len(pipes) == len(MODELS):
        ratio = rates[:, 1].mean() / rates[:, 0].mean()
        figures["ratio"] = _figure(ratio, samples[:, 1] / samples[:, 0], rounds)
    return figures


def _percentile(values: Array, q: int, params: EvaluateParams) -> dict[str, Any]:
    random = np.random.default_rng(params.seed)
    rows = random.integers(len(values), size=(params.bootstrap, len(values)))
    return _figure(np.percentile(values, q), np.percentile(values[rows], q, axis=1), len(values))


def _figure(value: float, samples: Array, n: int) -> dict[str, Any]:
    span = interval(samples)
    return {"value": round(float(value), 3), "n": n, "interval": span and [round(end, 3) for end in span]}


# --- in the measuring process ---


def _serve(pipe: Connection, subject: Subject) -> None:
    """Answer requests until the other end closes."""
    state: dict[str, Any] = {}
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, HANDLERS[name](state, subject, *arguments)))
        except LeafError as error:
            pipe.send((False, str(error)))


def _load(state: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """Load the model; its parameters, bytes on disk, and the memory that the libraries took before."""
    from pipeline.model import StudentEncoder
    from pipeline.teacher import LocalTeacher

    before = _resident()
    if isinstance(subject.model, TeacherParams):
        model = LocalTeacher(subject.model, EncodeParams(token_budget=subject.token_budget))
        model.load()
        directory = model.directory
        parameters = sum(p.numel() for p in model._model.parameters())
        state["encode"] = lambda texts, role: model.encode_tokens(model.tokenize(texts, role))
    else:
        directory, student = subject.model, StudentEncoder.load(subject.model)
        parameters = sum(p.numel() for p in student.student.parameters())
        state["encode"] = student.encode
    size = sum(file.stat().st_size for file in directory.rglob("*.safetensors"))
    return {"parameters": parameters, "bytes": size, "libraries_mib": before}


def _resident() -> float:
    """Resident memory of this process, in MiB, shared libraries included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / MIB, 1)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if threads == 1 else "true"


def _throughput(state: dict[str, Any], subject: Subject, threads: int, texts: list[str]) -> float:
    """Seconds for all texts, as documents."""
    _set_threads(threads)
    state["encode"](texts[:WARM_UP_TEXTS], "document")
    start = time.perf_counter()
    state["encode"](texts, "document")
    return time.perf_counter() - start


def _latency(state: dict[str, Any], subject: Subject, threads: int, queries: list[str]) -> list[float]:
    """Milliseconds of each query, encoded alone."""
    _set_threads(threads)
    milliseconds = []
    for query in [*queries[:1], *queries]:
        start = time.perf_counter()
        state["encode"]([query], "query")
        milliseconds.append((time.perf_counter() - start) * 1000)
    return milliseconds[1:]  # the first query warms up


HANDLERS: dict[str, Callable[..., Any]] = {
    "load": _load,
    "resident": lambda state, subject: _resident(),
    "throughput": _throughput,
    "latency": _latency,
}
