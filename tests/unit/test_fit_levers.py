"""What a fit may do beside plain regression: each formula on small numbers, and each in a fit that was interrupted."""

import copy
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner

from benchmarks import levers
from pipeline.base.errors import LeafError
from pipeline.base.keys import key_array
from pipeline.corpus.parts import corpus_digest, corpus_keys
from pipeline.fit import checkpoint, trainer
from pipeline.fit import head as heads
from pipeline.fit.candidates import open_candidates
from pipeline.fit.loader import Loader, Position, TrainingBatch
from pipeline.fit.losses import LOSSES, draw_pairs, relative_loss, similarity_loss, soft_distillation
from pipeline.fit.objective import Objective, Outputs
from pipeline.fit.optimiser import learning_rate
from pipeline.fit.step import PackedStep, PaddedStep, Step
from pipeline.fit.teachers import JoinedSource, open_teachers
from pipeline.fit.token_cache import Tokens, tokenize
from pipeline.fit.trainer import FitResult, Trainer, fit
from pipeline.model import device as devices
from pipeline.model.batch import pack, split
from pipeline.model.parts import part_of
from pipeline.model.student import Student, StudentEncoder, build
from pipeline.params.sections import (
    AnchorParams,
    AssistantParams,
    CandidatesParams,
    FitParams,
    RelativeParams,
    SimilarityParams,
    StudentParams,
)
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from stages.soup import main as soup_command
from tests.conftest import corpus_frame, make_model
from tests.torn_fit import INTERRUPTED_AT, torn

