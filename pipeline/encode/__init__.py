"""Stage one: corpus and teacher to embedding store.

A plan of work orders, engines that execute them, vectors taken over from other stores, and vectors on demand.
"""

from pipeline.encode import comparison
from pipeline.encode.encoding import check_local, encode, engine_on, fill, plan_shards
from pipeline.encode.engines.threads import ThreadsEngine
from pipeline.encode.estimate import EncodeEstimate
from pipeline.encode.estimate import estimate as estimate_encode
from pipeline.encode.importing import import_unverified, import_vectors
from pipeline.encode.lost_shards import encode_lost_shards
from pipeline.encode.migration import migrate
from pipeline.encode.on_demand import vectors_on_demand
from pipeline.encode.rotation import turn
from pipeline.encode.vector_files import Fields, VectorFiles
from pipeline.encode.worker import Job, Worker, read_orders

__all__ = [
    "EncodeEstimate",
    "Fields",
    "Job",
    "ThreadsEngine",
    "VectorFiles",
    "Worker",
    "check_local",
    "comparison",
    "encode",
    "encode_lost_shards",
    "engine_on",
    "estimate_encode",
    "fill",
    "import_unverified",
    "import_vectors",
    "migrate",
    "plan_shards",
    "read_orders",
    "turn",
    "vectors_on_demand",
]
