"""Volumes of every format read as they were written, or are refused in one line that tells nothing of the patient."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pydicom
import pytest
from conftest import REAL_SCANS, REPOSITORY
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1
from volume_files import (
    ACQUIRED,
    AXIAL,
    BORN,
    FIRST,
    LAST,
    LATERAL,
    NAMES,
    NUMBER,
    SECRETS,
    SPACING,
    dicom,
    reflectivity,
    scans,
    values_of,
    write,
    write_cirrus,
    write_dicom,
    write_e2e,
    write_nifti,
    write_optovue,
    write_tiff,
    write_topcon,
    write_vol,
    write_xml,
)

from dino_oct.data.decode import BadScan
from dino_oct.data.volumes import (
    CHECKED_SUFFIXES,
    VOLUME_SUFFIXES,
    Volume,
    group_series,
    holds_volume,
    is_volume,
    owned_files,
    read_volumes,
)
from dino_oct.data.volumes.heidelberg import show_reflectivity

SAMPLES = REAL_SCANS / "clinic-formats"
DEVICES = {"raw.vol": "R", "export.xml": "R", "native.dcm": "L", "rle.dcm": "L", "packed.fda": "L", "raw.fda": "L",
           "raw.fds": "L", "base.e2e": "L"}  # fmt: skip
TOLERANCE = {"jpeg.dcm": 12, "base.e2e": 1, "raw.vol": 1}  # JPEG is lossy; 10 bits of mantissa; a logarithm undone

needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no sample files at {SAMPLES}")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each format, in a folder of its own."""
    return {name: write(tmp_path_factory.mktemp("volume"), name, values_of(name)) for name in NAMES}


def read_one(path) -> Volume:
    (volume,) = read_volumes(path)
    return volume


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_format_reads_as_it_was_written(files, name):
    volume = read_one(files[name])
    assert volume.scans.shape == values_of(name).shape
    assert np.abs(volume.scans.astype(float) - values_of(name)).max() <= TOLERANCE.get(name, 0)
    deep = {"raw.fda": np.uint16, "raw.fds": np.uint16, "bioptigen.OCT": np.uint16, "optovue.OCT": np.float32}
    assert volume.scans.dtype == deep.get(name, np.uint8)
    assert holds_volume(files[name])


@pytest.mark.parametrize("name", DEVICES)
def test_headers_of_devices_say_who_which_eye_when_and_how_large(files, name):
    volume = read_one(files[name])
    assert NUMBER in volume.identity
    if name != "raw.vol":  # has no names
        assert LAST in volume.identity
        assert FIRST in volume.identity
    assert volume.eye == DEVICES[name]
    assert volume.acquired.replace(microsecond=0) == ACQUIRED
    assert volume.device
    if name != "base.e2e":  # has no lateral size in micrometres
        np.testing.assert_allclose((*volume.pixel_um, volume.spacing_um), (AXIAL, LATERAL, SPACING), rtol=1e-3)
    else:
        assert volume.pixel_um[0] == pytest.approx(AXIAL, rel=1e-3)


def test_a_birth_date_tells_two_patients_of_one_number_apart(tmp_path):
    write_vol(tmp_path / "a.vol", scans())
    write_vol(tmp_path / "b.vol", scans(), born=BORN.replace(day=13))
    assert read_one(tmp_path / "a.vol").identity != read_one(tmp_path / "b.vol").identity


def test_names_say_what_headers_do_not(tmp_path):
    volume = read_one(write_cirrus(tmp_path, values_of("cube.img")))
    assert (volume.identity, volume.eye, volume.acquired) == (NUMBER, "L", ACQUIRED)
    np.testing.assert_allclose((*volume.pixel_um, volume.spacing_um), (2000 / 1024, 6000 / 50, 6000 / 3))


