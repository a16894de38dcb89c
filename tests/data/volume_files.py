"""Small files of every format of volumes, written as their devices or libraries write them."""

import datetime
import io
import struct
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    OphthalmicTomographyImageStorage,
    RLELossless,
    generate_uid,
)
from scipy.io import savemat

# What must never leave a reader but in ``Volume.identity``.
NUMBER, LAST, FIRST, BORN = "PAT-471108", "Mustermannova", "Erikhilde", datetime.date(1964, 8, 12)
SECRETS = (NUMBER, LAST, FIRST, "1964", LAST.upper())
ACQUIRED = datetime.datetime(2019, 3, 4, 10, 20, 30)
AXIAL, LATERAL, SPACING = 3.87, 11.5, 60.0


def scans(slices=3, height=40, width=50, seed=0):
    """(S, H, W) uint8 that no flip, turn or change of order leaves as it was."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, height)[:, None] + np.linspace(0, 60, width)[None]
    return (ramp + 20 * np.arange(slices)[:, None, None] + rng.integers(0, 20, (slices, height, width))).astype(
        np.uint8
    )


def write_tiff(path: Path, values, **options):
    first, *others = [Image.fromarray(scan) for scan in values]
    first.save(path, save_all=True, append_images=others, **options)


def write_nifti(path: Path, values):
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), np.eye(4))
    image.header.set_xyzt_units("mm")
    image.header["pixdim"][1:4] = LATERAL / 1000, AXIAL / 1000, SPACING / 1000
    image.to_filename(path)


def dicom(values, syntax=ExplicitVRLittleEndian, **more):
    """A data set of ophthalmic tomography with frames, compressed as a transfer syntax says."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = OphthalmicTomographyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientID, data.PatientName, data.PatientBirthDate = NUMBER, f"{LAST}^{FIRST}", f"{BORN:%Y%m%d}"
    data.Modality, data.ImageLaterality, data.SeriesInstanceUID = "OPT", "L", "1.2.3.4"
    data.Manufacturer, data.ManufacturerModelName = "Maker", "Model 3"
    data.AcquisitionDateTime = f"{ACQUIRED:%Y%m%d%H%M%S}.000"
    measures, groups = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [AXIAL / 1000, LATERAL / 1000], SPACING / 1000
    groups.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [groups]
    data.NumberOfFrames, data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelData = values.tobytes()
    for name, value in more.items():
        setattr(data, name, value)
    if syntax == JPEGBaseline8Bit:
        frames = [io.BytesIO() for _ in values]
        for scan, frame in zip(values, frames, strict=True):
            Image.fromarray(scan).save(frame, "JPEG", quality=95)
        data.PixelData = encapsulate([frame.getvalue() for frame in frames])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = syntax
    elif syntax != ExplicitVRLittleEndian:
        data.compress(syntax, generate_instance_uid=False)
    return data


def write_dicom(path: Path, values, syntax=ExplicitVRLittleEndian, **more):
    pydicom.dcmwrite(path, dicom(values, syntax, **more), enforce_file_format=True)


def reflectivity(values):
    """What a raw export holds where HEYEX shows these grey values."""
    return (np.exp(values.astype(np.float64) / 255 * 8.285 - 8.3) - 2.44e-4).clip(0).astype("<f4")


def write_vol(path: Path, values, header_size=400, born=BORN):
    slices, height, width = values.shape
    days = (datetime.datetime.combine(born, datetime.time()) - datetime.datetime(1899, 12, 30)).days
    ticks = int((ACQUIRED - datetime.datetime(1601, 1, 1)).total_seconds()) * 10_000_000
    head = struct.pack(
        "<12s3I3d2I2dId4sQiI16s16sI24sdI24sd", b"HSF-OCT-103", width, slices, height, LATERAL / 1000, SPACING / 1000,
        AXIAL / 1000, 8, 6, 0.01, 0.01, 30, 1.5, b"OD", ticks, 3, header_size, b"1", b"", 7, NUMBER.encode(), days,
        1, b"", 0.0,
    )  # fmt: skip
    parts = [head.ljust(2048, b"\0"), bytes(8 * 6)]
    for i, scan in enumerate(reflectivity(values)):
        ends = (0.0, i * SPACING / 1000, 1.0, i * SPACING / 1000)
        part = struct.pack("<12sI4d3If", b"HSF-BS-103", header_size, *ends, 0, 256, 0, 30.0)
        parts += [part.ljust(header_size, b"\0"), scan.tobytes()]
    path.write_bytes(b"".join(parts))


