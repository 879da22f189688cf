"""What the machine can do, and how to keep it from wasting time."""

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEEP_BYTES = 1 << 30
OLD_GLIBC_KEEPS = 1 << 25  # the most that versions before 2.35 take
KEEP_BYTES_OF_A_STEP = 40 << 20
"""No buffer of a training step is larger: a vocabulary's table or a part of the store is, and in the heap those would
leave holes for as long as the process runs."""


def keep_pages(most: int = KEEP_BYTES) -> None:
    """Tell glibc's malloc to keep freed buffers of up to `most` bytes.

    Handing each back to the system costs encoding 1.3 to 1.7 times: page faults are the price of a large buffer that
    is unmapped and mapped again on every batch. Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, most):
            mallopt(M_MMAP_THRESHOLD, OLD_GLIBC_KEEPS)
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
        mallopt(M_ARENA_MAX, 1)  # the heaps of further threads are small, and handed back whatever the thresholds


def bf16_is_fast(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 products run on units of their own (AVX-512 BF16, AMX, or a GPU that has them)."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capability = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())  # AMX implies it