DIM = 24
STEPS = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 300 texts in `corpus`, a checkpoint with 2 layers in `checkpoint`."""
    folder = tmp_path_factory.mktemp("levers")
    (folder / "corpus").mkdir()
    corpus_frame(300).write_parquet(folder / "corpus/part-00000.parquet")
    make_model(folder / "checkpoint", width=16, seed=1)
    return folder


def make_store(root: Path, name: str, dim: int = DIM, seed: int = 0) -> Store:
    """A store of vectors that a student can learn, in an order of its own, of a teacher of its own."""
    frame = pl.read_parquet(root / "corpus/*.parquet").sample(fraction=1, shuffle=True, seed=seed)
    rows = frame.select("key", "role", "id", "source", pl.lit(3, pl.Int32).alias("tokens"))
    words = sorted({word for text in frame["text"] for word in text.split()})
    counts = np.array([[text.split().count(word) for word in words] for text in frame["text"]], np.float32)
    vectors = counts @ np.random.default_rng(seed).normal(size=(len(words), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cache = ShardCache(root / f"pool-{name}", StoreMeta(f"{seed:064x}", {"model": name}, dim, "float16", True))
    for start in range(0, len(rows), 128):
        cache.write(rows[start : start + 128], vectors[start : start + 128])
    return cache.publish(root / name, set(frame["key"]))


@pytest.fixture(scope="module")
def store(root: Path) -> Store:
    return make_store(root, "store")


Fitted = Callable[..., FitResult]


@pytest.fixture
def fitted(root: Path, store: Store, tmp_path: Path) -> Fitted:
    """Fits a student and writes it to the directory `name` below `tmp_path`."""

    def run(name: str, student: dict[str, Any] | None = None, **given: Any) -> FitResult:
        settings = {"batch_size": 8, "dropout": 0.0, "max_steps": STEPS, "learning_rate": 2e-3} | given
        params = FitParams(StudentParams(str(root / "checkpoint"), **(student or {})), **settings)
        return fit(root / "corpus", store, params, tmp_path / name, tmp_path / f"work-{name}")

    return run


def weights(place: Path) -> dict[str, torch.Tensor]:
    return dict(Student.load(place).state_dict())


def test_schedules_fall_as_their_papers_draw_them() -> None:
    def rates(**given: Any) -> list[float]:
        params = FitParams(StudentParams("x"), cycles=1, learning_rate=1.0, learning_rate_end=0.0, **given)
        return [learning_rate(step, 11, params) for step in range(11)]

    assert rates(schedule="cosine") == pytest.approx([(1 + np.cos(np.pi * n / 10)) / 2 for n in range(11)])
    falling = rates(schedule="stable", decay_share=0.4)
    assert falling == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert rates(schedule="stable", decay_share=0.0) == [1.0] * 11
    assert rates() == pytest.approx([1 - n / 10 for n in range(11)])


def test_deeper_layers_keep_less_of_the_start(fitted: Fitted, tmp_path: Path) -> None:
    fitted("plain", snapshots=(0,))
    fitted("graded", start_share=0.2, start_share_first=0.8)
    start, end = (weights(tmp_path / name) for name in ("plain-snapshots/step-0", "plain"))
    for name, value in weights(tmp_path / "graded").items():
        share = 0.2 if name.startswith("head.") or ".layer.1." in name or ".pooler." in name else 0.8
        torch.testing.assert_close(value, torch.lerp(end[name], start[name], share), msg=name)


def test_the_last_points_of_a_run_are_averaged(fitted: Fitted, tmp_path: Path) -> None:
    fitted("plain", snapshots=(8, 16))
    fitted("mean", average_last=3, average_spacing=8)
    points = [weights(tmp_path / name) for name in ("plain-snapshots/step-8", "plain-snapshots/step-16", "plain")]
    for name, value in weights(tmp_path / "mean").items():
        torch.testing.assert_close(value, sum(point[name] for point in points) / 3, msg=name)


def test_a_soup_is_the_mean_of_students_of_one_shape(fitted: Fitted, tmp_path: Path) -> None:
    for seed in range(2):
        fitted(f"seed-{seed}", seed=seed)
    fitted("other", {"layers": (1,)})
    places = [str(tmp_path / name) for name in ("seed-0", "seed-1", "other", "soup")]
    done = CliRunner().invoke(soup_command, [*places[:2], "--out", places[3]])
    assert done.exit_code == 0, done.output
    first, second, mean = (weights(tmp_path / name) for name in ("seed-0", "seed-1", "soup"))
    for name, value in mean.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    assert (tmp_path / "soup/fitted_to.json").read_text() == (tmp_path / "seed-0/fitted_to.json").read_text()
    refused = CliRunner().invoke(soup_command, [places[0], places[2], "--out", places[3]])
    assert "other shapes of weights" in refused.output


def test_the_head_trains_first_and_frozen_layers_never(fitted: Fitted, tmp_path: Path) -> None:
    fitted("run", head_steps=8, frozen_layers=1, weight_decay=0.5, snapshots=(0, 8))
    start, middle, end = (weights(tmp_path / name) for name in ("run-snapshots/step-0", "run-snapshots/step-8", "run"))
    moved = [{name for name, value in later.items() if not torch.equal(value, start[name])} for later in (middle, end)]
    assert moved[0] == {"head.weight", "head.bias"}
    assert all(name.startswith("head.") or ".layer.1." in name for name in moved[1])
    assert len(moved[1]) > 10
    with pytest.raises(LeafError, match=r"fit\.frozen_layers: 2 is impossible; the student has 2 layers"):
        fitted("none", frozen_layers=2)


def test_losses_that_compare_texts_are_those_of_the_papers() -> None:
    random = np.random.default_rng(0)
    vectors, targets = (torch.from_numpy(random.normal(size=(4, 6))).float() for _ in range(2))
    s, t = ((rows / rows.norm(dim=1, keepdim=True)).numpy() for rows in (vectors, targets))
    ours, theirs = s @ s.T, t @ t.T
    even = torch.full((4,), 0.25)
    assert similarity_loss(vectors, targets, even).item() == pytest.approx(((ours - theirs) ** 2).mean(), abs=1e-6)

    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    hinges = [
        max(0.0, ours[m, n] - ours[i, j] + 0.015)
        for i, j in pairs
        for m, n in pairs
        if theirs[i, j] > theirs[m, n] + 1e-6
    ]
    one, other = zip(*((p, q) for p in pairs for q in pairs if set(p) != set(q)), strict=True)
    every = torch.tensor([one, other]).permute(0, 2, 1)
    assert relative_loss(vectors, targets, every, 0.015).item() == pytest.approx(np.mean(hinges), abs=1e-6)

    cosines = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.2, float("-inf")], [float("-inf")] * 3, [0.4, 0.4, 0.4]])
    candidates = torch.from_numpy(random.normal(size=(4, 3, 6))).float()
    found = soft_distillation(vectors, candidates, cosines, 0.05)
    for row, count in enumerate((3, 2, 0, 3)):
        p = np.exp(cosines[row, :count].numpy() / 0.05)
        d = candidates[row, :count].numpy()
        q = np.exp((d / np.linalg.norm(d, axis=1, keepdims=True)) @ s[row] / 0.05)
        p, q = p / p.sum(), q / q.sum()
        assert found[row].item() == pytest.approx((p * np.log(p / q)).sum(), abs=1e-4)


def test_drawn_pairs_are_of_two_different_texts_that_count() -> None:
    torch.manual_seed(0)
    pairs = draw_pairs(torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0, 0]), 2000)
    assert pairs.shape == (2, 2, 2000)
    assert set(pairs.flatten().tolist()) == {0, 1, 2, 3, 4}
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_the_objective_adds_its_terms_by_their_weights() -> None:
    torch.manual_seed(0)
    vectors, targets, features = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 5)
    anchored = torch.nn.functional.normalize(torch.randn(3, 5), dim=1)
    settings = FitParams(
        StudentParams("x"),
        loss_weight=10,
        similarity=SimilarityParams(200, fade=0.5),
        prefixes=(2,),
        anchor=AnchorParams("start", weight=0.5),
        assistants=AssistantParams((1,), weight=2.0, distill=3.0),
    )
    objective, even = Objective(settings, 4, torch.device("cpu")), torch.full((3,), 1 / 3)
    objective.set_progress(0.1)
    further = torch.randn(3, 4)
    l2 = LOSSES["l2"]
    expected = 10 * l2(vectors, targets) + 2 * 10 * l2(further, targets) + 0.3 * l2(further, vectors)
    expected += 0.5 * l2(torch.nn.functional.normalize(features, dim=1), anchored)
    given = TrainingBatch(Position(), Position(), pack([[1]] * 3), torch.cat([targets, anchored], 1)).expected
    torch.testing.assert_close(objective.of_texts(Outputs(features, vectors, (further,)), given), expected)
    both = [similarity_loss(vectors[:, :dim], targets, even) for dim in (4, 2)]
    torch.testing.assert_close(objective.of_batch(vectors, given.targets, even), 160 * (both[0] + both[1]) / 2)
    objective.set_progress(0.5)
    assert objective.of_batch(vectors, given.targets, even).item() == 0


COMPARING = {"similarity": SimilarityParams(200), "relative": RelativeParams(20), "prefixes": (4,), "loss": "cosine"}


def a_batch(texts: int = 12) -> TrainingBatch:
    random = np.random.default_rng(1)
    ids = [random.integers(5, 40, length) for length in np.sort(random.integers(1, 20, texts))]
    targets = torch.nn.functional.normalize(torch.from_numpy(random.normal(size=(texts, 8))).float(), dim=1)
    return TrainingBatch(Position(), Position(), pack(ids), targets)


def gradients(
    step: Step, student: Student, batch: TrainingBatch, monkeypatch: pytest.MonkeyPatch, *, head_only: bool = False
) -> list[torch.Tensor]:
    """The loss and the gradients of a step, which changes nothing."""
    kept: list[torch.Tensor] = []

    def keep(*_: Any, **__: Any) -> None:
        kept.extend(p.grad.clone() for p in student.parameters() if p.grad is not None)

    monkeypatch.setattr(step.adamw, "step", keep)
    torch.manual_seed(0)
    loss = step.run(step.prepare(batch), 0.0, 0.1, head_only=head_only)
    return [loss.clone(), *kept]


def assert_equal_but_for_rounding(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    whole, own = (torch.cat([value.flatten() for value in values]) for values in (expected, ours))
    assert (own - whole).norm() < 1e-6 * whole.norm()


@pytest.mark.parametrize("padded", [False, True])
def test_a_comparing_loss_sees_the_whole_batch_where_it_is_computed_in_parts(
    root: Path, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = build(StudentParams(str(root / "checkpoint")), 8, True)
    settings = FitParams(student=StudentParams("x"), batch_size=12, clip_norm=None, **COMPARING)  # type: ignore[arg-type]
    found = []
    for budget in (10_000, 50):
        monkeypatch.setitem(devices.TRAITS, "cpu", replace(devices.TRAITS["cpu"], fit_tokens=budget))
        own = copy.deepcopy(student)
        step: Step
        if padded:
            step = PaddedStep(own, settings, torch.float32, lambda run: run)
        else:
            step = PackedStep(own, settings, torch.float32)
        found.append(gradients(step, own, a_batch(), monkeypatch))
    assert len(split(a_batch().texts, 50)) > 2
    assert len(found[0]) > 20
    assert_equal_but_for_rounding(found[1], found[0])


@pytest.mark.parametrize("head_only", [False, True])
def test_a_padded_step_has_the_gradients_of_a_packed_one_with_every_term(
    root: Path, head_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = build(StudentParams(str(root / "checkpoint")), 8, True)
    student.add_further((1,))
    settings = FitParams(
        StudentParams("x"),
        batch_size=16,  # more than the texts, so that some only fill the shape
        clip_norm=None,
        similarity=SimilarityParams(20),
        prefixes=(4,),
        anchor=AnchorParams("x"),
        candidates=CandidatesParams("x"),
        assistants=AssistantParams((1,), distill=1.0),
    )
    batch, random = a_batch(), torch.Generator().manual_seed(0)
    targets = torch.cat([batch.targets, torch.randn(12, 16, generator=random)], 1)
    cosines = torch.rand(12, 3, generator=random).masked_fill(torch.rand(12, 3, generator=random) < 0.3, float("-inf"))
    batch = replace(batch, targets=targets, candidates=(torch.randn(12, 3, 8, generator=random).half(), cosines))
    packed, padded = copy.deepcopy(student), copy.deepcopy(student)
    steps: list[tuple[Step, Student]] = [
        (PackedStep(packed, settings, torch.float32), packed),
        (PaddedStep(padded, settings, torch.float32, lambda run: run), padded),
    ]
    found = [gradients(step, own, batch, monkeypatch, head_only=head_only) for step, own in steps]
    assert len(found[0]) == (1 + 4 if head_only else len(found[1]))
    for ours, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


def test_both_passes_drop_out_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices.TRAITS, "cpu", replace(devices.TRAITS["cpu"], fit_tokens=50))
    student = build(StudentParams(str(root / "checkpoint")), 8, True, dropout=0.5)
    settings = FitParams(student=StudentParams("x"), clip_norm=None, **COMPARING)  # type: ignore[arg-type]
    batch, by_hand = a_batch(), copy.deepcopy(student).train()
    step = PackedStep(student, settings, torch.float32)
    _, *found = gradients(step, student, batch, monkeypatch)
    state = torch.get_rng_state()

    torch.manual_seed(0)
    parts = split(batch.texts, 50)
    vectors, rows = torch.cat([by_hand(texts) for texts, _ in parts]), torch.cat([rows for _, rows in parts])
    loss = step.objective.of_batch(vectors, batch.targets[rows], torch.full((12,), 1 / 12))
    (loss + step.objective.loss(vectors, batch.targets[rows]).mean()).backward()  # type: ignore[no-untyped-call]
    expected = [p.grad for p in by_hand.parameters() if p.grad is not None]
    assert_equal_but_for_rounding(found, expected)
    assert torch.equal(state, torch.get_rng_state())  # the next step draws other numbers


@pytest.fixture(scope="module")
def stores(root: Path, store: Store) -> tuple[Store, Store, Store]:
    """Of one teacher, of a second one, and of the width of the checkpoint's features."""
    return store, make_store(root, "second", dim=10, seed=1), make_store(root, "start", dim=16, seed=2)


