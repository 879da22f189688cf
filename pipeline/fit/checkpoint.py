"""The state of a fit on disk, from which a killed one continues: one safetensors file, replaced atomically."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.base import LeafError, sync, written_file

NAME = "state.safetensors"
RANK_SEEDS = 1_000_003  # between the seeds of neighbouring processes


@dataclass
class Checkpoint:
    """Weights, optimiser moments and random state as tensors; everything else in `progress`, which must be JSON."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def capture(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: dict[str, Any],
    earlier: dict[str, Tensor],
    others_random: dict[str, Tensor],
) -> Checkpoint:
    """The state of a run between two steps. The tensors are not copies: save before the next step.

    `earlier` are weights of steps before, where they have a share in the saved ones; `others_random` are the random
    states of other processes, by kind and number of the process (`cpu.1`).
    """
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    tensors |= {f"earlier.{name}": value for name, value in earlier.items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
    tensors |= {f"random.{kind}": state for kind, state in random_states(next(model.parameters()).device).items()}
    tensors |= {f"random.{name}": state for name, state in others_random.items()}
    return Checkpoint(tensors, progress)


def restore(checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer, rank: int = 0) -> None:
    """Put model, optimiser and random state back to where `capture` took them.

    Process number `rank` has the random state of that number; where the run had fewer, a new one.
    """
    tensors = checkpoint.tensors
    saved = with_prefix(tensors, "model.")
    with torch.no_grad():
        for name, value in _weights(model).items():
            value.copy_(saved[name])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in with_prefix(tensors, "optimiser.").items():
        number, _, field = name.partition(".")
        state.setdefault(int(number), {})[field] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    device = next(model.parameters()).device
    saved_random = {kind: tensors.get(f"random.{kind}.{rank}" if rank else f"random.{kind}") for kind in _kinds(device)}
    if saved_random["cpu"] is None:
        seed_process(int(checkpoint.progress["step"]), rank)
        return
    torch.set_rng_state(saved_random["cpu"])
    if (state_of_device := saved_random[device.type]) is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state_of_device)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The random state of this process, of the CPU and of the device, by its kind."""
    modules: dict[str, Any] = {
        kind: torch if kind == "cpu" else torch.get_device_module(kind) for kind in _kinds(device)
    }
    return {kind: module.get_rng_state() for kind, module in modules.items()}


def seed_process(seed: int, rank: int) -> None:
    """Begin the random numbers of process number `rank`, each with others."""
    torch.manual_seed(seed + RANK_SEEDS * rank)


def _kinds(device: torch.device) -> list[str]:
    return list(dict.fromkeys(("cpu", device.type)))


def earlier_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of earlier steps that `capture` was given."""
    return with_prefix(checkpoint.tensors, "earlier.")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers, each once: some models have one under two names."""
    names: dict[int, str] = {}
    weights = model.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in weights.items() if names.setdefault(id(value), name) == name}


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, under the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def save(checkpoint: Checkpoint, directory: Path) -> None:
    """Replace the directory's checkpoint; at every moment the old or the new one is there, whole.

    Raises:
        LeafError: the disk is full.
    """
    tensors = {name: value.contiguous() for name, value in checkpoint.tensors.items()}
    try:
        with written_file(directory / NAME) as new:
            save_file(tensors, new, metadata={"progress": json.dumps(checkpoint.progress)})
            sync(new)
        sync(directory)
    except (OSError, SafetensorError) as error:
        raise LeafError(f"{directory}: the checkpoint cannot be written: {error}; the one before is kept") from None


def load(directory: Path) -> Checkpoint | None:
    """The directory's checkpoint, or None if there is none yet; LeafError if it is damaged."""
    path = directory / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return Checkpoint(
                {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                json.loads(file.metadata()["progress"]),
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise LeafError(f"{path}: the checkpoint is damaged ({error}); delete it to start this fit anew") from None
