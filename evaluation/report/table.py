"""The table of a comparison: every number of every model on the same test scans, and which differences are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale, weighted_mean
from dino_oct.scores.classification import (
    METRICS,
    NO_CALIBRATION_INTERVAL,
    Reliability,
    auroc,
    calibration_error,
    confusion,
    reliability,
    score_all,
)
from dino_oct.scores.paired import LowestRecall, Result, ScanSet, metric_supports, weakest
from evaluation.report.answers import Answers, Setting
from evaluation.report.models import Candidate
from evaluation.report.steps import digest

URGENT, ROUTINE = frozenset({"cnv", "dme"}), frozenset({"drusen", "normal"})
RULE = (
    "bold: the best of its column where the 95 % interval of its paired difference to every other model excludes 0 "
    "(same resamples of patients for all models; not corrected for the number of comparisons)"
)
_KNN, _LINEAR, _CLASSIFIER = "k-NN", "linear probe", "classifier"
_URGENT, _RECALL, _COST = "urgent against routine", "recall of the classifier", "cost"
_TITLES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC"}
_HELP = {
    "accuracy": "share of the test scans classified right",
    "balanced_accuracy": "mean of the classes' recalls",
    "macro_auroc": "area under the ROC curve of each class against the rest, mean over classes; chance is 50",
    "lowest_recall": "recall of the class that is recognised least, and its name",
    "calibration_error": "mean distance of the stated probability from the accuracy, over 15 bins; 0 is calibrated",
}
_UNRANKED: dict[str, Any] = {"higher_is_better": None}  # models may differ in the class that it is of
_VOTE = "weighted vote of the {} nearest training scans by features"
_EITHER = "of the classifier: the model's own, or a linear probe in its place (see the models)"


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: unique; title: short, unique in its group.
        digits: after the point; unit: of the values.
        higher_is_better: None where no model is the best.
    """

    key: str
    title: str
    group: str
    help: str
    unit: str = "%"
    digits: int = 1
    higher_is_better: bool | None = True


@dataclass(frozen=True)
class Table:
    """Every number of every model on the same test scans.

    Attributes:
        rows: model → column's key → number; None where the model lacks it (the reason is among its gaps).
        classes_of_lowest_recall: model → key of a column of lowest recalls → the class that it is of.
        best: column's key → the model that is shown to be the best of it, if any.
        rule: when a model is shown to be the best.
        differences: column's key → "first − other" → their paired difference; columns without one are left out.
    """

    columns: list[Column]
    rows: dict[str, dict[str, Interval | None]]
    classes_of_lowest_recall: dict[str, dict[str, str]]
    best: dict[str, str | None]
    rule: str
    differences: dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class Pair:
    """Test scans (positions in the report's scans) of the class ``true`` that were called another one."""

    true: int
    called: int
    scans: np.ndarray


@dataclass(frozen=True)
class Confusion:
    """How a classifier calls the test scans.

    Attributes:
        counts: (C, C) scans, true class by row, called class by column.
        pairs: the scans behind each count of wrong ones, the most frequent pair first.
    """

    counts: np.ndarray
    pairs: list[Pair]


# Column or metric → (1 + resamples,), row 0 the scans as they are; a calibration error has row 0 alone.
Values = dict[str, np.ndarray]