def write_xml(path: Path, values, url="file:///\\\\server\\share\\", names=None):
    """A HEYEX XML export; its B-scans and a localizer as TIFF beside it."""
    names = names or [f"B{i}.tif" for i in range(len(values))]
    for name, scan in zip(names, values, strict=False):
        if "/" not in name:
            Image.fromarray(scan).save(path.parent / name)
    Image.fromarray(values[0]).save(path.parent / "NIR.tif")
    day = "<Date><Year>{:%Y}</Year><Month>{:%m}</Month><Day>{:%d}</Day></Date>"

    def image(name, kind, y):
        ends = "".join(
            f"<{end}><Coord><X>{x}</X><Y>{y}</Y></Coord></{end}>" for end, x in (("Start", "0.0"), ("End", "6.0"))
        )
        return (
            f"<Image><ImageType><Type>{kind}</Type></ImageType><AcquisitionTime><Time><Hour>10</Hour><Minute>20</Minute>"
            "<Second>30.00</Second><UTCBias>60</UTCBias></Time></AcquisitionTime><OphthalmicAcquisitionContext>"
            f"<Width>{values.shape[2]}</Width><Height>{values.shape[1]}</Height><Angle>30</Angle><Focus>1.0</Focus>"
            f"<ScaleX>{LATERAL / 1000}</ScaleX><ScaleY>{AXIAL / 1000}</ScaleY>{ends}<ImageQuality>30</ImageQuality>"
            f"</OphthalmicAcquisitionContext><ImageData><ExamURL>{url}{name}</ExamURL></ImageData>"
            "<Segmentation><NumSegmentations>0</NumSegmentations></Segmentation></Image>"
        )

    images = [image("NIR.tif", "LOCALIZER", 0.0)]
    images += [image(name, "OCT", i * SPACING / 1000) for i, name in enumerate(names)]
    path.write_text(
        "<?xml version='1.0' encoding='utf-8'?><HEDX><BODY><SWVersion><Version>6</Version></SWVersion><Patient>"
        f"<ID>5</ID><PatientID>{NUMBER}</PatientID><LastName>{LAST}</LastName><FirstNames>{FIRST}</FirstNames>"
        f"<Birthdate>{day.format(*[BORN] * 3)}</Birthdate><Study><StudyDate>{day.format(*[ACQUIRED] * 3)}</StudyDate>"
        f"<Series><ID>9</ID><Laterality>R</Laterality><ReferenceSeries><ID>8</ID><ExamDate>"
        f"{day.format(*[ACQUIRED] * 3)}</ExamDate></ReferenceSeries><GeneralEquipment><Manufacturer>Heidelberg "
        "Engineering</Manufacturer><ManufacturerModelName>Spectralis</ManufacturerModelName></GeneralEquipment>"
        f"<ThicknessGrid><Type>0</Type></ThicknessGrid><ProgID>1</ProgID>{''.join(images)}</Series></Study></Patient>"
        "</BODY></HEDX>"
    )


