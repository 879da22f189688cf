"""The teacher model: one interface for a model on this machine and for one behind an API."""

from pathlib import Path
from typing import Protocol

import polars as pl

from pipeline.base import Array
from pipeline.params import EncodeParams, Permits, TeacherParams
from pipeline.store import StoreMeta, VectorSource
from pipeline.teacher.api.api_teacher import ApiTeacher
from pipeline.teacher.local import LocalTeacher

NO_PERMITS = Permits()


class Teacher(Protocol):
    """Anything that maps texts to vectors. Opening it costs nothing; each attribute costs what it says at first use."""

    @property
    def params(self) -> TeacherParams:
        """Section `teacher` of params.yaml."""

    @property
    def meta(self) -> StoreMeta:
        """Identity, fingerprint, dimension, stored type and normalisation; known without loading any weights.

        Raises:
            LeafError: no such model, or not the expected weights; an API whose probe is not recorded does not answer.
        """

    @property
    def earlier_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints that earlier versions of this program gave to the same model and parameters.

        They covered less, so that vectors under one of them belong to this teacher only if a sample of them that is
        encoded again agrees.
        """

    @property
    def directory(self) -> Path | None:
        """Where the model lies on this machine.

        None for an API: no exported model can contain it, and its speed is not that of this machine.
        """

    @property
    def retries_refused(self) -> bool:
        """Whether texts that the teacher refused in an earlier run are asked for again."""

    def vectors(self, rows: pl.DataFrame) -> Array:
        """Vectors `[rows, dim]` float32 of a frame with `role, text`, in its order; nothing is stored.

        The first call loads the model, or confirms that the API's model is still the one of `meta`.

        Raises:
            LeafError: the model cannot be loaded; the API does not answer, has another model, or refuses a text.
        """

    def remember(self, cache_root: Path) -> None:
        """Record in the shard cache's root what later runs need to recognise this teacher (an API's probe)."""


def open_teacher(
    params: TeacherParams, encode: EncodeParams, store: VectorSource | None = None, permits: Permits = NO_PERMITS
) -> Teacher:
    """The teacher that the section `teacher` describes; nothing is read, loaded or asked yet.

    With `store`, its `meta` is made to be compared with that store's: an API is then identified by the probe vectors
    in the store, instead of those in the shard cache.

    Raises:
        LeafError: the parameters of an API need a permit that `permits` does not hold.
    """
    if params.api is None:
        return LocalTeacher(params, encode)
    permits.check(params.api)
    return ApiTeacher(params, encode, store)
