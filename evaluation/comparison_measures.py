"""What every model of a comparison answers about the same scans, by the protocols of the single evaluations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dino_oct.errors import InputError
from dino_oct.knn import knn_votes
from evaluation import linear
from evaluation.class_target import Classifier
from evaluation.classification import METRICS, score_all
from evaluation.comparison import ScanSet
from evaluation.comparison_cache import StepCache, digest
from evaluation.comparison_models import SPLITS, Model, facts, in_class_order
from evaluation.probes import LinearClassifier
from evaluation.runs import default_device
from evaluation.scan_data import ScanData
from supervised.judge import predict_scans

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
        chosen = self.positions[split]
        return ScanSet(self.data.index.labels[chosen], self.data.index.patients[chosen])

    def identity(self, model: Model | None = None, **settings: Any) -> dict[str, Any]:
        """What a step depends on."""
        of_model = {"model": model.identity} if model else {}
        return {"version": _VERSION, "data": self.digest, **of_model, **settings}


def data_digest(data: ScanData) -> str:
    """Of all that a step may take from the data: pixels and tables of the scans, classes, patients, splits, and what is
    said about them."""
    index, scans = data.index, data.scans
    tables = (scans.digests, scans.sizes, scans.original_sizes, scans.border, scans.brightness, scans.tissue)
    columns = (index.labels, index.patients, index.splits, index.folder_splits)
    seen = data.seen and (sorted(data.seen.patients), data.seen.is_home, data.seen.unknown)
    layout = (index.files, index.class_names, index.mislabelled, index.left_out, index.split_rule, index.notes)
    return digest(
        *map(np.asarray, (*tables, *columns)), np.array(json.dumps((layout, scans.skipped, data.notes, seen)))
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
        facts: as ``comparison_models.facts``.
    """

    knn: dict[int, np.ndarray] = field(default_factory=dict)
    probe: np.ndarray | None = None
    probe_about: dict[str, Any] = field(default_factory=dict)
    classifier: np.ndarray | None = None
    validation: float | None = None
    classifier_validation: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def ask(model: Model, ks: Sequence[int], temperature: float, shared: Setting) -> Answers:
    """Everything one model answers; what it cannot is left out, with the reason in ``model.gaps``."""
    found = Answers()
    try:
        votes = shared.cache.arrays(
            f"knn {model.key}",
            shared.identity(model, k=list(ks), temperature=temperature),
            lambda: _knn(model, ks, temperature, shared),
        )
        found.knn = {k: votes[str(k)] for k in ks}
    except InputError as reason:
        model.gaps["k-NN"] = str(reason)
    try:
        about = shared.cache.arrays(f"linear {model.key}", shared.identity(model), lambda: _linear(model, shared))
        found.probe = about["probabilities"]
        found.probe_about = {name: float(about[name]) for name in ("setting", "validation")}
        found.probe_about["features"] = int(about["features"])
    except InputError as reason:
        model.gaps["linear probe"] = str(reason)
    try:
        answered = shared.cache.arrays(
            f"classifier {model.key}", shared.identity(model), lambda: _classify(model, shared)
        )
        found.classifier = answered["test"]
        found.facts = shared.cache.json(f"facts {model.key}", shared.identity(model), lambda: facts(model))
        labels = shared.set_of("val").labels
        (scores,) = score_all(np.ones((1, len(labels))), labels, answered["val"])
        found.classifier_validation = float(scores[METRICS.index("balanced_accuracy")])
    except InputError as reason:
        for section in ("classifier", "recall of the classifier", "urgent against routine", "confusions", "cases"):
            model.gaps[section] = str(reason)
    found.validation = found.classifier_validation if model.is_judged_by_own else found.probe_about.get("validation")
    return found


def _knn(model: Model, ks: Sequence[int], temperature: float, shared: Setting) -> dict[str, np.ndarray]:
    train, test = model.features["train"], model.features["test"]
    n_classes = len(shared.class_names)
    votes = knn_votes(train, shared.set_of("train").labels, test, ks, n_classes, temperature)
    return {str(k): found for k, found in votes.items()}


def _linear(model: Model, shared: Setting) -> dict[str, np.ndarray]:
    """The fast protocol of ``evaluation/linear.py`` with all labels."""
    features = linear.Features(*(model.features[split] for split in SPLITS))
    train, val = shared.set_of("train"), shared.set_of("val")
    every = np.arange(len(train.labels))
    choice, found = linear.fit_probe(features, train, val, every, linear.Options(), len(shared.class_names))
    return {
        "probabilities": found,
        "setting": np.array(choice.setting),
        "validation": np.array(choice.accuracies[choice.setting]),
        "features": np.array(features.train.shape[1]),
    }


def _classify(model: Model, shared: Setting) -> dict[str, np.ndarray]:
    """Probabilities (N, C) of the validation and the test scans."""
    classifier, found = model.classifier, {}
    for split in ("val", "test"):
        probabilities = None if model.has_own else _from_features(model, split, shared)
        if probabilities is None:
            probabilities = _predict(classifier, shared.positions[split], shared)
        found[split] = in_class_order(probabilities, classifier.class_names, shared.class_names)
    return found


def _predict(classifier: Classifier, positions: np.ndarray, shared: Setting) -> np.ndarray:
    return predict_scans(classifier.model, shared.data.scans, positions, classifier.input_size, default_device())


def _from_features(model: Model, split: str, shared: Setting) -> np.ndarray | None:
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
