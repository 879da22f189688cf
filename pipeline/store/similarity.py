"""What two vectors of a store are compared by: the cosine, or the dot product where the teacher is made for it.

sentence-transformers' `similarity_fn_name` says what a model is made for. The dot product differs from the cosine only
where vectors keep their lengths.
"""

from pipeline.base import Similarity

WORDS: dict[Similarity, str] = {"cosine": "cosine", "dot": "the dot product"}


def similarity_of(made_for: str, normalized: bool) -> Similarity:
    """What to compare the vectors of a teacher by that is made for `made_for` (a `similarity_fn_name`)."""
    return "dot" if made_for == "dot" and not normalized else "cosine"


def similarity_note(made_for: str, normalized: bool) -> str | None:
    """A sentence for people where vectors are compared by something else than the teacher is made for."""
    if made_for == "dot" and normalized:
        return (
            "the teacher is made for the dot product (similarity_fn_name), but its vectors are scaled to length one, "
            "so that only their cosine is left; teacher.normalize: false keeps their lengths"
        )
    if made_for in ("euclidean", "manhattan"):
        return f"the teacher is made for the {made_for} distance, but its vectors are compared by cosine"
    return None
