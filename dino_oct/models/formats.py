"""Which network a file of weights holds: the copy that is taken, and the architecture that all of its keys tell."""

import contextlib
import inspect
import math
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dino_oct.errors import InputError
from dino_oct.models.description import ModelArgs
from dino_oct.models.official import Checkpoint, Tensors

_PATCHES = "patch_embed.proj.weight"
# Sizes of timm's transformers by (width, depth, heads).
_SIZES = {
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
}
_WIDE_HEADS = {1280: 16, 1408: 16, 1664: 16}  # heads of public models that are wider than 64 channels a head

# Of several copies of a network the averaged one is taken, the student before the slow encoder that only trains it.
_AVERAGED = {"teacher", "ema", "model_ema", "state_dict_ema", "ema_model", "target_encoder"}
_STUDENT = {"student"}
_MOMENTUM = {"momentum", "momentum_encoder", "momentum_backbone", "encoder_k", "target", "target_network"}

# What files hold beside a backbone, known by name: heads, what pretraining alone reads, and training state.
_BESIDE = re.compile(
    r"(heads?|(dino|ibot|cls|lm)_head|fc|classifier|linear|logits|projectors?|projection(_head)?|predictor|prototypes|"
    r"pre_logits|mask_token|masked_embed|decoder\w*|local_cls_norm|queue\w*|optim\w*|scaler|\w*scheduler\w*|"
    r"(\w+_)?loss|center|criterion|rng\w*)"
)
# Parts of names that sharded training puts between those of the network.
_SHARDING = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Constants that timm's models make themselves.
_CONSTANTS = re.compile(r"(.*\.)?(rope\w*\.periods|bias_mask|relative_position_index|attn_mask|num_batches_tracked)")


@dataclass(frozen=True)
class StoredNetwork:
    """One copy of a network in a file.

    Attributes:
        tensors: by the names that the file gives them, below ``prefix``.
        prefix: where the copy lies, as ``teacher.backbone``; empty: the file holds its tensors and no wrapper.
        left_out: tensors beside it that are known by name not to belong to it.
        unexpected: tensors beside it that are not known.
    """

    tensors: Tensors
    prefix: str
    left_out: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """A timm architecture, its arguments, and what of it no tensor tells (one line each)."""

    name: str
    args: ModelArgs
    assumed: tuple[str, ...]


def stored_network(checkpoint: Checkpoint, known: Collection[str] = (_PATCHES,)) -> StoredNetwork | None:
    """Find a network in a file, in whatever wrappers and prefixes frameworks have put it.

    Args:
        checkpoint: of ``read_checkpoint``.
        known: names of tensors that the network has; most of the file's formats keep them.

    Returns:
        The copy to take: averaged weights (teacher, EMA) before others; None where no tensor has a known name.
    """
    flat = dict(_flatten(checkpoint))
    known = set(known)
    counts: dict[str, int] = {}
    for name in flat:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in known:
                prefix = "".join(f"{part}." for part in parts[:i])
                counts[prefix] = counts.get(prefix, 0) + 1
    if not counts:
        return None
    most = max(counts.values())
    copies = sorted((p for p, n in counts.items() if 2 * n > most), key=lambda p: (_role(p), -counts[p], len(p)))
    prefix, others = copies[0], copies[1:]
    roots = tuple(filter(None, (_unshared(other, prefix) for other in others)))
    tensors = {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
    if not prefix and roots:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(roots)}
    left_out, unexpected = [], []
    for name, tensor in flat.items():
        if name.removeprefix(prefix) in tensors and name.startswith(prefix):
            continue
        # Numbers beside a network count steps and the like.
        beside = name.startswith(roots) or tensor.ndim == 0 or any(map(_BESIDE.fullmatch, name.split(".")))
        (left_out if beside else unexpected).append(name)
    return StoredNetwork(tensors, prefix.rstrip("."), tuple(left_out), tuple(unexpected))


def unwrapped(checkpoint: Checkpoint) -> StoredNetwork:
    """A file of which no name is known, for timm to translate: what all its names share is taken for a wrapper."""
    flat = dict(_flatten(checkpoint))
    network = {name: t for name, t in flat.items() if not any(map(_BESIDE.fullmatch, name.split(".")[:1]))}
    prefix = ""
    while network and len(firsts := {name.removeprefix(prefix).partition(".")[0] for name in network}) == 1:
        prefix += f"{firsts.pop()}."
        if any(name == prefix.rstrip(".") for name in network):  # a single tensor
            return StoredNetwork(flat, "", (), ())
    tensors = {name.removeprefix(prefix): tensor for name, tensor in network.items()}
    return StoredNetwork(tensors, prefix.rstrip("."), tuple(name for name in flat if name not in network), ())


