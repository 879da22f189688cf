"""A fit beside the same fit that was interrupted and continued: every family and shape of student is put through it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.fit.trainer import FitResult, Trainer

INTERRUPTED_AT = 17  # steps; not one after which a checkpoint is written


def fitted_whole_and_torn(fitted: Callable[[str], FitResult], monkeypatch: pytest.MonkeyPatch) -> FitResult:
    """Call `fitted` for the runs `whole` and `torn`, the second interrupted and continued, and return the first.

    The loss must fall, and both must have the same curve; what they wrote is left to the caller to compare.
    """
    whole = fitted("whole")
    losses = [loss for _, split, loss in whole.curve if split == "train"]
    assert np.mean(losses[-16:]) < np.mean(losses[:16])
    assert torn(fitted, monkeypatch).curve == whole.curve
    return whole


def torn(fitted: Callable[[str], FitResult], monkeypatch: pytest.MonkeyPatch) -> FitResult:
    """Call `fitted` for the run `torn`, which is interrupted, and again, which continues it."""
    advance = Trainer._advance

    def interrupted(trainer: Trainer, batch: Any) -> None:
        if trainer.progress.step == INTERRUPTED_AT:
            raise KeyboardInterrupt
        advance(trainer, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_advance", interrupted)
        fitted("torn")
    return fitted("torn")
