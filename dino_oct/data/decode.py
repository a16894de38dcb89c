"""One image file to one grey uint8 scan, or the reason why not."""

import contextlib
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

MIN_SIDE = 32
MAX_PIXELS = 100_000_000
# What Pillow may try. Its other readers run programs (EPS: Ghostscript) or read what is no scan.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
INTEGER_LIMITS = (255, 1023, 4095, 16383, 65535)  # 8, 10, 12, 14 and 16 bits
FLOAT_LIMITS = (1, *INTEGER_LIMITS)
RARE = 1e-3  # share of all pixels that may lie above a range: bright specks, dead pixels, overshoot of a resize
CLIPPED = 0.01  # share of a scan's pixels above the range from which it is named
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF's tag and value; Pillow heeds it for 8 bits only

Kind = Literal["integers", "floats"]
Remark = Literal["integers", "floats", "clipped", "turned", "first of several", "upper 8 bits"]

# Pillow warns on stderr once per file. Decoding has a limit of its own; damaged EXIF data turns nothing.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Corrupt EXIF data")

REMARKS: dict[Remark, str] = {
    "first of several": "animated files or several pictures in one: only the first is read",
    "turned": "turned as their EXIF orientation says",
    "upper 8 bits": "16 bits a channel in colour or with transparency: only the upper 8 are read; export as grey",
    "clipped": f"more than {CLIPPED:.0%} of the pixels above the grey range, shown white (see dataset.grey_range)",
}


class BadScan(Exception):  # noqa: N818  (a verdict on a file, not a fault of the program)
    """A file that cannot be used as a scan. The message is the reason, without the file's name."""


class RangeNeeded(Exception):  # noqa: N818
    """A deep image (16-bit, 32-bit or float grey) was to be read without a grey range."""


@dataclass(frozen=True)
class GreyRange:
    """The value that becomes white, of deep integer and of float images; 0 becomes black."""

    integers: float
    floats: float


class Decoded(NamedTuple):
    """A scan (H, W) uint8, height and width of the upright image in its file, and what is worth saying about it."""

    scan: np.ndarray
    original_size: tuple[int, int]
    remarks: frozenset[Remark]


class Levels(NamedTuple):
    """How bright deep images are: their kind, number of pixels, and how many lie above each limit of that kind."""

    kind: Kind
    pixels: int
    above: np.ndarray


