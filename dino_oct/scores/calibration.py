"""Probabilities that mean what they say, and sets of classes that hold the truth as often as stated."""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_RANGE = (0.05, 20.0)  # of temperatures


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T > 0 for which softmax(logits / T) has the least log-loss (Guo et al. 2017, section 4.2).

    Args:
        logits: (N, C); labels: (N,) classes.
    """

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=tuple(map(math.log, _RANGE)), method="bounded")
    return math.exp(found.x)


def conformal_limit(scores: np.ndarray, patients: np.ndarray, coverage: float) -> float:
    """The limit that the score of a new patient's scan does not exceed with probability ``coverage`` at least.

    Scans of a patient are alike, patients are drawn independently: each patient counts once, whatever the number of
    scans, and one more patient counts as infinitely far (hierarchical conformal prediction, Lee, Barber and Willett
    2023, section 3.2).

    Args:
        scores: (N,), the larger, the less the true class fits; patients: (N,) whose scans they are.
        coverage: in (0, 1).

    Returns:
        Infinity where there are too few patients for this coverage.
    """
    _, of_scan, counts = np.unique(patients, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    weight = (1 / counts[of_scan][order]).cumsum() / (len(counts) + 1)
    enough = np.flatnonzero(weight >= coverage - 1e-12)
    return float(scores[order][enough[0]]) if len(enough) else math.inf


def class_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 − the probability (N, C) of the true class (N,): the score of sets (Sadinle, Lei and Wasserman 2019)."""
    return 1 - probabilities[np.arange(len(labels)), labels]


def prediction_sets(probabilities: np.ndarray, limit: float) -> np.ndarray:
    """The classes (N, C) bool whose score does not exceed a limit of ``conformal_limit``.

    A set may be empty: no class fits a scan as well as its own class fits most scans.
    """
    return 1 - probabilities <= limit
