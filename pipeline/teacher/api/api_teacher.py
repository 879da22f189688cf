"""TODO."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.base.errors import LeafError
from pipeline.params.sections import TeacherParams
from pipeline.store.shard import StoreMeta
from pipeline.teacher.api import identity as probe
from pipeline.teacher.api.client import Client, Refusal
from pipeline.teacher.api.rate_limit import BYTES_PER_TOKEN


class ApiTeacher:
    """The model behind `teacher.api`, once its probe has shown that it is the one of `meta`."""

    def __init__(self, params: TeacherParams, meta: StoreMeta) -> None:
        """Ask the probe.

        Raises:
            LeafError: the model has changed; the server does not answer; the key is not taken.
        """
        assert params.api is not None
        self.params, self.api, self.meta = params, params.api, meta
        self.client = Client(params)
        probe.confirm(self.client, meta)

    def keep(self, root: Path) -> None:
        """Record the probe beside the pool."""
        probe.keep(self.meta, self.params, root)

    def prompted(self, rows: pl.DataFrame) -> list[str]:
        """What is sent for each row of `role, text`: its role's prompt before it, cut to `max_characters`."""
        prompts = {"query": self.params.prompts.query, "document": self.params.prompts.document}
        texts = [prompts[role] + text for role, text in rows.select("role", "text").iter_rows()]
        return [text[: self.api.max_characters] for text in texts]

    def vectors(self, rows: pl.DataFrame) -> np.ndarray:
        """Vectors [rows, dim] float32 of a few texts, in order; nothing is stored. LeafError where one is refused."""
        texts, found = self.prompted(rows), np.empty((len(rows), self.meta.dim), np.float32)
        try:
            for places in self.cut(texts, range(len(texts))):
                found[places] = self.client.embed([texts[place] for place in places]).vectors
        except Refusal as refusal:
            raise LeafError(f"teacher.api: the server refuses a text of the sample: {refusal}") from None
        return found

    def cut(self, texts: Sequence[str], places: Iterable[int]) -> Iterator[list[int]]:
        """The places, in order, in groups that one request may hold."""
        group: list[int] = []
        tokens = 0
        for place in places:
            size = -(-len(texts[place].encode()) // BYTES_PER_TOKEN)
            if group and (len(group) == self.api.items_per_request or tokens + size > self.api.tokens_per_request):
                yield group
                group, tokens = [], 0
            group.append(place)
            tokens += size
        if group:
            yield group
