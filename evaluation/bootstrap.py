"""Patient bootstrap: 95 % intervals for numbers measured on several scans of each patient.

Scans of one patient resemble each other, so an interval over scans would be too narrow: patients are drawn with
replacement and bring all their scans (cluster bootstrap, Davison & Hinkley 1997, section 3.8; percentile intervals).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from dino_oct.errors import InputError
from dino_oct.streams import generator

LEVEL = 95.0
FEW_PATIENTS = 10  # percentile intervals over fewer patients are known to be too narrow
_BLOCK = 2_000_000  # entries of a block of weights: bounds the memory


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; ``low`` and ``high`` are None where no interval can be given."""

    point: float
    low: float | None = None
    high: float | None = None

    def is_above(self, value: float) -> bool:
        """Whether the whole interval lies above ``value``."""
        return self.low is not None and self.low > value

    def is_below(self, value: float) -> bool:
        """Whether the whole interval lies below ``value``."""
        return self.high is not None and self.high < value


class PatientBootstrap:
    """Resamples of patients, the same for every statistic, so that differences are paired.

    Percentile intervals have no width where no resample differs (all scans right, say): that is no certainty.

    Args:
        patients: (N,) patient of each scan.
        resamples: number of resamples; 0 gives points without intervals.
        seed: of the resamples; they depend on it, on ``patients`` and on nothing else.

    Raises:
        InputError: no scan, or a negative number of resamples or seed.
    """

    def __init__(self, patients: np.ndarray, resamples: int = 1000, seed: int = 0):
        if resamples < 0 or seed < 0:
            raise InputError(f"bootstrap {resamples} and seed {seed}: give numbers from 0")
        if len(patients) == 0:
            raise InputError("no scans to bootstrap")
        names, self._patient_of_scan = np.unique(patients, return_inverse=True)
        self.n_patients, self.resamples, self.seed = len(names), resamples, seed
        rng = generator("bootstrap", seed)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        # Row 0 takes every patient once: the plain estimate comes out of the same code as its resamples.
        self._counts = np.concatenate([np.ones((1, len(names))), drawn])

    def values(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """A statistic of the scans as they are (row 0) and of every resample.

        Args:
            statistic: from weights (R, N), how often each scan counts, to values (R, ...); NaN where undefined.

        Returns:
            (1 + resamples, ...).
        """
        block = max(_BLOCK // len(self._patient_of_scan), 1)
        starts = range(0, len(self._counts), block)
        return np.concatenate([statistic(self._counts[i : i + block][:, self._patient_of_scan]) for i in starts])

    def interval(self, values: np.ndarray) -> Interval:
        """Point and percentile interval of one statistic's ``values`` (1 + resamples,).

        Resamples in which the statistic is undefined are left out. There is no interval with fewer than two patients.
        """
        point, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
        if self.n_patients < 2 or not len(drawn) or not np.isfinite(point):
            return Interval(point)
        low, high = np.percentile(drawn, [50 - LEVEL / 2, 50 + LEVEL / 2])
        return Interval(point, float(low), float(high))

    def mean(self, values: np.ndarray) -> Interval:
        """Mean over scans of ``values`` (N,), NaN left out."""
        return self.interval(self.values(lambda weights: weighted_mean(weights, values)))

    def patients_of(self, scans: np.ndarray) -> int:
        """Patients of the scans marked in ``scans`` (N,) bool."""
        return len(np.unique(self._patient_of_scan[scans]))

    def notes(self) -> list[str]:
        """What a reader must know about these intervals."""
        if self.n_patients < 2:
            return ["one patient only: no interval can be given"]
        if self.n_patients < FEW_PATIENTS:
            return [f"{self.n_patients} patients are few: the intervals are rough, and rather too narrow"]
        return []


def weighted_mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means over scans for each row of weights, NaN left out.

    Args:
        weights: (R, N); values: (N, ...).

    Returns:
        (R, ...); NaN where no value is left.
    """
    known = np.isfinite(values)
    flat = np.where(known, values, 0.0).reshape(len(values), -1)
    count = weights @ known.reshape(len(values), -1).astype(float)
    with np.errstate(invalid="ignore"):
        return ((weights @ flat) / np.where(count > 0, count, np.nan)).reshape(len(weights), *values.shape[1:])


def paired_p_value(differences: np.ndarray, n_patients: int) -> float:
    """Two-sided p value of a paired difference against 0, from its patient-bootstrap standard error.

    The difference over its standard error is referred to a t distribution of n_patients − 1 degrees of freedom.
    Counting resamples beyond 0 instead gives nothing below 1 / resamples, which a correction for many tests needs.

    Args:
        differences: (1 + resamples,) from ``PatientBootstrap.values``.

    Returns:
        NaN where it is undefined: fewer than two patients or resamples.
    """
    point, drawn = differences[0], differences[1:][np.isfinite(differences[1:])]
    if n_patients < 2 or len(drawn) < 2 or not np.isfinite(point):
        return float("nan")
    error = drawn.std(ddof=1)
    if error == 0:
        return 1.0 if point == 0 else 0.0
    return float(2 * student_t.sf(abs(point) / error, n_patients - 1))
