"""Identity and fingerprint of a sentence-transformers model, read from its files without loading the model."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.base import LeafError, file_sha256
from pipeline.model import (
    base_directory,
    check_model_sha256,
    code_files,
    load_sentence_transformer,
    resolve_model,
    settings,
    weights_sha256,
)
from pipeline.params import TeacherParams
from pipeline.store import MAX_DIM, FittedTo, StoreMeta
from pipeline.teacher.layout import (
    DEFAULT_MAX_LENGTH,
    LIMIT_FILES,
    ROLES,
    Layout,
    ModuleFiles,
    own_limit,
    position_table,
    read_layout,
    vector_width,
)

FINGERPRINT_VERSION = 2
"""Of what a fingerprint covers; stands in a store's `teacher` as `fingerprint_version`, which version 1 lacks."""
TOKENIZER_FILES = ("vocab.*", "merges.txt", "bpe.codes", "*.model", "*.spm", "*token*.json")
"""Files that a tokenizer is built from where there is no `tokenizer.json`."""
TRANSFORMER_FILES = (
    "config.json",
    *LIMIT_FILES,
    "processor_config.json",
    "preprocessor_config.json",
    "adapter_config.json",
)
TRANSFORMER_TEMPLATES = ("*.jinja", "chat_template.json")
SETTINGS_OF_THE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")
NOT_OF_THE_VECTORS = frozenset(
    "name_or_path tokenizer_file special_tokens_map_file transformers_version model_max_length "
    "clean_up_tokenization_spaces chat_template processor_class _commit_hash".split()
)
"""Settings of a tokenizer that change no id: names of places, what decoding does, and what is counted elsewhere."""
MODULE_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model")
"""Files of a module in a directory of its own."""
FILES_OF = {
    "Router": ("router_config.json", "config.json"),
    "StaticEmbedding": ("*.safetensors", "pytorch_model.bin", "tokenizer.json"),
}
"""Files of modules that may lie in the model's own directory, beside files that decide nothing."""


def describe(params: TeacherParams, dtype: str) -> StoreMeta:
    """Identity and fingerprint of a local teacher, from its files alone: no weights are loaded.

    The fingerprint covers weights, tokenizer and its settings, every module's configuration and weights, the prompts
    in use, maximum length, normalisation and dimension. It does not cover the model's name or path, so copies under two
    names share vectors.

    Raises:
        LeafError: there is no such model, its weights are not the expected ones, a configuration file is malformed,
            `teacher.max_length` is more than the model has positions for, or `teacher.dim` more than it has dimensions.
    """
    layout = read_layout(resolve_model(params.model, params.revision))
    files = dict(_digests(layout, params.trust_remote_code))
    check_model_sha256(layout.directory, params.sha256, "teacher.sha256")
    fingerprinted = {
        "fingerprint_version": FINGERPRINT_VERSION,
        "files": files,
        "modules": {role: [module.kind for module in layout.routes[role]] for role in ROLES},
        "prompts": effective_prompts(params, layout),
        "max_length": _joint(max_lengths(params, layout)),
        "normalize": normalizes(params, layout),
        "dim": dimension(params, layout),
    }
    identity = {
        "model": layout.directory.name if Path(params.model).is_dir() else params.model,
        "revision": params.revision,
        **fingerprinted,
        "prompts_from": {role: "model" if getattr(params.prompts, role) is None else "parameters" for role in ROLES},
        "similarity": layout.similarity,
    }
    if params.license:
        identity["license"] = params.license
    if params.dim is None and (fitted := FittedTo.read(layout.directory)):
        identity["fitted_to"] = fitted.space or fitted.fingerprint  # an assistant: a student that is a teacher
    dim = dimension(params, layout)
    return StoreMeta(_digest(fingerprinted), identity, dim=dim, dtype=dtype, normalized=normalizes(params, layout))


