"""Rate and spending limits for requests to an API."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.base import LeafError
from pipeline.params import ApiParams

MINUTE = 60.0
BYTES_PER_TOKEN = 3  # UTF-8 bytes, to estimate tokens from above: English has about four, Chinese about three


class Stopped(Exception):  # noqa: N818
    """Another thread has ended the run, so this request is not sent."""


@dataclass
class Sent:
    """A request of the last minute: when it was sent, and its tokens (an estimate until it is answered)."""

    time: float
    tokens: int


class RateLimiter:
    """Makes requests wait until the limits per minute allow them, and counts tokens. Shared by all threads of a run."""

    def __init__(self, api: ApiParams, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self.api, self.stop, self.clock = api, stop, clock
        self.tokens = 0
        self.requests = 0
        self.retries = 0
        self._bytes = 0
        self._under_way = 0
        self._held_until = 0.0
        self._recent: deque[Sent] = deque()
        self._lock = threading.Lock()

    def reserve(self, size: int) -> Sent:
        """Wait until `size` bytes of text may be sent.

        Raises:
            LeafError: they would exceed the spending limit.
            Stopped: the run has ended.
        """
        while True:
            with self._lock:
                tokens = self._estimate(size)
                self._check_spending(tokens)
                wait = self.wait(tokens)
                if wait <= 0 and not self.stop.is_set():
                    sent = Sent(self.clock(), tokens)
                    self._recent.append(sent)
                    self._under_way += tokens
                    self.requests += 1
                    return sent
            self.sleep(wait)

    def settle(self, sent: Sent, size: int, tokens: int | None) -> int:
        """Replace a request's estimate by the `tokens` that the server counted, and return the number that holds.

        None keeps the estimate, for a server that counts no tokens. Invalid answers are settled too: they are charged.
        """
        with self._lock:
            self._under_way -= sent.tokens
            if tokens is None:
                tokens = sent.tokens
            else:
                self._bytes += size
            sent.tokens = tokens
            self.tokens += tokens
            return tokens

    def failed(self, sent: Sent) -> None:
        """Take note that a request got no answer: it is not charged, but still counts against the limits per minute."""
        with self._lock:
            self._under_way -= sent.tokens

    def hold(self, seconds: float) -> None:
        """Send no request of any thread for so many seconds, because the server asks for it."""
        with self._lock:
            self._held_until = max(self._held_until, self.clock() + seconds)

    def sleep(self, seconds: float) -> None:
        """Wait; raise Stopped as soon as the run ends."""
        if self.stop.wait(max(seconds, 0.0)):
            raise Stopped

    def wait(self, tokens: int) -> float:
        """Seconds until a request of so many tokens keeps every 60-second window within the limits."""
        now = self.clock()
        while self._recent and self._recent[0].time <= now - MINUTE:
            self._recent.popleft()
        ends = [self._held_until]
        limit = self.api.requests_per_minute
        if limit is not None and len(self._recent) >= limit:
            ends.append(self._recent[len(self._recent) - limit].time + MINUTE)
        if self.api.tokens_per_minute is not None:
            excess = sum(sent.tokens for sent in self._recent) + tokens - self.api.tokens_per_minute
            for sent in self._recent:
                if excess <= 0:
                    break
                excess -= sent.tokens
                ends.append(sent.time + MINUTE)
        return max(ends) - now

    def _estimate(self, size: int) -> int:
        """Tokens of `size` bytes, at the rate that the server has counted so far."""
        rate = self.tokens / self._bytes if self._bytes and self.tokens else 1 / BYTES_PER_TOKEN
        return max(1, round(size * rate))

    def _check_spending(self, tokens: int) -> None:
        limit = self.api.spending_limit
        if limit is not None and self.tokens + self._under_way + tokens > limit:
            raise LeafError(
                f"teacher.api.spending_limit: the next request would go beyond {limit:,} tokens ({self.tokens:,} spent "
                "in this run); every vector that was paid is kept: run again, and only the rest is asked for"
            )
