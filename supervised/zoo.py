"""The paper's architectures under its names, any other timm model, and pretrained runs, ready to be trained.

    python supervised/zoo.py                       the table
    python supervised/zoo.py --filter convnext

The weights are those that the paper's year had; where timm has a model both trained on ImageNet-1k alone and first on
ImageNet-21k (22k), the latter, which exists for every size of EfficientNetV2, ConvNeXt, ViT and Swin.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.features import check_size
from dino_oct.models.backbone import load_backbone
from dino_oct.models.network import in_channels, normalise
from dino_oct.models.vit import DinoVisionTransformer, set_native_size
from evaluation.reports import table
from supervised.layers import GradcamLayer, classifier_layer, embed, gradcam_layer, run_without_computing

# Name in the paper → timm's name with the tag of the weights.
PAPER = {
    "ResNet18": "resnet18.tv_in1k",
    "ResNet50": "resnet50.a1_in1k",
    "ResNet101": "resnet101.a1h_in1k",
    "ResNet152": "resnet152.a1h_in1k",
    "EfficientNetV2-S": "tf_efficientnetv2_s.in21k_ft_in1k",
    "EfficientNetV2-M": "tf_efficientnetv2_m.in21k_ft_in1k",
    "EfficientNetV2-L": "tf_efficientnetv2_l.in21k_ft_in1k",
    "EfficientNetV2-XL": "tf_efficientnetv2_xl.in21k_ft_in1k",
    "ConvMixer-768/32": "convmixer_768_32.in1k",
    "ConvMixer-1024/20": "convmixer_1024_20_ks9_p14.in1k",
    "ConvMixer-1536/20": "convmixer_1536_20.in1k",
    "ConvNeXt-base": "convnext_base.fb_in22k_ft_in1k",
    "ConvNeXt-large": "convnext_large.fb_in22k_ft_in1k",
    "ConvNeXt-xlarge": "convnext_xlarge.fb_in22k_ft_in1k",
    "ViT-base/16-224": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "ViT-base/16-384": "vit_base_patch16_384.augreg_in21k_ft_in1k",
    "ViT-base/32-224": "vit_base_patch32_224.augreg_in21k_ft_in1k",
    "ViT-base/32-384": "vit_base_patch32_384.augreg_in21k_ft_in1k",
    "ViT-large/16-224": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "ViT-large/16-384": "vit_large_patch16_384.augreg_in21k_ft_in1k",
    "ViT-large/32-224": "vit_large_patch32_224.orig_in21k",  # the only weights of this size
    "ViT-large/32-384": "vit_large_patch32_384.orig_in21k_ft_in1k",
    "DeiT-base-224": "deit_base_patch16_224.fb_in1k",
    "DeiT-base-384": "deit_base_patch16_384.fb_in1k",
    "DeiT-III-large-224": "deit3_large_patch16_224.fb_in22k_ft_in1k",
    "DeiT-III-large-384": "deit3_large_patch16_384.fb_in22k_ft_in1k",
    "Swin-base-224": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "Swin-base-384": "swin_base_patch4_window12_384.ms_in22k_ft_in1k",
    "Swin-large-224": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "Swin-large-384": "swin_large_patch4_window12_384.ms_in22k_ft_in1k",
}
_WEIGHTS = {".pt", ".pth", ".bin", ".ckpt", ".npz", ".safetensors"}  # suffixes
_FULL_WORDS = {"b": "base", "l": "large", "patch": ""}


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


def build(
    name: str,
    num_classes: int,
    *,
    image_size: Sequence[int] | None = None,
    pretrained: bool = True,
    model_args: dict[str, Any] | None = None,
    heads: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> ZooModel:
    """Build a classifier to train.

    Args:
        name: a name of the paper (``ResNet50``, ``ViT-B/16 224``), of timm (``resnet26``), or a SOURCE of
            ``load_backbone``: a run or export, a file of weights, ``timm:NAME``, ``timm:NAME@FILE``,
            ``random:NAME``.
        num_classes: of the classifier, which is new unless the source has one of this size.
        image_size: rows and columns of the images; unset: the size of the weights.
        pretrained: ImageNet weights or random ones, for a name; a SOURCE says itself.
        model_args, heads, drop_path, seed: as ``load_backbone`` takes them.

    Raises:
        InputError: an unknown name (the nearest are named), images that the model cannot take, or as ``load_backbone``.
    """
    if num_classes < 1:
        raise InputError(f"num_classes {num_classes}: a classifier needs at least 1")
    name, source = find(name, pretrained)
    model = load_backbone(
        source, num_classes=num_classes, model_args=model_args, heads=heads, drop_path=drop_path, seed=seed
    )
    if image_size and isinstance(model, DinoVisionTransformer):
        # Trained at this size and exported so, positions are native: plain timm then has the same.
        check_size(tuple(image_size), model, f"{name}: image size")
        set_native_size(model, tuple(image_size))
        model.hub_config["model_args"]["img_size"] = list(image_size)
    return describe(model, name, image_size)


def load_classifier(source: str, *, image_size: Sequence[int] | None = None, heads: int | None = None) -> ZooModel:
    """A trained classifier with its class names, in evaluation mode.

    Args:
        source: a supervised run or its export, or ``timm:NAME`` for ImageNet's classes.
        image_size: as in ``build``.

    Raises:
        InputError: the source has no classifier; or as ``load_backbone``.
    """
    model = load_backbone(source, num_classes=None, heads=heads)
    if model.load_report.classifier != "loaded":
        raise InputError(
            f"{source} has no classifier; train one on it (supervised/train.py --model {source}), "
            "or use evaluation/linear.py for a linear probe of its features"
        )
    found = describe(model, source, image_size)
    found.model.eval()
    return found


def find(name: str, pretrained: bool = True) -> tuple[str, str]:
    """The display name, and the SOURCE of ``load_backbone``, of what a user called a model.

    Raises:
        InputError: unknown; the nearest names are named.
    """
    if name.startswith(("timm:", "random:", "https://")) or Path(name).exists():
        return name, name
    kind = "timm" if pretrained else "random"
    for paper_name, timm_name in PAPER.items():
        if name == timm_name.split(".")[0] or _words(name) == _words(paper_name):
            return paper_name, f"{kind}:{timm_name}"
    if timm.is_model(name):
        return name, f"{kind}:{name}"
    if _is_path(name):
        raise InputError(f"{name}: no such file or folder; give a run, an export, a file of weights or a model's name")
    known = {key.lower(): key for key in [*timm.list_models(), *PAPER]}
    near = [known[key] for key in difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.5)]
    raise InputError(
        f"{name}: neither a model nor a run, export or file"
        + (f"; nearest names: {', '.join(near)}" if near else "")
        + " (python supervised/zoo.py lists the paper's, timm.list_models() the others)"
    )


def _is_path(name: str) -> bool:
    """Whether a text looks like a path; names of the paper have slashes, too."""
    path = Path(name)
    in_folder = path.parent.name != "" and path.parent.is_dir()
    return in_folder or path.suffix in _WEIGHTS or name.startswith(("/", ".", "~", "runs/"))


def _words(name: str) -> list[str]:
    """What a name says, however it is spelt: ViT-B/16 224 and vit_base_patch16_224 are the same."""
    words = [_FULL_WORDS.get(word, word) for word in re.findall(r"[a-z]+|\d+", name.lower())]
    return [word for word in words if word]


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


@dataclass
class Options:
    """The paper's architectures: names, sizes, and the layers that embeddings and Grad-CAM read. Downloads nothing."""

    filter: str = ""
    """Only names, the paper's or timm's, that contain this."""


def main(options: Options, say: Callable[[str], None] = print) -> None:
    """Print the table.

    Raises:
        InputError: no name contains the filter.
    """
    wanted = {p: t for p, t in PAPER.items() if options.filter.lower() in f"{p} {t}".lower()}
    if not wanted:
        raise InputError(f"filter '{options.filter}': no such name among {', '.join(PAPER)}")
    header = ["paper", "timm", "M parameters", "input", "embedding", "of layer's input", "Grad-CAM layer", "output"]
    rows = []
    for paper_name, timm_name in wanted.items():
        with torch.device("meta"):  # shapes without weights
            model = timm.create_model(timm_name, num_classes=4)
        layer, classifier = gradcam_layer(model), classifier_layer(model)
        rows.append(
            [
                paper_name,
                timm_name,
                f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
                " ".join(map(str, model.pretrained_cfg["input_size"][-2:])),
                str(model.get_submodule(classifier).in_features),
                classifier,
                layer.name,
                layer.layout,
            ]
        )
    say(table(header, rows))
    say("\nparameters with a classifier of 4 classes; any timm name, run, export or file of weights works as well")


if __name__ == "__main__":
    run_command(main, Options)
