"""The one exception whose message is meant for the person who ran the command; how other errors are quoted in it."""


class LeafError(Exception):
    """Bad input or a damaged file: the message names the place and says what to do about it."""


def first_line(error: BaseException) -> str:
    """The first line of what a library's exception says, or its class where it says nothing: for a LeafError."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