@pytest.mark.parametrize("name", ["stack.nii", "stack.nii.gz"])
def test_nifti_sizes_count_where_they_are_given(files, name, tmp_path):
    volume = read_one(files[name])
    np.testing.assert_allclose((*volume.pixel_um, volume.spacing_um), (AXIAL, LATERAL, SPACING), rtol=1e-5)
    import nibabel

    nibabel.Nifti1Image(scans().transpose(2, 1, 0), np.eye(4)).to_filename(tmp_path / "unknown.nii")
    assert np.isnan(read_one(tmp_path / "unknown.nii").pixel_um).all()


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
@pytest.mark.parametrize("name", ["stack.npy", "stack.npz", "stack.mat", "stack.nii", "pages.tif"])
def test_deep_values_stay_as_they_are(tmp_path, name, kind):
    values = scans().astype(kind) * 100
    volume = read_one(write(tmp_path, name, values))
    assert volume.scans.dtype == kind
    np.testing.assert_array_equal(volume.scans, values)


@pytest.mark.parametrize(("syntax", "bits"), [(JPEG2000Lossless, 16), (None, 16)])
def test_deep_dicom(tmp_path, syntax, bits):
    values = scans().astype(np.uint16) * 200
    more = {"syntax": syntax} if syntax else {}
    write_dicom(tmp_path / "a.dcm", values, **more)
    volume = read_one(tmp_path / "a.dcm")
    assert volume.scans.dtype == np.uint16
    np.testing.assert_array_equal(volume.scans, values)


def test_dicom_whose_white_is_zero_is_turned(tmp_path):
    write_dicom(tmp_path / "a.dcm", 255 - scans(), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_one(tmp_path / "a.dcm").scans, scans())


def test_a_tiff_whose_white_is_zero_is_turned(tmp_path):
    write_tiff(tmp_path / "a.tif", 65535 - scans().astype(np.uint16), tiffinfo={262: 0})
    np.testing.assert_array_equal(read_one(tmp_path / "a.tif").scans, scans())


def test_reflectivity_without_a_value_is_black():
    shown = show_reflectivity(np.array([[np.finfo(np.float32).max, np.nan, -1.0, np.inf, 1.0, 0.1]], np.float32))
    assert shown.tolist()[0][:5] == [0, 0, 0, 0, 255]
    assert 0 < shown[0, 5] < 255


# ---- the libraries' own reading --------------------------------------------------------------------------------------


def test_raw_exports_agree_with_eyepy(files):
    he = pytest.importorskip("eyepy.io")
    volume = he.HeVolReader(files["raw.vol"]).volume
    own = read_one(files["raw.vol"])
    np.testing.assert_array_equal(own.scans, volume.data)
    assert own.pixel_um == (1000 * volume.scale_y, 1000 * volume.scale_x)
    assert own.acquired.isoformat() == volume.meta["exam_time"]


def test_xml_exports_agree_with_eyepy(files):
    he = pytest.importorskip("eyepy.io")
    volume = he.HeXmlReader(files["export.xml"]).volume
    own = read_one(files["export.xml"])
    np.testing.assert_array_equal(own.scans, volume.data)
    assert own.spacing_um == pytest.approx(1000 * volume.scale_z)


def test_both_libraries_read_an_e2e_file_alike(files, monkeypatch):
    from dino_oct.data.volumes import converted

    ours = {name: getattr(converted, name)(files["base.e2e"])[0] for name in ("_by_eyepy", "_by_oct_converter")}
    first, second = ours.values()
    assert np.abs(first.scans.astype(int) - second.scans).max() <= 1
    assert (first.eye, first.device) == (second.eye, second.device)
    assert NUMBER in second.identity
    monkeypatch.setattr(converted, "_by_eyepy", lambda path: 1 / 0)
    np.testing.assert_array_equal(read_one(files["base.e2e"]).scans, second.scans)