def columns(ks: Sequence[int], class_names: Sequence[str]) -> list[Column]:
    """The table's columns."""
    listed = [
        Column(f"knn_{k}{end}", f"k = {k}{title}", _KNN, f"{_VOTE.format(k)}: {_HELP[metric]}", **rest)
        for k in ks
        for end, title, metric, rest in (
            ("", "", "accuracy", {}),
            ("_balanced_accuracy", ", balanced", "balanced_accuracy", {}),
            ("_lowest_recall", ", lowest recall", "lowest_recall", _UNRANKED),
        )
    ]
    for group, prefix in ((_LINEAR, "linear"), (_CLASSIFIER, "classifier")):
        whose = {
            _LINEAR: "logistic regression on frozen features, its strength chosen on validation patients",
            _CLASSIFIER: "the model's own classifier, trained with labels",
        }[group]
        listed += [
            Column(f"{prefix}_{metric}", _TITLES[metric], group, f"{whose}: {_HELP[metric]}") for metric in METRICS
        ]
        listed.append(
            Column(f"{prefix}_lowest_recall", "lowest recall", group, f"{whose}: {_HELP['lowest_recall']}", **_UNRANKED)
        )
        listed.append(
            Column(
                f"{prefix}_calibration_error",
                "calibration error",
                group,
                f"{whose}: {_HELP['calibration_error']}",
                higher_is_better=False,
            )
        )
    listed += [
        Column(f"recall_{name}", name, _RECALL, f"share of the {name} scans that are called {name}, {_EITHER}")
        for name in class_names
    ]
    if is_urgency_known(class_names):
        urgent = " or ".join(name for name in class_names if name.casefold() in URGENT)
        routine = " or ".join(name for name in class_names if name.casefold() in ROUTINE)
        listed += [
            Column("urgent_sensitivity", "sensitivity", _URGENT, f"share of {urgent} scans called {urgent}, {_EITHER}"),
            Column(
                "urgent_specificity", "specificity", _URGENT, f"share of {routine} scans called {routine}, {_EITHER}"
            ),
            Column("urgent_auroc", "AUROC", _URGENT, f"of the summed probability of {urgent}, {_EITHER}; chance is 50"),
        ]
    return [
        *listed,
        Column("parameters", "parameters", _COST, "of the network with its classifier", "M", 2, None),
        Column("ms_per_scan", "ms per scan", _COST, "one pass in batches of 16 on this machine", "ms", 2, None),
    ]


def is_urgency_known(class_names: Sequence[str]) -> bool:
    """Whether every class is one of the urgent or the routine ones, and each kind is there."""
    names = {name.casefold() for name in class_names}
    return names <= URGENT | ROUTINE and bool(names & URGENT) and bool(names & ROUTINE)


def resampled(answers: Answers, model: Candidate, shared: Setting) -> Values:
    """Every metric of a model for the scans as they are and for each resample of patients, in per cent."""
    queries = shared.set_of("test")
    given = {
        **{f"knn_{k}": votes for k, votes in answers.knn.items()},
        "probe": answers.probe,
        "classifier": answers.classifier,
    }
    scores = {name: None if scores_of is None else digest(scores_of) for name, scores_of in given.items()}
    resampling = {"bootstrap": shared.bootstrap, "seed": shared.seed}
    identity = {"scores": scores, "own": model.has_own, **resampling}

    def make() -> Values:
        bootstrap = PatientBootstrap(queries.patients, shared.bootstrap, shared.seed)
        return _resampled(answers, model.has_own, queries, shared.class_names, bootstrap)

    return shared.cache.arrays(f"resamples {model.key}", shared.identity(**identity), make)


def _resampled(
    answers: Answers, has_own: bool, queries: ScanSet, names: Sequence[str], bootstrap: PatientBootstrap
) -> Values:
    labels = queries.labels

    def metrics(prefix: str, scores: np.ndarray) -> Values:
        values = bootstrap.values(partial(score_all, labels=labels, scores=scores))
        return {f"{prefix}_{metric}": values[:, i] for i, metric in enumerate(METRICS)}

    values: Values = {}
    for k, votes in answers.knn.items():
        of_k = metrics(f"knn_{k}", votes)
        values |= {f"knn_{k}": of_k[f"knn_{k}_accuracy"], **of_k}
    for prefix, scores in (("linear", answers.probe), ("classifier", answers.classifier if has_own else None)):
        if scores is not None:
            values |= metrics(prefix, scores)
            as_they_are = np.ones((1, len(labels)))
            values[f"{prefix}_calibration_error"] = calibration_error(as_they_are, labels, scores)
    if answers.classifier is not None:
        called = answers.classifier.argmax(axis=1)
        for c, name in enumerate(names):
            values[f"recall_{name}"] = _share(bootstrap, labels == c, called == c)
        if is_urgency_known(names):
            urgent = np.array([name.casefold() in URGENT for name in names])
            is_urgent, called_urgent = urgent[labels], urgent[called]
            summed = answers.classifier[:, urgent].sum(axis=1)
            values["urgent_sensitivity"] = _share(bootstrap, is_urgent, called_urgent)
            values["urgent_specificity"] = _share(bootstrap, ~is_urgent, ~called_urgent)
            values["urgent_auroc"] = 100 * bootstrap.values(
                lambda weights: auroc(weights, is_urgent.astype(float), summed)
            )
    return values


