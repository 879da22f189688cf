"""Commit one shard to an object store twice at once, dying at a request. Arguments: URL, job, numbers in pairs.

As in `pushers_killed`: a writer dies before its n-th request, or after it where n is even; n = 0 runs to the end.
"""

import os
import sys

from pipeline.store.shard_bucket import ShardBucket
from tests.faults.pushers_killed import die_at_request
from tests.store_helpers import META, rows, vectors


def fork(url: str, job: str, first: int, number: int) -> int:
    child = os.fork()
    if child:
        return child
    die_at_request(number)
    ShardBucket(url, META, job).write(rows(first, 20), vectors(first, 20))
    os._exit(0)


def main(url: str, job: str, numbers: list[int]) -> None:
    """Each pair has a shard of its own, and runs at once; one pair after another."""
    for start in range(0, len(numbers), 2):
        pair = numbers[start : start + 2]
        for number, child in zip(pair, [fork(url, job, start * 10, number) for number in pair], strict=True):
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                sys.stdout.write(f"killed {number}\n")
            elif status:
                raise SystemExit(f"a writer that was not killed failed: {status}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(number) for number in sys.argv[3:]])
