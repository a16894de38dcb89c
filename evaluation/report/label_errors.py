"""Scans whose label is probably wrong, by a cross-validated classifier, with their nearest neighbours.

The given class of a scan is doubted where a classifier that never saw its patient finds another class at least as
probable as it finds that class, on average, for the scans that are labelled so (the thresholds of confident learning,
Northcutt et al. 2021, section 3). Where the classifier does not know a class, its errors are not the labels': classes
of few patients, and those of which it finds less than 70 %, are not judged. A suspect is a scan to look at again, not
an error: hard scans look the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.model_selection import GroupKFold

from dino_oct.errors import InputError
from dino_oct.features import unit
from dino_oct.scores.class_summary import summarise
from dino_oct.scores.probes import logistic_path, standardisation
from evaluation.report.answers import Answers
from evaluation.report.scans import ShownScans
from evaluation.report.steps import SPLITS, Setting
from evaluation.scores.embeddings import most_neighbours, nearest

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


def suspects(answers: dict[str, Answers], shared: Setting, scans: ShownScans) -> Suspects:
    """Suspected label errors, with positions in ``scans``.

    By the features of the best probe on validation patients among the models that did not learn from these labels, as a
    network fits even a wrong label of its training; of all models where there is no other.

    Raises:
        InputError: the scans are phantoms, no model has a linear probe, or labels cannot be cross-validated.
    """
    if shared.data.is_phantom:
        raise InputError("the labels of phantoms are exact, so none is doubted")
    probed = [of_model for of_model in answers.values() if of_model.probe]
    unlabelled = [of_model for of_model in probed if of_model.model.kind != "supervised"]
    if not probed:
        raise InputError("no model has a linear probe")
    best = max(unlabelled or probed, key=lambda of_model: of_model.probe.validation)
    model, c = best.model, best.probe.setting
    every = np.concatenate([shared.positions[split] for split in SPLITS])
    labels, patients = shared.data.index.labels[every], shared.data.index.patients[every]

    def make() -> Doubts:
        features = np.concatenate([model.features[split] for split in SPLITS])
        return find_suspects(features, labels, patients, shared.class_names, c)

    settings = {"c": c, "most": MOST, "least": [LEAST_PATIENTS, LEAST_RECALL], "neighbours": NEIGHBOURS}
    doubts = model.steps.json("suspects", make, Doubts, **settings)
    among = "among the models that did not learn from these labels" if unlabelled else "of all models"
    learnt = "" if unlabelled else " It learnt from these labels, so errors among its training scans may hide."
    rule = (
        f"logistic regression (C {c:.3g}) on the frozen features of {model.key}, the best probe on validation "
        f"patients {among}. Suspected where another class is more probable, and as probable as it is on average for "
        f"the scans labelled so: {doubts.suspected:,} of {doubts.judged:,} judged scans, the worst "
        f"{len(doubts.worst)} shown. {doubts.left_out}"
        "A suspect is a scan to look at again, not an error: the regression itself finds "
        f"{doubts.accuracy:.1f} % of the given classes ({doubts.by_class}).{learnt}"
    )

    def shown(scan: int) -> int:
        return scans.of(every[[scan]])[0]

    worst = []
    for suspect in doubts.worst:
        near = [Neighbour(shown(neighbour.scan), neighbour.similarity) for neighbour in suspect.neighbours]
        worst.append(replace(suspect, scan=shown(suspect.scan), neighbours=near))
    return Suspects(rule, model.key, worst)


def cross_validated(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, n_classes: int, c: float
) -> np.ndarray:
    """Class probabilities (N, C) of every scan by logistic regressions that saw none of its patient's scans.

    Args:
        features: (N, D), standardised on the scans that each regression is fitted on.
        c: inverse strength of the penalty.

    Raises:
        InputError: fewer than two patients, or a fold that leaves one class only.
    """
    folds = min(FOLDS, len(set(patients.tolist())))
    if folds < 2:
        raise InputError("scans of one patient only: labels cannot be cross-validated")
    probabilities = np.zeros((len(labels), n_classes))
    for train, test in GroupKFold(folds).split(features, labels, patients):
        mean, scale = standardisation(features[train])
        rows, held_out = (torch.from_numpy((features[part] - mean) / scale) for part in (train, test))
        ((_, classifier),) = logistic_path(rows, labels[train], n_classes, [c])
        probabilities[test] = classifier.probabilities(held_out)
    return probabilities


def rivals(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What speaks against the given classes.

    Args:
        probabilities: (N, C) of classifiers that did not see the scan; labels: (N,).

    Returns:
        Of each scan (N,) the most probable other class; the margin, the given class's probability less that one's, from
        −1 to 1; and whether the label is doubted: the other class is more probable, and at least as probable as it is
        on average for the scans labelled so.
    """
    rows, others = np.arange(len(labels)), probabilities.copy()
    others[rows, labels] = -np.inf
    rival, usual = others.argmax(axis=1), np.full(probabilities.shape[1], np.inf)
    for c in np.unique(labels):
        usual[c] = probabilities[labels == c, c].mean()
    margin = probabilities[rows, labels] - probabilities[rows, rival]
    return rival, margin, (margin < 0) & (probabilities[rows, rival] >= usual[rival])


def find_suspects(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, class_names: Sequence[str], c: float,
    most: int = MOST,
) -> Doubts:  # fmt: skip
    """The scans of judged classes whose label ``rivals`` doubts; at most so many are told one by one."""
    probabilities = cross_validated(features, labels, patients, len(class_names), c)
    called = probabilities.argmax(axis=1)
    by_class = summarise(labels, called, class_names)
    few = [name for i, name in enumerate(class_names) if 0 < len(set(patients[labels == i].tolist())) < LEAST_PATIENTS]
    unknown = [name for name, recall in by_class.recall.items() if recall < 100 * LEAST_RECALL and name not in few]
    judged = ~np.isin(labels, [class_names.index(name) for name in (*few, *unknown)])
    rival, margin, is_doubted = rivals(probabilities, labels)
    order = np.argsort(margin, kind="stable")
    suspected = order[(is_doubted & judged)[order]]
    worst, directions = suspected[:most], unit(features)
    near = nearest(features, patients, min(NEIGHBOURS, most_neighbours(patients)), queries=worst)
    similarity = np.einsum("nkd,nd->nk", directions[near], directions[worst])
    reasons = {f"fewer than {LEAST_PATIENTS} patients": few, f"less than {LEAST_RECALL:.0%} recognised": unknown}
    left_out = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items() if names)
    return Doubts(
        worst=[
            Suspect(
                scan=i,
                given=int(labels[i]),
                suggested=int(rival[i]),
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
