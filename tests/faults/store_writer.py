"""Commits shard after shard, as the encode stage does, then publishes; tests kill it. Arguments: directory, shards."""

import sys
from pathlib import Path

from pipeline.store.shard_cache import ShardCache
from tests.store_helpers import META, rows, vectors

SIZE = 300


def main(directory: Path, shards: int) -> None:
    with ShardCache(directory / "pool", META) as cache:
        for number in range(shards):
            frame = rows(number * SIZE, SIZE)
            if not cache.has(frame["key"].to_list()).any():
                cache.write(frame, vectors(number * SIZE, SIZE))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
        cache.publish(directory / "store", cache.keys())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
