"""The teacher: one object with an identity that turns rows of text into vectors.

A sentence-transformers model on this machine (`local`), or an embeddings API (`api/`).
"""

from pipeline.teacher.api.api_teacher import ApiTeacher
from pipeline.teacher.api.client import Client, Refusal
from pipeline.teacher.api.division import Embedded, Refused, embed_all
from pipeline.teacher.api.journal import Journal
from pipeline.teacher.api.probe import PROBE_ROLE, PROBE_TEXTS
from pipeline.teacher.api.rate_limit import Stopped
from pipeline.teacher.local import LocalTeacher, TokenisedTexts
from pipeline.teacher.local_identity import trusted_revision
from pipeline.teacher.runners import PackedRunner, role_modules
from pipeline.teacher.teacher import Teacher, open_teacher

__all__ = [
    "PROBE_ROLE",
    "PROBE_TEXTS",
    "ApiTeacher",
    "Client",
    "Embedded",
    "Journal",
    "LocalTeacher",
    "PackedRunner",
    "Refusal",
    "Refused",
    "Stopped",
    "Teacher",
    "TokenisedTexts",
    "embed_all",
    "open_teacher",
    "role_modules",
    "trusted_revision",
]
