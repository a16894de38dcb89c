"""Checkpoints of a run: written whole or not at all, and found again."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from dino_oct.errors import InputError
from dino_oct.files import check_regular, replacing, write_whole
from dino_oct.models import official
from dino_oct.models.description import check_description


class Checkpoints:
    """The ``checkpoints/`` folder of a run: ``last.pt``, the best one and ``step_N.pt``.

    A state holds ``step`` (optimiser steps done) and ``hub_config`` (to rebuild the network) beside what its trainer
    needs; those of pretraining are in the official full format.

    Args:
        best: file name of the best checkpoint, which says by what it is the best.
    """

    def __init__(self, run: str | Path, best: str = "best.pt"):
        self.folder = Path(run) / "checkpoints"
        self.last = self.folder / "last.pt"
        self.best = self.folder / best

    def all(self) -> list[Path]:
        """Every checkpoint in the folder, the newest last."""
        files = [path for path in self.folder.glob("*.pt") if os.path.lexists(path)]
        return sorted(files, key=lambda path: path.lstat().st_mtime)

    def save(self, state: dict[str, Any], keep: bool = False, best: bool = False) -> None:
        """Replace ``last.pt`` by ``state``, and keep it as ``step_N.pt`` or as the best too if asked.

        Written beside, flushed to disk, then renamed: a reader or a crash never meets half a checkpoint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.last) as partial:
            with partial.open("wb") as stream:
                torch.save(state, stream)
            # The copies first: last.pt already says that the best was found, so it must not appear before the best.
            if keep:
                _copy(partial, self.folder / f"step_{state['step']:07d}.pt")
            if best:
                _copy(partial, self.best)


def _copy(source: Path, target: Path) -> None:
    """Give the file a second name, at once or not at all; a hard link costs no space, a copy serves elsewhere."""
    with replacing(target) as partial:
        partial.unlink()
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def read_training_state(file: Path, needed: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Read a checkpoint of a run, with everything that resuming needs.

    Args:
        needed: keys that the trainer's states have, ``hub_config`` among them, and of which types their values are.

    Returns:
        the state, with its own name as ``file``.

    Raises:
        InputError: unreadable, damaged, not finite, or not from a run of this trainer (an official file is a start, not
            a resume); the message names another checkpoint if there is one.
    """
    try:
        state = official.read_checkpoint(file)
        if not needed.keys() <= state.keys():
            missing = ", ".join(sorted(needed.keys() - state.keys()))
            raise InputError(
                f"{file}: not a checkpoint of such a run (it has no {missing}); to start from its weights give it as "
                "--init"
            )
        for name, kind in needed.items():
            if not isinstance(state[name], kind):
                raise InputError(f"{file}: damaged: {name} is a {type(state[name]).__name__}")
        _check_tensors(state, str(file))
        check_description(state["hub_config"], str(file))
    except InputError as error:
        raise InputError(f"{error}; {way_out(file)}") from None
    return {**state, "file": str(file)}


@contextlib.contextmanager
def restoring(file: Path | None) -> Iterator[None]:
    """Say of a checkpoint that it is damaged where a part of it, once read, is not what the trainer needs."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if file is None:
            raise
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{file}: damaged, or of another network: it cannot be gone on from ({type(error).__name__}: {reason}); "
            f"{way_out(file)}"
        ) from None


def check_numbers(values: Iterable[Any], finite: bool = True) -> None:
    """Raise TypeError if a value of a checkpoint is no number, ValueError if it is not finite and must be."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{value!r} is no number")
        if finite and not math.isfinite(value):
            raise ValueError(f"{value} is not finite")


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if an optimiser's restored state does not fit its parameters."""
    states = [(parameter, optimizer.state[parameter]) for parameter in optimizer.state]
    for parameter, state in states:
        shapes = {tuple(item.shape) for item in state.values() if isinstance(item, torch.Tensor)}
        if state.keys() != states[0][1].keys() or not shapes <= {tuple(parameter.shape), ()}:
            raise ValueError("the optimizer's state does not fit the network")


def way_out(file: Path) -> str:
    """What to do when a checkpoint cannot be gone on from: the newest other one beside it, or a new beginning."""
    others = [path for path in Checkpoints(file.parent.parent).all() if path.name != file.name and path.is_file()]
    return (f"--resume {others[-1]} goes on from an earlier one, " if others else "") + "--resume never starts anew"


def _check_tensors(state: Any, source: str, path: str = "") -> None:
    """Raise InputError if a tensor of a checkpoint holds a number that is not finite."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not state.isfinite().all():
            raise InputError(f"{source}: damaged, or of a run that diverged: {path} is not finite")
    elif isinstance(state, (dict, list, tuple)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            _check_tensors(value, source, f"{path}.{key}" if path else str(key))


def read_metrics(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a ``metrics.jsonl`` that are sound, in their order, and the number of others.

    A sound line is an object with a step and an epoch that are numbers from 0.

    Raises:
        InputError: missing, or no regular file.
    """
    try:
        lines = check_regular(file).read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    entries, n_damaged = [], 0
    for line in dict.fromkeys(filter(None, map(bytes.strip, lines))):  # no run writes the same line twice
        try:
            entry = json.loads(line.decode("utf-8-sig"))
            step, epoch = entry["step"], entry["epoch"]
            if type(step) is not int or not step >= 0 or isinstance(epoch, bool) or not 0 <= epoch < math.inf:
                raise ValueError
            entries.append(entry)
        except (ValueError, TypeError, KeyError, RecursionError):
            n_damaged += 1
    return entries, n_damaged


def trim_metrics(file: Path, step: int) -> int:
    """Drop lines of ``metrics.jsonl`` past ``step``, which the run will write again, and those that are damaged.

    Returns:
        the number of damaged lines; a last one cut short is none, as a killed run leaves it.

    Raises:
        InputError: no regular file is in its place.
        OSError: it cannot be written.
    """
    if not os.path.lexists(file):
        return 0
    lines, n_damaged = read_metrics(file)
    is_cut = bool(n_damaged) and not file.read_bytes().endswith(b"\n")
    write_whole(file, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))
    return n_damaged - is_cut
