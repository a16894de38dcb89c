"""Scans whose label is probably wrong, by a cross-validated classifier, with their nearest neighbours.

The given class of a scan is doubted where a classifier that never saw its patient finds another class at least as
probable as it finds that class, on average, for the scans that are labelled so (the thresholds of confident learning,
Northcutt et al. 2021, section 3). Where the classifier does not know a class, its errors are not the labels': classes
of few patients, and those of which it finds less than 70 %, are not judged. A suspect is a scan to look at again, not
an error: hard scans look the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import GroupKFold

from dino_oct.class_summary import summarise
from dino_oct.errors import InputError
from dino_oct.knn import neighbours
from evaluation.comparison_files import ShownScans
from evaluation.comparison_measures import Answers, Setting
from evaluation.comparison_models import SPLITS, Model
from evaluation.probes import logistic_path, standardisation

FOLDS, MOST, NEIGHBOURS = 5, 24, 5
LEAST_PATIENTS = 2 * FOLDS  # of a class, so that a fold holds out two and the others teach it
LEAST_RECALL = 0.7


class Suspect(NamedTuple):
    """A doubted label; ``scan`` and the neighbours are positions in the features.

    Attributes:
        margin: probability of the given class less that of the most probable other one.
        near: nearest scans of other patients, the nearest first; similarities: their cosines.
    """

    scan: int
    given: int
    suggested: int
    probability_given: float
    margin: float
    near: list[int]
    similarities: list[float]


def suspects(
    models: dict[str, Model], answers: dict[str, Answers], shared: Setting, scans: ShownScans
) -> dict[str, Any]:
    """``results["suspects"]``.

    By the features of the best probe on validation patients among the models that did not learn from these labels, as a
    network fits even a wrong label of its training; of all models where there is no other.

    Raises:
        InputError: the scans are phantoms, no model has a linear probe, or labels cannot be cross-validated.
    """
    if shared.data.is_phantom:
        raise InputError("the labels of phantoms are exact, so none is doubted")
    probed = {key: one.probe_about["validation"] for key, one in answers.items() if one.probe_about}
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
        found, about = find_suspects(features, labels, patients, shared.class_names, c)
        return {"found": [one._asdict() for one in found], **about}

    settings = {"c": c, "most": MOST, "least": [LEAST_PATIENTS, LEAST_RECALL]}
    made = shared.cache.json(f"suspects {key}", shared.identity(model, **settings), find)
    among = "among the models that did not learn from these labels" if unlabelled else "of all models"
    learnt = "" if unlabelled else " It learnt from these labels, so errors among its training scans may hide."
    return {
        "rule": f"logistic regression (C {c:.3g}) on the frozen features of {key}, the best probe on validation "
        f"patients {among}. Suspected where another class is more probable, and as probable as it is on average for "
        f"the scans labelled so: {made['suspected']:,} of {made['judged']:,} judged scans, the worst "
        f"{len(made['found'])} shown. {made['left_out']}"
        "A suspect is a scan to look at again, not an error: the regression itself finds "
        f"{made['accuracy']:.1f} % of the given classes ({made['by_class']}).{learnt}",
        "model": key,
        "found": [_shown(one, every, scans) for one in made["found"]],
    }


def _shown(one: dict[str, Any], every: np.ndarray, scans: ShownScans) -> dict[str, Any]:
    near = zip(scans.of(every[one["near"]]), one["similarities"], strict=True)
    return {
        "scan": scans.of([every[one["scan"]]])[0],
        **{name: one[name] for name in ("given", "suggested", "probability_given", "margin")},
        "neighbours": [{"scan": i, "similarity": similarity} for i, similarity in near],
    }


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
    found = np.zeros((len(labels), n_classes))
    for train, test in GroupKFold(folds).split(features, labels, patients):
        mean, scale = standardisation(features[train])
        rows, held_out = (torch.from_numpy((features[part] - mean) / scale) for part in (train, test))
        ((_, classifier),) = logistic_path(rows, labels[train], n_classes, [c])
        found[test] = classifier.probabilities(held_out)
    return found


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
) -> tuple[list[Suspect], dict[str, Any]]:  # fmt: skip
    """The scans of judged classes that are ``doubted``, those of the lowest margin first.

    Returns:
        At most so many suspects; and ``accuracy`` (of the cross-validation, per cent), ``by_class`` (what it hides, in
        words), ``judged`` and ``suspected`` (scans in all), ``left_out`` (classes that are not judged, a sentence).
    """
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
    found = [
        Suspect(
            scan=int(i),
            given=int(labels[i]),
            suggested=int(others[i].argmax()),
            probability_given=float(probabilities[i, labels[i]]),
            margin=float(margin[i]),
            near=near[row].tolist(),
            similarities=similarity[row].tolist(),
        )
        for row, i in enumerate(worst.tolist())
    ]
    reasons = {f"fewer than {LEAST_PATIENTS} patients": few, f"less than {LEAST_RECALL:.0%} recognised": unknown}
    left_out = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items() if names)
    return found, {
        "accuracy": 100 * float((called == labels).mean()),
        "by_class": by_class.words,
        "judged": int(judged.sum()),
        "suspected": len(suspected),
        "left_out": f"Not judged: {left_out}. " if left_out else "",
    }


def nearest_of_others(
    features: np.ndarray, patients: np.ndarray, asked: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities and positions of the k nearest scans of other patients, each (len(asked), k or fewer)."""
    _, groups, counts = np.unique(patients, return_inverse=True, return_counts=True)
    k = min(k, len(features) - int(counts.max()))
    if not len(asked) or k < 1:
        return np.zeros((len(asked), 0)), np.zeros((len(asked), 0), dtype=int)
    similarity, position = neighbours(features, features[asked], k + int(counts.max()))
    # A stable sort moves the own patient's scans behind all others, which stay in order.
    order = np.argsort(groups[position] == groups[asked][:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(position, order, 1)
