"""Volumes to pictures: one PNG a B-scan and a table that tells patients apart without naming them."""

import csv
import io
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dino_oct.data.decode import BadScan, Levels, choose_range, limits_of
from dino_oct.data.identity import pseudonym
from dino_oct.data.volumes.dicom import group_series
from dino_oct.data.volumes.reading import holds_volume, owned_files, read_volumes
from dino_oct.data.volumes.unpacking import device_name
from dino_oct.data.volumes.volume import Volume
from dino_oct.errors import InputError
from dino_oct.files import naming, scratch_folder
from dino_oct.words import counted

COLUMNS = ("file", "patient", "eye", "visit", "volume", "slice", "device", "axial_um", "lateral_um", "spacing_um")
TABLE = "scans.csv"


@dataclass(frozen=True)
class _Written:
    """One volume in the export; ``day`` stays in memory, the table has the visit's number."""

    patient: str
    number: int
    slices: int
    eye: str
    device: str
    sizes: tuple[float, float, float]
    day: int | None

    def file(self, position: int) -> str:
        """Path of a B-scan's picture in the export."""
        return f"{self.patient}/{self.number:02d}-{position:04d}.png"


def export_volumes(places: Sequence[str | Path], out: str | Path, key: bytes) -> str:
    """Write volumes as ``OUT/PATIENT/VOLUME-SLICE.png`` and ``OUT/scans.csv``, with the columns ``COLUMNS``.

    uint8 and uint16 are written as they are, floats as 8 bits by the range of their volume. ``patient`` is a keyed
    pseudonym of what the header says about who; a file that says nothing is a patient of its own. ``visit`` numbers
    the days of a patient's examinations, empty where the file has no date. Nothing else of the header is written but
    eye, device and sizes. Volumes that cannot be read are named on stderr.

    Returns:
        A line for the user.

    Raises:
        InputError: nothing there, ``out`` is not empty, or no volume can be read.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not a new or empty folder; name another one")
    groups = list(find_volumes(places))
    out.parent.mkdir(parents=True, exist_ok=True)
    written: list[_Written] = []
    counts: Counter[str] = Counter()
    with naming(out), scratch_folder(out) as folder:
        for group in tqdm(groups, desc="volumes", unit="file", disable=None, leave=False):
            try:
                volumes = read_volumes(group)
                pictures = [(volume, _to_picture(volume.scans)) for volume in volumes]
            except BadScan as reason:
                counts["refused"] += 1
                print(f"left out: {group[0]}: {reason}", file=sys.stderr)
                continue
            for volume, scans in pictures:
                counts["nameless"] += not volume.identity
                patient = pseudonym(volume.identity or f"file {os.path.abspath(group[0])}", key)
                number = 1 + sum(earlier.patient == patient for earlier in written)
                written.append(_write(folder, volume, scans, patient, number))
        if not written:
            raise InputError(f"of {counted(len(groups), 'volume')} none can be read; the lines above say why")
        (folder / TABLE).write_text(_table(written), encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
    patients, scans = len({volume.patient for volume in written}), sum(volume.slices for volume in written)
    parts = (counted(scans, "B-scan"), counted(len(written), "volume"), counted(patients, "patient"))
    line = f"{out}: {parts[0]} of {parts[1]} and {parts[2]}, and {TABLE}"
    if counts["nameless"]:
        line += f"; {counted(counts['nameless'], 'volume')} without a name or number: each file counts as a patient"
    return line + (f"; {counted(counts['refused'], 'file')} left out" if counts["refused"] else "")


def find_volumes(places: Iterable[str | Path]) -> Iterator[tuple[Path, ...]]:
    """Files of one volume each, of files as named and of folders by ``holds_volume``, in order.

    Raises:
        InputError: a place is missing, or a folder without volumes.
    """
    files: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.exists():
            raise InputError(f"{place}: no such file or folder")
        found = [place]
        if place.is_dir():
            names = [Path(parent) / name for parent, _, names in os.walk(place) for name in names]
            found = [path for path in sorted(names) if not path.name.startswith(".") and holds_volume(path)]
            if not found:
                raise InputError(f"{place}: no volumes in this folder or below it")
        files.update(dict.fromkeys(found))
    owned = {file for path in files for file in owned_files(path)}
    yield from group_series(path for path in files if path not in owned)


def _write(folder: Path, volume: Volume, scans: np.ndarray, patient: str, number: int) -> _Written:
    day = volume.acquired.toordinal() if volume.acquired else None
    sizes = (*volume.pixel_um, volume.spacing_um)
    written = _Written(patient, number, len(scans), volume.eye, device_name(volume), sizes, day)
    (folder / patient).mkdir(exist_ok=True)
    for position, scan in enumerate(scans):
        Image.fromarray(scan).save(folder / written.file(position), "PNG")
    return written


def _to_picture(scans: np.ndarray) -> np.ndarray:
    """Scans as a PNG can hold them: floats become 8 bits, by the smallest usual range that holds nearly all."""
    if scans.dtype != np.float32:
        return scans
    if scans.min() < 0:
        raise BadScan(f"grey values from {scans.min():g}; expected 0 or more")
    above = np.array([np.count_nonzero(scans > limit) for limit in limits_of("floats")])
    full = choose_range([Levels("floats", scans.size, above)]).floats
    return np.round(scans.clip(max=full) * (255 / full)).astype(np.uint8)


def _table(written: Sequence[_Written]) -> str:
    days = defaultdict(set)
    for volume in written:
        if volume.day is not None:
            days[volume.patient].add(volume.day)
    visits = {patient: {day: i + 1 for i, day in enumerate(sorted(of))} for patient, of in days.items()}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for volume in written:
        visit = visits[volume.patient][volume.day] if volume.day is not None else ""
        sizes = ["" if math.isnan(size) else f"{size:.6g}" for size in volume.sizes]
        for position in range(volume.slices):
            known = (volume.file(position), volume.patient, volume.eye, visit, volume.number, position)
            rows.writerow((*known, volume.device, *sizes))
    return text.getvalue()
