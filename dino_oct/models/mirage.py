"""Files of MIRAGE (Morano et al. 2025): the encoder of B-scans as timm's vision transformer.

MIRAGE is a masked autoencoder of several kinds of images (MultiMAE, Bachmann et al. 2022): an input adapter for each
kind makes patches into tokens, global tokens join them, one encoder reads all. There is no final norm, and the image
feature is the mean over the patches. Its images have one channel, from 0 to 1, and no mean and std.
"""

from dataclasses import replace
from pathlib import Path

from einops import rearrange

from dino_oct.errors import InputError
from dino_oct.models.description import ModelArgs
from dino_oct.models.formats import StoredNetwork

ANCHOR = "global_tokens"
_BSCAN = "input_adapters.bscan."
_RENAMED = {f"{_BSCAN}proj.": "patch_embed.proj.", "encoder.": "blocks."}


def as_transformer(network: StoredNetwork, file: Path) -> tuple[StoredNetwork, ModelArgs]:
    """The encoder of B-scans under timm's names, and the arguments that no name tells.

    Raises:
        InputError: no adapter of B-scans, or one that is not MIRAGE's.
    """
    tensors, left_out = {}, []
    for name, tensor in network.tensors.items():
        if name.startswith(("input_adapters.", "output_adapters.")) and not name.startswith(_BSCAN):
            left_out.append(name)
            continue
        for start, renamed in _RENAMED.items():
            if name.startswith(start):
                name = renamed + name.removeprefix(start)
        tensors[name] = tensor
    positions, tokens = tensors.pop(f"{_BSCAN}pos_emb", None), tensors.pop(ANCHOR)
    patches = tensors.get("patch_embed.proj.weight")
    if positions is None or patches is None or positions.ndim != 4 or patches.ndim != 4 or tokens.ndim != 3:
        kinds = sorted({name.split(".")[1] for name in network.tensors if name.startswith("input_adapters.")})
        raise InputError(f"{file}: MIRAGE's encoder of B-scans is not in it (it reads {', '.join(kinds) or 'nothing'})")
    tensors["pos_embed"] = rearrange(positions, "one d h w -> one (h w) d")
    tensors["cls_token"] = tokens[:, :1]
    args: ModelArgs = {"global_pool": "avg", "fc_norm": False, "final_norm": False, "no_embed_class": True}
    if tokens.shape[1] > 1:
        tensors["reg_token"] = tokens[:, 1:]
    args["img_size"] = [n * side for n, side in zip(positions.shape[2:], patches.shape[2:], strict=True)]
    return replace(network, tensors=tensors, left_out=(*network.left_out, *left_out)), args
