"""The processes that fit one student together, and what they tell each other. One alone tells nobody anything.

In step (`fit.replicas` 1), all run the same loader, each computes its share of a batch, and the sum of their gradients
is that of the whole batch. As replicas, each has batches of its own, and every `fit.average_every` steps weights and
moments become the mean of all (post-local SGD, arXiv 1808.07217).
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base import LeafError
from pipeline.fit.losses import Loss
from pipeline.model import best_device

TIMEOUT = timedelta(hours=2)  # that one may be busy alone: the first tokenises the corpus for all
LOST = 75
"""Exit code of a process that has lost another one (EX_TEMPFAIL): starting all again may help."""


class RankLostError(LeafError):
    """Another process of the fit has ended."""


@dataclass
class Ranks:
    """This process among those of the fit."""

    rank: int = 0
    size: int = 1
    _taking_part: dict[bool, list[nn.Parameter]] = field(default_factory=dict, repr=False)
    """Parameters that get a gradient, in steps of the head alone and in others."""

    @property
    def first(self) -> bool:
        """Whether this one locks, writes and validates for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def wait(self) -> None:
        """Until all have come here."""
        if not self.alone:
            with _others():
                dist.barrier()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of each, in order; all have one shape."""
        if self.alone:
            return [tensor]
        device = _device()
        gathered = [torch.empty_like(tensor, device=device) for _ in range(self.size)]
        with _others():
            dist.all_gather(gathered, tensor.to(device))
        return [own.to(tensor.device) for own in gathered]

    def gather_by_name(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all but the first, each under its name and the number of its process (`cpu.1`)."""
        gathered = {name: self.gather(tensor) for name, tensor in tensors.items()} if not self.alone else {}
        return {f"{name}.{rank}": own for name, all_ in gathered.items() for rank, own in enumerate(all_) if rank}

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Give all the first one's tensors, in place."""
        if not self.alone:
            with _others():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    @torch.no_grad()
    def sum(self, tensors: Sequence[Tensor], divisor: float = 1.0) -> None:
        """Make each tensor (float32) the sum over all, divided; in place, and with the same bits for all."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _others():
            dist.all_reduce(flat)
        flat /= divisor
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum_gradients(self, parameters: Sequence[nn.Parameter], others: Sequence[Tensor], *, head_only: bool) -> None:
        """Make the gradients of the parameters, and the `others`, the sum over all.

        A process without a text in a batch has no gradients. Which parameters get one, all learn at their first step,
        and at the first one that is not of the head alone.
        """
        if head_only not in self._taking_part:
            present = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
            self.sum([present])
            self._taking_part[head_only] = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
        taking_part = self._taking_part[head_only]
        for parameter in taking_part:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum([*others, *(p.grad for p in taking_part if p.grad is not None)])

    def check_equal(self, tensors: Sequence[Tensor]) -> None:
        """LeafError unless all have the same bits: machines of two kinds drift apart, and no sum would tell."""
        if self.alone:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        digests = self.gather(torch.tensor(list(digest.digest()), dtype=torch.uint8))
        if different := [rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])]:
            raise LeafError(
                f"the weights of process {different[0]} of {self.size} are not those of the first any more: its "
                "machine computes other bits; fit on machines with the same processors, GPUs and libraries"
            )


ALONE = Ranks()


def check_separable(loss: Loss, name: str, dim: int) -> None:
    """Refuse a loss that compares the texts of a batch with each other: a share of the batch would give another one.

    It is tried on random vectors, so that no loss needs to say so itself.

    Raises:
        LeafError: it is one.
    """
    random = torch.Generator().manual_seed(0)
    vectors, targets = (torch.randn(8, dim, generator=random) for _ in range(2))
    whole, parts = (
        loss(vectors, targets),
        [loss(vectors[row : row + 2], targets[row : row + 2]) for row in (0, 2, 4, 6)],
    )
    if not torch.allclose(whole, torch.cat(parts), rtol=1e-4, atol=1e-5):
        raise LeafError(
            f"fit.loss: `{name}` compares the texts of a batch with each other, so that several processes cannot have "
            "a share of a batch each: set cluster.fit_ranks to 1 (fit.replicas has whole batches)"
        )


def is_one_of_several() -> bool:
    """Whether torchrun, or `launch`, has started this process."""
    return {"WORLD_SIZE", "RANK", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that were started together; alone if it `is_one_of_several` not.

    Raises:
        LeafError: the others cannot be reached.
    """
    if not is_one_of_several():
        yield ALONE
        return
    size, own = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = best_device()
    if device.type != "cpu":
        torch.accelerator.set_device_index(own % torch.accelerator.device_count())
    try:
        # "gloo" also where processes share a GPU, which NCCL refuses.
        dist.init_process_group(_backend(device), timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise LeafError(f"the {size} processes of the fit do not find each other ({str(error)[:200]})") from None
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    own_gpu = device.type == "cuda" and int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    return "nccl" if own_gpu and dist.is_nccl_available() else "gloo"


def _device() -> torch.device:
    """Where tensors must be that are exchanged."""
    return best_device() if dist.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def _others() -> Iterator[None]:
    """A call that waits for the others; RankLostError where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(f"another process of the fit has ended ({str(error).splitlines()[0][:200]})") from None
