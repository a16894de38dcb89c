"""timm's vision transformer with DINO's position embedding at sizes other than the native one."""

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer


def dino_position_embedding(
    pos_embed: torch.Tensor, grid: tuple[int, int], native_grid: tuple[int, int], n_prefix: int
) -> torch.Tensor:
    """Resample a position embedding the way DINO does: bicubic by scale factor (n + 0.1) / N, no antialiasing.

    timm resamples to an exact size with antialiasing, which differs by about 1 % of the feature range on 96 px crops.

    Args:
        pos_embed: (1, n_prefix + N, D).
        grid: rows and columns of patches wanted.
        native_grid: rows and columns that ``pos_embed`` was trained with.

    Returns:
        (1, n_prefix + rows · columns, D); the input itself at the native grid.
    """
    if grid == native_grid:
        return pos_embed
    prefix, patches = pos_embed[:, :n_prefix], pos_embed[:, n_prefix:]
    dim = patches.shape[-1]
    # The 0.1 keeps floor(N · scale) from landing one patch short by rounding.
    scale = tuple((new + 0.1) / old for new, old in zip(grid, native_grid, strict=True))
    with torch.autocast(pos_embed.device.type, enabled=False):
        patches = patches.float().reshape(1, *native_grid, dim).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    assert tuple(patches.shape[-2:]) == grid
    return torch.cat([prefix, patches.permute(0, 2, 3, 1).reshape(1, -1, dim).to(prefix.dtype)], dim=1)


class DinoVisionTransformer(VisionTransformer):
    """A timm VisionTransformer (built with ``dynamic_img_size``) that resamples positions as DINO does.

    timm models become one by ``model.__class__ = DinoVisionTransformer``: no state is added, one method differs.
    """

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        # Models with registers were trained with size-based antialiased resampling (DINOv2), which is timm's own.
        if self.pos_embed is None or self.reg_token is not None or not self.dynamic_img_size:
            return super()._pos_embed(x)
        batch, rows, columns, dim = x.shape
        n_positions = 0 if self.no_embed_class else self.num_prefix_tokens
        positions = dino_position_embedding(
            self.pos_embed, (rows, columns), tuple(self.patch_embed.grid_size), n_positions
        )
        x = x.reshape(batch, rows * columns, dim)
        prefix = [] if self.cls_token is None else [self.cls_token.expand(batch, -1, -1)]
        if self.no_embed_class:
            x = torch.cat([*prefix, x + positions], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + positions
        return self.pos_drop(x)


def set_native_size(model: DinoVisionTransformer, size: tuple[int, int]) -> None:
    """Make ``size`` (rows, columns, in pixels) a transformer's native one; its features at that size stay the same."""
    native = tuple(model.patch_embed.grid_size)
    model.patch_embed.set_input_size(img_size=tuple(size))
    grid = tuple(model.patch_embed.grid_size)
    if model.pos_embed is None or grid == native:
        return
    n_positions = 0 if model.no_embed_class else model.num_prefix_tokens
    if model.reg_token is None:
        positions = dino_position_embedding(model.pos_embed.detach(), grid, native, n_positions)
    else:
        positions = resample_abs_pos_embed(model.pos_embed.detach(), list(grid), list(native), n_positions)
    model.pos_embed = torch.nn.Parameter(positions)
