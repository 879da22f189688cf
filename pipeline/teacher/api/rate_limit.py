"""When a request may be sent to an API, and what the requests of a run have cost."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.base.errors import LeafError
from pipeline.params.sections import ApiParams

MINUTE = 60.0
BYTES_PER_TOKEN = 3  # of UTF-8: English has four, Chinese about three


class Stopped(Exception):  # noqa: N818
    """Another thread has ended the run; whatever was not sent yet stays unsent."""


@dataclass
class Sent:
    """A request of the last minute: when it was sent, and its tokens (estimated until it is answered)."""

    at: float
    tokens: int


class RateLimiter:
    """Holds requests back as the limits want, and adds up tokens. For all threads of a run."""

    def __init__(self, api: ApiParams, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self.api, self.stop, self.clock = api, stop, clock
        self.tokens = 0
        self.requests = 0
        self.retries = 0
        self._bytes = 0
        self._underway = 0
        self._held_until = 0.0
        self._recent: deque[Sent] = deque()
        self._lock = threading.Lock()

    def reserve(self, size: int) -> Sent:
        """Wait until `size` bytes of text may be sent.

        Raises:
            LeafError: they would go beyond the spending limit.
            Stopped: the run is over.
        """
        while True:
            with self._lock:
                tokens = self._estimate(size)
                self._check_spending(tokens)
                wait = self.wait(tokens)
                if wait <= 0 and not self.stop.is_set():
                    sent = Sent(self.clock(), tokens)
                    self._recent.append(sent)
                    self._underway += tokens
                    self.requests += 1
                    return sent
            self.sleep(wait)

    def settle(self, sent: Sent, size: int, tokens: int | None) -> int:
        """Replace the estimate by the tokens that the server has counted, and return them.

        None: it counted none. Whether or not the answer was of use: it was charged.
        """
        with self._lock:
            self._underway -= sent.tokens
            if tokens is None:
                tokens = sent.tokens
            else:
                self._bytes += size
            sent.tokens = tokens
            self.tokens += tokens
            return tokens

    def failed(self, sent: Sent) -> None:
        """No answer came that anybody would charge; the limits per minute still count the request."""
        with self._lock:
            self._underway -= sent.tokens

    def hold(self, seconds: float) -> None:
        """Let no request of any thread out for so long: the server has asked for it."""
        with self._lock:
            self._held_until = max(self._held_until, self.clock() + seconds)

    def sleep(self, seconds: float) -> None:
        """Wait; Stopped as soon as the run is over."""
        if self.stop.wait(max(seconds, 0.0)):
            raise Stopped

    def wait(self, tokens: int) -> float:
        """Seconds until a request of so many tokens keeps within the limits of any minute."""
        now = self.clock()
        while self._recent and self._recent[0].at <= now - MINUTE:
            self._recent.popleft()
        ends = [self._held_until]
        limit = self.api.requests_per_minute
        if limit is not None and len(self._recent) >= limit:
            ends.append(self._recent[len(self._recent) - limit].at + MINUTE)
        if self.api.tokens_per_minute is not None:
            over = sum(one.tokens for one in self._recent) + tokens - self.api.tokens_per_minute
            for one in self._recent:
                if over <= 0:
                    break
                over -= one.tokens
                ends.append(one.at + MINUTE)
        return max(ends) - now

    def _estimate(self, size: int) -> int:
        rate = self.tokens / self._bytes if self._bytes and self.tokens else 1 / BYTES_PER_TOKEN
        return max(1, round(size * rate))

    def _check_spending(self, tokens: int) -> None:
        limit = self.api.spending_limit
        if limit is not None and self.tokens + self._underway + tokens > limit:
            raise LeafError(
                f"teacher.api.spending_limit: the next request would go beyond {limit:,} tokens ({self.tokens:,} spent "
                "in this run); every vector that was paid is kept: run again, and only the rest is asked for"
            )
