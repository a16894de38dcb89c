"""Folders of Hugging Face's transformers: their tensors under the names of each network's authors.

Nothing of transformers is imported. ``config.json`` names the kind of network (``model_type``) and what no tensor
tells; a kind or a setting that timm computes otherwise is refused. ``preprocessor_config.json`` has mean, std and size.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD

from dino_oct.errors import InputError
from dino_oct.files import read_json
from dino_oct.models.description import ImageDescription, ModelArgs, check_images
from dino_oct.models.folders import ModelFolder
from dino_oct.models.formats import StoredNetwork
from dino_oct.models.official import Checkpoint, Tensors
from dino_oct.models.recognise import IMAGENET, Recognised

Names = tuple[tuple[str, str], ...]  # patterns of whole names, and what stands for them

_EMBEDDINGS: Names = (
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
_ATTENTION: Names = (
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
)
_VIT: Names = (
    *_EMBEDDINGS,
    *_ATTENTION,
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"classifier\.(\w+)", r"head.\1"),
)
_DINOV2: Names = (
    *_EMBEDDINGS,
    *_ATTENTION,
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.(\w+)", r"blocks.\1.mlp.w12.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.(\w+)", r"blocks.\1.mlp.w3.\2"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.(\w+)", r"blocks.\1.\2.\3"),
)
_LAYER = r"(?:model\.)?layer\.(\d+)\."
_DINOV3: Names = (
    (r"embeddings\.register_tokens", "storage_tokens"),
    (r"embeddings\.patch_embeddings\.(\w+)", r"patch_embed.proj.\1"),
    *_EMBEDDINGS[:1],
    (_LAYER + r"attention\.q_proj\.(\w+)", r"blocks.\1.attn.query.\2"),
    (_LAYER + r"attention\.k_proj\.(\w+)", r"blocks.\1.attn.key.\2"),
    (_LAYER + r"attention\.v_proj\.(\w+)", r"blocks.\1.attn.value.\2"),
    (_LAYER + r"attention\.o_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (_LAYER + r"(norm[12])\.(\w+)", r"blocks.\1.\2.\3"),
)
_PLAIN_MLP: Names = (
    (_LAYER + r"mlp\.up_proj\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"mlp\.down_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
)
_GATED_MLP: Names = (
    (_LAYER + r"mlp\.gate_proj\.(\w+)", r"blocks.\1.mlp.w1.\2"),
    (_LAYER + r"mlp\.up_proj\.(\w+)", r"blocks.\1.mlp.w2.\2"),
    (_LAYER + r"mlp\.down_proj\.(\w+)", r"blocks.\1.mlp.w3.\2"),
)
_CONVNEXT: Names = (
    (r"embeddings\.patch_embeddings\.(\w+)", r"downsample_layers.0.0.\1"),
    (r"embeddings\.layernorm\.(\w+)", r"downsample_layers.0.1.\1"),
    (r"encoder\.stages\.(\d)\.downsampling_layer\.([01])\.(\w+)", r"downsample_layers.\1.\2.\3"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.\2.gamma"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layernorm\.(\w+)", r"stages.\1.\2.norm.\3"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.(dwconv|pwconv[12])\.(\w+)", r"stages.\1.\2.\3.\4"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"classifier\.(\w+)", r"head.\1"),
)
_STAGE = r"(?:model\.)?stages\.(\d)\."
_DINOV3_CONVNEXT: Names = (
    (_STAGE + r"downsample_layers\.([01])\.(\w+)", r"downsample_layers.\1.\2.\3"),
    (_STAGE + r"layers\.(\d+)\.depthwise_conv\.(\w+)", r"stages.\1.\2.dwconv.\3"),
    (_STAGE + r"layers\.(\d+)\.layer_norm\.(\w+)", r"stages.\1.\2.norm.\3"),
    (_STAGE + r"layers\.(\d+)\.pointwise_conv([12])\.(\w+)", r"stages.\1.\2.pwconv\3.\4"),
    (_STAGE + r"layers\.(\d+)\.gamma", r"stages.\1.\2.gamma"),
    (r"layer_norm\.(\w+)", r"norm.\1"),
)
_BLOCK = r"encoder\.stages\.([0-3])\.layers\.(\d+)\."


def _resnet_name(name: str) -> str:
    """torchvision's name of a tensor: its stages and layers count from 1."""
    if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
        return f"{'conv1' if match[1] == 'convolution' else 'bn1'}.{match[2]}"
    if match := re.fullmatch(_BLOCK + r"layer\.([0-2])\.(convolution|normalization)\.(\w+)", name):
        kind = "conv" if match[4] == "convolution" else "bn"
        return f"layer{int(match[1]) + 1}.{match[2]}.{kind}{int(match[3]) + 1}.{match[5]}"
    if match := re.fullmatch(_BLOCK + r"shortcut\.(convolution|normalization)\.(\w+)", name):
        return f"layer{int(match[1]) + 1}.{match[2]}.downsample.{int(match[3] == 'normalization')}.{match[4]}"
    return re.sub(r"^classifier\.1\.", "fc.", name)


