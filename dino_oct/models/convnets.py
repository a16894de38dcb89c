"""Files of ResNets and ConvNeXts: the architecture that the names and shapes of their tensors tell.

ResNet (He et al. 2016) under torchvision's names, as DINO, MoCo and timm write them; ConvNeXt (Liu et al. 2022) under
the names of its authors, as DINOv3 writes them, and under timm's.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch

from dino_oct.errors import InputError
from dino_oct.models.formats import Architecture, StoredNetwork
from dino_oct.models.official import Tensors

# A tensor that each family has and no other, below any prefix.
RESNET = "layer1.0.conv1.weight"
CONVNEXT = "downsample_layers.0.0.weight"
CONVNEXT_OF_TIMM = "stages.0.blocks.0.conv_dw.weight"
EFFICIENTNET = "conv_stem.weight"

_RESNETS = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
_CONVNEXTS = {
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
    ((3, 3, 27, 3), 256): "convnext_xlarge",
    ((3, 4, 30, 3), 384): "convnext_xxlarge",  # its norms have another eps
}
_ENCODERS = {"encoder_q", "encoder_k", "base_encoder", "momentum_encoder"}  # of MoCo, whose fc is a projection


def without_projections(network: StoredNetwork) -> StoredNetwork:
    """The network without what its file repeats, or has in the classifier's place.

    MoCo's projection is called ``fc``; DINOv3's ConvNeXt repeats its last norm as ``norms.3``.
    """
    tensors, beside = dict(network.tensors), []
    if network.prefix.rpartition(".")[2] in _ENCODERS:
        beside += [name for name in tensors if name.startswith("fc.")]
    for name in [name for name in tensors if name.startswith("norms.")]:
        other = tensors.get(re.sub(r"^norms\.\d+", "norm", name))
        if other is not None and torch.equal(other, tensors[name]):
            beside.append(name)
    kept = {name: tensor for name, tensor in tensors.items() if name not in beside}
    return replace(network, tensors=kept, left_out=(*network.left_out, *beside))


def infer_resnet(tensors: Tensors, file: Path) -> Architecture:
    """The timm ResNet (also ResNeXt, wide) of a file; that its tensors tell everything, loading makes sure.

    Raises:
        InputError: a stem or shortcuts of another kind.
    """
    if "conv1.weight" not in tensors or ("layer2.0.downsample.1.weight" in tensors) > (
        "layer2.0.downsample.0.weight" in tensors
    ):
        raise InputError(
            f"{file}: a ResNet whose stem or shortcuts are not torchvision's; give timm:NAME@{file} (as resnet50d)"
        )
    layers = tuple(_count(tensors, f"layer{stage}.") for stage in range(1, 5))
    is_bottleneck = "layer1.0.conv3.weight" in tensors
    firsts = [tensors.get(f"layer{stage}.0.conv1.weight") for stage in range(1, 5)]
    lasts = [tensors.get(f"layer{stage}.0.conv{3 if is_bottleneck else 2}.weight") for stage in range(1, 5)]
    middle = tensors.get("layer1.0.conv2.weight")
    if middle is None or any(t is None or t.ndim != 4 for t in (*firsts, *lasts, middle)):
        raise InputError(f"{file}: a ResNet without its four stages; give timm:NAME@{file}")
    channels = [len(last) // (4 if is_bottleneck else 1) for last in lasts]
    args = {"channels": channels} if channels != [64, 128, 256, 512] else {}
    name = _RESNETS.get((is_bottleneck, layers))
    if name is None:
        name, args["layers"] = "resnet50" if is_bottleneck else "resnet18", list(layers)
    if is_bottleneck:
        width = len(firsts[0])
        groups = max(width // max(middle.shape[1], 1), 1)
        per_group = width * 64 // (groups * max(channels[0], 1))
        args |= {"cardinality": groups} if groups != 1 else {}
        args |= {"base_width": per_group} if per_group != 64 else {}
    if (in_chans := tensors["conv1.weight"].shape[1]) != 3:
        args["in_chans"] = in_chans
    return Architecture(name, args, ())


def infer_convnext(tensors: Tensors, file: Path) -> Architecture:
    """The timm ConvNeXt (also V2) of a file under its authors' names or timm's.

    Raises:
        InputError: a stem or stages of another kind.
    """
    is_timm = CONVNEXT_OF_TIMM in tensors
    blocks = [f"stages.{stage}.{'blocks.' if is_timm else ''}" for stage in range(4)]
    depths = tuple(_count(tensors, start) for start in blocks)
    firsts = [tensors.get(f"{start}0.{'conv_dw' if is_timm else 'dwconv'}.weight") for start in blocks]
    stem = tensors.get("stem.0.weight" if is_timm else CONVNEXT)
    if stem is None or stem.ndim != 4 or any(first is None or first.ndim != 4 for first in firsts):
        raise InputError(f"{file}: a ConvNeXt whose stem or stages are not its authors'; give timm:NAME@{file}")
    in_blocks = {name.split(".", 4 if is_timm else 3)[-1] for name in tensors if name.startswith("stages.0.")}
    dims = [len(first) for first in firsts]
    has_grn = any("grn." in name for name in in_blocks)  # of V2, which has no scale of its branches
    is_doubling = dims == [dims[0] << stage for stage in range(4)]
    name = _CONVNEXTS.get((depths, dims[0])) if is_doubling and not has_grn else None
    args = {} if name else {"depths": list(depths), "dims": dims}
    name = name or ("convnextv2_tiny" if has_grn else "convnext_tiny")
    expand = tensors.get("stages.0.blocks.0.mlp.fc1.weight")
    further = {
        "in_chans": (stem.shape[1], 3),
        "patch_size": (stem.shape[2], 4),
        "kernel_sizes": (firsts[0].shape[2], 7),
        "conv_mlp": (expand is not None and expand.ndim == 4, False),
        "head_norm_first": ("norm_pre.weight" in tensors, False),
    }
    args |= {key: value for key, (value, default) in further.items() if value != default}
    return Architecture(name, args, ())


def _count(tensors: Tensors, start: str) -> int:
    """How many numbered parts follow ``start`` in the names."""
    numbers = [name.removeprefix(start).partition(".")[0] for name in tensors if name.startswith(start)]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
