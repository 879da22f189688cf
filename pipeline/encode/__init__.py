"""Stage one: corpus and teacher to embedding store.

A plan of work orders, engines that execute them, vectors taken over from other stores, and vectors on demand.
"""

from pipeline.encode import comparison
from pipeline.encode.encoding import encode, fill
from pipeline.encode.engines.threads import ThreadsEngine
from pipeline.encode.importing import import_unverified, import_vectors
from pipeline.encode.lost_shards import encode_lost_shards
from pipeline.encode.migration import migrate
from pipeline.encode.on_demand import vectors_on_demand
from pipeline.encode.rotation import turn
from pipeline.encode.vector_files import Fields, VectorFiles

__all__ = [
    "Fields",
    "ThreadsEngine",
    "VectorFiles",
    "comparison",
    "encode",
    "encode_lost_shards",
    "fill",
    "import_unverified",
    "import_vectors",
    "migrate",
    "turn",
    "vectors_on_demand",
]
