"""Which files are volumes, and one door to all readers."""

import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dino_oct.data.decode import BadScan
from dino_oct.data.volumes import arrays, converted, dicom, heidelberg, raw, topcon
from dino_oct.data.volumes.volume import Volume


class _Format(NamedTuple):
    name: str
    read: Callable[[Path], list[Volume]]
    holds: Callable[[Path], bool] | None = None  # a look into the header, where others use the suffix too


def _read_oct(path: Path) -> list[Volume]:
    return converted.read_bioptigen(path) if converted.is_bioptigen(path) else raw.read_optovue(path)


_TIFF = _Format("TIFF", arrays.read_tiff, lambda path: arrays.count_pages(path) > 1)
_DICOM = _Format("DICOM file", dicom.read_dicom)
_FORMATS = {
    ".dcm": _DICOM,
    ".dicom": _DICOM,
    ".vol": _Format("Heidelberg raw export", heidelberg.read_vol),
    ".xml": _Format("HEYEX XML export", heidelberg.read_xml, heidelberg.is_heyex_xml),
    ".e2e": _Format("Heidelberg E2E file", converted.read_e2e),
    ".fda": _Format("Topcon file", topcon.read_topcon),
    ".fds": _Format("Topcon file", topcon.read_topcon),
    ".img": _Format("Cirrus cube", raw.read_cirrus),
    ".oct": _Format("Bioptigen or Optovue file", _read_oct),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".npy": _Format("NumPy array", arrays.read_npy, arrays.holds_stack),
    ".npz": _Format("NumPy archive", arrays.read_npz, arrays.holds_stack),
    ".mat": _Format("MATLAB file", arrays.read_mat, arrays.holds_stack),
    ".nii": _Format("NIfTI image", arrays.read_nifti),
    ".nii.gz": _Format("NIfTI image", arrays.read_nifti),
}

VOLUME_SUFFIXES = frozenset(suffix for suffix, kind in _FORMATS.items() if kind.holds is None)
"""Of files that are volumes, or nothing that is read."""
CHECKED_SUFFIXES = frozenset(_FORMATS) - VOLUME_SUFFIXES
"""Of files that may be volumes: their header says."""


def is_volume(path: str | Path) -> bool:
    """Whether a file's name alone says that it is a volume; no file is opened.

    A suffix of ``VOLUME_SUFFIXES`` in any case, or no suffix and a DICOMDIR in one of the folders above.
    """
    path = Path(path)
    return _suffix(path) in VOLUME_SUFFIXES or dicom.may_be_dicom(path)


def holds_volume(path: str | Path) -> bool:
    """Whether a file is a volume, by its name, or by its header where the name does not say (``CHECKED_SUFFIXES``)."""
    path = Path(path)
    if is_volume(path):
        return True
    kind = _FORMATS.get(_suffix(path))
    return kind is not None and kind.holds is not None and path.is_file() and kind.holds(path)


def owned_files(path: str | Path) -> list[Path]:
    """Files beside a volume that belong to it and are no scans of their own.

    The pictures that a HEYEX XML export names, localizers included, and the text of an Optovue file.
    """
    path = Path(path)
    match _suffix(path):
        case ".xml":
            return heidelberg.pictures_of(path)
        case ".oct":
            return [file for file in (raw.text_of(path),) if file.is_file()]
    return []


def read_volumes(path: str | Path | Sequence[str | Path]) -> list[Volume]:
    """All volumes of a file, or the one of several files of a DICOM series (``group_series``).

    No code runs from a file, no file is opened but the volume and what ``owned_files`` names, and sizes that a header
    claims are checked against the file.

    Raises:
        BadScan: empty, damaged, no B-scans, of a kind that is not read, or a library is missing; one line without the
            file's name and without anything from its header about the patient.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(item) for item in path]
    if not paths:
        raise BadScan("holds no B-scans")
    kind = _FORMATS.get(_suffix(paths[0])) or _DICOM
    try:
        for file in paths:
            _check_file(file)
        volumes = kind.read(paths[0]) if len(paths) == 1 else dicom.read_series(paths)
    except BadScan:
        raise
    except OSError as error:
        raise BadScan(f"cannot be read: {error.strerror or f'damaged, or no {kind.name}'}") from None
    except MemoryError:
        raise BadScan("too large for the memory of this machine") from None
    except Exception as error:
        # NumPy, pydicom, construct and others raise anything on damaged files. Their words may quote the header.
        what = "truncated or damaged" if isinstance(error, (EOFError, struct.error)) else "damaged"
        raise BadScan(f"{what}, or no {kind.name} ({type(error).__name__})") from None
    if not volumes:
        raise BadScan("holds no B-scans")
    return volumes


def _check_file(path: Path) -> None:
    status = os.stat(path)  # before it is opened: opening a pipe waits for a writer, a device may act
    if not stat.S_ISREG(status.st_mode):
        raise BadScan("not a regular file (a folder, pipe, socket or device)")
    if status.st_size == 0:
        raise BadScan("empty file")


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]
