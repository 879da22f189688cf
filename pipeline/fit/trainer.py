"""Stage two: fit the student to the stored vectors by regression. The teacher is not loaded."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pipeline.base import LeafError, keep_pages, locked, prefetch, release_pages, under_way
from pipeline.corpus import corpus_digest, corpus_keys, numbered_column
from pipeline.fit import checkpoint, head
from pipeline.fit.candidates import Candidates, candidates_digest, open_candidates
from pipeline.fit.card import write_card
from pipeline.fit.loader import Loader, Position, TrainingBatch
from pipeline.fit.optimiser import learning_rate, total_steps
from pipeline.fit.ranks import ALONE, Ranks
from pipeline.fit.saved_weights import SavedWeights
from pipeline.fit.step import compute_dtype, step_for
from pipeline.fit.teachers import JoinedSource, open_teachers
from pipeline.fit.token_cache import Tokens, token_counts, tokenize
from pipeline.model import (
    Student,
    best_device,
    build,
    checkpoint_digest,
    freeze,
    pack,
    repeatable,
    resolve_model,
    synchronize,
    token_batches,
    traits_of,
)
from pipeline.params import FitParams
from pipeline.store import FittedTo, VectorSource

STATE_FORMAT = 3  # of what a checkpoint holds; part of a run's name, so that an earlier format is never read
KEEP_BYTES = 40 << 20
"""malloc keeps freed buffers of up to this size. No buffer of a training step is larger, but vocabulary tables and
parts of the store are: kept on the heap, those would leave holes for as long as the process runs."""
AHEAD = 32  # training batches that are ready before they are needed
CURVE_POINTS = 200  # points of the training curve
CHECKPOINT_SECONDS = 300.0
"""A checkpoint is written after this time too, where `fit.checkpoint_every` steps take longer: minutes are cheap to
repeat, and writing three times the student's size is about a hundredth of them."""
NOT_OF_THE_RESULT = ("checkpoint_every",)  # parameters that may change between a run and its continuation


@dataclass
class Progress:
    """What a checkpoint remembers besides tensors. Times are in seconds."""

    step: int = 0
    position: Position = field(default_factory=Position)
    presentations: int = 0
    window_loss: float = 0.0
    window_steps: int = 0
    training: float = 0.0
    waiting: float = 0.0
    total: float = 0.0
    start: dict[str, float] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, str, float]] = field(default_factory=list)
    """Rows (step, split, loss)."""
    processes: list[tuple[int, int]] = field(default_factory=list)
    """Step, and how many processes computed from there on."""

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "Progress":
        """From the JSON of a checkpoint."""
        curve = [(int(step), str(split), float(loss)) for step, split, loss in raw["curve"]]
        processes = [(int(step), int(size)) for step, size in raw.get("processes", [])]
        return cls(**{**raw, "position": Position(**raw["position"]), "curve": curve, "processes": processes})


@dataclass(frozen=True)
class FitResult:
    """A finished fit."""

    metrics: dict[str, Any]
    """For JSON."""
    curve: list[tuple[int, str, float]]
    """Rows (step, split, loss)."""
    state: Path
    """Directory of the run's last checkpoint. While it is there, the same fit trains nothing and returns this again."""

    def discard_state(self) -> None:
        """Delete the checkpoint. Call this once the figures are written."""
        shutil.rmtree(self.state, ignore_errors=True)


def fit(
    corpus: Path, source: VectorSource, params: FitParams, out: Path, work: Path, *, ranks: Ranks = ALONE
) -> FitResult:
    """Train a student on every training text of `corpus`, write it to `out`, and return what was measured.

    `source` has the teacher's vectors of the corpus; those of further teachers are in the stores that `params` name.

    Checkpoints lie below `work`: a run that was killed continues there, and ends with the weights that it would have
    had. The last one stays until `FitResult.discard_state`. Snapshots of a student `out` go to `out-snapshots/step-N`.
    With several `ranks` each calls this; the first alone writes.

    Raises:
        LeafError: bad input of any kind, a damaged store or checkpoint, or another run under way.
    """
    keep_pages(KEEP_BYTES)
    _check_ranks(params, ranks)
    source = open_teachers(source, params)
    with under_way("fit: digests of corpus, store and checkpoint", shown=ranks.first):
        digests = _input_digests(corpus, source, params)
    state = work / _run_name(params, digests)
    place = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if ranks.first:
            held.enter_context(locked(work / f"{place}.lock", str(out)))
            held.enter_context(locked(work / f"{state.name}.lock", "fit with these parameters"))
            with under_way("fit: checksums of the store"):
                source.verify()
        else:
            ranks.wait()  # for the token cache and the aligned stores that the first one writes
        if isinstance(source, JoinedSource):
            source.align(corpus_keys(corpus), work)
        trainer = Trainer(corpus, source, params, digests["corpus"], work, ranks=ranks)
        if ranks.first:
            ranks.wait()
        trainer.train(state, out)
        return FitResult(trainer.metrics(), trainer.progress.curve, state)


