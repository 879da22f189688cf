"""Files below an `http(s)://` address of any static web server, which need know nothing of stores.

Downloads are resumed where a connection breaks, by a range request; a server without ranges sends the file anew and
what has arrived before is skipped. Redirects are followed on the same host only: a store is trusted by its address.
"""

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from pipeline.base import FileMissingError, LeafError

BLOCK_BYTES = 2**20
ATTEMPTS = 6  # at one place of a file
FIRST_WAIT = 0.1  # seconds before the second attempt; doubled before each further one
TIMEOUTS = (10, 60)  # seconds to connect, and between two arrivals of bytes
MAX_REDIRECTS = 5
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
_MISSING, _DENIED, _NO_HEAD = (404, 410), (401, 403, 407), (405, 501)
_PAST_THE_END = 416


class _UnavailableError(OSError):
    """An answer that says to try again later."""


class HttpDirectory:
    """The files below one address. Every failure is a LeafError that begins with the file's address."""

    def __init__(self, url: str) -> None:
        """LeafError for an address with credentials or a query in it; the message does not repeat them."""
        parts = urlsplit(url)
        if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            raise LeafError(
                "the address of a store must be http(s)://HOST/PATH without credentials or a query; a name and a "
                "password for HOST come from ~/.netrc"
            )
        self.url = url
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` of a file; fewer where the file ends earlier."""
        return b"".join(self._stream(file, start, stop))

    def blocks(self, file: str, size: int, start: int = 0) -> Iterator[bytes]:
        """The first `size` bytes of a file but for `start` of them, as they arrive."""
        return self._stream(file, start, size)

    def size(self, file: str) -> int:
        """Size of a file in bytes."""
        for attempt in range(ATTEMPTS):
            try:
                return self._size(file)
            except _BROKEN as error:
                self._wait(file, attempt, error)
        raise AssertionError("the last wait raises")

    def files(self) -> None:
        """None: a web server lists its files for people, if at all. What is missing is found when it is asked for."""

    def _size(self, file: str) -> int:
        with self._request("HEAD", file) as head:
            answer = self._request("GET", file) if head.status_code in _NO_HEAD else head
        with answer:
            self._check(answer, file)
            length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise LeafError(f"{self.url}/{file}: the server does not say how many bytes it has (Content-Length)")
        return int(length)

    def _stream(self, file: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes `[start, stop)`, fewer where the file ends earlier; a broken connection is resumed where it broke."""
        attempt = 0
        while start < stop:
            try:
                for block in self._answer(file, start, stop):
                    start, attempt = start + len(block), 0
                    yield block
                return
            except _BROKEN as error:
                self._wait(file, attempt, error)
                attempt += 1

    def _answer(self, file: str, start: int, stop: int) -> Iterator[bytes]:
        """What one answer brings of the bytes `[start, stop)`."""
        with self._request("GET", file, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
            if answer.status_code == _PAST_THE_END:
                return
            self._check(answer, file)
            skipped, left = (start if answer.status_code == requests.codes.ok else 0), stop - start
            for block in answer.raw.stream(BLOCK_BYTES, decode_content=False):
                skip = min(skipped, len(block))
                wanted = block[skip : skip + left]
                skipped, left = skipped - skip, left - len(wanted)
                if wanted:
                    yield wanted
                if not left:
                    return

    def _request(self, method: str, file: str, headers: dict[str, str] | None = None) -> Any:
        """The answer, of which only the head has arrived."""
        address = f"{self.url}/{file}"
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._session.request(
                method, address, headers=headers, stream=True, timeout=TIMEOUTS, allow_redirects=False
            )
            if not answer.is_redirect:
                return answer
            answer.close()
            address = self._redirected(address, answer.headers["Location"], file)
        raise LeafError(f"{self.url}/{file}: is redirected more than {MAX_REDIRECTS} times")

    def _redirected(self, address: str, location: str, file: str) -> str:
        """Where a redirect leads; LeafError where that is another host, or no longer encrypted."""
        before, after = urlsplit(address), urlsplit(urljoin(address, location))
        to_https = (before.scheme, after.scheme) == ("http", "https") and before.hostname == after.hostname
        if (before.scheme, before.netloc) != (after.scheme, after.netloc) and not to_https:
            host = f"{after.scheme}://{after.hostname}"
            raise LeafError(
                f"{self.url}/{file}: is redirected to {host}, another host, and that is not followed: if you trust it, "
                "name the store's address there"
            )
        return after.geturl()

    def _check(self, answer: Any, file: str) -> None:
        status, place = answer.status_code, f"{self.url}/{file}"
        if status in _MISSING:
            raise FileMissingError(f"{place}: file is missing")
        if status in _DENIED:
            raise LeafError(f"{place}: access denied (status {status}); a name and a password come from ~/.netrc")
        if status == requests.codes.too_many_requests or status >= requests.codes.server_error:
            raise _UnavailableError(f"status {status}")
        if status not in (requests.codes.ok, requests.codes.partial_content):
            raise LeafError(f"{place}: the server answers with status {status}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise LeafError(f"{place}: the server sends the file compressed, though it was told not to")

    def _wait(self, file: str, attempt: int, error: Exception) -> None:
        """Wait before the next attempt; LeafError after the last."""
        if attempt == ATTEMPTS - 1:
            what = str(error) if isinstance(error, _UnavailableError) else type(error).__name__
            raise LeafError(f"{self.url}/{file}: cannot be reached ({what}), {ATTEMPTS} times; try again later")
        time.sleep(FIRST_WAIT * 2**attempt)
