"""What the machine can do, and how to keep it from wasting time."""

import ctypes
import os
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEEP_BYTES = 1 << 30
OLD_GLIBC_KEEPS = 1 << 25  # the most that versions before 2.35 take
KERNELS = 256
KEEP_BYTES_OF_A_STEP = 40 << 20
"""No buffer of a training step is larger: a vocabulary's table or a part of the store is, and in the heap those would
leave holes for as long as the process runs."""


def keep_pages(most: int = KEEP_BYTES) -> None:
    """Tell glibc's malloc to keep freed buffers of up to `most` bytes, and oneDNN to keep fewer kernels.

    Handing each back to the system costs encoding 1.3 to 1.7 times: page faults are the price of a large buffer that
    is unmapped and mapped again on every batch. Elsewhere than on glibc nothing happens.

    oneDNN, which looks at its limit when the first product is computed, would keep 1,024 kernels, some hundreds of
    megabytes; one for every number and length of texts comes back too rarely for that to save time.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, most):
            mallopt(M_MMAP_THRESHOLD, OLD_GLIBC_KEEPS)
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
        mallopt(M_ARENA_MAX, 1)  # the heaps of further threads are small, and handed back whatever the thresholds


def release_pages() -> None:
    """Hand back to the system what malloc keeps and nobody uses.

    Now and then, not on every batch: between buffers of many sizes lie small things that stay, such as oneDNN's
    kernels, and the holes between those fit ever fewer buffers.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function of the C library, None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
