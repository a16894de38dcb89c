"""Heidelberg Spectralis: raw exports (.vol) and HEYEX XML exports.

Both layouts are plain, and are read here, so that sizes are checked against the file first, no picture outside the
export's folder is opened, and no further library is needed. The raw layout is that of Heidelberg's "Spectralis viewing
module: special function: exporting raw data".
"""

import datetime
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from dino_oct.data.decode import BadScan, open_image
from dino_oct.data.volumes.volume import Volume, check_size, eye_of, grey, join_identity, moment, stack

DEVICE = "Heidelberg Spectralis"

_VOL = struct.Struct("<12s3I3d2I2dId4sQiI16s16sI24sd")
_VOL_HEADER, _BSCAN_HEADER = 2048, 256  # bytes; layer boundaries follow the latter
_BSCAN = struct.Struct("<12sI4d")
_TICK = 1e-7  # seconds, since 1601
_FIRST_DAY = datetime.datetime(1899, 12, 30)
_MOST_XML = 1 << 28  # bytes, most of them layer boundaries
_PARALLEL = 0.05  # share by which the distances of both ends may differ from each other


def read_vol(path: Path) -> list[Volume]:
    """A raw export: reflectivity as 32-bit floats, shown as uint8 as HEYEX shows it (``show_reflectivity``)."""
    with path.open("rb") as file:
        head = file.read(_VOL_HEADER)
        if not head.startswith(b"HSF-") and not head.startswith(b"ep-v"):
            raise BadScan("no Heidelberg raw export (HSF-OCT)")
        (_, width, slices, height, lateral, spacing, axial, slo_width, slo_height, _, _, _, _, side, ticks, _, _, _, _,
         number, patient, born) = _VOL.unpack_from(head)  # fmt: skip
        check_size(path, slices, height, width, 4)
        file.seek(_VOL_HEADER + slo_width * slo_height)
        scans, lines = np.empty((slices, height, width), np.uint8), []
        for scan in scans:
            part = file.read(_BSCAN_HEADER)
            _, header_size, *ends = _BSCAN.unpack_from(part)
            if header_size < _BSCAN_HEADER:
                raise BadScan("the header of a B-scan is damaged")
            file.seek(header_size - _BSCAN_HEADER, 1)
            values = np.frombuffer(file.read(4 * height * width), "<f4")
            scan[:] = show_reflectivity(values.reshape(height, width))
            lines.append(ends)
    name = _text(patient)
    birth = "" if not born or not np.isfinite(born) else f"{born:.0f}"
    return [
        Volume(
            scans,
            identity=join_identity(name if name.lower() != "unknown" else "", birth) or join_identity(number or ""),
            eye=eye_of(_text(side)),
            acquired=_since_1601(ticks),
            device=DEVICE,
            pixel_um=(_micrometres(axial), _micrometres(lateral)),
            spacing_um=_micrometres(spacing) if slices > 1 else float("nan"),
        )
    ]


def show_reflectivity(values: np.ndarray) -> np.ndarray:
    """Raw reflectivity of Heidelberg's exports as its viewer shows it, uint8.

    A logarithm between about 0 and 1, as eyepy (Morelle, https://github.com/MedVisBonn/eyepy) found it. Pixels without
    a value hold the largest float and are black; NaN and negative ones are black too.
    """
    values = np.where(np.isfinite(values) & (values >= 0) & (values < 3e38), values, 0).astype(np.float32)
    shown = np.where(values <= 1, (np.log(np.minimum(values, 1) + np.float32(2.44e-4)) + 8.3) / 8.285, 1)
    return np.rint(shown.clip(0, 1) * 255).astype(np.uint8)


def is_heyex_xml(path: Path) -> bool:
    """Whether an XML file is a HEYEX export, by its beginning."""
    try:
        with path.open("rb") as file:
            return b"<HEDX" in file.read(4096).replace(b"\0", b"")
    except OSError:
        return False


def read_xml(path: Path) -> list[Volume]:
    """A HEYEX XML export: a volume for each of its series, B-scans from the pictures beside it, as HEYEX shows them."""
    body = _body(path)
    volumes = []
    for study, series in _series(body):
        images = [_Image.of(image) for image in series.findall("Image") if image.findtext("ImageType/Type") == "OCT"]
        if not images:
            continue
        missing = [image for image in images if not _is_beside(path, image.file)]
        if missing:
            raise BadScan(f"{len(missing)} of the {len(images)} pictures that it names are missing")
        scans = []
        for image in images:
            with open_image(path.parent / image.file) as picture:
                if scans:  # the first one's size is that of all
                    check_size(path.parent / image.file, 1, *scans[0].shape)
                scans.append(grey(picture))
        maker = series.findtext("GeneralEquipment/Manufacturer") or ""
        model = series.findtext("GeneralEquipment/ManufacturerModelName") or ""
        volumes.append(
            Volume(
                stack(scans),
                identity=_identity(body),
                eye=eye_of(series.findtext("Laterality")),
                acquired=_acquired(study, series),
                device=" ".join(filter(None, (maker.replace(" Engineering", ""), model))) or DEVICE,
                pixel_um=(images[0].axial, images[0].lateral),
                spacing_um=_spacing([image.ends for image in images]),
            )
        )
    if not volumes:
        raise BadScan("holds no B-scans")
    return volumes


