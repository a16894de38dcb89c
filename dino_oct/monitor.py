"""What a pretraining run shows while it runs: features judged at step 0 and at a cadence, images, warnings."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dino_oct import features as feats
from dino_oct.config import MonitorConfig
from dino_oct.data.index import UNLABELLED, ScanIndex
from dino_oct.errors import InputError
from dino_oct.knn import knn_votes
from dino_oct.models.attention import attention_on, cls_attention, has_cls_attention, head_concentration
from dino_oct.models.backbone import patch_size
from dino_oct.models.layers import feature_cam, gradcam_layer, layer_maps
from dino_oct.models.network import normalise
from dino_oct.pictures import Maps, draw_panel, fit_short_side
from dino_oct.scores.bootstrap import FEW_PATIENTS, NO_SPREAD, Interval, PatientBootstrap, Scale
from dino_oct.scores.class_summary import majority, summarise
from dino_oct.scores.probes import logistic_path, standardisation
from dino_oct.streams import generator

if TYPE_CHECKING:
    from dino_oct.data.cache import ScanCache

LEAST_SCANS = 30  # validation scans from which k-NN may choose a checkpoint
SATURATED = 99.0  # per cent of k-NN that leave no room for a better checkpoint
PROBE = "probe"
# One strength, so that evaluations differ by the features alone. Five-fold cross-validation by patient, 508 scans of
# four-class OCT2017 (features of a ViT-S/14, standardised): log-loss is lowest at .1, accuracy flat from .03 to 10.
PROBE_C = 0.1
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
        right: k, or ``PROBE`` → whether k-NN or the probe knows each validation scan, (N,) bool; empty without labels.
        scans: identity of the scans that were judged; only judgements of the same are compared.
    """

    metrics: dict[str, float]
    right: dict[int | str, np.ndarray]
    scans: str

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint."""
        right = {by: torch.from_numpy(values) for by, values in self.right.items()}
        return {"metrics": self.metrics, "right": right, "scans": self.scans}

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Judgement":
        """From ``state_dict``."""
        right = {by: values.numpy() for by, values in state["right"].items()}
        return Judgement(state["metrics"], right, state["scans"])


@dataclass(frozen=True)
class Start:
    """What the weights before the first step give, to compare with.

    Attributes:
        features: (N, D) of the validation scans.
        weights: name → tensor on the CPU; maps: of each drawn scan, (M, rows, columns). Both are empty on processes
            that do not draw.
    """

    features: np.ndarray
    weights: dict[str, torch.Tensor]
    maps: list[np.ndarray]


class Monitor:
    """Evaluates a backbone on fixed scans: k-NN and a linear probe on validation patients, health of the features,
    attention, and how far all of it moved from the start.

    Args:
        index, scans: aligned index and cache.

    Attributes:
        ks: numbers of neighbours; empty where there is no k-NN.
        no_knn_because, no_probe_because: why there is no k-NN, and no probe; empty where there is.
        no_choice_because: why k-NN cannot tell checkpoints apart; empty where it can.
        pixel_knn: k → accuracy of the same k-NN on raw pixels, the control to beat; empty without labels.
        majority: most frequent class of the validation scans; None without labels.
        start: what ``keep_start`` found; None before.
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
        self.no_probe_because = self.no_knn_because
        if not self.no_knn_because and len(set(index.labels[train].tolist())) < 2:
            self.no_probe_because = "the labelled training scans are of one class"
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
        self._tissue = torch.from_numpy(np.array(scans.tissue[val[watched]]))
        self.start: Start | None = None
        self.drawn_positions = _one_per_class(val, index.labels, config.attention_scans)
        self.drawn_names = [index.files[i].lstrip("/").replace("/", "_") for i in self.drawn_positions]
        self._drawn_classes = [
            index.class_names[index.labels[i]] if index.labels[i] != UNLABELLED else "" for i in self.drawn_positions
        ]
        self._drawn_scans = [scans[i] for i in self.drawn_positions]
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

    def keep_start(
        self,
        backbone: nn.Module,
        device: torch.device,
        bf16: bool,
        before_batch: Callable[[], None] = lambda: None,
        is_stopped: Callable[[], bool] = lambda: False,
        draws: bool = True,
    ) -> None:
        """Take a backbone for what later ones are compared with. Every process must call it.

        Args:
            before_batch: as of ``features.extract``; is_stopped: as of ``panels``.
            draws: whether this process draws, as the main one does; the weights are kept there too.
        """
        images = self.images[len(self.train_labels) :]
        features = feats.extract(backbone, images, device, self.config.batch_size, bf16, before_batch=before_batch)
        maps, weights = [], {}
        if draws:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in backbone.named_parameters()}
            maps = self._maps(backbone, device, is_stopped)
        self.start = Start(features, weights, maps)

    def evaluate(
        self, backbone: nn.Module, device: torch.device, bf16: bool, before_batch: Callable[[], None] = lambda: None
    ) -> Judgement:
        """``rankme``, ``feature_spread``; what ``_attention`` measures; with labels, in per cent, ``knn_K`` and
        ``probe``, each with ``_low`` and ``_high``, ``balanced_knn_K``, the recalls ``recall_knn_K_CLASS``,
        ``pixel_knn_K`` and ``majority_share``; after ``keep_start`` also ``cka_start`` and ``weight_drift``. Every
        process must call it.

        Args:
            before_batch: as of ``features.extract``.
        """
        features = feats.extract(backbone, self.images, device, self.config.batch_size, bf16, before_batch=before_batch)
        validation = features[len(self.train_labels) :]
        metrics = {"rankme": feats.rankme(validation), "feature_spread": feats.feature_spread(validation)}
        if has_cls_attention(backbone):
            metrics |= self._attention(backbone, device, bf16, before_batch)
        if self.start is not None:
            metrics["cka_start"] = feats.linear_cka(validation, self.start.features)
            if self.start.weights:
                metrics["weight_drift"] = weight_drift(dict(backbone.named_parameters()), self.start.weights)
        right: dict[int | str, np.ndarray] = {}
        if self.ks:
            accuracies, right = self._knn(features)
            metrics |= accuracies | {f"pixel_knn_{k}": accuracy for k, accuracy in self.pixel_knn.items()}
            metrics["majority_share"] = self.majority.share
        if not self.no_probe_because:
            right[PROBE] = self._probe(features, device)
            metrics[PROBE] = 100 * float(right[PROBE].mean())
        judgement = Judgement(metrics, right, self._scans)
        for by in right:
            interval = self.accuracy(judgement, by)
            if interval.low is not None:
                metrics |= {f"{metric_of(by)}_low": interval.low, f"{metric_of(by)}_high": interval.high}
        return judgement

    def accuracy(self, judgement: Judgement, by: int | str) -> Interval:
        """Of k-NN (by k) or of the probe (by ``PROBE``) in per cent, with its interval by patient."""
        return self._bootstrap.mean(100.0 * judgement.right[by], Scale.PERCENT)

    def change(self, now: Judgement, before: Judgement, by: int | str) -> Interval | None:
        """Change of an accuracy in points, paired on the same scans; None where other scans were judged."""
        if now.scans != before.scans or not (by in now.right and by in before.right):
            return None
        difference = 100.0 * now.right[by] - 100.0 * before.right[by]
        if not difference.any():
            return Interval(0.0, reason=NO_SPREAD)
        return self._bootstrap.mean(difference, Scale.DIFFERENCE)

    def changes(self, now: Judgement, before: Judgement) -> dict[str, float]:
        """``change`` of every accuracy, as it is logged: ``knn_K_change`` with ``_low`` and ``_high``, and so on."""
        metrics = {}
        for by in now.right:
            if (change := self.change(now, before, by)) is not None:
                metrics[f"{metric_of(by)}_change"] = change.point
                if change.low is not None:
                    metrics |= {f"{metric_of(by)}_change_low": change.low, f"{metric_of(by)}_change_high": change.high}
        return metrics

    def panels(
        self, backbone: nn.Module, device: torch.device, step: int, is_stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, np.ndarray]:
        """A panel for each drawn scan, by name: the scan and where the network looks, at the start and now; uint8
        (H, W, 3). Attention of each head in the last block, or ``feature_cam`` where there is no attention.

        Args:
            step: that the backbone is of.
            is_stopped: asked before each panel; the rest is then left out.
        """
        if self.no_panels_because(backbone):
            return {}
        if has_cls_attention(backbone):
            columns = [f"head {head}" for head in range(backbone.blocks[-1].attn.num_heads)]
            where = f"attention of CLS in the last block ({len(backbone.blocks) - 1})"
        else:
            columns, where = ["unlike others"], f"Grad-CAM without a class at {gradcam_layer(backbone).name}"
        start = self.start.maps if self.start is not None else []
        panels = {}
        for i, maps in enumerate(self._maps(backbone, device, is_stopped)):
            rows = [Maps("start", start[i])] if start else []
            title = f"{self._drawn_classes[i]} · {where} · step {step} · each map by its own maximum".lstrip(" ·")
            image = self._drawn_image(i, backbone)[0].numpy()
            panels[self.drawn_names[i]] = draw_panel(image, [*rows, Maps(f"step {step}", maps)], columns, title)
        return panels

    @staticmethod
    def no_panels_because(backbone: nn.Module) -> str:
        """Why nothing shows where a network looks; empty where something does."""
        try:
            if not has_cls_attention(backbone):
                gradcam_layer(backbone)
        except InputError as reason:
            return str(reason)
        return ""

    def _drawn_image(self, i: int, backbone: nn.Module) -> torch.Tensor:
        return fit_short_side(self._drawn_scans[i], self.config.attention_size, patch_size(backbone))

    def _maps(self, backbone: nn.Module, device: torch.device, is_stopped: Callable[[], bool]) -> list[np.ndarray]:
        """Where a network looks in each drawn scan, (M, rows, columns), until it is stopped."""
        if self.no_panels_because(backbone):
            return []
        maps, mean = [], None
        for i in range(len(self._drawn_scans)):
            if is_stopped():
                break
            image = normalise(self._drawn_image(i, backbone)[None].to(device), backbone)
            if has_cls_attention(backbone):
                maps.append(cls_attention(backbone, image)[0].cpu().numpy())
                continue
            if mean is None:
                watched = normalise(self._watched.to(device), backbone).split(self.config.batch_size)
                mean = torch.cat([layer_maps(backbone, batch).mean(dim=(2, 3)) for batch in watched]).mean(dim=0)
            maps.append(feature_cam(backbone, image, mean).cpu().numpy())
        return maps

    def _attention(
        self, backbone: nn.Module, device: torch.device, bf16: bool, before_batch: Callable[[], None]
    ) -> dict[str, float]:
        """Of the last block on the watched scans: ``attention_entropy`` and ``attention_area`` (``head_concentration``,
        means over heads), ``attention_entropy_head_N``, ``attention_tissue`` and ``tissue_area``: the shares of the
        attention and of the image that are on tissue. Attention that ignores the retina has the two equal."""
        flat = feats.extract(
            backbone, self._watched, device, self.config.batch_size, bf16,
            forward=lambda network, images: cls_attention(network, images).flatten(1), before_batch=before_batch,
        )  # fmt: skip
        rows, columns = (side // patch_size(backbone) for side in self.config.image_size)
        attention = torch.from_numpy(flat).view(len(flat), -1, rows, columns)
        entropy, area = head_concentration(attention)
        on_tissue, tissue = attention_on(attention, self._tissue).mean(dim=0).tolist()
        return {
            "attention_entropy": float(entropy.mean()),
            "attention_area": float(area.mean()),
            "attention_tissue": on_tissue,
            "tissue_area": tissue,
            **{f"attention_entropy_head_{head}": value for head, value in enumerate(entropy.mean(dim=0).tolist())},
        }

    def _knn(self, features: np.ndarray) -> tuple[dict[str, float], dict[int | str, np.ndarray]]:
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

    def _probe(self, features: np.ndarray, device: torch.device) -> np.ndarray:
        """Whether a logistic regression on the standardised training features knows each validation scan, (N,) bool."""
        n = len(self.train_labels)
        mean, scale = standardisation(features[:n])
        rows = torch.from_numpy((features - mean) / scale).to(device)
        ((_, classifier),) = logistic_path(rows[:n], self.train_labels, self.n_classes, [PROBE_C])
        return classifier.probabilities(rows[n:]).argmax(axis=1) == self.val_labels


def metric_of(by: int | str) -> str:
    """The name under which an accuracy is logged: of k-NN by its k, of the probe by ``PROBE``."""
    return by if isinstance(by, str) else f"knn_{by}"


def weight_drift(now: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> float:
    """‖θ − θ₀‖ / ‖θ₀‖ over the tensors that both have: 0 where nothing moved, 1 where as much moved as was there."""
    pairs = [(now[name].detach().cpu().double(), tensor.double()) for name, tensor in start.items() if name in now]
    moved = sum(float((a - b).square().sum()) for a, b in pairs)
    return (moved / max(sum(float(b.square().sum()) for _, b in pairs), 1e-300)) ** 0.5


class BestCheckpoint:
    """Which evaluation was the best by k-NN, where k-NN can tell.

    The first one is the best until a better one comes. On too few scans, or where nearly all are known, none comes:
    what looks better there is chance. One that has collapsed (``collapses``) is never the best.

    Args:
        judged_by: name of the metric.

    Attributes:
        value: of the best, in per cent; None before the first evaluation.
    """

    def __init__(self, judged_by: str, no_choice_because: str):
        self.judged_by, self.no_choice_because, self.value = judged_by, no_choice_because, None

    def is_better(self, metrics: dict[str, float]) -> bool:
        """Whether k-NN puts an evaluation before all others."""
        if self.value is None:
            return True
        return not self.no_choice_because and not self.is_saturated and metrics[self.judged_by] > self.value

    def take(self, metrics: dict[str, float], collapsed: Sequence[str] = ()) -> bool:
        """Consider an evaluation, with its ``collapses``; whether it is the best so far."""
        if collapsed or not self.is_better(metrics):
            return False
        self.value = metrics.get(self.judged_by, 0.0)
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


def collapses(now: dict[str, float], start: dict[str, float]) -> list[str]:
    """What has collapsed since the start: "features", "dimensions" (of the features), "attention".

    k-NN can rise meanwhile: such a network tells a few classes apart and forgets the rest.

    Args:
        now, start: metrics of this evaluation and of the one before the first step.
    """
    collapsed = []
    # A collapse can leave the entropy of the teacher high, so that spread and rank are each checked.
    if now["feature_spread"] < 0.2 and now["feature_spread"] < 0.5 * start["feature_spread"]:
        collapsed.append("features")
    elif now["rankme"] < 0.25 * start["rankme"]:
        collapsed.append("dimensions")
    areas = [metrics.get("attention_area") for metrics in (now, start)]  # convolutional networks have none
    if None not in areas and areas[0] < min(_SMALL_AREA, areas[1] / 3):
        collapsed.append("attention")
    return collapsed


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
    warnings, collapsed = [], collapses(now, start)
    is_better = change is not None and change.point > 0 and not (change.low is not None and change.low < 0)
    is_better |= now["feature_spread"] > _GAIN * start["feature_spread"]
    if recent_loss is not None and progress >= 0.1 and abs(recent_loss - ln_k) < 0.005 * ln_k and not is_better:
        warnings.append(
            f"the loss ({recent_loss:.3f}) is at ln K = {ln_k:.3f}, and neither k-NN nor the spread of the features "
            "rose: the teacher answers uniformly, nothing is learned. Lower loss.teacher_temperature (.02, or .01 with "
            "loss.centering sinkhorn), use a smaller model.out_dim, or add loss.koleo_weight .1"
        )
    if "features" in collapsed:
        warnings.append(
            f"the features are collapsing: spread {now['feature_spread']:.3f}, {start['feature_spread']:.3f} at the "
            "start (near 0: every scan looks alike). Add loss.koleo_weight .1, use loss.centering sinkhorn, or lower "
            "optim.lr"
        )
    if "dimensions" in collapsed:
        warnings.append(
            f"the features use few dimensions: RankMe {now['rankme']:.1f}, {start['rankme']:.1f} at the start. "
            "Add loss.koleo_weight .1 or lower optim.lr"
        )
    if now["teacher_entropy"] < 0.05 * ln_k and now["teacher_student_kl"] < 0.05 * ln_k:
        warnings.append(
            f"the teacher gives one answer to all scans (entropy {now['teacher_entropy']:.3f} of {ln_k:.3f}). "
            "Raise loss.teacher_temperature, or use loss.centering sinkhorn"
        )
    if "attention" in collapsed:
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
