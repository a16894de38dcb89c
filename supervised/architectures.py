"""The paper's architectures under its names, any other timm model, and pretrained runs, ready to be trained."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from dino_oct.errors import InputError
from dino_oct.models.backbone import check_size, load_backbone
from dino_oct.models.classifier import Classifier, describe_classifier
from dino_oct.models.description import ModelArgs
from dino_oct.models.layers import classifier_layer, gradcam_layer
from dino_oct.models.vit import DinoVisionTransformer, set_native_size
from dino_oct.scores.text import table
from supervised.paper import PAPER

_WEIGHTS = {".pt", ".pth", ".bin", ".ckpt", ".npz", ".safetensors"}  # suffixes
_FULL_WORDS = {"b": "base", "l": "large", "patch": ""}


def build(
    name: str,
    num_classes: int,
    *,
    image_size: Sequence[int] | None = None,
    pretrained: bool = True,
    model_args: ModelArgs | None = None,
    heads: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Classifier:
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
    return describe_classifier(model, name, image_size)


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
        + " (dino-oct zoo lists the paper's, timm.list_models() the others)"
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


def overview(names: dict[str, str]) -> str:
    """A table of architectures: sizes, and the layers that embeddings and Grad-CAM read.

    Args:
        names: of the paper → of timm.
    """
    header = ["paper", "timm", "M parameters", "input", "embedding", "of layer's input", "Grad-CAM layer", "output"]
    rows = []
    for paper_name, timm_name in names.items():
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
    return table(header, rows) + (
        "\n\nparameters with a classifier of 4 classes; any timm name, run, export or file of weights works as well"
    )