def pictures_of(path: Path) -> list[Path]:
    """Pictures beside a HEYEX XML export that belong to it, localizers included; none where it is damaged."""
    try:
        body = _body(path)
    except (BadScan, OSError, ElementTree.ParseError, ValueError, LookupError):
        return []
    names = {_file_name(element.text) for element in body.iter("ExamURL")}
    return sorted(path.parent / name for name in names if _is_beside(path, name))


class _Image(NamedTuple):
    """A B-scan of an XML export: its picture, pixel sizes in micrometres, and (x, y) of its ends in millimetres."""

    file: str
    axial: float
    lateral: float
    ends: tuple[float, float, float, float]

    @classmethod
    def of(cls, image: ElementTree.Element) -> "_Image":
        def number(tag: str) -> float:
            try:
                return float(image.findtext(f"OphthalmicAcquisitionContext/{tag}") or "nan")
            except ValueError:
                return float("nan")

        ends = tuple(number(f"{end}/Coord/{axis}") for end in ("Start", "End") for axis in "XY")
        file = _file_name(image.findtext("ImageData/ExamURL"))
        return cls(file, _micrometres(number("ScaleY")), _micrometres(number("ScaleX")), ends)


def _body(path: Path) -> ElementTree.Element:
    if path.stat().st_size > _MOST_XML:
        raise BadScan(f"too large for a HEYEX export: {path.stat().st_size >> 20} MB")
    content = path.read_bytes()
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", content.replace(b"\0", b"")):
        raise BadScan("XML with a document type or entities, which no HEYEX export has")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError:  # names in another encoding than the file says
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", content.decode("utf-8-sig", errors="replace")))
    body = root.find("BODY")
    if root.tag != "HEDX" or body is None:
        raise BadScan("no HEYEX export")
    return body


def _series(body: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, ElementTree.Element]]:
    for study in body.iterfind("Patient/Study"):
        for series in study.findall("Series"):
            yield study, series


def _file_name(url: str | None) -> str:
    """The last part of an address as HEYEX writes it: a path of the machine that exported."""
    return re.split(r"[\\/]", (url or "").strip())[-1]


def _is_beside(path: Path, name: str) -> bool:
    return name not in ("", ".", "..") and "\0" not in name and (path.parent / name).is_file()


def _identity(body: ElementTree.Element) -> str:
    parts = ("PatientID", "LastName", "FirstNames", *(f"Birthdate/Date/{part}" for part in ("Year", "Month", "Day")))
    texts = [body.findtext(f"Patient/{part}") for part in parts]
    return join_identity(*texts) or join_identity(body.findtext("Patient/ID"))


def _acquired(study: ElementTree.Element, series: ElementTree.Element) -> datetime.datetime | None:
    time = [series.findtext(f"Image/AcquisitionTime/Time/{part}") for part in ("Hour", "Minute", "Second")]
    for place in ("ExamDate/Date", "ReferenceSeries/ExamDate/Date"):
        day = [series.findtext(f"{place}/{part}") for part in ("Year", "Month", "Day")]
        if found := moment(*day, *time) or moment(*day):
            return found
    day = [study.findtext(f"StudyDate/Date/{part}") for part in ("Year", "Month", "Day")]
    return moment(*day, *time) or moment(*day)


def _spacing(ends: Sequence[tuple[float, ...]]) -> float:
    """Mean distance of neighbouring B-scans in micrometres; NaN where they are not parallel, as in a star."""
    if len(ends) < 2:
        return float("nan")
    steps = np.array([np.subtract(b, a) for a, b in itertools.pairwise(ends)])
    lengths = np.hypot(steps[:, ::2], steps[:, 1::2])  # (S - 1, start and end)
    is_parallel = np.ptp(lengths, axis=1).mean() <= _PARALLEL * lengths.mean()
    return 1000 * float(lengths.mean()) if is_parallel else float("nan")


def _since_1601(ticks: int) -> datetime.datetime | None:
    try:
        return datetime.datetime(1601, 1, 1) + datetime.timedelta(seconds=ticks * _TICK) if ticks else None
    except OverflowError:
        return None


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("latin-1").strip()


def _micrometres(millimetres: float) -> float:
    return 1000 * millimetres if 0 < millimetres < 100 else float("nan")
