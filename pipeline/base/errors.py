"""The one exception whose message is meant for the person who ran the command."""


class LeafError(Exception):
    """Bad input or a damaged file: the message names the place and says what to do about it."""
