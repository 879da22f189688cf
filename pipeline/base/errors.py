"""The exception whose message is shown to the user as it is, and how other exceptions are quoted in it."""


class LeafError(Exception):
    """Bad input or a damaged file: the message names the place and says what to do about it."""


class FileMissingError(LeafError):
    """A remote file is not there."""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its class name if it has none; for use in a LeafError's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
