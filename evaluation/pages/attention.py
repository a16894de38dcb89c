"""Pages of CLS attention maps: overlays, maps alone, masks."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from evaluation.pages.tiles import Scale, Tile, as_picture, overlay
from evaluation.scores.attention import mass_mask

_MASK_COLOUR = np.array([255, 140, 0], dtype=np.float32)
_SCALE_TITLE = "maps alone: attention / uniform, logarithmic, black below 0.1; overlays: each by its own maximum"


def attention_rows(
    scan: np.ndarray, maps: dict[str, np.ndarray], names: Sequence[str], mass: float
) -> tuple[list[tuple[str, list[Tile]]], Scale]:
    """Rows of a page: maps over the scan, maps alone, and masks; within each, one row for each network.

    Overlays are scaled by each map's own maximum, so that every one can be read. The maps alone share one colour
    scale over the page, so that heads and networks can be compared: multiples of uniform attention from 0.1 to 10, or
    to the page's peak where that is higher.

    Args:
        scan: (H, W) uint8.
        maps: network → (M, rows, columns) ≥ 0.
        names: of the M maps.
        mass: of the masks.
    """
    picture = as_picture(scan)

    def large(values: np.ndarray) -> np.ndarray:
        """Maps or masks (M, rows, columns) in the picture's size, a square for each patch."""
        values = torch.from_numpy(values.astype(np.float32))[None]
        return F.interpolate(values, size=picture.shape[:2], mode="nearest")[0].numpy()

    def row(title: str, tiles: Sequence[np.ndarray], captions: Sequence[str]) -> tuple[str, list[Tile]]:
        return title, [Tile(picture, "scan"), *map(Tile, tiles, captions)]

    relative = {
        which: of_model / np.maximum(of_model.mean(axis=(1, 2), keepdims=True), 1e-12)
        for which, of_model in maps.items()
    }
    peak = max(float(of_model.max()) for of_model in relative.values())
    colours = ScalarMappable(LogNorm(0.1, max(peak, 10.0)), cmap="inferno")
    rows = [
        row(f"{which}\nover the scan", [overlay(scan, values) for values in large(of_model)], names)
        for which, of_model in maps.items()
    ]
    for which, of_model in relative.items():
        tiles = [colours.to_rgba(values, bytes=True)[..., :3] for values in large(of_model)]
        rows.append(row(f"{which}\nmap alone", tiles, [f"up to {values.max():.1f} ×" for values in of_model]))
    inside, outside = 0.55 * picture + 0.45 * _MASK_COLOUR, 0.7 * picture
    for which, of_model in maps.items():
        masks = mass_mask(of_model, mass)
        tiles = [np.where(mask[..., None], inside, outside).astype(np.uint8) for mask in large(masks) > 0.5]
        shares = [f"{100 * mask.mean():.1f} % of patches" for mask in masks]
        rows.append(row(f"{which}\n{100 * mass:g} % of mass", tiles, shares))
    return rows, Scale(colours, _SCALE_TITLE)
