"""The table of a comparison: every number of every model on the same test scans, and which differences are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dino_oct.scores.bootstrap import Interval, Scale, weighted_mean
from dino_oct.scores.classification import (
    METRICS,
    NO_CALIBRATION_INTERVAL,
    auroc,
    calibration_error,
    confusion,
    reliability,
    score_all,
)
from dino_oct.scores.paired import Result, weakest
from evaluation.inputs.steps import Arrays, digest
from evaluation.report.answers import Answers, Confusion, Pair, ProbeResult
from evaluation.report.models import CLASSIFIER, COST, KNN, LINEAR, RECALL, URGENCY
from evaluation.report.steps import Setting

URGENT, ROUTINE = frozenset({"cnv", "dme"}), frozenset({"drusen", "normal"})
RULE = (
    "bold: the best of its column where the 95 % interval of its paired difference to every other model excludes 0 "
    "(same resamples of patients for all models; not corrected for the number of comparisons)"
)
# Score → its title, what it says, and whether higher is better (None: models may differ in the class that it is of).
_SCORES = {
    "accuracy": ("accuracy", "share of the test scans classified right", True),
    "balanced_accuracy": ("balanced accuracy", "mean over classes of the share that is recognised", True),
    "macro_auroc": (
        "AUROC", "area under the ROC curve of each class against the rest, mean over classes; chance is 50", True,
    ),
    "lowest_recall": (
        "weakest class", "share recognised (recall) of the class that is recognised least, and its name", None,
    ),
    "calibration_error": (
        "calibration error",
        "mean distance of the stated probability from the accuracy, over 15 bins; 0 is calibrated",
        False,
    ),
}  # fmt: skip
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


def columns(ks: Sequence[int], class_names: Sequence[str]) -> list[Column]:
    """The table's columns."""
    listed = []
    for k in ks:
        for end, title, score in (
            ("", "", "accuracy"),
            ("_balanced_accuracy", ", balanced", "balanced_accuracy"),
            ("_lowest_recall", ", weakest class", "lowest_recall"),
        ):
            _, meaning, higher = _SCORES[score]
            text = f"weighted vote of the {k} nearest training scans by features: {meaning}"
            listed.append(Column(f"knn_{k}{end}", f"{k} neighbours{title}", KNN, text, higher_is_better=higher))
    for prefix, group, whose in (
        ("linear", LINEAR, "logistic regression on frozen features, its strength chosen on validation patients"),
        ("classifier", CLASSIFIER, "the model's own classifier, trained with labels"),
    ):
        listed += [
            Column(f"{prefix}_{score}", title, group, f"{whose}: {meaning}", higher_is_better=higher)
            for score, (title, meaning, higher) in _SCORES.items()
        ]
    listed += [
        Column(f"recall_{name}", name, RECALL, f"share of the {name} scans that are called {name}, {_EITHER}")
        for name in class_names
    ]
    if is_urgency_known(class_names):
        urgent, routine = (
            " or ".join(name for name in class_names if name.casefold() in kind) for kind in (URGENT, ROUTINE)
        )
        listed += [
            Column(f"urgent_{score}", title, URGENCY, f"{meaning}, {_EITHER}{end}")
            for score, title, meaning, end in (
                ("sensitivity", "sensitivity", f"share of {urgent} scans called {urgent}", ""),
                ("specificity", "specificity", f"share of {routine} scans called {routine}", ""),
                ("auroc", "AUROC", f"of the summed probability of {urgent}", "; chance is 50"),
            )
        ]
    return [
        *listed,
        Column("parameters", "parameters", COST, "of the network with its classifier", "M", 2, None),
        Column("ms_per_scan", "ms per scan", COST, "one pass in batches of 16 on this machine", "ms", 2, None),
    ]


def is_urgency_known(class_names: Sequence[str]) -> bool:
    """Whether every class is one of the urgent or the routine ones, and each kind is there."""
    names = {name.casefold() for name in class_names}
    return names <= URGENT | ROUTINE and bool(names & URGENT) and bool(names & ROUTINE)


