"""DICOM: multi-frame ophthalmic tomography, and series of one B-scan a file.

Every compression is given to one named decoder: Pillow for baseline JPEG, OpenJPEG (pylibjpeg-openjpeg) for JPEG 2000,
pydicom for RLE. Others, lossless JPEG among them, are named in the refusal.
"""

import datetime
import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.data.decode import BadScan
from dino_oct.data.volumes.volume import Volume, check_size, eye_of, join_identity, library, moment, silence, stack

_IMPLICIT, _EXPLICIT, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_DECODERS = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG baseline
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000, lossless
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
}
_NO_TOMOGRAPHY = {"OP": "photographs of the fundus", "OPM": "maps", "DOC": "a document", "SR": "a report"}
_DICOMDIR, _DEEPEST = "DICOMDIR", 4  # folders between it and a file
_HEADER = ("SeriesInstanceUID", "NumberOfFrames", "Rows", "Columns", "InstanceNumber", "ImagePositionPatient")
_NAME = re.compile(r"^[\w.-]+$")


def may_be_dicom(path: Path) -> bool:
    """Whether a name without suffix lies below a DICOMDIR, as on media of clinics; no file is opened."""
    if (path.suffix and not path.suffix[1:].isdigit()) or path.name == _DICOMDIR or not _NAME.match(path.name):
        return False
    return any(os.path.isfile(folder / _DICOMDIR) for folder in (path.parent, *path.parent.parents)[:_DEEPEST])


def group_series(paths: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Files of one volume each: files with one B-scan of one DICOM series together, every other file alone.

    The B-scans of a series are in order of their positions, else of their instance numbers. Groups are in order of
    their first paths, as given; of each DICOM file the header is read.
    """
    groups: dict[Any, list[tuple[Path, Any]]] = defaultdict(list)
    for path in map(Path, paths):
        head = _single_header(path) if _is_named_dicom(path) else None
        key = (path.parent, head.SeriesInstanceUID, head.Rows, head.Columns) if head is not None else path
        groups[key].append((path, head))
    return [_ordered(group) if len(group) > 1 else (group[0][0],) for group in groups.values()]


def beside(paths: Iterable[Path]) -> set[Path]:
    """DICOM files in the folders of some, which may be of their series."""
    folders = {path.parent for path in paths if _is_named_dicom(path)}
    return {path for folder in folders if folder.is_dir() for path in folder.iterdir() if _is_named_dicom(path)}


def _is_named_dicom(path: Path) -> bool:
    return path.suffix.lower() in (".dcm", ".dicom") or may_be_dicom(path)


def read_dicom(path: Path) -> list[Volume]:
    """The frames of one file: uint8, or uint16 where it has more than 8 bits."""
    data = _open(path)
    return [_volume(data, _frames(path, data))]


def read_series(paths: Sequence[Path]) -> list[Volume]:
    """Files of one B-scan each, in this order, as one volume (see ``group_series``)."""
    scans, positions, first = [], [], None
    for path in paths:
        data = _open(path)
        scans += list(_frames(path, data))
        positions.append(_position(data))
        first = data if first is None else first
    volume = _volume(first, scans)
    if len(paths) == len(scans) > 1 and all(position is not None for position in positions):
        steps = np.linalg.norm(np.diff(np.array(positions), axis=0), axis=1)
        return [_with_spacing(volume, 1000 * float(np.median(steps)))]
    return [volume]


def _open(path: Path) -> Any:
    pydicom = _pydicom()
    with silence():
        with path.open("rb") as file:
            is_dicom = file.read(132)[128:] == b"DICM"
        if is_dicom:
            meta = pydicom.filereader.read_file_meta_info(path)
            if str(meta.get("TransferSyntaxUID", "")) == "1.2.840.10008.1.2.1.99":
                raise BadScan("deflated DICOM is not read; write it uncompressed")
        data = pydicom.dcmread(path, force=True)
        if not any(keyword in data for keyword in ("SOPInstanceUID", "SOPClassUID", "PixelData", "StudyInstanceUID")):
            raise BadScan("no DICOM file")
        kind = str(data.get("Modality", ""))
        if kind in _NO_TOMOGRAPHY:
            raise BadScan(f"DICOM with {_NO_TOMOGRAPHY[kind]} ({kind}), no B-scans")
        if "PixelData" not in data:
            raise BadScan("DICOM without pixels")
        syntax = getattr(data.file_meta, "TransferSyntaxUID", None) if hasattr(data, "file_meta") else None
        if not syntax:  # as it was parsed
            is_implicit, is_little = data.original_encoding
            guess = _IMPLICIT if is_implicit else _EXPLICIT if is_little else _BIG
            data.file_meta = getattr(data, "file_meta", None) or pydicom.dataset.FileMetaDataset()
            data.file_meta.TransferSyntaxUID = pydicom.uid.UID(guess)
    return data


def _frames(path: Path, data: Any) -> Iterator[np.ndarray]:
    """Grey frames; their size is checked first, and nothing is decoded but by the decoder of the table."""
    pydicom = _pydicom()
    syntax = data.file_meta.TransferSyntaxUID
    frames = int(data.get("NumberOfFrames") or 1)
    height, width, bits = int(data.Rows), int(data.Columns), int(data.get("BitsAllocated", 0))
    samples = int(data.get("SamplesPerPixel", 1))
    if bits not in (8, 16) or samples not in (1, 3):
        raise BadScan(f"pixels of {samples} x {bits} bits; expected grey or colour of 8 or 16 bits")
    check_size(path, frames, height, width, samples * bits // 8 if not syntax.is_compressed else 0)
    if syntax.is_compressed and str(syntax) not in _DECODERS:
        raise BadScan(f"compressed as {syntax.name}, which is not read; write it uncompressed or as JPEG 2000")
    plugin = _DECODERS.get(str(syntax), "")
    if plugin == "pylibjpeg":
        library("openjpeg")
    is_inverted = data.get("PhotometricInterpretation") == "MONOCHROME1"
    white = (1 << int(data.get("BitsStored", bits))) - 1
    count = 0
    for frame in pydicom.pixels.iter_pixels(data, raw=False, decoding_plugin=plugin):
        if frame.shape[:2] != (height, width):
            raise BadScan("a frame has another size than the header says")
        if frame.ndim == 3:
            frame = np.rint(frame @ np.array([0.299, 0.587, 0.114])).astype(frame.dtype)
        yield white - np.minimum(frame, white) if is_inverted else frame
        count += 1
    if count != frames:
        raise BadScan(f"truncated: {count} of {frames} frames")


def _volume(data: Any, frames: Iterable[np.ndarray]) -> Volume:
    measures = _measures(data)
    axial, lateral = (float("nan"), float("nan"))
    if len(spacing := measures.get("PixelSpacing") or data.get("PixelSpacing") or ()) == 2:
        axial, lateral = (_micrometres(value) for value in spacing)
    scans = stack(frames)
    step = measures.get("SpacingBetweenSlices") or data.get("SpacingBetweenSlices")
    step = step or measures.get("SliceThickness") or data.get("SliceThickness")
    words = " ".join(str(data.get(word) or "") for word in ("Manufacturer", "ManufacturerModelName")).split()
    return Volume(
        scans,
        identity=join_identity(data.get("PatientID"), data.get("PatientName"), data.get("PatientBirthDate")),
        eye=eye_of(data.get("ImageLaterality") or data.get("Laterality")),
        acquired=_acquired(data),
        device=" ".join(dict.fromkeys(words)),
        pixel_um=(axial, lateral),
        spacing_um=_micrometres(step) if len(scans) > 1 else float("nan"),
    )


def _measures(data: Any) -> Any:
    """Sizes of all frames of a multi-frame object, or nothing."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (data.get(groups) or [])[:1]:
            for measures in (group.get("PixelMeasuresSequence") or [])[:1]:
                return measures
    return {}


def _acquired(data: Any) -> datetime.datetime | None:
    texts = [str(data.get("AcquisitionDateTime") or "")]
    for kind in ("Acquisition", "Content", "Series", "Study"):
        texts.append(str(data.get(f"{kind}Date") or "") + str(data.get(f"{kind}Time") or ""))
    for text in texts:
        if match := re.match(r"(\d{4})(\d{2})(\d{2})(?:(\d{2})(\d{2})(\d{2}))?", text):
            return moment(*filter(None, match.groups()))
    return None


def _single_header(path: Path) -> Any:
    """Header of a file with one B-scan of a series; None for any other."""
    pydicom = _pydicom()
    try:
        with silence():
            head = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(_HEADER))
            is_single = head.get("SeriesInstanceUID") and int(head.get("NumberOfFrames") or 1) == 1
            return head if is_single and "Rows" in head and "Columns" in head else None
    except Exception:  # pydicom raises almost anything on damaged files; reading says why
        return None


