"""Run an iterator in a background thread, some items ahead of its consumer."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.1  # how often a producer whose queue is full checks whether the consumer has stopped


class _Producer(Generic[T]):
    """Puts items into a bounded queue as pairs: a list of the item, empty at the end, and an exception or None."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self.items = items
        self.queue: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(depth)
        self.stopped = threading.Event()

    def put(self, entry: tuple[list[T], BaseException | None]) -> None:
        while not self.stopped.is_set():
            try:
                return self.queue.put(entry, timeout=POLL_SECONDS)
            except queue.Full:
                continue

    def run(self) -> None:
        try:
            for item in self.items:
                self.put(([item], None))
                if self.stopped.is_set():
                    return
            self.put(([], None))
        except BaseException as error:  # of any kind: it is raised again in the consumer's thread
            self.put(([], error))


def prefetch(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the same items in the same order, at most `depth` of them read ahead; raises what `items` raises."""
    producer = _Producer(items, depth)
    thread = threading.Thread(target=producer.run, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item, error = producer.queue.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
    finally:
        producer.stopped.set()
        thread.join()  # a thread that is still in native code when Python exits aborts the process
