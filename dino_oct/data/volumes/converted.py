"""Volumes that other libraries read: Heidelberg .e2e (eyepy, else oct-converter) and Bioptigen .oct (oct-converter).

What they take from a header without a check, and would follow without end, is checked here first.
"""

import datetime
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.data.decode import BadScan
from dino_oct.data.volumes.heidelberg import DEVICE, show_reflectivity
from dino_oct.data.volumes.volume import Volume, check_size, eye_of, join_identity, library, silence, stack

_DIRECTORY, _ENTRY, _CONTENT = struct.Struct("<12sI20s4I"), struct.Struct("<4I3Ii2H2I"), struct.Struct("<12s5I4i2H2I")
_IMAGE = struct.Struct("<5I")
_VERSION = 36  # bytes before the first directory
_PREFIX = b"E2EMultipleVolumeFile"
_PREFIX_SIZE = 64
_IMAGE_TYPE, _BSCAN = 0x40000000, 1
_NO_VALUE = 1.99  # what lies above is outside of the scan
_MOST_DIRECTORIES = 100_000
_BIOPTIGEN = b"FRAMEHEADER"


def read_e2e(path: Path) -> list[Volume]:
    """Series of a Heidelberg database export, a volume each, as HEYEX shows them."""
    skip = _check_e2e(path)
    readers = [_by_eyepy, _by_oct_converter] if not skip else [_by_oct_converter]
    reason: BadScan | None = None
    for read in readers:
        try:
            with silence():
                if volumes := read(path):
                    return volumes
        except BadScan as refused:
            reason = refused
        except Exception:  # the libraries raise anything on what they do not know; the next one may
            continue
    raise reason or BadScan("holds no B-scans that eyepy or oct-converter can read")


def is_bioptigen(path: Path) -> bool:
    """Whether a file begins as Bioptigen's do."""
    with path.open("rb") as file:
        return _BIOPTIGEN in file.read(32)


def read_bioptigen(path: Path) -> list[Volume]:
    """A Bioptigen volume, uint16."""
    oct_converter = library("oct_converter.readers")
    with silence():
        head = oct_converter.BOCT.header_structure.parse_file(str(path))
        frames, width, height = (int(head[name].value) for name in ("framecount", "linecount", "linelength"))
        check_size(path, frames, height, width, 2)
        if int(head.frames.value) * int(head.scans.value) != frames:
            raise BadScan("damaged: its header counts B-scans in two ways")
        parsed = oct_converter.BOCT.file_structure.parse_file(str(path))
        if any((frame.image.columns, frame.image.rows) != (width, height) for frame in parsed.data):
            raise BadScan("its B-scans differ in size")
        if parsed.data[-1].image.end > path.stat().st_size:
            raise BadScan("truncated: fewer B-scans than its header says")
        volumes = oct_converter.BOCT(path).read_oct_volume()
    stacks = [np.asarray(volume.volume).transpose(0, 2, 1) for volume in volumes]
    if all(len(scans) == 1 for scans in stacks):  # as one B-scan after another, not one volume after another
        stacks = [np.concatenate(stacks)]
    first = volumes[0]
    return [
        Volume(stack(scans), eye=eye_of(first.laterality), acquired=first.acquisition_date, device="Bioptigen")
        for scans in stacks
    ]


