"""A timm model as a classifier of OCT scans, and what to know about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dino_oct.errors import InputError
from dino_oct.models.backbone import check_size
from dino_oct.models.layers import GradcamLayer, classifier_layer, gradcam_layer, run_without_computing
from dino_oct.models.network import in_channels, normalise


@dataclass(frozen=True)
class Classifier:
    """A classifier of OCT scans, and what to know about it.

    Attributes:
        model: a timm model in training mode, with ``hub_config``, ``pretrained_cfg`` and ``load_report`` as
            ``load_backbone`` gives them; it takes the normalised images that ``prepare`` makes, and gives logits.
        name: in the paper, or as it was asked for; timm_name: the architecture.
        input_size: rows and columns of its images, in pixels.
        embedding_layer: the classifier, whose input is what ``models.layers.embed`` gives.
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

    @property
    def gradcam_layer(self) -> GradcamLayer:
        """The layer for Grad-CAM.

        Raises:
            InputError: a family without one.
        """
        return gradcam_layer(self.model)


def describe_classifier(model: nn.Module, name: str, image_size: Sequence[int] | None = None) -> Classifier:
    """A model of ``load_backbone`` as a classifier, in training mode.

    Args:
        name: as ``Classifier`` has it.
        image_size: rows and columns of its images; unset: those of the weights.

    Raises:
        InputError: images that the model cannot take.
    """
    size = tuple(image_size or model.pretrained_cfg["input_size"][-2:])
    _check_takes(model, name, size)
    # A run's export then says at what size its classifier was trained.
    channels = in_channels(model)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": [channels, *size]}
    model.hub_config["pretrained_cfg"]["input_size"] = [channels, *size]
    return Classifier(
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
