"""Pages of pictures: scans, maps over scans, and the files that an explanation leaves."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dino_oct.errors import InputError
from dino_oct.features import resize
from dino_oct.files import naming, read_json, remove, replacing
from dino_oct.scores.text import Evaluation, write_json
from evaluation.inputs.selection import Chosen, page_name
from evaluation.maps.methods import enlarge

_TILE, _WIDEST, _GAP = 220, 420, 8  # pixels: short side of a picture, its longer side at most, between pictures
_LABEL, _CAPTION, _TITLE, _SCALE, _FOOT = 150, 44, 56, 60, 40  # pixels of margins, captions and the bar
_DPI = 100


@dataclass(frozen=True)
class Tile:
    """A picture (H, W, 3) uint8 and its caption, of two lines at most."""

    picture: np.ndarray
    caption: str


Rows = list[tuple[str, list[Tile]]]


@dataclass(frozen=True)
class Scale:
    """Colours that maps of a page share, and what the bar that explains them is titled."""

    colours: ScalarMappable
    title: str


@dataclass(frozen=True)
class Page:
    """One scan: rows of pictures, each row with a label; arrays for the npz file, facts for the JSON file."""

    chosen: Chosen
    rows: Rows
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)
    scale: Scale | None = None


def picture_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns on a page of a scan of this shape."""
    scale = min(_TILE / min(shape), _WIDEST / max(shape))
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def as_picture(scan: np.ndarray, shape: tuple[int, int] | None = None) -> np.ndarray:
    """A grey scan (H, W) as a picture of a page, of the size there of a scan of ``shape``; unset: its own."""
    return np.repeat(resize(scan, picture_size(shape or scan.shape))[0].numpy()[..., None], 3, axis=-1)


def overlay(scan: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The positive part of a map (rows, columns) over a scan (H, W), scaled by its own maximum."""
    grey = as_picture(scan).astype(np.float32)
    strength = enlarge(values[None], grey.shape[:2])[0].clip(0)
    strength = strength / max(float(strength.max()), 1e-12)
    return _blend(grey, matplotlib.colormaps["inferno"](strength), 0.05 + 0.7 * strength)


def signed_overlay(scan: np.ndarray, values: np.ndarray, limit: float) -> np.ndarray:
    """A signed map (rows, columns) over a scan (H, W): red for +limit, blue for −limit, the scan alone at 0."""
    grey = as_picture(scan).astype(np.float32)
    share = (enlarge(values[None], grey.shape[:2])[0] / max(limit, 1e-12)).clip(-1, 1)
    return _blend(grey, matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * share), 0.85 * np.abs(share) ** 0.7)


def with_outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width: int = 3) -> np.ndarray:
    """A picture (H, W, 3) uint8 with the inner edge of a mask (h, w) bool in a colour, about half ``width`` pixels."""
    inside = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=picture.shape[:2], mode="nearest")
    edge = inside[0, 0].bool() & (-F.max_pool2d(-inside, width, 1, width // 2) < 0.5)[0, 0]
    drawn = picture.copy()
    drawn[edge.numpy()] = colour
    return drawn


def _blend(grey: np.ndarray, colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    opacity = opacity[..., None]
    return ((1 - opacity) * grey + opacity * 255 * colours[..., :3]).round().clip(0, 255).astype(np.uint8)


def draw_page(rows: Rows, title: str, foot: str, file: Path, scale: Scale | None = None) -> None:
    """Write rows of pictures as one PNG; all pictures are of one size."""
    height, width = rows[0][1][0].picture.shape[:2]
    columns = max(len(tiles) for _, tiles in rows)
    page_width = max(_LABEL + columns * (width + _GAP), 760)
    page_height = _TITLE + len(rows) * (height + _CAPTION) + (_SCALE if scale else 0) + _FOOT
    figure = Figure(figsize=(page_width / _DPI, page_height / _DPI), dpi=_DPI)

    def write(left: float, top: float, text: str, **style: Any) -> None:
        style = {"fontsize": 8, "parse_math": False, **style}
        figure.text(left / page_width, 1 - top / page_height, text, **style)

    def add_axes(left: float, top: float, width: float, height: float) -> Axes:
        box = (left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height)
        return figure.add_axes(box)

    write(8, 8, title, va="top", fontsize=9)
    write(8, page_height - 8, foot, va="bottom")
    top = _TITLE
    for label, tiles in rows:
        top += _CAPTION
        write(8, top + height / 2, label, va="center")
        for j, tile in enumerate(tiles):
            left = _LABEL + j * (width + _GAP)
            axis = add_axes(left, top, width, height)
            axis.imshow(tile.picture, interpolation="nearest", aspect="auto")
            axis.set_axis_off()
            write(left + width / 2, top - 4, tile.caption, ha="center", va="bottom")
        top += height
    if scale:
        bar = add_axes(_LABEL, top + 8, min(600, page_width - 2 * _LABEL), 12)
        figure.colorbar(scale.colours, cax=bar, orientation="horizontal")
        bar.set_xlabel(scale.title, fontsize=8, loc="left")
        bar.tick_params(labelsize=7)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=_DPI, format="png")


def _earlier_pages(folder: Path, name: str) -> list[Path]:
    """Pages that the result in a folder names; none where there is no result."""
    try:
        scans = read_json(folder / f"{name}.json")["scans"]
        return [folder / Path(scan["page"]).name for scan in scans]
    except (InputError, KeyError, TypeError):
        return []


def write_pages(result: Evaluation, pages: Iterable[Page], subtitle: str, foot: str, folder: Path) -> list[Path]:
    """Write one PNG a scan, ``NAME.npz``, ``NAME.json`` and TensorBoard images into a folder, NAME the evaluation's.

    The arrays of page i are ``scan{i}_…`` in the npz file, and its facts are entry i of the JSON file's ``scans``.

    Returns:
        What was written.
    """
    name, arrays, scans = result.evaluation, {}, []
    # An earlier evaluation's pages and TensorBoard images would pass for this one's.
    for old in [*_earlier_pages(folder, name), *(folder / "tensorboard").glob("events.out.tfevents.*")]:
        remove(old)
    with naming(folder / "tensorboard"), SummaryWriter(str(folder / "tensorboard")) as writer:
        for i, page in enumerate(tqdm(pages, desc="pages", unit="scan", disable=None, leave=False)):
            scan, file = page.chosen, folder / page_name(i, page.chosen)
            label = f" (true class {scan.label})" if scan.label else ""
            place = f" · {scan.place}" if scan.place else ""
            draw_page(page.rows, f"{result.notice}{scan.file}{label}{place}\n{subtitle}", foot, file, page.scale)
            with Image.open(file, formats=["PNG"]) as image:
                writer.add_image(f"{name}/{file.stem}", np.asarray(image.convert("RGB")), 0, dataformats="HWC")
            arrays |= {f"scan{i}_{key}": value for key, value in page.arrays.items()}
            about = {"file": scan.file, "class": scan.label, "patient": scan.patient, "page": file.name}
            about |= {"place": scan.place} if scan.place else {}
            scans.append({"key": f"scan{i}", **about, **page.facts})
    with replacing(folder / f"{name}.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)
    write_json({**result.as_json(), "scans": scans}, folder / f"{name}.json")
    drawn = [folder / scan["page"] for scan in scans]
    return [*drawn, folder / f"{name}.npz", folder / f"{name}.json", folder / "tensorboard"]
