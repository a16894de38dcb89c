"""A part of the scan cache on disk: decoded scans of some files in one memory-mapped file, and tables about them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dino_oct.data.decode import FLOAT_LIMITS, Levels
from dino_oct.files import check_regular, read_json

VERSION = 5  # raise it when decoding, borders or tissue maps change: older parts are then built anew
KINDS = ("", "integers", "floats")  # of images, by the numbers that ``deep`` has
DEEP = np.dtype([("kind", "u1"), ("white", "f8"), ("pixels", "i8"), ("above", "i8", len(FLOAT_LIMITS))])
TABLES = {
    "stamps": "S20",
    "sizes": "i8",
    "original_sizes": "i8",
    "border": "f4",
    "brightness": "f4",
    "tissue": "f4",
    "digests": "S32",
    "file_digests": "S32",
    "remarks": "u1",
    "deep": DEEP,
}
_PROBED = 1 << 26  # bytes of pixels that are checked against their digests when a part is opened


class Segment:
    """Read-only decoded scans of one folder; ``segment[i]`` is an (H, W) uint8 view into the mapped file.

    Attributes:
        folder: the part's folder.
        tables: name of ``TABLES`` → values, one a scan. ``stamps``: of each file as it was. ``deep``: kind of a deep
            image, the value that became white, and its ``Levels`` where they were measured.
        skipped: stamp → reason of the files that cannot be used.
    """

    def __init__(self, folder: Path, verify: bool = True):
        """Map a part.

        Raises:
            ValueError: not a complete, undamaged part.
        """
        self.folder = folder
        try:
            about = read_json(folder / "cache.json")
            self.tables = {name: _read_table(folder, name) for name in TABLES}
            self._pixels = np.memmap(check_regular(folder / "scans.bin"), dtype=np.uint8, mode="r")
            if about["version"] != VERSION or (verify and about["checksum"] != _checksum(about, self.tables)):
                raise ValueError("the checksum of its tables does not agree")
            self.skipped = {stamp.encode(): str(reason) for stamp, reason in about["skipped"]}
        except Exception as error:  # damaged headers make numpy raise almost anything
            raise ValueError(f"{folder}: {' '.join(str(error).split())}") from error
        self._sizes = np.array(self.tables["sizes"])
        self._starts = np.concatenate([[0], self._sizes.prod(axis=1).cumsum()]).astype(np.int64)
        if len(self._pixels) != self._starts[-1]:
            raise ValueError(f"{folder}: scans.bin holds {len(self._pixels)} bytes, expected {self._starts[-1]}")
        probes = int(min(len(self), max(_PROBED * len(self) // len(self._pixels), 1), 16)) if verify else 0
        for i in np.unique(np.linspace(0, len(self) - 1, probes).astype(int)).tolist():
            if digest(self[i]) != self.tables["digests"][i]:
                raise ValueError(f"{folder}: scan {i} does not match its digest")

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, i: int) -> np.ndarray:
        return self._pixels[self._starts[i] : self._starts[i + 1]].reshape(self._sizes[i])

    def levels(self, i: int) -> Levels | None:
        """Of a deep image, as measured; None for others."""
        row = self.tables["deep"][i]
        kind = KINDS[row["kind"]]
        return (
            Levels(kind, int(row["pixels"]), row["above"][: len(FLOAT_LIMITS) - (kind == "integers")]) if kind else None
        )


class SegmentWriter:
    """Writes one part, scan by scan."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._pixels: BinaryIO = (folder / "scans.bin").open("wb")
        self._rows: dict[str, list[Any]] = {name: [] for name in TABLES}
        self._skipped: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._rows["stamps"])

    def add(self, scan: np.ndarray, **row: Any) -> None:
        """Add a scan (H, W) uint8 and its row of ``TABLES``; sizes and digest are the scan's."""
        self._pixels.write(np.ascontiguousarray(scan).data)
        row |= {"sizes": scan.shape, "digests": digest(scan)}
        for name, values in self._rows.items():
            values.append(row[name])

    def skip(self, stamp: bytes, reason: str) -> None:
        """Note a file that cannot be used."""
        self._skipped.append((stamp.decode(), reason))

    def key(self) -> str:
        """Of the files and of how deep ones were read."""
        rows = np.array(self._rows["deep"], dtype=DEEP)["white"], np.array(self._rows["stamps"], dtype="S20")
        return hashlib.sha256(b"".join(values.tobytes() for values in rows)).hexdigest()[:16]

    def finish(self) -> None:
        """Write the tables."""
        self._pixels.close()
        for name, dtype in TABLES.items():
            np.save(self._folder / f"{name}.npy", np.array(self._rows[name], dtype=dtype))
        about: dict[str, Any] = {"version": VERSION, "scans": len(self), "skipped": self._skipped}
        about["checksum"] = _checksum(about, {name: _read_table(self._folder, name) for name in TABLES})
        (self._folder / "cache.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    def close(self) -> None:
        """Let the file go, finished or not."""
        self._pixels.close()


def digest(scan: np.ndarray) -> bytes:
    """Hash of shape and pixels of a contiguous scan."""
    return hashlib.blake2b(scan.data, digest_size=16, salt=np.uint32(scan.shape).tobytes()).hexdigest().encode()


def deep_row(kind: str, white: float, levels: Levels | None) -> tuple[int, float, int, Sequence[int]]:
    """A row of ``DEEP``."""
    above = [] if levels is None else levels.above.tolist()
    return KINDS.index(kind), white, levels.pixels if levels else 0, above + [0] * (len(FLOAT_LIMITS) - len(above))


def _read_table(folder: Path, name: str) -> np.ndarray:
    table = np.load(check_regular(folder / f"{name}.npy"), mmap_mode="r", allow_pickle=False)
    if table.dtype != np.dtype(TABLES[name]):
        raise ValueError(f"{name}.npy holds {table.dtype}, expected {TABLES[name]}")
    return table


def _checksum(about: dict[str, Any], tables: dict[str, np.ndarray]) -> str:
    """Of what a part says about itself and of its tables; the pixels have digests of their own."""
    content = hashlib.blake2b(digest_size=16)
    entries = {name: value for name, value in about.items() if name != "checksum"}
    content.update(json.dumps(entries, sort_keys=True).encode())
    for name, table in sorted(tables.items()):
        content.update(f"{name} {table.dtype} {table.shape}".encode())
        content.update(np.ascontiguousarray(table))
    return content.hexdigest()
