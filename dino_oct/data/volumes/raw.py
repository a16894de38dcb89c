"""Volumes whose size stands beside the pixels: Zeiss Cirrus (.img, in its name) and Optovue (.oct, in a text)."""

import itertools
import re
from pathlib import Path

import numpy as np

from dino_oct.data.decode import BadScan
from dino_oct.data.volumes.volume import Eye, Volume, check_size, eye_of, join_identity, moment, stack

_CUBE = re.compile(r"(?P<who>.*?)_?(?P<scan>Macular|Optic Disc)\s*Cube\s*(?P<width>\d+)x(?P<slices>\d+)", re.I)
_EYE = re.compile(r"(?<![A-Za-z])(OD|OS)(?![A-Za-z])")
_US_DATE = re.compile(r"(?<!\d)(\d{1,2})-(\d{1,2})-(\d{4})_(\d{1,2})-(\d{1,2})-(\d{1,2})(?!\d)")
_ISO_DATE = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})_(\d{1,2})\.(\d{1,2})\.(\d{1,2})")
_CUBE_HEIGHT = 1024  # values of an A-scan
_CUBE_UM = (2000, 6000, 6000)  # depth, width and length of a Cirrus cube
_MOST_TEXT = 1 << 20


def read_cirrus(path: Path) -> list[Volume]:
    """A Zeiss Cirrus cube: bytes, with their last pixel first, so that the file is read from its end.

    The name is that of Zeiss's research export: who, Macular or Optic Disc Cube, its size, date, eye.
    """
    name = path.name
    if re.search("hidef|flow", name, re.I):
        raise BadScan("no cube of B-scans, by its name (hidef, flow)")
    match = _CUBE.match(name)
    if not match:
        raise BadScan("its name does not say its size, as in 'Macular Cube 512x128'")
    width, slices = int(match["width"]), int(match["slices"])
    size = path.stat().st_size
    check_size(path, slices, _CUBE_HEIGHT, width, 1)
    if _CUBE_HEIGHT * width * slices != size:
        raise BadScan(
            f"another size than its name says: {size:,} bytes for {slices} B-scans of {width} x {_CUBE_HEIGHT}"
        )
    scans = np.fromfile(path, np.uint8)[::-1].reshape(slices, _CUBE_HEIGHT, width)
    date = _US_DATE.search(name)
    eye = _EYE.search(name)
    deep, across, along = _CUBE_UM
    return [
        Volume(
            np.ascontiguousarray(scans),
            identity=join_identity(match["who"]),
            eye=eye_of(eye and eye[1]),
            acquired=moment(date[3], date[1], date[2], *date.groups()[3:]) if date else None,
            device="Zeiss Cirrus",
            pixel_um=(deep / _CUBE_HEIGHT, across / width),
            spacing_um=along / slices,
        )
    ]


def text_of(path: Path) -> Path:
    """The text that says the size of an Optovue file."""
    return path.with_suffix(".txt")


def read_optovue(path: Path) -> list[Volume]:
    """Volumes of an Optovue file: 32-bit floats, A-scan after A-scan from below; sizes from the text beside it."""
    text = text_of(path)
    if not text.is_file() or text.stat().st_size > _MOST_TEXT:
        raise BadScan("neither a Bioptigen file nor an Optovue one: the text of the same name (.txt) is missing")
    lines = text.read_text(encoding="latin-1").splitlines()
    heights = [number for line in lines if "Window Height" in line for number in _numbers(line)]
    shapes = []
    for line, following in itertools.pairwise(lines):
        if "Scan Length" in line and "Scan Usage" in following and _numbers(line) and _numbers(following):
            shapes.append((_numbers(following)[0], _numbers(line)[0]))
    if not heights or not shapes:
        raise BadScan("the text beside it does not say its size (Window Height, Scan Length, Scan Usage)")
    for slices, width in shapes:
        check_size(path, slices, heights[0], width, 4)
    if 4 * sum(slices * width * heights[0] for slices, width in shapes) > path.stat().st_size:
        raise BadScan("truncated: fewer values than the text beside it says")
    eye: Eye = next((eye_of(word) for line in lines if "Eye Scanned" in line for word in _words(line)
                     if eye_of(word)), "")  # fmt: skip
    date = _ISO_DATE.search(path.name)
    volumes = []
    with path.open("rb") as file:
        for slices, width in shapes:
            values = np.fromfile(file, "<f4", slices * width * heights[0]).reshape(slices, width, heights[0])
            scans = values.transpose(0, 2, 1)[:, ::-1]
            acquired = moment(*date.groups()) if date else None
            volumes.append(Volume(stack(scans), eye=eye, acquired=acquired, device="Optovue"))
    return volumes


def _words(line: str) -> list[str]:
    return re.split(r"[\s=:,]+", line)


def _numbers(line: str) -> list[int]:
    return [int(word) for word in _words(line) if word.isascii() and word.isdigit() and len(word) < 8]
