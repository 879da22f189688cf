"""The update writes only the touched rows of the vocabulary table, and comes to what PyTorch's own pieces come to."""

import copy

import pytest
import torch
from torch import nn

from pipeline.fit.optimiser import DeviceOptimiser, RowsOptimiser
from pipeline.params.sections import FitParams, StudentParams


class Bag(nn.Module):
    """A vocabulary table, a projection, and a weight that the loss never reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8, padding_idx=0)
        self.projection = nn.Linear(8, 4)
        self.unused = nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.projection(self.table(ids))
        return projected


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.1, 1000.0])
def test_steps_equal_those_of_adamw_and_clip_grad_norm(clip_norm: float | None, on_device: bool) -> None:
    torch.manual_seed(0)
    ours = Bag()
    theirs = copy.deepcopy(ours)
    params = FitParams(StudentParams(""), clip_norm=clip_norm, weight_decay=0.1)
    optimiser = DeviceOptimiser(ours, params) if on_device else RowsOptimiser(ours, ours.table, params)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
    )
    for step in range(20):
        ids, wanted, rate = torch.randint(0, 50, (12,)), torch.randn(12, 4), 1e-2 / (step + 1)
        (ours(ids) - wanted).square().sum().backward()
        optimiser.step(ids, rate)
        for group in plain.param_groups:
            group["lr"] = rate
        plain.zero_grad()
        (theirs(ids) - wanted).square().sum().backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        plain.step()
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6), name
    assert ours.table.weight.grad is not None
    assert not ours.table.weight.grad.any()  # nothing of a batch stays for the next
