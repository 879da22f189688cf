"""Settings of malloc and oneDNN that make batches of changing size fast without filling the memory."""

import ctypes
import os
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # parameters of mallopt(3)
KEEP_BYTES = 1 << 30
OLD_GLIBC_KEEP_BYTES = 1 << 25  # the largest M_MMAP_THRESHOLD that glibc before 2.35 accepts
ONEDNN_KERNELS = 256


def keep_pages(largest_buffer: int = KEEP_BYTES) -> None:
    """Make malloc keep freed buffers of up to `largest_buffer` bytes for reuse, and oneDNN cache fewer kernels.

    Otherwise glibc unmaps each large buffer when it is freed and maps it again for the next batch; the page faults
    make encoding 1.3 to 1.7 times slower. Without glibc, malloc stays as it is.

    oneDNN reads its limit when it computes the first product. By default it caches 1,024 kernels, which is some
    hundreds of megabytes; there is a kernel for each combination of batch size and text length, and these repeat too
    rarely for so many to save time.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_KERNELS))
    mallopt = _libc_function("mallopt")
    if mallopt is not None:
        if not mallopt(M_MMAP_THRESHOLD, largest_buffer):
            mallopt(M_MMAP_THRESHOLD, OLD_GLIBC_KEEP_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
        mallopt(M_ARENA_MAX, 1)  # arenas of other threads are small and are unmapped whatever the thresholds


def release_pages() -> None:
    """Return to the system the memory that malloc keeps although nothing uses it.

    Call it now and then, not on every batch. It is needed because small objects that live long, such as oneDNN's
    kernels, lie between buffers of many sizes, and the gaps between them fit ever fewer new buffers.
    """
    malloc_trim = _libc_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _libc_function(name: str) -> Any:
    """The function `name` of the C library, or None if it has none; always None on systems other than Linux."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
