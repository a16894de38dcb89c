"""A folder of volumes is a folder of their B-scans, with what headers know and nothing that they must not tell."""

import csv
import datetime
import json

import numpy as np
import pytest
from conftest import TINY_RUN
from PIL import Image
from volume_files import (
    ACQUIRED,
    AXIAL,
    BORN,
    LATERAL,
    NAMES,
    NUMBER,
    SECRETS,
    scans,
    values_of,
    write,
    write_dicom,
    write_vol,
)  # fmt: skip

from dino_oct.data.cache import open_cache
from dino_oct.data.decode import BadScan
from dino_oct.data.identity import identity_key, pseudonym
from dino_oct.data.index import DatasetConfig, index_scans, is_own_patient
from dino_oct.data.volumes import read_volumes, unpacking
from dino_oct.errors import InputError

DATES = ("2019", "20190304", "1964", "19640812", "08-12", "03-04")


def config(tmp_path, **settings):
    return DatasetConfig(cache_dir=str(tmp_path / "cache"), **settings)


def born(number):
    return BORN + datetime.timedelta(days=number)


def clinic(folder, patients=8, slices=3):
    """Volumes of two classes; odd patients have two of them."""
    for number in range(patients):
        label = ("DME", "NORMAL")[number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        for visit in range(1 + number % 2):
            values = scans(slices, seed=10 * number + visit)
            write_vol(folder / label / f"{NUMBER}-{number}-{visit}.vol", values, born=born(number))
    return folder


def test_every_format_becomes_slices(tmp_path):
    for name in NAMES:
        (tmp_path / "data" / name.replace(".", "_")).mkdir(parents=True)
        write(tmp_path / "data" / name.replace(".", "_"), name, values_of(name))
    index = index_scans(tmp_path / "data", config(tmp_path, layout="folders"))
    assert len(index) == 3 * len(NAMES)
    assert not index.left_out
    assert set(index.fact("slice").tolist()) == {"0", "1", "2"}
    index, cache = open_cache(index, config(tmp_path, max_side=4096, neutralise_borders=False), progress=False)
    for i, file in enumerate(index.files):
        (volume,) = read_volumes(index.root / file.split("#")[0])
        scan = volume.scans[int(index.fact("slice")[i])]
        assert cache[i].shape == scan.shape
        if scan.dtype == np.uint8:
            np.testing.assert_array_equal(cache[i], scan)


@pytest.mark.parametrize("name", NAMES)
def test_one_volume_is_data_like_a_folder_of_it(tmp_path, name):
    for place in ("alone", "folder"):
        (tmp_path / place).mkdir()
    write(tmp_path / "alone", "stack.npy", scans(5))  # a neighbour that is not asked for
    file = write(tmp_path / "alone", name, values_of(name))
    same = write(tmp_path / "folder", name, values_of(name))
    one, folder = index_scans(file, config(tmp_path)), index_scans(same.parent, config(tmp_path))
    assert one.root == file.parent
    assert one.files == folder.files
    assert one.patients.tolist() == folder.patients.tolist()
    assert {name: one.fact(name).tolist() for name in one.facts} == {
        name: folder.fact(name).tolist() for name in folder.facts
    }
    assert set(one.splits.tolist()) == {"train"}  # whatever the hash of its only patient
    assert one.split_rule == "one volume alone: all of it trains"
    assert not any("no patient in the" in note for note in one.notes)


def test_one_volume_may_be_split_as_asked_for(tmp_path):
    file = write(tmp_path, "stack.npy", scans(3))
    settings = config(tmp_path, split="patient", val_fraction=0.0, test_fraction=0.99)
    assert set(index_scans(file, settings).splits.tolist()) == {"test"}
    assert index_scans(file, config(tmp_path, pattern="(?P<label>[a-z]+).npy")).class_names == ("stack",)


def test_commands_take_one_volume(tmp_path, call):
    file = write(tmp_path, "stack.npy", scans(6))
    done = call("dino_oct/data/audit.py", file)
    assert done.returncode == 0, done.stderr
    assert "6 images, 6 usable" in done.stdout
    done = call("dino_oct/data/table.py", file, "--out", tmp_path / "scans.csv")
    assert done.returncode == 0, done.stderr
    assert "6 scans" in done.stdout
    done = call("dino_oct/train.py", *TINY_RUN, "--data", file, "--optim.batch-size", "2", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "train 6 scans of 1 patient" in done.stdout


@pytest.mark.parametrize("name", ["empty.vol", "picture.png", "notes.txt"])
def test_one_file_that_is_no_volume_is_refused_in_one_line(tmp_path, name, call):
    if name == "picture.png":
        Image.fromarray(scans(1)[0]).save(tmp_path / name)
    else:
        (tmp_path / name).touch()
    done = call("dino_oct/data/audit.py", tmp_path / name)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert ("empty file" if name == "empty.vol" else "a table of them, or a volume") in line


def test_headers_tell_patient_eye_visit_and_size(tmp_path):
    folder = clinic(tmp_path / "data")
    index = index_scans(folder, config(tmp_path))
    assert len(index) == 12 * 3
    assert index.class_names == ("DME", "NORMAL")
    assert len(set(index.patients.tolist())) == 8
    identity = read_volumes(folder / "DME" / f"{NUMBER}-0-0.vol")[0].identity
    assert index.patients[0] == pseudonym(identity, identity_key(tmp_path / "cache"))
    assert set(index.fact("eye").tolist()) == {"R"}
    assert set(index.fact("visit").tolist()) == {"1"}  # one day
    assert index.fact("volume").tolist().count("2") == 4 * 3
    assert index.sizes_um()[0].tolist() == [AXIAL, LATERAL]
    assert "12 volumes" in index.how


def test_visits_are_days_in_their_order(tmp_path):
    (tmp_path / "data").mkdir()
    values = scans()
    for name, later in (("b", 0), ("a", 400), ("c", 0)):
        file = tmp_path / "data" / f"{name}.vol"
        write_vol(file, values)
        content = bytearray(file.read_bytes())
        ticks = int((ACQUIRED + datetime.timedelta(days=later) - datetime.datetime(1601, 1, 1)).total_seconds() * 1e7)
        before = int((ACQUIRED - datetime.datetime(1601, 1, 1)).total_seconds()) * 10_000_000
        at = content.index(before.to_bytes(8, "little"))
        content[at : at + 8] = ticks.to_bytes(8, "little")
        file.write_bytes(content)
    index = index_scans(tmp_path / "data", config(tmp_path))
    visits = dict(zip([file[0] for file in index.files], index.fact("visit").tolist(), strict=True))
    assert visits == {"a": "2", "b": "1", "c": "1"}


def test_a_volume_without_a_patient_is_one_of_its_own(tmp_path):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", scans(seed=ord(name)))
    np.save(tmp_path / "CNV-17-1.npy", scans(seed=3))
    index = index_scans(tmp_path, config(tmp_path / "other"))
    assert sorted(set(index.patients.tolist())) == ["17", "a.npy", "b.npy"]
    assert is_own_patient(index).sum() == 6
    assert any("2 of 3 file names carry no patient number" in note for note in index.notes)


def test_a_table_names_volumes_or_their_slices(tmp_path):
    folder = clinic(tmp_path / "data")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.vol"))
    rows = [f"{file},X,P{i // 2},L" for i, file in enumerate(files[:4])]
    rows += [f"{files[4]}#0001,Y,P9,", f"{files[5]}#2,Z,,", f"{files[5]}#0007,Z,,"]
    (folder / "scans.csv").write_text("\n".join(["file,label,patient,eye", *rows]))
    index = index_scans(folder / "scans.csv", config(tmp_path))
    assert len(index) == 4 * 3 + 2
    assert index.files[-2:] == (f"{files[4]}#0001", f"{files[5]}#0002")
    assert index.left_out == ((f"{files[5]}#0007", "no such slice"),)
    assert index.patients[0] == "P0"  # what a user wrote counts before the header
    assert index.fact("eye")[0] == "L"
    assert index.fact("eye")[-1] == "R"
    assert len(index.patients[-1]) == 12


def test_a_pattern_leaves_what_a_table_says(tmp_path):
    folder = clinic(tmp_path / "data", patients=2)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.vol"))
    (folder / "scans.csv").write_text("\n".join(["file,patient", *(f"{file},P{i}" for i, file in enumerate(files))]))
    pattern = r"(?P<label>[A-Z]+)/.*"
    index = index_scans(folder / "scans.csv", config(tmp_path, pattern=pattern))
    assert sorted(set(index.patients.tolist())) == ["P0", "P1", "P2"]
    assert index.class_names == ("DME", "NORMAL")


def test_the_table_of_a_folder_gives_the_folder(call, tmp_path):
    folder = clinic(tmp_path / "data")
    for i, n in enumerate((2, 0, 1)):  # a series of one B-scan a file: its rows are named after its first
        write_dicom(folder / "DME" / f"{i}.dcm", scans(3)[n : n + 1], InstanceNumber=n)
    options = ("--dataset.cache-dir", tmp_path / "cache")
    done = call("dino_oct/data/table.py", folder, "--out", folder / "scans.csv", *options)
    assert done.returncode == 0, done.stderr
    again = call("dino_oct/data/table.py", folder, "--out", folder / "scans.csv", *options)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "labels may be filled in" in again.stderr
    of_folder, of_table = (index_scans(place, config(tmp_path)) for place in (folder, folder / "scans.csv"))
    assert [file for file in of_table.files if ".dcm" in file] == [f"DME/1.dcm#000{n}" for n in range(3)]
    for name in ("files", "class_names"):
        assert getattr(of_folder, name) == getattr(of_table, name)
    for name in ("labels", "patients", "splits"):
        np.testing.assert_array_equal(getattr(of_folder, name), getattr(of_table, name))
    assert {name: list(values) for name, values in of_folder.facts.items()} == {
        name: list(values) for name, values in of_table.facts.items()
    }


def test_an_export_is_read_by_its_table(call, tmp_path):
    folder = clinic(tmp_path / "data", patients=4)
    done = call("dino_oct/data/export.py", folder, "--out", tmp_path / "out", "--cache-dir", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    index, original = index_scans(tmp_path / "out"), index_scans(folder, config(tmp_path))
    assert set(index.patients.tolist()) == set(original.patients.tolist())
    for name in ("eye", "visit", "slice", "axial_um"):
        assert sorted(index.fact(name).tolist()) == sorted(original.fact(name).tolist())
    assert "the table scans.csv" in index.how


def test_a_broken_volume_is_one_left_out_entry(tmp_path):
    folder = clinic(tmp_path / "data")
    (folder / "DME" / "empty.vol").touch()
    (folder / "DME" / "short.vol").write_bytes((folder / "DME" / f"{NUMBER}-0-0.vol").read_bytes()[:3000])
    index = index_scans(folder, config(tmp_path))
    assert len(index) == 36
    assert ("DME/empty.vol", "empty file") in index.left_out
    assert [file for file, _ in index.left_out] == ["DME/empty.vol", "DME/short.vol"]
    only = tmp_path / "only"
    only.mkdir()
    (only / "empty.vol").touch()
    with pytest.raises(InputError, match="empty file"):
        index_scans(only, config(tmp_path))


def test_only_new_or_changed_volumes_are_read_again(tmp_path, monkeypatch):
    folder = clinic(tmp_path / "data", patients=4)
    read = []
    monkeypatch.setattr(unpacking, "read_volumes", lambda files: read.append(files) or read_volumes(files))
    first = index_scans(folder, config(tmp_path))
    assert len(read) == 6
    assert index_scans(folder, config(tmp_path)).files == first.files
    assert len(read) == 6
    write_vol(folder / "DME" / "new.vol", scans(seed=99))
    write_vol(folder / "DME" / f"{NUMBER}-0-0.vol", scans(4, seed=98))
    assert len(index_scans(folder, config(tmp_path))) == len(first) + 3 + 1
    assert len(read) == 8
    for place in (tmp_path / "cache" / "volumes").iterdir():
        next(place.glob("*.png")).unlink()
    index_scans(folder, config(tmp_path))
    assert len(read) == 8 + 7


def test_several_processes_give_the_same(tmp_path, monkeypatch):
    folder = clinic(tmp_path / "data", patients=4)
    (folder / "DME" / "empty.vol").touch()
    identity_key(tmp_path / "other")
    alone = index_scans(folder, config(tmp_path))
    (tmp_path / "other" / "identity.key").write_bytes((tmp_path / "cache" / "identity.key").read_bytes())
    monkeypatch.setattr(unpacking, "_BYTES_PER_WORKER", 1)
    monkeypatch.setattr(unpacking, "usable_cores", lambda: 2)
    together = index_scans(folder, DatasetConfig(cache_dir=str(tmp_path / "other")))
    assert together.files == alone.files
    assert together.left_out == alone.left_out
    assert together.patients.tolist() == alone.patients.tolist()


def test_pixels_are_resampled_to_one_size(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_vol(folder / "a.vol", scans())
    np.save(folder / "b.npy", scans(seed=1))
    settings = config(tmp_path, pixel_um=[AXIAL * 0.8, LATERAL / 2])
    index, cache = open_cache(index_scans(folder, settings), settings, progress=False)
    height, width = scans().shape[1:]
    assert [cache[i].shape for i in (0, 3)] == [(round(height / 0.8), 2 * width), (height, width)]
    assert any("not resized, as the size of their pixels is not known: 3 scans" in note for note in index.notes)
    same, other = open_cache(index_scans(folder, config(tmp_path)), config(tmp_path), progress=False)
    assert other[0].shape == (height, width)
    assert same.files == index.files


def test_pixels_of_several_sizes_are_said(tmp_path):
    from PIL import Image

    rows = []
    for i, width in enumerate((5.8, 11.6, 11.6)):
        Image.fromarray(scans(1, 64, 64, i)[0]).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,3.9,{width}")
    (tmp_path / "scans.csv").write_text("\n".join(["file,axial_um,lateral_um", *rows]))
    (note,) = (note for note in index_scans(tmp_path / "scans.csv").notes if "pixels differ" in note)
    assert "5.8 to 11.6 µm wide; --dataset.pixel-um 3.9 11.6" in note


def test_one_page_tiffs_stay_pictures(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.fromarray(scans(1, 64, 64, i)[0]).save(tmp_path / f"{i}.tif")
    assert index_scans(tmp_path).files == ("0.tif", "1.tif", "2.tif")
    pages = [Image.fromarray(scan) for scan in scans(3, 64, 64)]
    pages[0].save(tmp_path / "9.tif", save_all=True, append_images=pages[1:])
    assert index_scans(tmp_path, config(tmp_path / "x")).files[3:] == ("9.tif#0000", "9.tif#0001", "9.tif#0002")


@pytest.mark.parametrize("name", ["damaged", "older"])
def test_an_unpacked_volume_that_is_not_whole_is_made_anew(name, tmp_path):
    folder = clinic(tmp_path / "data", patients=1)
    index = index_scans(folder, config(tmp_path))
    (about,) = (tmp_path / "cache" / "volumes").glob("*/about.json")
    about.write_text("{" if name == "damaged" else json.dumps({**json.loads(about.read_text()), "version": 0}))
    assert index_scans(folder, config(tmp_path)).files == index.files
    assert json.loads(about.read_text())["version"] == unpacking.VERSION


def test_the_owner_gets_names_behind_pseudonyms(call, tmp_path):
    folder = clinic(tmp_path / "data", patients=4)
    where = ("--dataset.cache-dir", tmp_path / "cache")
    done = call(
        "dino_oct/data/table.py", folder, "--out", tmp_path / "t.csv", "--identities", tmp_path / "who.csv", *where
    )
    assert done.returncode == 0, done.stderr
    assert NUMBER not in done.stdout.replace(f"{NUMBER}-", "")
    with (tmp_path / "who.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (tmp_path / "who.csv").stat().st_mode & 0o077 == 0
    names = {row["pseudonym"]: row["name"] for row in rows}
    for anonymise in (False, True):
        index = index_scans(folder, config(tmp_path, anonymise=anonymise))
        for file, patient in zip(index.files, index.patients.tolist(), strict=True):
            who = names[patient]
            assert NUMBER in names.get(who, who)
            assert not anonymise or (folder / names[file.split("#")[0]]).is_file()


def test_anonymised_names_tell_nothing(tmp_path):
    folder = clinic(tmp_path / "data")
    (folder / "DME" / f"{NUMBER}-empty.vol").touch()
    (folder / "NORMAL" / f"{NUMBER}.mp4").touch()
    plain, hidden = (index_scans(folder, config(tmp_path, anonymise=value)) for value in (False, True))
    assert len(hidden) == len(plain)
    assert hidden.labels.sum() == plain.labels.sum()
    assert len(set(hidden.patients.tolist())) == 8
    said = repr((hidden.files, hidden.patients, hidden.notes, hidden.left_out, hidden.split_rule, dict(hidden.facts)))
    for word in (*SECRETS, NUMBER):
        assert word not in said
    assert "(.mp4 1)" in said
    assert hidden.left_out[0][1] == "empty file"
    _, first = open_cache(plain, config(tmp_path), progress=False)
    _, second = open_cache(hidden, config(tmp_path), progress=False)
    assert sorted(first.digests.tolist()) == sorted(second.digests.tolist())


def test_anonymised_pictures_keep_patients_and_visits(tmp_path):
    from PIL import Image

    for patient in ("Novakova", "Svoboda"):
        for visit in ("2019-03-04", "2020-05-06"):
            for label in ("CNV", "DME"):
                file = tmp_path / "data" / label / patient / visit / f"{patient}.png"
                file.parent.mkdir(parents=True)
                Image.fromarray(scans(1, 64, 64, len(file.as_posix()))[0]).save(file)
    index = index_scans(tmp_path / "data", config(tmp_path, anonymise=True))
    assert len(set(index.patients.tolist())) == 2
    assert sorted(index.fact("visit").tolist()) == ["1"] * 4 + ["2"] * 4
    assert index.class_names == ("CNV", "DME")
    said = repr((index.files, index.patients, index.notes, dict(index.facts), index.how))
    assert not any(word in said for word in ("Novak", "Svob", "2019", "2020"))
    assert open_cache(index, config(tmp_path), progress=False)[1].nbytes == 8 * 64 * 64


def test_no_artefact_of_a_run_names_a_patient(call, tmp_path, monkeypatch):
    folder = clinic(tmp_path / "data", patients=24)
    (folder / "DME" / f"{NUMBER}-empty.vol").touch()
    where = ("--dataset.cache-dir", tmp_path / "cache", "--dataset.anonymise", "True")
    where += ("--dataset.val-fraction", "0.25", "--dataset.test-fraction", "0.25")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "identity.key").write_bytes(bytes(range(32)))  # the split is a hash of pseudonyms
    said = ""
    for command in (
        ("dino_oct/data/audit.py", folder, *where),
        ("dino_oct/train.py", "--data", folder, *TINY_RUN, *where, "--out", tmp_path / "run"),
        ("evaluation/knn.py", "--model", tmp_path / "run", "--k", "1", "--bootstrap", "20"),
        ("evaluation/attention.py", "--model", tmp_path / "run", "--n", "2"),
    ):
        done = call(*command)
        assert done.returncode == 0, done.stderr + done.stdout
        said += done.stdout + done.stderr
    places = [path for place in ("run", "cache") for path in (tmp_path / place).rglob("*")]
    written = b"".join(str(path.relative_to(tmp_path)).encode() for path in places)
    written += b"".join(path.read_bytes() for path in places if path.is_file() and path.name != "identity.key")
    for word in SECRETS:
        if not word.isdecimal():  # four digits may be a number
            assert word.encode() not in written, word
            assert word not in said, word


def test_a_table_that_names_the_volumes_of_a_reader_that_fails(tmp_path, monkeypatch):
    folder = clinic(tmp_path / "data", patients=2)

    def fail(files):
        raise BadScan("needs pip install dino-oct[clinic]")

    monkeypatch.setattr(unpacking, "read_volumes", fail)
    with pytest.raises(InputError, match="dino-oct"):
        index_scans(folder, config(tmp_path))
    monkeypatch.undo()
    assert len(index_scans(folder, config(tmp_path))) == 9  # a reason is not kept