@dataclass(frozen=True)
class _Kind:
    """A kind of network, by its ``model_type``.

    Attributes:
        name: of its class in transformers.
        names: of its tensors.
        family: of ``Recognised``.
        eps, heads: defaults of its configuration; heads is 0 without attention.
        activation: the one that timm's network has; "" where the configuration's is not used.
    """

    name: str
    names: Names | Callable[[str], str]
    family: str = "transformer"
    eps: float | None = 1e-6
    heads: int = 12
    activation: str = "gelu"


_KINDS = {
    "vit": _Kind("ViTModel", _VIT, eps=1e-12),
    "vit_mae": _Kind("ViTMAEModel", _VIT, eps=1e-12),
    "dinov2": _Kind("Dinov2Model", _DINOV2),
    "dinov2_with_registers": _Kind("Dinov2WithRegistersModel", _DINOV2),
    "dinov3_vit": _Kind("DINOv3ViTModel", _DINOV3, eps=1e-5, heads=6),
    "dinov3_convnext": _Kind("DINOv3ConvNextModel", _DINOV3_CONVNEXT, "convnext", heads=0),
    "convnext": _Kind("ConvNextModel", _CONVNEXT, "convnext", eps=1e-12, heads=0),
    "resnet": _Kind("ResNetModel", _resnet_name, "resnet", eps=None, heads=0, activation="relu"),
}
_PREFIXES = ("vit.", "dinov2.", "dinov2_with_registers.", "convnext.", "resnet.")  # of models with a task's head
# What the folder's network has besides, known by name: CLS's pooler of ViTModel, the decoder of ViTMAE, and the
# classifier of DINOv2, which reads CLS beside the mean of the patches, as no timm model does.
_BESIDE = {"vit": r"pooler\.", "vit_mae": r"decoder\.", "dinov2": r"classifier\."}
_BESIDE["dinov2_with_registers"] = _BESIDE["dinov2"]


def is_named(checkpoint: Checkpoint) -> bool:
    """Whether a file's tensors have names of transformers, which need their configuration."""
    marks = ("embeddings.patch_embeddings.", "embedder.embedder.convolution.", "stages.0.downsample_layers.")
    return any(mark in str(name) for name in checkpoint for mark in marks)