def _joint(limits: Mapping[str, int | None]) -> int | dict[str, int | None] | None:
    """The limit of both roles, or that of each if they differ."""
    return dict(limits) if len(set(limits.values())) > 1 else limits["document"]


def normalizes(params: TeacherParams, layout: Layout) -> bool:
    """Whether stored vectors have length 1: by `teacher.normalize`, or because the model ends in a normalisation."""
    return params.normalize or all(layout.routes[role][-1].kind == "Normalize" for role in ROLES)


def _digest(fingerprinted: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprinted, sort_keys=True).encode()).hexdigest()


def _digests(layout: Layout, with_code: bool) -> Iterator[tuple[str, str]]:
    """SHA-256 of all that decides the vectors, by the path of the file in the model's directory."""
    routers = [module for module in layout.listed if module not in layout.modules]
    for module in [*layout.modules, *routers]:
        for name, digest in _module_digests(module):
            yield _name_in(layout, module.path, name), digest
    if with_code:
        for file in code_files(layout.directory):
            yield file.relative_to(layout.directory).as_posix(), file_sha256(file)


def _name_in(layout: Layout, directory: Path, name: str) -> str:
    """What a file of a module is called among the digests."""
    return f"{directory.relative_to(layout.directory).as_posix()}/{name}".removeprefix("./")


def _module_digests(module: ModuleFiles) -> Iterator[tuple[str, str]]:
    """Names and digests of a module's files; of a tokenizer's settings, only those that can change an id."""
    if module.kind != "Transformer":
        patterns = FILES_OF.get(module.kind, MODULE_FILES)
        for file in sorted({file for pattern in patterns for file in module.path.glob(pattern)}):
            yield file.name, file_sha256(file)
        return
    base = base_directory(module.path)
    for directory in {module.path: "", base: "" if base == module.path else "base/"}.items():
        yield from _transformer_digests(*directory)


def _transformer_digests(directory: Path, prefix: str) -> Iterator[tuple[str, str]]:
    yield f"{prefix}weights", weights_sha256(directory)
    files = [directory / name for name in TRANSFORMER_FILES]
    files += [file for pattern in TRANSFORMER_TEMPLATES for file in sorted(directory.glob(pattern))]
    named = {directory / name for name in SETTINGS_OF_THE_TOKENIZER}
    ignored = NOT_OF_THE_VECTORS - ({"chat_template"} if _reads_messages(directory) else set())
    for file in [*files, *(file for file in _tokenizer_files(directory) if file not in named)]:
        if file.exists():
            yield f"{prefix}{file.name}", file_sha256(file)
    for file in sorted(named):
        if file.exists():
            deciding = {key: value for key, value in settings(file).items() if key not in ignored}
            yield f"{prefix}{file.name}", _digest(deciding)


def _reads_messages(directory: Path) -> bool:
    """Whether texts pass through the tokenizer's chat template, as some models of sentence-transformers 6 have it."""
    file = directory / LIMIT_FILES[0]
    return file.exists() and "message" in (settings(file).get("modality_config") or ())


def _tokenizer_files(directory: Path) -> list[Path]:
    """`tokenizer.json`, which defines the tokenizer completely; without it, every file the tokenizer is built from."""
    complete = directory / "tokenizer.json"
    if complete.exists():
        return [complete]
    return sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)})


def effective_prompts(params: TeacherParams, layout: Layout) -> dict[str, str]:
    """What is put before a text, by its role: the parameter's, else the model's own as `encode_query` and so on do."""
    # The library passes by `default_prompt_name` and the name `passage` in these two, as both roles have a prompt ("").
    return {role: _given(getattr(params.prompts, role), layout.prompts.get(role, "")) for role in ROLES}


def _given(text: str | None, otherwise: str) -> str:
    return otherwise if text is None else text


