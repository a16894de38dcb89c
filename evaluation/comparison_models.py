"""The models of a comparison: what each is, what it can answer, and what it costs."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dino_oct.errors import InputError
from dino_oct.models.official import digest as tensor_digest
from dino_oct.provenance import Seen
from evaluation.class_target import Classifier, ClassTargetOptions, open_classifier
from evaluation.comparison import MODEL
from evaluation.comparison_cache import digest
from evaluation.explanations import short_names
from evaluation.frozen_features import FeatureOptions, extract_features
from evaluation.map_methods import MapSettings
from evaluation.runs import Source, load_frozen, open_source
from evaluation.scan_data import ScanData

Kind = Literal["self-supervised", "supervised", "starting weights", "random weights", "other"]
SPLITS = ("train", "val", "test")
WINDOW, STRIDE = 0.2, 0.5  # of occlusion, as shares of the image and of the window
_BATCH, _REPEATS = 16, 5  # scans of a timed pass, and passes of which the median counts


@dataclass
class Model:
    """One of the compared models. Weights are opened when a step needs them, so that a cached step opens none.

    Attributes:
        key: short and unique.
        sha256: first 16 digits of its weights' file; content: of its tensors, whatever file holds them.
        settings: all else that makes a network of them: architecture, arguments, normalisation, class names.
        loaded: in words, what was loaded.
        has_own: whether it has a trained classifier of the data's classes.
        seen: what is known of the data's patients and its training; None where nothing is.
        gaps: column, group or section of the report → why this model has none.
    """

    key: str
    source: Source
    kind: Kind
    architecture: str
    sha256: str
    content: str
    settings: dict[str, Any]
    loaded: str
    has_own: bool
    seen: Seen | None
    data: ScanData
    positions: dict[str, np.ndarray]
    gaps: dict[str, str] = field(default_factory=dict)

    @property
    def is_judged_by_own(self) -> bool:
        """Whether a comparison judges it by its own classifier: one trained on these scans, as a probe is fitted on
        them; a linear probe of its features otherwise."""
        return self.has_own and self.seen is not None and self.seen.is_home

    @property
    def map_settings(self) -> MapSettings:
        """How its maps are made: as ``evaluation/localization.py`` makes them without further options."""
        return MapSettings(self.source.attention_size, window=WINDOW, stride=STRIDE)

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that every step of this model depends on."""
        monitor = self.source.monitor
        return {
            "weights": self.sha256,
            "settings": self.settings,
            "kind": self.kind,
            "own": self.has_own,
            "image_size": list(monitor.image_size) if monitor else None,
            "maps": dataclasses.asdict(self.map_settings),
        }

    @property
    def start_digest(self) -> str | None:
        """Of the weights before training, which the league shows beside a run's; None where there are none."""
        start = self.source.run and self.source.run / "checkpoints" / "start"
        if start is None or not (start / "config.json").is_file():
            return None
        files = sorted(file for file in start.iterdir() if file.is_file())
        return digest(*(np.frombuffer(file.name.encode() + file.read_bytes(), np.uint8) for file in files))

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Frozen features (N, D) of the labelled scans of each split, as ``evaluation/knn.py`` takes them."""
        options = FeatureOptions(controls=False)
        found = extract_features(self.source, options, self.data, self.positions).by_set
        return {split: rows[MODEL] for split, rows in found.items()}

    @cached_property
    def classifier(self) -> Classifier:
        """The model's own classifier, or a linear probe of its features in its place."""
        head = "own" if self.has_own else "probe"
        return open_classifier(self.source, ClassTargetOptions(classifier=head), self.data)


def open_models(names: Sequence[str], data: ScanData, positions: dict[str, np.ndarray]) -> dict[str, Model]:
    """Open the sources of a comparison under short unique keys, in the given order.

    Args:
        positions: split → positions of its labelled scans.

    Raises:
        InputError: a model twice, or as ``load_backbone``.
    """
    sources = [open_source(name) for name in names]
    models = [_open(key, source, data, positions) for key, source in zip(short_names(sources), sources, strict=True)]
    named: dict[str, str] = {}
    for model in models:
        if model.content in named:
            raise InputError(
                f"{model.source.name}: the same weights as {named[model.content]} under another name; name every "
                "model once"
            )
        named[model.content] = model.source.name
    return {model.key: model for model in models}


def check_names(names: Sequence[str]) -> None:
    """Raise InputError where no model is named, or one twice."""
    if not names:
        raise InputError("no model to compare; name runs or other SOURCEs: python evaluation/compare.py RUN RUN …")
    seen: dict[str, str] = {}
    for name in names:
        source = open_source(name)
        # A run and its export are the same weights.
        same = (
            str(source.run.resolve()) if source.is_final else str(Path(name).resolve() if Path(name).exists() else name)
        )
        if same in seen:
            raise InputError(f"{name}: the same model as {seen[same]}; name every model once")
        seen[same] = name


def _open(key: str, source: Source, data: ScanData, positions: dict[str, np.ndarray]) -> Model:
    # With its classifier, if there is one: that tells a supervised model from a backbone.
    network = load_frozen(source.name, torch.device("cpu"), num_classes=None)
    backbone = network.backbone
    names = backbone.hub_config.get("label_names", ())
    trained = backbone.load_report.classifier == "loaded" and bool(names)
    kind: Kind = source.kind if source.kind != "other weights" else "other"
    if kind == "other" and trained:  # an export without its run
        kind = "supervised"
    gaps = {}
    if kind != "supervised":
        gaps["classifier"] = "no trained classifier of its own; its linear probe stands beside"
    elif set(names) != set(data.index.class_names):
        gaps["classifier"] = (
            f"its classifier knows {', '.join(names)}, the scans are of {', '.join(data.index.class_names)}"
        )
    return Model(
        key=key,
        source=source,
        kind=kind,
        architecture=backbone.hub_config["architecture"],
        sha256=network.weights["sha256"],
        content=f"{backbone.hub_config['architecture']} {tensor_digest(backbone.state_dict())}",
        settings={**backbone.hub_config, "label_names": list(names)},
        loaded=network.weights["loaded"],
        has_own="classifier" not in gaps,
        seen=data.seen_by(source.name),
        data=data,
        positions=positions,
        gaps=gaps,
    )


def facts(model: Model) -> dict[str, Any]:
    """What the report says about a model, its size and speed included: plain values."""
    found = model.classifier
    return {
        "parameters": sum(p.numel() for p in found.model.parameters()),
        "ms_per_scan": milliseconds(found),
        "input_size": list(found.input_size),
        "classifier": found.head,
        "target": found.target,
    }


def milliseconds(model: Classifier) -> float:
    """Milliseconds a scan of a pass through the classifier at its input size: median of some batches after one to
    warm up. The time of the machine that it runs on, not of the model alone."""
    device = next(model.model.parameters()).device
    images = model.prepare(torch.zeros(_BATCH, 1, *model.input_size, dtype=torch.uint8, device=device))
    seconds = []
    with torch.no_grad():
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            model.model(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[1:])) / _BATCH


def in_class_order(probabilities: np.ndarray, names: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Probabilities (N, K) of a classifier's classes as columns of the data's classes (N, C), 0 for one that it does
    not know."""
    found = np.zeros((len(probabilities), len(class_names)))
    for column, name in enumerate(names):
        found[:, list(class_names).index(name)] = probabilities[:, column]
    return found
