"""Figures of embedding maps: panels side by side under one legend, and an animation of one panel."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from dino_oct.files import replacing
from dino_oct.streams import generator

# Okabe & Ito's colours, which differ for every kind of colour vision; black last, it draws the eye.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_SHAPES = {"circle": "o", "square": "s", "up": "^", "diamond": "D", "down": "v", "plus": "P", "cross": "X"}
UNLABELLED_NAME = "unlabelled"
AXES_NOTE = "UMAP axes have no units; sizes of groups and distances between them mean nothing by themselves."
_BETWEEN, _HOLD_MS, _STEP_MS, _END_MS = 5, 500, 60, 2500
_CHUNKS = 12


@dataclass(frozen=True)
class Mark:
    """How a class is drawn: its name, colour, and shape (a key of the shapes above)."""

    name: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Frame:
    """A map (N, 2) with what stands below its panel's title."""

    caption: str
    points: np.ndarray


@dataclass(frozen=True)
class Panel:
    """Maps of the same scans by one model: one frame, or several over training.

    ``near``: (N, k) positions of each scan's nearest scans in the original space, or None.
    """

    title: str
    frames: tuple[Frame, ...]
    near: np.ndarray | None = None


def marks(class_names: Sequence[str], unlabelled: bool) -> list[Mark]:
    """A colour and a shape for each class, and grey for scans without one, if there are any."""
    shapes = list(_SHAPES)  # 7 shapes over 8 colours: 56 classes differ
    of_classes = [
        Mark(name, _COLOURS[i % len(_COLOURS)], shapes[i % len(shapes)]) for i, name in enumerate(class_names)
    ]
    return [*of_classes, Mark(UNLABELLED_NAME, "#888888", "circle")] if unlabelled else of_classes


def draw_panels(panels: Sequence[Panel], marked: Sequence[Mark], labels: np.ndarray, title: str, file: Path) -> None:
    """Static figure: the last frame of every panel, up to four in a row, one legend.

    Args:
        labels: (N,) positions in ``marked``.
    """
    columns = len(panels) if len(panels) <= 4 else 3
    rows = -(-len(panels) // columns)
    width = max(3.3 * columns, 6.6)
    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in a file name is a $
        figure = Figure(figsize=(width, 4 * rows + 0.9), layout="compressed")
        for i, panel in enumerate(panels):
            axis, frame = figure.add_subplot(rows, columns, i + 1), panel.frames[-1]
            axis.set_title("\n".join(textwrap.wrap(panel.title, 40)[-2:]), fontsize=10, fontweight="bold", pad=20)
            axis.text(0.5, 1.02, frame.caption, transform=axis.transAxes, ha="center", va="bottom", fontsize=8)
            _scatter(axis, frame.points, marked, labels, frame.points)
        _legend(figure, marked, labels, AXES_NOTE)
        figure.suptitle("\n".join(textwrap.wrap(title, int(width * 14))), fontsize=10)
        with replacing(file) as partial:
            figure.savefig(partial, dpi=150, bbox_inches="tight", pad_inches=0.1, format=file.suffix[1:])


def animate(panel: Panel, marked: Sequence[Mark], labels: np.ndarray, title: str, file: Path) -> None:
    """Looping GIF through a panel's frames; between two maps points move in straight lines, under the caption of the
    map they come from."""
    window = np.concatenate([frame.points for frame in panel.frames])
    images, durations = [], []
    for frame, following in zip(panel.frames, (*panel.frames[1:], None), strict=True):
        durations += [_HOLD_MS, *[_STEP_MS] * _BETWEEN] if following else [_END_MS]
        for share in np.arange(_BETWEEN + 1 if following else 1) / (_BETWEEN + 1):
            eased = share * share * (3 - 2 * share)
            points = frame.points + eased * (following.points - frame.points) if following else frame.points
            images.append(_picture(points, window, marked, labels, title, frame.caption))
    palette = images[-1].quantize(64)  # one for all, or colours would flicker
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with replacing(file) as partial:
        frames[0].save(partial, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _picture(
    points: np.ndarray, window: np.ndarray, marked: Sequence[Mark], labels: np.ndarray, title: str, caption: str
) -> Image.Image:
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(5.2, 5.9), layout="constrained")
        axis = figure.add_subplot()
        axis.set_title(caption, fontsize=10, fontweight="bold")
        _scatter(axis, points, marked, labels, window)
        _legend(figure, marked, labels, "UMAP axes have no units")
        figure.suptitle("\n".join(textwrap.wrap(title, 72)), fontsize=8)
        with io.BytesIO() as stream:
            figure.savefig(stream, dpi=100, format="png")
            return Image.open(stream, formats=["PNG"]).convert("RGB")


def _scatter(axis: Axes, points: np.ndarray, marked: Sequence[Mark], labels: np.ndarray, window: np.ndarray) -> None:
    """Points in mixed order, so that no class lies above another, in a square that holds ``window`` (M, 2)."""
    size = float(np.clip(9000 / len(points), 4, 36))
    order = generator("order of drawing").permutation(len(points))
    for part in np.array_split(order, _CHUNKS):
        for i, mark in enumerate(marked):
            x, y = points[part[labels[part] == i]].T
            axis.scatter(
                x, y, s=size, c=mark.colour, marker=_SHAPES[mark.shape], linewidths=0.25, edgecolors="white", alpha=0.85
            )
    low, high = window.min(axis=0), window.max(axis=0)
    half = 0.53 * max(float((high - low).max()), 1e-6)
    for setter, centre in zip((axis.set_xlim, axis.set_ylim), (low + high) / 2, strict=True):
        setter(centre - half, centre + half)
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_color("0.75")


def _legend(figure: Figure, marked: Sequence[Mark], labels: np.ndarray, note: str) -> None:
    """One legend below all panels, as many classes in a row as fit, under a note."""
    handles = [
        Line2D([], [], linestyle="", marker=_SHAPES[mark.shape], color=mark.colour, markersize=6.5) for mark in marked
    ]
    names = [f"{mark.name} ({int((labels == i).sum()):,})" for i, mark in enumerate(marked)]
    fit = int(figure.get_figwidth() * 14 / (max(map(len, names)) + 5))
    place = {"loc": "outside lower center", "ncols": max(min(len(names), fit), 1)}
    spacing = {"columnspacing": 1.2, "handletextpad": 0.1, "frameon": False}
    legend = figure.legend(handles, names, **place, **spacing, fontsize=8.5, title=note, title_fontsize=7.5)
    legend.get_title().set_color("0.35")
