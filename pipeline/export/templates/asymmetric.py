"""Load the asymmetric model of this directory: the student answers queries, the teacher named here documents.

Needs sentence-transformers alone, version 5 or later:

    from asymmetric import load
    model = load()
    model.similarity(model.encode_query(["a query"]), model.encode_document(["a text"]))
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

try:
    from sentence_transformers.base.modules import Dense, Normalize, Router
except ImportError:  # version 5
    from sentence_transformers.models import Dense, Normalize, Router  # type: ignore[no-redef]

HERE = Path(__file__).parent
WIDTHS = ("get_embedding_dimension", "get_sentence_embedding_dimension")  # in versions 6 and 5
FARTHEST = 0.045  # from the right vector of the probe, as a share of its length; about a cosine of 0.999


def load(teacher: str | None = None, **options: Any) -> SentenceTransformer:
    """`teacher`: a hub id or directory in place of the named one; it must give the vectors of the named one."""
    named = json.loads((HERE / "teacher.json").read_text(encoding="utf-8"))
    if not (model := teacher or named["model"]):
        raise ValueError("teacher.json names no teacher on the hub: load(teacher=DIRECTORY)")
    revision = None if teacher else named["revision"]
    documents = SentenceTransformer(model, revision=revision, trust_remote_code=False, **options)
    queries: Any = SentenceTransformer(str(HERE / "student"), **options)
    router: Any = Router.for_query_document(list(queries), document_route(documents, named))
    both = SentenceTransformer(
        modules=[router], prompts=named["prompts"], similarity_fn_name=named["similarity"], device=str(queries.device)
    )
    found = both.encode_document(named["probe"]["text"], convert_to_tensor=True).float().cpu()
    right = torch.tensor(named["probe"]["vector"])
    if not (same := found.shape == right.shape) or (found - right).norm() > FARTHEST * right.norm():
        what = "gives another vector for a probe" if same else f"gives {len(found)} dimensions, not {len(right)}"
        raise ValueError(f"{model} is not the teacher of this student: it {what}")
    return both


def document_route(teacher: Any, named: Mapping[str, Any]) -> list[Any]:
    """The teacher's modules as they made the vectors of the index.

    `named` says the most tokens of a text (`max_length`, or null), the side that shorter texts are padded on
    (`padding_side`, or null), how many of the first dimensions are kept (`dim`), and whether vectors are scaled to
    length one at the end (`normalize`).
    """
    modules = list(teacher)
    while isinstance(modules[0], Router) and not getattr(modules[0], "route_mappings", None):
        routes: Any = modules[0].sub_modules
        modules[:1] = routes["document" if "document" in routes else "text"]
    while isinstance(modules[-1], Normalize):
        modules.pop()
    if named["max_length"] is not None:
        modules[0].max_seq_length = named["max_length"]
    if named["padding_side"] is not None:
        modules[0].tokenizer.padding_side = named["padding_side"]
    width = next(getattr(module, name)() for module in reversed(modules) for name in WIDTHS if hasattr(module, name))
    if named["dim"] < width:
        cut = Dense(width, named["dim"], bias=False, activation_function=torch.nn.Identity())
        torch.nn.init.eye_(cut.linear.weight)
        modules.append(cut)
    return modules + [Normalize()] * named["normalize"]
