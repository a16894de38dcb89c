"""The blocks of a vision transformer over views of several sizes at once.

Linear layers and norms see the tokens of all views as one matrix; attention stays within a view. DINOv2 trains so
(Oquab et al. 2024, section 5, "sequence packing").
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint

from dino_oct.models.plain_attention import PlainAttention, attend

Shapes = tuple[tuple[int, int], ...]  # (views, tokens of a view) of each group


def can_pack(backbone: nn.Module) -> bool:
    """Whether the backbone is a plain vision transformer: timm's block and attention, no rotary positions."""
    if not isinstance(backbone, VisionTransformer) or any(type(block) is not Block for block in backbone.blocks):
        return False
    attentions = [block.attn for block in backbone.blocks]
    return all(
        type(attn) in (Attention, PlainAttention) and not attn.attn_drop.p and attn.gate is None for attn in attentions
    )


def packed_features(backbone: nn.Module, groups: Sequence[torch.Tensor], block_forward: Callable) -> list[torch.Tensor]:
    """``forward_features`` of each group of images (B, C, H, W): tokens (B, N, D).

    Args:
        block_forward: ``packed_block``, or what torch.compile makes of it.
    """
    tokens = [backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(x)))) for x in groups]
    shapes = tuple(tuple(part.shape[:2]) for part in tokens)
    x = torch.cat([part.flatten(0, 1) for part in tokens])  # (T, D)
    for block in backbone.blocks:
        if backbone.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block_forward, block, x, shapes, use_reentrant=False)
        else:
            x = block_forward(block, x, shapes)
    parts = backbone.norm(x).split([views * n for views, n in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def packed_block(block: Block, x: torch.Tensor, shapes: Shapes) -> torch.Tensor:
    """A block over the tokens (T, D) of all groups."""
    attn = block.attn
    parts = []
    for qkv, (views, n) in zip(attn.qkv(block.norm1(x)).split([v * n for v, n in shapes]), shapes, strict=True):
        q, k, v = qkv.view(views, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attn.q_norm(q), attn.k_norm(k)
        y = F.scaled_dot_product_attention(q, k, v) if attn.fused_attn else attend(q, k, v, attn.scale)
        parts.append(y.transpose(1, 2).reshape(views * n, attn.attn_dim))
    y = block.ls1(attn.proj_drop(attn.proj(attn.norm(torch.cat(parts)))))
    x = x + _drop_views(block.drop_path1, y, shapes)
    return x + _drop_views(block.drop_path2, block.ls2(block.mlp(block.norm2(x))), shapes)


def _drop_views(layer: nn.Module, y: torch.Tensor, shapes: Shapes) -> torch.Tensor:
    """Stochastic depth of whole views."""
    if not isinstance(layer, (DropPath, StochasticDepth)) or not layer.training:
        return y
    parts = [
        layer(part.view(views, n, -1)).flatten(0, 1)
        for part, (views, n) in zip(y.split([v * n for v, n in shapes]), shapes, strict=True)
    ]
    return torch.cat(parts)


class StochasticDepth(nn.Module):
    """timm's ``DropPath`` with its rate in a tensor, so that one compiled graph serves blocks of all rates."""

    def __init__(self, rate: float):
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        drawn = torch.rand((len(x),) + (1,) * (x.ndim - 1), device=x.device) < self.keep
        return x * (drawn / self.keep).to(x.dtype)


def open_rates(module: nn.Module) -> None:
    """Put ``StochasticDepth`` in the place of every ``DropPath``."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                setattr(parent, name, StochasticDepth(child.drop_prob).train(child.training))