def test_bioptigen_agrees_with_oct_converter(files):
    readers = pytest.importorskip("oct_converter.readers")
    frames = readers.BOCT(files["bioptigen.OCT"]).read_oct_volume()
    np.testing.assert_array_equal(read_one(files["bioptigen.OCT"]).scans[1], frames[1].volume[0].T)


def test_optovue_agrees_with_oct_converter(files):
    readers = pytest.importorskip("oct_converter.readers")
    (volume,) = readers.POCT(files["optovue.OCT"]).read_oct_volume()
    np.testing.assert_array_equal(read_one(files["optovue.OCT"]).scans, np.stack(volume.volume))


@pytest.mark.parametrize("name", ["native.dcm", "rle.dcm", "jpeg2000.dcm", "jpeg.dcm"])
def test_dicom_agrees_with_pydicom(files, name):
    plugins = {"jpeg.dcm": "pillow", "jpeg2000.dcm": "pylibjpeg"}
    expected = pydicom.pixels.pixel_array(files[name], decoding_plugin=plugins.get(name, ""))
    np.testing.assert_array_equal(read_one(files[name]).scans, expected)


# ---- series, groups, what belongs to a volume ------------------------------------------------------------------------


def write_series(folder, values, order, by):
    for i, n in enumerate(order):
        position = {"ImagePositionPatient": [0, 0, 0.05 * n]} if by == "position" else {}
        number = {"InstanceNumber": i if by == "position" else n}
        write_dicom(folder / f"{i}.dcm", values[n : n + 1], **position, **number)


@pytest.mark.parametrize("by", ["position", "number"])
def test_files_of_one_series_are_one_volume_in_order(tmp_path, by):
    write_series(tmp_path, scans(4), [2, 0, 3, 1], by)
    write_dicom(tmp_path / "many.dcm", scans())
    write_dicom(tmp_path / "other.dcm", scans()[:1], SeriesInstanceUID="9.9")
    (tmp_path / "x.npy").write_bytes(b"nothing")
    files = sorted(tmp_path.iterdir())
    groups = group_series(files)
    assert [len(group) for group in groups] == [4, 1, 1, 1]
    (volume,) = read_volumes(groups[0])
    np.testing.assert_array_equal(volume.scans, scans(4))
    if by == "position":
        assert volume.spacing_um == pytest.approx(50)


def test_scans_of_a_series_that_differ_in_size_are_refused(tmp_path):
    write_dicom(tmp_path / "a.dcm", scans()[:1])
    write_dicom(tmp_path / "b.dcm", scans(1, 41, 50))
    assert len(group_series(sorted(tmp_path.iterdir()))) == 2
    with pytest.raises(BadScan, match="differ in size"):
        read_volumes(sorted(tmp_path.iterdir()))


def test_names_alone_tell_volumes_and_nothing_is_opened(tmp_path, monkeypatch):
    (tmp_path / "disc" / "A").mkdir(parents=True)
    for name in ("disc/DICOMDIR", "disc/A/IM0001", "disc/A/1.2.3", "disc/A/notes.txt", "IM0001"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("a file was opened"))
    for suffix in VOLUME_SUFFIXES:
        assert is_volume(f"x{suffix.upper()}")
    assert not any(is_volume(f"x{suffix}") for suffix in (*CHECKED_SUFFIXES, ".jpeg", ".png", ".txt", ""))
    volumes = [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file() and is_volume(path)]
    assert sorted(volumes) == ["1.2.3", "IM0001"]
    assert not is_volume(tmp_path / "IM0001")  # no DICOMDIR above


def test_headers_tell_volumes_where_names_do_not(tmp_path):
    Image.fromarray(scans()[0]).save(tmp_path / "picture.tif")
    np.save(tmp_path / "features.npy", np.zeros((100, 384), np.float32))
    np.savez(tmp_path / "layers.npz", rows=np.zeros((24, 8, 64), np.float32), names=np.array(["a"]))
    (tmp_path / "boxes.xml").write_text("<annotation/>")
    (tmp_path / "damaged.tif").write_bytes(b"II*\0junk")
    (tmp_path / "damaged.mat").write_bytes(b"junk" * 100)
    (tmp_path / "damaged.npz").write_bytes(b"PK\3\4junk")
    os.mkfifo(tmp_path / "pipe.npy")
    assert [path.name for path in tmp_path.iterdir() if holds_volume(path)] == []


