"""95 % intervals by patient, for numbers measured on several scans of each patient.

Scans of one patient resemble each other, so an interval over scans would be too narrow: patients are drawn with
replacement and bring all their scans (cluster bootstrap, Davison & Hinkley 1997, section 3.8). The resamples give the
standard error; the interval is point ± t × error on a scale without bounds (logit, Fisher's z, logarithm; Efron &
Tibshirani 1993, chapter 12), with the degrees of freedom of the patients (Satterthwaite 1946). Percentiles of the
resamples are too narrow with few patients. tests/evaluation/test_coverage.py measures how often the truth is inside.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from scipy.special import stdtr, stdtrit

from dino_oct.errors import InputError
from dino_oct.streams import generator

LEVEL = 0.95
FEW_PATIENTS = 10  # the intervals of fewer patients are so wide that a reader is told
NO_SPREAD = "all patients agree, so that the spread is unknown"
_BLOCK = 2_000_000  # entries of a block of weights: bounds the memory
_ROUNDING = 1e-9  # of the range of a statistic: a standard error below is rounding
_TAIL = (1 - LEVEL) / 2


class Scale(Enum):
    """The values that a statistic can take: lowest, highest, and whether it counts scans (right or wrong).

    A count of few wrong scans rests on few patients, more of whom another sample may hold: its variance is taken one
    patient's larger.
    """

    PERCENT = (0.0, 100.0, True)  # accuracy, recall, AUROC, purity
    SHARE = (0.0, 1.0, True)  # the same as a share of 1
    SCORE = (0.0, 1.0, False)  # mean of a score of each scan, as of a map's
    CORRELATION = (-1.0, 1.0, False)  # also silhouettes
    RATIO = (0.0, math.inf, False)
    DIFFERENCE = (-math.inf, math.inf, False)


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; ``low`` and ``high`` are None where there is none, for a reason."""

    point: float
    low: float | None = None
    high: float | None = None
    reason: str = field(default="", compare=False)

    def words(self, digits: int = 1, signed: bool = False, unit: str = "") -> str:
        """As ``81.2 [76.0, 85.9]``; a dash where it is undefined."""
        if not math.isfinite(self.point):
            return "–"
        form = f"{'+' if signed else ''}.{digits}f"
        ends = "" if self.low is None or self.high is None else f" [{self.low:{form}}, {self.high:{form}}]"
        return f"{self.point:{form}}{unit}{ends}"

    def times(self, factor: float) -> "Interval":
        """In another unit, or turned around."""
        ends = [None if end is None else factor * end for end in (self.low, self.high)]
        return Interval(factor * self.point, *(ends if factor > 0 else ends[::-1]), self.reason)

    def plus(self, amount: float) -> "Interval":
        """Moved by an amount."""
        ends = [None if end is None else end + amount for end in (self.low, self.high)]
        return Interval(self.point + amount, *ends, self.reason)

    def is_above(self, value: float) -> bool:
        """Whether the whole interval lies above ``value``."""
        return self.low is not None and self.low > value

    def is_below(self, value: float) -> bool:
        """Whether the whole interval lies below ``value``."""
        return self.high is not None and self.high < value


@dataclass(frozen=True)
class Support:
    """The patients that a statistic rests on, in numbers of patients with equally many scans: (Σn)² / Σn².

    Attributes:
        counted: patients, as they are.
        patients: effective number; fewest: of the class that has the fewest.
        df: degrees of freedom of a mean over the classes, each with its own patients.
        variance: of that mean, relative to that of one patient.
    """

    counted: int
    patients: float
    fewest: float
    df: float
    variance: float

    @classmethod
    def of_mean(cls, supports: Sequence["Support"]) -> "Support":
        """Of the mean of several statistics of the same patients, each as far as it rests on fewer.

        They may vary together, so the degrees of freedom do not add up: theirs are averaged, inverse, each by its share
        of the variance.
        """
        variances = np.array([support.variance for support in supports])
        with np.errstate(divide="ignore"):
            df = variances.sum() / (variances / np.array([support.df for support in supports])).sum()
        least = (min(getattr(support, name) for support in supports) for name in ("counted", "patients", "fewest"))
        return cls(*least, float(df), float(variances.mean()))


