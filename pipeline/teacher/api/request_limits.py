"""How many texts and tokens fit into a request: as the parameters say, or less where the server has shown so.

A server that takes fewer refuses a request without a usable reason. What it took and what it refused tell the limit: it
is learnt once, by all threads of a run.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.params import ApiParams
from pipeline.teacher.api.rate_limit import BYTES_PER_TOKEN


@dataclass(frozen=True)
class Load:
    """Texts and estimated tokens of a request."""

    items: int
    tokens: int

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Load":
        """That of a request with these texts."""
        sizes = [estimated_tokens(text) for text in texts]
        return cls(len(sizes), sum(sizes))


class RequestLimits:
    """The most that a request may hold. Shared by all threads of a run."""

    def __init__(self, api: ApiParams) -> None:
        self.configured = self.most = Load(api.items_per_request, api.tokens_per_request)
        self._largest = Load(0, 0)  # each the most that a request held and was answered
        self._lock = threading.Lock()

    def groups(self, texts: Sequence[str], places: Iterable[int]) -> Iterator[list[int]]:
        """Group the places (positions in `texts`), in order, so that each group fits into one request."""
        group: list[int] = []
        tokens = 0
        for place in places:
            size = estimated_tokens(texts[place])
            if group and (len(group) >= self.most.items or tokens + size > self.most.tokens):
                yield group
                group, tokens = [], 0
            group.append(place)
            tokens += size
        if group:
            yield group

    def learnt(self) -> dict[str, int]:
        """The parameters of `teacher.api` that the server has shown to be too high, and what it takes."""
        limits = (
            ("items_per_request", self.most.items, self.configured.items),
            ("tokens_per_request", self.most.tokens, self.configured.tokens),
        )
        return {name: most for name, most, configured in limits if most < configured}

    def answered(self, load: Load) -> None:
        """Take note that the server took a request."""
        with self._lock:
            self._largest = Load(max(load.items, self._largest.items), max(load.tokens, self._largest.tokens))

    def refused(self, load: Load, half: Load) -> None:
        """Take note that the server refused a request, but took its texts in two halves, of which `half` is the larger.

        It was the number of texts, unless as many were taken before; then their length, unless as much was taken
        before; and if neither, a whim of the server, from which nothing can be learnt.
        """
        with self._lock:
            if load.items > self._largest.items:
                self.most = Load(min(half.items, self.most.items), self.most.tokens)
            elif load.tokens > self._largest.tokens:
                self.most = Load(self.most.items, min(half.tokens, self.most.tokens))


def estimated_tokens(text: str) -> int:
    """Tokens of a text, estimated from above by its bytes."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)
