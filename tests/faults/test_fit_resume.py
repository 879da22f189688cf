"""A real fit process that is killed, started twice or given damaged input ends as it should."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.families import make_family
from tests.forked import Start

Completed = subprocess.CompletedProcess[str]
Stage = Callable[..., Completed]
WEIGHTS = ("model.safetensors", "2_Dense/model.safetensors")


def arguments(out: str) -> list[str]:
    places = {"corpus": "corpus", "embeddings": "store", "out": f"{out}/student", "work": f"{out}/work"}
    files = {"metrics": f"{out}/fit.json", "curve": f"{out}/curve.csv", "params": "params.yaml"}
    return [part for name, value in {**places, **files}.items() for part in (f"--{name}", value)]


def states(folder: Path) -> list[Path]:
    """Checkpoints of runs below `folder`."""
    return list(folder.glob("work/*/state.safetensors"))


def wait_for_states(folder: Path, number: int) -> None:
    deadline = time.monotonic() + 600
    while len(states(folder)) < number and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture
def encoded(tiny_corpus: Path, write_params: Callable[..., Path], stage: Stage, tmp_path: Path) -> Path:
    """A folder with corpus, store and params.yaml."""
    write_params()
    done = stage("encode", "--corpus", str(tiny_corpus), "--out", "store", "--metrics", "encode.json")
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.parametrize("family", ["bert", "modernbert"])  # packed, padded
def test_a_fit_killed_again_and_again_ends_with_the_weights_of_one_never_killed(
    family: str, encoded: Path, write_params: Callable[..., Path], tiny_student: Path, stage: Stage, start: Start
) -> None:
    model = tiny_student if family == "bert" else make_family(encoded / "checkpoint", family)
    epochs = {"epochs_per_cycle": 4, "checkpoint_every": 4, "validate_every": 40, "buffer_rows": 64}
    given = {"student": {"model": str(model)}, "dropout": 0.1, "snapshots": [0, 5], "start_share": 0.25}
    write_params(fit={**epochs, **given})
    whole = stage("fit", *arguments("whole"))
    assert whole.returncode == 0, whole.stderr

    chance, kills, deaths_after_a_checkpoint = random.Random(4), 0, 0
    for _ in range(3):
        process = start("fit", *arguments("torn"))
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            if states(encoded / "torn"):
                break
            time.sleep(0.02)
        time.sleep(chance.uniform(0.05, 0.6))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        deaths_after_a_checkpoint += bool(states(encoded / "torn"))
    assert kills
    assert deaths_after_a_checkpoint
    torn = stage("fit", *arguments("torn"))
    assert torn.returncode == 0, torn.stderr

    for student in ("student", "student-snapshots/step-0", "student-snapshots/step-5"):
        for name in WEIGHTS:
            expected = load_file(encoded / "whole" / student / name)
            for tensor, value in load_file(encoded / "torn" / student / name).items():
                assert torch.equal(value, expected[tensor]), (student, tensor)
    assert (encoded / "whole/student/README.md").read_text() == (encoded / "torn/student/README.md").read_text()
    assert pl.read_csv(encoded / "whole/curve.csv").equals(pl.read_csv(encoded / "torn/curve.csv"))
    assert not list((encoded / "torn" / "work").glob("*/state*"))


def test_the_start_has_its_share_in_the_saved_weights(
    encoded: Path, write_params: Callable[..., Path], tiny_student: Path, stage: Stage
) -> None:
    folders = ("student-snapshots/step-0", "student-snapshots/step-5", "student")

    def fitted(share: float) -> dict[str, dict[str, torch.Tensor]]:
        student = {"model": str(tiny_student), "head": "rotation"}
        write_params(fit={"student": student, "snapshots": [0, 5], "start_share": share})
        done = stage("fit", *arguments(f"share-{share}"))
        assert done.returncode == 0, done.stderr
        out = encoded / f"share-{share}"
        return {f"{folder}/{file}": load_file(out / folder / file) for folder in folders for file in WEIGHTS}

    alone, shared = fitted(0.0), fitted(0.25)
    rows = alone[f"student-snapshots/step-0/{WEIGHTS[1]}"]["linear.weight"].T
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
    for file in WEIGHTS:
        for folder in folders:
            for name, value in shared[f"{folder}/{file}"].items():
                expected = (
                    0.25 * alone[f"student-snapshots/step-0/{file}"][name] + 0.75 * alone[f"{folder}/{file}"][name]
                )
                torch.testing.assert_close(value, expected, msg=f"{folder} {name}")
    assert not torch.equal(shared[f"student/{WEIGHTS[1]}"]["linear.weight"].T, rows)
    losses = [json.loads((encoded / f"share-{share}/fit.json").read_text())["validation"] for share in (0.0, 0.25)]
    assert losses[0] != losses[1]  # what is measured is what is saved


def test_a_fit_improves_on_its_start_and_says_what_it_measured(encoded: Path, stage: Stage) -> None:
    done = stage("fit", *arguments("out"))
    assert done.returncode == 0, done.stderr
    figures = json.loads((encoded / "out" / "fit.json").read_text())
    assert figures["validation"]["loss"] < figures["validation_at_start"]["loss"]
    train = len(pl.read_parquet(encoded / "corpus/*.parquet").filter(pl.col("split") == "train"))
    assert figures["presentations"] == 2 * train == 2 * figures["training_rows"]
    assert set(pl.read_csv(encoded / "out/curve.csv")["split"]) == {"train", "validation"}
    card = (encoded / "out/student/README.md").read_text()
    assert f"{figures['validation']['cosine']:.4f}" in card
    assert "$" not in card
    assert str(encoded) not in card


def test_a_second_run_at_once_is_refused(
    encoded: Path, write_params: Callable[..., Path], stage: Stage, start: Start
) -> None:
    write_params(fit={"epochs_per_cycle": 2000})
    first = start("fit", *arguments("out"))
    try:
        wait_for_states(encoded / "out", 1)
        second = stage("fit", *arguments("out"))
        assert second.returncode == 1
        assert "another run is under way" in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_figures_that_cannot_be_written_cost_no_training(
    encoded: Path, write_params: Callable[..., Path], stage: Stage, start: Start
) -> None:
    write_params(fit={"epochs_per_cycle": 20, "checkpoint_every": 2})
    process = start("fit", *arguments("out"))
    wait_for_states(encoded / "out", 1)
    (encoded / "out/fit.json").mkdir()  # where it could have been written when the fit began
    assert process.wait() != 0
    assert len(states(encoded / "out")) == 1
    student = (encoded / "out/student/model.safetensors").read_bytes()

    (encoded / "out/fit.json").rmdir()
    again = stage("fit", *arguments("out"))
    assert again.returncode == 0, again.stderr
    assert (encoded / "out/student/model.safetensors").read_bytes() == student
    assert not states(encoded / "out")
    whole = stage("fit", *arguments("whole"))
    assert whole.returncode == 0, whole.stderr
    found, expected = (json.loads((encoded / name / "fit.json").read_text()) for name in ("out", "whole"))
    timed = ("samples_per_s", "seconds", "seconds_waiting")
    assert {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}


def test_a_killed_fit_does_not_continue_on_a_store_whose_vectors_come_in_another_order(
    encoded: Path, write_params: Callable[..., Path], stage: Stage, tiny_corpus: Path, start: Start
) -> None:
    """Continued at the same batch of another order, it would see some texts twice and others never."""
    write_params(fit={"epochs_per_cycle": 100, "checkpoint_every": 2})
    process = start("fit", *arguments("out"))
    wait_for_states(encoded / "out", 1)
    process.kill()
    process.wait()
    assert len(states(encoded / "out")) == 1

    write_params(fit={"epochs_per_cycle": 100, "checkpoint_every": 2}, encode={"shard_rows": 50, "pool": "other-pool"})
    again = stage("encode", "--corpus", str(tiny_corpus), "--out", "store", "--metrics", "encode.json")
    assert again.returncode == 0, again.stderr
    process = start("fit", *arguments("out"))
    wait_for_states(encoded / "out", 2)
    process.kill()
    process.wait()
    assert len(states(encoded / "out")) == 2


def test_a_corpus_changed_by_hand_is_not_fitted(encoded: Path, stage: Stage, tiny_corpus: Path) -> None:
    part = tiny_corpus / "part-00000.parquet"
    rows = pl.read_parquet(part)
    first = pl.col("id") == rows["id"][0]
    rows.with_columns(text=pl.when(first).then(pl.lit("edited")).otherwise("text")).write_parquet(part)
    done = stage("fit", *arguments("out"))
    assert done.returncode == 1
    assert "part-00000.parquet: text `" in done.stderr
    assert "changed by hand; run the stage `corpus` again" in done.stderr


def test_bad_input_is_named_and_costs_nothing(encoded: Path, write_params: Callable[..., Path], stage: Stage) -> None:
    assert stage("fit", *arguments("out")).returncode == 0
    before = (encoded / "out/student/model.safetensors").read_bytes()

    write_params(fit={"snapshots": [10**6]})
    assert "fit.snapshots: step 1000000 is impossible" in stage("fit", *arguments("out")).stderr

    write_params(fit={"learning_rate": 1e30, "clip_norm": None, "dropout": 0.0})
    diverged = stage("fit", *arguments("out"))
    assert diverged.returncode == 1
    assert "lower fit.learning_rate" in diverged.stderr

    write_params(fit={"seed": 1})
    chunk = next(path for path in (encoded / "store/vectors.zarr").rglob("*") if path.is_file() and "c" in path.parts)
    damaged = bytearray(chunk.read_bytes())
    damaged[100] ^= 1
    chunk.unlink()
    chunk.write_bytes(damaged)
    done = stage("fit", *arguments("out"))
    assert done.returncode == 1
    assert "SHA-256 differs" in done.stderr
    assert (encoded / "out/student/model.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_named(
    encoded: Path, write_params: Callable[..., Path], stage: Stage, start: Start
) -> None:
    write_params(fit={"epochs_per_cycle": 2000})
    process = start("fit", *arguments("out"))
    deadline = time.monotonic() + 600
    while not (found := list((encoded / "out/work").glob("*/state.safetensors"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    found[0].write_bytes(found[0].read_bytes()[:500])
    done = stage("fit", *arguments("out"))
    assert done.returncode == 1
    assert "the checkpoint is damaged" in done.stderr
    assert "delete it to start this fit anew" in done.stderr