def decode(
    path: str | Path,
    max_side: int = 2048,
    max_pixels: int = MAX_PIXELS,
    grey_range: GreyRange | None = None,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> Decoded:
    """Read one scan as grey uint8, whatever its file format, which is told by content and not by suffix.

    - Of ``FORMATS`` only, and of regular files only: a pipe or a device of that name is not opened.
    - Grey JPEGs are passed on bit for bit as Pillow decodes them; colour, palette, CMYK and 1-bit images are
      converted by Pillow's ``convert("L")`` (ITU-R 601 luma).
    - Transparent pixels show black, the background of a scan.
    - Deep grey (16-bit, 32-bit, float) is scaled from 0 … ``grey_range`` to 0 … 255, values above become 255.
    - An EXIF orientation is applied, so that the scan stands as viewers show it.
    - Of animated files and several pictures in one JPEG the first is read; TIFFs of several pages are refused.

    Args:
        path: image file.
        max_side: a scan with a longer side is scaled down to it (Lanczos, antialiased), in pixels.
        max_pixels: larger images are refused from their header, before any memory is taken.
        grey_range: of deep images; see ``choose_range``.
        stretch: factors of height and width, applied before ``max_side``.

    Raises:
        BadScan: empty, truncated or damaged file, not an image, too small, too large, several pages, a single grey
            value, values that are not numbers or out of range.
        RangeNeeded: a deep image and no ``grey_range``.
    """
    with open_image(path, max_pixels) as image:
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise BadScan(f"too small: {width} x {height}, a side is below {MIN_SIDE} pixels")
        drawn = height * stretch[0], width * stretch[1]
        shrink = min(1.0, max_side / max(drawn))
        if round(min(drawn) * shrink) < MIN_SIDE:
            raise BadScan(f"too narrow: {width} x {height} has a side below {MIN_SIDE} pixels at max_side {max_side}")
        remarks: set[Remark] = set()
        if (frames := getattr(image, "n_frames", 1)) > 1:
            if image.format == "TIFF":
                raise BadScan(f"holds {frames} images; export one file per scan")
            remarks.add("first of several")
        if kind := _kind(image):
            if grey_range is None:
                raise RangeNeeded
            remarks.add(kind)
        elif _drops_bits(image):
            remarks.add("upper 8 bits")
        turned, is_turned = upright(image)
        if is_turned:
            remarks.add("turned")
        if kind:
            values, share_above = _to_8_bit(np.asarray(turned), getattr(grey_range, kind))
            grey = Image.fromarray(255 - values if _is_white_zero(image) else values)
            if share_above > CLIPPED:
                remarks.add("clipped")
        else:
            grey = _to_grey(turned)
    width, height = grey.size
    if shrink < 1 or stretch != (1.0, 1.0):
        size = [max(1, round(side * by * shrink)) for side, by in zip((width, height), stretch[::-1], strict=True)]
        grey = grey.resize(size, Image.Resampling.LANCZOS)
    scan = np.asarray(grey)
    if scan.min() == scan.max():
        raise BadScan(f"blank: every pixel is {scan.flat[0]}")
    return Decoded(scan, (height, width), frozenset(remarks))


@contextlib.contextmanager
def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image of ``FORMATS`` by Pillow; whatever goes wrong while it is read is a ``BadScan``.

    Raises:
        BadScan: no regular file, not an image, too large, damaged.
    """
    try:
        status = os.stat(path)  # before it is opened: opening a pipe waits for a writer, a device may act
        if not stat.S_ISREG(status.st_mode):
            raise BadScan("not a regular file (a folder, pipe, socket or device)")
        if status.st_size == 0:
            raise BadScan("empty file")
        # A file, not a path: Pillow maps the pixels of a plain TIFF from a path, and those of a turned one wrongly.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadScan(f"too large: {width} x {height} is more than {max_pixels:,} pixels")
            yield image
    except (BadScan, RangeNeeded):
        raise
    except Image.DecompressionBombError:
        raise BadScan(f"too large: more than {max_pixels:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadScan("not an image (JPEG, PNG, TIFF, BMP, GIF or WebP), or a damaged one") from None
    except MemoryError:
        raise BadScan("too large for the memory of this machine") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files, and one
        # bad file must not end a run over 100,000 good ones.
        reason = " ".join(str(error).replace(str(path), "").split()) or type(error).__name__
        raise BadScan(f"cannot be read: {reason}") from None


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """An image, loaded, as its EXIF orientation says, and whether that turned it."""
    try:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # Pillow raises SyntaxError, struct.error and more; damaged EXIF data says nothing
        image.load()
        return image, False
    image.load()  # turns a TIFF already
    return ImageOps.exif_transpose(image), is_turned


def measure_levels(path: str | Path, max_pixels: int = MAX_PIXELS) -> Levels | None:
    """How bright the pixels of a deep image are; None for any other image and for one that cannot be read."""
    try:
        with open_image(path, max_pixels) as image:
            kind = _kind(image)
            if kind is None or (image.format == "TIFF" and image.n_frames > 1):
                return None
            values = np.asarray(image)
            above = [np.count_nonzero(values > limit) for limit in limits_of(kind)]
            return Levels(kind, values.size, np.array(above)) if np.isfinite(values).all() else None
    except BadScan:
        return None


def choose_range(measured: Iterable[Levels | None]) -> GreyRange:
    """One grey range for all of some deep images, decided over all their pixels.

    Of integers and of floats apart, since their units differ: the smallest of the usual ranges (8, 10, 12, 14 and 16
    bits; floats also 0 to 1) that no more than ``RARE`` of the pixels exceed, so that no single bright pixel decides.
    """
    ranges: dict[Kind, float] = {}
    measured = [levels for levels in measured if levels is not None]
    for kind in ("integers", "floats"):
        of_kind = [levels for levels in measured if levels.kind == kind]
        above = np.sum([levels.above for levels in of_kind], axis=0) if of_kind else np.zeros(len(limits_of(kind)))
        allowed = RARE * sum(levels.pixels for levels in of_kind)
        limits = limits_of(kind)
        ranges[kind] = next((limit for limit, count in zip(limits, above, strict=True) if count <= allowed), limits[-1])
    return GreyRange(**ranges)


def limits_of(kind: Kind) -> tuple[int, ...]:
    """The ranges that a deep image of this kind may have."""
    return FLOAT_LIMITS if kind == "floats" else INTEGER_LIMITS


def given_range(grey_range: float | Literal["auto"]) -> GreyRange | None:
    """A setting as a range; None for auto."""
    return None if grey_range == "auto" else GreyRange(grey_range, grey_range)


def _kind(image: Image.Image) -> Kind | None:
    if image.mode not in _DEEP_MODES:
        return None
    return "floats" if image.mode == "F" else "integers"


def _drops_bits(image: Image.Image) -> bool:
    """Whether Pillow gives 8 of 16 bits a channel."""
    formats = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in image.tile]
    return any(isinstance(part, str) and ";16" in part for parts in formats for part in parts)


def _is_white_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode == "L" and "transparency" not in image.info:
        return image.copy()
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        coloured = image.convert("RGBA")
        black = Image.new("RGBA", coloured.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, coloured).convert("L")
    return image.convert("L")


def _to_8_bit(values: np.ndarray, full: float) -> tuple[np.ndarray, float]:
    """Deep grey values scaled from 0 … ``full`` to 0 … 255, and the share of them above ``full``."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise BadScan("holds values that are not numbers (NaN or infinite)")
    low, high = values.min(), values.max()
    most = max(full, INTEGER_LIMITS[-1])
    if low < 0 or (values > most).mean() > RARE:
        raise BadScan(f"grey values from {low:g} to {high:g}; expected 0 to {most:g}")
    return np.round(values.clip(max=full) * (255 / full)).astype(np.uint8), float((values > full).mean())
