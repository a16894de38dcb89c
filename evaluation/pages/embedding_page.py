"""One interactive page of linked embedding maps, in one file that opens offline."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from dino_oct.scores.text import plain
from evaluation.pages.embedding_figures import Mark, Panel

IMAGE_BYTES = 12_000_000  # of all scans of a page together; a third more as text
_SIDES = (240, 192, 144, 112, 80, 56)
_SAMPLED = 48


def thumbnails(scans: Sequence[np.ndarray]) -> list[str]:
    """Scans (H, W) uint8 as base64 JPEGs, as large as ``IMAGE_BYTES`` allows for all of them together."""
    some = [scans[i] for i in np.linspace(0, len(scans) - 1, min(_SAMPLED, len(scans))).astype(int)]
    side = next(
        (s for s in _SIDES if np.mean([len(_jpeg(scan, s)) for scan in some]) * len(scans) < IMAGE_BYTES), _SIDES[-1]
    )
    return [base64.b64encode(_jpeg(scan, side)).decode() for scan in scans]


def page_data(
    panels: Sequence[Panel],
    marked: Sequence[Mark],
    labels: np.ndarray,
    k: int,
    scans: dict[str, Sequence[str]],
    unit: str = "scan",
) -> dict[str, Any]:
    """What ``embedding_page.js`` draws.

    Args:
        labels: (N,) positions in ``marked``.
        k: neighbours in the panels' ``near``.
        scans: ``file``, ``patient``, ``split``, ``image`` (base64 JPEG), and if known ``place``, of the N scans.
        unit: what a point is; of a unit the scan in its middle is shown.
    """
    drawn = [{"title": panel.title, "near": panel.near, "frames": scaled_frames(panel)} for panel in panels]
    return plain({"classes": list(marked), "k": k, "unit": unit, "scans": {"label": labels, **scans}, "panels": drawn})


def page(title: str, notice: str | None, notes: Sequence[str], data: dict[str, Any]) -> str:
    """The page as HTML; every name in it is escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    template = environment.get_template("embedding_page.html")
    return template.render(title=title, notice=notice, notes=notes, data=data)


def scaled_frames(panel: Panel) -> list[dict[str, Any]]:
    """Frames with coordinates from 0 to 10,000, in one square for all frames of the panel."""
    every = np.concatenate([frame.points for frame in panel.frames])
    low, high = every.min(axis=0), every.max(axis=0)
    side = max(float((high - low).max()), 1e-6)
    corner = (low + high - side) / 2
    frames = []
    for frame in panel.frames:
        x, y = np.round(1e4 * (frame.points - corner) / side).astype(int).T
        frames.append({"caption": frame.caption, "x": x.tolist(), "y": y.tolist()})
    return frames


def _jpeg(scan: np.ndarray, side: int) -> bytes:
    image = Image.fromarray(np.asarray(scan))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    with io.BytesIO() as stream:
        image.save(stream, "JPEG", quality=72, optimize=True)
        return stream.getvalue()