def _flatten(value: dict[Any, Any], path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for key, item in value.items():
        if isinstance(item, torch.Tensor):
            yield _SHARDING.sub("", f"{path}{key}"), item
        elif isinstance(item, dict):
            yield from _flatten(item, f"{path}{key}.")


def _role(prefix: str) -> int:
    parts = set(prefix.split("."))
    return 3 if parts & _MOMENTUM else 2 if parts & _STUDENT else 0 if parts & _AVERAGED else 1


def _unshared(other: str, prefix: str) -> str:
    """The part of another copy's prefix up to where it leaves the taken one's: everything below it is that copy's."""
    root = ""
    for part in other.rstrip(".").split(".") if other else ():
        root += f"{part}."
        if not prefix.startswith(root):
            return root
    return ""


def infer_transformer(
    network: StoredNetwork | None, heads: int | None, file: Path, args: ModelArgs, names: Collection[str]
) -> Architecture:
    """The timm architecture of a vision transformer in a file, from the names and shapes of its tensors.

    Formats: DINO, DINOv2 (with LayerScale, registers, SwiGLU), DINOv3, MAE (also fine-tuned), MoCo-v3, DeiT-III, timm's
    own. What the keys do not tell is said; that they tell everything else, loading makes sure.

    Args:
        heads: attention heads, where they are known.
        args: the user's own arguments, which come first.
        names: of the file's entries, for the message.

    Raises:
        InputError: no such transformer.
    """
    patches = network.tensors.get(_PATCHES) if network else None
    if network is None or patches is None or patches.ndim != 4 or "blocks.0.norm1.weight" not in _blocks(network):
        raise unknown(file, names)
    tensors = _blocks(network)
    width, channels, *patch = tensors[_PATCHES].shape
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.\d+\.", name))
    is_dinov3 = "storage_tokens" in tensors or ("pos_embed" not in tensors and "blocks.0.gamma_1" in tensors)
    heads, assumed = _heads(tensors, width, heads, file)
    model_args: ModelArgs = {"patch_size": patch[0] if patch[0] == patch[1] else patch}
    if channels != 3:
        model_args["in_chans"] = channels
    model_args |= {"embed_dim": width, "depth": depth, "num_heads": heads}
    name = (_dinov3 if is_dinov3 else _vit)(tensors, model_args, file, args)
    return Architecture(name, model_args, assumed)


def unknown(file: Path, names: Collection[str]) -> InputError:
    """The error for a file of no format that is known by its keys; ``names`` are those of its entries."""
    some = ", ".join(list(map(str, names))[:3]) or "no tensors"
    return InputError(
        f"{file}: not a DINO vision transformer, nor of any other format that is known by its keys (it has {some}, …); "
        f"for any other timm architecture give timm:NAME@{file}"
    )


def _blocks(network: StoredNetwork) -> Tensors:
    """Tensors with the blocks' own numbers; DINOv2's trainer writes them in chunks, ``blocks.CHUNK.N``."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): t for name, t in network.tensors.items()}


def _heads(tensors: Tensors, width: int, heads: int | None, file: Path) -> tuple[int, tuple[str, ...]]:
    """Number of heads, and what is assumed of them; norms and rotations of single heads tell it."""
    of_tensors = None
    if "blocks.0.attn.q_norm.weight" in tensors:
        of_tensors = width // len(tensors["blocks.0.attn.q_norm.weight"])
    elif "rope_embed.periods" in tensors:
        of_tensors = width // (4 * len(tensors["rope_embed.periods"]))
    if of_tensors is None and heads is None and width % 64:
        raise InputError(f"{file}: width {width} does not tell the number of heads; give --model.heads (or --heads)")
    count = of_tensors or heads or _WIDE_HEADS.get(width, width // 64)
    if heads is not None and heads != count:
        raise InputError(f"{file}: its tensors tell {count} heads, not {heads}; leave --heads out")
    if not 0 < count <= width or width % count:
        raise InputError(f"{file}: width {width} cannot be divided over {count} heads")
    if of_tensors or heads:
        return count, ()
    return count, (f"heads: {count} assumed, {width // count} channels each; --heads (--model.heads) says otherwise",)


def _vit(tensors: Tensors, model_args: ModelArgs, file: Path, args: ModelArgs) -> str:
    """Name and further arguments of timm's VisionTransformer."""
    width, sizes = model_args["embed_dim"], (model_args["embed_dim"], model_args["depth"], model_args["num_heads"])
    in_blocks = {name.split(".", 2)[2] for name in tensors if name.startswith("blocks.")}

    def has(name: str) -> bool:
        return name in tensors

    if not has("pos_embed"):
        raise InputError(f"{file}: has no pos_embed, so its positions are not known; try timm:NAME@{file}")
    registers = next((tensors[name].shape[1] for name in ("register_tokens", "reg_token") if has(name)), 0)
    prefix, n_positions = int(has("cls_token")) + registers, tensors["pos_embed"].shape[1]
    if has("register_tokens"):  # timm adds the position of CLS to CLS
        n_patches, model_args["no_embed_class"] = n_positions - 1, True
    elif prefix and _is_square(n_positions):
        n_patches, model_args["no_embed_class"] = n_positions, True
    else:
        n_patches = n_positions - prefix
    if "img_size" not in args:
        if not _is_square(n_patches):
            raise InputError(
                f"{file}: {n_patches} positions are not of square images; their size is set with --model.args "
                "img_size=[ROWS,COLUMNS]"
            )
        side, patch = math.isqrt(n_patches), model_args["patch_size"]
        model_args["img_size"] = side * patch if isinstance(patch, int) else [side * patch[0], side * patch[1]]
    if registers:
        model_args["reg_tokens"] = registers
    has_scale = bool(in_blocks & {"ls1.gamma", "gamma_1"})
    if has_scale:
        model_args["init_values"] = 1e-5
    # The norm after the mean over the patches stands in the place of the one before it (MAE's fine-tuning).
    pools = has("fc_norm.weight") or not has("cls_token")
    if pools:
        model_args |= {"global_pool": "avg", "fc_norm": has("fc_norm.weight"), "class_token": has("cls_token")}
    further = {
        "qkv_bias": ("attn.qkv.bias" in in_blocks, True),
        "proj_bias": ("attn.proj.bias" in in_blocks, True),
        "qk_norm": ("attn.q_norm.weight" in in_blocks, False),
        "scale_attn_norm": ("attn.norm.weight" in in_blocks, False),
        "scale_mlp_norm": ("mlp.norm.weight" in in_blocks, False),
        "pre_norm": (has("norm_pre.weight"), False),
    }
    model_args |= {key: value for key, (value, default) in further.items() if value != default}

    rows = _first(tensors, "blocks.0.mlp.fc1.weight", "blocks.0.mlp.w12.weight")
    inner = _first(tensors, "blocks.0.mlp.fc2.weight", "blocks.0.mlp.w3.weight")
    if rows is None or inner is None:
        raise InputError(f"{file}: its blocks have no mlp that is known; try timm:NAME@{file}")
    hidden = rows.shape[0]
    if hidden != 4 * width:
        model_args["mlp_ratio"] = _ratio(hidden, width)
    if hidden == 2 * inner.shape[1]:  # SwiGLU, gate and value in one layer: timm has it under this name alone
        if not has_scale:
            raise InputError(f"{file}: SwiGLU without LayerScale is not known; try timm:NAME@{file}")
        model_args.setdefault("mlp_ratio", 4.0)
        return "vit_giant_patch14_dinov2"
    if model_args.get("pre_norm"):
        return "vit_base_patch16_clip_224"
    start = f"vit_{_SIZES.get(sizes)}_patch{model_args['patch_size']}"
    ends = ["_224"]
    if has_scale and bool(registers) == model_args.get("no_embed_class", False):
        ends.insert(0, "_reg4_dinov2" if registers else "_dinov2")
    name = next((start + end for end in ends if timm.is_model(start + end)), None)
    if name is None:
        return "vit_base_patch16_224"
    for key in ("embed_dim", "depth", "num_heads"):  # the name says them
        del model_args[key]
    return name


def _dinov3(tensors: Tensors, model_args: ModelArgs, file: Path, args: ModelArgs) -> str:
    """Name and further arguments of timm's Eva, which has DINOv3's rotary positions."""
    first = "blocks.0."
    registers = _first(tensors, "storage_tokens", "reg_token")
    model_args["num_reg_tokens"] = 0 if registers is None else registers.shape[1]
    has_bias = any(f"{first}attn.{name}" in tensors for name in ("qkv.bias", "q_bias"))
    gate = _first(tensors, f"{first}mlp.w1.weight", f"{first}mlp.fc1_g.weight")
    rows = gate if gate is not None else tensors.get(f"{first}mlp.fc1.weight")
    if rows is None:
        raise InputError(f"{file}: its blocks have no mlp that is known; try timm:NAME@{file}")
    model_args["mlp_ratio"] = _ratio(rows.shape[0], model_args["embed_dim"])
    if gate is not None:
        model_args["swiglu_align_to"] = 1
    return f"vit_small_{'plus_' if gate is not None else ''}patch16_dinov3{'_qkvb' if has_bias else ''}"


def _ratio(hidden: int, width: int) -> float:
    """Of an mlp: timm rounds width × ratio down."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _first(tensors: Tensors, *names: str) -> torch.Tensor | None:
    return next((tensors[name] for name in names if name in tensors), None)


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def translate(network: StoredNetwork, model: nn.Module, architecture: str, file: Path) -> tuple[Tensors, list[str]]:
    """A file's tensors under the names of a timm model, by timm's own filter of that family.

    Returns:
        The tensors to load, those that the model has no place for included; and the names of those left out, each
        known by name. timm's filters drop tensors: one that is not known is given back to be refused.

    Raises:
        InputError: timm's filter cannot read the file.
    """
    is_transformer = isinstance(model, (VisionTransformer, Eva))  # others have numbers of blocks of their own
    tensors, state = _blocks(network) if is_transformer else dict(network.tensors), model.state_dict()
    positions = tensors.get("pos_embed")
    own = state.get("pos_embed")
    if "register_tokens" in tensors and positions is not None:
        positions = positions[:, 1:]
    # The filters resample what does not fit; a file is loaded as it is or not at all.
    for name, value in (("pos_embed", positions), (_PATCHES, tensors.get(_PATCHES))):
        wanted = own if name == "pos_embed" else state.get(name)
        if value is not None and wanted is not None and value.shape != wanted.shape:
            return tensors, []
    if not _same_rotation(tensors, model):
        raise InputError(f"{file}: its rope_embed.periods are not those of timm's {architecture}")
    ready = dict(tensors)
    if isinstance(model, VisionTransformer) and any("mlp.w12." in n or n == "register_tokens" for n in ready):
        ready.setdefault("mask_token", torch.zeros(1))  # by which timm tells DINOv2's format
    filter_tensors = _filter(architecture)
    if filter_tensors is not None:
        scales = "adapt_layer_scale" in inspect.signature(filter_tensors).parameters
        try:
            with contextlib.redirect_stdout(None):
                ready = filter_tensors(ready, model, **({"adapt_layer_scale": True} if scales else {}))
        except Exception as error:  # whatever an unknown format makes it raise
            reason = f"{type(error).__name__} {' '.join(str(error).split())[:160]}"
            raise InputError(f"{file}: timm cannot read it as {architecture} ({reason})") from None
    ready = {name: tensor for name, tensor in ready.items() if isinstance(tensor, torch.Tensor) and tensor.numel()}
    kept = {tensor.untyped_storage().data_ptr() for tensor in ready.values()}
    dropped = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in ready and tensor.untyped_storage().data_ptr() not in kept and not _is_constant(name, tensor)
        if tensor.numel()
    }
    unread = {n: t for n, t in {**dropped, **ready}.items() if n not in state}
    left_out = [name for name in unread if _BESIDE.fullmatch(name.split(".")[0]) and not is_classifier(name, model)]
    tensors = {name: t for name, t in {**dropped, **ready}.items() if name not in left_out}
    for name, count in state.items():
        if name.endswith("num_batches_tracked"):  # which older files lack, and nothing here reads
            tensors.setdefault(name, count)
    return tensors, left_out


def is_classifier(name: str, model: nn.Module) -> bool:
    """Whether a tensor has the name of the classifier of a timm model, which may be built without."""
    layers = model.pretrained_cfg.get("classifier") or "head"
    return name.rpartition(".")[0] in ([layers] if isinstance(layers, str) else layers)


def _is_constant(name: str, tensor: torch.Tensor) -> bool:
    # A bias of zeros adds nothing: DINOv3's smaller models have it, and timm builds them without.
    return bool(_CONSTANTS.fullmatch(name)) or (name.endswith("qkv.bias") and not tensor.any())


def _same_rotation(tensors: Tensors, model: nn.Module) -> bool:
    """Whether timm's rotary positions are those of the file, which may hold them in bfloat16."""
    theirs, ours = tensors.get("rope_embed.periods"), getattr(getattr(model, "rope", None), "periods", None)
    if theirs is None or ours is None:
        return theirs is None
    return theirs.shape == ours.shape and torch.allclose(theirs.float(), ours.float(), rtol=0.01)


def _filter(architecture: str):
    """timm's function that translates the files of a family; None where it has none."""
    module = sys.modules[model_entrypoint(architecture).__module__]
    names = ("checkpoint_filter_fn", "_checkpoint_filter_fn", "_filter_fn")
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)
