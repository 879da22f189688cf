"""What is going on, for whoever waits: work that takes a while and has no pieces that could be counted."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def under_way(what: str, *, shown: bool = True) -> Iterator[None]:
    """Show `what` as a progress bar without a count: a line at the beginning, with the time that it took at the end."""
    with tqdm(desc=what, bar_format="{desc} [{elapsed}]", disable=not shown):
        yield
