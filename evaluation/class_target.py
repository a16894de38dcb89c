"""Every model as a classifier, so that any explanation of a class can be asked of it.

A supervised run brings its classifier. Any other backbone gets a linear one, fitted on frozen features of labelled
training scans and put into the model as its timm head: what explains a class sees one kind of model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dino_oct.data.cache import cache_root
from dino_oct.errors import InputError
from dino_oct.features import extract, squash
from dino_oct.limits import Side
from dino_oct.models.backbone import classifier_tensors
from dino_oct.monitor import MonitorConfig
from evaluation.feature_cache import Extraction, FeatureCache, of_network
from evaluation.preprocessing import Preprocessing
from evaluation.probes import Choice, LinearClassifier, choose, logistic_path, standardisation
from evaluation.runs import EvaluationOptions, Frozen, Source, default_device, load_frozen
from evaluation.scan_data import ScanData, open_data
from supervised.layers import classifier_layer, embed
from supervised.zoo import ZooModel, describe

Head = Literal["own", "probe", "prototype"]
_CS = tuple(np.logspace(-5, 2, 20).tolist())  # strengths of the probe, as evaluation/linear.py tries them
_SHARPNESS = tuple(np.logspace(0, 3, 13).tolist())  # factors of the cosine to a prototype


@dataclass
class ClassTargetOptions(EvaluationOptions):
    """Whose logits are explained."""

    classifier: Head | None = None
    """own: the model's; probe: a linear probe of its features; prototype: cosine to each class's mean feature. Unset:
    own where the model has one with class names, else probe."""
    image_size: tuple[Side, Side] | None = None
    """Rows and columns that scans are squashed to; unset: the size that the model was trained or judged at."""


@dataclass(frozen=True)
class Classifier(ZooModel):
    """A classifier in evaluation mode, with what to know about its logits.

    Attributes:
        head: where its last layer comes from.
        weights: what identifies the weights that were loaded, as ``Frozen``.
        fitted: of a fitted head: training and validation scans, its setting, validation balanced accuracy in per cent.
    """

    head: Head = "own"
    weights: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """In words, what a class's logit is."""
        if self.head == "own":
            return "logit of the model's own classifier"
        accuracy = f"validation balanced accuracy {self.fitted['val_balanced_accuracy']:.1f} %"
        if self.head == "probe":
            return f"logit of a linear probe (C {self.fitted['setting']:.3g}, {accuracy})"
        return f"cosine to class prototypes, × {self.fitted['setting']:.3g} ({accuracy})"

    @torch.no_grad()
    def logits(self, scan: np.ndarray) -> np.ndarray:
        """Logits (K,) float64 of a grey scan (H, W) uint8, squashed to the input size."""
        device = next(self.model.parameters()).device
        images = squash(scan, self.input_size)[None].to(device)
        return self.model(self.prepare(images))[0].double().cpu().numpy()

    def class_index(self, name: str) -> int:
        """The logit of a class.

        Raises:
            InputError: no such class.
        """
        if name not in self.class_names:
            raise InputError(f"class {name}: {self.name} has {', '.join(self.class_names[:20])}")
        return self.class_names.index(name)


def open_classifier(source: Source, options: ClassTargetOptions, data: ScanData | None = None) -> Classifier:
    """Load a model with a classifier of named classes, on the device of evaluations; no parameter needs a gradient.

    A probe is the logistic regression that ``evaluation/linear.py`` chooses; a prototype is the mean of the unit
    features of a class, brought to unit length. Each is one linear layer, so the cosine's division by a scan's own
    feature length is replaced by the mean length: this leaves the order of a scan's classes as it is, and changes how
    sharp its probabilities are.

    Args:
        data: labelled scans to fit a head on; unset: opened as the options say, and only if a head must be fitted.

    Raises:
        InputError: no labels to fit a head on, an image size that does not fit, or as ``load_backbone``.
    """
    device = default_device()
    if options.classifier in (None, "own"):
        network = load_frozen(source.name, device, num_classes=None, heads=options.heads)
        names = network.backbone.hub_config.get("label_names", ())
        has_own = network.backbone.load_report.classifier == "loaded"
        if options.classifier == "own" and not has_own:
            raise InputError(
                f"{source.name} has no classifier of its own; use --classifier probe, or name a supervised run"
            )
        if has_own and (names or options.classifier == "own"):
            zoo = describe(network.backbone, source.name, options.image_size)
            zoo.model.eval()
            names = zoo.class_names or tuple(map(str, range(zoo.model.num_classes)))
            return Classifier(**{**vars(zoo), "class_names": names}, weights=network.weights)
    if data is None:
        if source.config is None and options.data is None:
            raise InputError(
                f"{source.name} has no classifier of OCT classes, and without labelled scans none can be fitted; give "
                "them with --data DIR, or name a supervised run with --model"
            )
        data = open_data(source, options.data, options.dataset, options.phantom, print)
    return _with_fitted_head(source, options, data, device)


