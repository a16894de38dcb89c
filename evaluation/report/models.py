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
from dino_oct.scores.paired import MODEL
from evaluation.config import ClassTargetOptions, FeatureOptions, Head
from evaluation.inputs.features import extract_features
from evaluation.inputs.model import Model, as_classifier, open_model
from evaluation.inputs.sources import Source, open_source, short_names
from evaluation.inputs.steps import StepCache
from evaluation.maps.methods import MapSettings
from evaluation.report.steps import Setting

Kind = Literal["self-supervised", "supervised", "starting weights", "random weights", "other"]
# Groups of the table's columns, and what a model's gaps are named by.
KNN, LINEAR, CLASSIFIER, RECALL, URGENCY, COST = (
    "k-NN", "linear probe", "classifier", "recall of the classifier", "urgent against routine", "cost",
)  # fmt: skip
WINDOW, STRIDE = 0.2, 0.5  # of occlusion, as shares of the image and of the window
_BATCH, _REPEATS = 16, 5  # scans of a timed pass, and passes of which the median counts


@dataclass
class Candidate:
    """One of the compared models, with what the comparison knows about it.

    Attributes:
        model: opened once, with its own classifier if it has one.
        kind: of the weights; an export without its run is supervised where it has a classifier of named classes.
        has_own: whether it has a trained classifier of the data's classes.
        provenance: what is known of the data's patients and its training; None where nothing is.
        identity: plain values that every step of this model depends on.
        gaps: column, group or section of the report → why this model has none.
    """

    model: Model
    kind: Kind
    has_own: bool
    provenance: TrainedPatients | None
    shared: Setting
    gaps: dict[str, str]
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self):
        monitor = self.source.monitor
        self.identity = {
            "weights": self.model.weights.sha256,
            # Of the network as it was opened: a probe may replace its classifier.
            "settings": {**self.model.model.hub_config, "label_names": list(self.model.class_names)},
            "kind": self.kind,
            "own": self.has_own,
            "image_size": list(monitor.image_size) if monitor else None,
            "maps": dataclasses.asdict(self.map_settings),
        }

    @property
    def key(self) -> str:
        """Short and unique."""
        return self.model.name

    @property
    def source(self) -> Source:
        """Where it comes from."""
        return self.model.source

    @property
    def is_judged_by_own(self) -> bool:
        """Whether a comparison judges it by its own classifier: one trained on these scans, as a probe is fitted on
        them; a linear probe of its features otherwise."""
        return self.has_own and self.provenance is not None and self.provenance.is_home

    @property
    def map_settings(self) -> MapSettings:
        """How its maps are made: as ``evaluation/localization.py`` makes them without further options."""
        return MapSettings(self.source.attention_size, window=WINDOW, stride=STRIDE)

    @cached_property
    def steps(self) -> StepCache:
        """Of what depends on the data and this model."""
        return self.shared.steps.of(self.key, model=self.identity)

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Frozen features (N, D) of the labelled scans of each split, as ``evaluation/knn.py`` takes them."""
        data, positions = self.shared.data, self.shared.positions
        by_set = extract_features(self.model, FeatureOptions(controls=False), data, positions).by_set
        return {split: rows[MODEL] for split, rows in by_set.items()}

    @cached_property
    def classifier(self) -> Model:
        """The model with its own classifier, or with a linear probe of its features in its place."""
        options = ClassTargetOptions(classifier="own" if self.has_own else "probe")
        return as_classifier(self.model, options, self.shared.data)


def open_candidates(names: Sequence[str], shared: Setting) -> dict[str, Candidate]:
    """Open the sources of a comparison under short unique keys, in the given order.

    Raises:
        InputError: a model twice, or as ``load_backbone``.
    """
    sources = [open_source(name) for name in names]
    named: dict[str, str] = {}
    candidates = {}
    for key, source in zip(short_names(sources), sources, strict=True):
        candidates[key] = candidate = _open(key, source, shared)
        # Equal tensors are one model, whatever file holds them.
        content = f"{candidate.model.timm_name} {tensor_digest(candidate.model.model.state_dict())}"
        if content in named:
            raise InputError(
                f"{source.name}: the same weights as {named[content]} under another name; name every model once"
            )
        named[content] = source.name
    return candidates


def check_names(names: Sequence[str]) -> None:
    """Raise InputError where a model is named twice."""
    named: dict[str, str] = {}
    for name in names:
        source = open_source(name)
        # A run and its export are the same weights.
        path = source.run if source.is_final else Path(name)
        place = str(path.resolve()) if path.exists() else name
        if place in named:
            raise InputError(f"{name}: the same model as {named[place]}; name every model once")
        named[place] = name


def _open(key: str, source: Source, shared: Setting) -> Candidate:
    # With its classifier, if there is one: that tells a supervised model from a backbone.
    model = open_model(source, key, with_classifier=True)
    kind: Kind = source.kind if source.kind != "other weights" else "other"
    if kind == "other" and model.head == "own" and model.class_names:  # an export without its run
        kind = "supervised"
    gaps = {}
    if kind != "supervised":
        gaps[CLASSIFIER] = "no trained classifier of its own; its linear probe stands beside"
    elif model.model.hub_config.get("multilabel"):
        gaps[CLASSIFIER] = "its classifier gives several labels a scan; its linear probe stands beside"
    elif set(model.class_names) != set(shared.class_names):
        gaps[CLASSIFIER] = (
            f"its classifier knows {', '.join(model.class_names)}, the scans are of {', '.join(shared.class_names)}"
        )
    return Candidate(model, kind, CLASSIFIER not in gaps, shared.data.provenance_of(source.name), shared, gaps)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a model with its classifier; all None where none could be opened.

    Attributes:
        parameters: of the whole network; ms_per_scan: of a pass; input_size: rows and columns.
        classifier: where it comes from; target: by what it tells classes, in words.
    """

    parameters: int | None = None
    ms_per_scan: float | None = None
    input_size: list[int] | None = None
    classifier: Head | None = None
    target: str | None = None


def facts(candidate: Candidate) -> Facts:
    """What the report says about a model, its size and speed included."""
    classifier = candidate.classifier
    return Facts(
        parameters=sum(p.numel() for p in classifier.model.parameters()),
        ms_per_scan=milliseconds(classifier),
        input_size=list(classifier.input_size),
        classifier=classifier.head,
        target=classifier.target,
    )


def milliseconds(model: Model) -> float:
    """Milliseconds a scan of a pass through the classifier at its input size: median of some batches after one to
    warm up. The time of the machine that it runs on, not of the model alone."""
    images = model.prepare(torch.zeros(_BATCH, 1, *model.input_size, dtype=torch.uint8, device=model.device))
    seconds = []
    with torch.no_grad():
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            model.model(images).cpu()  # which waits for a GPU
            seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[1:])) / _BATCH
