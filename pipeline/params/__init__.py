"""The parameters: a frozen dataclass for each section of `params.yaml`, and the parser that fills them.

Every default stands here and nowhere else.
"""

from pipeline.params.parsing import load_section
from pipeline.params.sections import (
    ApiParams,
    CorpusParams,
    EncodeParams,
    EvaluateParams,
    ExportParams,
    FilterParams,
    FitParams,
    PassageParams,
    Pooling,
    Role,
    SourceParams,
    StudentParams,
    TeacherParams,
    ViewParams,
    pooling_modes,
    public_name,
)

__all__ = [
    "ApiParams",
    "CorpusParams",
    "EncodeParams",
    "EvaluateParams",
    "ExportParams",
    "FilterParams",
    "FitParams",
    "PassageParams",
    "Pooling",
    "Role",
    "SourceParams",
    "StudentParams",
    "TeacherParams",
    "ViewParams",
    "load_section",
    "pooling_modes",
    "public_name",
]
