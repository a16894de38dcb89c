"""Backbone and head as one network over many crops, and the door where grey scans become model input."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from dino_oct.models.packed import packed_features


def normalise(grey: torch.Tensor, backbone: nn.Module) -> torch.Tensor:
    """Grey images to the backbone's input: as many channels as it has, with its pretraining mean and std.

    Args:
        grey: (N, 1, H, W); uint8, or float in [0, 1].

    Returns:
        (N, C, H, W) float32.
    """
    mean, std = (value.view(1, -1, 1, 1).to(grey.device) for value in input_statistics(backbone))
    grey = grey.float() / 255 if grey.dtype == torch.uint8 else grey
    return (grey - mean) / std


def input_statistics(backbone: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (C,) float32 of the images that the backbone was pretrained on, for its channels."""
    config = backbone.pretrained_cfg
    mean, std = (torch.tensor(config[name], dtype=torch.float32) for name in ("mean", "std"))
    if in_channels(backbone) == 1:  # timm's own configurations have 3
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    return mean, std


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
    return image_feature(backbone, backbone.forward_features(images))


def image_feature(backbone: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """``cls_feature`` from what ``forward_features`` gave."""
    if getattr(backbone, "cls_token", None) is not None and getattr(backbone, "global_pool", "token") in ("token", ""):
        return features[:, 0]
    return backbone.forward_head(features, pre_logits=True)


class Output(NamedTuple):
    """What a ``DinoNetwork`` gives for V views of B scans.

    Attributes:
        features: CLS (V, B, D). logits: (V, B, K).
        patches: last tokens of the patches of the first group, (n · B, N, D); None unless asked for.
        patch_logits: of the masked patches of the first group, (M, K); None without masks.
    """

    features: torch.Tensor
    logits: torch.Tensor
    patches: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None


class DinoNetwork(nn.Module):
    """A backbone and its head. Views of one size pass the backbone together; all features pass the head once.

    Args:
        head: of CLS. patch_head: of masked patches (iBOT); None: they are not asked for, or pass ``head``.
        masks_patches: the network can hide patches, and has the token that stands in their place.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, masks_patches: bool = False, patch_head: nn.Module | None = None
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.patch_head = patch_head
        self.packs: Callable | None = None  # a block over all groups at once, see ``packed``
        self._hidden: list[torch.Tensor | None] = []  # of each group that is still to pass
        if masks_patches:
            self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim))
            backbone.patch_embed.register_forward_hook(self._hide)

    def _hide(self, module: nn.Module, args: tuple, tokens: torch.Tensor) -> torch.Tensor:
        """Put the mask token in the place of hidden patches; tokens: (B, rows, columns, D) or (B, N, D)."""
        hidden = self._hidden.pop(0) if self._hidden else None
        if hidden is None:
            return tokens
        hidden = hidden.reshape(*tokens.shape[:-1], 1)
        return torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)

    def forward(
        self,
        views: Sequence[torch.Tensor],
        masks: torch.Tensor | None = None,
        hide: bool = True,
        keep_patches: bool = False,
    ) -> Output:
        """
        Args:
            views: groups of normalised views, each (n, B, C, H, W) with one size per group.
            masks: (n, B, rows, columns) bool, patches of the first group whose logits are asked for.
            hide: whether the network does not see them (the student).
            keep_patches: return the patch tokens of the first group.
        """
        views = [group for group in views if len(group)]
        n_views, batch = sum(len(group) for group in views), views[0].shape[1]
        images = [group.flatten(0, 1) for group in views]
        self._hidden = [masks.flatten(0, 1) if masks is not None and hide else None, *[None] * (len(images) - 1)]
        if self.packs is None:
            tokens = [self.backbone.forward_features(x) for x in images]
        else:
            tokens = packed_features(self.backbone, images, self.packs)
        self._hidden = []
        features, patch_logits = [image_feature(self.backbone, x) for x in tokens], None
        patches = tokens[0][:, self.backbone.num_prefix_tokens :] if masks is not None or keep_patches else None
        features = torch.cat(features)
        logits = self.head(features)
        if masks is not None:
            patch_logits = (self.patch_head or self.head)(patches[masks.flatten(0, 1).flatten(1)])
        return Output(
            features.unflatten(0, (n_views, batch)),
            logits.unflatten(0, (n_views, batch)),
            patches if keep_patches else None,
            patch_logits,
        )
