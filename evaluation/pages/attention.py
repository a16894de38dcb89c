"""Pages of CLS attention maps: overlays, maps alone, masks."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from evaluation.pages.tiles import Scale, Tile, as_picture, overlay
from evaluation.scores.attention import mass_mask

_MASK_COLOUR = np.array([255, 140, 0], dtype=np.float32)
_ACROSS = 8  # slices beside each other
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
    large = partial(_large, shape=picture.shape[:2])

    def row(title: str, tiles: Sequence[np.ndarray], captions: Sequence[str]) -> tuple[str, list[Tile]]:
        return title, [Tile(picture, "scan"), *map(Tile, tiles, captions)]

    relative = {which: _relative(of_model) for which, of_model in maps.items()}
    colours = _colours(relative.values())
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


def volume_rows(
    scans: Sequence[np.ndarray], captions: Sequence[str], maps: dict[str, Sequence[np.ndarray]]
) -> tuple[list[tuple[str, list[Tile]]], Scale]:
    """Rows of a page of a volume: its slices, below each its map over the scan and alone, for each network; colours as
    in ``attention_rows``.

    Args:
        scans: S slices (H, W) uint8 in their order; captions: of each.
        maps: network → S maps (rows, columns) ≥ 0.
    """
    shape = scans[0].shape
    pictures = [as_picture(scan, shape) for scan in scans]
    size = pictures[0].shape[:2]
    relative = {which: [_relative(values[None]) for values in of_model] for which, of_model in maps.items()}
    colours = _colours(values for of_model in relative.values() for values in of_model)
    rows = []
    for start in range(0, len(scans), _ACROSS):
        part = slice(start, start + _ACROSS)
        rows.append(("slices", list(map(Tile, pictures[part], captions[part]))))
        for which, of_model in relative.items():
            large = [_large(values, size)[0] for values in of_model[part]]
            over = [
                Tile(overlay(picture[..., 0], values), "")
                for picture, values in zip(pictures[part], large, strict=True)
            ]
            alone = [
                Tile(colours.to_rgba(values, bytes=True)[..., :3], f"up to {values.max():.1f} ×") for values in large
            ]
            rows += [(f"{which}\nover the scan", over), (f"{which}\nmap alone", alone)]
    return rows, Scale(colours, _SCALE_TITLE)


def _relative(maps: np.ndarray) -> np.ndarray:
    """Maps (M, rows, columns) as multiples of uniform attention."""
    return maps / np.maximum(maps.mean(axis=(1, 2), keepdims=True), 1e-12)


def _colours(relative: Iterable[np.ndarray]) -> ScalarMappable:
    return ScalarMappable(LogNorm(0.1, max(10.0, *(float(values.max()) for values in relative))), cmap="inferno")


def _large(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Maps or masks (M, rows, columns) in a picture's size, a square for each patch."""
    values = torch.from_numpy(maps.astype(np.float32))[None]
    return F.interpolate(values, size=shape, mode="nearest")[0].numpy()
