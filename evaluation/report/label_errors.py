"""Scans whose label is probably wrong, by a cross-validated classifier, with their nearest neighbours.

The given class of a scan is doubted where a classifier that never saw its patient finds another class at least as
probable as it finds that class, on average, for the scans that are labelled so (the thresholds of confident learning,
Northcutt et al. 2021, section 3). Where the classifier does not know a class, its errors are not the labels': classes
of few patients, and those of which it finds less than 70 %, are not judged. A suspect is a scan to look at again, not
an error: hard scans look the same.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupKFold

from dino_oct.errors import InputError
from dino_oct.knn import neighbours
from dino_oct.scores.class_summary import summarise
from evaluation.report.answers import Answers, Setting
from evaluation.report.models import SPLITS, Candidate
from evaluation.report.scans import ShownScans
from evaluation.scores.probes import logistic_path, standardisation

FOLDS, MOST, NEIGHBOURS = 5, 24, 5
LEAST_PATIENTS = 2 * FOLDS  # of a class, so that a fold holds out two and the others teach it
LEAST_RECALL = 0.7


@dataclass(frozen=True)
class Neighbour:
    """A scan of another patient; ``similarity`` is the cosine of the features."""

    scan: int
    similarity: float


@dataclass(frozen=True)
class Suspect:
    """A doubted label; scans are positions in the features, or in the report's scans.

    Attributes:
        given, suggested: classes.
        probability_given: of the given class, from 0 to 1.
        margin: that less the probability of the most probable other class.
        neighbours: of other patients, the nearest first.
    """

    scan: int
    given: int
    suggested: int
    probability_given: float
    margin: float
    neighbours: list[Neighbour]


@dataclass(frozen=True)
class Doubts:
    """What a cross-validation doubts.

    Attributes:
        worst: suspects of the lowest margins, the lowest first.
        suspected, judged: all suspects, and the scans of the classes that are judged.
        left_out: classes that are not judged and why, a sentence; empty where all are.
        accuracy: of the cross-validation, per cent; by_class: what it hides, in words.
    """

    worst: list[Suspect]
    suspected: int
    judged: int
    left_out: str
    accuracy: float
    by_class: str


@dataclass(frozen=True)
class Suspects:
    """Suspected label errors: the rule in words, the model whose features it rests on, and the worst suspects."""

    rule: str
    model: str
    found: list[Suspect]


def suspects(models: dict[str, Candidate], answers: dict[str, Answers], shared: Setting, scans: ShownScans) -> Suspects:
    """Suspected label errors, with positions in ``scans``.

    By the features of the best probe on validation patients among the models that did not learn from these labels, as a
    network fits even a wrong label of its training; of all models where there is no other.

    Raises:
        InputError: the scans are phantoms, no model has a linear probe, or labels cannot be cross-validated.
    """
    if shared.data.is_phantom:
        raise InputError("the labels of phantoms are exact, so none is doubted")
    probed = {key: answered.probe_about["validation"] for key, answered in answers.items() if answered.probe_about}
    unlabelled = {key: value for key, value in probed.items() if models[key].kind != "supervised"}
    candidates = unlabelled or probed
    if not candidates:
        raise InputError("no model has a linear probe")
    key = max(candidates, key=candidates.__getitem__)
    model, c = models[key], answers[key].probe_about["setting"]
    every = np.concatenate([shared.positions[split] for split in SPLITS])
    labels, patients = shared.data.index.labels[every], shared.data.index.patients[every]

    def find() -> dict[str, Any]:
        features = np.concatenate([model.features[split] for split in SPLITS])
        return dataclasses.asdict(find_suspects(features, labels, patients, shared.class_names, c))

    settings = {"c": c, "most": MOST, "least": [LEAST_PATIENTS, LEAST_RECALL], "neighbours": NEIGHBOURS}
    doubts = shared.cache.json(f"suspects {key}", shared.identity(model, **settings), find)
    among = "among the models that did not learn from these labels" if unlabelled else "of all models"
    learnt = "" if unlabelled else " It learnt from these labels, so errors among its training scans may hide."
    rule = (
        f"logistic regression (C {c:.3g}) on the frozen features of {key}, the best probe on validation "
        f"patients {among}. Suspected where another class is more probable, and as probable as it is on average for "
        f"the scans labelled so: {doubts['suspected']:,} of {doubts['judged']:,} judged scans, the worst "
        f"{len(doubts['worst'])} shown. {doubts['left_out']}"
        "A suspect is a scan to look at again, not an error: the regression itself finds "
        f"{doubts['accuracy']:.1f} % of the given classes ({doubts['by_class']}).{learnt}"
    )
    return Suspects(rule, key, [_shown(suspect, every, scans) for suspect in doubts["worst"]])


def _shown(suspect: dict[str, Any], every: np.ndarray, scans: ShownScans) -> Suspect:
    """A kept suspect with positions in ``scans``; ``every`` are the positions in the data of the features."""
    near = scans.of(every[[neighbour["scan"] for neighbour in suspect["neighbours"]]])
    neighbours = [Neighbour(i, kept["similarity"]) for i, kept in zip(near, suspect["neighbours"], strict=True)]
    return Suspect(**{**suspect, "scan": scans.of([every[suspect["scan"]]])[0], "neighbours": neighbours})


def cross_validated(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, n_classes: int, c: float, folds: int = FOLDS
) -> np.ndarray:
    """Class probabilities (N, C) of every scan by logistic regressions that saw none of its patient's scans.

    Args:
        features: (N, D), standardised on the scans that each regression is fitted on.
        c: inverse strength of the penalty.

    Raises:
        InputError: fewer than two patients, or a fold that leaves one class only.
    """
    folds = min(folds, len(set(patients.tolist())))
    if folds < 2:
        raise InputError("scans of one patient only: labels cannot be cross-validated")
    probabilities = np.zeros((len(labels), n_classes))
    for train, test in GroupKFold(folds).split(features, labels, patients):
        mean, scale = standardisation(features[train])
        rows, held_out = (torch.from_numpy((features[part] - mean) / scale) for part in (train, test))
        ((_, classifier),) = logistic_path(rows, labels[train], n_classes, [c])
        probabilities[test] = classifier.probabilities(held_out)
    return probabilities


def margins(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of each scan's given class less that of the most probable other class, (N,) from −1 to 1."""
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    return probabilities[rows, labels] - others.max(axis=1)


