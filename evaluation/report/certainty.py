"""How well the probabilities of the report's two models tell classes apart, and where on that curve they answer."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.metrics import roc_curve

from dino_oct.scores.bootstrap import Interval, Scale
from dino_oct.scores.classification import auroc
from evaluation.inputs.steps import digest
from evaluation.report.answers import Answers
from evaluation.report.steps import Setting
from evaluation.report.table import URGENT, Intervals, is_urgency_known

MOST = 200  # points of a curve


@dataclass(frozen=True)
class Roc:
    """One class, or the urgent ones, against the rest.

    Attributes:
        false_alarms, sensitivity: (T,) shares, 0 to 1, of the other scans and of its own that are as probable as each
            threshold: the curve.
        area: under the curve, in per cent; chance is 50.
        at_sensitivity, at_specificity: of what the model names, its most probable class, in per cent.
    """

    false_alarms: list[float]
    sensitivity: list[float]
    area: Interval
    at_sensitivity: Interval
    at_specificity: Interval


def roc(answers: Answers, intervals: Intervals, shared: Setting) -> dict[str, Roc]:
    """Class, and "urgent" where that is known → its curve, by what the model is judged by."""
    scores, names, labels = answers.by_protocol[answers.judged_by], shared.class_names, intervals.queries.labels
    groups = {name: np.arange(len(names)) == c for c, name in enumerate(names)}
    if is_urgency_known(names):
        groups["urgent"] = np.array([name.casefold() in URGENT for name in names])
    called, curves = scores.argmax(axis=1), {}
    for name, members in groups.items():
        if (positive := members[labels]).any() and not positive.all():
            curves[name] = shared.steps.json(
                f"roc {name}",
                partial(_curve, positive, members[called], scores[:, members].sum(axis=1), intervals),
                Roc,
                scores=digest(scores),
                bootstrap=[shared.options.bootstrap, shared.options.seed],
            )
    return curves


def _curve(positive: np.ndarray, is_called: np.ndarray, scores: np.ndarray, intervals: Intervals) -> Roc:
    false_alarms, sensitivity, _ = roc_curve(positive, scores)
    kept = np.unique(np.linspace(0, len(false_alarms) - 1, MOST).round().astype(int))
    bootstrap = intervals.bootstrap
    areas = 100 * bootstrap.values(partial(auroc, positive=positive.astype(float), scores=scores))

    def share(of: np.ndarray, right: np.ndarray) -> Interval:
        return bootstrap.mean(np.where(of, 100.0 * right, np.nan), Scale.PERCENT)

    return Roc(
        false_alarms[kept].tolist(),
        sensitivity[kept].tolist(),
        bootstrap.interval(areas, Scale.PERCENT, bootstrap.support(positive.astype(int))),
        share(positive, is_called),
        share(~positive, ~is_called),
    )
