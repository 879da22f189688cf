"""The weights that are saved of a run: a mean over its last points, averaged with the weights before the first step."""

import copy

import torch
from torch import Tensor

from pipeline.model import Student, weight_depths
from pipeline.params import FitParams

START, SUM = "start.", "sum."


def start_shares(student: Student, share: float, first: float | None) -> dict[str, float]:
    """The start's share in each weight: `first` in the first layer, and evenly on to `share` in the last and the head.

    That is LiNeS (arXiv 2410.17146). Without `first` it is `share` everywhere.

    Raises:
        LeafError: the family's layers cannot be told apart.
    """
    if first is None:
        return dict.fromkeys(student.state_dict(), share)
    return {name: first + depth * (share - first) for name, depth in weight_depths(student).items()}


class SavedWeights:
    """Keeps what the saved weights need of earlier steps: nothing, unless `params` ask for it."""

    def __init__(self, student: Student, params: FitParams, total: int) -> None:
        """For a run of `total` steps."""
        self._points = {point for n in range(params.average_last) if (point := total - n * params.average_spacing) > 0}
        shared = params.start_share or params.start_share_first
        self._shares = start_shares(student, params.start_share, params.start_share_first) if shared else {}
        self.start: dict[str, Tensor] = {}
        self.sum: dict[str, Tensor] = {}
        self.count = 0

    def begin(self, student: Student) -> None:
        """Called before the first step."""
        if self._shares:
            self.start = _copy(student)

    def advance(self, student: Student, step: int) -> None:
        """Called after each step."""
        if len(self._points) > 1 and step in self._points:
            now = _copy(student)
            self.sum = {name: value + self.sum[name] for name, value in now.items()} if self.count else now
            self.count += 1

    def tensors(self) -> dict[str, Tensor]:
        """All that is kept, for a checkpoint."""
        start = {f"{START}{name}": value for name, value in self.start.items()}
        return start | {f"{SUM}{name}": value for name, value in self.sum.items()}

    def restore(self, tensors: dict[str, Tensor], step: int, device: torch.device) -> None:
        """Back to where `tensors` were taken, after `step` steps."""
        kept = {name: value.to(device) for name, value in tensors.items()}
        self.start = {name.removeprefix(START): value for name, value in kept.items() if name.startswith(START)}
        self.sum = {name.removeprefix(SUM): value for name, value in kept.items() if name.startswith(SUM)}
        self.count = sum(point <= step for point in self._points) if self.sum else 0

    def of(self, student: Student) -> Student:
        """The student as it would be saved now; `student` itself where its weights are all there is to it."""
        if not self.start and not self.count:
            return student
        weights: dict[str, Tensor] = dict(student.state_dict())
        if self.count:
            weights = {name: value / self.count for name, value in self.sum.items()}
        if self.start:
            weights = {name: torch.lerp(weights[name], self.start[name], self._shares[name]) for name in weights}
        averaged = copy.deepcopy(student)
        averaged.load_state_dict(weights)
        return averaged


def _copy(student: Student) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}
