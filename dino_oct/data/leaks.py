"""What train scans give away of the scans that a model is judged on: patients, copies, near-duplicates."""

from dataclasses import dataclass

import numpy as np

from dino_oct.data.cache import ScanCache
from dino_oct.data.duplicates import exact_groups, near_pairs, people_of
from dino_oct.data.index import ScanIndex
from dino_oct.words import counted

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Leak:
    """Scans that are judged on and that the train scans know.

    Attributes:
        of_people: positions of judged scans whose patient (or volume, where the patient is not known) has train scans.
        exact: (judged, train) positions of scans that are equal to the pixel, one for each judged scan.
        near: the same of near-duplicates of different patients.
    """

    of_people: tuple[int, ...]
    exact: Pairs
    near: Pairs

    @property
    def scans(self) -> int:
        """Judged scans that leak in any way."""
        return len({*self.of_people, *(i for i, _ in self.exact), *(i for i, _ in self.near)})


def find_leak(index: ScanIndex, cache: ScanCache, train: np.ndarray, judged: np.ndarray, has_near: bool = True) -> Leak:
    """What train scans share with scans that are judged on.

    Args:
        train, judged: positions; no scan is in both.
        has_near: also seek near-duplicates (``near_pairs``: once for each cache).
    """
    people, trains, judges = people_of(index), set(train.tolist()), set(judged.tolist())
    shared = judged[np.isin(people[judged], people[train])]
    exact: dict[int, int] = {}
    for group in exact_groups(cache):
        of_train = next((i for i in group if i in trains), None)
        if of_train is not None:
            exact.update((i, of_train) for i in group if i in judges)
    near: dict[int, int] = {}
    for i, j, _ in near_pairs(cache, people, progress=True) if has_near else ():
        for one, other in ((i, j), (j, i)):
            if one in judges and other in trains:
                near.setdefault(one, other)
    return Leak(tuple(shared.tolist()), tuple(sorted(exact.items())), tuple(sorted(near.items())))


def describe_leak(leak: Leak, index: ScanIndex, judged: np.ndarray, split: str) -> list[str]:
    """The leak in one line; none where nothing leaks."""
    if not leak.scans:
        return []
    parts = []
    if leak.of_people:
        names = sorted({people_of(index)[i] for i in leak.of_people})
        scans, patients = counted(len(leak.of_people), "scan"), counted(len(names), "patient")
        parts.append(f"{scans} of {patients} in both (e.g. {names[0]})")
    for pairs, words in (
        (leak.exact, counted(len(leak.exact), "exact copy", "exact copies")),
        (leak.near, counted(len(leak.near), "near-duplicate") + " of another patient"),
    ):
        if pairs:
            parts.append(f"{words} (e.g. {' = '.join(index.files[i] for i in pairs[0])})")
    cure = "dino-oct audit --fix FILE writes a table without" if leak.exact or leak.near else ""
    return [
        f"leak: {leak.scans:,} of {len(judged):,} {split} scans are known from train scans, which flatters the result: "
        f"{', '.join(parts)}; {cure or 'use --dataset.split patient'}"
    ]
