"""Tasks of the `mteb` library (extra `mteb`): teacher, student and the asymmetric pair as its models.

Any task of the library by name (its data come over the network), and any BEIR directory as a retrieval task.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import Array, LeafError, Similarity, import_optional, written_file
from pipeline.evaluate import collection as beir

Encode = Callable[[Sequence[str], str], Array]  # texts and their role -> [n, dim]
SPLIT, SUBSET = "test", "default"


def library() -> Any:
    """The module `mteb`; LeafError where it is not installed."""
    return import_optional("mteb", "mteb", "measuring by the tasks of mteb")


def model(name: str, encode: Encode, dim: int, similarity: Similarity = "cosine") -> Any:
    """An mteb model around the function `encode`; mteb's prompt types `query` and `document` are the roles."""
    library()
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    class Model(AbsEncoder):  # type: ignore[misc, unused-ignore]  # Any where mteb is not installed
        def __init__(self) -> None:
            meta = {
                "name": f"leaf/{name}",
                "revision": "local",
                "embed_dim": dim,
                "similarity_fn_name": ScoringFunction(similarity),
            }
            self.mteb_model_meta = ModelMeta.create_empty(overwrites=meta)

        def encode(self, inputs: Any, *, prompt_type: Any = None, **_: Any) -> Array:
            role = "query" if getattr(prompt_type, "value", prompt_type) == "query" else "document"
            batches = [encode(list(batch["text"]), role) for batch in inputs]
            return np.concatenate(batches) if batches else np.empty((0, dim), np.float32)

    return Model()


def local_task(directory: Path) -> Any:
    """A BEIR directory as an mteb retrieval task, read and cleaned as `evaluate` reads it."""
    mteb, collection = library(), beir.read(directory)
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    document_ids = collection.documents["id"].to_list()
    name = "".join(part.capitalize() for part in collection.name.replace("_", "-").split("-")) + "Local"

    class Local(AbsTaskRetrieval):  # type: ignore[misc, unused-ignore]
        metadata = mteb.TaskMetadata(
            name=name,
            description=f"The BEIR directory {collection.name}.",
            dataset={"path": collection.name, "revision": "local"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=[SPLIT],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )
        ignore_identical_ids = bool((collection.itself >= 0).any())

        def load_data(self, *_: Any, **__: Any) -> None:
            query_ids = collection.queries["id"].to_list()
            documents = Dataset.from_dict(
                {"id": document_ids, "text": collection.documents["text"].to_list(), "title": [""] * len(document_ids)}
            )
            judged = {
                query: {document_ids[row]: grade for row, grade in grades.items()}
                for query, grades in zip(query_ids, collection.judged, strict=True)
            }
            queries = Dataset.from_dict({"id": query_ids, "text": collection.queries["text"].to_list()})
            split: Any = {"corpus": documents, "queries": queries, "relevant_docs": judged, "top_ranked": None}
            self.dataset = {SUBSET: {SPLIT: split}}
            self.data_loaded = True

    return Local()


def named_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks of the library by name; LeafError for a name that it does not have."""
    mteb = library()
    try:
        return list(mteb.get_tasks(tasks=list(names))) if names else []
    except (KeyError, ValueError) as error:
        raise LeafError(f"mteb has no such task: {error!s:.200}") from None


def run(mteb_model: Any, tasks: Sequence[Any], out: Path) -> list[dict[str, Any]]:
    """Run tasks with a model and write mteb's own JSON, `out/MODEL/TASK.json`.

    Returns:
        For each task `model`, `task`, main `score` and `path` of the file.
    """
    rows = []
    for task in tasks:
        result = library().evaluate(mteb_model, task, cache=None, co2_tracker=False, show_progress_bar=False)
        name = str(mteb_model.mteb_model_meta.name).rpartition("/")[2]
        for scores in result.task_results:
            path = out / name / f"{scores.task_name}.json"
            with written_file(path) as new:
                scores.to_disk(new)
            rows.append({"model": name, "task": scores.task_name, "score": scores.get_score(), "path": str(path)})
    return rows