def write_topcon(path: Path, values, kind="@IMG_JPEG"):
    """Packed (JPEG 2000, lossless) or raw 16-bit B-scans, with patient, capture, sizes and model."""
    slices, height, width = values.shape
    if kind == "@IMG_JPEG":
        content = struct.pack("<B6I", 2, 0, 0, width, height, slices, 0)
        for scan in values:
            packed = io.BytesIO()
            Image.fromarray(scan).save(packed, "JPEG2000")
            content += struct.pack("<I", len(packed.getvalue())) + packed.getvalue()
    else:
        pixels = values.astype("<u2").tobytes()
        content = struct.pack("<B4IBI", 2, width, height, 16, slices, 0, len(pixels)) + pixels
    birth = (BORN.year, BORN.month, BORN.day)
    patient = struct.pack("<32s32s32s8sB3H", NUMBER.encode(), FIRST.encode(), LAST.encode(), b"", 2, *birth)
    chunks = {
        "@PATIENT_INFO_02": patient.ljust(900, b"\0"),
        "@CAPTURE_INFO_02": struct.pack("<BBI100s6H", 1, 2, 0, b"", *ACQUIRED.timetuple()[:6]),
        "@PARAM_SCAN_04": struct.pack(
            "<3I5d2B", 0, 0, 0, width * LATERAL / 1000, slices * SPACING / 1000, AXIAL, 0, 0, 0, 0
        ),
        "@HW_INFO_03": b"3DOCT-2000".ljust(110, b"\0"),
        kind: content,
    }
    parts = [b"FOCT" + b"FDA" + struct.pack("<2I", 2, 1000)]
    for name, content in chunks.items():
        parts += [bytes([len(name)]), name.encode(), struct.pack("<I", len(content)), content]
    path.write_bytes(b"".join([*parts, b"\0"]))


def to_e2e_float(values):
    """Unsigned floats of 6 bits of exponent and 10 of mantissa as eyepy and oct-converter read them: the mantissa's
    lowest bit first."""
    mantissa, exponent = np.frexp(np.maximum(values, 1e-18))
    bits = ((2 * mantissa - 1) * 1024).astype(int)
    swapped = sum((bits >> i & 1) << 9 - i for i in range(10))
    return ((exponent + 62).clip(0, 63).astype(int) << 10 | swapped).astype("<u2")


def write_e2e(path: Path, values, ring=False):
    """One series with patient, eye and a B-scan a slice."""
    ticks = int((ACQUIRED - datetime.datetime(1601, 1, 1)).total_seconds()) * 10_000_000
    person = struct.pack("<31s66sI1s25s", FIRST.encode(), LAST.encode(), 19640812, b"F", NUMBER.encode())
    contents = [
        (9, -1, -1, 65535, person.ljust(131, b"\0")),
        (11, 1, -1, 65535, bytes(14) + b"L" + bytes(12)),
        (3, 1, -1, 65535, bytes(4) + b"L" + bytes(91)),
    ]
    for i, scan in enumerate(reflectivity(values)):
        height, width = scan.shape
        meta = struct.pack("<3I4fIffI", 0, height, width, 0, 0, 1, 1, 0, 0, AXIAL / 1000, 0).ljust(88, b"\0")
        meta = bytearray(meta + struct.pack("<Q", ticks)).ljust(220, b"\0")
        meta[72:76] = struct.pack("<I", 3)
        image = struct.pack("<5I", 20 + 2 * scan.size, 35652097, scan.size, height, width)
        contents += [
            (10004, 1, 2 * i, 65535, bytes(meta)),
            (1 << 30, 1, 2 * i, 1, image + to_e2e_float(scan).tobytes()),
        ]
    first = 36 + 52
    place = first + 52 + 44 * len(contents)
    entries, bodies = [], []
    for n, (kind, series, part, ind, content) in enumerate(contents):
        position = first + 52 + 44 * n
        ids = (77, -1 if series < 0 else 1, series, part)
        entries.append(struct.pack("<4I4i2H2I", position, place, len(content), 0, *ids, ind, 0, kind, 0))
        bodies.append(
            struct.pack("<12s5I4i2H2I", b"MDbData", 0, position, place, len(content), 0, *ids, ind, 0, kind, 0)
        )
        bodies.append(content)
        place += 60 + len(content)
    version = struct.pack("<12sI20s", b"CMDb", 100, bytes(20))
    main = struct.pack("<12sI20s4I", b"MDbMDir", 100, bytes(20), len(contents), first, 0, 0)
    head = struct.pack("<12sI20s4I", b"MDbDir", 100, bytes(20), len(contents), first, first if ring else 0, 0)
    path.write_bytes(b"".join([version, main, head, *entries, *bodies]))


