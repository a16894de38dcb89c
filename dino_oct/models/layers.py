"""Where a classifier is looked into: the vector before its classifier, and the layer that Grad-CAM reads.

Grad-CAM needs the deepest layer that still has positions and on which the logits depend at every position. In a
transformer that reads out CLS that is the norm before the last attention: after it, patches no longer reach the logits.
"""

import logging
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.convmixer import ConvMixer
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dino_oct.errors import InputError
from dino_oct.models.backbone import patch_size
from dino_oct.models.loading import classifier_tensors
from dino_oct.models.network import evaluating, in_channels

Layout = Literal["NCHW", "NHWC", "tokens"]


@dataclass(frozen=True)
class GradcamLayer:
    """A layer and how its output is laid out.

    Attributes:
        name: dotted name in the model.
        layout: of its output: (B, C, H, W), (B, H, W, C), or (B, prefix + H · W, C).
        patch: pixels per side of a token, and prefix: tokens that are no patches (CLS, registers); for "tokens".
    """

    name: str
    layout: Layout
    patch: int = 1
    prefix: int = 0

    def to_maps(self, output: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """The layer's output, or the gradient at it, as maps (B, C, H, W).

        Args:
            image_size: rows and columns of the model's input, in pixels.
        """
        if self.layout == "NCHW":
            return output
        if self.layout == "NHWC":
            return rearrange(output, "b h w c -> b c h w")
        rows = image_size[0] // self.patch
        return rearrange(output[:, self.prefix :], "b (h w) c -> b c h w", h=rows)


def gradcam_layer(model: nn.Module) -> GradcamLayer:
    """The layer for Grad-CAM of a timm model, by family; for others the last feature map that timm names.

    Raises:
        InputError: a family without one.
    """
    match model:
        case VisionTransformer() | Eva():
            name = f"blocks.{len(model.blocks) - 1}.norm1"
            return GradcamLayer(name, "tokens", patch_size(model), model.num_prefix_tokens)
        case SwinTransformer():
            last = len(model.layers) - 1
            return GradcamLayer(f"layers.{last}.blocks.{len(model.layers[last].blocks) - 1}.norm1", "NHWC")
        case ResNet():
            return GradcamLayer(f"layer4.{len(model.layer4) - 1}", "NCHW")
        case ConvNeXt():
            return GradcamLayer(f"stages.{len(model.stages) - 1}", "NCHW")
        case EfficientNet():
            return GradcamLayer("bn2", "NCHW")
        case ConvMixer():
            return GradcamLayer(f"blocks.{len(model.blocks) - 1}", "NCHW")
    return _last_feature_map(model)


def _last_feature_map(model: nn.Module) -> GradcamLayer:
    """The deepest layer of timm's ``feature_info``, if what it puts out has rows and columns."""
    listed = getattr(model, "feature_info", None)
    name = listed[-1]["module"] if isinstance(listed, list) and listed else ""
    if name and name in dict(model.named_modules()):
        shapes: list[torch.Size] = []
        hook = model.get_submodule(name).register_forward_hook(lambda layer, args, out: shapes.append(out.shape))
        try:
            run_without_computing(model, model.pretrained_cfg["input_size"][-2:])
        finally:
            hook.remove()
        if len(shapes[0]) == 4:
            return GradcamLayer(name, "NHWC" if getattr(model, "output_fmt", "NCHW") == "NHWC" else "NCHW")
    raise InputError(f"{type(model).__name__} names no feature map for Grad-CAM; choose one that dino-oct zoo lists")


def run_without_computing(model: nn.Module, size: tuple[int, int]) -> None:
    """Pass one image of this size (rows, columns) through a model in shapes only, for its hooks and its complaints."""
    # In training mode BatchNorm would keep what it never saw.
    with evaluating(model), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model(torch.empty(1, in_channels(model), *size, device=next(model.parameters()).device))


def classifier_layer(model: nn.Module) -> str:
    """Dotted name of the classifier, whose input is the embedding; "" for a model without."""
    return next((name.rpartition(".")[0] for name in classifier_tensors(model)), "")


def embed(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The vector before the classifier, (B, D), of normalised images (B, C, H, W)."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def values_put_out(model: nn.Module, size: tuple[int, int]) -> int:
    """Numbers that all layers put out for one image of this size (rows, columns); nothing is computed."""
    counts: list[int] = []

    def count(layer: nn.Module, args: tuple, output: object) -> None:
        counts.append(output.numel() if isinstance(output, Tensor) else 0)

    layers = [module for module in model.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        run_without_computing(model, size)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def check_runs(model: nn.Module, size: tuple[int, int], name: str) -> None:
    """Raise InputError unless a model takes images of this size (rows, columns); ``name`` is the setting's."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it prints a traceback
    was_disabled, log.disabled = log.disabled, True
    try:
        run_without_computing(model, size)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(
            f"{name} {size[0]} {size[1]}: {type(model).__name__} cannot take images of this size ({reason}); choose "
            "larger images, or a backbone that takes any size"
        ) from None
    finally:
        log.disabled = was_disabled


@torch.no_grad()
def layer_maps(model: nn.Module, images: Tensor) -> Tensor:
    """Output (B, D, rows, columns) float32 of ``gradcam_layer`` in evaluation mode, for normalised (B, C, H, W) images.

    Raises:
        InputError: a model without a layer for Grad-CAM.
    """
    layer, outputs = gradcam_layer(model), []
    hook = model.get_submodule(layer.name).register_forward_hook(lambda module, args, out: outputs.append(out.clone()))
    try:
        with evaluating(model):
            model.forward_features(images)
    finally:
        hook.remove()
    return layer.to_maps(outputs[0], tuple(images.shape[-2:])).float()


def feature_cam(model: nn.Module, images: Tensor, mean: Tensor) -> Tensor:
    """Where an image is unlike other scans, in a network without attention and without a class to ask about.

    The layer's output is pooled over positions and compared with the mean of other scans: d = (p − mean) / ‖p − mean‖.
    The map is each position's part along d, counted from the mean. It is Grad-CAM (Selvaraju et al. 2017) of ‖p − mean‖
    in the place of a class's logit, with the mean as the origin; its mean over positions, without the negative part
    left out, is ‖p − mean‖. The length of the feature itself would not do: behind ConvNeXt's last norm all are alike.

    Args:
        images: (B, C, H, W) normalised.
        mean: (D,) mean over other scans and positions of ``layer_maps``.

    Returns:
        (B, rows, columns) float32 ≥ 0, of the size and in the unit of the layer.

    Raises:
        InputError: a model without a layer for Grad-CAM.
    """
    centred = layer_maps(model, images) - mean[:, None, None]
    direction = F.normalize(centred.mean(dim=(2, 3)), dim=1)
    return (direction[:, :, None, None] * centred).sum(dim=1).clamp_min(0)
