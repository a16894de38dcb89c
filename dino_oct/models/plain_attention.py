"""Attention by matrix products, for devices where torch's fused kernel is slower."""

import torch
from timm.models.vision_transformer import Attention
from torch import nn


def use_plain_attention(model: nn.Module) -> None:
    """Compute attention by matrix products.

    In bf16 on a CPU with AMX a whole step of a ViT-S/14 is 1.44 times as fast by it as by torch's fused kernel
    (tests/benchmarks/step_speed.py). Results differ by rounding.
    """
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = PlainAttention
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


class PlainAttention(Attention):
    """timm's attention by products whose probabilities stay in the precision of the values: under autocast timm's own
    would copy them to float32 and back. Only a method differs."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """(B, N, D) → (B, N, D). With a mask, a gate or dropout as timm does."""
        if self.fused_attn or attn_mask is not None or is_causal or self.gate is not None or self.attn_drop.p:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        shape = (*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        y = attend(q, k, v, self.scale)
        return self.proj_drop(self.proj(self.norm(y.transpose(1, 2).flatten(2))))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(q kᵀ · scale) v of (B, heads, N, d), all in the precision of ``v``."""
    with torch.autocast(q.device.type, enabled=False):
        return (q.to(v.dtype) * scale @ k.to(v.dtype).transpose(-2, -1)).softmax(dim=-1) @ v
