"""Push two stores to one URL at once, dying at a request to the server. Arguments: URL, then STORE n STORE n, repeated.

A pusher dies before its n-th request, or after it where n is even; n = 0 runs to the end. Each pair runs at once, one
pair after another. Every run is a fork, so that modules are imported once.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiobotocore.client  # type: ignore[import-untyped, unused-ignore]

from pipeline.store.store import Store
from pipeline.store.upload import push


def die_at_request(number: int) -> None:
    made, request = 0, aiobotocore.client.AioBaseClient._make_api_call

    async def watching(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        nonlocal made
        made += 1
        if made == number and number % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await request(self, operation, arguments)
        if made == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    aiobotocore.client.AioBaseClient._make_api_call = watching


def fork(url: str, store: Path, number: int) -> int:
    child = os.fork()
    if child:
        return child
    os.environ["LEAF_CACHE"] = f"{os.environ['LEAF_CACHE']}-{os.getpid()}"
    die_at_request(number)
    push(Store.open(store), url)
    os._exit(0)


def main(url: str, stores: list[Path], numbers: list[int]) -> None:
    for start in range(0, len(stores), 2):
        pair = [fork(url, stores[start + i], numbers[start + i]) for i in (0, 1)]
        for child in pair:
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                sys.stdout.write("killed\n")
            elif status:
                raise SystemExit(f"a push that was not killed failed: {status}")


if __name__ == "__main__":
    main(sys.argv[1], [Path(store) for store in sys.argv[2::2]], [int(number) for number in sys.argv[3::2]])
