"""Topcon 3D OCT and Triton: .fda and .fds files.

A file is a row of named chunks. They are read here: oct-converter 0.7, which knows the layout, calls a function that
NumPy 2.3 removed. The layout is that of the uocte project (https://bitbucket.org/uocte/uocte/wiki/Topcon File Format).
"""

import datetime
import io
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from dino_oct.data.decode import BadScan
from dino_oct.data.volumes.volume import Eye, Volume, check_size, grey, join_identity, moment, stack

_MAGIC, _HEADER = b"FOCT", 15
_PACKED = struct.Struct("<B6I")  # mode, two unknown, width, height, slices, unknown; then a size and a picture each
_RAW = struct.Struct("<B4IBI")  # mode, width, height, bits, slices, format, size; then 16-bit pixels
_PATIENT = struct.Struct("<32s32s32s8sB3H")
_MOST_CHUNKS = 100_000
_LARGEST_TEXT = 4096  # bytes of a chunk that is no picture which are read
_SLICE_FORMATS = ("JPEG2000", "JPEG")


class Chunk(NamedTuple):
    """Where the content of a chunk lies, in bytes."""

    start: int
    size: int


def read_topcon(path: Path) -> list[Volume]:
    """Volumes of an .fda or .fds file; grey as the file has it, mostly uint16."""
    with path.open("rb") as file:
        chunks = _chunks(file, path.stat().st_size)
        stacks = []
        for name in ("@IMG_JPEG", "@IMG_MOT_COMP_03", "@IMG_SCAN_03"):
            read = _packed_scans if name == "@IMG_JPEG" else _raw_scans
            stacks += [read(path, file, chunk) for chunk in chunks.get(name, [])]
            if stacks and name != "@IMG_SCAN_03":
                break  # the motion-corrected volume is the same one again
        if not stacks:
            raise BadScan("holds no B-scans of a kind that is known (@IMG_JPEG, @IMG_MOT_COMP_03, @IMG_SCAN_03)")
        texts = {name: _content(file, found[0]) for name, found in chunks.items() if name.startswith("@")}
    eye, acquired = _capture(texts)
    model = next((texts[name][:16] for name in ("@HW_INFO_03", "@HW_INFO_02", "@HW_INFO_01") if name in texts), b"")
    volumes = []
    for scans in stacks:
        pixel_um, spacing_um = _sizes(texts, scans.shape)
        volumes.append(
            Volume(
                scans,
                identity=_identity(texts),
                eye=eye,
                acquired=acquired,
                device=" ".join(filter(None, ("Topcon", _text(model)))),
                pixel_um=pixel_um,
                spacing_um=spacing_um,
            )
        )
    return volumes


def _chunks(file: BinaryIO, size: int) -> dict[str, list[Chunk]]:
    """Name → chunks of that name."""
    if file.read(_HEADER)[:4] != _MAGIC:
        raise BadScan("no Topcon file (FOCT)")
    chunks: dict[str, list[Chunk]] = defaultdict(list)
    for _ in range(_MOST_CHUNKS):
        length = file.read(1)
        if length in (b"", b"\0"):
            return dict(chunks)
        name = file.read(length[0]).decode("latin-1")
        (content,) = struct.unpack("<I", file.read(4))
        chunks[name].append(Chunk(file.tell(), content))
        if file.seek(content, 1) > size:
            raise BadScan("truncated: a chunk ends behind the file's end")
    raise BadScan("damaged: too many chunks")


def _content(file: BinaryIO, chunk: Chunk) -> bytes:
    file.seek(chunk.start)
    return file.read(min(chunk.size, _LARGEST_TEXT))


def _packed_scans(path: Path, file: BinaryIO, chunk: Chunk) -> np.ndarray:
    """B-scans packed one by one as JPEG 2000 or JPEG."""
    file.seek(chunk.start)
    _, _, _, width, height, slices, _ = _PACKED.unpack(file.read(_PACKED.size))
    check_size(path, slices, height, width)
    return stack(_unpacked(file, chunk, (width, height), slices))


def _unpacked(file: BinaryIO, chunk: Chunk, size: tuple[int, int], slices: int) -> Iterator[np.ndarray]:
    for _ in range(slices):
        (length,) = struct.unpack("<I", file.read(4))
        if file.tell() + length > chunk.start + chunk.size:
            raise BadScan("truncated: a B-scan ends behind its chunk")
        packed = io.BytesIO(file.read(length))
        with Image.open(packed, formats=_SLICE_FORMATS) as image:
            if image.size != size:
                raise BadScan("a B-scan has another size than the header says")
            yield grey(image)


def _raw_scans(path: Path, file: BinaryIO, chunk: Chunk) -> np.ndarray:
    """B-scans of 16-bit values, row by row."""
    file.seek(chunk.start)
    _, width, height, bits, slices, _, _ = _RAW.unpack(file.read(_RAW.size))
    if bits != 16:
        raise BadScan(f"pixels of {bits} bits; expected 16")
    check_size(path, slices, height, width, 2)
    values = np.frombuffer(file.read(2 * slices * height * width), "<u2")
    return stack(values.reshape(slices, height, width))


def _sizes(texts: dict[str, bytes], shape: tuple[int, ...]) -> tuple[tuple[float, float], float]:
    """Height and width of a pixel, and from one B-scan to the next, in micrometres."""
    slices, _, width = shape
    for name, layout in (("@PARAM_SCAN_04", "<3I3d"), ("@PARAM_SCAN_02", "<B5I3d")):
        if len(texts.get(name, b"")) >= struct.calcsize(layout):
            across, along, axial = struct.unpack_from(layout, texts[name])[-3:]
            step = 1000 * along / slices if slices > 1 else float("nan")
            return (_positive(axial), _positive(1000 * across / width)), _positive(step)
    return (float("nan"), float("nan")), float("nan")


def _identity(texts: dict[str, bytes]) -> str:
    content = texts.get("@PATIENT_INFO_02", b"")
    if len(content) < _PATIENT.size:
        return ""
    number, first, last, middle, _, *birth = _PATIENT.unpack_from(content)
    return join_identity(*map(_text, (number, last, first, middle)), *birth)


def _capture(texts: dict[str, bytes]) -> tuple[Eye, datetime.datetime | None]:
    for name, layout in (("@CAPTURE_INFO_02", "<BBI100s6H"), ("@CAPTURE_INFO", "<B6H")):
        if len(texts.get(name, b"")) >= struct.calcsize(layout):
            side, *_, year, month, day, hour, minute, second = struct.unpack_from(layout, texts[name])
            eye: Eye = "R" if side == 0 else "L" if side == 1 else ""
            return eye, moment(year, month, day, hour, minute, second)
    return "", None


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("latin-1").strip()


def _positive(value: float) -> float:
    return value if 0 < value < 1e5 else float("nan")
