"""What a volume is, and the guards that all of its readers share."""

import contextlib
import datetime
import importlib
import io
import logging
import threading
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from PIL import Image

from dino_oct.data.decode import MAX_PIXELS, BadScan, upright
from dino_oct.words import counted

Eye = Literal["R", "L", ""]

MAX_VOLUME_PIXELS = 1 << 31  # 1024 B-scans of 1536 x 1024 are the largest in use
NEEDS_EXTRA = "needs pip install dino-oct[clinic]"

_MAX_RATIO = 1000  # pixels a byte of the file: no scan with noise packs as tightly
_SILENCE = threading.Lock()  # the streams and the warning filters belong to the whole process

# Pillow tells of every oddity of a TIFF's directories, on stderr, once a page.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True, eq=False)
class Volume:
    """B-scans of one eye at one visit, as a file holds them.

    Attributes:
        scans: (S, H, W) grey. uint8 as the device shows it; uint16 or float32 where the file has deeper values, as it
            has them: 16-bit DICOM, TIFF, Topcon and Bioptigen, arrays of numbers, Optovue.
        identity: everything the header says about who: number, names, birth date; empty where it says nothing. It is
            SECRET: never print, log or store it, hash it at once (``dino_oct.data.identity``).
        eye: R, L, or empty where unknown.
        acquired: date and time of the examination, as the file gives it.
        device: maker and model.
        pixel_um: height and width of a pixel in micrometres, NaN where unknown.
        spacing_um: from one B-scan to the next, in micrometres, NaN where unknown or not parallel.
        fovea: (slice, column), where the file knows it.
    """

    scans: np.ndarray = field(repr=False)
    identity: str = field(default="", repr=False)
    eye: Eye = ""
    acquired: datetime.datetime | None = field(default=None, repr=False)
    device: str = ""
    pixel_um: tuple[float, float] = (float("nan"), float("nan"))
    spacing_um: float = float("nan")
    fovea: tuple[int, int] | None = None


def stack(scans: np.ndarray | Iterable[np.ndarray]) -> np.ndarray:
    """B-scans as one (S, H, W) array of uint8, uint16 or float32.

    Raises:
        BadScan: no scans, sizes that differ, or values that are no grey: complex, negative integers, more than 16 bits,
            NaN, infinite.
    """
    if not isinstance(scans, np.ndarray):
        scans = list(scans)
        if len({scan.shape for scan in scans}) > 1:
            raise BadScan("its B-scans differ in size")
        if not scans:
            raise BadScan("holds no B-scans")
        scans = np.stack(scans)
    if scans.ndim != 3 or not scans.size:
        raise BadScan("holds no B-scans" if not scans.size else f"{scans.ndim} axes instead of slice, row, column")
    if scans.dtype == np.uint8:
        return np.ascontiguousarray(scans)
    if scans.dtype.kind == "f":
        if not all(np.isfinite(scan).all() for scan in scans):
            raise BadScan("holds values that are not numbers (NaN or infinite)")
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(scans, dtype=np.float32)
        if not np.isfinite(values.max()) or not np.isfinite(values.min()):
            raise BadScan("holds values beyond 32-bit floats")
        return values
    if scans.dtype.kind not in "iu":
        raise BadScan(f"holds {scans.dtype}, not grey values")
    if scans.dtype != np.uint16 and (scans.min() < 0 or scans.max() > 65535):
        raise BadScan(f"grey values from {scans.min()} to {scans.max()}; expected 0 to 65535")
    return np.ascontiguousarray(scans, dtype=np.uint16)


def check_size(path: Path, slices: int, height: int, width: int, bytes_per_pixel: float = 0) -> None:
    """Refuse a size that a header claims and the file cannot hold, before any memory is taken.

    Args:
        bytes_per_pixel: of uncompressed pixels; 0 where they are compressed.

    Raises:
        BadScan: an empty size, a B-scan or volume above the limits, or more pixels than the file can hold.
    """
    if min(slices, height, width) <= 0:
        raise BadScan("holds no B-scans")
    shape = f"{counted(slices, 'B-scan')} of {width} x {height}"
    if height * width > MAX_PIXELS or slices * height * width > MAX_VOLUME_PIXELS:
        raise BadScan(f"too large: {shape}")
    pixels, size = slices * height * width, path.stat().st_size
    if pixels * bytes_per_pixel > size or pixels > _MAX_RATIO * size:
        raise BadScan(f"truncated, or its header is damaged: {shape} do not fit into {size:,} bytes")


def grey(image: Image.Image) -> np.ndarray:
    """An opened picture as (H, W) grey, upright, 16-bit and float values as they are."""
    turned, _ = upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(turned)
    return np.asarray(turned.convert("L"))


def join_identity(*parts: object) -> str:
    """What a header says about who, in one text and one spelling; empty where it says nothing."""
    texts = [" ".join(unicodedata.normalize("NFC", str(part or "")).replace("\0", " ").split()) for part in parts]
    return "\x1f".join(texts) if any(texts) else ""


def eye_of(word: object) -> Eye:
    """The eye that a header or a file name means: R, OD, right, L, OS, left, in any case."""
    text = str(word or "").strip("\0 ").upper()
    return "R" if text in ("R", "OD", "RIGHT") else "L" if text in ("L", "OS", "LEFT") else ""


def moment(*numbers: object) -> datetime.datetime | None:
    """Year, month, day and so on as a time; None where they are none."""
    try:
        return datetime.datetime(*(int(float(str(number))) for number in numbers))
    except (TypeError, ValueError, OverflowError):
        return None


def library(name: str) -> ModuleType:
    """Import a library of the ``clinic`` extra.

    Raises:
        BadScan: it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BadScan(NEEDS_EXTRA) from None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Let a library print, warn and log nothing: what they say of a damaged file may name a patient.

    One thread at a time: streams and filters are of the whole process.
    """
    unread = io.StringIO()
    with (
        _SILENCE,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(unread),
        contextlib.redirect_stderr(unread),
    ):
        warnings.simplefilter("ignore")
        before, logging.root.manager.disable = logging.root.manager.disable, logging.CRITICAL
        try:
            yield
        finally:
            logging.root.manager.disable = before
