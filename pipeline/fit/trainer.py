"""Stage two: fit the student to the stored vectors by regression. The teacher is not loaded."""

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from pipeline.base.errors import LeafError
from pipeline.base.files import locked, sha256
from pipeline.base.memory import keep_pages, release_pages
from pipeline.base.prefetch import prefetch
from pipeline.fit import checkpoint, head
from pipeline.fit.card import write_card
from pipeline.fit.loader import Loader, Position, TrainingBatch
from pipeline.fit.losses import LOSSES
from pipeline.fit.optimiser import Update, learning_rate, total_steps
from pipeline.fit.token_cache import corpus_digest, tokenize
from pipeline.model.batch import pack, split, token_batches
from pipeline.model.device import bf16_is_fast
from pipeline.model.model_files import resolve_model, weights_sha256
from pipeline.model.student import TOKEN_BUDGET, Student, build
from pipeline.params.sections import FitParams
from pipeline.store.store import Store

AHEAD = 32  # batches ready before they are wanted
MOST_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Tokens of one backward pass: a batch of more is taken in parts whose gradients add up, so that memory is bounded."""
KEEP_BYTES = 40 << 20
"""Buffers that malloc keeps: no buffer of a training step is larger. Larger ones, such as the vocabulary's table or a
part of the store, would leave holes in the heap for as long as the process runs."""
CURVE_POINTS = 200  # points of the training curve
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

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "Progress":
        """From the JSON of a checkpoint."""
        curve = [(int(step), str(split), float(loss)) for step, split, loss in raw["curve"]]
        return cls(**{**raw, "position": Position(**raw["position"]), "curve": curve})


@dataclass(frozen=True)
class Result:
    """Measurements of a finished fit: `metrics` for JSON, `curve` rows (step, split, loss)."""

    metrics: dict[str, Any]
    curve: list[tuple[int, str, float]]


@contextmanager
def fit(corpus: Path, embeddings: Path, params: FitParams, out: Path, work: Path) -> Iterator[Result]:
    """Train a student on every training text of `corpus`, write it to `out`, and give what was measured.

    State lives below `work`: a run that was killed continues there, and ends with the weights it would have had. The
    state goes when the caller's block has ended well: if figures cannot be written, the next run trains nothing again.
    Snapshots of a student `out` are written to `out-snapshots/step-N`.

    Raises:
        LeafError: bad input of any kind, a damaged store or checkpoint, or another run under way.
    """
    keep_pages(KEEP_BYTES)
    store = Store.open(embeddings)
    start = resolve_model(params.student.model, params.student.revision)
    digests = {
        "fingerprint": store.meta.fingerprint,
        "corpus": corpus_digest(corpus),
        "store": _order(store),
        "student": weights_sha256(start),
        "student's files": " ".join(map(sha256, sorted(start.glob("*.json")))),  # its tokenizer and configuration
    }
    directory = work / _run_name(params, digests)
    place = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)
    with (
        locked(work / f"{place}.lock", str(out)),
        locked(work / f"{directory.name}.lock", "fit with these parameters"),
    ):
        store.verify()
        run = Run(corpus, store, params, digests["corpus"], work)
        yield run.train(directory, out)
        shutil.rmtree(directory, ignore_errors=True)


def _order(store: Store) -> str:
    """Digest of all that decides which vector comes when: the shards' bits, their order, and the refused texts."""
    shards = [vars(info) for info in store.shards]
    return hashlib.sha256(json.dumps([shards, sorted(store.meta.refused or {})]).encode()).hexdigest()


def _run_name(params: FitParams, digests: dict[str, str]) -> str:
    decides = {name: value for name, value in asdict(params).items() if name not in NOT_OF_THE_RESULT}
    return hashlib.sha256(json.dumps([decides, digests], sort_keys=True).encode()).hexdigest()[:16]