def open_model(folder: ModelFolder) -> Recognised:
    """The network of a folder whose ``config.json`` has a ``model_type``.

    Raises:
        InputError: a kind that is not known (those known are listed), a setting that timm computes otherwise, or
            a file that cannot be read.
    """
    file, config = folder.path / "config.json", folder.config
    model_type = config.get("model_type")
    kind = _KINDS.get(model_type) if isinstance(model_type, str) else None
    if kind is None:
        raise InputError(f"{file}: model_type {model_type!r} is not known; known are {', '.join(_KINDS)}")
    gated = bool(config.get("use_gated_mlp" if kind.names is _DINOV3 else "use_swiglu_ffn"))
    _check_settings(config, kind, gated, file)
    is_dinov3 = kind.names is _DINOV3
    names = (*_DINOV3, *(_GATED_MLP if gated else _PLAIN_MLP)) if is_dinov3 else kind.names
    tensors, left_out = _rename(folder.read(), model_type, names, folder.path)
    _check_counts(tensors, config, kind.family, file)
    heads = _number(config, "num_attention_heads", kind.heads, int, file) if kind.heads else None
    if heads:
        _merge_attention(tensors, fill=is_dinov3, file=folder.path)
    if is_dinov3:
        if not config.get("num_register_tokens"):  # DINOv3's own files always have some
            tensors.setdefault("storage_tokens", torch.empty(1, 0, 1))
        _add_rotation(tensors, config, heads, file)
    args: ModelArgs = {}
    size = config.get("image_size")
    if isinstance(size, list) and len(size) == 2 and size[0] != size[1] and "pos_embed" in tensors:
        args["img_size"] = size
    images, assumed = _images(folder.path, config)
    eps = None if kind.eps is None else _number(config, "layer_norm_eps", kind.eps, float, file)
    if kind.names is _DINOV3_CONVNEXT:  # of all norms, which timm takes as an argument
        args, eps = ({"norm_eps": eps} if eps != kind.eps else {}), None
    return Recognised(
        f"Hugging Face {kind.name}",
        StoredNetwork(tensors, "", tuple(left_out), ()),
        kind.family,
        "fc" if kind.family == "resnet" else "head",
        heads=heads,
        args=args,
        images=images,
        assumed=assumed,
        eps=eps,
        label_names=_label_names(config),
    )


def _check_settings(config: dict[str, Any], kind: _Kind, gated: bool, file: Path) -> None:
    """Raise InputError for a setting under which timm's network computes something else."""
    expected = {"hidden_act": kind.activation}
    if gated:  # DINOv2's SwiGLU has SiLU whatever is set
        expected = {"hidden_act": "silu"} if kind.names is _DINOV3 else {}
    if kind.family == "resnet":
        expected |= {"downsample_in_bottleneck": False, "downsample_in_first_stage": False}
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise InputError(f"{file}: {name} {config[name]!r} is not what timm's network has ({value!r}): refused")


def _rename(checkpoint: Checkpoint, model_type: str, names: Any, folder: Path) -> tuple[Tensors, list[str]]:
    tensors, left_out = {}, []
    for original, tensor in checkpoint.items():
        if not isinstance(original, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{folder}: {original} of its weights is no tensor")
        name = next((original.removeprefix(p) for p in _PREFIXES if original.startswith(p)), original)
        if model_type in _BESIDE and re.match(_BESIDE[model_type], name):
            left_out.append(name)
            continue
        if callable(names):
            name = names(name)
        else:
            renamed = (re.sub(pattern, new, name) for pattern, new in names if re.fullmatch(pattern, name))
            name = next(renamed, name)
        if name in tensors:
            raise InputError(f"{folder}: {original} is in its weights twice, under two names")
        tensors[name] = tensor
    return tensors, left_out


def _check_counts(tensors: Tensors, config: dict[str, Any], family: str, file: Path) -> None:
    """Raise InputError where the weights lack whole parts that the configuration counts: no tensor would tell."""

    def count(start: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(start + r"\.(\d+)\.", name))})

    registers = next((tensors[name].shape[1] for name in ("register_tokens", "storage_tokens") if name in tensors), 0)
    stages = [f"layer{stage}" if family == "resnet" else rf"stages\.{stage - 1}" for stage in range(1, 5)]
    counts = {
        "num_register_tokens": registers,
        "num_hidden_layers": count("blocks"),
        "depths": [count(stage) for stage in stages],
    }
    for name, counted in counts.items():
        if name in config and config[name] != counted:
            raise InputError(f"{file}: {name} {config[name]!r}, but its weights have {counted}: not of one network")


