"""Which scans a process sees at which step: a pure function of (seed, step), so a run can resume anywhere."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from dino_oct import processes
from dino_oct.errors import InputError
from dino_oct.streams import generator

if TYPE_CHECKING:
    from dino_oct.data.cache import ScanCache
    from dino_oct.data.partners import Partners


_PR_SET_PDEATHSIG = 1  # of prctl(2)


def steps_per_epoch(n_scans: int, batch_size: int) -> int:
    """Full batches in a pass over the scans.

    Raises:
        InputError: fewer scans than one batch.
    """
    if n_scans < batch_size:
        raise InputError(f"{n_scans} training scans are fewer than optim.batch_size {batch_size}; lower it")
    return n_scans // batch_size


def shares(batch_size: int, accumulate: int) -> int:
    """Scans per process and micro-batch.

    Raises:
        InputError: the batch cannot be divided equally.
    """
    parts = processes.count() * accumulate
    if batch_size % parts:
        raise InputError(
            f"optim.batch_size {batch_size} cannot be divided over {processes.count()} processes × {accumulate} "
            f"micro-batches; use a multiple of {parts}"
        )
    return batch_size // parts


def order(n_scans: int, seed: int, epoch: int) -> np.ndarray:
    """The scans' order in an epoch: a permutation keyed by (seed, epoch), the same on every process."""
    return generator("order of scans", seed, epoch).permutation(n_scans)


class StepSampler:
    """Batches of scan positions of this process, one per micro-batch, from any step on; for ``DataLoader``.

    Step s of an epoch takes rows s · batch_size … of the epoch's order; each micro-batch is cut equally over processes.

    Args:
        n_scans: scans in the training set.
        batch_size: per optimiser step, over all processes and micro-batches.
        first_step, last_step: range of optimiser steps, the last excluded.
    """

    def __init__(
        self, n_scans: int, batch_size: int, accumulate: int, seed: int, first_step: int, last_step: int, rank: int
    ):
        self.n_scans, self.batch_size, self.accumulate, self.seed, self.rank = (
            n_scans,
            batch_size,
            accumulate,
            seed,
            rank,
        )
        self.steps_per_epoch = steps_per_epoch(n_scans, batch_size)
        self.share = shares(batch_size, accumulate)
        self.steps = range(first_step, last_step)

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields lists of (epoch, position)."""
        epoch, epoch_order = -1, None
        for step in self.steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                epoch_order = order(self.n_scans, self.seed, epoch)
            start = step % self.steps_per_epoch * self.batch_size
            rows = epoch_order[start : start + self.batch_size].reshape(self.accumulate, -1, self.share)
            for micro in rows:
                yield [(epoch, int(position)) for position in micro[self.rank]]


class TrainingScans(Dataset):
    """Training scans as stored: the loader moves bytes, the device makes the views.

    Items are asked for as (epoch, sample) and given as arrays (pixels (H, W) uint8, tissue map, sample, epoch);
    ``sample`` is the position in the training set, which seeds the sample's views. Arrays, not tensors: a tensor from a
    loader process holds a file descriptor, and a large batch would run out of them. With partners, two more arrays
    follow: pixels and tissue map of the sample's partner.
    """

    def __init__(self, scans: "ScanCache", positions: np.ndarray, partners: "Partners | None" = None):
        self.scans, self.positions, self.partners = scans, positions, partners

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray | int, ...]:
        epoch, sample = key
        item = (*self._arrays(sample), sample, epoch)
        return item if self.partners is None else (*item, *self._arrays(self.partners.partner(sample, epoch)))

    def _arrays(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        position = self.positions[sample]
        # Copies: an item must not keep the whole memory map alive in the process it is sent to.
        return np.array(self.scans[position]), np.array(self.scans.tissue[position])


def belong_to_trainer(_worker: int) -> None:
    """For loader processes: signals to the whole group, of terminals and launchers, do not reach them, as the training
    process must still get its batches. It ends them itself; the system does where it was killed."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if sys.platform == "linux":  # PyTorch's own watch misses a loader that waits for room in the queue
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
