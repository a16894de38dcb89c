"""Classification metrics over weighted scans, vectorised over the resamples of a bootstrap."""

from dataclasses import dataclass

import numpy as np

NO_CALIBRATION_INTERVAL = "a calibration error is biased upwards, and more so in resamples"
METRICS = ("accuracy", "balanced_accuracy", "macro_auroc")
CALIBRATION_BINS = 15


def score_all(weights: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Accuracy, balanced accuracy and macro AUROC, in per cent, for each row of weights.

    Args:
        weights: (R, N), how often each scan counts.
        labels: (N,) classes; scores: (N, C), the prediction is the arg-max (ties: the lower class).

    Returns:
        (R, 3), columns ``METRICS``. Balanced accuracy and AUROC (one class against the rest) are means over the classes
        in ``labels``; NaN for weights that leave one of these classes out, since a mean over other classes would be
        another quantity, and for the AUROC of a single class.
    """
    correct = (scores.argmax(axis=1) == labels).astype(float)
    present = np.unique(labels)
    members = (labels[:, None] == present).astype(float)  # (N, classes present)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = (weights @ correct) / weights.sum(axis=1)
        recall = (weights @ (members * correct[:, None])) / (weights @ members)
    areas = np.stack([auroc(weights, members[:, i], scores[:, c]) for i, c in enumerate(present)], axis=1)
    return 100 * np.stack([accuracy, recall.mean(axis=1), areas.mean(axis=1)], axis=1)


def auroc(weights: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each row of weights; ties count half.

    Args:
        weights: (R, N); positive: (N,) 1 or 0; scores: (N,).

    Returns:
        (R,) in [0, 1]; NaN where positives or negatives have no weight.
    """
    return _auroc(*_by_threshold(weights, positive, scores))


def ranking(weights: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """``auroc`` and average precision for each row of weights.

    Average precision is the mean, over positives, of the precision at their score: Σ (recall_n − recall_n−1) ·
    precision_n from the highest score down, without interpolation, scans of one score together (scikit-learn's).

    Returns:
        (R, 2) in [0, 1]; NaN where ``auroc`` is, as the precision then is that of chance.
    """
    positives, negatives = _by_threshold(weights, positive, scores)
    found, called = (values[:, ::-1].cumsum(axis=1) for values in (positives, positives + negatives))
    area = _auroc(positives, negatives)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, found / called, 0)
        average = (positives[:, ::-1] * precision).sum(axis=1) / positives.sum(axis=1)
    return np.stack([area, np.where(np.isnan(area), np.nan, average)], axis=1)


def _by_threshold(weights: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (R, distinct scores) of the positives and of the negatives at each score, from the lowest."""
    order = np.argsort(scores, kind="stable")
    first_of_tie = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0]))
    ordered, is_positive = weights[:, order], positive[order].astype(float)
    positives = np.add.reduceat(ordered * is_positive, first_of_tie, axis=1)
    return positives, np.add.reduceat(ordered * (1 - is_positive), first_of_tie, axis=1)


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    negatives_below = negatives.cumsum(axis=1) - negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        won = (positives * (negatives_below + negatives / 2)).sum(axis=1)
        return won / (positives.sum(axis=1) * negatives.sum(axis=1))


@dataclass(frozen=True)
class Reliability:
    """Stated probability against accuracy in bins of equal width of the highest probability (Guo et al. 2017).

    Attributes:
        counts: (bins,) scans; confidence, accuracy: (bins,) their means from 0 to 1, NaN in an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = CALIBRATION_BINS) -> Reliability:
    """Of scans with classes ``labels`` (N,) and class probabilities ``scores`` (N, C)."""
    members, is_right = _bin_members(scores, bins), scores.argmax(axis=1) == labels
    counts = members.sum(axis=0)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (values @ members.astype(float) / counts for values in (scores.max(axis=1), is_right))
    return Reliability(counts, confidence, accuracy)


def calibration_error(
    weights: np.ndarray, labels: np.ndarray, scores: np.ndarray, bins: int = CALIBRATION_BINS
) -> np.ndarray:
    """Expected calibration error (Guo et al. 2017): mean |accuracy − confidence| over bins of equal width.

    Args:
        weights: (R, N), how often each scan counts.
        labels: (N,); scores: (N, C) probabilities.

    Returns:
        (R,) in per cent; 0 is calibrated.
    """
    gap = (scores.argmax(axis=1) == labels) - scores.max(axis=1)
    return 100 * np.abs(weights @ (_bin_members(scores, bins) * gap[:, None])).sum(axis=1) / weights.sum(axis=1)


def _bin_members(scores: np.ndarray, bins: int) -> np.ndarray:
    """(N, bins) bool, the bin that each scan's highest probability lies in."""
    return np.minimum((scores.max(axis=1) * bins).astype(int), bins - 1)[:, None] == np.arange(bins)


def confusion(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts (C, C) of scans: true class by row, predicted class by column."""
    counts = np.zeros((n_classes, n_classes), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    return counts
