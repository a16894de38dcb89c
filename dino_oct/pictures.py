"""Pictures of a run: the views of the first scans, and where a network looks, at the start and now."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from dino_oct.features import resize

_TILE = 224  # pixels of a tile's short side
_FONT = 16  # pixels
_LINE = 22  # pixels of a line of text
_GAP = 4  # pixels between tiles


@dataclass(frozen=True)
class Maps:
    """A row of a panel.

    Attributes:
        name: beside the row, as "start".
        maps: (M, rows, columns) ≥ 0.
    """

    name: str
    maps: np.ndarray


def draw_panel(scan: np.ndarray, rows: Sequence[Maps], columns: Sequence[str], title: str) -> np.ndarray:
    """Rows of maps over the same scan, with the title above, each column's name above it, each row's name beside it.

    Args:
        scan: (H, W) uint8; large ones are drawn smaller, small ones with their pixels repeated.
        columns: name of each of the M maps.

    Returns:
        (height, width, 3) uint8.
    """
    image = enlarge(scan, _TILE)
    if min(scan.shape) > _TILE:
        scale = _TILE / min(scan.shape)
        image = resize(scan, tuple(round(side * scale) for side in scan.shape))[0].numpy()
    tiles = np.concatenate([draw_attention(image, row.maps, _GAP) for row in rows])
    font = ImageFont.load_default(_FONT)
    margin = max(round(font.getlength(row.name)) for row in rows) + 2 * _GAP
    width = max(tiles.shape[1] + margin, round(font.getlength(title)) + 2 * _GAP)
    height = 2 * _LINE + len(rows) * (image.shape[0] + _GAP)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _LINE // 2), title, fill="black", font=font, anchor="lm")
    for i, name in enumerate(["scan", *columns]):
        left = margin + i * (image.shape[1] + _GAP)
        draw.text((left, _LINE + _LINE // 2), name, fill="black", font=font, anchor="lm")
    for i, row in enumerate(rows):
        top, part = 2 * _LINE + i * (image.shape[0] + _GAP), slice(i * image.shape[0], (i + 1) * image.shape[0])
        draw.text((_GAP, top + image.shape[0] // 2), row.name, fill="black", font=font, anchor="lm")
        canvas.paste(Image.fromarray(tiles[part]), (margin, top))
    return np.array(canvas)


def fit_short_side(scan: np.ndarray, short_side: int, patch: int) -> torch.Tensor:
    """A scan with its short side near ``short_side`` and both sides multiples of the patch: (1, H, W) uint8."""
    scale = short_side / min(scan.shape)
    size = tuple(max(round(side * scale / patch), 1) * patch for side in scan.shape)
    return resize(scan, size)


def enlarge(image: np.ndarray, side: int = 192) -> np.ndarray:
    """A small image (H, W) with its pixels repeated until it is about ``side`` high, so that a person can see it."""
    times = max(round(side / min(image.shape)), 1)
    return image.repeat(times, axis=0).repeat(times, axis=1)


def draw_attention(image: np.ndarray, attention: np.ndarray, gap: int = 4) -> np.ndarray:
    """The scan and, beside it, each head's attention laid over it.

    Args:
        image: (H, W) uint8.
        attention: (heads, rows, columns) ≥ 0; each head is scaled by its own maximum, pixels by nearest neighbour.

    Returns:
        (H, (1 + heads) · (W + gap) − gap, 3) uint8.
    """
    grey = np.repeat(image[..., None], 3, axis=-1).astype(np.float32)
    large = F.interpolate(torch.from_numpy(attention)[None], size=image.shape, mode="nearest")[0].numpy()
    tiles = [grey]
    for head in large:
        strength = head / max(head.max(), 1e-12)
        colour = 255 * matplotlib.colormaps["inferno"](strength)[..., :3]
        opacity = (0.1 + 0.75 * strength)[..., None]  # weak attention lets the scan through, strong attention covers it
        tiles.append((1 - opacity) * grey + opacity * colour)
    white = np.full((image.shape[0], gap, 3), 255, np.float32)
    row = [part for tile in tiles for part in (tile, white)][:-1]
    return np.concatenate(row, axis=1).round().clip(0, 255).astype(np.uint8)


def draw_views(groups: Sequence[torch.Tensor], samples: int = 4, gap: int = 3) -> np.ndarray:
    """The augmented views of the first samples, one row each, uint8 (H, W)."""
    rows = []
    for b in range(min(samples, groups[0].shape[1])):
        views = [view[b, 0].float().cpu().numpy() for group in groups for view in group]
        height = max(len(view) for view in views)
        tiles = [np.pad(view, ((0, height - len(view)), (0, gap)), constant_values=1.0) for view in views]
        rows.append(np.pad(np.concatenate(tiles, axis=1), ((0, gap), (0, 0)), constant_values=1.0))
    return (255 * np.concatenate(rows)).round().clip(0, 255).astype(np.uint8)
