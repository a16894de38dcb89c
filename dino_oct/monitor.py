"""What a pretraining run shows while it runs: features judged at step 0 and at a cadence, images, warnings."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dino_oct import features as feats
from dino_oct.config import MonitorConfig
from dino_oct.data.index import UNLABELLED, ScanIndex
from dino_oct.knn import knn_votes
from dino_oct.models.attention import attention_concentration, cls_attention
from dino_oct.models.backbone import patch_size
from dino_oct.models.network import normalise
from dino_oct.scores.bootstrap import FEW_PATIENTS, NO_SPREAD, Interval, PatientBootstrap, Scale
from dino_oct.scores.class_summary import ClassSummary, majority, summarise
from dino_oct.streams import generator

if TYPE_CHECKING:
    from dino_oct.data.cache import ScanCache

LEAST_SCANS = 30  # validation scans from which k-NN may choose a checkpoint
SATURATED = 99.0  # per cent of k-NN that leave no room for a better checkpoint
_WATCHED = 32  # validation scans whose attention is measured
_SMALL_AREA = 0.05  # share of the patches that hold 60 % of the attention
_GAIN = 1.1  # of the features' spread, against the start


def choose(index: ScanIndex, split: str, limit: int, seed: int, labelled: bool) -> np.ndarray:
    """At most ``limit`` positions of a split, drawn by seed, in ascending order."""
    positions = index.positions(split)
    if labelled:
        positions = positions[index.labels[positions] != UNLABELLED]
    if len(positions) > limit:
        rng = generator(f"monitored scans of {split}", seed, limit)
        positions = np.sort(rng.choice(positions, size=limit, replace=False))
    return positions


@dataclass(frozen=True)
class Judgement:
    """What one evaluation found.

    Attributes:
        metrics: name → number, as it is logged.
        right: k → whether k-NN knows each validation scan, (N,) bool; empty without labels.
        scans: identity of the scans that were judged; only judgements of the same are compared.
    """

    metrics: dict[str, float]
    right: dict[int, np.ndarray]
    scans: str

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint."""
        right = {k: torch.from_numpy(values) for k, values in self.right.items()}
        return {"metrics": self.metrics, "right": right, "scans": self.scans}

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Judgement":
        """From ``state_dict``."""
        right = {k: values.numpy() for k, values in state["right"].items()}
        return Judgement(state["metrics"], right, state["scans"])


