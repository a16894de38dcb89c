"""Backbone and head as one network over many crops, and the door where grey scans become model input."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn


def normalise(grey: torch.Tensor, backbone: nn.Module) -> torch.Tensor:
    """Grey images to the backbone's input: as many channels as it has, with its pretraining mean and std.

    Args:
        grey: (N, 1, H, W); uint8, or float in [0, 1].

    Returns:
        (N, C, H, W) float32.
    """
    config = backbone.pretrained_cfg
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    if in_channels(backbone) == 1:  # timm's own configurations have 3
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    mean, std = (value.view(1, -1, 1, 1).to(grey.device, torch.float32) for value in (mean, std))
    grey = grey.float() / 255 if grey.dtype == torch.uint8 else grey
    return (grey - mean) / std


def normalise_views(views: torch.Tensor, backbone: nn.Module) -> torch.Tensor:
    """Views of one size, (n, B, 1, H, W) in [0, 1], to model input (n, B, C, H, W)."""
    return normalise(views.flatten(0, 1), backbone).unflatten(0, views.shape[:2])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; at the end in the mode that it had."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def in_channels(backbone: nn.Module) -> int:
    """Channels of the images that the backbone takes."""
    return next(p for p in backbone.parameters() if p.ndim == 4).shape[1]  # the first convolution, or patch embedding


def cls_feature(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The image feature: CLS after the final norm for transformers that classify by it; otherwise the vector before the
    classifier, as timm pools it (with its norm, in fine-tuned MAE).

    Args:
        images: (N, C, H, W) normalised.

    Returns:
        (N, D).
    """
    features = backbone.forward_features(images)
    if getattr(backbone, "cls_token", None) is not None and getattr(backbone, "global_pool", "token") in ("token", ""):
        return features[:, 0]
    return backbone.forward_head(features, pre_logits=True)


class DinoNetwork(nn.Module):
    """A backbone and its head. Views of one size pass the backbone together; all features pass the head once."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            views: groups of normalised views, each (n, B, C, H, W) with one size per group.

        Returns:
            CLS features (V, B, D) and logits (V, B, K), V the sum of n over groups, in the order of the groups.
        """
        n_views, batch = sum(len(group) for group in views), views[0].shape[1]
        features = torch.cat([cls_feature(self.backbone, group.flatten(0, 1)) for group in views if len(group)])
        logits = self.head(features)
        return features.unflatten(0, (n_views, batch)), logits.unflatten(0, (n_views, batch))
