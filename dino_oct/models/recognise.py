"""Which format the keys of a file are of, by name, and the network that it holds.

Only keys count. Where two sources write the same keys, the name is that of the keys: RETFound's files are MAE's and
DINOv2's, VisionFM's are iBOT's or DINO's, and a backbone of DINO alone has the keys of timm.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dino_oct.errors import InputError
from dino_oct.models import convnets, mirage
from dino_oct.models.description import ImageDescription, ModelArgs
from dino_oct.models.formats import Architecture, StoredNetwork, infer_transformer, stored_network, unknown
from dino_oct.models.official import Checkpoint

IMAGENET: ImageDescription = {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)}
_PLAIN_BLOCK = r"blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
_PLAIN = re.compile(rf"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)|{_PLAIN_BLOCK}")
_MOCO_V3_SMALL = (384, 12)  # width and heads: 32 channels a head, where all others have 64


@dataclass(frozen=True)
class Recognised:
    """A network in a source, ready to be inferred.

    Attributes:
        format: name of the format, as "DINOv2"; two, joined by " or ", where the keys are of both.
        network: its tensors under the names of ``infer``'s family.
        family: which keys these are.
        classifier: name of its classifier's layer among the tensors.
        heads: of its attention, where they are known.
        args: arguments of the timm model that no tensor tells.
        images: mean and std, and where it is known the input size, of its images.
        assumed: what the source does not tell, one sentence each.
        eps: of its norms, where the source says it.
        label_names: of its classifier, where the source says them.
    """

    format: str
    network: StoredNetwork
    family: str = "transformer"
    classifier: str = "head"
    heads: int | None = None
    args: ModelArgs = field(default_factory=dict)
    images: ImageDescription = field(default_factory=lambda: dict(IMAGENET))
    assumed: tuple[str, ...] = ()
    eps: float | None = None
    label_names: tuple[str, ...] = ()

    def infer(self, heads: int | None, file: Path, args: ModelArgs) -> Architecture:
        """The timm architecture; raises as the family's ``infer_…``."""
        args = {**self.args, **args}
        if self.family == "resnet":
            inferred = convnets.infer_resnet(self.network.tensors, file)
        elif self.family == "convnext":
            inferred = convnets.infer_convnext(self.network.tensors, file)
        else:
            if heads and self.heads and heads != self.heads:
                raise InputError(f"{file}: its source tells {self.heads} heads, not {heads}; leave --heads out")
            inferred = infer_transformer(self.network, heads or self.heads, file, args, self.network.tensors)
        return replace(inferred, args={**inferred.args, **args}, assumed=(*self.assumed, *inferred.assumed))


def recognise(checkpoint: Checkpoint, file: Path) -> Recognised:
    """The network of a file and the name of its format.

    Args:
        checkpoint: of ``read_checkpoint``.
        file: for messages.

    Raises:
        InputError: no format that is known by its keys.
    """
    if (network := stored_network(checkpoint)) is not None:
        return _transformer(network)
    if (network := stored_network(checkpoint, (mirage.ANCHOR,))) is not None:
        network, args = mirage.as_transformer(network, file)
        return Recognised("MIRAGE", network, args=args, images={"mean": [0.0], "std": [1.0]})
    images: ImageDescription = {**IMAGENET, "input_size": [3, 224, 224]}
    if (network := stored_network(checkpoint, (convnets.RESNET,))) is not None:
        name = _of_training(network, beside := _beside(network)) or ("DINO" if _has_dino_head(beside) else "")
        plain = () if name else ("plain ResNet assumed: others have the same tensors, for them give timm:NAME@FILE",)
        network = convnets.without_projections(network)
        name = name or "torchvision or timm"
        return Recognised(name, network, family="resnet", classifier="fc", images=images, assumed=plain)
    if (network := stored_network(checkpoint, (convnets.CONVNEXT,))) is not None:
        name = "DINOv3" if any(name.startswith("norms.") for name in network.tensors) else "ConvNeXt"
        network = convnets.without_projections(network)
        return Recognised(name, network, family="convnext", images=images)
    if (network := stored_network(checkpoint, (convnets.CONVNEXT_OF_TIMM,))) is not None:
        return Recognised("timm", network, family="convnext", classifier="head.fc", images=images)
    if stored_network(checkpoint, (convnets.EFFICIENTNET,)) is not None:
        raise InputError(
            f"{file}: an EfficientNet or its kin, whose tensors do not tell how it pads (efficientnet_… or "
            f"tf_efficientnet_…); give timm:NAME@{file}"
        )
    if any(str(name).endswith("flat_param") for value in (checkpoint, *checkpoint.values()) for name in _names(value)):
        raise InputError(
            f"{file}: one process's shard of a training with FSDP; give the teacher's checkpoint of its evaluation"
        )
    raise unknown(file, checkpoint)


def _names(value: object) -> Collection[str]:
    return value if isinstance(value, dict) else ()


def _transformer(network: StoredNetwork) -> Recognised:
    name, width = _transformer_format(network), network.tensors["patch_embed.proj.weight"].shape[0]
    if name == "MoCo-v3" and width == _MOCO_V3_SMALL[0]:
        heads = _MOCO_V3_SMALL[1]
        return Recognised(name, network, heads=heads, assumed=(f"heads: {heads} assumed, as MoCo-v3's ViT-S has",))
    images = "ImageNet's mean and std assumed; timm:NAME@FILE takes those of NAME"
    return Recognised(name, network, assumed=(images,) if name == "timm" else ())


def _transformer_format(network: StoredNetwork) -> str:
    tensors, beside = network.tensors, _beside(network)
    has_scale = any(name.endswith(".ls1.gamma") for name in tensors)
    if "storage_tokens" in tensors or "rope_embed.periods" in tensors:
        return "DINOv3"
    is_chunked = any(re.match(r"blocks\.\d+\.\d+\.", name) for name in tensors)
    if "register_tokens" in tensors or (has_scale and "mask_token" in tensors):
        return "DINOv2"
    if is_chunked or (has_scale and re.search(r"(dino|ibot)_head\.", beside)):
        return "DINOv2"
    if "decoder_embed.weight" in tensors:
        return "MAE"
    if "fc_norm.weight" in tensors and "cls_token" in tensors:
        return "MAE or timm"  # fine-tuned
    if name := _of_training(network, beside):
        return name
    if "masked_embed" in tensors or re.search(r"masked_embed|last_layer2|ibot_loss", beside):
        return "iBOT"
    if _has_dino_head(beside):
        return "DINO"
    if "blocks.0.gamma_1" in tensors and "pos_embed" in tensors:
        return "DeiT-III"
    return "DINO or timm" if "cls_token" in tensors and all(map(_PLAIN.fullmatch, tensors)) else "timm"


def _beside(network: StoredNetwork) -> str:
    """The names of all that lies beside the network, a line each."""
    return "\n".join((*network.left_out, *network.unexpected))


def _has_dino_head(beside: str) -> bool:
    return bool(re.search(r"(^|\.)head\.last_layer\.weight(_[gv])?$", beside, re.MULTILINE))


def _of_training(network: StoredNetwork, beside: str) -> str:
    """MoCo and MoCo-v3, which name the networks that they train; "" for others."""
    names = {*network.prefix.split("."), *re.split(r"[.\n]", beside)}
    if names & {"encoder_q", "encoder_k"}:
        return "MoCo"
    return "MoCo-v3" if names & {"base_encoder", "momentum_encoder"} else ""