def dimension(params: TeacherParams, layout: Layout) -> int:
    """Dimension of the stored vectors: `teacher.dim`, else that which the model was saved with, else all.

    Raises:
        LeafError: `teacher.dim` is more than the model has, or that is more than a store holds.
    """
    full = full_width(params, layout)
    if not 1 <= full <= MAX_DIM:
        raise LeafError(f"model {layout.directory}: its files name vectors of {full} dimensions; get the model again")
    if params.dim is not None and params.dim > full:
        raise LeafError(
            f"teacher.dim: {params.dim} is impossible; the vectors of `{params.model}` have {full} dimensions"
        )
    return min(params.dim or layout.truncate_dim or full, full)


def full_width(params: TeacherParams, layout: Layout) -> int:
    """Dimension of the vectors before any are cut off; LeafError where two routes differ or none can be told."""
    widths = {role: vector_width(layout.routes[role]) for role in ROLES}
    if widths["query"] != widths["document"]:
        raise LeafError(
            f"model {layout.directory}: its queries have {widths['query']} dimensions and its documents "
            f"{widths['document']}; a teacher needs one space for both"
        )
    if (width := widths["document"]) is not None:
        return width
    # Modules whose files name no width: the loaded model is asked.
    model = load_sentence_transformer(layout.directory, params.model, trusted_revision(params))
    return int(model.get_embedding_dimension())


def trusted_revision(params: TeacherParams) -> str | None:
    """The commit whose code may run; None lets none run."""
    return params.revision if params.trust_remote_code else None


def max_lengths(params: TeacherParams, layout: Layout) -> dict[str, int | None]:
    """Role -> tokens to which its texts are cut: `teacher.max_length`, or its route's own limit; None for whole texts.

    Raises:
        LeafError: `teacher.max_length` is more than the model has positions for, or it always reads whole texts.
    """
    firsts = {role: layout.routes[role][0] for role in ROLES}
    transformers = {role: first.path for role, first in firsts.items() if first.kind == "Transformer"}
    if params.max_length is None:
        own = {role: own_limit(path) or DEFAULT_MAX_LENGTH for role, path in transformers.items()}
        return {role: own.get(role) for role in ROLES}
    if not transformers:
        raise LeafError(f"teacher.max_length: `{params.model}` reads whole texts and cannot cut them; leave it out")
    tables = [table for table in map(position_table, transformers.values()) if table is not None]
    if tables and params.max_length > min(tables):
        raise LeafError(
            f"teacher.max_length: {params.max_length} is impossible; `{params.model}` has positions for at most "
            f"{min(tables)} tokens"
        )
    return {role: params.max_length if role in transformers else None for role in ROLES}


def first_fingerprint(params: TeacherParams, meta: StoreMeta) -> str | None:
    """The fingerprint that version 1 gave to the teacher of `meta`; None for a teacher that version 1 could not run.

    Version 1 covered neither a tokenizer's settings nor heads in `pytorch_model.bin`, and knew no prompts of the
    model's own. So a store that carries it is this teacher's only if vectors that are encoded again agree with it.
    """
    layout = read_layout(resolve_model(params.model, params.revision))
    directory, listed, files = layout.directory, layout.listed, meta.teacher["files"]
    runs = listed[0].kind == "Transformer" and (directory / "config.json").exists()
    if not runs or layout.modules != listed or meta.dim != full_width(params, layout):
        return None
    digests = {"weights": files["weights"]}
    for path in [directory / "config.json", directory / "sentence_bert_config.json", *_tokenizer_files(directory)]:
        if path.exists():
            digests[path.name] = file_sha256(path)
    for module in listed:
        if module.path != directory:
            for file in sorted([*module.path.glob("*.json"), *module.path.glob("*.safetensors")]):
                digests[f"{module.kind}/{file.name}"] = file_sha256(file)
    fingerprinted = {
        "files": digests,
        "modules": [module.kind for module in listed] if (directory / "modules.json").exists() else [],
        **{name: meta.teacher[name] for name in ("prompts", "max_length", "normalize", "dim")},
    }
    return _digest(fingerprinted)
