"""Vectors of any number of texts: requests are divided until each text has its vector or is known to get none.

A request that the server does not answer is halved, down to the single text that is to blame. An answer that lacks some
vectors is kept, and only those are asked for again. Each answer is handed on before the next request is sent, so
that whoever keeps answers loses none that was paid for.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.base import Array
from pipeline.params import Role
from pipeline.teacher.api.client import Client, Refusal
from pipeline.teacher.api.request_limits import Load


@dataclass(frozen=True)
class Embedded:
    """Texts with their vectors."""

    places: list[int]
    """Positions of the texts."""
    vectors: Array
    """[places, dim] float32."""
    tokens: list[int]
    """Of each text: its share of what the server counted for the request."""


@dataclass(frozen=True)
class Refused:
    """A text to which the server gives no vector."""

    place: int
    reason: str


def embed_all(client: Client, texts: Sequence[str], role: Role) -> Iterator[Embedded | Refused]:
    """Every text's vector or refusal, in any order. All texts have the same role.

    Raises:
        LeafError: the server answers no request any more; the spending limit is reached.
        Stopped: another thread has ended the run.
    """
    yield from _embed(client, texts, role, list(range(len(texts))))


_Outcomes = Generator[Embedded | Refused, None, bool]


def _embed(client: Client, texts: Sequence[str], role: Role, places: list[int]) -> _Outcomes:
    """The outcomes of the texts at these places; returns whether no request was refused."""
    smooth = True
    for group in client.limits.groups(texts, places):
        answered = yield from _ask(client, texts, role, group)
        smooth = smooth and answered
    return smooth


def _ask(client: Client, texts: Sequence[str], role: Role, places: list[int]) -> _Outcomes:
    """The outcomes of the texts of one request; returns whether it was not refused."""
    asked = [texts[place] for place in places]
    try:
        answer = client.embed(asked, role)
    except Refusal as refusal:
        if len(places) == 1:
            yield Refused(places[0], str(refusal))
        else:
            yield from _ask_halves(client, texts, role, places)
        return False
    client.limits.answered(Load.of(asked))
    right = [row for row in range(len(places)) if row not in answer.faults]
    tokens = split_tokens(answer.tokens, asked)
    yield Embedded([places[row] for row in right], answer.vectors[right], [tokens[row] for row in right])
    if answer.faults:
        client.limiter.retries += 1
        yield from _embed(client, texts, role, [places[row] for row in sorted(answer.faults)])
    return True


def _ask_halves(client: Client, texts: Sequence[str], role: Role, places: list[int]) -> Iterator[Embedded | Refused]:
    middle = len(places) // 2
    halves = places[:middle], places[middle:]
    first_smooth = yield from _embed(client, texts, role, halves[0])
    second_smooth = yield from _embed(client, texts, role, halves[1])
    if first_smooth and second_smooth:
        loads = [Load.of(texts[place] for place in half) for half in halves]
        largest = Load(max(load.items for load in loads), max(load.tokens for load in loads))
        client.limits.refused(Load.of(texts[place] for place in places), largest)


def split_tokens(tokens: int, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, as its share of the request's characters; they add up to `tokens`.

    A server counts the tokens of a request, not of its texts.
    """
    ends = np.cumsum([len(text) for text in texts])
    counts: list[int] = np.diff(np.round(ends / max(int(ends[-1]), 1) * tokens).astype(np.int64), prepend=0).tolist()
    return counts
