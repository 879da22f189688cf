"""What the files of a sentence-transformers model say about it, without loading the model.

`read_layout` finds the modules that a text of each role passes through, in any of the library's layouts: with
`modules.json` or a plain transformers directory, the transformer at the top or in a directory of its own, static
embeddings, a `Router`, an adapter (PEFT) beside the name of its base model.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.base import LeafError
from pipeline.model import SETTINGS_FILES, base_directory, check_inside, read_json, settings

ROLES = ("query", "document")
NO_LIMIT = 10**6  # a tokenizer without a limit names a huge number (transformers: 1e30); no real limit is this large
POSITIONS_AFTER_PADDING = tuple(
    "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm "
    "xlm-roberta xlm-roberta-xl xmod".split()
)
"""Model types that number positions from the padding id + 1: the first rows of their position table are never used."""
ROTARY_IN_A_TABLE = ("codegen", "gptj")
"""Model types that compute rotary positions, but only as many as their configuration names."""
DEFAULT_MAX_LENGTH = 512  # tokens of a text, where a model's files name no limit
WIDTHS = ("word_embed_proj_dim", "hidden_size", "dim", "d_model", "n_embd", "emb_dim")
"""Names of the hidden states' width in the configurations of transformers, in the order in which they count."""
LIMIT_FILES = SETTINGS_FILES
"""Files in which versions of sentence-transformers keep the settings of the module Transformer; the first counts."""


@dataclass(frozen=True)
class ModuleFiles:
    """A module of a model: the name of its class, and the directory that holds its files."""

    kind: str
    path: Path


@dataclass(frozen=True)
class Layout:
    """A model's modules and the settings that belong to the model as a whole."""

    directory: Path
    listed: tuple[ModuleFiles, ...]
    """The modules of `modules.json`, in order; the transformer alone where there is no such file."""
    routes: Mapping[str, tuple[ModuleFiles, ...]]
    """Role -> the modules that its texts pass through, the parts of a Router unfolded."""
    settings: Mapping[str, Any]
    """`config_sentence_transformers.json`; empty without such a file."""

    @property
    def modules(self) -> tuple[ModuleFiles, ...]:
        """The modules of both routes, each once."""
        return tuple(dict.fromkeys(module for role in ROLES for module in self.routes[role]))

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts that the model brings, by name. LeafError where they are malformed."""
        prompts = self.settings.get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
            raise LeafError(f"model file {self._settings_file}: `prompts` must map names to texts; get the model again")
        return {name: text or "" for name, text in prompts.items()}

    @property
    def truncate_dim(self) -> int | None:
        """The dimension to which the model was saved to cut its vectors; None for all of them."""
        return number(self._settings_file, "truncate_dim")

    @property
    def similarity(self) -> str:
        """What the model was made to be compared by: `cosine`, `dot`, `euclidean` or `manhattan`."""
        return str(self.settings.get("similarity_fn_name") or "cosine")

    @property
    def _settings_file(self) -> Path:
        return self.directory / "config_sentence_transformers.json"


def read_layout(directory: Path) -> Layout:
    """The layout of the model in a directory.

    Raises:
        LeafError: a file is malformed, or lies outside of the directory.
    """
    listed = tuple(_listed(directory)) or (ModuleFiles("Transformer", directory),)
    own = directory / "config_sentence_transformers.json"
    routes = {role: tuple(part for module in listed for part in _unfolded(module, role)) for role in ROLES}
    return Layout(directory, listed, routes, settings(own) if own.exists() else {})


def _listed(directory: Path) -> list[ModuleFiles]:
    listing = directory / "modules.json"
    if not listing.exists():
        return []
    entries = read_json(listing)
    well_formed = isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("type"), str) and isinstance(entry.get("path"), str)
        for entry in entries
    )
    if not well_formed:
        raise LeafError(
            f"model file {listing}: must be a list of modules, each with its `type` and `path`; get the model again"
        )
    return [ModuleFiles(entry["type"].rpartition(".")[2], check_inside(directory, entry["path"])) for entry in entries]


def _unfolded(module: ModuleFiles, role: str) -> list[ModuleFiles]:
    """The modules that a text of this role passes through in place of a Router; any other module is itself."""
    if module.kind not in ("Router", "Asym"):
        return [module]
    file = next((f for f in (module.path / "router_config.json", module.path / "config.json") if f.exists()), None)
    if file is None:
        raise LeafError(f"model {module.path}: its Router has no router_config.json; get the model again")
    config = settings(file)
    types, structure = config.get("types"), config.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict) or not structure:
        raise LeafError(f"model file {file}: must name `types` and `structure`; get the model again")
    if (route := _route(config, role)) not in structure:
        raise LeafError(
            f"model file {file}: its Router has no route for a {role} (routes: {', '.join(map(str, structure))}), as "
            f"encode_{role} of sentence-transformers needs; add one, or name the model of a route as the teacher"
        )
    names = structure[route]
    if not isinstance(names, list) or not all(isinstance(types.get(name), str) for name in names):
        raise LeafError(f"model file {file}: a route names a module without a type; get the model again")
    parts = [ModuleFiles(types[name].rpartition(".")[2], check_inside(module.path, name)) for name in names]
    return [part for inner in parts for part in _unfolded(inner, role)]


def _route(config: Mapping[str, Any], role: str) -> Any:
    """The route of a Router for texts of this role: by its mappings, by the role's own name, or that for any text."""
    parameters = config.get("parameters") or {}
    mappings: dict[Any, Any] = {}
    for key, route in (parameters.get("route_mappings") or {}).items():
        try:
            mappings[ast.literal_eval(key)] = route
        except (ValueError, SyntaxError, TypeError):
            continue  # as the library does
    for key in ((role, "text"), (role, None), (None, "text"), (None, None)):
        if key in mappings:
            return mappings[key]
    return role if role in config["structure"] else "text"