def _check_ranks(params: FitParams, ranks: Ranks) -> None:
    """LeafError where so many processes cannot fit with these parameters."""
    if params.replicas > 1 and ranks.size != params.replicas:
        raise LeafError(
            f"fit.replicas: {params.replicas} replicas need as many processes, and there are {ranks.size}: `dvc repro` "
            "starts them; by hand, `torchrun` with so many in all (docs/scale.md)"
        )
    if params.replicas > 1 and params.average_last > 1:
        raise LeafError(
            "fit.average_last: replicas are one student only where they are averaged: leave out one of both"
        )
    if params.replicas == 1 and ranks.size > params.batch_size:
        raise LeafError(
            f"cluster.fit_ranks: {ranks.size} processes cannot share a batch of {params.batch_size} texts "
            "(fit.batch_size)"
        )


def _input_digests(corpus: Path, source: VectorSource, params: FitParams) -> dict[str, str]:
    """Digests of all files that decide the result."""
    model = resolve_model(params.student.model, params.student.revision)
    return {
        "fingerprint": source.meta.fingerprint,
        "corpus": corpus_digest(corpus),
        "store": source.digest(),
        "student": checkpoint_digest(model, params.student.weights == "checkpoint"),
        **({"candidates": digest} if (digest := candidates_digest(params.candidates)) else {}),
    }


def _run_name(params: FitParams, digests: dict[str, str]) -> str:
    decides = {name: value for name, value in asdict(params).items() if name not in NOT_OF_THE_RESULT}
    return hashlib.sha256(json.dumps([STATE_FORMAT, decides, digests], sort_keys=True).encode()).hexdigest()[:16]


