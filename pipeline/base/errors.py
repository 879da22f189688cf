"""The exception whose message is shown to the user as it is, and how other exceptions are quoted in it."""


class LeafError(Exception):
    """Bad input or a damaged file: the message names the place and says what to do about it."""


class NoAccessError(LeafError):
    """A file that this user may not read or write: nothing is wrong with it."""


class FileMissingError(LeafError):
    """A remote file is not there."""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its class name if it has none; for use in a LeafError's message.

    A line that ends in a colon only announces what went wrong, so the next one is added.
    """
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
