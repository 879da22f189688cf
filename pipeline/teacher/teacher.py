"""The two kinds of teacher: a model on this machine, and one behind an API. What both are asked is asked here."""

from collections.abc import Callable

from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.shard import StoreMeta
from pipeline.store.store import Store
from pipeline.teacher import local
from pipeline.teacher.api import identity as probe
from pipeline.teacher.api.api_teacher import ApiTeacher
from pipeline.teacher.local import Teacher

AnyTeacher = Teacher | ApiTeacher


def describe(teacher: TeacherParams, params: EncodeParams, store: Store | None = None) -> StoreMeta:
    """Identity and fingerprint; with `store`, to be compared with that store's fingerprint.

    Raises:
        LeafError: no such model, or other weights than expected; an API that was never asked before does not answer.
    """
    if teacher.api is None:
        return local.describe(teacher, params.dtype)
    return probe.describe(teacher, params, store)


def load(teacher: TeacherParams, params: EncodeParams, meta: StoreMeta) -> AnyTeacher:
    """The teacher, ready to encode; one behind an API is asked its probe, which must be that of `meta`."""
    return Teacher(teacher, params.token_budget) if teacher.api is None else ApiTeacher(teacher, meta)


def once(load: Callable[[], AnyTeacher]) -> Callable[[], AnyTeacher]:
    """`load`, called when its teacher is first wanted, and never again."""
    loaded: list[AnyTeacher] = []

    def get() -> AnyTeacher:
        if not loaded:
            loaded.append(load())
        return loaded[0]

    return get