class Trainer:
    """One fit: the student, its optimiser, its data, and its progress."""

    def __init__(
        self,
        corpus: Path,
        source: VectorSource,
        params: FitParams,
        digest: str,
        work: Path,
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        """Builds everything and trains nothing. `digest` is the corpus's."""
        self.corpus, self.source, self.params, self.ranks = corpus, source, params, ranks
        self.device = best_device()
        self.dtype = compute_dtype(params, self.device)
        meta = source.meta
        if params.loss == "cosine" and meta.similarity == "dot":
            raise LeafError(
                f"fit.loss: `cosine` leaves the lengths of the student's vectors open, but those of {source.name} are "
                "compared by the dot product: use `l2` or `mse`"
            )

        def tokens_by(tokenizer: Tokenizer) -> Tokens:
            return tokenize(corpus, digest, tokenizer, work / "tokens")

        self.student = build(
            params.student,
            meta.dim,
            meta.normalized,
            params.dropout,
            params.seed,
            similarity=meta.similarity,
            count_tokens=lambda tokenizer: token_counts(tokens_by(tokenizer)),
        )
        self.student.add_further(params.assistants.depths)
        tokens = tokens_by(self.student.tokenizer())
        self.loader = Loader(
            source,
            tokens,
            params.batch_size,
            params.buffer_rows,
            params.seed,
            groups=numbered_column(corpus, "source")[1] if params.one_source_batches else None,
            candidates=_candidates(params, tokens, source, work),
        )
        self._check_terms()
        self.total = total_steps(params, self.loader.batches_per_epoch)
        if beyond := [step for step in params.snapshots if step > self.total]:
            raise LeafError(f"fit.snapshots: step {beyond[0]} is impossible; the run has {self.total} steps")
        if apart := [step for step in params.snapshots if params.replicas > 1 and step % params.average_every]:
            raise LeafError(
                f"fit.snapshots: step {apart[0]} is impossible with fit.replicas, which are one student only every "
                f"{params.average_every} steps (fit.average_every)"
            )
        self.validation = self.loader.validation(params.validation_rows)
        self.student.to(self.device)
        if params.frozen_layers:
            freeze(self.student, params.frozen_layers)
        # Replicas have whole batches: to their steps they are alone.
        self.step = step_for(self.student, params, self.dtype, ranks if params.replicas == 1 else ALONE)
        self.progress = Progress()
        # Losses are added up on the device: reading each would make a GPU wait for the host at every step.
        self.window = torch.zeros((), dtype=torch.float64, device=self.device)
        self.saved = SavedWeights(self.student, params, self.total)
        self._checkpointed = time.monotonic()

    def _check_terms(self) -> None:
        """Refuse terms of the loss that do not fit student and stores."""
        dims, student = self.params.prefixes, self.student
        if wide := [dim for dim in dims if dim >= student.dim]:
            raise LeafError(
                f"fit.prefixes: {wide[0]} is impossible; the student's vectors have {student.dim} dimensions"
            )
        anchor = self.source.anchor if isinstance(self.source, JoinedSource) else None
        if anchor is not None and anchor.meta.dim != student.width:
            raise LeafError(
                f"fit.anchor.store: the vectors of {anchor.name} have {anchor.meta.dim} dimensions, but the student's "
                f"features {student.width}: it must hold vectors by the student's own checkpoint"
            )

    def train(self, state: Path, out: Path) -> None:
        """Run all steps that are still to do, then save the student."""
        with repeatable(self.device):
            self._train(state, out)

    def _train(self, state: Path, out: Path) -> None:
        saved = checkpoint.load(state)
        self.ranks.wait()  # until all have looked: the first one writes there soon
        if saved is None:
            self._start()
            self._note_processes()
            if 0 in self.params.snapshots:
                self._save(_snapshot(out, 0))
            self._checkpoint(state)
        else:
            checkpoint.restore(saved, self.student, self.step.adamw, self.ranks.rank)
            self.progress = Progress.parse(saved.progress)
            self.saved.restore(checkpoint.earlier_weights(saved), self.progress.step, self.device)
            self.window.fill_(self.progress.window_loss)
            self._note_processes()
        self._steps(state, out)
        self._save(out)
        self._save_further(out)

    def _note_processes(self) -> None:
        """Remember from which step on how many processes computed."""
        processes = self.progress.processes
        if not processes or processes[-1][1] != self.ranks.size:
            processes.append((self.progress.step, self.ranks.size))

    def metrics(self) -> dict[str, Any]:
        """What is known of the run so far."""
        progress = self.progress
        return {
            "validation": progress.end,
            "validation_at_start": progress.start,
            "validation_rows": len(self.validation[0]),
            "training_rows": len(self.loader.items),
            "refused_rows": self.loader.refused,
            "loss": self.params.loss,
            "steps": progress.step,
            "presentations": progress.presentations,
            "parameters": _parameters(self.student),
            "samples_per_s": round(progress.presentations / max(progress.training, 1e-9), 1),
            "seconds": round(progress.total, 1),
            "seconds_waiting": round(progress.waiting, 2),
            **({"processes": dict(progress.processes)} if any(size > 1 for _, size in progress.processes) else {}),
        }

    def _start(self) -> None:
        """Set the head in closed form, from features without dropout; measure the student before the first step."""
        if self.ranks.first:
            self._start_heads()
        self.ranks.spread([*self.student.state_dict().values()])
        self.saved.begin(self.student)
        with under_way("fit: held-out texts before the first step", shown=self.ranks.first):
            self.progress.start = self._validate(self.student)
        checkpoint.seed_process(self.params.seed, self.ranks.rank)

    def _start_heads(self) -> None:
        settings, heads = self.params.student, [*self.student.further_heads.values(), self.student.head]
        if settings.head == "rotation" and not self.source.meta.normalized:
            raise LeafError("fit.student.head: `rotation` is for a teacher whose vectors are normalised; use `ridge`")
        for place, linear in enumerate(heads):
            if settings.head == "rotation":
                head.rotation(self._features(place), cast(nn.Linear, linear))
            else:
                head.ridge(self._features(place), cast(nn.Linear, linear), settings.ridge)

    @torch.no_grad()
    def _features(self, place: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches of features for head number `place`, targets, and maybe weights, of `head_rows` training items."""
        self.student.eval()
        weights, count = self._row_weights(), min(self.params.student.head_rows, len(self.loader.items))
        with tqdm(total=count, desc="head", unit="text") as bar:
            for rows, targets in self.loader.samples(count):
                lengths = self.loader.tokens.lengths(self.loader.items.text[rows])
                for batch in token_batches(lengths, traits_of(self.device).encode_tokens):
                    texts = self.loader.pack(rows[batch], self.student.backbone.shortest).to(self.device)
                    features = self.student.all_features(texts, self.dtype)[place]
                    expected = torch.from_numpy(targets[batch]).float()[:, : self.student.dim]
                    yield (features, expected) if weights is None else (features, expected, weights[rows[batch]])
                    bar.update(len(batch))

    def _row_weights(self) -> Tensor | None:
        """`[training items]`: weights in the closed form by `head_queries`; None if all are equal."""
        share = self.params.student.head_queries
        if share is None:
            return None
        names, numbers = numbered_column(self.corpus, "role")
        queries = np.array(names)[numbers[self.loader.items.text]] == "query"
        if queries.all() or not queries.any():
            return None
        weights = np.where(queries, share / queries.mean(), (1 - share) / (1 - queries.mean()))
        return torch.from_numpy(weights)

    def _steps(self, state: Path, out: Path) -> None:
        progress, params = self.progress, self.params
        window = max(1, self.total // CURVE_POINTS)
        batches = prefetch(self.batches(), AHEAD)
        shown = self.ranks.first
        bar = tqdm(total=self.total, initial=progress.step, desc="fit", unit="step", smoothing=0.05, disable=not shown)
        while progress.step < self.total:
            began = time.perf_counter()
            batch, prepared = next(batches)
            ready = time.perf_counter()
            rate, head_only = learning_rate(progress.step, self.total, params), progress.step < params.head_steps
            self.window += self.step.run(prepared, rate, progress.step / self.total, head_only=head_only)
            self._advance(batch)
            if params.replicas > 1 and self._due(1):
                self._average()
            window_ends = self._due(window)
            validates = self._due(params.validate_every)
            checkpoints = self._due(params.checkpoint_every) or (window_ends and self._is_late())
            if window_ends or validates or checkpoints:
                synchronize(self.device)  # so that the clock of the training covers its steps, and nothing else's does
            done = time.perf_counter()
            progress.waiting += ready - began
            progress.training += done - began
            bar.update()
            if window_ends:
                bar.set_postfix_str(self._close_window())
            if validates:
                self._record_validation()
            if progress.step in params.snapshots:
                self._save(_snapshot(out, progress.step))
            progress.total += time.perf_counter() - began
            if checkpoints:
                self._checkpoint(state)
        bar.close()
        batches.close()

    def _due(self, every: int) -> bool:
        """Whether something that is done every so many steps is to be done now, and behind the last step.

        Replicas have one state only where they are averaged: there it is done if a step for it has passed.
        """
        step, apart = self.progress.step, self.params.average_every if self.params.replicas > 1 else 1
        last = step == self.total
        return last or (step % apart == 0 and step // every != (step - apart) // every)

    def _is_late(self) -> bool:
        """Whether the last checkpoint is CHECKPOINT_SECONDS old, by the clock of the first process."""
        late = torch.tensor(float(time.monotonic() - self._checkpointed >= CHECKPOINT_SECONDS), device=self.device)
        self.ranks.spread([late])
        return bool(late)

    def _average(self) -> None:
        """Make weights, moments and the loss of all replicas their mean."""
        states = self.step.adamw.state.values()
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        window = self.window.float()
        self.ranks.sum([window, *weights, *moments], self.ranks.size)
        self.window.copy_(window)

    def batches(self) -> Iterator[tuple[TrainingBatch, Any]]:
        """The batches to come, each with what a step takes."""
        position, params = self.progress.position, self.params
        if params.replicas == 1:
            batches = self.loader.batches(position)
        else:
            batches = self.loader.batches_of(self.ranks.rank, params.replicas, position)
        for batch in batches:
            yield batch, self.step.prepare(batch)

    def _advance(self, batch: TrainingBatch) -> None:
        progress = self.progress
        progress.step += 1
        progress.position = batch.following
        progress.presentations += len(batch.targets) + batch.beside
        progress.window_steps += 1
        self.saved.advance(self.student, progress.step)

    def _close_window(self) -> str:
        """Add the mean loss since the last call to the curve; returns what the progress bar shows."""
        progress = self.progress
        loss = float(self.window) / progress.window_steps
        if not np.isfinite(loss):
            raise LeafError(
                f"the loss is no longer finite at step {progress.step}; lower fit.learning_rate "
                "(the last checkpoint is from before)"
            )
        progress.curve.append((progress.step, "train", round(loss, 6)))
        rate = progress.presentations / max(progress.training, 1e-9)
        self.window.zero_()
        progress.window_steps = 0
        return f"loss {loss:.4f}, {rate:.0f} texts/s"

    def _record_validation(self) -> None:
        self.progress.end = self._validate(self.saved.of(self.student))
        if self.progress.end:
            self.progress.curve.append((self.progress.step, "validation", round(self.progress.end["loss"], 6)))

    @torch.no_grad()
    def _validate(self, student: Student) -> dict[str, float]:
        """Loss and mean cosine of `student` on held-out texts; empty if there are none, and for all but the first."""
        token_ids, targets = self.validation
        if not token_ids or not self.ranks.first:
            return {}
        student.eval()
        lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
        loss = cosine = 0.0
        for rows in token_batches(lengths, traits_of(self.device).encode_tokens):
            expected = torch.from_numpy(targets[rows, : student.dim]).to(self.device)
            texts = pack([token_ids[row] for row in rows], student.backbone.shortest).to(self.device)
            vectors = student(texts, self.dtype)
            loss += float(self.step.objective.loss(vectors, expected).mean()) * len(rows)
            cosine += float(functional.cosine_similarity(vectors, expected).sum())
        release_pages()
        return {"loss": loss / len(token_ids), "cosine": cosine / len(token_ids)}

    def _checkpoint(self, state: Path) -> None:
        self._checkpointed = time.monotonic()
        self.progress.window_loss = float(self.window)
        if not np.isfinite(self.progress.window_loss):
            return  # the end of the window will report it; the checkpoint before is still good
        self.ranks.check_equal([*self.student.state_dict().values()])
        others = self.ranks.gather_by_name(checkpoint.random_states(self.device))
        if self.ranks.first:
            progress = asdict(self.progress)
            captured = checkpoint.capture(self.student, self.step.adamw, progress, self.saved.tensors(), others)
            checkpoint.save(captured, state)

    def _save(self, path: Path) -> None:
        if not self.ranks.first:
            return
        student = self.saved.of(self.student)
        card = write_card(self.source.meta, self.corpus, self.params, self.metrics(), student)
        student.save(path, card, FittedTo.of(self.source.meta))

    def _save_further(self, out: Path) -> None:
        """Save the students of fewer layers, each with what it measures."""
        if not self.ranks.first:
            return
        averaged = self.saved.of(self.student)
        for depth in self.student.depths:
            student = averaged.at_depth(depth)
            measured = {"validation": self._validate(student), "validation_at_start": {}}
            figures = self.metrics() | measured | {"parameters": _parameters(student)}
            card = write_card(self.source.meta, self.corpus, self.params, figures, student)
            student.save(out.with_name(f"{out.name}-depths") / str(depth), card, FittedTo.of(self.source.meta))


def _candidates(params: FitParams, tokens: Tokens, source: VectorSource, work: Path) -> Candidates | None:
    """Those that `params` name, by the first teacher's vectors."""
    if params.candidates is None:
        return None
    teacher = source.teachers[0] if isinstance(source, JoinedSource) else source
    if teacher.meta.similarity == "dot":
        raise LeafError(
            f"fit.candidates: needs vectors that are compared by cosine, and those of {teacher.name} are not"
        )
    return open_candidates(params.candidates, tokens, teacher, work)


def _parameters(student: Student) -> int:
    """How many numbers the student is saved with."""
    return sum(p.numel() for part in (student.backbone, student.head) for p in part.parameters())


def _snapshot(out: Path, step: int) -> Path:
    return out.with_name(f"{out.name}-snapshots") / f"step-{step}"
