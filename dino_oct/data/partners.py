"""Positive pairs from anatomy: another scan of the same place, eye or patient for the second global view."""

from collections import defaultdict

import numpy as np

from dino_oct.data.index import ScanIndex, is_own_patient
from dino_oct.errors import InputError
from dino_oct.streams import generator

_GROUPS = {
    "slice": ("eye", "visit", "volume"),
    "visit": ("eye",),
    "eye": ("eye",),
    "patient": (),
}


class Partners:
    """Which scans may be a scan's partner, and which is, in an epoch.

    - slice: of the same volume, up to ``distance`` slices away;
    - visit: of the same eye at another visit, up to ``distance`` slices away from the same slice;
    - eye: any other scan of the same eye; patient: of the same patient.

    A scan without one is its own. Temporal and spatial neighbours as positives: Azizi et al. 2021, arXiv 2101.05224
    (several images of a patient); Feichtenhofer et al. 2021, arXiv 2104.14558 (frames of a video).
    """

    def __init__(self, index: ScanIndex, positions: np.ndarray, pair: str, distance: int, seed: int):
        """Partners among the scans ``positions`` of an index; ``pair`` is one of ``config.Pair`` but none.

        Raises:
            InputError: no scan has one.
        """
        self._pair, self._distance, self._seed = pair, distance, seed
        slices = index.fact("slice")[positions]
        self._slices = np.array([int(number) if number else -1 for number in slices.tolist()])
        self._visits = index.fact("visit")[positions]
        facts = [index.fact(name)[positions].tolist() for name in _GROUPS[pair]]
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        unknown = is_own_patient(index)[positions] & (index.fact("volume")[positions] == "")
        keys = list(zip(index.patients[positions].tolist(), *facts, strict=True))
        for sample, key in enumerate(keys):
            if not unknown[sample]:
                groups[key].append(sample)
        self._groups = {key: np.array(samples) for key, samples in groups.items() if len(samples) > 1}
        self._keys = keys
        self.count = sum(len(self._of(sample)) > 0 for sample in range(len(positions)))
        if not self.count:
            needs = {"slice": "slice and volume", "visit": "eye, visit and slice", "eye": "eye"}.get(pair, "patient")
            raise InputError(
                f"--augment.pair {pair}: no training scan has a partner; volumes, a table or --dataset.pattern must "
                f"say {needs} of the scans"
            )

    def _of(self, sample: int) -> np.ndarray:
        """The samples that may be a sample's partner."""
        group = self._groups.get(self._keys[sample], np.empty(0, dtype=int))
        if not len(group):
            return group
        others = group != sample
        if self._pair in ("slice", "visit"):
            away = np.abs(self._slices[group] - self._slices[sample])
            others &= (away <= self._distance) & (self._slices[group] >= 0) & (self._slices[sample] >= 0)
        if self._pair == "visit":
            others &= (self._visits[group] != self._visits[sample]) & (self._visits[group] != "")
        if self._pair == "eye" and not self._keys[sample][1]:
            return group[:0]  # which eye is not known
        return group[others]

    def partner(self, sample: int, epoch: int) -> int:
        """The partner of a sample in an epoch, or itself: a function of (seed, epoch, sample) alone."""
        candidates = self._of(sample)
        if not len(candidates):
            return sample
        return int(candidates[generator("partner", self._seed, epoch, sample).integers(len(candidates))])