class Monitor:
    """Evaluates a backbone on fixed scans: k-NN on validation patients, RankMe, feature spread, attention entropy.

    Args:
        index, scans: aligned index and cache.

    Attributes:
        ks: numbers of neighbours; empty where there is no k-NN.
        no_knn_because: why there is no k-NN; empty where there is.
        no_choice_because: why k-NN cannot tell checkpoints apart; empty where it can.
        pixel_knn: k → accuracy of the same k-NN on raw pixels, the control to beat; empty without labels.
        majority: most frequent class of the validation scans; None without labels.
    """

    def __init__(self, config: MonitorConfig, index: ScanIndex, scans: "ScanCache", seed: int):
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
        self.ks = () if self.no_knn_because else config.k
        if not self.ks:
            # Without labels the features' health can still be read, on scans that training does not see if there are.
            val = choose(index, "val", config.max_val, seed, labelled=False)
            val = val if len(val) > 1 else choose(index, "train", config.max_val, seed, labelled=False)
            train = val[:0]
        self.train_labels, self.val_labels = index.labels[train], index.labels[val]
        self.images = feats.resize_all([scans[i] for i in [*train, *val]], config.image_size)
        judged = [len(train), *config.image_size, *scans.digests[[*train, *val]].tolist()]
        self._scans = hashlib.sha256(repr(judged).encode()).hexdigest()[:16]
        self._bootstrap = PatientBootstrap(index.patients[val]) if self.ks else None
        watched = np.unique(np.linspace(0, len(val) - 1, min(_WATCHED, len(val))).astype(int))
        self._watched = self.images[len(train) + watched]
        self.attention_positions = _one_per_class(val, index.labels, config.attention_scans)
        self.attention_names = [index.files[i].lstrip("/").replace("/", "_") for i in self.attention_positions]
        self.attention_scans = [scans[i] for i in self.attention_positions]
        pixels = self._knn(feats.pixel_features(self.images))[0] if self.ks else {}
        self.pixel_knn = {k: pixels[f"knn_{k}"] for k in self.ks}
        self.majority = majority(self.val_labels, self.class_names) if self.ks else None
        self.no_choice_because = self.no_knn_because
        n_patients = self._bootstrap.n_patients if self._bootstrap else 0
        if self.ks and (len(val) < LEAST_SCANS or n_patients < FEW_PATIENTS):
            self.no_choice_because = (
                f"{len(val)} validation scans of {n_patients} patients are too few to tell checkpoints apart (it takes "
                f"{LEAST_SCANS} of {FEW_PATIENTS})"
            )

    def evaluate(
        self, backbone: nn.Module, device: torch.device, bf16: bool, before_batch: Callable[[], None] = lambda: None
    ) -> Judgement:
        """``rankme``, ``feature_spread``, ``attention_entropy`` and ``attention_area``; with labels, in per cent,
        ``knn_K`` with ``knn_K_low`` and ``knn_K_high``, ``balanced_knn_K``, the recalls ``recall_knn_K_CLASS`` and
        ``majority_share``. Every process must call it.

        Args:
            before_batch: as of ``features.extract``.
        """
        features = feats.extract(backbone, self.images, device, self.config.batch_size, bf16, before_batch=before_batch)
        entropy, area = feats.extract(
            backbone, self._watched, device, self.config.batch_size, bf16,
            forward=lambda network, images: attention_concentration(cls_attention(network, images)),
            before_batch=before_batch,
        ).mean(axis=0).tolist()  # fmt: skip
        validation = features[len(self.train_labels) :]
        metrics = {
            "rankme": feats.rankme(validation),
            "feature_spread": feats.feature_spread(validation),
            "attention_entropy": entropy,
            "attention_area": area,
        }
        right: dict[int, np.ndarray] = {}
        if self.ks:
            accuracies, right = self._knn(features)
            metrics |= accuracies | {"majority_share": self.majority.share}
        judgement = Judgement(metrics, right, self._scans)
        for k in self.ks:
            interval = self.accuracy(judgement, k)
            if interval.low is not None:
                metrics |= {f"knn_{k}_low": interval.low, f"knn_{k}_high": interval.high}
        return judgement

    def accuracy(self, judgement: Judgement, k: int) -> Interval:
        """Of k-NN in per cent, with its interval by patient."""
        return self._bootstrap.mean(100.0 * judgement.right[k], Scale.PERCENT)

    def change(self, now: Judgement, before: Judgement, k: int) -> Interval | None:
        """Change of the k-NN's accuracy in points, paired on the same scans; None where other scans were judged."""
        if now.scans != before.scans or not (k in now.right and k in before.right):
            return None
        difference = 100.0 * now.right[k] - 100.0 * before.right[k]
        if not difference.any():
            return Interval(0.0, reason=NO_SPREAD)
        return self._bootstrap.mean(difference, Scale.DIFFERENCE)

    def attention_panels(
        self, backbone: nn.Module, device: torch.device, is_stopped: Callable[[], bool] = lambda: False
    ) -> list[np.ndarray]:
        """One panel per fixed scan: the scan, then the attention of each head over it; uint8 (H, W, 3).

        Args:
            is_stopped: asked before each panel; the rest is then left out.
        """
        panels = []
        for scan in self.attention_scans:
            if is_stopped():
                break
            image = fit_short_side(scan, self.config.attention_size, patch_size(backbone))
            attention = cls_attention(backbone, normalise(image[None].to(device), backbone))[0].cpu().numpy()
            panels.append(draw_attention(enlarge(image[0].numpy()), attention))
        return panels

    def recall(self, metrics: dict[str, float], k: int) -> ClassSummary:
        """The recalls among the metrics of an evaluation."""
        keys = {name: f"recall_knn_{k}_{name}" for name in self.class_names}
        return ClassSummary({name: metrics[key] for name, key in keys.items() if key in metrics})

    def _knn(self, features: np.ndarray) -> tuple[dict[str, float], dict[int, np.ndarray]]:
        n = len(self.train_labels)
        votes = knn_votes(features[:n], self.train_labels, features[n:], self.ks, self.n_classes)
        metrics, right = {}, {}
        for k, votes_of_k in votes.items():
            called = votes_of_k.argmax(axis=1)
            by_class = summarise(self.val_labels, called, self.class_names)
            right[k] = called == self.val_labels
            metrics[f"knn_{k}"] = 100 * float(right[k].mean())
            metrics[f"balanced_knn_{k}"] = by_class.balanced_accuracy
            metrics |= {f"recall_knn_{k}_{name}": value for name, value in by_class.recall.items()}
        return metrics, right


