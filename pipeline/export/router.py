"""Asymmetric models: a sentence-transformers `Router`, queries through the student, documents through the teacher.

In two forms: with the teacher inside, and with the teacher's name only. Both load without this project installed.
"""

import json
import runpy
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import LISTING, Array, LeafError, code_span, first_line
from pipeline.export.cards import fill_template, front_matter, results_table
from pipeline.export.exporter import ExportedEncoder, ExportJob, LeftOut
from pipeline.model import load_sentence_transformer, older_form

LOWEST_COSINE = 0.999  # to the stored vectors, which bfloat16 and float16 have rounded
CHECK_TEXT = "How a text becomes a vector."
CHECK_DIGITS = 7
PADDED = ["a", "how a text becomes a vector, again and again, as long as it takes"]
NOISE = 1e-3  # most that rounding changes a vector, as a share of its length
INSTEAD = """Asymmetric mode needs none: the documents keep the vectors that the teacher gave
(`data/embeddings`), and the student (`models/student`, `models/onnx`) embeds the queries. `leaf search` does that."""


class RouterExporter:
    """One model that contains the student and the teacher."""

    name = "asymmetric"
    directory = "asymmetric"

    def write(self, job: ExportJob, directory: Path) -> LeftOut | None:
        """A sentence-transformers directory; LeafError as `build_router`."""
        if left_out := _without_teacher(job):
            return left_out
        router = build_router(job)
        router.save(str(directory), create_model_card=False, safe_serialization=True)
        older_form.write_older_form(directory, list(router))
        return None

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        """The document route of the written model, which must give the stored vectors."""
        return _documents("documents", load_sentence_transformer(directory, str(directory)))

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> str:
        """How to load it, and the retrieval results."""
        usage = 'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("path/to/this")'
        return _card(job, usage)


class NamedRouterExporter:
    """The student, the teacher's hub id, and a short loader that puts both together.

    No directory format of sentence-transformers can name a module's weights in another repository. The loader
    compares a teacher's vector of CHECK_TEXT with that of the right one.
    """

    name = "asymmetric"
    directory = "asymmetric-named"

    def write(self, job: ExportJob, directory: Path) -> LeftOut | None:
        """`student/`, `teacher.json` and `asymmetric.py`. Without a hub id whoever loads it names the teacher."""
        if left_out := _without_teacher(job):
            return left_out
        router = build_router(job)
        check_vector = [round(x, CHECK_DIGITS) for x in router.encode_document(CHECK_TEXT).tolist()]
        named = {
            "model": job.origin.teacher,
            "revision": job.teacher.params.revision,
            "prompts": router.prompts,
            "similarity": router.similarity_fn_name,
            **_route_settings(job),
            "probe": {"text": CHECK_TEXT, "vector": check_vector},
        }
        text = json.dumps(named, indent=1, ensure_ascii=False) + "\n"
        loader = files("pipeline.export").joinpath("templates/asymmetric.py").read_text(encoding="utf-8")
        ignored = shutil.ignore_patterns(LISTING)
        shutil.copytree(job.student_directory, directory / "student", ignore=ignored, copy_function=shutil.copyfile)
        (directory / "teacher.json").write_text(text, encoding="utf-8")
        (directory / "asymmetric.py").write_text(loader, encoding="utf-8")
        return None

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        """The document route of what the written loader loads, which must give the stored vectors."""
        loader = runpy.run_path(str(directory / "asymmetric.py"))  # an import would leave compiled code beside it
        try:
            model = loader["load"](teacher=str(job.teacher.directory))
        except Exception as error:  # the libraries' own, and the loader's where the teacher is another one
            raise LeafError(f"{directory.name}: cannot be loaded again ({first_line(error)}); do not use it") from None
        return _documents("named_documents", model)

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> str:
        """How to load it, and the retrieval results."""
        arguments = "" if job.origin.teacher else "teacher=DIRECTORY"
        usage = f"from asymmetric import load  # asymmetric.py lies beside this card\n\nmodel = load({arguments})"
        return _card(job, usage)


def build_router(job: ExportJob) -> Any:
    """The `SentenceTransformer` with the routes `query` and `document`. It shares the modules of the job's models.

    The student reads plain text, the teacher its document prompt. A text without a task goes to the teacher.

    Raises:
        LeafError: the teacher cannot be loaded, or the two give vectors of different dimensions.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    from pipeline.export.templates.asymmetric import document_route

    student_dim, teacher_dim = job.student.dim, job.teacher.meta.dim
    if student_dim != teacher_dim:
        raise LeafError(
            f"{job.student_directory}: gives {student_dim} dimensions, but the teacher `{job.teacher.params.model}` "
            f"{teacher_dim}: it was fitted to another teacher; run fit again, or name that one in the section `teacher`"
        )
    documents = document_route(job.teacher_model, _route_settings(job))
    router = Router.for_query_document(list(job.student_model), documents)
    prompts = {"query": "", "document": job.document_prompt}
    device = str(job.student_model.device)
    similarity = job.meta.similarity
    return SentenceTransformer(modules=[router], prompts=prompts, similarity_fn_name=similarity, device=device).eval()


def _route_settings(job: ExportJob) -> dict[str, Any]:
    """What `document_route` needs to know about the stored vectors."""
    from pipeline.export.templates.asymmetric import document_route

    limit = job.meta.teacher.get("max_length")
    settings = {
        "max_length": limit["document"] if isinstance(limit, dict) else limit,
        "padding_side": None,
        "dim": job.meta.dim,
        "normalize": job.meta.normalized,
    }
    tokenizer = getattr(document_route(job.teacher_model, settings)[0], "tokenizer", None)
    side = getattr(tokenizer, "padding_side", None)
    # Models that count positions from the left (GPT-2) give a text that is padded there another vector.
    right = side == "left" and _depends_on_neighbours(job.teacher_model)
    return {**settings, "padding_side": "right" if right else side}


def _depends_on_neighbours(model: Any) -> bool:
    """Whether the vector of a text is another one in a batch with a longer text."""
    alone, together = (model.encode_document(texts, convert_to_tensor=True) for texts in (PADDED[:1], PADDED))
    return bool((alone[0] - together[0]).norm() > NOISE * alone[0].norm())


def _documents(name: str, router: Any) -> dict[str, ExportedEncoder]:
    def encode(texts: Any) -> Array:
        # One by one, as the stored vectors are of texts alone: in a few families (Funnel) a batch changes them.
        return np.asarray(router.encode_document(list(texts), batch_size=1, show_progress_bar=False))

    return {name: ExportedEncoder(encode, "document", LOWEST_COSINE)}


def _without_teacher(job: ExportJob) -> LeftOut | None:
    teacher = job.teacher.params
    if job.teacher.directory is None:
        reason = f"the teacher {code_span(teacher.model)} is an API: no model can contain it"
    elif teacher.trust_remote_code:
        name = code_span(teacher.model)
        reason = f"the teacher {name} runs code of its own, which whoever loads the model would have to trust"
    else:
        return None
    return LeftOut(reason, f"# No asymmetric model\n\nLeft out: {reason}. {INSTEAD}\n")


def _card(job: ExportJob, usage: str) -> str:
    modes, prompt = ("asymmetric",), job.document_prompt
    values = {
        "teacher": job.origin.teacher_name,
        "dim": job.student.dim,
        "comparison": job.meta.comparison,
        "prompt": f"the prompt {code_span(prompt)}" if prompt else "no prompt",
        "usage": usage,
        "results": results_table(job.origin, modes),
    }
    return front_matter(f"{job.origin.title}, asymmetric", job.origin, modes) + fill_template("asymmetric.md", values)
