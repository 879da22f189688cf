"""Reading ahead: an iterator run by a thread of its own, a few items in front of whoever consumes it."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
POLL = 0.1  # seconds after which a blocked producer looks whether anybody still wants its items


class _Producer(Generic[T]):
    def __init__(self, items: Iterator[T], depth: int) -> None:
        self.items = items
        self.ready: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(depth)
        self.stopped = threading.Event()

    def put(self, entry: tuple[list[T], BaseException | None]) -> None:
        while not self.stopped.is_set():
            try:
                return self.ready.put(entry, timeout=POLL)
            except queue.Full:
                continue

    def run(self) -> None:
        try:
            for item in self.items:
                self.put(([item], None))
                if self.stopped.is_set():
                    return
            self.put(([], None))
        except BaseException as error:  # whatever it is, it belongs to the consumer
            self.put(([], error))


def prefetch(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items in the same order, at most `depth` of them ready; the producer's exception is raised here."""
    producer = _Producer(items, depth)
    threading.Thread(target=producer.run, daemon=True, name="prefetch").start()
    try:
        while True:
            item, error = producer.ready.get()
            if error is not None:
                raise error
            if not item:
                return
            yield item[0]
    finally:
        producer.stopped.set()