def _share(bootstrap: PatientBootstrap, members: np.ndarray, hit: np.ndarray) -> np.ndarray:
    shares = np.where(members, 100.0 * hit, np.nan)
    return bootstrap.values(lambda weights: weighted_mean(weights, shares))


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    """A linear probe: its C, its per cent balanced accuracy on validation patients, and the width of its features."""

    setting: float
    validation: float
    features: int


Evaluations = dict[str, dict[str, Result]]  # model → protocol → result


class Intervals:
    """Intervals of columns and of their differences, by the patients that each column rests on."""

    def __init__(self, queries: ScanSet, class_names: tuple[str, ...], resamples: int, seed: int):
        self.bootstrap = PatientBootstrap(queries.patients, resamples, seed)
        self._labels = labels = queries.labels
        self._class_names = class_names
        self._supports = {
            f"recall_{name}": self.bootstrap.support(np.where(labels == c, 0, -1)) for c, name in enumerate(class_names)
        }
        if is_urgency_known(class_names):
            urgent = np.array([name.casefold() in URGENT for name in class_names])[labels]
            self._supports |= {
                "urgent_sensitivity": self.bootstrap.support(np.where(urgent, 0, -1)),
                "urgent_specificity": self.bootstrap.support(np.where(urgent, -1, 0)),
                "urgent_auroc": self.bootstrap.support(urgent.astype(int)),
            }
        # Balanced accuracy before accuracy, whose name its own ends with.
        self._of_metrics = sorted(metric_supports(self.bootstrap, labels).items(), key=lambda item: -len(item[0]))

    def weakest(self, scores: np.ndarray) -> tuple[LowestRecall, list[str]]:
        """As ``paired.weakest``, of class scores (N, C)."""
        return weakest(self.bootstrap, self._labels, scores.argmax(axis=1), self._class_names)

    def of(self, column: str, values: np.ndarray, scale: Scale = Scale.PERCENT) -> Interval:
        """The interval of ``values`` (1 + resamples,) of a column, or of a difference of two (another scale)."""
        if column.endswith("calibration_error"):
            return Interval(float(values[0]), reason=NO_CALIBRATION_INTERVAL)
        support = self._supports.get(column) or next(
            (support for metric, support in self._of_metrics if column.endswith(metric)), None
        )
        return self.bootstrap.interval(values, scale, support)


def make_table(
    models: dict[str, Candidate], answers: dict[str, Answers], values: dict[str, Values],
    evaluations: Evaluations, ks: Sequence[int], shared: Setting,
) -> Table:  # fmt: skip
    """The columns of every model, and which differences are shown.

    Args:
        evaluations: as ``single_results`` gives them.
    """
    intervals = Intervals(shared.set_of("test"), shared.class_names, shared.bootstrap, shared.seed)
    wanted = columns(ks, shared.class_names)
    rows: dict[str, dict[str, Interval | None]] = {}
    lowest: dict[str, dict[str, str]] = {}
    for key in models:
        rows[key] = {
            column.key: intervals.of(column.key, values[key][column.key]) if column.key in values[key] else None
            for column in wanted
        }
        lowest[key] = {}
        for protocol, single in evaluations[key].items():
            rows[key][f"{protocol}_lowest_recall"] = single.lowest_recall.recall
            lowest[key][f"{protocol}_lowest_recall"] = single.lowest_recall.class_
        if about := answers[key].facts:
            rows[key]["parameters"] = Interval(about["parameters"] / 1e6)
            rows[key]["ms_per_scan"] = Interval(about["ms_per_scan"])
    best: dict[str, str | None] = {}
    differences: dict[str, dict[str, Interval]] = {}
    for column in wanted:
        best[column.key], differences[column.key] = _compare(column, values, intervals)
    differences = {column: of_column for column, of_column in differences.items() if of_column}
    return Table(wanted, rows, lowest, best, RULE, differences)