def _ordered(group: list[tuple[Path, Any]]) -> tuple[Path, ...]:
    positions = [_position(head) for _, head in group]
    if all(position is not None for position in positions) and len(np.unique(positions, axis=0)) == len(group):
        axis = int(np.argmax(np.ptp(positions, axis=0)))
        keys = [position[axis] for position in positions]
    else:
        keys = [_number(head) for _, head in group]
    order = sorted(range(len(group)), key=lambda i: (keys[i], str(group[i][0])))
    return tuple(group[i][0] for i in order)


def _position(data: Any) -> tuple[float, ...] | None:
    try:
        position = tuple(float(value) for value in data.get("ImagePositionPatient") or ())
    except (TypeError, ValueError):
        return None
    return position if len(position) == 3 and np.isfinite(position).all() else None


def _number(data: Any) -> int:
    try:
        return int(data.get("InstanceNumber") or 0)
    except (TypeError, ValueError):
        return 0


def _with_spacing(volume: Volume, spacing_um: float) -> Volume:
    return replace(volume, spacing_um=spacing_um) if spacing_um > 0 else volume


def _micrometres(millimetres: Any) -> float:
    try:
        value = 1000 * float(millimetres)
    except (TypeError, ValueError):
        return float("nan")
    return value if 0 < value < 1e5 else float("nan")


def _pydicom() -> Any:
    pydicom = library("pydicom")
    library("pydicom.pixels")
    # Decoding runs outside of ``silence``, so that threads decode at once.
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return pydicom