def _merge_attention(tensors: Tensors, fill: bool, file: Path) -> None:
    """Put query, key and value of each block into one layer, in place.

    Args:
        fill: whether biases may be missing, which then are 0; timm's network has none of keys.
    """
    for block in {
        match[1] for name in tensors if (match := re.match(r"(blocks\.\d+\.attn\.)(query|key|value)\.", name))
    }:
        for part in ("weight", "bias"):
            names = [f"{block}{layer}.{part}" for layer in ("query", "key", "value")]
            parts = [tensors.get(name) for name in names]
            if fill and part == "bias":
                if parts[1] is not None and parts[1].any():
                    raise InputError(f"{file}: {names[1]} is not 0, and timm's network has no bias of keys: refused")
                some = next((tensor for tensor in parts if tensor is not None), None)
                parts = [torch.zeros_like(some) if p is None and some is not None else p for p in parts]
            if all(tensor is not None for tensor in parts):
                for name in names:
                    tensors.pop(name, None)
                tensors[f"{block}qkv.{part}"] = torch.cat(parts)


def _add_rotation(tensors: Tensors, config: dict[str, Any], heads: int, file: Path) -> None:
    """Add the periods of DINOv3's rotary positions, which its own files hold, to be compared with timm's."""
    theta = _number(config, "rope_theta", 100.0, float, file)
    width = tensors["cls_token"].shape[-1] if "cls_token" in tensors else 0
    if not width or width % (4 * heads):
        raise InputError(f"{file}: num_attention_heads {heads} does not divide width {width} into fours")
    tensors["rope_embed.periods"] = theta ** torch.arange(0, 1, 4 * heads / width)


def _images(folder: Path, config: dict[str, Any]) -> tuple[ImageDescription, tuple[str, ...]]:
    """mean, std and input size of ``preprocessor_config.json``; without it, those that the kind's authors use."""
    file = folder / "preprocessor_config.json"
    given = read_json(file) if file.is_file() else {}
    is_vit = config["model_type"] == "vit"
    usual = {"mean": list(IMAGENET_INCEPTION_MEAN), "std": list(IMAGENET_INCEPTION_STD)} if is_vit else IMAGENET
    if given.get("do_normalize") is False:
        images: ImageDescription = {"mean": [0.0] * 3, "std": [1.0] * 3}
    else:
        images = {"mean": given.get("image_mean", usual["mean"]), "std": given.get("image_std", usual["std"])}
    factor = given.get("rescale_factor", 1 / 255)
    is_scaled = isinstance(factor, float) and abs(factor * 255 - 1) < 1e-3
    if given.get("do_rescale") is False or not is_scaled:
        raise InputError(f"{file}: its images are not scaled to 0 to 1 (do_rescale, rescale_factor): refused")
    size = given.get("crop_size") if given.get("do_center_crop") else None
    if (size := _sides(size if size is not None else given.get("size"))) is not None:
        images["input_size"] = [_number(config, "num_channels", 3, int, folder / "config.json"), *size]
    images = check_images(images, str(file))
    if given.keys() >= {"image_mean", "image_std"} or given.get("do_normalize") is False:
        return images, ()
    values = " and ".join("/".join(f"{value:g}" for value in images[name]) for name in ("mean", "std"))
    return images, (f"mean and std {values} assumed: no preprocessor_config.json with them",)


def _sides(size: Any) -> list[int] | None:
    """Rows and columns of a size, in any of the ways that it is written."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    sides = size if isinstance(size, list) else [size, size]
    return sides if len(sides) == 2 and all(type(side) is int for side in sides) else None


def _label_names(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label")
    if not isinstance(names, dict) or set(map(str, names)) != set(map(str, range(len(names)))):
        return ()
    return tuple(str(names[str(index)]) for index in range(len(names)))


def _number(config: dict[str, Any], name: str, default: float, kind: type, file: Path) -> Any:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < 1e6:
        raise InputError(f"{file}: {name} {value!r} is not a number above 0")
    return value