def normalised(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def test_the_target_of_several_teachers_is_their_concatenation(
    root: Path, stores: tuple[Store, Store, Store], tmp_path: Path
) -> None:
    store, second, start = stores
    params = FitParams(StudentParams("x"), further_stores=(second.name,), anchor=AnchorParams(start.name))
    joined = open_teachers(store, params)
    assert isinstance(joined, JoinedSource)
    keys = corpus_keys(root / "corpus")
    joined.align(keys, tmp_path)
    rows = joined.locate(keys)
    vectors = np.concatenate([joined.read(part) for part in range(len(joined.parts))])[rows]
    parts = [normalised(source.lookup(keys)) for source in (store, second)]
    np.testing.assert_allclose(vectors[:, :34], normalised(np.concatenate(parts, 1)), atol=1e-6)
    np.testing.assert_allclose(vectors[:, 34:], normalised(start.lookup(keys)), atol=1e-6)
    assert (joined.meta.dim, joined.meta.normalized) == (34, True)
    np.testing.assert_array_equal(joined.read(1, 3, 9), np.concatenate([joined.read(0), joined.read(1)])[131:137])

    other = pl.concat([pl.read_parquet(root / "corpus/*.parquet"), corpus_frame(320)]).unique("key").sort("key")
    with pytest.raises(LeafError, match="lacks the vectors of"):
        open_teachers(store, params).align(key_array(other["key"]), tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(LeafError, match="two stores are of the same teacher"):
        open_teachers(store, replace(params, further_stores=(store.name,)))


def test_a_student_of_several_teachers_is_cut_back_to_each(
    fitted: Fitted, stores: tuple[Store, Store, Store], tmp_path: Path
) -> None:
    store, second, start = stores
    result = fitted("run", further_stores=(second.name,), anchor=AnchorParams(start.name))
    assert result.metrics["validation"]["loss"] < result.metrics["validation_at_start"]["loss"]
    texts = ["the file of a list", "sort", "copy this path and read"]
    whole = StudentEncoder.load(tmp_path / "run").encode(texts)
    for source, columns in ((store, slice(0, 24)), (second, slice(24, 34))):
        with part_of(tmp_path / "run", source.meta.fingerprint) as place:
            part = StudentEncoder.load(place).encode(texts)
        np.testing.assert_allclose(part, normalised(whole[:, columns]), atol=1e-5)
    with part_of(tmp_path / "run", "0" * 63 + "9") as place:
        assert place == tmp_path / "run"
    with pytest.raises(LeafError, match=r"fit\.anchor\.store: .* have 24 dimensions, but .* features 16"):
        fitted("wide", anchor=AnchorParams(store.name))


def make_tokens(root: Path, work: Path) -> Tokens:
    student = build(StudentParams(str(root / "checkpoint")), 8, True)
    return tokenize(root / "corpus", corpus_digest(root / "corpus"), student.tokenizer(), work)


def write_candidates(root: Path, file: Path, store: Store) -> pl.DataFrame:
    """Some documents for every second query, three or fewer, with the cosines of `store`."""
    texts = pl.read_parquet(root / "corpus/*.parquet").sort("key").filter(split="train")
    queries, documents = (texts.filter(role=role)["key"].to_list() for role in ("query", "document"))
    lists = [documents[number % 40 : number % 40 + 1 + number % 3] for number in range(0, len(queries), 2)]
    of = dict(zip(documents, store.lookup(documents), strict=True))
    own = store.lookup(queries[::2])
    cosines = [[float(of[key] @ query) for key in keys] for keys, query in zip(lists, own, strict=True)]
    frame = pl.DataFrame({"key": queries[::2], "candidates": lists, "cosines": cosines})
    frame.with_columns(pl.col("cosines").cast(pl.List(pl.Float32))).write_parquet(file)
    return frame


def test_each_query_gets_the_vectors_and_cosines_of_its_own_candidates(
    root: Path, store: Store, tmp_path: Path
) -> None:
    frame = write_candidates(root, tmp_path / "candidates.parquet", store)
    tokens, params = make_tokens(root, tmp_path), CandidatesParams(str(tmp_path / "candidates.parquet"), count=2)
    found = open_candidates(params, tokens, store, tmp_path)
    vectors, cosines = found.of(np.arange(len(tokens)))
    assert vectors.shape == (len(tokens), 2, DIM)
    lists = {key: (keys, values) for key, keys, values in frame.iter_rows()}
    for text, key in enumerate(tokens.keys.tolist()):
        keys, values = lists.get(key, ([], []))
        there = cosines[text].isfinite()
        assert int(there.sum()) == min(2, len(keys))
        np.testing.assert_allclose(cosines[text][there].numpy(), values[:2], atol=1e-6)
        if keys:
            np.testing.assert_array_equal(vectors[text][there].float().numpy(), store.lookup(keys[:2]))


def test_a_file_of_candidates_that_does_not_fit_is_refused(root: Path, store: Store, tmp_path: Path) -> None:
    tokens, file = make_tokens(root, tmp_path), tmp_path / "bad.parquet"
    frame = write_candidates(root, file, store)

    def refused(changed: pl.DataFrame, word: str) -> None:
        changed.write_parquet(file)
        with pytest.raises(LeafError, match=word):
            open_candidates(CandidatesParams(str(file)), tokens, store, tmp_path)

    refused(frame.drop("cosines"), "has no column `cosines`")
    refused(frame.with_columns(key=pl.lit(b"0" * 16)), "holds texts that the corpus does not")
    refused(frame.with_columns(candidates=pl.lit([b"0" * 16])), "cosines than of candidates")
    one = pl.DataFrame({"key": frame["key"][:1], "candidates": [[b"0" * 16]], "cosines": [[0.5]]})
    refused(one, "1 candidates have no vector in")
    refused(frame.head(1).with_columns(pl.col("cosines").list.eval(pl.lit(float("nan")))), "is not finite")
    file.write_text("no Parquet")
    with pytest.raises(LeafError, match="run the filter stage again"):
        open_candidates(CandidatesParams(str(file)), tokens, store, tmp_path)


def test_assistants_are_the_first_layers_with_heads_of_their_own(fitted: Fitted, root: Path, tmp_path: Path) -> None:
    student = build(StudentParams(str(root / "checkpoint")), 8, True)
    student.add_further((1,))
    batch = a_batch().texts
    *further, whole = student.eval().all_features(batch)
    assert torch.equal(whole, student.features(batch))
    torch.testing.assert_close(student.at_depth(1).eval()(batch), student.finish_further(further)[0])
    with pytest.raises(LeafError, match=r"fit\.assistants\.depths: 2 is impossible"):
        student.add_further((2,))

    fitted("run", assistants=AssistantParams((1,), distill=1.0))
    plain = Student.load(tmp_path / "run")
    assert plain.backbone.layers == 2
    shallow = Student.load(tmp_path / "run-depths/1")
    assert (shallow.backbone.layers, shallow.dim) == (1, DIM)
    word = "backbone.model.embeddings.word_embeddings.weight"
    assert torch.equal(shallow.state_dict()[word], plain.state_dict()[word])
    assert (tmp_path / "run-depths/1/README.md").is_file()


def test_a_full_disk_is_named_before_a_copy_is_written(
    stores: tuple[Store, Store, Store], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    store, second, _ = stores
    joined = JoinedSource([store, second], None)
    with pytest.raises(LeafError, match=r"no space left for a copy of .*second"):
        joined.align(corpus_keys(root / "corpus"), tmp_path)
    assert not list(tmp_path.rglob("*.bin"))


def test_batches_come_from_one_source_each(root: Path, store: Store, tmp_path: Path) -> None:
    tokens = make_tokens(root, tmp_path)
    groups = np.arange(len(tokens), dtype=np.int32) % 3
    loader = Loader(store, tokens, 8, 100, 0, groups=groups)
    batches = [batch for buffer in loader.plan(0) for batch in buffer]
    assert len(batches) == loader.batches_per_epoch
    assert sorted(np.concatenate(batches)) == list(range(len(loader.items)))
    assert all(len(set(groups[loader.items.text[batch]])) == 1 for batch in batches)
    assert sum(len(batch) < 8 for batch in batches) <= 3
    whole, later = loader.batches(Position()), loader.batches(Position(0, 5))
    for _ in range(5):
        next(whole)
    assert torch.equal(next(whole).targets, next(later).targets)


@pytest.mark.parametrize("queries", [None, 0.9])
def test_the_heads_start_is_that_of_all_rows_however_small_the_buffer(
    root: Path, store: Store, tmp_path: Path, queries: float | None
) -> None:
    student = StudentParams(str(root / "checkpoint"), head_rows=10**6, head_queries=queries)
    params = FitParams(student, buffer_rows=64, precision="float32")
    trainer = Trainer(root / "corpus", store, params, corpus_digest(root / "corpus"), tmp_path)
    trainer._start()
    texts = pl.read_parquet(root / "corpus/*.parquet").filter(split="train")
    ids = [ids.ids for ids in trainer.student.tokenizer().encode_batch(texts["text"].to_list())]
    x = trainer.student.eval().features(pack(ids)).detach()
    y, weights = torch.from_numpy(store.lookup(texts["key"].to_list())), None
    if queries:
        query = torch.tensor((texts["role"] == "query").to_list())
        weights = torch.where(query, queries / query.sum(), (1 - queries) / (~query).sum()) * len(query)
    expected = torch.nn.Linear(16, DIM)
    heads.ridge([(x, y) if weights is None else (x, y, weights)], expected, 1e-2)
    torch.testing.assert_close(trainer.student.head.weight, expected.weight, atol=1e-4, rtol=1e-3)
    if weights is not None:  # a whole weight is as good as so many copies
        x, y, counts = x[:40], y[:40], torch.arange(40) % 3 + 1
        heads.ridge([(x, y, counts)], expected, 1e-2)
        copies = torch.nn.Linear(16, DIM)
        heads.ridge([(x.repeat_interleave(counts, 0), y.repeat_interleave(counts, 0))], copies, 1e-2)
        torch.testing.assert_close(copies.weight, expected.weight)


def test_the_benchmark_of_levers_measures_each_once(
    tiny_store: Any, write_params: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params()
    (tmp_path / "data").mkdir()
    for place, new in (("store", "embeddings"), ("corpus", "corpus")):
        (tmp_path / place).rename(tmp_path / "data" / new)
    (tmp_path / "levers.yaml").write_text(
        "base:\ncosine: {schedule: cosine, student: {head_rows: 50}}\nabsent: {anchor: {store: data/none}}\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ["--project", str(tmp_path), "--levers", str(tmp_path / "levers.yaml")]
    first = CliRunner().invoke(levers.main, [*given, "--presentations", "40"])
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert any(line.startswith("SKIPPED absent: ") for line in lines)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    assert set(rows) == {"configuration", "base", "cosine"}
    assert rows["base"][3:5] == ["+0.0000", "+0.0000"]

    monkeypatch.setattr(levers, "fit", None)
    again = CliRunner().invoke(levers.main, [*given, "--presentations", "40", "--only", "cosine"])
    assert [line for line in again.stdout.splitlines() if line.startswith("| ")] == [
        line for line in lines if line.startswith("| ")
    ]


LEVERS: dict[str, dict[str, Any]] = {
    "weights": {
        "start_share": 0.1,
        "start_share_first": 0.5,
        "average_last": 3,
        "average_spacing": 6,
        "head_steps": 9,
        "schedule": "stable",
    },
    "frozen": {"frozen_layers": 1, "schedule": "cosine", "head_steps": 20},
    "comparing": {**COMPARING, "one_source_batches": True},
    "assistants": {"assistants": AssistantParams((1,), distill=0.5), "start_share": 0.1, "average_last": 2},
}


@pytest.mark.parametrize("lever", [*LEVERS, "teachers", "candidates"])
def test_a_fit_interrupted_with_any_lever_ends_with_the_same_weights(
    lever: str,
    fitted: Fitted,
    root: Path,
    stores: tuple[Store, Store, Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, second, start = stores
    write_candidates(root, tmp_path / "candidates.parquet", store)
    all_levers = LEVERS | {
        "teachers": {"further_stores": (second.name,), "anchor": AnchorParams(start.name)},
        "candidates": {"candidates": CandidatesParams(str(tmp_path / "candidates.parquet"))},
    }
    given = {"dropout": 0.1, "max_steps": 40, "checkpoint_every": 4, "snapshots": (5,), **all_levers[lever]}
    whole = fitted("whole", **given)
    assert whole.curve == torn(lambda name: fitted(name, **given), monkeypatch).curve
    files = sorted(tmp_path.glob("whole*/**/*.safetensors"))
    assert len(files) >= 4
    for file in files:
        continued = tmp_path / str(file.relative_to(tmp_path)).replace("whole", "torn")
        assert continued.read_bytes() == file.read_bytes(), file


def test_a_fit_shorter_than_its_checkpoints_are_apart_is_continued_from_one_by_the_clock(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"dropout": 0.1, "max_steps": 40, "checkpoint_every": 1000}
    whole, restore = fitted("whole", **given), checkpoint.restore
    restored: list[int] = []

    def restoring(saved: checkpoint.Checkpoint, *arguments: Any) -> None:
        restored.append(saved.progress["step"])
        restore(saved, *arguments)

    monkeypatch.setattr(checkpoint, "restore", restoring)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    assert torn(lambda name: fitted(name, **given), monkeypatch).curve == whole.curve
    assert restored == [INTERRUPTED_AT]
    for file in tmp_path.glob("whole/**/*.safetensors"):
        continued = tmp_path / str(file.relative_to(tmp_path)).replace("whole", "torn")
        assert continued.read_bytes() == file.read_bytes(), file


def test_the_gradient_of_pairs_has_the_same_bits_on_any_number_of_threads() -> None:
    """Else a fit that is continued would not end as one that was never killed."""
    random = torch.Generator().manual_seed(0)
    vectors, targets = (torch.randn(8, 64, generator=random) for _ in range(2))
    pairs = torch.randint(8, (2, 2, 4096), generator=random)

    def gradient() -> torch.Tensor:
        leaf = vectors.clone().requires_grad_()
        return torch.autograd.grad(relative_loss(leaf, targets, pairs, 0.1), leaf)[0]

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients = [gradient() for _ in range(10)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradients[0], other) for other in gradients)
