"""The parameters: a frozen dataclass for each section of `params.yaml`, and the parser that fills them.

Every default stands here and nowhere else.
"""

from pipeline.params.commented import commented, explained, section_classes
from pipeline.params.file import check_file, load_section
from pipeline.params.parsing import parse
from pipeline.params.permits import Permits
from pipeline.params.public import name_in_code, public_name, public_params
from pipeline.params.sections import (
    ApiParams,
    AssistantParams,
    CandidatesParams,
    ClusterParams,
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
)

__all__ = [
    "ApiParams",
    "AssistantParams",
    "CandidatesParams",
    "ClusterParams",
    "CorpusParams",
    "EncodeParams",
    "EvaluateParams",
    "ExportParams",
    "FilterParams",
    "FitParams",
    "PassageParams",
    "Permits",
    "Pooling",
    "Role",
    "SourceParams",
    "StudentParams",
    "TeacherParams",
    "ViewParams",
    "check_file",
    "commented",
    "explained",
    "load_section",
    "name_in_code",
    "parse",
    "pooling_modes",
    "public_name",
    "public_params",
    "section_classes",
]
