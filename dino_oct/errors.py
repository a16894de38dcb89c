"""The one exception that means: the user gave something wrong."""


class InputError(Exception):
    """Wrong use or wrong input. The message is one line: what is wrong, and what to do about it."""
