"""DINO's projection head (Caron et al. 2021, appendix C)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose rows are ``g · v / |v|``; parameter names are the official file's.

    Args:
        fixed_gain: keep g at 1 (DINO's ``norm_last_layer``), which makes the logits cosines.
    """

    def __init__(self, in_features: int, out_features: int, fixed_gain: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=not fixed_gain)
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # the norm of a row in bf16 would be off by up to 0.4 %
            weight = self.weight_g * F.normalize(self.weight_v.float(), dim=1, eps=0)
        return F.linear(x, weight)


class DinoHead(nn.Module):
    """Linear, GELU, Linear, GELU, Linear to the bottleneck, L2-normalise, weight-normalised Linear to K.

    Args:
        in_dim: width of the backbone's CLS feature.
        out_dim: K, the number of prototypes.
        init: ``dino`` draws linear weights with std .02; ``fan_in`` with 1.4 / √fan_in, which spreads the first logits
            enough for narrow networks trained from scratch. Biases start at 0.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        norm_last_layer: bool = True,
        init: Literal["dino", "fan_in"] = "dino",
    ):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02 if init == "dino" else 1.4 / math.sqrt(layer.in_features))
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, fixed_gain=norm_last_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_dim) → (N, K) logits."""
        x = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):
            x = F.normalize(x.float(), dim=-1)
        return self.last_layer(x)
