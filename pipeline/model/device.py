"""The device that models run on: which one it is, and how work is laid out for it. Nothing else asks for its kind."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.model import cuda

# Matrix products on NVIDIA GPUs give the same bits every time only with this, which is read before the first of them
# (https://docs.nvidia.com/cuda/cublas/#results-reproducibility).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@dataclass(frozen=True)
class DeviceTraits:
    """How work is laid out for a kind of device."""

    packed: bool
    """Whether attention runs over the texts of one length at a time. Else it runs once over all texts of a batch,
    padded to the longest: where every kernel has to be launched, that costs less than a launch for each length."""
    encode_tokens: int
    """Tokens computed at once in inference."""
    fit_tokens: int
    """Tokens of one backward pass. A larger batch is computed in parts whose gradients add up: memory stays bounded."""
    spare_tokens: int
    """Tokens of padding that cost less than a forward pass of their own for texts of another length."""
    tokenize_threads: int
    """Threads that turn texts into token ids. On a CPU one is enough, as the forward passes take the cores."""
    pinned: bool = False
    """Whether copies between the device and page-locked memory run beside other work."""
    graphs: bool = False
    """Whether the kernels of a step can be recorded and launched together."""


_ACCELERATOR = DeviceTraits(
    packed=False, encode_tokens=65_536, fit_tokens=65_536, spare_tokens=8192, tokenize_threads=4
)
TRAITS = {
    "cpu": DeviceTraits(packed=True, encode_tokens=8192, fit_tokens=2048, spare_tokens=256, tokenize_threads=1),
    "cuda": replace(_ACCELERATOR, pinned=True, graphs=True),
}
"""By the type of the device; other accelerators (XPU, MPS) need no more than padding."""


def best_device() -> torch.device:
    """The accelerator that PyTorch sees, of whatever make, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """What the device calls itself; of a CPU, the architecture and the instructions that PyTorch uses of it."""
    if device.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def traits_of(device: torch.device) -> DeviceTraits:
    """What is known of its kind."""
    return TRAITS.get(device.type, _ACCELERATOR)


def bf16_is_fast(device: torch.device | str = "cpu") -> bool:
    """Whether the device computes bfloat16 products in hardware (AVX-512 BF16, AMX, or a GPU that has them)."""
    kind = torch.device(device).type
    if kind in ("cuda", "xpu"):
        return bool(torch.get_device_module(kind).is_bf16_supported(including_emulation=False))
    capability = torch.backends.cpu.get_cpu_capability()
    return kind == "cpu" and capability.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`. Where that is possible, work goes on during the copy."""
    return staged(tensor, device).to(device, non_blocking=traits_of(device).pinned)


def staged(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor where `overwrite` can copy it from without waiting."""
    return cuda.pinned(tensor) if traits_of(device).pinned else tensor


def overwrite(target: Tensor, source: Tensor) -> None:
    """Copy a tensor that was `staged` for the target's device."""
    target.copy_(source, non_blocking=traits_of(target.device).pinned)


def download(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; the function that is returned waits for the copy and gives it."""
    return cuda.download(tensor) if traits_of(tensor.device).pinned else tensor.cpu


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within it, an accelerator gives the same bits for the same work; a CPU always does.

    An operation that has no such implementation on the device raises a RuntimeError that names it.
    """
    if device.type == "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic
    enabled, fills = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # which would only cost time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        settings.fill_uninitialized_memory = fills
