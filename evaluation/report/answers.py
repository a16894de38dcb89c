"""What every model of a comparison answers about the same scans, by the protocols of the single evaluations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dino_oct.errors import InputError
from dino_oct.features import predict_scans
from dino_oct.knn import knn_votes
from dino_oct.scan_data import ScanData
from dino_oct.scores.classification import METRICS, score_all
from dino_oct.scores.paired import ScanSet
from evaluation.config import LinearOptions
from evaluation.inputs.model import Model
from evaluation.protocols import linear
from evaluation.report.models import SPLITS, Candidate, facts, in_class_order
from evaluation.report.steps import StepCache, digest
from evaluation.scores.probes import LinearClassifier

_CHECKED = 16  # scans of a pass through the network beside a shortcut
_VERSION = 3  # raise it when a step's result changes: older entries are then not found


@dataclass(frozen=True)
class Setting:
    """What all steps of a comparison share.

    Attributes:
        positions: split → positions of its labelled scans in ``data``.
        digest: as ``data_digest`` gives it.
    """

    data: ScanData
    positions: dict[str, np.ndarray]
    cache: StepCache
    digest: str
    bootstrap: int
    seed: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the data."""
        return self.data.index.class_names

    def set_of(self, split: str) -> ScanSet:
        """Classes and patients of a split's labelled scans."""
        positions = self.positions[split]
        return ScanSet(self.data.index.labels[positions], self.data.index.patients[positions])

    def identity(self, model: Candidate | None = None, **settings: Any) -> dict[str, Any]:
        """What a step depends on."""
        of_model = {"model": model.identity} if model else {}
        return {"version": _VERSION, "data": self.digest, **of_model, **settings}


def data_digest(data: ScanData) -> str:
    """Of all that a step may take from the data: pixels and tables of the scans, classes, patients, splits, and what is
    said about them."""
    index, scans = data.index, data.scans
    tables = (scans.digests, scans.sizes, scans.original_sizes, scans.border, scans.brightness, scans.tissue)
    columns = (index.labels, index.patients, index.splits, index.folder_splits)
    provenance = data.provenance and (
        sorted(data.provenance.patients),
        data.provenance.is_home,
        data.provenance.unknown,
    )
    layout = (index.files, index.class_names, index.mislabelled, index.left_out, index.split_rule, index.notes)
    return digest(
        *map(np.asarray, (*tables, *columns)), np.array(json.dumps((layout, scans.skipped, data.notes, provenance)))
    )


@dataclass
class Answers:
    """Of one model.

    Attributes:
        knn: k → votes (M, C) of the test scans.
        probe: probabilities (M, C) of the linear probe; probe_about: its C, validation balanced accuracy in per cent,
            and width of the features.
        classifier: probabilities (M, C) of the classifier that maps explain (its own, or a probe in its place).
        validation: balanced accuracy in per cent on validation scans of what the model is judged by, its own classifier
            or the probe; classifier_validation: of the classifier that maps explain.
        facts: as ``report.models.facts``.
    """

    knn: dict[int, np.ndarray] = field(default_factory=dict)
    probe: np.ndarray | None = None
    probe_about: dict[str, Any] = field(default_factory=dict)
    classifier: np.ndarray | None = None
    validation: float | None = None
    classifier_validation: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def ask(model: Candidate, ks: Sequence[int], temperature: float, shared: Setting) -> Answers:
    """Everything one model answers; what it cannot is left out, with the reason in ``model.gaps``."""
    answers = Answers()
    try:
        votes = shared.cache.arrays(
            f"knn {model.key}",
            shared.identity(model, k=list(ks), temperature=temperature),
            lambda: _knn(model, ks, temperature, shared),
        )
        answers.knn = {k: votes[str(k)] for k in ks}
    except InputError as reason:
        model.gaps["k-NN"] = str(reason)
    try:
        about = shared.cache.arrays(f"linear {model.key}", shared.identity(model), lambda: _linear(model, shared))
        answers.probe = about["probabilities"]
        answers.probe_about = {name: float(about[name]) for name in ("setting", "validation")}
        answers.probe_about["features"] = int(about["features"])
    except InputError as reason:
        model.gaps["linear probe"] = str(reason)
    try:
        answered = shared.cache.arrays(
            f"classifier {model.key}", shared.identity(model), lambda: _classify(model, shared)
        )
        answers.classifier = answered["test"]
        answers.facts = shared.cache.json(f"facts {model.key}", shared.identity(model), lambda: facts(model))
        labels = shared.set_of("val").labels
        (scores,) = score_all(np.ones((1, len(labels))), labels, answered["val"])
        answers.classifier_validation = float(scores[METRICS.index("balanced_accuracy")])
    except InputError as reason:
        for section in ("classifier", "recall of the classifier", "urgent against routine", "confusions", "cases"):
            model.gaps[section] = str(reason)
    answers.validation = (
        answers.classifier_validation if model.is_judged_by_own else answers.probe_about.get("validation")
    )
    return answers


def _knn(model: Candidate, ks: Sequence[int], temperature: float, shared: Setting) -> dict[str, np.ndarray]:
    train, test = model.features["train"], model.features["test"]
    n_classes = len(shared.class_names)
    votes = knn_votes(train, shared.set_of("train").labels, test, ks, n_classes, temperature)
    return {str(k): scores for k, scores in votes.items()}


def _linear(model: Candidate, shared: Setting) -> dict[str, np.ndarray]:
    """The fast protocol of ``evaluation/linear.py`` with all labels."""
    features = linear.Features(*(model.features[split] for split in SPLITS))
    train, val = shared.set_of("train"), shared.set_of("val")
    every = np.arange(len(train.labels))
    choice, probabilities = linear.fit_probe(features, train, val, every, LinearOptions(), len(shared.class_names))
    return {
        "probabilities": probabilities,
        "setting": np.array(choice.setting),
        "validation": np.array(choice.accuracies[choice.setting]),
        "features": np.array(features.train.shape[1]),
    }


def _classify(model: Candidate, shared: Setting) -> dict[str, np.ndarray]:
    """Probabilities (N, C) of the validation and the test scans."""
    classifier, by_split = model.classifier, {}
    for split in ("val", "test"):
        probabilities = None if model.has_own else _from_features(model, split, shared)
        if probabilities is None:
            probabilities = _predict(classifier, shared.positions[split], shared)
        by_split[split] = in_class_order(probabilities, classifier.class_names, shared.class_names)
    return by_split


def _predict(classifier: Model, positions: np.ndarray, shared: Setting) -> np.ndarray:
    return predict_scans(classifier.model, shared.data.scans, positions, classifier.input_size, classifier.device)


def _from_features(model: Candidate, split: str, shared: Setting) -> np.ndarray | None:
    """What a probe says from the features that are there already; None where a pass through the network, on some scans,
    says something else (its probe then reads another vector)."""
    classifier, features = model.classifier, model.features[split]
    layer = classifier.model.get_submodule(classifier.embedding_layer)
    weight = layer.weight.flatten(1).cpu()
    if weight.shape[1] != features.shape[1]:
        return None
    head = LinearClassifier(weight, layer.bias.cpu())
    probabilities = head.probabilities(torch.from_numpy(np.array(features)))
    some = _predict(classifier, shared.positions[split][:_CHECKED], shared)
    return probabilities if np.allclose(probabilities[: len(some)], some, atol=1e-3) else None
