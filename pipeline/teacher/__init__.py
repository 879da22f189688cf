"""The teacher: one object with an identity that turns rows of text into vectors.

A sentence-transformers model on this machine (`local`), or an embeddings API (`api/`).
"""

from pipeline.teacher.api.api_teacher import ApiTeacher
from pipeline.teacher.api.client import KEPT, Refusal
from pipeline.teacher.api.identity import PROBE_TEXTS
from pipeline.teacher.api.journal import Journal
from pipeline.teacher.api.rate_limit import Stopped
from pipeline.teacher.local import LocalTeacher, TokenisedTexts
from pipeline.teacher.local_identity import trusted_revision
from pipeline.teacher.runners import role_modules
from pipeline.teacher.teacher import Teacher, open_teacher

__all__ = [
    "KEPT",
    "PROBE_TEXTS",
    "ApiTeacher",
    "Journal",
    "LocalTeacher",
    "Refusal",
    "Stopped",
    "Teacher",
    "TokenisedTexts",
    "open_teacher",
    "role_modules",
    "trusted_revision",
]
