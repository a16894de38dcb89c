"""What CLS attention maps say in numbers and pictures: patches that hold most of the mass, spread, pages of maps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from dino_oct.files import replacing

matplotlib.use("Agg")

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from dino_oct.features import squash
from dino_oct.monitor import draw_attention

MEASURES = ("entropy", "mass_patches", "prefix_share")

_GAP, _TILE, _WIDEST = 4, 200, 7000  # pixels: between maps, short side of a map, longest row
_MASK_COLOUR = np.array([255, 140, 0], dtype=np.float32)
_DPI = 100
_LABEL, _HEADER, _TITLE, _FOOT = 130, 20, 44, 70  # pixels of margins and captions


def mass_mask(attention: np.ndarray, mass: float) -> np.ndarray:
    """The smallest set of patches that holds a share of each map's mass (Caron et al. 2021, figure 3).

    Args:
        attention: (M, rows, columns) ≥ 0.
        mass: share of the attention to patches, in (0, 1].

    Returns:
        (M, rows, columns) bool. Among patches of equal attention, those first in reading order are taken.
    """
    flat = attention.reshape(len(attention), -1).astype(np.float64)
    order = np.argsort(-flat, axis=1, kind="stable")
    held = np.cumsum(np.take_along_axis(flat, order, axis=1), axis=1)
    mask = np.zeros(flat.shape, dtype=bool)
    for row, ranks, sums in zip(mask, order, held, strict=True):
        row[ranks[: np.searchsorted(sums, mass * sums[-1]) + 1]] = True
    return mask.reshape(attention.shape)


def spread(attention: np.ndarray, mass: float) -> np.ndarray:
    """How widely each map is spread.

    Args:
        attention: (M, rows, columns) as from ``cls_attention``: sums are 1 less the attention to CLS and registers.
        mass: of the mask, in (0, 1].

    Returns:
        (M, 3) float64, columns ``MEASURES``, all in [0, 1]: entropy of the map over the patches relative to ln N
        (1: uniform, 0: one patch); share of the patches in ``mass_mask``; share of the attention on CLS and registers.
        The entropy is NaN for a map of zeros.
    """
    flat = attention.reshape(len(attention), -1).astype(np.float64)
    total = flat.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = flat / total[:, None]
        entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=1) / np.log(flat.shape[1])
    entropy = np.where(total > 0, np.clip(entropy, 0, 1), np.nan)
    patches = mass_mask(attention, mass).reshape(flat.shape).mean(axis=1)
    return np.stack([entropy, patches, np.clip(1 - total, 0, 1)], axis=1)


def draw_page(
    scan: np.ndarray, maps: dict[str, np.ndarray], names: Sequence[str], mass: float, title: str, file: Path
) -> None:
    """One page for one scan: maps over the scan, maps alone, and masks; within each, one row for each network.

    Overlays are scaled by each map's own maximum, so that every one can be read. The maps alone share one colour
    scale over the page, so that heads and networks can be compared: multiples of uniform attention from 0.1 to 10, or
    to the page's peak where that is higher.

    Args:
        scan: (H, W) uint8.
        maps: network → (M, rows, columns) ≥ 0.
        names: of the M maps.
        mass: of the masks.
    """
    image = squash(scan, _tile_size(scan.shape, 1 + len(names)))[0].numpy()
    relative = {
        which: found / np.maximum(found.mean(axis=(1, 2), keepdims=True), 1e-12) for which, found in maps.items()
    }
    peak = max(float(found.max()) for found in relative.values())
    colours = ScalarMappable(LogNorm(0.1, max(peak, 10.0)), cmap="inferno")
    rows = []
    for which, found in maps.items():
        rows.append((f"{which}\nover the scan", draw_attention(image, found, _GAP), names))
    for which, found in relative.items():
        tiles = [255 * colours.to_rgba(one)[..., :3] for one in _enlarge(found, image.shape)]
        rows.append((f"{which}\nmap alone", _row(image, tiles), [f"up to {one.max():.1f} ×" for one in found]))
    for which, found in maps.items():
        masks = mass_mask(found, mass)
        tiles = [_over(image, mask) for mask in _enlarge(masks, image.shape) > 0.5]
        shares = [f"{100 * mask.mean():.1f} % of patches" for mask in masks]
        rows.append((f"{which}\n{100 * mass:g} % of mass", _row(image, tiles), shares))
    _save(rows, image.shape, colours, title, file)


def _tile_size(shape: tuple[int, ...], columns: int) -> tuple[int, int]:
    scale = min(_TILE / min(shape), (_WIDEST / columns - _GAP) / shape[1])
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _enlarge(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return F.interpolate(torch.from_numpy(maps.astype(np.float32))[None], size=size, mode="nearest")[0].numpy()


def _over(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The scan with a mask coloured, the rest dimmed."""
    grey = np.repeat(image[..., None], 3, axis=-1).astype(np.float32)
    return np.where(mask[..., None], 0.55 * grey + 0.45 * _MASK_COLOUR, 0.7 * grey)


def _row(image: np.ndarray, tiles: Sequence[np.ndarray]) -> np.ndarray:
    """The scan and tiles (H, W, 3) side by side, as ``draw_attention`` lays them out."""
    white = np.full((image.shape[0], _GAP, 3), 255.0)
    parts = [np.repeat(image[..., None], 3, axis=-1).astype(np.float32)]
    for tile in tiles:
        parts += [white, tile]
    return np.concatenate(parts, axis=1).round().clip(0, 255).astype(np.uint8)


def _save(
    rows: Sequence[tuple[str, np.ndarray, Sequence[str]]],
    tile: tuple[int, ...],
    colours: ScalarMappable,
    title: str,
    file: Path,
) -> None:
    width = _LABEL + max(rows[0][1].shape[1], 900 - _LABEL) + _GAP
    height = _TITLE + len(rows) * (tile[0] + _HEADER) + _FOOT
    figure = plt.figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    figure.text(8 / width, 1 - 8 / height, title, va="top", fontsize=9, parse_math=False)
    top = _TITLE
    for label, strip, captions in rows:
        top += _HEADER
        box = (_LABEL / width, 1 - (top + tile[0]) / height, strip.shape[1] / width, tile[0] / height)
        axis = figure.add_axes(box)
        axis.imshow(strip, interpolation="nearest", aspect="auto")
        axis.set_axis_off()
        figure.text(8 / width, box[1] + box[3] / 2, label, va="center", fontsize=8)
        for i, caption in enumerate(["scan", *captions]):
            centre = _LABEL + i * (tile[1] + _GAP) + tile[1] / 2
            figure.text(centre / width, 1 - (top - 4) / height, caption, ha="center", va="bottom", fontsize=8)
        top += tile[0]
    bar = figure.add_axes((_LABEL / width, 46 / height, min(600, width - 2 * _LABEL) / width, 12 / height))
    figure.colorbar(colours, cax=bar, orientation="horizontal")
    bar.set_xlabel(
        "maps alone: attention / uniform, logarithmic, black below 0.1; overlays: each by its own maximum",
        fontsize=8,
        loc="left",
    )
    bar.tick_params(labelsize=7)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=_DPI, format="png")
    plt.close(figure)
