"""Where a classifier is looked into: the vector before its classifier, and the layer that Grad-CAM reads.

Grad-CAM needs the deepest layer that still has positions and on which the logits depend at every position. In a
transformer that reads out CLS that is the norm before the last attention: after it, patches no longer reach the logits.
"""

from collections.abc import Callable
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
from dino_oct.models.backbone import classifier_tensors, patch_size
from dino_oct.models.network import cls_feature, evaluating, in_channels

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
    raise InputError(
        f"{type(model).__name__} names no feature map for Grad-CAM; choose an architecture of supervised/zoo.py"
    )


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


def check_runs(model: nn.Module, size: tuple[int, int], name: str) -> None:
    """Raise InputError unless a model takes images of this size (rows, columns); ``name`` is the setting's."""
    try:
        run_without_computing(model, size)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(
            f"{name} {size[0]} {size[1]}: {type(model).__name__} cannot take images of this size ({reason}); choose "
            "larger images, or a backbone that takes any size"
        ) from None


def run_from(
    model: nn.Module, name: str, images: Tensor, forward: Callable[[nn.Module, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """A layer's output as the root of a graph that ends in what ``forward`` computes; nothing before it is recorded.

    Args:
        model: in whatever mode it is; it runs in evaluation mode.
        name: dotted name of the layer.

    Returns:
        the layer's output, which needs a gradient, and the result.
    """
    recorded: list[Tensor] = []

    def start_here(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        recorded.append(output.detach().requires_grad_())
        return recorded[0].clone()  # a layer that works in place may follow

    hook = model.get_submodule(name).register_forward_hook(start_here)
    try:
        with evaluating(model), torch.no_grad():  # which also takes back the hook's change
            result = forward(model, images)
    finally:
        hook.remove()
    return recorded[0], result


def feature_cam(model: nn.Module, images: Tensor, mean: Tensor) -> Tensor:
    """Grad-CAM without a class: where a network sees what sets an image's feature apart from the mean feature.

    Grad-CAM (Selvaraju et al. 2017) with the feature's part along d, its own difference from the mean, in the place of
    the class's logit. A class is not needed. The length of the feature would not do instead of d: behind a last norm,
    as ConvNeXt has, every feature has the same.

    Args:
        images: (B, C, H, W) normalised.
        mean: (D,) feature of many other scans.

    Returns:
        (B, rows, columns) float32 ≥ 0, of the size of ``gradcam_layer``, in the units of the feature and of the layer.

    Raises:
        InputError: a model without a layer for Grad-CAM.
    """
    layer = gradcam_layer(model)
    output, features = run_from(model, layer.name, images, cls_feature)
    direction = F.normalize(features.detach() - mean, dim=1)
    (gradient,) = torch.autograd.grad((features * direction).sum(), output)
    maps, slopes = (layer.to_maps(tensor.detach().float(), tuple(images.shape[-2:])) for tensor in (output, gradient))
    return (slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).clamp_min(0)
