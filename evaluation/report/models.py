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
from dino_oct.provenance import TrainedPatients
from dino_oct.scan_data import ScanData
from dino_oct.scores.paired import MODEL
from evaluation.config import ClassTargetOptions, FeatureOptions
from evaluation.inputs.features import extract_features
from evaluation.inputs.model import Model, as_classifier, open_model
from evaluation.inputs.sources import Source, open_source, short_names
from evaluation.maps.methods import MapSettings
from evaluation.report.steps import digest

Kind = Literal["self-supervised", "supervised", "starting weights", "random weights", "other"]
SPLITS = ("train", "val", "test")
WINDOW, STRIDE = 0.2, 0.5  # of occlusion, as shares of the image and of the window
_BATCH, _REPEATS = 16, 5  # scans of a timed pass, and passes of which the median counts


@dataclass
class Candidate:
    """One of the compared models, with what the comparison knows about it.

    Attributes:
        model: opened once, with its own classifier if it has one.
        kind: of the weights; an export without its run is supervised where it has a classifier of named classes.
        content: of its tensors, whatever file holds them.
        settings: all else that makes a network of them: architecture, arguments, normalisation, class names.
        has_own: whether it has a trained classifier of the data's classes.
        provenance: what is known of the data's patients and its training; None where nothing is.
        gaps: column, group or section of the report → why this model has none.
    """

    model: Model
    kind: Kind
    content: str
    settings: dict[str, Any]
    has_own: bool
    provenance: TrainedPatients | None
    data: ScanData
    positions: dict[str, np.ndarray]
    gaps: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Short and unique."""
        return self.model.name

    @property
    def source(self) -> Source:
        """Where it comes from."""
        return self.model.source

    @property
    def architecture(self) -> str:
        """timm's name."""
        return self.model.timm_name

    @property
    def is_judged_by_own(self) -> bool:
        """Whether a comparison judges it by its own classifier: one trained on these scans, as a probe is fitted on
        them; a linear probe of its features otherwise."""
        return self.has_own and self.provenance is not None and self.provenance.is_home

    @property
    def map_settings(self) -> MapSettings:
        """How its maps are made: as ``evaluation/localization.py`` makes them without further options."""
        return MapSettings(self.source.attention_size, window=WINDOW, stride=STRIDE)

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that every step of this model depends on."""
        monitor = self.source.monitor
        return {
            "weights": self.model.weights.sha256,
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
        by_set = extract_features(self.model, FeatureOptions(controls=False), self.data, self.positions).by_set
        return {split: rows[MODEL] for split, rows in by_set.items()}

    @cached_property
    def classifier(self) -> Model:
        """The model with its own classifier, or with a linear probe of its features in its place."""
        return as_classifier(self.model, ClassTargetOptions(classifier="own" if self.has_own else "probe"), self.data)


def open_candidates(names: Sequence[str], data: ScanData, positions: dict[str, np.ndarray]) -> dict[str, Candidate]:
    """Open the sources of a comparison under short unique keys, in the given order.

    Args:
        positions: split → positions of its labelled scans.

    Raises:
        InputError: a model twice, or as ``load_backbone``.
    """
    sources = [open_source(name) for name in names]
    named: dict[str, str] = {}
    candidates = {}
    for key, source in zip(short_names(sources), sources, strict=True):
        candidates[key] = candidate = _open(key, source, data, positions)
        if candidate.content in named:
            raise InputError(
                f"{source.name}: the same weights as {named[candidate.content]} under another name; name every model "
                "once"
            )
        named[candidate.content] = source.name
    return candidates


def check_names(names: Sequence[str]) -> None:
    """Raise InputError where no model is named, or one twice."""
    if not names:
        raise InputError("no model to compare; name them: python evaluation/compare.py --model RUN RUN …")
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


def _open(key: str, source: Source, data: ScanData, positions: dict[str, np.ndarray]) -> Candidate:
    # With its classifier, if there is one: that tells a supervised model from a backbone.
    model = open_model(source, key, with_classifier=True)
    is_trained = model.head == "own" and bool(model.class_names)
    kind: Kind = source.kind if source.kind != "other weights" else "other"
    if kind == "other" and is_trained:  # an export without its run
        kind = "supervised"
    gaps = {}
    if kind != "supervised":
        gaps["classifier"] = "no trained classifier of its own; its linear probe stands beside"
    elif set(model.class_names) != set(data.index.class_names):
        gaps["classifier"] = (
            f"its classifier knows {', '.join(model.class_names)}, the scans are of {', '.join(data.index.class_names)}"
        )
    return Candidate(
        model=model,
        kind=kind,
        content=f"{model.timm_name} {tensor_digest(model.model.state_dict())}",
        settings={**model.model.hub_config, "label_names": list(model.class_names)},
        has_own="classifier" not in gaps,
        provenance=data.provenance_of(source.name),
        data=data,
        positions=positions,
        gaps=gaps,
    )


def facts(candidate: Candidate) -> dict[str, Any]:
    """What the report says about a model, its size and speed included: plain values."""
    classifier = candidate.classifier
    return {
        "parameters": sum(p.numel() for p in classifier.model.parameters()),
        "ms_per_scan": milliseconds(classifier),
        "input_size": list(classifier.input_size),
        "classifier": classifier.head,
        "target": classifier.target,
    }


def milliseconds(model: Model) -> float:
    """Milliseconds a scan of a pass through the classifier at its input size: median of some batches after one to
    warm up. The time of the machine that it runs on, not of the model alone."""
    device = model.device
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
    ordered = np.zeros((len(probabilities), len(class_names)))
    for column, name in enumerate(names):
        ordered[:, list(class_names).index(name)] = probabilities[:, column]
    return ordered