def write_bioptigen(path: Path, values):
    slices, height, width = values.shape

    def record(key, content):
        return struct.pack("<I", len(key)) + key.encode() + struct.pack("<I", len(content)) + content

    def number(key, value):
        return record(key, struct.pack("<I", value))

    def real(key, value):
        return record(key, struct.pack("<d", value))

    parts = [struct.pack("<IH", 0x1234, 0), struct.pack("<I", 11), b"FRAMEHEADER", struct.pack("<I", 0)]
    parts += [number("FRAMECOUNT", slices), number("LINECOUNT", width), number("LINELENGTH", height)]
    parts += [number("SAMPLEFORMAT", 2), record("DESCRIPTION", b"x"), real("XMIN", 0), real("XMAX", 1)]
    parts += [record("XCAPTION", b"x"), real("YMIN", 0), real("YMAX", 1), record("YCAPTION", b"y")]
    parts += [number("SCANTYPE", 1), *(real(key, 1) for key in ("SCANDEPTH", "SCANLENGTH", "AZSCANLENGTH"))]
    parts += [real(key, 1) for key in ("ELSCANLENGTH", "OBJECTDISTANCE", "SCANANGLE")]
    parts += [
        number("SCANS", 1),
        number("FRAMES", slices),
        number("DOPPLERFLAG", 0),
        record("CONFIG", b"none"),
        bytes(4),
    ]
    moments = struct.pack("<8H", 2019, 3, 1, 4, 10, 20, 30, 0)
    for scan in values:
        pixels = scan.T.astype("<u2").tobytes()  # A-scan after A-scan
        parts += [struct.pack("<I", 9), b"FRAMEDATA", struct.pack("<I", 0), record("FRAMEDATETIME", moments)]
        parts += [real("FRAMETIMESTAMP", 0), number("FRAMELINES", width), record("FRAMESAMPLES", pixels), bytes(4)]
    path.write_bytes(b"".join(parts))


def write_optovue(path: Path, values):
    slices, height, width = values.shape
    path.write_bytes(values[:, ::-1].transpose(0, 2, 1).astype("<f4").tobytes())
    path.with_suffix(".txt").write_text(
        f"Eye Scanned = OS\nWindow Height = {height}\nScan Length = {width} mm\nScan Usage = {slices}\n"
    )


CIRRUS = "{who}_Macular Cube {width}x{slices}_3-4-2019_10-20-30_OS_sn123_cube_z.img"


def write_cirrus(folder: Path, values, who=NUMBER) -> Path:
    slices, _, width = values.shape
    path = folder / CIRRUS.format(who=who, width=width, slices=slices)
    path.write_bytes(values.tobytes()[::-1])
    return path


WRITERS = {
    "pages.tif": write_tiff,
    "stack.npy": np.save,
    "stack.npz": lambda path, values: np.savez_compressed(path, scans=values, other=np.zeros((3, 4, 5))),
    "stack.mat": lambda path, values: savemat(path, {"images": values.transpose(1, 2, 0)}, do_compression=True),
    "stack.nii": write_nifti,
    "stack.nii.gz": write_nifti,
    "native.dcm": write_dicom,
    "rle.dcm": lambda path, values: write_dicom(path, values, RLELossless),
    "jpeg2000.dcm": lambda path, values: write_dicom(path, values, JPEG2000Lossless),
    "jpeg.dcm": lambda path, values: write_dicom(path, values, JPEGBaseline8Bit),
    "raw.vol": write_vol,
    "export.xml": write_xml,
    "packed.fda": write_topcon,
    "raw.fda": lambda path, values: write_topcon(path, values, "@IMG_MOT_COMP_03"),
    "raw.fds": lambda path, values: write_topcon(path, values, "@IMG_SCAN_03"),
    "base.e2e": write_e2e,
    "bioptigen.OCT": write_bioptigen,
    "optovue.OCT": write_optovue,
}

NAMES = (*WRITERS, "cube.img")


def values_of(name: str):
    """B-scans that a file of this format can hold: Cirrus cubes have one height only."""
    return scans(height=1024) if name == "cube.img" else scans()


def write(folder: Path, name: str, values) -> Path:
    """Write a file of ``NAMES`` and return its path."""
    if name == "cube.img":  # its name says its size
        return write_cirrus(folder, values)
    WRITERS[name](folder / name, values)
    return folder / name
