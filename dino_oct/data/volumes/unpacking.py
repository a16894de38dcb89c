"""Volumes in the cache: each is unpacked once to one picture a B-scan, so that all else sees pictures.

What is kept of a header is what ``Unpacked`` has: the patient as a pseudonym, the day shifted by a number of days that
only the key tells (days between a patient's visits stay right). No name, number or date.
"""

import hashlib
import hmac
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dino_oct.data.cores import usable_cores
from dino_oct.data.decode import BadScan
from dino_oct.data.identity import identity_key, pseudonym
from dino_oct.data.volumes.reading import owned_files, read_volumes
from dino_oct.data.volumes.volume import Volume
from dino_oct.data.workers import in_processes, work
from dino_oct.files import check_regular, private_folder, read_json, remove, scratch_folder, share_as

VERSION = 1  # raise it when what is written changes: volumes are then unpacked anew

_LONGEST_DEVICE = 60
_NO_DEVICE = re.compile(r"[^\w .,/()-]+")  # nothing that a spreadsheet would run
_MOST_DAYS = 36_500
_BYTES_PER_WORKER = 200_000_000  # of files; below, a further process takes longer to start than it saves


@dataclass(frozen=True)
class Unpacked:
    """One volume in the cache.

    Attributes:
        pictures: one file a B-scan, in their order.
        patient: pseudonym; empty where the header says nothing about who.
        eye: R, L, or empty.
        device: maker and model, or empty.
        day: of the examination, shifted; None where unknown or the patient is.
        axial_um, lateral_um: height and width of a pixel in micrometres; None where unknown.
        spacing_um: from one B-scan to the next; None where unknown or not parallel.
        fovea: the slice through it, where the file knows it.
    """

    pictures: tuple[Path, ...]
    patient: str
    eye: str
    device: str
    day: int | None
    axial_um: float | None
    lateral_um: float | None
    spacing_um: float | None
    fovea: int | None


def unpack(groups: Sequence[Sequence[Path]], cache_root: Path, progress: bool = True) -> list[list[Unpacked] | str]:
    """The volumes of each group of files (``group_series``), or why it cannot be read; new ones are unpacked.

    Raises:
        InputError, OSError: as ``identity_key``, or the cache cannot be written.
    """
    key = identity_key(cache_root)
    folder = private_folder(cache_root / "volumes")
    places = [folder / _key(group, key) for group in groups]
    found: list[list[Unpacked] | str | None] = [_open(place) for place in places]
    missing = [i for i, volumes in enumerate(found) if volumes is None]
    jobs = [{"files": [str(file) for file in groups[i]], "place": str(places[i])} for i in missing]
    size = sum(os.stat(file).st_size for i in missing for file in groups[i] if file.is_file())
    workers = min(usable_cores(), len(missing), size // _BYTES_PER_WORKER)
    with tqdm(
        total=len(jobs), desc="unpacking volumes", unit="volume", disable=None if progress else True, leave=False
    ) as bar:
        if workers > 1:
            reasons = in_processes(__name__, jobs, workers, lambda _: bar.update())
        else:
            reasons = []
            for job in jobs:
                reasons.append(_unpack(**job))
                bar.update()
    for i, reason in zip(missing, reasons, strict=True):
        found[i] = reason or _open(places[i]) or "its copy in the cache cannot be read"
    return found


def device_name(volume: Volume) -> str:
    """Maker and model as a table may have them."""
    return _NO_DEVICE.sub(" ", volume.device).strip(" -.,")[:_LONGEST_DEVICE]


def _unpack(files: Sequence[str], place: str) -> str:
    """Unpack one group into its place; returns why not, or nothing."""
    final = Path(place)
    try:
        volumes = read_volumes(files)
    except BadScan as reason:
        return str(reason)
    key = identity_key(final.parent.parent)
    with scratch_folder(final) as building, ThreadPoolExecutor(usable_cores()) as pool:
        about = []
        for number, volume in enumerate(volumes):
            suffix = "tif" if volume.scans.dtype == np.float32 else "png"
            pictures = [f"{number}-{position:04d}.{suffix}" for position in range(len(volume.scans))]
            list(pool.map(lambda scan, name: _write(scan, building / name), volume.scans, pictures))
            about.append({"pictures": pictures, **_known(volume, key)})
        (building / "about.json").write_text(json.dumps({"version": VERSION, "volumes": about}), encoding="utf-8")
        share_as(building, final.parent)
        if _open(final) is None:  # another process was not first
            remove(final)
            building.rename(final)
    return ""


def _write(scan: np.ndarray, file: Path) -> None:
    options = {"compress_level": 1} if file.suffix == ".png" else {}
    Image.fromarray(scan).save(file, **options)


def _known(volume: Volume, key: bytes) -> dict[str, Any]:
    """The fields of ``Unpacked`` beside the pictures."""
    patient = pseudonym(volume.identity, key) if volume.identity else ""
    day = None
    if patient and volume.acquired:
        shift = int.from_bytes(hmac.digest(key, f"day {patient}".encode(), "sha256")[:8], "big") % _MOST_DAYS
        day = volume.acquired.toordinal() + shift
    axial, lateral, spacing = (
        float(size) if np.isfinite(size) and size > 0 else None for size in (*volume.pixel_um, volume.spacing_um)
    )
    return {
        "patient": patient,
        "eye": volume.eye,
        "device": device_name(volume),
        "day": day,
        "axial_um": axial,
        "lateral_um": lateral,
        "spacing_um": spacing,
        "fovea": int(volume.fovea[0]) if volume.fovea else None,
    }


def _open(place: Path) -> list[Unpacked] | None:
    """The volumes of an unpacked group; None where there is none, or a damaged or an older one."""
    if not place.is_dir():
        return None
    try:
        about = read_json(check_regular(place / "about.json"))
        if about["version"] != VERSION:
            return None
        volumes = []
        for entry in about["volumes"]:
            pictures = tuple(place / Path(name).name for name in entry.pop("pictures"))
            volumes.append(Unpacked(pictures, **entry))
        is_whole = len(os.listdir(place)) == 1 + sum(len(volume.pictures) for volume in volumes)
        return volumes if is_whole and volumes else None
    except Exception:  # damaged JSON holds anything
        return None


def _key(group: Sequence[Path], key: bytes) -> str:
    """Of the files as they are now. Keyed: a plain hash of a path could be found by trying names."""
    content = hmac.new(key, repr(VERSION).encode(), hashlib.sha256)
    for file in (*group, *(owned for path in group for owned in owned_files(path))):
        try:
            status = os.stat(file)
            stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:
            stamp = (-1, -1, -1)
        content.update(b"\0" + os.fsencode(os.path.realpath(file)) + repr(stamp).encode())
    return content.hexdigest()[:20]


if __name__ == "__main__":
    work(lambda job: _unpack(**job))