class Run:
    """One fit: the student, its optimiser, its data, and how far it has come."""

    def __init__(self, corpus: Path, store: Store, params: FitParams, digest: str, work: Path) -> None:
        """Builds everything; trains nothing."""
        self.corpus, self.store, self.params = corpus, store, params
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = _precision(params, self.device)
        self.student = build(params.student, store.meta.dim, store.meta.normalized, params.dropout, params.seed)
        tokens = tokenize(corpus, digest, self.student.tokenizer(), work / "tokens")
        self.loader = Loader(store, tokens, params.batch_size, params.buffer_rows, params.seed)
        self.total = total_steps(params, self.loader.batches_per_epoch)
        if beyond := [step for step in params.snapshots if step > self.total]:
            raise LeafError(f"fit.snapshots: step {beyond[0]} is impossible; the run has {self.total} steps")
        self.validation = self.loader.validation(params.validation_rows)
        self.student.to(self.device)
        self.update = Update(self.student, self.student.backbone.token_embeddings, params)
        self.progress = Progress()
        # Losses are added up on the device: reading each would make a GPU wait for the host at every step.
        self.window = torch.zeros((), dtype=torch.float64, device=self.device)
        self.loss = LOSSES[params.loss]
        self.initial_weights: dict[
            str, Tensor
        ] = {}  # the weights before the first step, where they have a share in those saved

    def train(self, directory: Path, out: Path) -> Result:
        """Run all steps that are still to do, then save the student."""
        state = checkpoint.load(directory)
        if state is None:
            self._start()
            if 0 in self.params.snapshots:
                self._save(_snapshot(out, 0))
            self._checkpoint(directory)
        else:
            checkpoint.restore(state, self.student, self.update.adamw)
            self.initial_weights = checkpoint.initial_weights(state)
            self.progress = Progress.parse(state.progress)
            self.window.fill_(self.progress.window_loss)
        self._steps(directory, out)
        self._save(out)
        return Result(self.metrics(), self.progress.curve)

    def metrics(self) -> dict[str, Any]:
        """What is known of the run so far."""
        progress = self.progress
        return {
            "validation": progress.end,
            "validation_at_start": progress.start,
            "validation_rows": len(self.validation[0]),
            "training_rows": len(self.loader.items),
            "refused_rows": self.loader.left_out,
            "loss": self.params.loss,
            "steps": progress.step,
            "presentations": progress.presentations,
            "parameters": sum(p.numel() for p in self.student.parameters()),
            "samples_per_s": round(progress.presentations / max(progress.training, 1e-9), 1),
            "seconds": round(progress.total, 1),
            "seconds_waiting": round(progress.waiting, 2),
        }

    def _start(self) -> None:
        """The head in closed form, on pooled features without dropout."""
        settings = self.params.student
        rows, targets = self.loader.sample(settings.head_rows)
        lengths = self.loader.tokens.lengths(self.loader.items.text[rows])
        self.student.eval()

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for chosen in token_batches(lengths, TOKEN_BUDGET):
                with torch.no_grad():
                    features = self.student.features(self.loader.pack(rows[chosen]).to(self.device), self.precision)
                yield features, torch.from_numpy(targets[chosen])

        if settings.head == "rotation":
            if not self.store.meta.normalized:
                raise LeafError(
                    "fit.student.head: `rotation` is for a teacher whose vectors are normalised; use `ridge`"
                )
            head.rotation(pairs(), self.student.head)
        else:
            head.ridge(pairs(), self.student.head, settings.ridge)
        if self.params.start_share:
            self.initial_weights = {name: value.clone() for name, value in self.student.state_dict().items()}
        self.progress.start = self._validate(self.student)
        torch.manual_seed(self.params.seed)

    def _steps(self, directory: Path, out: Path) -> None:
        progress, params = self.progress, self.params
        window = max(1, self.total // CURVE_POINTS)
        examples = prefetch(self.loader.examples(progress.position), AHEAD)
        bar = tqdm(total=self.total, initial=progress.step, desc="fit", unit="step", smoothing=0.05)
        while progress.step < self.total:
            began = time.perf_counter()
            example = next(examples)
            ready = time.perf_counter()
            self.window += self._step(example)
            done = time.perf_counter()
            progress.waiting += ready - began
            progress.training += done - began
            self._advance(example)
            bar.update()
            if progress.step % window == 0 or progress.step == self.total:
                bar.set_postfix_str(self._close_window())
            if progress.step % params.validate_every == 0 or progress.step == self.total:
                self._record_validation()
            if progress.step in params.snapshots:
                self._save(_snapshot(out, progress.step))
            progress.total += time.perf_counter() - began
            if progress.step % params.checkpoint_every == 0 or progress.step == self.total:
                self._checkpoint(directory)
        bar.close()
        examples.close()

    def _advance(self, example: TrainingBatch) -> None:
        progress = self.progress
        progress.step += 1
        progress.position = example.following
        progress.presentations += len(example.targets)
        progress.window_steps += 1

    def _step(self, example: TrainingBatch) -> Tensor:
        """One update of all weights; the batch's loss before it."""
        self.student.train()
        rate = learning_rate(self.progress.step, self.total, self.params)
        total = torch.zeros((), device=self.device)
        for batch, rows in split(example.batch, MOST_TOKENS[self.device.type]):
            vectors = self.student(batch.to(self.device), self.precision)
            loss = self.loss(vectors, example.targets[rows].to(self.device)) * (len(rows) / len(example.targets))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.update(example.batch.ids, rate)
        return total

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
        self.progress.end = self._validate(self._averaged())
        if self.progress.end:
            self.progress.curve.append((self.progress.step, "validation", round(self.progress.end["loss"], 6)))

    @torch.no_grad()
    def _validate(self, student: Student) -> dict[str, float]:
        """Loss and mean cosine of `student` on held-out texts; empty if there are none."""
        token_ids, targets = self.validation
        if not token_ids:
            return {}
        student.eval()
        lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
        loss = cosine = 0.0
        for rows in token_batches(lengths, TOKEN_BUDGET):
            wanted = torch.from_numpy(targets[rows]).to(self.device)
            vectors = student(pack([token_ids[row] for row in rows]).to(self.device), self.precision)
            loss += float(self.loss(vectors, wanted)) * len(rows)
            cosine += float(functional.cosine_similarity(vectors, wanted).sum())
        release_pages()
        return {"loss": loss / len(token_ids), "cosine": cosine / len(token_ids)}

    def _checkpoint(self, directory: Path) -> None:
        self.progress.window_loss = float(self.window)
        if not np.isfinite(self.progress.window_loss):
            return  # the window's end will say so; the checkpoint before is still good
        state = checkpoint.capture(self.student, self.update.adamw, asdict(self.progress), self.initial_weights)
        checkpoint.save(state, directory)

    def _averaged(self) -> Student:
        """The student as it is measured and saved: as trained so far, with `start_share` averaged with the start."""
        if not self.initial_weights:
            return self.student
        share, found = self.params.start_share, copy.deepcopy(self.student)
        now = self.student.state_dict()
        initial_weights = {
            name: start.to(self.device) for name, start in self.initial_weights.items()
        }  # a checkpoint's are on the CPU
        found.load_state_dict({name: torch.lerp(now[name], start, share) for name, start in initial_weights.items()})
        return found

    def _save(self, path: Path) -> None:
        student = self._averaged()
        student.save(path, write_card(self.store.meta, self.corpus, self.params, self.metrics(), student))


def _snapshot(out: Path, step: int) -> Path:
    return out.with_name(f"{out.name}-snapshots") / f"step-{step}"


def _precision(params: FitParams, device: torch.device) -> torch.dtype:
    if params.precision == "auto":
        return torch.bfloat16 if bf16_is_fast(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[params.precision]