def doubted(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) bool, scans for which another class is more probable than the given one, and at least as probable as it is
    on average for the scans labelled so.

    Args:
        probabilities: (N, C) of classifiers that did not see the scan; labels: (N,).
    """
    rows, others = np.arange(len(labels)), probabilities.copy()
    others[rows, labels] = -np.inf
    best = others.argmax(axis=1)
    usual = np.full(probabilities.shape[1], np.inf)
    for c in np.unique(labels):
        usual[c] = probabilities[labels == c, c].mean()
    return (others[rows, best] > probabilities[rows, labels]) & (others[rows, best] >= usual[best])


def find_suspects(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, class_names: Sequence[str], c: float,
    most: int = MOST,
) -> Doubts:  # fmt: skip
    """The scans of judged classes that are ``doubted``; at most so many are told one by one."""
    probabilities = cross_validated(features, labels, patients, len(class_names), c)
    called = probabilities.argmax(axis=1)
    by_class = summarise(labels, called, class_names)
    few = [name for i, name in enumerate(class_names) if 0 < len(set(patients[labels == i].tolist())) < LEAST_PATIENTS]
    unknown = [name for name, recall in by_class.recall.items() if recall < 100 * LEAST_RECALL and name not in few]
    judged = ~np.isin(labels, [class_names.index(name) for name in (*few, *unknown)])
    margin = margins(probabilities, labels)
    order = np.argsort(margin, kind="stable")
    suspected = order[(doubted(probabilities, labels) & judged)[order]]
    worst = suspected[:most]
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    similarity, near = nearest_of_others(features, patients, worst, NEIGHBOURS)
    reasons = {f"fewer than {LEAST_PATIENTS} patients": few, f"less than {LEAST_RECALL:.0%} recognised": unknown}
    left_out = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items() if names)
    return Doubts(
        worst=[
            Suspect(
                scan=int(i),
                given=int(labels[i]),
                suggested=int(others[i].argmax()),
                probability_given=float(probabilities[i, labels[i]]),
                margin=float(margin[i]),
                neighbours=list(map(Neighbour, near[row].tolist(), similarity[row].tolist())),
            )
            for row, i in enumerate(worst.tolist())
        ],
        suspected=len(suspected),
        judged=int(judged.sum()),
        left_out=f"Not judged: {left_out}. " if left_out else "",
        accuracy=100 * float((called == labels).mean()),
        by_class=by_class.words,
    )


def nearest_of_others(
    features: np.ndarray, patients: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities and positions of the k nearest scans of other patients, each (len(queries), k or fewer)."""
    _, groups, counts = np.unique(patients, return_inverse=True, return_counts=True)
    k = min(k, len(features) - int(counts.max()))
    if not len(queries) or k < 1:
        return np.zeros((len(queries), 0)), np.zeros((len(queries), 0), dtype=int)
    similarity, position = neighbours(features, features[queries], k + int(counts.max()))
    # A stable sort moves the own patient's scans behind all others, which stay in order.
    order = np.argsort(groups[position] == groups[queries][:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(position, order, 1)
