"""What may end a command before its end: wrong input, or a signal."""

import signal
from types import FrameType


class InputError(Exception):
    """Wrong use or wrong input. The message is one line: what is wrong, and what to do about it."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # a name in it may have several


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; ``number`` says which."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Handler of a signal that may end the command anywhere."""
    raise Interrupted(number)
