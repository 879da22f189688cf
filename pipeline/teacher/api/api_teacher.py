"""An embedding model behind an OpenAI-compatible API as the teacher."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError
from pipeline.params import EncodeParams, Role, TeacherParams
from pipeline.store import StoreMeta, VectorSource
from pipeline.teacher.api import identity
from pipeline.teacher.api.client import Client
from pipeline.teacher.api.division import Refused, embed_all
from pipeline.teacher.api.request_limits import RequestLimits


class ApiTeacher:
    """The model behind `teacher.api`. Nothing is sent before `meta`, `client` or `vectors` is used."""

    directory = None
    earlier_fingerprints = ()

    def __init__(self, params: TeacherParams, encode: EncodeParams, store: VectorSource | None = None) -> None:
        """With `store`, identify the model by the probe vectors in that store; see `identity.describe`."""
        assert params.api is not None
        self.params, self.api = params, params.api
        self._encode, self._store = encode, store

    @cached_property
    def meta(self) -> StoreMeta:
        """Identity and fingerprint, by recorded probe vectors; the server is asked only if none are recorded."""
        return identity.describe(self.params, self._encode, self._store)

    @cached_property
    def client(self) -> Client:
        """The connection, after the probe has shown that the server's model is still the one of `meta`.

        Raises:
            LeafError: the model has changed; the server does not answer; the key is not accepted.
        """
        client = Client(self.params)
        identity.confirm(client, self.meta)
        return client

    @property
    def retries_refused(self) -> bool:
        """Refused texts are asked for again where a refusal ends the run (`teacher.api.refused: stop`)."""
        return self.api.refused == "stop"

    def remember(self, cache_root: Path) -> None:
        """Record the probe vectors beside the shard cache, unless there are some."""
        identity.record(self.meta, self.params, cache_root)

    def prompted(self, rows: pl.DataFrame) -> list[str]:
        """What is sent for each row of `role, text`: its role's prompt and the text, cut to `max_characters`."""
        prompts = identity.identity(self.params)["prompts"]
        texts = [prompts[role] + text for role, text in rows.select("role", "text").iter_rows()]
        return [text[: self.api.max_characters] for text in texts]

    def vectors(self, rows: pl.DataFrame) -> Array:
        """Vectors [rows, dim] float32 of a few texts, in order; nothing is stored. LeafError where one is refused."""
        texts, vectors = self.prompted(rows), np.empty((len(rows), self.meta.dim), np.float32)
        for role, places in self.requests(rows["role"].to_list(), texts, range(len(texts))):
            for outcome in embed_all(self.client, [texts[place] for place in places], role):
                if isinstance(outcome, Refused):
                    raise LeafError(f"teacher.api: the server refuses a text of the sample: {outcome.reason}")
                vectors[[places[row] for row in outcome.places]] = outcome.vectors
        return vectors

    def requests(
        self, roles: Sequence[Role], texts: Sequence[str], places: Iterable[int]
    ) -> Iterator[tuple[Role, list[int]]]:
        """Group the places (row numbers in `roles` and `texts`) so that each group fits into one request.

        In order; where `teacher.api.extra` adds fields by role, those of one role after those of the other.
        """
        yield from self._requests(self.client.limits, roles, texts, places)

    def request_count(self, rows: pl.DataFrame) -> int:
        """How many requests these rows (`role, text`) take; the server is not asked, which may take smaller ones."""
        limits = RequestLimits(self.api)
        return sum(1 for _ in self._requests(limits, rows["role"].to_list(), self.prompted(rows), range(len(rows))))

    def _requests(
        self, limits: RequestLimits, roles: Sequence[Role], texts: Sequence[str], places: Iterable[int]
    ) -> Iterator[tuple[Role, list[int]]]:
        extra, places = self.api.extra, list(places)
        if extra.query == extra.document:
            parts = [places]
        else:
            parts = [[place for place in places if roles[place] == role] for role in get_args(Role)]
        for part in parts:
            for group in limits.groups(texts, part):
                yield roles[group[0]], group