def test_a_file_without_suffix_below_a_dicomdir_is_read(tmp_path):
    write_dicom(tmp_path / "x.dcm", scans())
    (tmp_path / "DICOMDIR").write_bytes(b"")
    shutil.move(tmp_path / "x.dcm", tmp_path / "IM1")
    assert is_volume(tmp_path / "IM1")
    np.testing.assert_array_equal(read_one(tmp_path / "IM1").scans, scans())


def test_pictures_of_an_xml_export_belong_to_it(files):
    owned = {path.name for path in owned_files(files["export.xml"])}
    assert owned == {"B0.tif", "B1.tif", "B2.tif", "NIR.tif"}
    assert [path.name for path in owned_files(files["optovue.OCT"])] == ["optovue.txt"]
    assert owned_files(files["raw.vol"]) == []


@pytest.mark.parametrize("url", ["../", "/", "..\\..\\"])
def test_an_xml_export_opens_nothing_outside_its_folder(tmp_path, url):
    (tmp_path / "export").mkdir()
    Image.fromarray(scans()[0]).save(tmp_path / "B0.tif")
    write_xml(tmp_path / "export" / "x.xml", scans(), url=url)
    (tmp_path / "export" / "B0.tif").unlink()
    with pytest.raises(BadScan, match="1 of the 3 pictures that it names are missing"):
        read_volumes(tmp_path / "export" / "x.xml")


def test_xml_with_entities_is_refused(tmp_path):
    write_xml(tmp_path / "x.xml", scans())
    text = (tmp_path / "x.xml").read_text()
    (tmp_path / "x.xml").write_text(text.replace("<HEDX>", '<!DOCTYPE HEDX [<!ENTITY a "aaaa">]><HEDX>'))
    with pytest.raises(BadScan, match="entities"):
        read_volumes(tmp_path / "x.xml")
    assert owned_files(tmp_path / "x.xml") == []


# ---- damaged and hostile files ---------------------------------------------------------------------------------------


def read_or_refuse(path) -> str:
    """What a refusal says, or nothing where the volume is sound."""
    volumes, reason = [], ""
    try:
        volumes = read_volumes(path)
    except BadScan as refused:
        reason = str(refused)
    assert len(reason.splitlines()) == (0 if volumes else 1)
    assert not [secret for secret in SECRETS if secret in reason]
    for volume in volumes:
        assert volume.scans.ndim == 3
        assert volume.scans.dtype in (np.uint8, np.uint16, np.float32)
        assert not [secret for secret in SECRETS if secret in repr(volume)]
    return reason


