"""The embedding store: teacher vectors by key, in immutable checksummed shards (docs/format.md).

Reading and checking (`Store`), the shard cache from which stores are published, stores behind URLs, and what is done to
whole stores. `VectorSource` is what training and measuring ask for. Knows no model.
"""

from pipeline.store import formats, operations, shard, upload
from pipeline.store.chunks import CHUNK_ROWS
from pipeline.store.fitted import FITTED_TO, FittedPart, FittedTo, check_fitted_to, write_fitted_to
from pipeline.store.licenses import NOT_STATED, joint_license, joint_teacher
from pipeline.store.operations import merge, scratch_cache
from pipeline.store.output import MODEL_KIND, STORE_KIND
from pipeline.store.places import Listed, find_stores, open_stores, write_list
from pipeline.store.repair import EncodeAgain, repair, shard_names
from pipeline.store.shard import MAX_DIM, UNVERIFIED, ShardInfo, StoreMeta, read_rows, shard_name
from pipeline.store.shard_bucket import ShardBucket
from pipeline.store.shard_cache import ShardCache, ShardWriter, finished_keys, shard_directory
from pipeline.store.similarity import similarity_note
from pipeline.store.source import VectorSource
from pipeline.store.store import Store
from pipeline.store.transport import remote_url
from pipeline.store.validation import SAME_LENGTH, SAME_VECTOR, check_free

__all__ = [
    "CHUNK_ROWS",
    "FITTED_TO",
    "MAX_DIM",
    "MODEL_KIND",
    "NOT_STATED",
    "SAME_LENGTH",
    "SAME_VECTOR",
    "STORE_KIND",
    "UNVERIFIED",
    "EncodeAgain",
    "FittedPart",
    "FittedTo",
    "Listed",
    "ShardBucket",
    "ShardCache",
    "ShardInfo",
    "ShardWriter",
    "Store",
    "StoreMeta",
    "VectorSource",
    "check_fitted_to",
    "check_free",
    "find_stores",
    "finished_keys",
    "formats",
    "joint_license",
    "joint_teacher",
    "merge",
    "open_stores",
    "operations",
    "read_rows",
    "remote_url",
    "repair",
    "scratch_cache",
    "shard",
    "shard_directory",
    "shard_name",
    "shard_names",
    "similarity_note",
    "upload",
    "write_fitted_to",
    "write_list",
]
