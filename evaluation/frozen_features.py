"""One extraction for every evaluation: frozen features of a model and of its controls, on named sets of scans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dino_oct.data.cache import cache_root
from dino_oct.features import check_size, unit
from dino_oct.limits import Blocks, Side
from dino_oct.models.backbone import patch_size
from dino_oct.monitor import MonitorConfig
from evaluation.comparison import MODEL, PIXELS, RANDOM, START
from evaluation.feature_cache import IMAGE_FEATURE, FeatureCache, Kind, Precision, of_network, of_pixels
from evaluation.preprocessing import Preprocessing, Protocol
from evaluation.runs import EvaluationOptions, Frozen, Source, default_device, load_frozen, random_weights
from evaluation.runs import starting_weights as weights_at_start
from evaluation.scan_data import ScanData

SAME = 1e-3  # root mean square distance of unit features from their mean below which scans are told apart by rounding


@dataclass
class FeatureOptions(EvaluationOptions):
    """Which features, of images of which size."""

    image_size: tuple[Side, Side] | None = None
    """Rows and columns of the images; unset: the run's monitor.image_size, or the model's own size."""
    preprocessing: Protocol = "squash"
    """squash: the whole scan, resized; dino: short side to 256/224 of image-size, then the central square."""
    features: Literal["cls", "mean-patch", "cls+mean-patch", "blocks"] | None = None
    """cls: after the final norm (CNNs: the vector before the classifier); mean-patch: mean patch token; blocks: CLS of
    the last n-blocks."""
    n_blocks: Blocks = 4
    """Of features 'blocks'."""
    precision: Precision = "fp32"
    """Of the extraction; bf16 is faster where the processor has it, and changes features slightly."""
    controls: bool = True
    """Also evaluate what the model must beat: its starting weights, random weights and raw pixels."""

    def kind(self) -> Kind | None:
        """The features asked for; None where the evaluation chooses."""
        chosen = {
            "cls": IMAGE_FEATURE,
            "mean-patch": Kind(0, mean_patch=True),
            "cls+mean-patch": Kind(1, mean_patch=True),
            "blocks": Kind(self.n_blocks),
        }
        return chosen[self.features] if self.features else None


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
    weights: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    notes: list[str]


def extract_features(
    source: Source,
    options: FeatureOptions,
    data: ScanData,
    positions: dict[str, np.ndarray],
    default_kind: Kind | None = IMAGE_FEATURE,
) -> FrozenFeatures:
    """Features of the model and, unless ``options.controls`` is off, of its starting weights, random weights and raw
    pixels; read from the cache where they are.

    Args:
        positions: set → positions of its scans in ``data``.
        default_kind: the features where the options name none; None: DINO's linear protocol for the model's size.

    Raises:
        InputError: an image size that does not fit, features that the network does not have, or as ``load_backbone``.
    """
    device = default_device()
    if options.controls:
        networks, notes = load_with_controls(source, options, device)
    else:
        networks, notes = {MODEL: load_frozen(source.name, device, heads=options.heads)}, []
    backbone = networks[MODEL].backbone
    preprocessing = choose_preprocessing(options, source, backbone)
    kind = options.kind() or default_kind or protocol_kind(backbone)
    batch_size = (source.monitor or MonitorConfig()).batch_size
    extractions = {
        name: of_network(network, device, batch_size, kind, options.precision) for name, network in networks.items()
    }
    if options.controls:
        extractions[PIXELS] = of_pixels()
    cache = FeatureCache(cache_root(data.dataset))
    by_set = {name: cache.get(data.scans, chosen, preprocessing, extractions) for name, chosen in positions.items()}
    return FrozenFeatures(
        by_set,
        {name: network.weights for name, network in networks.items()},
        {
            "image_size": preprocessing.size,
            "preprocessing": preprocessing.protocol,
            "features": {"image_feature": kind == IMAGE_FEATURE, **kind._asdict()},
            "precision": options.precision,
        },
        notes + [note for row in extractions if (note := same_for_all(row, [rows[row] for rows in by_set.values()]))],
    )


def same_for_all(row: str, features: Sequence[np.ndarray]) -> str:
    """What to say of a row whose features (N, D) hardly differ between scans; empty where they do.

    Args:
        features: of several sets of scans.
    """
    directions = unit(np.concatenate([np.asarray(part, np.float64) for part in features]))
    if len(directions) < 2 or np.sqrt(((directions - directions.mean(axis=0)) ** 2).sum(axis=1).mean()) > SAME:
        return ""
    return f"{row}: all scans have the same features, so this row says nothing"


def load_with_controls(
    source: Source, options: EvaluationOptions, device: torch.device
) -> tuple[dict[str, Frozen], list[str]]:
    """The model and the networks it is compared with, by row name, and why some are not there."""
    model = load_frozen(source.name, device, heads=options.heads)
    found = {START: weights_at_start(source, device), RANDOM: random_weights(source, model, options.seed, device)}
    networks = {MODEL: model, **{name: item for name, item in found.items() if isinstance(item, Frozen)}}
    return networks, [item for item in found.values() if isinstance(item, str)]


def choose_preprocessing(options: FeatureOptions, source: Source, backbone: nn.Module) -> Preprocessing:
    """Image size as given, else the run's monitor.image_size, else the model's own size.

    Raises:
        InputError: a size that is no multiple of the patch, or not square where the protocol crops squares.
    """
    if options.image_size:
        size = options.image_size
    elif source.monitor:
        size = source.monitor.image_size
    else:
        patch = patch_size(backbone)
        rows, columns = backbone.pretrained_cfg.get("input_size", (3, 224, 224))[-2:]
        size = max(rows // patch, 1) * patch, max(columns // patch, 1) * patch
    check_size(size, backbone, "image-size")
    return Preprocessing(tuple(size), options.preprocessing)


def protocol_kind(backbone: nn.Module) -> Kind:
    """The features of DINO's linear protocol: base models (width from 768) CLS and mean patch of the last block,
    smaller ones CLS of the last 4 blocks or of all where there are fewer; networks without CLS their image feature."""
    if getattr(backbone, "cls_token", None) is None or not hasattr(backbone, "blocks"):
        return IMAGE_FEATURE
    if backbone.num_features >= 768:
        return Kind(1, mean_patch=True)
    return Kind(min(4, len(backbone.blocks)))
