"""The asymmetric model: one sentence-transformers `Router`, queries through the student, documents through the teacher.

In two forms: with the teacher inside, and with the teacher's name only. Both load with no code of this project
installed.
"""

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.base.errors import LeafError
from pipeline.model.model_files import load_sentence_transformer, resolve_model
from pipeline.model.student import model_directory
from pipeline.params.sections import TeacherParams

PROBE = "How a text becomes a vector."
PROBE_DIGITS = 7
INSTEAD = """Asymmetric mode needs none: the documents keep the vectors that the API gave
(`data/embeddings`), and the student (`models/student`, `models/onnx`) embeds the queries. `leaf search` does that."""


def build(student: Path, teacher: TeacherParams) -> Any:
    """The `SentenceTransformer` with the routes `query` and `document`.

    The student reads plain text, the teacher its document prompt. A text without a task goes to the teacher.

    Raises:
        LeafError: a model is missing or cannot be loaded, or the two give vectors of different dimensions.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Router

    if not (student / "modules.json").is_file():
        raise LeafError(f"{student}: holds no student (no modules.json); run the fit stage first")
    queries: Any = load_sentence_transformer(student, str(student))
    documents = load_sentence_transformer(resolve_model(teacher.model, teacher.revision), teacher.model)
    if teacher.max_length is not None:
        documents.max_seq_length = teacher.max_length
    sizes = [model.get_embedding_dimension() for model in (queries, documents)]
    if sizes[0] != sizes[1]:
        raise LeafError(
            f"{student}: gives {sizes[0]} dimensions, but the teacher `{teacher.model}` {sizes[1]}: it was fitted to "
            "another teacher; run fit again, or name that one in the section `teacher`"
        )
    modules = [module for module in documents if type(module).__name__ != "Normalize"]
    router = Router.for_query_document(list(queries), modules + [Normalize()] * teacher.normalize)
    prompts = {"query": "", "document": teacher.prompts.document}
    model = SentenceTransformer(modules=[router], prompts=prompts, similarity_fn_name="cosine")
    return model.eval()


def save(model: Any, out: Path, card: str | None = None) -> None:
    """Write the model with the teacher inside; what was at `out` is replaced only once the new one is whole."""
    with model_directory(out, card) as temporary:
        model.save(str(temporary), create_model_card=False, safe_serialization=True)


def save_named(model: Any, student: Path, teacher: TeacherParams, *, name: str | None, out: Path, card: str) -> None:
    """Write the student, the teacher's hub id `name` (None: whoever loads it says where), and the loader.

    No directory format of sentence-transformers 6 can name a module's weights in another repository, so the 20 lines
    that put both together lie beside them. A probe's vector finds a teacher that is not the right one.
    """
    named = {
        "model": name,
        "revision": teacher.revision,
        "prompts": model.prompts,
        "max_length": int(model[0].sub_modules["document"][0].max_seq_length),
        "normalize": teacher.normalize,
        "probe": {"text": PROBE, "vector": [round(x, PROBE_DIGITS) for x in model.encode_document(PROBE).tolist()]},
    }
    text = json.dumps(named, indent=1, ensure_ascii=False) + "\n"
    loader = files("pipeline.export").joinpath("templates/asymmetric.py").read_text(encoding="utf-8")
    with model_directory(out, card) as temporary:
        shutil.copytree(student, temporary / "student")
        (temporary / "teacher.json").write_text(text, encoding="utf-8")
        (temporary / "asymmetric.py").write_text(loader, encoding="utf-8")


def leave_out(teacher: TeacherParams, outs: Sequence[Path]) -> str:
    """Put a README.md that says why there is no asymmetric model at `outs`, which DVC expects; return its reason."""
    reason = f"the teacher `{teacher.model}` is an API: no model can contain it"
    for out in outs:
        with model_directory(out, f"# No asymmetric model\n\nLeft out: {reason}. {INSTEAD}\n"):
            pass
    return reason
