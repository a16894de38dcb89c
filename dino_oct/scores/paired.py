"""Classifiers on the same scans: metrics with intervals by patient, paired differences, and what they let one say."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from dino_oct.phases import phase
from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale, Support
from dino_oct.scores.class_summary import Majority, majority, summarise
from dino_oct.scores.classification import METRICS, confusion, score_all

Setting = TypeVar("Setting", int, str)
MODEL, START, RANDOM, PIXELS = "model", "starting weights", "random weights", "raw pixels"


@dataclass(frozen=True)
class ScanSet:
    """Classes (N,) and patients (N,) of some scans."""

    labels: np.ndarray
    patients: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics of a classifier in per cent, or of a difference of two in points; the fields are ``METRICS``."""

    accuracy: Interval
    balanced_accuracy: Interval
    macro_auroc: Interval


@dataclass(frozen=True)
class LowestRecall:
    """The class that is recognised least, and its recall in per cent."""

    class_: str
    recall: Interval


@dataclass(frozen=True, kw_only=True)
class Result(Metrics):
    """A classifier on some scans.

    Attributes:
        never_recognised: classes with scans of which none is recognised.
        confusion: counts (C, C), true class by row.
    """

    lowest_recall: LowestRecall
    never_recognised: list[str]
    confusion: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ResultByClass(Result):
    """With the recall of each class, in per cent."""

    recall: dict[str, Interval]


@dataclass(frozen=True)
class Compared(Generic[Setting]):
    """Classifiers on the same scans.

    Attributes:
        rows: row → setting → result.
        differences: "a − b" → setting → difference of the first row to another one, on the same resamples of patients.
        majority: the most frequent class.
    """

    rows: dict[str, dict[Setting, ResultByClass]]
    differences: dict[str, dict[Setting, Metrics]]
    majority: Majority
    notes: list[str]


@phase("intervals")
def compare_scores(
    scores: dict[str, dict[Setting, np.ndarray]],
    reference: ScanSet,
    queries: ScanSet,
    class_names: tuple[str, ...],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    noun: str = "scan",
) -> Compared[Setting]:
    """Metrics of several classifiers on the same scans, with paired differences of the first to each other one.

    Args:
        scores: row name → setting (k, say; the same ones in every row) → class scores (M, C) of the queries.
        noun: what a query is, in notes.

    Raises:
        InputError: no query.
    """
    resampled = PatientBootstrap(queries.patients, bootstrap, seed)
    supports = metric_supports(resampled, queries.labels)
    values = {
        name: {
            k: resampled.values(partial(score_all, labels=queries.labels, scores=votes)) for k, votes in by_k.items()
        }
        for name, by_k in scores.items()
    }
    rows: dict[str, dict[Setting, ResultByClass]] = {name: {} for name in scores}
    for name, by_k in scores.items():
        for k, votes in by_k.items():
            predicted = votes.argmax(axis=1)
            lowest, never = weakest(resampled, queries.labels, predicted, class_names)
            rows[name][k] = ResultByClass(
                **_intervals(resampled, values[name][k], Scale.PERCENT, supports),
                recall={
                    label: _recall(resampled, queries.labels == c, predicted == c)
                    for c, label in enumerate(class_names)
                },
                lowest_recall=lowest,
                never_recognised=never,
                confusion=confusion(queries.labels, predicted, len(class_names)),
            )
    first, *others = scores
    differences = {
        f"{first} − {other}": {
            k: Metrics(**_intervals(resampled, of_first - values[other][k], Scale.DIFFERENCE, supports))
            for k, of_first in values[first].items()
        }
        for other in others
    }
    notes = resampled.notes() + _class_notes(reference, queries, class_names, noun)
    return Compared(rows, differences, majority(queries.labels, class_names), notes)


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
) -> tuple[LowestRecall, list[str]]:
    """The class that is recognised least, and those that are never recognised."""
    summary = summarise(labels, predicted, class_names)
    c = class_names.index(summary.lowest)
    return LowestRecall(summary.lowest, _recall(bootstrap, labels == c, predicted == c)), summary.never_recognised


def _recall(bootstrap: PatientBootstrap, members: np.ndarray, hit: np.ndarray) -> Interval:
    """Share of a class's scans that are found, in per cent."""
    return bootstrap.mean(np.where(members, 100.0 * hit, np.nan), Scale.PERCENT)


def classes_of_one_patient(queries: ScanSet, class_names: tuple[str, ...]) -> list[str]:
    """Classes whose scans are all of one patient: no interval can be given for what depends on them."""
    counts = [len(set(queries.patients[queries.labels == c].tolist())) for c in range(len(class_names))]
    return [name for name, count in zip(class_names, counts, strict=True) if count == 1]


def _class_notes(reference: ScanSet, queries: ScanSet, class_names: tuple[str, ...], noun: str) -> list[str]:
    notes = []
    absent = [name for c, name in enumerate(class_names) if not (queries.labels == c).any()]
    if absent:
        notes.append(
            f"no {noun} to classify of {', '.join(absent)}: balanced accuracy and AUROC are over the other classes"
        )
    if alone := classes_of_one_patient(queries, class_names):
        notes.append(f"one patient only of {', '.join(alone)}: no intervals for balanced accuracy and AUROC")
    unknown = [name for c, name in enumerate(class_names) if not (reference.labels == c).any()]
    if unknown:
        notes.append(f"no training scan of {', '.join(unknown)}: such scans cannot be classified right")
    if len(set(queries.labels.tolist())) < 2:
        notes.append(f"AUROC is undefined: all {noun}s to classify are of one class")
    return notes


def verdict(difference: Interval, other: str, setting: str | int, what: str = "accuracy") -> str:
    """What a difference of the model to ``other`` (points) lets one say, in one sentence.

    Args:
        setting: what the sentence begins with; a number is a k.
        what: the metric that differs.
    """
    label = f"k={setting}" if isinstance(setting, int) else setting
    if difference.low is None or difference.high is None:
        why = f" ({difference.reason})" if difference.reason else ""
        return f"{label}: without an interval{why}, nothing is shown about the model against {other}."
    interval = f"(95 % interval {difference.low:+.1f} to {difference.high:+.1f})"
    if difference.is_above(0):
        return f"{label}: the model is {difference.point:.1f} points of {what} above {other} {interval}."
    if difference.is_below(0):
        return f"{label}: the model is WORSE than {other}, by {-difference.point:.1f} points of {what} {interval}."
    return (
        f"{label}: the model does NOT beat {other}: the difference is {difference.point:+.1f} points of {what}, "
        f"and its interval includes 0 {interval}."
    )
