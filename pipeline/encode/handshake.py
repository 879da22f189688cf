"""The handshake of workers: whether a machine computes the same bits as the one that began.

A vector's last bits depend on versions of libraries, on the device, on whether bfloat16 is fast there and on the number
of threads. The first worker that adds to a shard cache leaves a record of these there, with its vectors of a few fixed
texts (`workers.json`); every other one compares itself with it before it computes anything.
"""

import base64
import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import polars as pl
import torch

from pipeline.base import Array, LeafError, cosines
from pipeline.encode.engines.engine import SharedShards
from pipeline.model import best_device, bf16_is_fast, device_name
from pipeline.store import SAME_VECTOR
from pipeline.teacher import PROBE_ROLE, PROBE_TEXTS, LocalTeacher

RECORD = "workers.json"
LIBRARIES = ("torch", "transformers", "tokenizers", "sentence-transformers", "numpy", "polars", "pyarrow", "zarr")


@dataclass(frozen=True)
class WorkerClass:
    """What decides the bits of a worker's vectors, besides the texts and the teacher."""

    versions: dict[str, str]
    device: str
    """Its name, for a CPU with the instruction set that PyTorch uses."""
    bfloat16: bool
    """Whether passes are computed in bfloat16 where the teacher allows it."""
    threads: int
    vectors: str
    """SHA-256 of the vectors of the fixed texts."""

    def differences(self, other: "WorkerClass") -> list[str]:
        """What differs, each as `name ours instead of theirs`."""
        found = [
            f"{name} {self.versions[name]} instead of {other.versions.get(name)}"
            for name in self.versions
            if self.versions[name] != other.versions.get(name)
        ]
        found += [
            f"{name} {getattr(self, name)} instead of {getattr(other, name)}"
            for name in ("device", "bfloat16", "threads")
            if getattr(self, name) != getattr(other, name)
        ]
        return found if found or self.vectors == other.vectors else ["other vectors of the same texts"]


def examine(teacher: LocalTeacher) -> tuple[WorkerClass, Array]:
    """The class of this process, and its vectors `[texts, dim]` float32 of the fixed texts."""
    rows = pl.DataFrame({"role": [PROBE_ROLE] * len(PROBE_TEXTS), "text": PROBE_TEXTS})
    vectors = teacher.vectors(rows)
    device = best_device()
    own = WorkerClass(
        versions={"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        device=device_name(device),
        bfloat16=bf16_is_fast(device),
        threads=torch.get_num_threads(),
        vectors=hashlib.sha256(vectors.tobytes()).hexdigest(),
    )
    return own, vectors


def admit(own: WorkerClass, vectors: Array, shards: SharedShards, same_bits: bool) -> None:
    """Compare this process with the record beside the shards, and leave one where there is none.

    Raises:
        LeafError: it is of another class; without `same_bits`, a vector is another one than the record's.
    """
    encoded = base64.b64encode(vectors.astype(np.float32).tobytes()).decode()
    mine = {"class": asdict(own), "node": platform.node(), "vectors": encoded}
    try:
        record = json.loads(shards.agree(RECORD, json.dumps(mine, sort_keys=True, indent=1).encode()))
        first, node = WorkerClass(**record["class"]), str(record["node"])
        theirs = np.frombuffer(base64.b64decode(record["vectors"]), np.float32).reshape(len(PROBE_TEXTS), -1)
    except (KeyError, TypeError, ValueError):
        raise LeafError(f"{RECORD} beside the shards is damaged; delete it, if all machines are alike") from None
    differences = own.differences(first)
    if not differences:
        return
    names = f"{'; '.join(differences)}, as on {node}, which began ({RECORD})"
    if same_bits:
        raise LeafError(
            f"node {platform.node()}: computes other bits than this shard cache holds: {names}. Make the machines "
            "alike, use another encode.pool, or set cluster.same_bits to false"
        )
    worst = float(cosines(vectors, theirs).min()) if vectors.shape == theirs.shape else 0.0
    if not worst >= SAME_VECTOR:
        raise LeafError(
            f"node {platform.node()}: gives other vectors than this shard cache holds: cosine {worst:.4f} (at least "
            f"{SAME_VECTOR} expected); {names}"
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
