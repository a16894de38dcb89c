"""The network under evaluation, opened once: what it is, its images, its features' network, its logits, its origin.

A supervised run brings its classifier. Any other backbone gets a linear one, fitted on frozen features of labelled
training scans and put into the network as its timm head: what explains a class sees one kind of model.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import nn

from dino_oct.data.index import cache_root
from dino_oct.devices import default_device
from dino_oct.errors import InputError
from dino_oct.features import extract, resize
from dino_oct.models.backbone import check_size, patch_size, random_twin
from dino_oct.models.classifier import Classifier, describe_classifier
from dino_oct.models.frozen import RandomWeights, Weights, freeze, load_frozen
from dino_oct.models.layers import classifier_layer, embed
from dino_oct.models.loading import classifier_tensors
from dino_oct.monitor import MonitorConfig
from dino_oct.phases import phase
from dino_oct.scan_data import ScanCounts, ScanData
from dino_oct.scores.paired import RANDOM
from dino_oct.scores.probes import LinearClassifier, choose, logistic_path, standardisation
from dino_oct.streams import seed_of
from evaluation.config import ClassTargetOptions, Head
from evaluation.inputs.feature_cache import Extraction, FeatureCache, of_network
from evaluation.inputs.preprocessing import Preprocessing
from evaluation.inputs.scans import open_data
from evaluation.inputs.selection import Chosen
from evaluation.inputs.sources import Source, short_names

_CS = tuple(np.logspace(-5, 2, 20).tolist())  # strengths of the probe, as evaluation/linear.py tries them
_SHARPNESS = tuple(np.logspace(0, 3, 13).tolist())  # factors of the cosine to a prototype


@dataclass(frozen=True)
class FittedHead:
    """A classifier that was fitted for an evaluation.

    Attributes:
        train, val: counts of the scans that it was fitted and chosen on.
        setting: C of a probe, factor of the cosine of prototypes.
        val_balanced_accuracy: per cent.
    """

    train: ScanCounts
    val: ScanCounts
    setting: float
    val_balanced_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Model(Classifier):
    """A network in evaluation mode on the device of evaluations; no parameter needs a gradient.

    Attributes:
        name: short, as tables show it.
        source: where it comes from.
        head: where its classifier comes from; None: it has none.
        fitted: of a fitted head.
    """

    source: Source
    head: Head | None = None
    fitted: FittedHead | None = None

    @property
    def kind(self) -> str:
        """As ``Source.kind``."""
        return self.source.kind

    @property
    def weights(self) -> Weights:
        """What identifies its weights."""
        return self.model.weights

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    @property
    def is_random(self) -> bool:
        """Whether nothing was loaded: a control."""
        return self.model.load_report.matched == 0

    @property
    def batch_size(self) -> int:
        """Scans per pass of an extraction."""
        return (self.source.monitor or MonitorConfig()).batch_size

    @property
    def target(self) -> str | None:
        """In words, what a class's logit is; None without classes."""
        if not self.class_names:
            return None
        if self.fitted is None:
            return "logit of the model's own classifier"
        accuracy = f"validation balanced accuracy {self.fitted.val_balanced_accuracy:.1f} %"
        if self.head == "probe":
            return f"logit of a linear probe (C {self.fitted.setting:.3g}, {accuracy})"
        return f"cosine to class prototypes, × {self.fitted.setting:.3g} ({accuracy})"

    def preprocessing(self, image_size: Sequence[int] | None = None, protocol: str = "squash") -> Preprocessing:
        """How its images are made, unset: of its input size; InputError for a size that is no multiple of the patch, or
        not square where the protocol crops squares."""
        size = tuple(image_size or self.input_size)
        check_size(size, self.model, "image-size")
        return Preprocessing(size, protocol)

    def forward(self, grey: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of grey images (B, 1, H, W) of the input size, uint8 or in [0, 1]."""
        return self.model(self.prepare(grey.to(self.device)))

    @torch.no_grad()
    def logits(self, scan: np.ndarray) -> np.ndarray:
        """Logits (K,) float64 of a grey scan (H, W) uint8, resized to the input size."""
        return self.forward(resize(scan, self.input_size)[None])[0].double().cpu().numpy()

    def class_index(self, name: str) -> int:
        """The logit of a class; InputError where there is no such class."""
        if name not in self.class_names:
            raise InputError(f"class {name}: {self.name} has {', '.join(self.class_names[:20])}")
        return self.class_names.index(name)


@phase("opening the network")
def open_model(
    source: Source,
    name: str = "",
    *,
    image_size: Sequence[int] | None = None,
    heads: int | None = None,
    with_classifier: bool = False,
) -> Model:
    """Load a network.

    Args:
        name: short and unique; unset: the source's.
        image_size: rows and columns of its images; unset: the size that a pretraining was judged at, or the network's
            own, down to a multiple of the patch.
        heads: attention heads, for a file whose tensors do not tell.
        with_classifier: with the source's own classifier, if it has one.

    Raises:
        InputError: an image size that does not fit, or as ``load_backbone``.
    """
    network = load_frozen(source.name, default_device(), num_classes=None if with_classifier else 0, heads=heads)
    if image_size:
        check_size(tuple(image_size), network, "image-size")
    elif source.monitor:
        image_size = source.monitor.image_size
    return _describe(network, name or source.short_name, source, image_size)


def _describe(network: nn.Module, name: str, source: Source, image_size: Sequence[int] | None) -> Model:
    if not image_size:
        patch = patch_size(network)
        image_size = tuple(max(side // patch, 1) * patch for side in network.pretrained_cfg["input_size"][-2:])
    classifier = describe_classifier(network, name, image_size)
    network.eval()
    head: Head | None = "own" if network.load_report.classifier == "loaded" else None
    return Model(**vars(classifier), source=source, head=head)


def random_control(model: Model, seed: int) -> Model | str:
    """The model's architecture with random weights, or why that would say nothing new.

    LayerScale is 1 in it: at timm's 1e-5 all scans would have the same features.
    """
    if model.source.config is not None and model.source.config.starts_from_random:
        return "no row for random weights: the run started from random weights, so the starting weights are that row"
    if model.is_random:
        return "no row for random weights: the model itself has random weights"
    source = Source(f"random:{model.timm_name}")
    network = freeze(random_twin(model.model, seed_of("random control", seed)), source.name, model.device)
    network.weights = RandomWeights(**vars(network.weights), seed=seed)
    return _describe(network, RANDOM, source, model.input_size)


def open_classifiers(
    sources: Sequence[Source], options: ClassTargetOptions, data: ScanData | None = None
) -> dict[str, Model]:
    """The models of some sources as classifiers, by their short names; raises as ``short_names``, ``open_model`` and
    ``as_classifier``."""
    opening = {"image_size": options.image_size, "heads": options.heads}
    has_own = options.classifier in (None, "own")
    return {
        name: as_classifier(open_model(source, name, **opening, with_classifier=has_own), options, data)
        for name, source in zip(short_names(sources), sources, strict=True)
    }


def as_classifier(model: Model, options: ClassTargetOptions, data: ScanData | None = None) -> Model:
    """The model with a classifier of named classes: its own, or one that is fitted and replaces its own in the network.

    A probe is the logistic regression that ``evaluation/linear.py`` chooses; a prototype is the mean of the unit
    features of a class, brought to unit length. Each is one linear layer, so the cosine's division by a scan's own
    feature length is replaced by the mean length: this leaves the order of a scan's classes as it is, and changes how
    sharp its probabilities are.

    Args:
        data: labelled scans to fit a head on; unset: opened as the options say, and only if a head must be fitted.

    Raises:
        InputError: no classifier where the model's own is asked for, or no labels to fit one on.
    """
    source = model.source
    if options.classifier == "own" and model.head != "own":
        raise InputError(
            f"{source.name} has no classifier of its own; use --classifier probe, or name a supervised run"
        )
    if options.classifier in (None, "own") and model.head == "own" and model.model.hub_config.get("multilabel"):
        raise InputError(
            f"{source.name}: its classifier gives several labels a scan ({', '.join(model.class_names[:20])}), and "
            "this explains one class a scan; --classifier probe fits one to the scans of --data DIR"
        )
    if options.classifier in (None, "own") and model.head == "own" and (model.class_names or options.classifier):
        names = model.class_names or tuple(map(str, range(model.model.num_classes)))
        return dataclasses.replace(model, class_names=names)
    if data is None:
        if source.config is None and options.data is None:
            raise InputError(
                f"{source.name} has no classifier of OCT classes, and without labelled scans none can be fitted; give "
                "them with --data DIR, or name a supervised run with --model"
            )
        data = open_data(source, options)
    return _with_fitted_head(model, options.classifier or "probe", data)


@phase("fitting a classifier")
def _with_fitted_head(model: Model, head: Head, data: ScanData) -> Model:
    try:
        train, val = (data.labelled(split) for split in ("train", "val"))
    except InputError as error:
        raise InputError(
            f"{model.source.name} has no classifier of its own and none can be fitted ({error}); give labelled scans "
            "with --data DIR, or name a supervised run with --model"
        ) from None
    present, labels = np.unique(data.index.labels[train], return_inverse=True)
    val = val[np.isin(data.index.labels[val], present)]
    if not len(val):
        raise InputError(f"{data.index.root}: no validation scan is of a class that has training scans")
    val_labels = np.searchsorted(present, data.index.labels[val])

    extraction, cache = classifier_input(model), FeatureCache(cache_root(data.dataset))
    features, val_features = (
        torch.from_numpy(np.array(cache.get(data.scans, positions, model.preprocessing(), {"": extraction})[""]))
        for positions in (train, val)
    )
    fit = _probes if head == "probe" else _prototypes
    choice = choose(fit(features, labels, len(present)), val_features, val_labels)
    put_head(model.model, choice.classifier)
    return dataclasses.replace(
        model,
        head=head,
        class_names=tuple(data.index.class_names[c] for c in present),
        embedding_layer=classifier_layer(model.model),
        fitted=FittedHead(data.counts(train), data.counts(val), choice.setting, choice.accuracies[choice.setting]),
    )


def classifier_input(model: Model) -> Extraction:
    """What the classifier will see; the image feature, cached by every evaluation, where the two are the same."""
    network, image_feature = model.model, of_network(model.model, model.device, model.batch_size)
    if getattr(network, "cls_token", None) is None or network.global_pool == "token":
        return image_feature
    return Extraction(
        lambda images: extract(network, images, model.device, model.batch_size, forward=embed),
        {**image_feature.identity, "kind": "input of the classifier"},
    )


def _probes(features: torch.Tensor, labels: np.ndarray, n_classes: int) -> Iterator[tuple[float, LinearClassifier]]:
    """Logistic regressions on standardised features, as classifiers of the features themselves."""
    mean, scale = (torch.from_numpy(value) for value in standardisation(features.numpy()))
    for c, standardised in logistic_path((features - mean) / scale, labels, n_classes, _CS):
        weight = standardised.weight / scale
        yield c, LinearClassifier(weight, standardised.bias - weight @ mean)


def _prototypes(features: torch.Tensor, labels: np.ndarray, n_classes: int) -> Iterator[tuple[float, LinearClassifier]]:
    """Class means of unit features as weights, for several factors of the cosine."""
    unit, classes = F.normalize(features, dim=1), torch.from_numpy(labels)
    means = torch.stack([unit[classes == c].mean(dim=0) for c in range(n_classes)])
    directions = F.normalize(means, dim=1) / features.norm(dim=1).clamp_min(1e-12).mean()
    for factor in _SHARPNESS:
        yield factor, LinearClassifier(factor * directions, torch.zeros(n_classes))


@torch.no_grad()
def put_head(network: nn.Module, classifier: LinearClassifier) -> None:
    """Replace a timm model's classifier by a linear one of the features before it, in place.

    Args:
        classifier: of features (D,) as ``models.layers.embed`` gives them. Distilled models average two classifiers of
            two tokens, and embed to the tokens' mean: each gets the same weights.
    """
    device = next(network.parameters()).device
    network.reset_classifier(len(classifier.bias))
    network.to(device).requires_grad_(False)
    for name in classifier_tensors(network):
        parameter = network.get_parameter(name)
        value = classifier.weight if name.endswith("weight") else classifier.bias
        parameter.copy_(value.reshape(parameter.shape))


class AnswerFacts(TypedDict):
    """The classes that a model calls and explains, and its logit and probability of each class by name."""

    predicted: str
    explained: str
    logits: dict[str, float]
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """What a model says about a scan: its input (1, H, W) uint8, its logits (K,), and the class to explain."""

    model: Model
    scan: Chosen
    image: torch.Tensor
    logits: np.ndarray
    target: int

    @property
    def probabilities(self) -> np.ndarray:
        """(K,) float64."""
        return softmax(self.logits)

    @property
    def called(self) -> str:
        """Name of the most probable class."""
        return self.model.class_names[int(self.logits.argmax())]

    @property
    def verdict(self) -> str:
        """The class that the model calls, with its probability, and whether it is right where the class is known."""
        is_wrong = self.scan.label in self.model.class_names and self.called != self.scan.label
        return f"{self.called} {100 * self.probabilities.max():.0f} %" + (" (wrong)" if is_wrong else "")

    @property
    def explained(self) -> str:
        """Name of the class to explain."""
        return self.model.class_names[self.target]

    def facts(self) -> AnswerFacts:
        """For the JSON file."""
        names = self.model.class_names
        return {
            "predicted": self.called,
            "explained": self.explained,
            "logits": dict(zip(names, self.logits.tolist(), strict=True)),
            "probabilities": dict(zip(names, self.probabilities.tolist(), strict=True)),
        }


def ask(model: Model, scan: Chosen, target: str = "predicted") -> Answer:
    """Classify a scan, and settle which class is explained (``predicted``, ``true`` or a name); InputError where the
    scan or the model has no such class."""
    image, logits = resize(scan.scan, model.input_size), model.logits(scan.scan)
    if target == "predicted":
        index = int(logits.argmax())
    elif target == "true" and scan.label is None:
        raise InputError(f"{scan.file}: its class is not known; give --target predicted or a class name")
    else:
        index = model.class_index(scan.label if target == "true" else target)
    return Answer(model, scan, image, logits, index)