@pytest.mark.parametrize("name", NAMES)
def test_truncated_files_are_refused(files, name, tmp_path, capfd):
    path = tmp_path / files[name].name
    shutil.copytree(files[name].parent, tmp_path, dirs_exist_ok=True)
    content = path.read_bytes()
    refused = []
    for share in (0, 0.01, 0.3, 0.6, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        refused.append(read_or_refuse(path))
    assert all(refused), refused
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bytes_end_in_a_refusal_or_a_volume(files, name, tmp_path, capfd):
    path = tmp_path / files[name].name
    shutil.copytree(files[name].parent, tmp_path, dirs_exist_ok=True)
    content, rng = path.read_bytes(), np.random.default_rng(1)
    outcomes = set()
    for turn in range(6 if name == "base.e2e" else 40):
        damaged = bytearray(content)
        reach = len(content) if turn % 2 else min(len(content), 2400)  # headers matter most
        for place in rng.integers(0, reach, 1 + turn % 7):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        outcomes.add(bool(read_or_refuse(path)))
    assert outcomes
    assert capfd.readouterr() == ("", "")


def set_bytes(path, place, value):
    content = bytearray(path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(content)


def huge_npz(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (9000, 9000, 9000)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scans.npy", header.getvalue() + bytes(100))


HUGE = {
    "a.vol": lambda path: (write_vol(path, scans()), set_bytes(path, 12, struct.pack("<3I", 60000, 60000, 60000))),
    "a.fda": lambda path: (
        write_topcon(path, scans(), "@IMG_MOT_COMP_03"),
        set_bytes(path, path.read_bytes().index(b"@IMG_MOT") + 20, struct.pack("<2I", 50000, 50000)),
    ),
    "a.npz": huge_npz,
    "a.dcm": lambda path: write_dicom(path, scans(), NumberOfFrames=1_000_000),
    "a.nii": lambda path: (write_nifti(path, scans()), set_bytes(path, 42, struct.pack("<3h", 30000, 30000, 3000))),
    "a.npy": lambda path: (
        np.save(path, scans()),
        set_bytes(path, path.read_bytes().index(b"(3, 40, 50)"), b"(9999,9999)"[:11]),
    ),
    "a.OCT": lambda path: (write_optovue(path, scans()), path.with_suffix(".txt").write_text(
        "Window Height = 60000\nScan Length = 60000\nScan Usage = 60000\n")),
}  # fmt: skip


READ_ALL = """
import resource, sys
from dino_oct.data.volumes import read_volumes
for path in sys.argv[1:]:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = len(read_volumes(path))
    except Exception as error:
        outcome = type(error).__name__
    print(outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 20_000)
"""


def test_sizes_that_a_file_cannot_hold_take_no_memory_and_damage_fills_no_terminal(files, tmp_path):
    for name, make in HUGE.items():
        make(tmp_path / name)
    damaged, rng = [], np.random.default_rng(2)
    for name, file in files.items():
        for share in (0.5, 1):
            content = bytearray(file.read_bytes()[: int(share * file.stat().st_size)])
            for place in rng.integers(0, min(len(content), 2400), 3):
                content[place] = rng.integers(256)
            (tmp_path / f"{name}-{share}").mkdir()
            damaged.append(tmp_path / f"{name}-{share}" / file.name)
            damaged[-1].write_bytes(content)
    paths = [*files.values(), *damaged, *(tmp_path / name for name in HUGE)]  # huge ones last: libraries are imported
    command = [sys.executable, "-c", READ_ALL, *map(str, paths)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=250)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    assert [line.split()[0] for line in lines[: len(files)]] == ["1"] * len(files)
    assert {line.split()[0] for line in lines} == {"1", "BadScan"}
    assert lines[-len(HUGE) :] == ["BadScan True"] * len(HUGE)


@pytest.mark.timeout(20)
def test_directories_that_form_a_ring_end(tmp_path):
    write_e2e(tmp_path / "a.e2e", scans(), ring=True)
    with pytest.raises(BadScan, match="directories do not end"):
        read_volumes(tmp_path / "a.e2e")


def test_no_object_is_unpickled(tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    harm = np.empty((3, 40, 50), object)
    harm[...] = Harm()
    np.save(tmp_path / "a.npy", harm, allow_pickle=True)
    np.savez(tmp_path / "a.npz", scans=harm)
    for name in ("a.npy", "a.npz"):
        shutil.rmtree(tmp_path / "harm", ignore_errors=True)
        assert read_or_refuse(tmp_path / name)
        assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: np.save(p, np.full((3, 40, 50), np.nan)), "not numbers"),
        (lambda p: np.save(p, np.full((3, 40, 50), -1)), "grey values from -1 to -1"),
        (lambda p: np.save(p, np.zeros((3, 40, 50), complex)), "not grey values"),
        (lambda p: np.save(p, np.zeros((40, 50))), "2 axes"),
        (lambda p: p.write_bytes(b""), "empty file"),
        (lambda p: p.mkdir(), "not a regular file"),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: None, "No such file"),
    ],
)
@pytest.mark.timeout(20)
def test_what_is_no_volume_is_refused_with_its_reason(tmp_path, make, reason):
    make(tmp_path / "a.npy")
    with pytest.raises(BadScan, match=reason):
        read_volumes(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"Modality": "OP"}, "photographs"),
        ({"PixelData": None}, "without pixels"),
        ({"Rows": 41}, "do not fit|damaged"),
    ],
)
def test_dicom_without_b_scans_is_refused(tmp_path, more, reason):
    data = dicom(scans(), **{name: value for name, value in more.items() if value is not None})
    for name, value in more.items():
        if value is None:
            delattr(data, name)
    pydicom.dcmwrite(tmp_path / "a.dcm", data)
    with pytest.raises(BadScan, match=reason):
        read_volumes(tmp_path / "a.dcm")


