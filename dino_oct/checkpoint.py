"""Checkpoints of a run: written whole or not at all, and found again."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from dino_oct.errors import InputError
from dino_oct.models import official


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

    def save(self, state: dict[str, Any], keep: bool = False, best: bool = False) -> None:
        """Replace ``last.pt`` by ``state``, and keep it as ``step_N.pt`` or as the best too if asked.

        Written beside, flushed to disk, then renamed: a reader or a crash never meets half a checkpoint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.last.with_name("last.pt.partial")
        with open(partial, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        # The copies first: last.pt already says that the best was found, so it must not appear before the best.
        if keep:
            _copy(partial, self.folder / f"step_{state['step']:07d}.pt")
        if best:
            _copy(partial, self.best)
        os.replace(partial, self.last)


def _copy(source: Path, target: Path) -> None:
    """Give the file a second name, at once or not at all; a hard link costs no space, a copy serves elsewhere."""
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    os.replace(partial, target)


def read_training_state(file: Path, needed: set[str]) -> dict[str, Any]:
    """Read a checkpoint of a run, with everything that resuming needs.

    Args:
        needed: keys that the trainer's states have.

    Raises:
        InputError: unreadable, or not from a run of this trainer (an official file is a start, not a resume).
    """
    state = official.read_checkpoint(file)
    if not needed <= state.keys():
        raise InputError(f"{file}: not a checkpoint of such a run; to start from its weights give it as --init")
    return state


def trim_metrics(file: Path, step: int) -> None:
    """Drop lines of ``metrics.jsonl`` past ``step``, and a last line cut short: the run will write them again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break
    partial = file.with_name(file.name + ".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    os.replace(partial, file)
