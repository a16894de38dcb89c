"""Signals that ask a run to stop: at once while there is nothing to save, later where nothing is lost."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch

from dino_oct import processes
from dino_oct.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: SLURM's warning before a time limit


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Signals end the process as the system does, without Python: a library that waits in its own code hears no other.

    For what comes before anything can be saved.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signal.SIG_DFL) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(Exception):  # noqa: N818
    """A run ends here because a signal asked for it; the state before this moment is whole."""


class StopSignal:
    """Remembers a request to stop until the run asks. A context: the handlers before it come back at its end.

    Until the run asks for the first time there is nothing to save, and a signal ends it at once; so does a second
    Ctrl-C. Outside the main thread, where Python takes no signals, it stays silent.

    Attributes:
        received: whether this process got a signal.
    """

    def __init__(self):
        self.received = self._can_save = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            # A process that waits for the main one, inside a library, would hear of the signal too late.
            waits = os.environ.get("RANK", "0") != "0"
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, signal.SIG_DFL if waits else self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if not self._can_save or (number == signal.SIGINT and self.received):
            raise Interrupted(number)
        self.received = True

    def is_requested(self, device: torch.device) -> bool:
        """Whether any process got a signal; the same answer on all, which must all ask."""
        if not self._can_save:
            self._can_save = True
            for number in self._before:
                signal.signal(number, self._receive)
        if processes.count() == 1:
            return self.received
        return bool(processes.total(torch.tensor(float(self.received), device=device)) > 0)

    def check(self, device: torch.device) -> None:
        """Raise Stopped on every process if any got a signal."""
        if self.is_requested(device):
            raise Stopped

    def end_at_once(self) -> None:
        """From here on a signal ends the command at once: everything is saved."""
        self._can_save = False
