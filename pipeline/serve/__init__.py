"""Serving without PyTorch: search over stored vectors, indexes for other engines, the exported ONNX model.

The three modes in which teacher and student share the two sides of a search are named here.
"""

from pipeline.serve import index
from pipeline.serve.index import Kind
from pipeline.serve.modes import MODES, START
from pipeline.serve.onnx_encoder import MODELS, TOKENIZER, VECTORS, OnnxEncoder, padded
from pipeline.serve.output import INDEX_KIND
from pipeline.serve.search import Answer, Searcher, Vectors, check_dim, read_vectors

__all__ = [
    "INDEX_KIND",
    "MODELS",
    "MODES",
    "START",
    "TOKENIZER",
    "VECTORS",
    "Answer",
    "Kind",
    "OnnxEncoder",
    "Searcher",
    "Vectors",
    "check_dim",
    "index",
    "padded",
    "read_vectors",
]