def test_a_compression_that_is_not_read_is_named(tmp_path):
    data = dicom(scans(), JPEGBaseline8Bit)
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    pydicom.dcmwrite(tmp_path / "a.dcm", data)
    with pytest.raises(BadScan, match=r"JPEG Lossless.*not read; write it uncompressed"):
        read_volumes(tmp_path / "a.dcm")


@pytest.mark.parametrize("name", ["native.dcm", "base.e2e", "stack.nii", "bioptigen.OCT"])
def test_a_missing_library_is_named(files, name, monkeypatch):
    for library in ("pydicom", "eyepy", "oct_converter.readers", "nibabel"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BadScan, match=r"^needs pip install dino-oct\[clinic\]$"):
        read_volumes(files[name])


def test_the_package_imports_no_reader():
    code = "import dino_oct.data.volumes, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"pydicom", "eyepy", "oct_converter", "nibabel", "scipy", "cv2"} & set(json.loads(done.stdout))


def test_a_repr_tells_nothing_about_the_patient(files):
    for name in NAMES:
        assert not [secret for secret in (*SECRETS, "2019") if secret in repr(read_one(files[name]))], name


# ---- sample files ----------------------------------------------------------------------------------------------------


@needs_samples
def test_sample_raw_exports_agree_with_eyepy():
    he, utils = pytest.importorskip("eyepy.io"), pytest.importorskip("eyepy.core.utils")
    for path in (SAMPLES / "spectralis_a.vol", SAMPLES / "eyepy_dummy/heyex_vol/test_volume.vol"):
        parsed = he.HeVolReader(path).parsed_file
        expected = np.stack([utils.from_vol_intensity(scan.data.copy()) for scan in parsed.bscans])
        np.testing.assert_array_equal(read_one(path).scans, expected)
    with pytest.raises(BadScan, match="empty file"):
        read_volumes(SAMPLES / "empty_invalid.vol")


@needs_samples
def test_the_sample_xml_export_agrees_with_eyepy():
    he = pytest.importorskip("eyepy.io")
    (path,) = (SAMPLES / "eyepy_dummy" / "heyex_xml").rglob("*.xml")
    np.testing.assert_array_equal(read_one(path).scans, he.HeXmlReader(path).volume.data)
    assert len(owned_files(path)) == 11


@needs_samples
def test_sample_slices_without_class_or_syntax_read_alike():
    first, second = (read_one(SAMPLES / name).scans for name in ("slice_003.dcm", "fixed_slice_003.dcm"))
    assert first.shape == (1, 586, 879)
    np.testing.assert_array_equal(first, second)
    assert first.std() > 20


def test_reflectivity_of_the_tests_is_what_a_viewer_shows_as_the_scans():
    assert np.abs(show_reflectivity(reflectivity(scans())[0]).astype(int) - scans()[0]).max() <= 1
