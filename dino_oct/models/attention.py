"""Where CLS looks, and the features of the linear protocol, of timm transformers."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from dino_oct.errors import InputError
from dino_oct.models.backbone import patch_size


def has_cls_attention(backbone: nn.Module) -> bool:
    """Whether the backbone has transformer blocks and a CLS token; a convolutional network has none."""
    return getattr(backbone, "cls_token", None) is not None and hasattr(backbone, "blocks")


def check_transformer(backbone: nn.Module) -> None:
    """Raise InputError unless the backbone has transformer blocks and a CLS token."""
    if not has_cls_attention(backbone):
        raise InputError(f"{type(backbone).__name__} has no CLS token: this needs a vision transformer")


def cls_attention(backbone: nn.Module, images: torch.Tensor, block: int = -1) -> torch.Tensor:
    """``cls_attentions`` of one block, negative from the last: (B, heads, rows, columns) float32."""
    return cls_attentions(backbone, images, [block])[0]


@torch.no_grad()
def cls_attentions(backbone: nn.Module, images: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
    """Softmax attention from CLS to the patches, per head (Caron et al. 2021, figure 1), of several blocks in one pass.
    Only the CLS rows are computed.

    Args:
        images: (B, C, H, W) normalised, H and W multiples of the patch.
        blocks: which ones, negative from the last.

    Returns:
        (B, heads, rows, columns) float32 of each. Rows sum to 1 less the attention to CLS itself and to registers.
    """
    with attention_watched(backbone, blocks) as attentions:
        backbone.forward_features(images)
    return attentions(images.shape[-2])


@contextmanager
def attention_watched(backbone: nn.Module, blocks: Sequence[int]) -> Iterator[Callable[[int], list[torch.Tensor]]]:
    """Keep what ``cls_attentions`` are made of while the backbone passes images; the function that is given makes them
    of the last pass, told the rows of its images in pixels.

    Raises:
        InputError: no transformer with CLS.
    """
    check_transformer(backbone)
    captured: dict[tuple[int, str], torch.Tensor] = {}

    def keep(block: int, name: str, rows: slice):
        def hook(module, args, output):
            captured[block, name] = output[:, :, rows].detach()

        return hook

    def keep_rope(block: int):
        def hook(module, args, kwargs):
            captured[block, "rope"] = kwargs.get("rope")

        return hook

    def attentions(height: int) -> list[torch.Tensor]:
        return [_attention_of(backbone, block, captured, height // patch_size(backbone)) for block in blocks]

    with ExitStack() as hooks:
        for block in blocks:
            attn = backbone.blocks[block].attn
            for handle in (
                attn.q_norm.register_forward_hook(keep(block, "q", slice(0, 1))),
                attn.k_norm.register_forward_hook(keep(block, "k", slice(None))),
                attn.register_forward_pre_hook(keep_rope(block), with_kwargs=True),
            ):
                hooks.callback(handle.remove)
        yield attentions


def _attention_of(
    backbone: nn.Module, block: int, captured: dict[tuple[int, str], torch.Tensor], rows: int
) -> torch.Tensor:
    attn, prefix = backbone.blocks[block].attn, backbone.num_prefix_tokens
    q, k, rope = captured[block, "q"].float(), captured[block, "k"].float(), captured[block, "rope"]
    if rope is not None:
        # Rotary positions turn the patches' keys only; CLS has no position.
        from timm.layers import apply_rot_embed_cat

        half = getattr(attn, "rotate_half", False)
        turned = apply_rot_embed_cat(k[:, :, prefix:], rope.float(), half=half)
        k = torch.cat([k[:, :, :prefix], turned], dim=2)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # grouped queries share keys
    weights = (q @ k.transpose(-2, -1) * attn.scale).softmax(dim=-1)[:, :, 0, prefix:]  # (B, heads, N)
    return rearrange(weights, "b heads (rows columns) -> b heads rows columns", rows=rows)


def head_concentration(attention: torch.Tensor, mass: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """How concentrated attention is: entropy as a share of the uniform one, and the share of patches that hold ``mass``
    of it (the mask of Caron et al. 2021, figure 4).

    Args:
        attention: (B, heads, rows, columns) ≥ 0.

    Returns:
        two of (B, heads), in [0, 1].
    """
    weights = _shares(attention).flatten(2)
    n = weights.shape[-1]
    entropy = torch.special.entr(weights).sum(dim=-1) / max(math.log(n), 1e-12)
    held = weights.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    patches = ((held < mass - 1e-6).sum(dim=-1) + 1).clamp_max(n) / n
    return entropy, patches


def attention_on(attention: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Share of the attention in a region.

    Args:
        attention: (B, heads, rows, columns) ≥ 0.
        region: (B, h, w), share of each cell of a grid over the image that is in the region; brought to the patches by
            means over their area.

    Returns:
        (B, 2) in [0, 1]: share of the attention, mean over heads, and share of the area.
    """
    region = F.interpolate(region[:, None].float(), size=attention.shape[-2:], mode="area")
    share = (_shares(attention) * region).sum(dim=(2, 3)).mean(dim=1)
    return torch.stack([share, region.mean(dim=(1, 2, 3))], dim=1)


def _shares(attention: torch.Tensor) -> torch.Tensor:
    weights = attention.float()
    return weights / weights.sum(dim=(2, 3), keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def linear_probe_features(
    backbone: nn.Module, images: torch.Tensor, n_blocks: int = 4, mean_patch: bool = False
) -> torch.Tensor:
    """Features of DINO's linear protocol (Caron et al. 2021, appendix F.2), each block through the final norm.

    Args:
        n_blocks: CLS of the last n blocks, concatenated (4 for small models, 1 for base).
        mean_patch: interleave the last block's CLS with its mean patch token, as the protocol does for base models with
            ``n_blocks=1``; with ``n_blocks=0`` the mean patch token alone.

    Returns:
        (B, n_blocks · D), with the mean patch token (B, (n_blocks + 1) · D).

    Raises:
        InputError: no transformer with CLS, fewer blocks than asked for, or nothing asked for.
    """
    check_transformer(backbone)
    if not 0 <= n_blocks <= len(backbone.blocks) or not (n_blocks or mean_patch):
        raise InputError(f"{n_blocks} blocks: give 1 to {len(backbone.blocks)}, the number that the model has")
    layers: Sequence = backbone.forward_intermediates(
        images,
        indices=max(n_blocks, 1),
        norm=True,
        output_fmt="NLC",
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    cls = torch.cat([prefix[:, 0] for _, prefix in layers], dim=-1)
    if not mean_patch:
        return cls
    mean = layers[-1][0].mean(dim=1)
    if n_blocks == 0:
        return mean
    last = layers[-1][1][:, 0]
    interleaved = torch.stack([last, mean], dim=-1).flatten(1)
    return torch.cat([cls[:, : -last.shape[1]], interleaved], dim=1)