def vector_width(route: tuple[ModuleFiles, ...]) -> int | None:
    """Dimension of the vectors behind the last module of a route; None if its files do not tell it.

    Raises:
        LeafError: a file that must name it does not.
    """
    dim: int | None = None
    for module in route:
        file = module.path / "config.json"
        if module.kind == "Transformer":
            dim = _hidden_size(module.path)
        elif module.kind == "StaticEmbedding":
            dim = _table_width(module.path)
        elif module.kind == "Pooling":
            width = number(file, "embedding_dimension", "word_embedding_dimension") or dim
            dim = width and width * _pooling_mode_count(settings(file))
        elif module.kind == "Dense":
            dim = number(file, "out_features")
        elif module.kind not in ("Normalize", "Dropout", "LayerNorm"):
            return None
        if dim is None and module.kind in ("Pooling", "Dense"):
            raise LeafError(f"model file {file}: does not name the width of the vectors; get the model again")
    return dim


def _hidden_size(directory: Path) -> int | None:
    config = base_directory(directory) / "config.json"
    if (width := number(config, *WIDTHS)) is not None or not config.exists():
        return width
    nested = settings(config).get("text_config")  # models of several modalities
    return next((int(nested[name]) for name in WIDTHS if nested.get(name)), None) if isinstance(nested, dict) else None


def _table_width(directory: Path) -> int | None:
    """Columns of the table of a StaticEmbedding, from the head of its weights' file."""
    file = directory / "model.safetensors"
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            names = [name for name in ("embedding.weight", "embeddings") if name in tensors.keys()]  # noqa: SIM118
            return int(tensors.get_slice(names[0]).get_shape()[1]) if names else None
    except (OSError, SafetensorError, IndexError) as error:
        raise LeafError(f"model file {file}: the weights are damaged: {error}") from None


def _pooling_mode_count(config: dict[str, Any]) -> int:
    """How many pooled vectors a Pooling module concatenates: one per pooling mode that is on."""
    # sentence-transformers 6 names a mode or a list of modes; earlier versions have a true/false switch per mode.
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    return len(modes) if isinstance(modes, list) and modes else 1


def own_limit(directory: Path) -> int | None:
    """Most tokens of a text that a transformer reads, by the files in its directory; None if nothing limits it."""
    positions, learned = _positions(directory)
    # sentence-transformers 6 keeps the limit in the tokenizer's settings, earlier versions in a file of their own.
    own = next((directory / name for name in LIMIT_FILES if (directory / name).exists()), directory / LIMIT_FILES[0])
    limit = number(own, "max_seq_length")
    limits: list[int | None] = (
        [limit] if limit else [number(directory / "tokenizer_config.json", "model_max_length"), positions]
    )
    limits.append(positions if learned else None)
    return min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)


def position_table(directory: Path) -> int | None:
    """Tokens that a transformer has learned positions for; None where it computes positions."""
    positions, learned = _positions(directory)
    return positions if learned else None


def _positions(directory: Path) -> tuple[int | None, bool]:
    """The number of positions that a transformer's configuration names, and whether they are a table that ends there.

    Rotary and relative positions continue beyond the configured number.
    """
    file = base_directory(directory) / "config.json"
    config = settings(file) if file.exists() else {}
    kind = config.get("model_type")
    positions = number(file, "max_position_embeddings", *_other_names_of_positions(config))
    if positions is not None and kind in POSITIONS_AFTER_PADDING:
        padding = config.get("pad_token_id")
        positions -= 1 + (padding if isinstance(padding, int) else 1)
    computed = config.get("position_biased_input") is False or any(
        "rope_" in name or "rotary" in name for name in config
    )
    return positions, kind in ROTARY_IN_A_TABLE or not computed


def _other_names_of_positions(config: Mapping[str, Any]) -> list[str]:
    """What a model type calls its number of positions, if transformers knows another name (GPT-2: `n_positions`)."""
    if "max_position_embeddings" in config or not isinstance(config.get("model_type"), str):
        return []
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        return []
    names: dict[str, str] = CONFIG_MAPPING[config["model_type"]].attribute_map
    return [name for common, name in names.items() if common == "max_position_embeddings"]


def number(path: Path, *names: str) -> int | None:
    """The first of the named settings that is above zero; None if there is none or no such file.

    Raises:
        LeafError: the value is not a whole number.
    """
    content = settings(path) if path.exists() else {}
    for name in names:
        value = content.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
            raise LeafError(f"model file {path}: `{name}` must be a whole number, not {value!r:.60}")
        if value > 0:
            return int(value)
    return None
