"""Scores of several labels a scan: AUROC and average precision of each label, with intervals by patient.

A scan counts for the labels that are known of it. Chance is 50 % for AUROC, and the prevalence for average precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic

import numpy as np

from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale, Support
from dino_oct.scores.classification import ranking
from dino_oct.scores.paired import Setting

METRICS = ("auroc", "average_precision")


@dataclass(frozen=True)
class Label:
    """A label on some scans.

    Attributes:
        scans, patients: of which it is known; positive, positive_patients: that have it.
        prevalence: share of its scans that have it, per cent: the average precision of chance; NaN without scans.
        undefined: why it has no scores; empty where it has.
    """

    scans: int
    patients: int
    positive: int
    positive_patients: int
    prevalence: float
    undefined: str = ""


@dataclass(frozen=True)
class Ranking:
    """How well scores rank scans, per cent, or a difference of two in points; the fields are ``METRICS``."""

    auroc: Interval
    average_precision: Interval


@dataclass(frozen=True)
class LabelScores:
    """A classifier's ``labels``, of those that are defined, and their mean."""

    labels: dict[str, Ranking]
    macro: Ranking


@dataclass(frozen=True)
class ComparedLabels(Generic[Setting]):
    """Classifiers on the same scans.

    Attributes:
        labels: by name, also those without scores.
        rows: row → setting → scores.
        differences: "a − b" → setting → difference of the first row to another one, on the same resamples of patients.
    """

    labels: dict[str, Label]
    rows: dict[str, dict[Setting, LabelScores]]
    differences: dict[str, dict[Setting, LabelScores]]
    notes: list[str]


def compare_labels(
    scores: dict[str, dict[Setting, np.ndarray]],
    values: np.ndarray,
    patients: np.ndarray,
    names: Sequence[str],
    *,
    unfitted: Mapping[str, str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> ComparedLabels[Setting]:
    """Scores of several classifiers of the same scans, with paired differences of the first to each other one.

    Args:
        scores: row name → setting (the same ones in every row) → scores (M, L), any order-preserving scale of a label.
        values: (M, L) 1, 0, or negative where not known; patients: (M,); names: L labels.
        unfitted: label → why it was not learned.

    Raises:
        InputError: no scan.
    """
    resampled = PatientBootstrap(patients, bootstrap, seed)
    labels = {name: describe(values[:, i], patients, (unfitted or {}).get(name, "")) for i, name in enumerate(names)}
    kept = [i for i, name in enumerate(names) if not labels[name].undefined]
    known, kept_names = values[:, kept], [names[i] for i in kept]
    results = {
        row: {k: resampled.values(partial(rank_all, values=known, scores=s[:, kept])) for k, s in by_k.items()}
        for row, by_k in scores.items()
    }
    intervals = partial(_intervals, resampled, known, kept_names)
    rows = {row: {k: intervals(result, Scale.PERCENT) for k, result in by_k.items()} for row, by_k in results.items()}
    first, *others = scores
    differences = {
        f"{first} − {other}": {
            k: intervals(result - results[other][k], Scale.DIFFERENCE) for k, result in results[first].items()
        }
        for other in others
    }
    return ComparedLabels(labels, rows, differences, resampled.notes() + _notes(labels))


def rank_all(weights: np.ndarray, values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """``METRICS`` of each label, per cent, for each row of weights.

    Args:
        weights: (R, N); values: (N, L) 1, 0, or negative where not known; scores: (N, L).

    Returns:
        (R, L, 2); NaN where a label has no positive or no negative of any weight.
    """
    result = np.full((len(weights), values.shape[1], len(METRICS)), np.nan)
    for i, (value, score) in enumerate(zip(values.T, scores.T, strict=True)):
        known = value >= 0
        if known.any() and np.isfinite(score[known]).all():
            result[:, i] = 100 * ranking(weights[:, known], value[known], score[known])
    return result


def describe(value: np.ndarray, patients: np.ndarray, unfitted: str = "") -> Label:
    """A label's counts, and why it cannot be judged: ``value`` (N,) 1, 0, or negative where not known."""
    known, has = value >= 0, value == 1
    scans, positive = int(known.sum()), int(has.sum())
    undefined = unfitted
    if not undefined and not scans:
        undefined = "known of no scan to judge"
    elif not undefined and positive in (0, scans):
        undefined = f"all {scans} scans to judge have it" if positive else f"none of the {scans} scans to judge has it"
    return Label(
        scans=scans,
        patients=len(np.unique(patients[known])),
        positive=positive,
        positive_patients=len(np.unique(patients[has])),
        prevalence=100 * positive / scans if scans else float("nan"),
        undefined=undefined,
    )


def unlearned(values: np.ndarray, names: Sequence[str]) -> dict[str, str]:
    """Label → why training scans with ``values`` (N, L) cannot teach it; those that they can are left out."""
    reasons = {}
    for name, value in zip(names, values.T, strict=True):
        has = np.unique(value[value >= 0]).tolist()
        if has != [0, 1]:
            every = "every training scan has it" if has else "known of no training scan"
            reasons[name] = "no training scan has it" if has == [0] else every
    return reasons


def macro_average_precision(values: np.ndarray, scores: np.ndarray) -> float:
    """Mean average precision, per cent, over the labels that have positives and negatives; NaN where none has."""
    (result,) = rank_all(np.ones((1, len(values))), values, scores)
    found = result[np.isfinite(result[:, 1]), 1]
    return float(found.mean()) if len(found) else float("nan")


def log_loss(values: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean −log probability (nats) of what is known: ``values`` and ``probabilities`` (N, L); NaN where nothing is."""
    known = (values >= 0) & np.isfinite(probabilities)
    right = np.where(values == 1, probabilities, 1 - probabilities)[known]
    return float(-np.log(np.maximum(right, 1e-12)).mean()) if len(right) else float("nan")


def _intervals(
    bootstrap: PatientBootstrap, values: np.ndarray, names: Sequence[str], resampled: np.ndarray, scale: Scale
) -> LabelScores:
    """Of (1 + resamples, L, 2)."""

    def both(of_metrics: np.ndarray, support: Support) -> Ranking:
        return Ranking(*(bootstrap.interval(column, scale, support) for column in of_metrics.T))

    if not names:
        return LabelScores({}, Ranking(Interval(float("nan")), Interval(float("nan"))))
    supports = [bootstrap.support(value) for value in values.T]
    labels = {name: both(resampled[:, i], supports[i]) for i, name in enumerate(names)}
    return LabelScores(labels, both(resampled.mean(axis=1), Support.of_mean(supports)))


def _notes(labels: dict[str, Label]) -> list[str]:
    notes = [f"{name}: {label.undefined}, so it has no scores" for name, label in labels.items() if label.undefined]
    alone = [name for name, label in labels.items() if not label.undefined and label.positive_patients == 1]
    if alone:
        notes.append(f"one patient only has {', '.join(alone)}: no intervals for these, nor for the mean")
    return notes