def _check_e2e(path: Path) -> int:
    """Bytes before the file proper, after the directories were found to end and images to fit.

    The libraries follow a chain of directories, which a damaged one closes to a ring, and take the sizes of images as
    they stand.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        skip = _PREFIX_SIZE if file.read(len(_PREFIX)) == _PREFIX else 0
        file.seek(skip + _VERSION)
        _, _, _, _, place, _, _ = _DIRECTORY.unpack(file.read(_DIRECTORY.size))
        visited, images = set(), 0
        while place:
            if place in visited or place + skip >= size or len(visited) > _MOST_DIRECTORIES:
                raise BadScan("damaged: its directories do not end")
            visited.add(place)
            file.seek(place + skip)
            _, _, _, entries, _, place, _ = _DIRECTORY.unpack(file.read(_DIRECTORY.size))
            content = file.read(_ENTRY.size * min(entries, size // _ENTRY.size))
            if len(content) != _ENTRY.size * entries:
                raise BadScan("truncated, or its directories are damaged")
            images += sum(_check_image(path, file, entry, skip) for entry in _ENTRY.iter_unpack(content))
    if not images:
        raise BadScan("holds no B-scans")
    if not skip:
        _check_order(path)
    return skip


def _check_image(path: Path, file: Any, entry: tuple, skip: int) -> bool:
    """Whether an entry of a directory is a B-scan, whose size is checked."""
    position, start, *_, kind, _ = entry
    if kind != _IMAGE_TYPE or start <= position:
        return False
    file.seek(start + skip)
    head = file.read(_CONTENT.size + _IMAGE.size)
    if len(head) < _CONTENT.size + _IMAGE.size:
        raise BadScan("truncated: an image is behind the file's end")
    is_bscan = _CONTENT.unpack_from(head)[-4] == _BSCAN
    *_, height, width = _IMAGE.unpack_from(head, _CONTENT.size)
    if is_bscan:
        check_size(path, 1, height, width, 2)
        if start + skip + len(head) + 2 * height * width > path.stat().st_size:
            raise BadScan("truncated: an image ends behind the file's end")
    return is_bscan


def _check_order(path: Path) -> None:
    """eyepy reads directory after directory; each must lie behind the one before."""
    with path.open("rb") as file:
        place = _VERSION + _DIRECTORY.size
        while True:
            file.seek(place)
            head = file.read(_DIRECTORY.size)
            if len(head) < _DIRECTORY.size:
                return
            entries = _DIRECTORY.unpack(head)[3]
            file.seek(place + _DIRECTORY.size + _ENTRY.size * (entries - 1))
            last = file.read(_ENTRY.size) if entries else b""
            if len(last) < _ENTRY.size:
                return
            _, start, size, *_ = _ENTRY.unpack(last)
            following = start + size + _CONTENT.size
            if following <= place:
                raise BadScan("damaged: its directories do not end")
            place = following


def _by_eyepy(path: Path) -> list[Volume]:
    library("eyepy")
    he, types = library("eyepy.io.he"), library("eyepy.io.he.e2e_format").TypesEnum
    volumes = []
    with he.HeE2eReader(path) as reader:
        for series in reader.series:
            scans = [
                show_reflectivity(np.where(image > _NO_VALUE, 0, image))
                for _, part in sorted(series.slices.items())
                for image in _images(part, types.image)
            ]
            if not scans:
                continue
            parts = [part for _, part in sorted(series.slices.items())]
            metas = [part.get_meta() for part in parts if types.bscanmeta in part.folders]
            eye, acquired, axial = "", None, float("nan")
            if types.laterality in series.folders:
                eye = eye_of(chr(int(series.folders[types.laterality][0].data.laterality)))  # a character code
            if metas:
                acquired = _moment(metas[0]["acquisitionTime"])
                axial = 1000 * float(metas[0]["scale_y"])
            volumes.append(
                Volume(
                    stack(scans),
                    identity=_person(series.patient, types.patient),
                    eye=eye,
                    acquired=acquired,
                    device=DEVICE,
                    pixel_um=(axial if 0 < axial < 100 else float("nan"), float("nan")),
                )
            )
    return volumes


def _images(part: Any, kind: Any) -> Iterator[np.ndarray]:
    if kind in part.folders:
        for folder in part.folders[kind]:
            if folder.ind == _BSCAN:
                yield folder.data.data


def _person(patient: Any, kind: Any) -> str:
    folders = patient.folders.get(kind, []) if patient is not None else []
    for folder in folders:
        data = folder.data
        return join_identity(data.patient_id, data.surname, data.firstname, data.birthdate or "")
    return ""


def _moment(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _by_oct_converter(path: Path) -> list[Volume]:
    volumes = []
    for volume in library("oct_converter.readers").E2E(path).read_oct_volume():
        scans = [np.rint(255 * np.asarray(scan)).astype(np.uint8) for scan in volume.volume]
        axial = 1000 * float(volume.pixel_spacing[1]) if volume.pixel_spacing else float("nan")
        who = itertools.chain((volume.patient_id, volume.surname, volume.first_name), (volume.DOB or "",))
        volumes.append(
            Volume(
                stack(scans),
                identity=join_identity(*who),
                eye=eye_of(volume.laterality),
                acquired=volume.acquisition_date,
                device=DEVICE,
                pixel_um=(axial if 0 < axial < 100 else float("nan"), float("nan")),
            )
        )
    return volumes
