"""A writer to kill: commits shard after shard, as stage encode does, then publishes. Arguments: directory, shards."""

import sys
from pathlib import Path

from pipeline.store.shard_cache import ShardCache
from tests.store_helpers import META, rows, vectors

SIZE = 300


def main(directory: Path, shards: int) -> None:
    with ShardCache(directory / "pool", META) as pool:
        for number in range(shards):
            frame = rows(number * SIZE, SIZE)
            if not pool.has(frame["key"].to_list()).any():
                pool.write(frame, vectors(number * SIZE, SIZE))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
        pool.publish(directory / "store", pool.keys())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
