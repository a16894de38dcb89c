"""An export holds every B-scan and a true table, and nothing that names a patient or a day."""

import csv
import datetime
import shutil

import numpy as np
import pytest
from PIL import Image
from volume_files import (
    BORN,
    NAMES,
    NUMBER,
    SECRETS,
    scans,
    values_of,
    write,
    write_cirrus,
    write_dicom,
    write_vol,
    write_xml,
)

from dino_oct.data.volumes.exporting import COLUMNS

DATES = ("2019", "20190304", "1964", "19640812", "08-12", "03-04")


def table(out):
    with (out / "scans.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A folder with a file of each format, each with the same patient where its header names one."""
    folder = tmp_path_factory.mktemp("clinic")
    for name in NAMES:
        (folder / name.replace(".", "_")).mkdir()
        write(folder / name.replace(".", "_"), name, values_of(name))
    return folder


def test_every_scan_is_written_and_nothing_names_the_patient(call, everything, tmp_path):
    done = call("dino_oct/data/export.py", everything, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "out")
    assert len(rows) == 3 * len(NAMES)
    assert tuple(rows[0]) == COLUMNS
    assert sorted(row["file"] for row in rows) == sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")
    )
    written = b"".join(
        path.read_bytes() + str(path).encode() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    said = done.stdout + done.stderr
    for word in (*SECRETS, *DATES):
        assert word.encode() not in written, word
        assert word not in said, word


def test_pictures_are_the_scans(call, tmp_path):
    np.save(tmp_path / "a.npy", scans())
    np.save(tmp_path / "b.npy", scans().astype(np.uint16) * 200)
    np.save(tmp_path / "c.npy", scans().astype(np.float32) / 255)
    places = [tmp_path / name for name in ("a.npy", "b.npy", "c.npy")]
    done = call("dino_oct/data/export.py", *places, "--out", tmp_path / "out")
    assert "3 volumes without a name or number" in done.stdout
    rows = table(tmp_path / "out")
    pictures = np.stack([np.asarray(Image.open(tmp_path / "out" / row["file"], formats=["PNG"])) for row in rows[:3]])
    np.testing.assert_array_equal(pictures, scans())
    deep = np.stack([np.asarray(Image.open(tmp_path / "out" / row["file"], formats=["PNG"])) for row in rows[3:6]])
    np.testing.assert_array_equal(deep, scans().astype(np.uint16) * 200)
    floats = np.stack([np.asarray(Image.open(tmp_path / "out" / row["file"], formats=["PNG"])) for row in rows[6:]])
    assert np.abs(floats.astype(int) - scans()).max() <= 1
    assert len({row["patient"] for row in rows}) == 3


def test_visits_and_volumes_are_numbered_within_a_patient(call, tmp_path):
    days = {"a": "20200301", "b": "20190101", "c": "20200301", "d": "20210101"}
    for i, (name, day) in enumerate(days.items()):
        who = {"PatientID": "other"} if name == "d" else {}
        write_dicom(
            tmp_path / f"{name}.dcm", scans(), SeriesInstanceUID=f"1.2.{i}", AcquisitionDateTime=f"{day}1200", **who
        )
    write_vol(tmp_path / "e.vol", scans(), born=BORN + datetime.timedelta(1))
    done = call("dino_oct/data/export.py", tmp_path, "--out", tmp_path.with_name("out"))
    assert done.returncode == 0, done.stderr
    rows = [row for row in table(tmp_path.with_name("out")) if row["slice"] == "0"]
    assert [(row["visit"], row["volume"]) for row in rows] == [
        ("2", "1"),
        ("1", "2"),
        ("2", "3"),
        ("1", "1"),
        ("1", "1"),
    ]
    assert len({row["patient"] for row in rows[:3]}) == 1
    assert len({row["patient"] for row in rows}) == 3
    shutil.rmtree(tmp_path.with_name("out"))


def test_the_same_key_gives_the_same_pseudonyms(call, tmp_path):
    write_vol(tmp_path / "a.vol", scans())
    patients = []
    for out, cache in (("x", "k"), ("y", "k"), ("z", "other")):
        places = ["--out", tmp_path / out, "--cache-dir", tmp_path / cache]
        assert call("dino_oct/data/export.py", tmp_path / "a.vol", *places).returncode == 0
        patients.append(table(tmp_path / out)[0]["patient"])
    assert patients[0] == patients[1] != patients[2]


def test_slices_of_a_series_and_pictures_of_an_export_are_one_volume_each(call, tmp_path):
    folder = tmp_path / "in"
    for name in ("dicom", "xml"):
        (folder / name).mkdir(parents=True)
    for i in range(3):
        write_dicom(folder / "dicom" / f"{i}.dcm", scans()[i : i + 1], InstanceNumber=i)
    write_xml(folder / "xml" / "x.xml", scans())
    done = call("dino_oct/data/export.py", folder, "--out", tmp_path / "out")
    assert "6 B-scans of 2 volumes" in done.stdout


def test_bad_files_are_named_and_left_out(call, tmp_path):
    write_vol(tmp_path / "a.vol", scans())
    (tmp_path / "b.vol").write_bytes((tmp_path / "a.vol").read_bytes()[:5000])
    done = call("dino_oct/data/export.py", tmp_path, "--out", tmp_path / "out")
    assert "; 1 file left out" in done.stdout
    assert "b.vol: truncated, or its header is damaged" in done.stderr
    assert {row["volume"] for row in table(tmp_path / "out")} == {"1"}


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (["none"], "none: no such file or folder"),
        (["empty"], "empty: no volumes in this folder"),
        (["bad.vol"], "of 1 volume none can be read"),
        ([], "at least one"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(call, tmp_path, places, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.vol").write_bytes(b"nothing")
    done = call("dino_oct/data/export.py", *(tmp_path / place for place in places), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_to(call, tmp_path):
    write_cirrus(tmp_path, scans(), who="")
    done = call("dino_oct/data/export.py", next(tmp_path.iterdir()), "--out", tmp_path)
    assert done.returncode == 2
    assert "is not a new or empty folder" in done.stderr
    assert NUMBER not in done.stderr
