"""One extraction for every evaluation: frozen features of a model and of its controls, on named sets of scans."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from torch import nn

from dino_oct.data.index import cache_root
from dino_oct.features import unit
from dino_oct.models.frozen import Weights
from dino_oct.scan_data import ScanData
from dino_oct.scores.paired import MODEL, PIXELS, RANDOM, START
from evaluation.config import IMAGE_FEATURE, FeatureOptions, Kind, Precision, Protocol
from evaluation.inputs.feature_cache import RAW_PIXELS, FeatureCache, of_network
from evaluation.inputs.model import Model, open_model, random_control
from evaluation.inputs.sources import starting_weights

SAME = 1e-3  # root mean square distance of unit features from their mean below which scans are told apart by rounding


class FeatureSettings(TypedDict):
    """How features were made: image size (rows, columns), preprocessing, ``Kind`` with its name, and precision."""

    image_size: tuple[int, int]
    preprocessing: Protocol
    features: dict[str, bool | int]
    precision: Precision


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of several rows (the model, its controls) on several sets of scans.

    Attributes:
        by_set: set → row → (N, D) float32, in the order of the set's positions.
        weights: row → what identifies its weights (no entry for raw pixels).
        settings: how they were made, for the JSON file.
        notes: why a control is not there, or says nothing.
    """

    by_set: dict[str, dict[str, np.ndarray]]
    weights: dict[str, Weights]
    settings: FeatureSettings
    notes: list[str]


def extract_features(
    model: Model,
    options: FeatureOptions,
    data: ScanData,
    positions: dict[str, np.ndarray],
    default_kind: Kind | None = IMAGE_FEATURE,
) -> FrozenFeatures:
    """Features of a model and, unless ``options.controls`` is off, of its starting weights, random weights and raw
    pixels; read from the cache where they are.

    Args:
        positions: set → positions of its scans in ``data``.
        default_kind: the features where the options name none; None: DINO's linear protocol for the model's size.

    Raises:
        InputError: an image size that does not fit, features that the network does not have, or as ``load_backbone``.
    """
    candidates: dict[str, Model | str] = {MODEL: model}  # or why a control is not there
    if options.controls:
        start = starting_weights(model.source)
        candidates[START] = start if isinstance(start, str) else open_model(start, START)
        candidates[RANDOM] = random_control(model, options.seed)
    models = {row: control for row, control in candidates.items() if isinstance(control, Model)}
    notes = [reason for reason in candidates.values() if isinstance(reason, str)]
    preprocessing = model.preprocessing(options.image_size, options.preprocessing)
    kind = options.kind() or default_kind or protocol_kind(model.model)
    extractions = {
        row: of_network(control.model, control.device, model.batch_size, kind, options.precision)
        for row, control in models.items()
    }
    if options.controls:
        extractions[PIXELS] = RAW_PIXELS
    cache = FeatureCache(cache_root(data.dataset))
    by_set = {name: cache.get(data.scans, scans, preprocessing, extractions) for name, scans in positions.items()}
    return FrozenFeatures(
        by_set,
        {row: control.weights for row, control in models.items()},
        {
            "image_size": preprocessing.size,
            "preprocessing": preprocessing.protocol,
            "features": {"image_feature": kind == IMAGE_FEATURE, **kind._asdict()},
            "precision": options.precision,
        },
        notes + [note for row in extractions if (note := same_for_all(row, [rows[row] for rows in by_set.values()]))],
    )


def features_of(model: Model, options: FeatureOptions, data: ScanData, positions: np.ndarray) -> np.ndarray:
    """Features (N, D) float32 of one model alone, at its own image size unless the options name one; raises as
    ``extract_features``."""
    alone = dataclasses.replace(options, controls=False)
    return extract_features(model, alone, data, {"": positions}).by_set[""][MODEL]


def same_for_all(row: str, features: Sequence[np.ndarray]) -> str:
    """What to say of a row whose features (N, D), of several sets, hardly differ between scans; empty where they do."""
    directions = unit(np.concatenate([np.asarray(part, np.float64) for part in features]))
    if len(directions) < 2 or np.sqrt(((directions - directions.mean(axis=0)) ** 2).sum(axis=1).mean()) > SAME:
        return ""
    return f"{row}: all scans have the same features, so this row says nothing"


def protocol_kind(backbone: nn.Module) -> Kind:
    """The features of DINO's linear protocol: base models (width from 768) CLS and mean patch of the last block,
    smaller ones CLS of the last 4 blocks or of all where there are fewer; networks without CLS their image feature."""
    if getattr(backbone, "cls_token", None) is None or not hasattr(backbone, "blocks"):
        return IMAGE_FEATURE
    if backbone.num_features >= 768:
        return Kind(1, mean_patch=True)
    return Kind(min(4, len(backbone.blocks)))
