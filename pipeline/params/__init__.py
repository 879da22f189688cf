"""The parameters: a frozen dataclass for each section of `params.yaml`, and the parser that fills them.

Every default stands here and nowhere else.
"""

from pipeline.params.parsing import load_section
from pipeline.params.sections import (
    ApiParams,
    AssistantParams,
    CandidatesParams,
    CorpusParams,
    EncodeParams,
    EvaluateParams,
    ExportParams,
    FitParams,
    PassageParams,
    Pooling,
    Role,
    SourceParams,
    StudentParams,
    TeacherParams,
    pooling_modes,
    public_name,
)

__all__ = [
    "ApiParams",
    "AssistantParams",
    "CandidatesParams",
    "CorpusParams",
    "EncodeParams",
    "EvaluateParams",
    "ExportParams",
    "FitParams",
    "PassageParams",
    "Pooling",
    "Role",
    "SourceParams",
    "StudentParams",
    "TeacherParams",
    "load_section",
    "pooling_modes",
    "public_name",
]
