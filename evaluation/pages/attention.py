"""Pages of CLS attention maps: overlays, maps alone, masks."""

import matplotlib

matplotlib.use("Agg")

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from dino_oct.features import resize
from dino_oct.files import replacing
from dino_oct.monitor import draw_attention
from evaluation.scores.attention import mass_mask

_GAP, _TILE, _WIDEST = 4, 200, 7000  # pixels: between maps, short side of a map, longest row
_MASK_COLOUR = np.array([255, 140, 0], dtype=np.float32)
_DPI = 100
_LABEL, _HEADER, _TITLE, _FOOT = 130, 20, 44, 70  # pixels of margins and captions


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
    image = resize(scan, _tile_size(scan.shape, 1 + len(names)))[0].numpy()
    relative = {
        which: of_model / np.maximum(of_model.mean(axis=(1, 2), keepdims=True), 1e-12)
        for which, of_model in maps.items()
    }
    peak = max(float(of_model.max()) for of_model in relative.values())
    colours = ScalarMappable(LogNorm(0.1, max(peak, 10.0)), cmap="inferno")
    rows = []
    for which, of_model in maps.items():
        rows.append((f"{which}\nover the scan", draw_attention(image, of_model, _GAP), names))
    for which, of_model in relative.items():
        tiles = [255 * colours.to_rgba(head)[..., :3] for head in _enlarge(of_model, image.shape)]
        rows.append((f"{which}\nmap alone", _row(image, tiles), [f"up to {head.max():.1f} ×" for head in of_model]))
    for which, of_model in maps.items():
        masks = mass_mask(of_model, mass)
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
