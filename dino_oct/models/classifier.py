"""A timm model as a classifier of OCT scans: what to know about it, and its class probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dino_oct.errors import InputError
from dino_oct.features import check_size, extract, resize_all
from dino_oct.models.layers import GradcamLayer, classifier_layer, embed, gradcam_layer, run_without_computing
from dino_oct.models.network import in_channels, normalise


@dataclass(frozen=True)
class ZooModel:
    """A classifier of OCT scans, and what to know about it.

    Attributes:
        model: a timm model in training mode, with ``hub_config``, ``pretrained_cfg`` and ``load_report`` as
            ``load_backbone`` gives them; it takes the normalised images that ``prepare`` makes, and gives logits.
        name: in the paper, or as it was asked for; timm_name: the architecture.
        input_size: rows and columns of its images, in pixels.
        embedding_layer: the layer whose input ``embed`` gives, the classifier.
        class_names: of the logits, if they are known.
    """

    model: nn.Module
    name: str
    timm_name: str
    input_size: tuple[int, int]
    embedding_layer: str
    class_names: tuple[str, ...] = ()

    def prepare(self, grey: torch.Tensor) -> torch.Tensor:
        """Grey images (B, 1, H, W), uint8 or in [0, 1], to the model's normalised channels (B, C, H, W)."""
        return normalise(grey, self.model)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """The vector before the classifier, (B, D), of images from ``prepare``."""
        return embed(self.model, images)

    @property
    def gradcam_layer(self) -> GradcamLayer:
        """The layer for Grad-CAM.

        Raises:
            InputError: a family without one.
        """
        return gradcam_layer(self.model)


def describe(model: nn.Module, name: str, image_size: Sequence[int] | None = None) -> ZooModel:
    """A model of ``load_backbone`` as a member of the zoo, in training mode; arguments as in ``build``.

    Raises:
        InputError: images that the model cannot take.
    """
    size = tuple(image_size or model.pretrained_cfg["input_size"][-2:])
    _check_takes(model, name, size)
    # A run's export then says at what size its classifier was trained.
    channels = in_channels(model)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": [channels, *size]}
    model.hub_config["pretrained_cfg"]["input_size"] = [channels, *size]
    return ZooModel(
        model.train(),
        name,
        model.hub_config["architecture"],
        size,
        classifier_layer(model),
        tuple(model.hub_config.get("label_names", ())),
    )


def _check_takes(model: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Raise InputError unless the model takes images of this size; nothing is computed."""
    check_size(size, model, f"{name}: image size")
    try:
        run_without_computing(model, size)
    except (AssertionError, RuntimeError) as error:
        own = " ".join(map(str, model.pretrained_cfg["input_size"][-2:]))
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{name}: images of {size[0]} {size[1]} px do not fit ({reason}); use its own {own}") from None


_BATCH, _CHUNK = 64, 256  # scans per forward pass, and in memory at a time


def predict(
    model: nn.Module,
    images: torch.Tensor,
    device: torch.device,
    bf16: bool = False,
    before_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Class probabilities (N, C) float64 of grey images (N, 1, H, W) uint8, shared out over the processes; see
    ``features.extract``."""
    logits = extract(
        model, images, device, _BATCH, bf16, forward=lambda network, batch: network(batch), before_batch=before_batch
    )
    return torch.from_numpy(logits).double().softmax(dim=1).numpy()


def predict_scans(
    model: nn.Module, scans: Sequence[np.ndarray], positions: np.ndarray, size: tuple[int, int], device: torch.device
) -> np.ndarray:
    """As ``predict``, of the scans at ``positions`` resized to ``size`` (rows, columns), a few in memory at a time."""
    chunks = [positions[start : start + _CHUNK] for start in range(0, len(positions), _CHUNK)]
    return np.concatenate([predict(model, resize_all((scans[i] for i in chunk), size), device) for chunk in chunks])
