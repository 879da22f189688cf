"""Load the asymmetric model of this directory: the student answers queries, the teacher named here documents.

Needs sentence-transformers alone:

    from asymmetric import load
    model = load()
    model.similarity(model.encode_query(["a query"]), model.encode_document(["a text"]))
"""

import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router

HERE = Path(__file__).parent


def load(teacher: str | None = None, **options: Any) -> SentenceTransformer:
    """`teacher`: a hub id or directory in place of the named one; it must give the vectors of the named one."""
    named = json.loads((HERE / "teacher.json").read_text(encoding="utf-8"))
    if not (model := teacher or named["model"]):
        raise ValueError("teacher.json names no teacher on the hub: load(teacher=DIRECTORY)")
    revision = None if teacher else named["revision"]
    documents: Any = SentenceTransformer(model, revision=revision, trust_remote_code=False, **options)
    documents.max_seq_length = named["max_length"]
    modules: list[Any] = [module for module in documents if not isinstance(module, Normalize)]
    queries: Any = SentenceTransformer(str(HERE / "student"), **options)
    router: Any = Router.for_query_document(list(queries), modules + [Normalize()] * named["normalize"])
    both = SentenceTransformer(modules=[router], prompts=named["prompts"], similarity_fn_name="cosine")
    found = both.encode_document(named["probe"]["text"], convert_to_tensor=True).float().cpu()
    cosine = torch.cosine_similarity(found, torch.tensor(named["probe"]["vector"]), dim=0)
    if cosine < 0.999:
        raise ValueError(f"{model} is not the teacher of this student: cosine {cosine:.4f} to its vector of a probe")
    return both