class PatientBootstrap:
    """Resamples of patients, the same for every statistic, so that differences are paired.

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
        self._everyone = self.support(np.zeros(len(self._patient_of_scan), dtype=int))

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

    def support(self, classes: np.ndarray) -> Support:
        """What a mean over classes rests on.

        Args:
            classes: (N,) class of each scan; scans of a negative one do not count.
        """
        counted = classes >= 0
        scans = np.zeros((int(classes.max(initial=-1)) + 1, self.n_patients))
        np.add.at(scans, (classes[counted], self._patient_of_scan[counted]), 1)
        everyone, scans = scans.sum(axis=0), scans[scans.sum(axis=1) > 0]
        if not len(scans):
            return Support(0, 0, 0, 0, 0)
        of_class = _effective(scans)
        variance = 1 / of_class  # of each class's mean, if patients vary alike in all of them
        with np.errstate(divide="ignore"):
            df = variance.sum() ** 2 / (variance**2 / np.maximum(of_class - 1, 0)).sum()
        return Support(
            int((everyone > 0).sum()),
            float(_effective(everyone)),
            float(of_class.min()),
            float(df),
            float(variance.sum()),
        )

    def interval(self, values: np.ndarray, scale: Scale, support: Support | None = None) -> Interval:
        """Point and interval of one statistic.

        Where no resample differs there is no standard error. At a bound (all scans right, say) the interval is then
        exact for patients that are right or wrong as a whole (Clopper & Pearson 1934); elsewhere there is none.
        Resamples in which the statistic is undefined are left out.

        Args:
            values: (1 + resamples,) from ``values``.
            support: what the statistic rests on; unset: all scans alike.

        Returns:
            No interval without resamples, and, with the reason, for fewer than two patients in effect or no spread.
        """
        point, support = float(values[0]), support or self._everyone
        low, high, _ = scale.value
        if self.resamples == 0 or not math.isfinite(point):
            return Interval(point)
        if support.df < 1:
            return Interval(point, reason=_too_few(support))
        if np.isfinite(values[1:]).sum() < 2:
            return Interval(point, reason="fewer than two resamples have this number")
        error, df = self._error(values, support), self._df(values, support)
        span = high - low if math.isfinite(high - low) else max(abs(point), 1.0)
        if not error > _ROUNDING * span:
            return _at_bound(point, scale, support)
        if scale.value[2]:
            share = (point - low) / span
            error = math.hypot(error, span * math.sqrt(max(share * (1 - share), 0)) / support.patients)
        return _around(point, error * stdtrit(df, 1 - _TAIL), scale)

    def mean(self, values: np.ndarray, scale: Scale) -> Interval:
        """Mean over scans of ``values`` (N,), NaN left out."""
        support = self.support(np.where(np.isfinite(values), 0, -1))
        return self.interval(self.values(lambda weights: weighted_mean(weights, values)), scale, support)

    def p_value(self, differences: np.ndarray, support: Support | None = None) -> float:
        """Two-sided p value of a paired difference against 0: below 0.05 where the interval leaves 0 out.

        Counting resamples beyond 0 instead gives nothing below 1 / resamples, which a correction for many tests needs.

        Args:
            differences: (1 + resamples,) from ``values``.

        Returns:
            NaN where there is no interval.
        """
        interval = self.interval(differences, Scale.DIFFERENCE, support)
        if interval.low is None:
            return math.nan
        support = support or self._everyone
        size = abs(interval.point) / self._error(differences, support)
        return float(2 * stdtr(self._df(differences, support), -size))

    def _error(self, values: np.ndarray, support: Support) -> float:
        """Standard error; resamples of n patients vary by n − 1 of n parts of it."""
        drawn = values[1:][np.isfinite(values[1:])]
        return float(drawn.std(ddof=1)) * math.sqrt(support.counted / (support.counted - 1))

    @staticmethod
    def _df(values: np.ndarray, support: Support) -> float:
        """Of the standard error: of so many patients, and measured on so many resamples."""
        drawn = int(np.isfinite(values[1:]).sum())
        return 1 / (1 / support.df + 1 / (drawn - 1))

    def patients_of(self, scans: np.ndarray) -> int:
        """Patients of the scans marked in ``scans`` (N,) bool."""
        return len(np.unique(self._patient_of_scan[scans]))

    def notes(self) -> list[str]:
        """What a reader must know about these intervals."""
        if self.n_patients < 2:
            return ["one patient only: no interval can be given"]
        if self.n_patients < FEW_PATIENTS:
            return [f"{self.n_patients} patients are few: the intervals are wide"]
        return []


def _effective(scans: np.ndarray) -> np.ndarray:
    """Number of patients with equally many scans that tell as much, from the scans (..., P) of each patient."""
    return scans.sum(axis=-1) ** 2 / (scans**2).sum(axis=-1)


def _too_few(support: Support) -> str:
    if support.counted < 2 or support.fewest <= 1:
        return "all scans, or all scans of a class, are of one patient"
    return "nearly all scans, or nearly all scans of a class, are of one patient"


def _at_bound(point: float, scale: Scale, support: Support) -> Interval:
    """The interval of a statistic that no resample changes."""
    low, high, _ = scale.value
    if not math.isfinite(high - low):
        return Interval(point, reason=NO_SPREAD)
    near = _ROUNDING * (high - low)
    reach = (high - low) * (1 - _TAIL ** (1 / support.fewest))
    if point >= high - near:
        return Interval(point, min(high - reach, point), high)
    if point <= low + near:
        return Interval(point, low, max(low + reach, point))
    return Interval(point, reason=NO_SPREAD)


def _around(point: float, reach: float, scale: Scale) -> Interval:
    """``point`` ± ``reach`` on the scale without bounds that belongs to ``scale``: the reach is carried over by the
    derivative at the point, and the ends are carried back."""
    low, high, _ = scale.value
    if scale is Scale.DIFFERENCE:
        return Interval(point, point - reach, point + reach)
    if scale is Scale.RATIO:
        factor = math.exp(min(reach / point, 700.0))
        return Interval(point, point / factor, point * factor)
    share, width = (point - low) / (high - low), reach / (high - low)
    if not 0 < share < 1:  # rounding beyond a bound
        return Interval(point, max(low, point - reach), min(high, point + reach))
    odds, factor = share / (1 - share), math.exp(min(width / (share * (1 - share)), 700.0))
    ends = [odds / factor, odds * factor]
    below, above = (low + (high - low) * end / (1 + end) for end in ends)
    return Interval(point, min(below, point), max(above, point))


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