class BestCheckpoint:
    """Which evaluation was the best by k-NN, where k-NN can tell.

    The first one is the best until a better one comes. On too few scans, or where nearly all are known, none comes:
    what looks better there is chance.

    Args:
        judged_by: name of the metric.

    Attributes:
        value: of the best, in per cent; None before the first evaluation.
    """

    def __init__(self, judged_by: str, no_choice_because: str):
        self.judged_by, self.no_choice_because, self.value = judged_by, no_choice_because, None

    def take(self, metrics: dict[str, float]) -> bool:
        """Consider an evaluation; whether it is the best so far."""
        if self.value is None:
            self.value = metrics.get(self.judged_by, 0.0)
            return True
        if self.no_choice_because or self.is_saturated or metrics[self.judged_by] <= self.value:
            return False
        self.value = metrics[self.judged_by]
        return True

    @property
    def is_saturated(self) -> bool:
        """Whether the best leaves no room for a better one."""
        return self.value is not None and self.value >= SATURATED


def _one_per_class(positions: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """``count`` positions that take turns through the classes."""
    queues = [list(positions[labels[positions] == c]) for c in np.unique(labels[positions])]
    drawn: list[int] = []
    while len(drawn) < count and any(queues):
        drawn += [int(queue.pop(0)) for queue in queues if queue]
    return drawn[:count]


def fit_short_side(scan: np.ndarray, short_side: int, patch: int) -> torch.Tensor:
    """A scan with its short side near ``short_side`` and both sides multiples of the patch: (1, H, W) uint8."""
    scale = short_side / min(scan.shape)
    size = tuple(max(round(side * scale / patch), 1) * patch for side in scan.shape)
    return feats.resize(scan, size)


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
    change: Interval | None,
) -> list[str]:
    """Plain-language warnings, each with its remedy; empty when the run looks healthy.

    Args:
        now, start: metrics of this evaluation and of the one before the first step.
        recent_loss: mean DINO loss of the last steps, None before the first.
        progress: share of the training done. A run from scratch starts at ln K, so that warning waits for 10 %.
        change: of k-NN since the start in points, paired on the same scans; None where it is not known.
    """
    warnings = []
    is_better = change is not None and change.point > 0 and not (change.low is not None and change.low < 0)
    is_better |= now["feature_spread"] > _GAIN * start["feature_spread"]
    if recent_loss is not None and progress >= 0.1 and abs(recent_loss - ln_k) < 0.005 * ln_k and not is_better:
        warnings.append(
            f"the loss ({recent_loss:.3f}) is at ln K = {ln_k:.3f}, and neither k-NN nor the spread of the features "
            "rose: the teacher answers uniformly, nothing is learned. Lower loss.teacher_temperature (.02, or .01 with "
            "loss.centering sinkhorn), use a smaller model.out_dim, or add loss.koleo_weight .1"
        )
    # A collapse can leave the entropy high, so that spread, rank and entropy are each checked.
    if now["feature_spread"] < 0.2 and now["feature_spread"] < 0.5 * start["feature_spread"]:
        warnings.append(
            f"the features are collapsing: spread {now['feature_spread']:.3f}, {start['feature_spread']:.3f} at the "
            "start (near 0: every scan looks alike). Add loss.koleo_weight .1, use loss.centering sinkhorn, or lower "
            "optim.lr"
        )
    elif progress > 0 and now["rankme"] < 0.25 * start["rankme"]:
        warnings.append(
            f"the features use few dimensions: RankMe {now['rankme']:.1f}, {start['rankme']:.1f} at the start. "
            "Add loss.koleo_weight .1 or lower optim.lr"
        )
    if now["teacher_entropy"] < 0.05 * ln_k and now["teacher_student_kl"] < 0.05 * ln_k:
        warnings.append(
            f"the teacher gives one answer to all scans (entropy {now['teacher_entropy']:.3f} of {ln_k:.3f}). "
            "Raise loss.teacher_temperature, or use loss.centering sinkhorn"
        )
    if "attention_area" in now and now["attention_area"] < min(_SMALL_AREA, start["attention_area"] / 3):
        warnings.append(
            f"attention collapses onto few patches: 60 % of it is on {now['attention_area']:.1%} of them, "
            f"{start['attention_area']:.1%} at the start (entropy {now['attention_entropy']:.2f}, "
            f"{start['attention_entropy']:.2f}). k-NN may rise meanwhile: look at the attention images. Lower "
            "optim.lr, or leave out loss.koleo_weight and loss.centering sinkhorn"
        )
    if change is not None and change.is_below(0):
        warnings.append(
            f"k-NN fell by {change.times(-1).words()} points on the same scans: training is destroying features. "
            "Lower optim.lr 10 to 100 times, start from a full checkpoint (with its head), or freeze the backbone "
            "while a new head warms up (optim.freeze_backbone_epochs)"
        )
    return warnings
