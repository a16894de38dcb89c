"""One image file to one grey uint8 scan, or the reason why not."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

MIN_SIDE = 32
MAX_PIXELS = 100_000_000
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})

# Pillow warns of large images on stderr once per file; decode_grey has a limit of its own, checked before decoding.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadScan(Exception):  # noqa: N818  (a verdict on a file, not a fault of the program)
    """A file that cannot be used as a scan. The message is the reason, without the file's name."""


def decode_grey(path: str | Path, max_side: int = 2048, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read one scan as grey uint8, whatever its file format, which is told by content and not by suffix.

    - Grey JPEGs are passed on bit for bit as Pillow decodes them; colour, palette, CMYK and 1-bit images are
      converted by Pillow's ``convert("L")`` (ITU-R 601 luma).
    - Transparent pixels show black, the background of a scan.
    - 16-bit grey is scaled from its full range: 0…65535 → 0…255. Files whose largest value is below 4096 (12-bit
      data) or below 256 (8-bit data) in a 16-bit container are scaled from that range, since they would be
      almost black otherwise. Floats are read as 0…1, 0…255 or 0…65535 by their largest value.
    - EXIF orientation is ignored: OCT exports carry none, and a scan's rows must stay depth.

    Args:
        path: image file.
        max_side: a scan with a longer side is scaled down to it (Lanczos, antialiased), in pixels.
        max_pixels: larger images are refused from their header, before any memory is taken.

    Returns:
        (H, W) uint8, both sides at least ``MIN_SIDE``.

    Raises:
        BadScan: empty, truncated or damaged file, not an image, too small, too large, several pages, a single grey
            value, values that are not numbers or out of range.
    """
    try:
        return _decode(path, max_side, max_pixels)
    except BadScan:
        raise
    except Image.DecompressionBombError:
        raise BadScan(f"too large: more than {max_pixels:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadScan("empty file" if os.path.getsize(path) == 0 else "not an image, or a damaged one") from None
    except MemoryError:
        raise BadScan("too large for the memory of this machine") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files, and one
        # bad file must not end a run over 100,000 good ones.
        reason = " ".join(str(error).replace(str(path), "").split()) or type(error).__name__
        raise BadScan(f"cannot be read: {reason}") from None


def _decode(path: str | Path, max_side: int, max_pixels: int) -> np.ndarray:
    with Image.open(path) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadScan(f"too large: {width} x {height} is more than {max_pixels:,} pixels")
        if min(width, height) < MIN_SIDE:
            raise BadScan(f"too small: {width} x {height}, a side is below {MIN_SIDE} pixels")
        shrink = min(1.0, max_side / max(width, height))
        if round(min(width, height) * shrink) < MIN_SIDE:
            raise BadScan(f"too narrow: {width} x {height} has a side below {MIN_SIDE} pixels at max_side {max_side}")
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise BadScan(f"holds {image.n_frames} images; export one file per scan")
        grey = _to_grey(image)
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        grey = grey.resize(size, Image.Resampling.LANCZOS)
    scan = np.asarray(grey)
    if scan.min() == scan.max():
        raise BadScan(f"blank: every pixel is {scan.flat[0]}")
    return scan


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode == "L" and "transparency" not in image.info:
        image.load()
        return image.copy()
    if image.mode in _DEEP_MODES:
        return Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        coloured = image.convert("RGBA")
        black = Image.new("RGBA", coloured.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, coloured).convert("L")
    return image.convert("L")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit or float grey values to 0…255 (see ``decode_grey``)."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise BadScan("holds values that are not numbers (NaN or infinite)")
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise BadScan(f"grey values from {low:g} to {high:g}; expected 0 to 65535")
    is_fraction = high <= 1 and not np.array_equal(values, np.round(values))
    full = 1 if is_fraction else next(limit for limit in (255, 4095, 65535) if high <= limit)
    return np.round(values * (255 / full)).astype(np.uint8)
