"""Classifiers on the same scans: metrics with intervals by patient, paired differences, and what they let one say."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from dino_oct.bootstrap import Interval, PatientBootstrap, Scale, Support
from dino_oct.class_summary import majority, summarise
from evaluation.classification import METRICS, confusion, score_all

Setting = TypeVar("Setting", int, str)
MODEL, START, RANDOM, PIXELS = "model", "starting weights", "random weights", "raw pixels"


@dataclass(frozen=True)
class ScanSet:
    """Classes (N,) and patients (N,) of some scans."""

    labels: np.ndarray
    patients: np.ndarray


def compare_scores(
    scores: dict[str, dict[Setting, np.ndarray]],
    reference: ScanSet,
    queries: ScanSet,
    class_names: tuple[str, ...],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of several classifiers on the same scans, with paired differences of the first to each other one.

    Args:
        scores: row name → setting (k, say; the same ones in every row) → class scores (M, C) of the queries.

    Returns:
        ``rows[name][setting]``: an ``Interval`` in per cent for each of ``METRICS`` and for ``recall`` by class,
        ``lowest_recall`` (its class and recall), ``never_recognised`` (classes with scans of which none is), and the
        confusion matrix (true class by row); ``differences["a − b"][setting]``: an ``Interval`` in points for each
        metric, on the same resamples of patients; ``majority``: the most frequent class; ``notes``.

    Raises:
        InputError: no query.
    """
    resampled = PatientBootstrap(queries.patients, bootstrap, seed)
    supports = metric_supports(resampled, queries.labels)
    rows: dict[str, dict[Setting, Any]] = {}
    values: dict[str, dict[Setting, np.ndarray]] = {}
    for name, votes in scores.items():
        values[name] = {
            k: resampled.values(partial(score_all, labels=queries.labels, scores=found)) for k, found in votes.items()
        }
        rows[name] = {}
        for k, found in votes.items():
            predicted = found.argmax(axis=1)
            rows[name][k] = {
                **_intervals(resampled, values[name][k], Scale.PERCENT, supports),
                "recall": {
                    label: _recall(resampled, queries.labels == c, predicted == c)
                    for c, label in enumerate(class_names)
                },
                **weakest(resampled, queries.labels, predicted, class_names),
                "confusion": confusion(queries.labels, predicted, len(class_names)),
            }
    first, *others = scores
    differences = {
        f"{first} − {other}": {
            k: _intervals(resampled, of_first - values[other][k], Scale.DIFFERENCE, supports)
            for k, of_first in values[first].items()
        }
        for other in others
    }
    return {
        "rows": rows,
        "differences": differences,
        "majority": majority(queries.labels, class_names),
        "notes": resampled.notes() + _class_notes(reference, queries, class_names),
    }


def metric_supports(bootstrap: PatientBootstrap, labels: np.ndarray) -> dict[str, Support]:
    """The patients that each of ``METRICS`` rests on: all, or those of each class where it is a mean over classes."""
    everyone, by_class = bootstrap.support(np.zeros_like(labels)), bootstrap.support(labels)
    return {metric: everyone if metric == "accuracy" else by_class for metric in METRICS}


def _intervals(
    bootstrap: PatientBootstrap, values: np.ndarray, scale: Scale, supports: dict[str, Support]
) -> dict[str, Interval]:
    """The metrics of one row, or of a difference of two."""
    return {metric: bootstrap.interval(values[:, i], scale, supports[metric]) for i, metric in enumerate(METRICS)}


def weakest(
    bootstrap: PatientBootstrap, labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """``lowest_recall``, the class that is recognised least and its recall, and ``never_recognised``."""
    summary = summarise(labels, predicted, class_names)
    c = class_names.index(summary.lowest)
    return {
        "lowest_recall": {"class": summary.lowest, "recall": _recall(bootstrap, labels == c, predicted == c)},
        "never_recognised": summary.never_recognised,
    }


def _recall(bootstrap: PatientBootstrap, members: np.ndarray, hit: np.ndarray) -> Interval:
    """Share of a class's scans that are found, in per cent."""
    return bootstrap.mean(np.where(members, 100.0 * hit, np.nan), Scale.PERCENT)


def classes_of_one_patient(queries: ScanSet, class_names: tuple[str, ...]) -> list[str]:
    """Classes whose scans are all of one patient: no interval can be given for what depends on them."""
    counts = [len(set(queries.patients[queries.labels == c].tolist())) for c in range(len(class_names))]
    return [name for name, count in zip(class_names, counts, strict=True) if count == 1]


def _class_notes(reference: ScanSet, queries: ScanSet, class_names: tuple[str, ...]) -> list[str]:
    notes = []
    absent = [name for c, name in enumerate(class_names) if not (queries.labels == c).any()]
    if absent:
        notes.append(
            f"no scan to classify of {', '.join(absent)}: balanced accuracy and AUROC are over the other classes"
        )
    if alone := classes_of_one_patient(queries, class_names):
        notes.append(f"one patient only of {', '.join(alone)}: no intervals for balanced accuracy and AUROC")
    unknown = [name for c, name in enumerate(class_names) if not (reference.labels == c).any()]
    if unknown:
        notes.append(f"no training scan of {', '.join(unknown)}: such scans cannot be classified right")
    if len(set(queries.labels.tolist())) < 2:
        notes.append("AUROC is undefined: all scans to classify are of one class")
    return notes


def verdict(difference: Interval, other: str, setting: str | int) -> str:
    """What an accuracy difference of the model to ``other`` (points) lets one say, in one sentence.

    Args:
        setting: what the sentence begins with; a number is a k.
    """
    label = f"k={setting}" if isinstance(setting, int) else setting
    if difference.low is None or difference.high is None:
        why = f" ({difference.reason})" if difference.reason else ""
        return f"{label}: without an interval{why}, nothing is shown about the model against {other}."
    interval = f"(95 % interval {difference.low:+.1f} to {difference.high:+.1f})"
    if difference.is_above(0):
        return f"{label}: the model is {difference.point:.1f} points of accuracy above {other} {interval}."
    if difference.is_below(0):
        return f"{label}: the model is WORSE than {other}, by {-difference.point:.1f} points of accuracy {interval}."
    return (
        f"{label}: the model does NOT beat {other}: the difference is {difference.point:+.1f} points of accuracy, "
        f"and its interval includes 0 {interval}."
    )
