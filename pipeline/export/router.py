"""Asymmetric models: a sentence-transformers `Router`, queries through the student, documents through the teacher.

In two forms: with the teacher inside, and with the teacher's name only. Both load without this project installed.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import Array, LeafError
from pipeline.export.cards import fill_template, front_matter, results_table
from pipeline.export.exporter import ExportedEncoder, ExportJob, LeftOut

LOWEST_COSINE = 0.999  # to the stored vectors, which bfloat16 and float16 have rounded
CHECK_TEXT = "How a text becomes a vector."
CHECK_DIGITS = 7
INSTEAD = """Asymmetric mode needs none: the documents keep the vectors that the API gave
(`data/embeddings`), and the student (`models/student`, `models/onnx`) embeds the queries. `leaf search` does that."""


class RouterExporter:
    """One model that contains the student and the teacher."""

    name = "asymmetric"
    directory = "asymmetric"

    def left_out(self, job: ExportJob) -> LeftOut | None:
        """An API has no weights that a model could contain."""
        return _without_weights(job)

    def write(self, job: ExportJob, directory: Path) -> None:
        """A sentence-transformers directory; LeafError as `build_router`."""
        build_router(job).save(str(directory), create_model_card=False, safe_serialization=True)

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        """The document route, which must give the stored vectors."""
        router = build_router(job)

        def encode(texts: Any) -> Array:
            return np.asarray(router.encode_document(list(texts), show_progress_bar=False))

        return {"documents": ExportedEncoder(encode, "document", LOWEST_COSINE)}

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> str:
        """How to load it, and the retrieval results."""
        usage = 'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("path/to/this")'
        return _card(job, self.directory, usage)


class NamedRouterExporter:
    """The student, the teacher's hub id, and a loader of 20 lines that puts both together.

    No directory format of sentence-transformers 6 can name a module's weights in another repository. The loader
    compares a teacher's vector of CHECK_TEXT with that of the right one.
    """

    name = "asymmetric"
    directory = "asymmetric-named"

    def left_out(self, job: ExportJob) -> LeftOut | None:
        """An API has no weights that the loader could load."""
        return _without_weights(job)

    def write(self, job: ExportJob, directory: Path) -> None:
        """`student/`, `teacher.json` and `asymmetric.py`. Without a hub id whoever loads it names the teacher."""
        router, teacher = build_router(job), job.teacher.params
        check_vector = [round(x, CHECK_DIGITS) for x in router.encode_document(CHECK_TEXT).tolist()]
        named = {
            "model": job.origin.teacher,
            "revision": teacher.revision,
            "prompts": router.prompts,
            "max_length": int(router[0].sub_modules["document"][0].max_seq_length),
            "normalize": teacher.normalize,
            "probe": {"text": CHECK_TEXT, "vector": check_vector},
        }
        text = json.dumps(named, indent=1, ensure_ascii=False) + "\n"
        loader = files("pipeline.export").joinpath("templates/asymmetric.py").read_text(encoding="utf-8")
        shutil.copytree(job.student_directory, directory / "student")
        (directory / "teacher.json").write_text(text, encoding="utf-8")
        (directory / "asymmetric.py").write_text(loader, encoding="utf-8")

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        """None: the loaded model is that of RouterExporter."""
        return {}

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> str:
        """How to load it, and the retrieval results."""
        arguments = "" if job.origin.teacher else "teacher=DIRECTORY"
        usage = f"from asymmetric import load  # asymmetric.py lies beside this card\n\nmodel = load({arguments})"
        return _card(job, self.directory, usage)


def build_router(job: ExportJob) -> Any:
    """The `SentenceTransformer` with the routes `query` and `document`. It shares the modules of the job's models.

    The student reads plain text, the teacher its document prompt. A text without a task goes to the teacher.

    Raises:
        LeafError: the teacher cannot be loaded, or the two give vectors of different dimensions.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Router

    queries, documents, teacher = job.student_model, job.teacher_model, job.teacher.params
    student_dim, teacher_dim = (model.get_embedding_dimension() for model in (queries, documents))
    if student_dim != teacher_dim:
        raise LeafError(
            f"{job.student_directory}: gives {student_dim} dimensions, but the teacher `{teacher.model}` "
            f"{teacher_dim}: it was fitted to another teacher; run fit again, or name that one in the section `teacher`"
        )
    modules = [module for module in documents if type(module).__name__ != "Normalize"]
    router = Router.for_query_document(list(queries), modules + [Normalize()] * teacher.normalize)
    prompts = {"query": "", "document": teacher.prompts.document or ""}
    model = SentenceTransformer(modules=[router], prompts=prompts, similarity_fn_name="cosine")
    return model.eval()


def _without_weights(job: ExportJob) -> LeftOut | None:
    if job.teacher.directory is not None:
        return None
    reason = f"the teacher `{job.teacher.params.model}` is an API: no model can contain it"
    return LeftOut(reason, f"# No asymmetric model\n\nLeft out: {reason}. {INSTEAD}\n")


def _card(job: ExportJob, name: str, usage: str) -> str:
    modes, prompt = ("asymmetric",), job.teacher.params.prompts.document
    values = {
        "name": name,
        "teacher": job.origin.teacher_name,
        "dim": job.student.dim,
        "prompt": f"the prompt `{prompt}`" if prompt else "no prompt",
        "usage": usage,
        "results": results_table(job.origin, modes),
    }
    return front_matter(name, job.origin, modes) + fill_template("asymmetric.md", values)
