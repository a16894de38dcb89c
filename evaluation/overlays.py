"""Figures of maps over scans."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

_LESION, _RETINA = "#00e5ff", "white"


@dataclass(frozen=True)
class Example:
    """A scan (H, W) uint8, its masks (h, w) bool, and maps (rows, columns) ≥ 0 by title."""

    title: str
    scan: np.ndarray
    lesion: np.ndarray
    retina: np.ndarray
    maps: dict[str, np.ndarray]


def draw_examples(examples: list[Example], title: str, file: Path) -> None:
    """One row a scan: the scan with its masks' outlines, then each map over it, as multiples of a uniform map.

    Each map has its own colour scale, given beside it; pixels show the value of their patch.
    """
    columns = 1 + max(len(example.maps) for example in examples)
    figure, axes = plt.subplots(
        len(examples), columns, figsize=(3.6 * columns, 3.2 * len(examples)), squeeze=False, layout="constrained"
    )
    for row, example in zip(axes, examples, strict=True):
        row[0].set_title(example.title, fontsize=9)
        _show_scan(row[0], example, width=1.2)
        for axis, (name, values) in zip(row[1:], example.maps.items(), strict=False):
            _show_scan(axis, example, width=0.7)
            colours = ScalarMappable(Normalize(0, values.max() / values.mean()), cmap="inferno")
            strength = values / values.max()
            overlay = colours.to_rgba(values / values.mean())
            overlay[..., 3] = 0.1 + 0.65 * strength  # weak attention lets the scan through
            axis.imshow(overlay, extent=(0, 1, 1, 0), interpolation="nearest")
            axis.set_title(name, fontsize=9)
            figure.colorbar(colours, ax=axis, shrink=0.8, label="attention / uniform")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    lines = [Line2D([], [], color=_LESION), Line2D([], [], color=_RETINA, markeredgecolor="black")]
    figure.legend(lines, ["lesion", "retina"], loc="outside lower center", ncols=2, facecolor="0.4", labelcolor="white")
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _show_scan(axis: plt.Axes, example: Example, width: float) -> None:
    """The scan in the unit square, whatever its size, with the outlines of its masks."""
    axis.imshow(example.scan, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
    height, columns = example.lesion.shape
    x, y = (np.arange(columns) + 0.5) / columns, (np.arange(height) + 0.5) / height
    axis.contour(x, y, example.retina, levels=[0.5], colors=_RETINA, linewidths=0.6 * width)
    axis.contour(x, y, example.lesion, levels=[0.5], colors=_LESION, linewidths=width)
    axis.set_aspect(example.scan.shape[0] / example.scan.shape[1])
