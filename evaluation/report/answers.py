"""What every model of a comparison answers about the same scans, by the protocols of the single evaluations."""

from dataclasses import dataclass, field

import numpy as np
import torch

from dino_oct.errors import InputError
from dino_oct.features import predict_scans
from dino_oct.knn import knn_votes
from dino_oct.scores.classification import METRICS, Reliability, score_all
from dino_oct.scores.paired import Result
from dino_oct.scores.probes import LinearClassifier
from evaluation.config import LinearOptions
from evaluation.inputs.model import Model
from evaluation.inputs.steps import Arrays
from evaluation.protocols import linear
from evaluation.report.models import CLASSIFIER, KNN, LINEAR, RECALL, URGENCY, Candidate, Facts, facts
from evaluation.report.steps import SPLITS, Setting

_CHECKED = 16  # scans of a pass through the network beside a shortcut


@dataclass(frozen=True)
class Probe:
    """A linear probe: its probabilities (M, C) of the test scans, its C, its per cent balanced accuracy on validation
    patients, and the width of its features."""

    probabilities: np.ndarray
    setting: float
    validation: float
    features: int


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    """Of a linear probe, with ``Probe``'s numbers."""

    setting: float
    validation: float
    features: int


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


@dataclass
class Answers:
    """Of one model.

    Attributes:
        knn: k → votes (M, C) of the test scans.
        on_validation: protocol, as in ``by_protocol`` → scores (V, C) of the validation scans.
        classifier: probabilities (M, C) of the classifier that maps explain (its own, or a probe in its place);
            classifier_validation: its per cent balanced accuracy on validation scans.
        values, results, reliability, confusion: as ``table.score`` fills them: column or metric → (1 + resamples,), row
            0 the scans as they are (a calibration error has row 0 alone); protocol → what the single evaluation says;
            protocol that states probabilities → how far they can be relied on; and of ``classifier``.
    """

    model: Candidate
    knn: dict[int, np.ndarray] = field(default_factory=dict)
    on_validation: dict[str, np.ndarray] = field(default_factory=dict)
    probe: Probe | None = None
    classifier: np.ndarray | None = None
    classifier_validation: float | None = None
    facts: Facts = field(default_factory=Facts)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    confusion: Confusion | None = None

    @property
    def by_protocol(self) -> dict[str, np.ndarray]:
        """Class scores (M, C) of the test scans by each protocol that the model has: k-NN, linear probe, own
        classifier."""
        scores = {f"knn_{k}": votes for k, votes in self.knn.items()}
        if self.probe:
            scores["linear"] = self.probe.probabilities
        if self.model.has_own and self.classifier is not None:
            scores["classifier"] = self.classifier
        return scores

    @property
    def judged_by(self) -> str:
        """The protocol that the model is judged by."""
        return "classifier" if self.model.is_judged_by_own else "linear"

    @property
    def validation(self) -> float | None:
        """Per cent balanced accuracy on validation scans of what the model is judged by."""
        return self.classifier_validation if self.model.is_judged_by_own else self.probe and self.probe.validation


def ask(model: Candidate, shared: Setting) -> Answers:
    """Everything one model answers; what it cannot is left out, with the reason in ``model.gaps``."""
    answers, ks, temperature = Answers(model), shared.options.k, shared.options.temperature
    try:
        votes = model.steps.arrays("knn", lambda: _knn(model, shared), k=list(ks), temperature=temperature)
        answers.knn = {k: votes[f"test {k}"] for k in ks}
        answers.on_validation |= {f"knn_{k}": votes[f"val {k}"] for k in ks}
    except InputError as reason:
        model.gaps[KNN] = str(reason)
    try:
        probe = model.steps.arrays("linear", lambda: _linear(model, shared))
        numbers = float(probe["setting"]), float(probe["validation"]), int(probe["features"])
        answers.probe = Probe(probe["test"], *numbers)
        answers.on_validation["linear"] = probe["val"]
    except InputError as reason:
        model.gaps[LINEAR] = str(reason)
    try:
        probabilities = model.steps.arrays("classifier", lambda: _classify(model, shared))
        answers.classifier = probabilities["test"]
        if model.has_own:
            answers.on_validation["classifier"] = probabilities["val"]
        answers.facts = model.steps.json("facts", lambda: facts(model), Facts)
        labels = shared.set_of("val").labels
        (scores,) = score_all(np.ones((1, len(labels))), labels, probabilities["val"])
        answers.classifier_validation = float(scores[METRICS.index("balanced_accuracy")])
    except InputError as reason:
        model.gaps |= dict.fromkeys((CLASSIFIER, RECALL, URGENCY, "confusions", "cases"), str(reason))
    return answers


def _knn(model: Candidate, shared: Setting) -> Arrays:
    train, labels, n_classes = model.features["train"], shared.set_of("train").labels, len(shared.class_names)
    votes = {}
    for split in ("val", "test"):
        by_k = knn_votes(train, labels, model.features[split], shared.options.k, n_classes, shared.options.temperature)
        votes |= {f"{split} {k}": scores for k, scores in by_k.items()}
    return votes


def features_of(model: Candidate) -> linear.Features:
    """A model's features as the linear probe takes them."""
    return linear.Features(*(model.features[split] for split in SPLITS))


def _linear(model: Candidate, shared: Setting) -> Arrays:
    """The fast protocol of ``evaluation/linear.py`` with all labels."""
    features = features_of(model)
    train, val = shared.set_of("train"), shared.set_of("val")
    every = np.arange(len(train.labels))
    choice, probabilities = linear.fit_probe(features, train, val, every, LinearOptions(), len(shared.class_names))
    return {
        "test": probabilities,
        "val": choice.probabilities,
        "setting": np.array(choice.setting),
        "validation": np.array(choice.accuracies[choice.setting]),
        "features": np.array(features.train.shape[1]),
    }


def _classify(model: Candidate, shared: Setting) -> Arrays:
    """Probabilities (N, C) of the validation and the test scans; 0 for a class that the classifier does not know."""
    classifier, by_split = model.classifier, {}
    known = [shared.class_names.index(name) for name in classifier.class_names]
    for split in ("val", "test"):
        probabilities = None if model.has_own else _from_features(model, split, shared)
        if probabilities is None:
            probabilities = _predict(classifier, shared.positions[split], shared)
        by_split[split] = np.zeros((len(probabilities), len(shared.class_names)))
        by_split[split][:, known] = probabilities
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
