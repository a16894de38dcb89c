"""How well numbers are predicted: R², Spearman's rank correlation, mean absolute error, with intervals by patient."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import rankdata

from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale


@dataclass(frozen=True)
class Regression:
    """Predictions of one number.

    Attributes:
        r2: 1 − squared error over that of the test scans' own mean; 1 is exact, 0 or less no better than that mean.
        spearman: rank correlation, −1 to 1; error: mean absolute error, in the number's unit.
    """

    r2: Interval
    spearman: Interval
    error: Interval


@dataclass(frozen=True)
class Target:
    """A number on some scans.

    Attributes:
        scans, patients: of which it is known.
        error: mean absolute error of always naming the training scans' median; NaN where that is not known.
        undefined: why it has no scores; empty where it has.
    """

    scans: int
    patients: int
    error: float
    undefined: str = ""


def score_numbers(weights: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Share of variance left unexplained, rank correlation and mean absolute error for each row of weights.

    Args:
        weights: (R, N); truth, predicted: (N,).

    Returns:
        (R, 3); the first, 1 − R², and the second NaN where the truth does not vary.
    """
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = weights @ truth / total
        # Σ w (y − ȳ)², in a form that does not cancel: y is centred on its overall mean first.
        centred = truth - truth.mean()
        spread = weights @ centred**2 - total * (mean - truth.mean()) ** 2
        spread = np.where(spread > 1e-12 * total * max(np.abs(truth).max(), 1e-150) ** 2, spread, np.nan)
        left = weights @ (truth - predicted) ** 2 / spread
        error = weights @ np.abs(truth - predicted) / total
        return np.stack([left, rank_correlation(weights, truth, predicted), error], axis=1)


def rank_correlation(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation for each row of weights (R, N): Pearson's of the ranks among all scans, weighted.

    Returns:
        (R,); NaN where either does not vary.
    """
    x, y = (rankdata(values, method="average") for values in (a, b))
    total = weights.sum(axis=1, keepdims=True)
    x, y = (ranks - weights @ ranks[:, None] / total for ranks in (x, y))  # (R, N)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1))
        return np.where(spread > 1e-9, (weights * x * y).sum(axis=1) / spread, np.nan)


def compare_numbers(
    predicted: dict[str, np.ndarray], truth: np.ndarray, patients: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> tuple[dict[str, Regression], dict[str, Regression]]:
    """Scores of several predictions of the same scans, and differences of the first to each other one.

    The interval of R² is that of 1 − R², a ratio of two sums of squares, on the scale of the logarithm.

    Args:
        predicted: row → (M,); truth: (M,), known; patients: (M,).
    """
    resampled = PatientBootstrap(patients, bootstrap, seed)
    values = {row: resampled.values(partial(score_numbers, truth=truth, predicted=p)) for row, p in predicted.items()}
    rows = {}
    for row, of_row in values.items():
        left = resampled.interval(of_row[:, 0], Scale.RATIO).times(-1)
        rows[row] = Regression(
            left.plus(1),
            resampled.interval(of_row[:, 1], Scale.CORRELATION),
            resampled.interval(of_row[:, 2], Scale.RATIO),
        )
    first, *others = values
    signs = np.array([-1, 1, 1])  # 1 − R² falls where R² rises
    differences = {
        f"{first} − {other}": Regression(
            *(resampled.interval(column, Scale.DIFFERENCE) for column in (signs * (values[first] - values[other])).T)
        )
        for other in others
    }
    return rows, differences
