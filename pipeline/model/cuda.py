"""The lines that only CUDA can execute: page-locked memory, and graphs of kernels. `docs/models.md` lists them.

A graph launches hundreds of small kernels at once (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
It always works on the same memory: what changes between two replays is copied there beforehand.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def pinned(tensor: Tensor) -> Tensor:
    """The tensor in page-locked memory, which is not given to anyone else while a copy from it is under way."""
    return tensor.pin_memory()


def download(tensor: Tensor) -> Callable[[], Tensor]:
    """See `device.download`."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


class Graphs:
    """Makes functions whose kernels are recorded once and then replayed. All share one stream and one pool of memory.

    They may share memory because none returns anything: what lasts is written to tensors made outside.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def recorded(self, run: Callable[[], None]) -> Callable[[], None]:
        """The same function. Its first call runs as it is, the second records it, and all further ones replay that.

        The first call is what the recording needs: libraries set themselves up, and lasting tensors are made.
        """
        graph: torch.cuda.CUDAGraph | None = None
        warm = False

        def call() -> None:
            nonlocal graph, warm
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                if graph is not None:
                    graph.replay()
                elif warm:
                    graph = self._record(run)
                    graph.replay()
                else:
                    run()
                    warm = True
            caller.wait_stream(self._stream)

        return call

    def _record(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile: one prepares the next batches in page-locked memory.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            run()
        return graph
