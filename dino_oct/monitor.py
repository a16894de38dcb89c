"""What a pretraining run shows while it runs: features judged at step 0 and at a cadence, images, warnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dino_oct import features as feats
from dino_oct.class_summary import ClassSummary, majority, summarise
from dino_oct.data.index import UNLABELLED, ScanIndex
from dino_oct.knn import knn_votes
from dino_oct.limits import BatchSize, Neighbours, Range, Scans, Side
from dino_oct.models.attention import cls_attention
from dino_oct.models.backbone import patch_size
from dino_oct.models.network import normalise
from dino_oct.streams import generator


@dataclass
class MonitorConfig:
    """Online evaluation."""

    every_epochs: Annotated[float, Range(above=0, most=100_000)] = 1.0
    """Epochs between evaluations; there is always one before the first step and one after the last."""
    image_size: tuple[Side, Side] = (224, 224)
    """Rows and columns that whole scans are squashed to for features."""
    k: Neighbours = (5, 10)
    """Neighbours of the k-NN; the first one picks the best checkpoint."""
    max_train: Scans = 5000
    """Labelled training scans searched at most (drawn once, by seed)."""
    max_val: Scans = 1000
    """Validation scans at most."""
    attention_scans: Annotated[int, Range(0, 1000)] = 4
    """Validation scans whose attention is drawn, the same ones over the whole run."""
    attention_size: Side = 480
    """Short side of the scans that attention is drawn on, in pixels."""
    batch_size: BatchSize = 64
    """Scans per forward pass."""


def choose(index: ScanIndex, split: str, limit: int, seed: int, labelled: bool) -> np.ndarray:
    """At most ``limit`` positions of a split, drawn by seed, in ascending order."""
    positions = index.positions(split)
    if labelled:
        positions = positions[index.labels[positions] != UNLABELLED]
    if len(positions) > limit:
        rng = generator(f"monitored scans of {split}", seed, limit)
        positions = np.sort(rng.choice(positions, size=limit, replace=False))
    return positions


class Monitor:
    """Evaluates a backbone on fixed scans: k-NN on validation patients, RankMe, feature spread.

    Args:
        index, scans: aligned index and cache.

    Attributes:
        no_knn_because: why there is no k-NN; empty where there is.
        pixel_knn: k → accuracy of the same k-NN on raw pixels, the control to beat; empty without labels.
        majority: most frequent class of the validation scans; None without labels.
    """

    def __init__(self, config: MonitorConfig, index: ScanIndex, scans: Sequence[np.ndarray], seed: int):
        self.config, self.class_names = config, index.class_names
        self.n_classes = len(index.class_names)
        val = choose(index, "val", config.max_val, seed, labelled=True)
        train = choose(index, "train", config.max_train, seed, labelled=True)
        self.no_knn_because = ""
        if self.n_classes < 2:
            self.no_knn_because = "the scans have no classes"
        elif len(val) == 0:
            self.no_knn_because = "no validation scans"
        elif len(train) < max(config.k):
            self.no_knn_because = f"{len(train)} labelled training scans are fewer than monitor.k {max(config.k)}"
        self.has_labels = not self.no_knn_because
        if not self.has_labels:
            # Without labels the features' health can still be read, on scans that training does not see if there are.
            val = choose(index, "val", config.max_val, seed, labelled=False)
            val = val if len(val) > 1 else choose(index, "train", config.max_val, seed, labelled=False)
            train = val[:0]
        self.train_labels, self.val_labels = index.labels[train], index.labels[val]
        self.images = feats.squash_all([scans[i] for i in [*train, *val]], config.image_size)
        self.attention_positions = _one_per_class(val, index.labels, config.attention_scans)
        self.attention_names = [index.files[i].lstrip("/").replace("/", "_") for i in self.attention_positions]
        self.attention_scans = [scans[i] for i in self.attention_positions]
        pixels = self._knn(feats.pixel_features(self.images)) if self.has_labels else {}
        self.pixel_knn = {k: metrics[f"knn_{k}"] for k, metrics in pixels.items()}
        self.majority = majority(self.val_labels, self.class_names) if self.has_labels else None

    def evaluate(self, backbone: nn.Module, device: torch.device, bf16: bool) -> dict[str, float]:
        """``rankme`` and ``feature_spread``; with labels, in per cent, ``knn_K``, ``balanced_knn_K``, the recalls
        ``recall_knn_K_CLASS`` and ``majority_share``. Every process must call it.
        """
        features = feats.extract(backbone, self.images, device, self.config.batch_size, bf16)
        validation = features[len(self.train_labels) :]
        metrics = {"rankme": feats.rankme(validation), "feature_spread": feats.feature_spread(validation)}
        if self.has_labels:
            for of_k in self._knn(features).values():
                metrics |= of_k
            metrics["majority_share"] = self.majority.share
        return metrics

    def attention_panels(self, backbone: nn.Module, device: torch.device) -> list[np.ndarray]:
        """One panel per fixed scan: the scan, then the attention of each head over it; uint8 (H, W, 3)."""
        panels = []
        for scan in self.attention_scans:
            image = fit_short_side(scan, self.config.attention_size, patch_size(backbone))
            attention = cls_attention(backbone, normalise(image[None].to(device), backbone))[0].cpu().numpy()
            panels.append(draw_attention(enlarge(image[0].numpy()), attention))
        return panels

    def recall(self, metrics: dict[str, float], k: int) -> ClassSummary:
        """The recalls among the metrics of an evaluation."""
        keys = {name: f"recall_knn_{k}_{name}" for name in self.class_names}
        return ClassSummary({name: metrics[key] for name, key in keys.items() if key in metrics})

    def _knn(self, features: np.ndarray) -> dict[int, dict[str, float]]:
        n = len(self.train_labels)
        votes = knn_votes(features[:n], self.train_labels, features[n:], self.config.k, self.n_classes)
        found = {}
        for k, votes_of_k in votes.items():
            called = votes_of_k.argmax(axis=1)
            by_class = summarise(self.val_labels, called, self.class_names)
            found[k] = {f"knn_{k}": 100 * float((called == self.val_labels).mean())}
            found[k][f"balanced_knn_{k}"] = by_class.balanced_accuracy
            found[k] |= {f"recall_knn_{k}_{name}": value for name, value in by_class.recall.items()}
        return found


def _one_per_class(positions: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """``count`` positions that take turns through the classes."""
    queues = [list(positions[labels[positions] == c]) for c in np.unique(labels[positions])]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        chosen += [int(queue.pop(0)) for queue in queues if queue]
    return chosen[:count]


def fit_short_side(scan: np.ndarray, short_side: int, patch: int) -> torch.Tensor:
    """A scan with its short side near ``short_side`` and both sides multiples of the patch: (1, H, W) uint8."""
    scale = short_side / min(scan.shape)
    size = tuple(max(round(side * scale / patch), 1) * patch for side in scan.shape)
    return feats.squash(scan, size)


def enlarge(image: np.ndarray, side: int = 192) -> np.ndarray:
    """A small image (H, W) with its pixels repeated until it is about ``side`` high, so that a person can see it."""
    times = max(round(side / min(image.shape)), 1)
    return image.repeat(times, axis=0).repeat(times, axis=1)


def draw_attention(image: np.ndarray, attention: np.ndarray, gap: int = 4) -> np.ndarray:
    """The scan and, beside it, each head's attention laid over it.

    Args:
        image: (H, W) uint8.
        attention: (heads, rows, columns) ≥ 0; each head is scaled by its own maximum, pixels by nearest neighbour.

    Returns:
        (H, (1 + heads) · (W + gap) − gap, 3) uint8.
    """
    grey = np.repeat(image[..., None], 3, axis=-1).astype(np.float32)
    large = F.interpolate(torch.from_numpy(attention)[None], size=image.shape, mode="nearest")[0].numpy()
    tiles = [grey]
    for head in large:
        strength = head / max(head.max(), 1e-12)
        colour = 255 * matplotlib.colormaps["inferno"](strength)[..., :3]
        opacity = (0.1 + 0.75 * strength)[..., None]  # weak attention lets the scan through, strong attention covers it
        tiles.append((1 - opacity) * grey + opacity * colour)
    white = np.full((image.shape[0], gap, 3), 255, np.float32)
    row = [part for tile in tiles for part in (tile, white)][:-1]
    return np.concatenate(row, axis=1).round().clip(0, 255).astype(np.uint8)


def draw_views(groups: Sequence[torch.Tensor], samples: int = 4, gap: int = 3) -> np.ndarray:
    """The augmented views of the first samples, one row each, uint8 (H, W)."""
    rows = []
    for b in range(min(samples, groups[0].shape[1])):
        views = [view[b, 0].float().cpu().numpy() for group in groups for view in group]
        height = max(len(view) for view in views)
        tiles = [np.pad(view, ((0, height - len(view)), (0, gap)), constant_values=1.0) for view in views]
        rows.append(np.pad(np.concatenate(tiles, axis=1), ((0, gap), (0, 0)), constant_values=1.0))
    return (255 * np.concatenate(rows)).round().clip(0, 255).astype(np.uint8)


def warnings_of(
    now: dict[str, float],
    start: dict[str, float],
    ln_k: float,
    recent_loss: float | None,
    progress: float,
    n_val: int,
) -> list[str]:
    """Plain-language warnings, each with its remedy; empty when the run looks healthy.

    Args:
        now, start: metrics of this evaluation and of the one before the first step.
        recent_loss: mean DINO loss of the last steps, None before the first.
        progress: share of the training done. A run from scratch starts at ln K, so that warning waits for 10 %.
        n_val: validation scans behind the k-NN accuracy: a drop must exceed 5 points and two standard errors.
    """
    found = []
    if recent_loss is not None and progress >= 0.1 and abs(recent_loss - ln_k) < 0.005 * ln_k:
        found.append(
            f"the loss ({recent_loss:.3f}) is at ln K = {ln_k:.3f}: the teacher answers uniformly, nothing is learned. "
            "Lower loss.teacher_temperature (.02, or .01 with loss.centering sinkhorn), use a smaller model.out_dim, "
            "or add loss.koleo_weight .1"
        )
    # A healthy entropy proves nothing alone: spread, rank and entropy are each looked at.
    if now["feature_spread"] < 0.2 and now["feature_spread"] < 0.5 * start["feature_spread"]:
        found.append(
            f"the features are collapsing: spread {now['feature_spread']:.3f}, {start['feature_spread']:.3f} at the "
            "start (near 0: every scan looks alike). Add loss.koleo_weight .1, use loss.centering sinkhorn, or lower "
            "optim.lr"
        )
    elif progress > 0 and now["rankme"] < 0.25 * start["rankme"]:
        found.append(
            f"the features use few dimensions: RankMe {now['rankme']:.1f}, {start['rankme']:.1f} at the start. "
            "Add loss.koleo_weight .1 or lower optim.lr"
        )
    if now["teacher_entropy"] < 0.05 * ln_k and now["teacher_student_kl"] < 0.05 * ln_k:
        found.append(
            f"the teacher gives one answer to all scans (entropy {now['teacher_entropy']:.3f} of {ln_k:.3f}). "
            "Raise loss.teacher_temperature, or use loss.centering sinkhorn"
        )
    knn = next((key for key in now if key.startswith("knn_") and key in start), None)
    if knn and start[knn] - now[knn] > max(5, 2 * 100 * (0.5 / n_val) ** 0.5):
        found.append(
            f"k-NN is {start[knn] - now[knn]:.1f} points under the start ({now[knn]:.1f} against {start[knn]:.1f} %): "
            "training is destroying features. Lower optim.lr 10 to 100 times, start from a full checkpoint (with its "
            "head), or freeze the backbone while a new head warms up (optim.freeze_backbone_epochs)"
        )
    return found
