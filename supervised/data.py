"""Labelled training scans, every class as often as any other if wanted."""

import numpy as np

from dino_oct.data.cache import ScanCache
from dino_oct.data.index import ScanIndex
from dino_oct.data.sampler import TrainingScans
from dino_oct.errors import InputError
from dino_oct.scores.multilabel import unlearned
from dino_oct.streams import generator


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many scans as there are, each class equally often: (N,) positions, classes in turns.

    Within a class every scan comes once before any comes again. Keyed by (seed, epoch) alone.
    """
    classes = np.unique(labels)
    order = np.empty(len(labels), dtype=np.int64)
    for turn, c in enumerate(classes):
        members, wanted = np.flatnonzero(labels == c), len(range(turn, len(labels), len(classes)))
        rng = generator("order of balanced classes", seed, epoch, int(c))
        rounds = [rng.permutation(members) for _ in range(-(-wanted // len(members)))]
        order[turn :: len(classes)] = np.concatenate(rounds)[:wanted]
    return order


class LabelledScans(TrainingScans):
    """Training scans with their classes or labels, asked for as (epoch, slot); see ``TrainingScans``.

    A slot, not a scan, keys the view: where a scan of a rare class comes again in an epoch, it looks different.

    Args:
        labels: (N,) classes of the scans at ``positions``; or (N, L) several labels: 1, 0, or negative if not known.
        balanced: fill the slots class by class in turns; otherwise slot and scan are the same.
    """

    def __init__(self, scans: ScanCache, positions: np.ndarray, labels: np.ndarray, seed: int, balanced: bool):
        super().__init__(scans, positions)
        self.labels, self.seed, self.balanced = labels, seed, balanced
        self._epoch, self._order = -1, np.arange(len(positions))

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int, int, int | list[int]]:
        """(pixels (H, W) uint8, tissue map, slot, epoch, class or labels)."""
        epoch, slot = key
        if self.balanced and epoch != self._epoch:
            self._epoch, self._order = epoch, balanced_order(self.labels, self.seed, epoch)
        sample = int(self._order[slot])
        pixels, tissue, _, _ = super().__getitem__((epoch, sample))
        return pixels, tissue, slot, epoch, self.labels[sample].tolist()


def labelled(index: ScanIndex, split: str) -> np.ndarray:
    """Positions of the labelled scans of a split; of several labels any is known."""
    positions = index.positions(split)
    return positions[index.is_labelled[positions]]


def check_labels(index: ScanIndex) -> None:
    """Raise InputError unless some labels can be learned and one of them can validate."""
    values, names = index.multilabel_matrix(), list(index.multilabels)
    reasons = unlearned(values[index.positions("train")], names)
    if len(reasons) == len(names):
        raise InputError(f"{index.root}: no label can be learned: {names[0]}: {reasons[names[0]]}")
    of_val = unlearned(values[index.positions("val")], names)
    if all(name in of_val for name in names if name not in reasons):
        raise InputError(
            f"{index.root}: no label that can be learned has validation scans with it and without it, which choose the "
            "weights; use --dataset.split patient or a larger --dataset.val-fraction"
        )


def check_classes(index: ScanIndex) -> None:
    """Raise InputError unless there are two classes or more, every one has training scans, and some validate."""
    names = index.class_names
    if len(names) < 2:
        classes = f"only '{names[0]}'" if names else "none"
        raise InputError(f"{index.root}: needs at least two classes, found {classes}")
    counts = {
        split: np.bincount(index.labels[labelled(index, split)], minlength=len(names))
        for split in ("train", "val", "test")
    }
    for c, name in enumerate(names):
        if not counts["train"][c]:
            elsewhere = ", ".join(f"{counts[split][c]} in {split}" for split in ("val", "test"))
            raise InputError(
                f"{index.root}: class {name} has no training scans ({elsewhere}); classes are {', '.join(names)}: name "
                "the folders alike in every split, or use --dataset.split patient"
            )
    if not counts["val"].sum():
        raise InputError(
            f"{index.root}: no labelled validation scans, which choose the weights; use --dataset.split patient or a "
            "larger --dataset.val-fraction"
        )
