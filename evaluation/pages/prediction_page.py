"""Predictions as one page to look through, offline: each scan with its map, its classes, and what limits them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from matplotlib import colormaps
from PIL import Image

_SIDE = 360  # pixels of the longer side of a scan on the page
_MAP_SIDE = 120
_QUALITY = 78


@dataclass(frozen=True)
class Card:
    """A scan on the page.

    Attributes:
        file: its name; place: what else is known of it, in words. label: its class, empty where not known.
        called: the most probable class; probabilities: class → per cent. inside: classes of the set.
        is_unlike: farther from the training scans than nearly all of validation. nearer: per cent of the validation
            scans that are nearer.
        similar: class and file of the most similar training scans. flags: what limits it.
        image, overlay: base64, of the scan (JPEG) and of the map over it (WebP; empty where there is none).
    """

    file: str
    place: str
    label: str
    called: str
    probabilities: dict[str, float]
    inside: tuple[str, ...]
    is_unlike: bool
    nearer: float
    similar: tuple[tuple[str, str], ...]
    flags: tuple[str, ...]
    image: str
    overlay: str
    ratio: float

    @property
    def kind(self) -> str:
        """What the page can be filtered by."""
        certain = "certain" if len(self.inside) == 1 else "uncertain"
        return " ".join([certain, *(["unlike"] if self.is_unlike else []), *(["flagged"] if self.flags else [])])


def scan_picture(scan: np.ndarray) -> str:
    """A scan (H, W) uint8 as base64 JPEG, its longer side ``_SIDE`` at most."""
    image = Image.fromarray(np.ascontiguousarray(scan))
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return _encoded(image, "JPEG")


def map_picture(values: np.ndarray) -> str:
    """A map (rows, columns) ≥ 0 as base64 WebP, clear where it is low; empty where it is flat: nothing is seen then."""
    low, high = float(values.min()), float(values.max())
    if not high - low > 1e-3 * high:
        return ""
    share = (values - low) / (high - low)
    pixels = np.round(255 * colormaps["inferno"](share)).astype(np.uint8)
    pixels[..., 3] = np.round(255 * share**0.7).astype(np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    image.thumbnail((_MAP_SIDE, _MAP_SIDE), Image.Resampling.LANCZOS)
    return _encoded(image, "WEBP")


def page(
    title: str,
    notice: str,
    facts: Sequence[str],
    notes: Sequence[str],
    cards: Sequence[Card],
    left_out: str,
    map_words: str,
) -> str:
    """The page as HTML; every name in it is escaped.

    Args:
        notice: what phantoms bear; empty for scans.
        facts: lines about the model and all scans; notes: what limits them.
        left_out: in words, which scans are not shown; map_words: what the map over a scan is.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    classes = list(dict.fromkeys(name for card in cards for name in card.probabilities))
    return environment.get_template("prediction_page.html").render(
        title=title,
        notice=notice,
        facts=facts,
        notes=notes,
        cards=cards,
        left_out=left_out,
        map_words=map_words,
        classes=classes,
    )


def _encoded(image: Image.Image, form: str) -> str:
    with io.BytesIO() as stream:
        image.save(stream, form, quality=_QUALITY)
        return base64.b64encode(stream.getvalue()).decode()