def _groups(classes: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Column → scans (N,) bool of the group that it is a recall of, by their true or their called classes (N,)."""
    groups = {f"recall_{name}": classes == c for c, name in enumerate(names)}
    if is_urgency_known(names):
        urgent = np.array([name.casefold() in URGENT for name in names])[classes]
        groups |= {"urgent_sensitivity": urgent, "urgent_specificity": ~urgent}
    return groups


class Intervals:
    """Intervals of columns and of their differences, by the patients that each column rests on."""

    def __init__(self, shared: Setting):
        self.queries, self._names = shared.set_of("test"), shared.class_names
        self.bootstrap = shared.bootstrap(self.queries.patients)
        self.groups = _groups(self.queries.labels, self._names)
        self._of_classes = self.bootstrap.support(self.queries.labels)
        self._supports = {
            column: self.bootstrap.support(np.where(members, 0, -1)) for column, members in self.groups.items()
        }
        if "urgent_sensitivity" in self.groups:
            self._supports["urgent_auroc"] = self.bootstrap.support(self.groups["urgent_sensitivity"].astype(int))

    def of(self, column: str, values: np.ndarray, scale: Scale = Scale.PERCENT) -> Interval:
        """The interval of ``values`` (1 + resamples,) of a column, or of a difference of two (another scale)."""
        if column.endswith("calibration_error"):
            return Interval(float(values[0]), reason=NO_CALIBRATION_INTERVAL)
        is_mean_of_classes = column.endswith(("balanced_accuracy", "macro_auroc"))
        support = self._supports.get(column, self._of_classes if is_mean_of_classes else None)
        return self.bootstrap.interval(values, scale, support)


def score(answers: Answers, intervals: Intervals, shared: Setting) -> None:
    """Fill in a model's numbers: of the scans as they are, and of each resample of patients."""
    labels, names, classifier = intervals.queries.labels, shared.class_names, answers.classifier
    given = {f"knn_{k}": votes for k, votes in answers.knn.items()}
    given |= {"probe": answers.probe and answers.probe.probabilities, "classifier": classifier}
    answers.values = shared.steps.arrays(
        f"resamples {answers.model.key}",
        lambda: _resampled(answers, intervals, names),
        scores={name: None if scores is None else digest(scores) for name, scores in given.items()},
        own=answers.model.has_own,
        bootstrap=shared.options.bootstrap,
        seed=shared.options.seed,
    )
    for name, scores in answers.by_protocol.items():
        called = scores.argmax(axis=1)
        lowest, never = weakest(intervals.bootstrap, labels, called, names)
        parts = {metric: intervals.of(metric, answers.values[f"{name}_{metric}"]) for metric in METRICS}
        parts |= {"lowest_recall": lowest, "never_recognised": never}
        kind = Result
        if name == "linear":
            kind = ProbeResult
            parts |= {part: getattr(answers.probe, part) for part in ("setting", "validation", "features")}
        answers.results[name] = kind(**parts, confusion=confusion(labels, called, len(names)))
        if not name.startswith("knn"):
            answers.reliability[name] = reliability(labels, scores)
    if classifier is not None:
        called, own = classifier.argmax(axis=1), answers.results.get("classifier")
        counts = own.confusion if own else confusion(labels, called, len(names))
        pairs = [
            Pair(true, other, np.flatnonzero((labels == true) & (called == other)))
            for true, other in np.argwhere(counts).tolist()
            if true != other
        ]
        answers.confusion = Confusion(counts, sorted(pairs, key=lambda pair: -len(pair.scans)))


def _resampled(answers: Answers, intervals: Intervals, names: Sequence[str]) -> Arrays:
    bootstrap, labels, values = intervals.bootstrap, intervals.queries.labels, {}
    for name, scores in answers.by_protocol.items():
        metrics = bootstrap.values(partial(score_all, labels=labels, scores=scores))
        values |= {f"{name}_{metric}": metrics[:, i] for i, metric in enumerate(METRICS)}
        if name.startswith("knn"):
            values[name] = values[f"{name}_accuracy"]
        else:
            values[f"{name}_calibration_error"] = calibration_error(np.ones((1, len(labels))), labels, scores)
    if answers.classifier is not None:
        called = _groups(answers.classifier.argmax(axis=1), names)
        for column, members in intervals.groups.items():
            shares = np.where(members, 100.0 * called[column], np.nan)
            values[column] = bootstrap.values(partial(weighted_mean, values=shares))
        if is_urgency_known(names):
            is_urgent = intervals.groups["urgent_sensitivity"].astype(float)
            summed = answers.classifier[:, [name.casefold() in URGENT for name in names]].sum(axis=1)
            values["urgent_auroc"] = 100 * bootstrap.values(partial(auroc, positive=is_urgent, scores=summed))
    return values


def make_table(answers: dict[str, Answers], intervals: Intervals, shared: Setting) -> Table:
    """The columns of every model, and which differences are shown."""
    listed = columns(shared.options.k, shared.class_names)
    rows: dict[str, dict[str, Interval | None]] = {}
    lowest: dict[str, dict[str, str]] = {}
    for model, of_model in answers.items():
        known = {column: intervals.of(column, values) for column, values in of_model.values.items()}
        known |= {f"{name}_lowest_recall": result.lowest_recall.recall for name, result in of_model.results.items()}
        if of_model.facts.parameters:
            known["parameters"] = Interval(of_model.facts.parameters / 1e6)
            known["ms_per_scan"] = Interval(of_model.facts.ms_per_scan)
        rows[model] = {column.key: known.get(column.key) for column in listed}
        lowest[model] = {
            f"{name}_lowest_recall": result.lowest_recall.class_ for name, result in of_model.results.items()
        }
    compared = {column.key: _compare(column, answers, intervals) for column in listed}
    best = {column: first for column, (first, _) in compared.items()}
    differences = {column: of_column for column, (_, of_column) in compared.items() if of_column}
    return Table(listed, rows, lowest, best, RULE, differences)


def _compare(
    column: Column, answers: dict[str, Answers], intervals: Intervals
) -> tuple[str | None, dict[str, Interval]]:
    """The best model of a column if it is shown to be, and its paired differences to each other one."""
    every = {model: of_model.values.get(column.key) for model, of_model in answers.items()}
    known = {model: values for model, values in every.items() if values is not None and np.isfinite(values[0])}
    if column.higher_is_better is None or len(known) < 2:
        return None, {}
    sign = 1 if column.higher_is_better else -1
    first = max(known, key=lambda model: sign * known[model][0])
    differences = {
        f"{first} − {other}": intervals.of(column.key, known[first] - values, Scale.DIFFERENCE)
        for other, values in known.items()
        if other != first
    }
    is_shown = all(d.is_above(0) if column.higher_is_better else d.is_below(0) for d in differences.values())
    return first if is_shown else None, differences


def protocol_title(name: str) -> str:
    """A key of ``Answers.by_protocol`` in words."""
    return f"k-NN, k = {name.removeprefix('knn_')}" if name.startswith("knn_") else name.replace("linear", LINEAR)
