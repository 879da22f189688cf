"""Grow and publish a store, dying at the n-th change of the file system. Arguments: n DIRECTORY, repeated.

n = 0 runs to the end and prints how many changes there were. Each run is a fork, so that modules are imported once.
"""

import os
import signal
import sys
from pathlib import Path

from pipeline.store.shard_cache import ShardCache
from tests.store_helpers import META, rows, vectors

CHANGES = ("open", "os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp")


def grow(directory: Path, die_at: int) -> None:
    seen = 0

    def watch(event: str, arguments: object) -> None:
        nonlocal seen
        if event in CHANGES and str(directory) in str(arguments):
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    with ShardCache(directory / "pool", META) as cache:
        if not cache.has(rows(50, 5)["key"].to_list()).any():
            cache.write(rows(50, 5), vectors(50, 5))
        cache.publish(directory / "store", cache.keys())
    sys.stdout.write(f"{seen}\n")
    sys.stdout.flush()


def main(steps: list[int], directories: list[Path]) -> None:
    for step, directory in zip(steps, directories, strict=True):
        child = os.fork()
        if not child:
            grow(directory, step)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if step == 0 and status:
            raise SystemExit(f"{directory}: could not run to the end after the kill")


if __name__ == "__main__":
    main([int(step) for step in sys.argv[1::2]], [Path(directory) for directory in sys.argv[2::2]])
