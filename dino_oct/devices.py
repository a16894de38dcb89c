"""The device that networks compute on: what ``--device`` names, else a GPU where there is one."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from dino_oct.errors import InputError

if TYPE_CHECKING:  # torch is not imported before a command begins to work
    import torch

_CHOSEN: ContextVar[str] = ContextVar("device", default="auto")


@contextlib.contextmanager
def on_device(name: str) -> Iterator[None]:
    """Everything inside, of this thread, computes on the device of this name; auto: on what it would without.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
    """
    token = _CHOSEN.set(name if name != "auto" else _CHOSEN.get())
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def default_device() -> "torch.device":
    """The device that was chosen; else the first GPU, Apple's included, else the CPU.

    Raises:
        InputError: the chosen device is not there.
    """
    import torch

    name, gpus = _CHOSEN.get(), torch.cuda.device_count()
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if gpus else "mps" if has_mps else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        found = f"{gpus} NVIDIA GPU{'s' * (gpus != 1)}" if gpus else "no NVIDIA GPU that torch can use"
        raise InputError(f"--device {name}: this machine has {found}")
    if device.type == "mps" and not has_mps:
        raise InputError("--device mps: torch finds no Apple GPU here")
    return device