def _with_fitted_head(source: Source, options: ClassTargetOptions, data: ScanData, device: torch.device) -> Classifier:
    network = load_frozen(source.name, device, heads=options.heads)
    monitor = source.monitor or MonitorConfig()
    zoo = describe(network.backbone, source.name, options.image_size or (source.monitor and monitor.image_size))
    zoo.model.eval()
    try:
        train, val = (data.labelled(split) for split in ("train", "val"))
    except InputError as error:
        raise InputError(
            f"{source.name} has no classifier of its own and none can be fitted ({error}); give labelled scans with "
            "--data DIR, or name a supervised run with --model"
        ) from None
    present, labels = np.unique(data.index.labels[train], return_inverse=True)
    val = val[np.isin(data.index.labels[val], present)]
    if not len(val):
        raise InputError(f"{data.index.root}: no validation scan is of a class that has training scans")
    val_labels = np.searchsorted(present, data.index.labels[val])

    extraction = _extraction(network, device, monitor.batch_size)
    cache, preprocessing = FeatureCache(cache_root(data.dataset)), Preprocessing(tuple(zoo.input_size))
    features, val_features = (
        torch.from_numpy(np.array(cache.get(data.scans, chosen, preprocessing, {"": extraction})[""]))
        for chosen in (train, val)
    )
    head: Head = options.classifier or "probe"
    fit = _probes if head == "probe" else _prototypes
    choice: Choice = choose(fit(features, labels, len(present)), val_features, val_labels)
    put_head(zoo.model, choice.classifier)
    names = tuple(data.index.class_names[c] for c in present)
    fitted = {
        "train": data.counts(train),
        "val": data.counts(val),
        "setting": choice.setting,
        "val_balanced_accuracy": choice.accuracies[choice.setting],
    }
    about = {**vars(zoo), "class_names": names, "embedding_layer": classifier_layer(zoo.model)}
    return Classifier(**about, head=head, weights=network.weights, fitted=fitted)


def _extraction(network: Frozen, device: torch.device, batch_size: int) -> Extraction:
    """What the classifier will see; the image feature, cached by every evaluation, where the two are the same."""
    model = network.backbone
    image_feature = of_network(network, device, batch_size)
    if getattr(model, "cls_token", None) is None or model.global_pool == "token":
        return image_feature
    return Extraction(
        lambda images: extract(model, images, device, batch_size, forward=embed),
        {**image_feature.identity, "kind": "input of the classifier"},
    )


def _probes(features: torch.Tensor, labels: np.ndarray, n_classes: int) -> Iterator[tuple[float, LinearClassifier]]:
    """Logistic regressions on standardised features, as classifiers of the features themselves."""
    mean, scale = (torch.from_numpy(value) for value in standardisation(features.numpy()))
    for c, found in logistic_path((features - mean) / scale, labels, n_classes, _CS):
        weight = found.weight / scale
        yield c, LinearClassifier(weight, found.bias - weight @ mean)


def _prototypes(features: torch.Tensor, labels: np.ndarray, n_classes: int) -> Iterator[tuple[float, LinearClassifier]]:
    """Class means of unit features as weights, for several factors of the cosine."""
    lengths = features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit, classes = features / lengths, torch.from_numpy(labels)
    means = torch.stack([unit[classes == c].mean(dim=0) for c in range(n_classes)])
    directions = means / means.norm(dim=1, keepdim=True).clamp_min(1e-12) / lengths.mean()
    for factor in _SHARPNESS:
        yield factor, LinearClassifier(factor * directions, torch.zeros(n_classes))


@torch.no_grad()
def put_head(model: nn.Module, classifier: LinearClassifier) -> None:
    """Replace a timm model's classifier by a linear one of the features before it, in place.

    Args:
        classifier: of features (D,) as ``supervised.layers.embed`` gives them. Distilled models average two
            classifiers of two tokens, and embed to the tokens' mean: each gets the same weights.
    """
    device = next(model.parameters()).device
    model.reset_classifier(len(classifier.bias))
    model.to(device).requires_grad_(False)
    for name in classifier_tensors(model):
        ours = model.get_parameter(name)
        value = classifier.weight if name.endswith("weight") else classifier.bias
        ours.copy_(value.reshape(ours.shape))
