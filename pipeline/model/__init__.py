"""Running transformer models: backbones, attention, batches, device, files of pretrained models, the student.

A `Backbone` computes a model's features, with gradients and for inference.
"""

from pipeline.model import attention, older_form
from pipeline.model.backbones.backbone import Backbone, CompiledBackbone
from pipeline.model.backbones.packed import PackedBackbone
from pipeline.model.backbones.registry import backbone_for, find_backbone
from pipeline.model.batch import TOKEN_MULTIPLE, Batch, pack, pad, portion, split, token_batches
from pipeline.model.cuda import Graphs
from pipeline.model.depth import freeze, weight_depths
from pipeline.model.device import (
    TRAITS,
    best_device,
    bf16_is_fast,
    device_name,
    overwrite,
    repeatable,
    staged,
    synchronize,
    traits_of,
    upload,
)
from pipeline.model.model_files import (
    base_directory,
    check_inside,
    check_model_sha256,
    check_words,
    checkpoint_digest,
    code_files,
    load_sentence_transformer,
    model_sha256,
    resolve_model,
    weights_sha256,
)
from pipeline.model.model_settings import read_json, settings
from pipeline.model.nearest import keep_best, none_yet
from pipeline.model.parallel import in_threads, vectors_in_parts, worker_count
from pipeline.model.parts import part_of
from pipeline.model.pooling import Pooling, poolings_of
from pipeline.model.student import (
    TOKEN_BUDGET,
    Student,
    StudentEncoder,
    build,
    model_directory,
    untouched,
    write_errors,
)
from pipeline.model.trust import SETTINGS_FILES
from pipeline.model.vocabulary import token_table

__all__ = [
    "SETTINGS_FILES",
    "TOKEN_BUDGET",
    "TOKEN_MULTIPLE",
    "TRAITS",
    "Backbone",
    "Batch",
    "CompiledBackbone",
    "Graphs",
    "PackedBackbone",
    "Pooling",
    "Student",
    "StudentEncoder",
    "attention",
    "backbone_for",
    "base_directory",
    "best_device",
    "bf16_is_fast",
    "build",
    "check_inside",
    "check_model_sha256",
    "check_words",
    "checkpoint_digest",
    "code_files",
    "device_name",
    "find_backbone",
    "freeze",
    "in_threads",
    "keep_best",
    "load_sentence_transformer",
    "model_directory",
    "model_sha256",
    "none_yet",
    "older_form",
    "overwrite",
    "pack",
    "pad",
    "part_of",
    "poolings_of",
    "portion",
    "read_json",
    "repeatable",
    "resolve_model",
    "settings",
    "split",
    "staged",
    "synchronize",
    "token_batches",
    "token_table",
    "traits_of",
    "untouched",
    "upload",
    "vectors_in_parts",
    "weight_depths",
    "weights_sha256",
    "worker_count",
    "write_errors",
]