def _compare(column: Column, values: dict[str, Values], intervals: Intervals) -> tuple[str | None, dict[str, Interval]]:
    """The best model of a column if it is shown to be, and its paired differences to each other one."""
    known = {
        key: of_model[column.key]
        for key, of_model in values.items()
        if column.key in of_model and np.isfinite(of_model[column.key][0])
    }
    if column.higher_is_better is None or len(known) < 2:
        return None, {}
    sign = 1 if column.higher_is_better else -1
    first = max(known, key=lambda key: sign * known[key][0])
    differences = {
        f"{first} − {other}": intervals.of(column.key, known[first] - known[other], Scale.DIFFERENCE)
        for other in known
        if other != first
    }
    is_shown = all(d.is_above(0) if column.higher_is_better else d.is_below(0) for d in differences.values())
    return first if is_shown else None, differences


def single_results(
    models: dict[str, Candidate], answers: dict[str, Answers], values: dict[str, Values], shared: Setting
) -> Evaluations:
    """What the single evaluations say."""
    queries, names = shared.set_of("test"), shared.class_names
    intervals = Intervals(queries, names, shared.bootstrap, shared.seed)

    def result(key: str, name: str, scores: np.ndarray) -> Result:
        lowest, never = intervals.weakest(scores)
        counts = confusion(queries.labels, scores.argmax(axis=1), len(names))
        parts = {metric: intervals.of(metric, values[key][f"{name}_{metric}"]) for metric in METRICS}
        parts |= {"lowest_recall": lowest, "never_recognised": never, "confusion": counts}
        return ProbeResult(**parts, **answers[key].probe_about) if name == "linear" else Result(**parts)

    return {
        key: {name: result(key, name, scores) for name, scores in by_protocol(answers[key], model).items()}
        for key, model in models.items()
    }


def protocol_title(name: str) -> str:
    """A key of ``by_protocol`` in words."""
    return f"k-NN, k = {name.removeprefix('knn_')}" if name.startswith("knn_") else name.replace("linear", _LINEAR)


def by_protocol(answers: Answers, model: Candidate) -> dict[str, np.ndarray]:
    """Class scores (M, C) of the test scans by each protocol that a model has: k-NN, linear probe, own classifier."""
    scores = {f"knn_{k}": votes for k, votes in answers.knn.items()} | {"linear": answers.probe}
    scores |= {"classifier": answers.classifier} if model.has_own else {}
    return {name: of_scans for name, of_scans in scores.items() if of_scans is not None}


def confusions(answers: dict[str, Answers], evaluations: Evaluations, shared: Setting) -> dict[str, Confusion]:
    """Of each model's classifier, its own or a probe in its place.

    Args:
        evaluations: as ``single_results`` gives them; a classifier that is among them was counted there.
    """
    labels, n = shared.set_of("test").labels, len(shared.class_names)
    by_model = {}
    for key, answered in answers.items():
        if answered.classifier is None:
            continue
        called = answered.classifier.argmax(axis=1)
        own = evaluations[key].get("classifier")
        counts = own.confusion if own else confusion(labels, called, n)
        wrong = [(true, other) for true in range(n) for other in range(n) if true != other and counts[true, other]]
        wrong.sort(key=lambda pair: -counts[pair])
        pairs = [Pair(true, other, np.flatnonzero((labels == true) & (called == other))) for true, other in wrong]
        by_model[key] = Confusion(counts, pairs)
    return by_model


def reliabilities(
    models: dict[str, Candidate], answers: dict[str, Answers], shared: Setting
) -> dict[str, dict[str, Reliability]]:
    """Model → protocol that states probabilities (linear probe, own classifier) → how far they can be relied on."""
    labels = shared.set_of("test").labels
    return {
        key: {
            name: reliability(labels, scores)
            for name, scores in by_protocol(answers[key], model).items()
            if not name.startswith("knn")
        }
        for key, model in models.items()
    }
