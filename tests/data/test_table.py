"""A table, a pattern or a published set's tree say the same of the same scans; what is wrong is one line."""

import numpy as np
import pytest
from test_index import CLASSES, touch

from dino_oct.data.index import DatasetConfig, index_scans
from dino_oct.data.load import find_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.data.table import Options, main
from dino_oct.errors import InputError

FILES = [f"{c}/{c}-{10 * i + j}-{k}.png" for i, c in enumerate(CLASSES) for j in range(5) for k in range(2)]


def known(index):
    """Base name → class, patient, split."""
    labels = [index.class_names[label] if label >= 0 else "" for label in index.labels.tolist()]
    rows = zip(index.files, labels, index.patients.tolist(), index.splits.tolist(), strict=True)
    return {file.rpartition("/")[2]: row for file, *row in rows}


def write(folder, text, name="scans.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_folders_table_comes_back_as_the_folder(tmp_path, suffix):
    touch(tmp_path, *FILES)
    main(Options(str(tmp_path), tmp_path / f"scans{suffix}"))
    beside = DatasetConfig(table=str(tmp_path / f"scans{suffix}"))
    for index in (index_scans(tmp_path / f"scans{suffix}"), index_scans(tmp_path, beside)):
        assert known(index) == known(index_scans(tmp_path))
        assert index.root == tmp_path


def test_one_set_in_every_shape(tmp_path):
    """Folders, folders with a folder for each patient, a table, a pattern: the same classes, patients and splits."""
    touch(tmp_path / "a", *FILES)
    expected = known(index_scans(tmp_path / "a"))
    people = [f"{c}/{name.split('-')[1]}/{name}" for c, name in (file.split("/") for file in FILES)]
    touch(tmp_path / "b", *people)
    flat = [name.replace("-", "_") for name in (file.rpartition("/")[2] for file in FILES)]
    touch(tmp_path / "c", *flat)
    pattern = r"(?P<label>[A-Z]+)_(?P<patient>\d+)_.*"
    lines = [f"x/{name},{name.split('_')[0]},{name.split('_')[1]}" for name in flat]
    touch(tmp_path / "d", *(f"x/{name}" for name in flat))
    table = write(tmp_path / "d", "\n".join(["image_path,Diagnosis,patient_id", *lines]))
    assert known(index_scans(tmp_path / "b")) == expected
    for index in (index_scans(tmp_path / "c", DatasetConfig(pattern=pattern)), index_scans(table)):
        assert {name.replace("_", "-"): row for name, row in known(index).items()} == expected
    assert "label from Diagnosis" in index_scans(table).how


def test_every_column_reaches_the_index(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png")
    table = write(
        tmp_path,
        "file;label;patient;eye;visit;volume;slice;device;split;mask;group;age\n"
        "a.png;CNV;007;OD;1;v1;03;Spectralis;Training;m/a.png;north;70\n"
        "b.png;NORMAL;7;left;2;v2;4;Cirrus;test;;south;71\nc.png;;8;;;;;;;;;\n",
    )
    index = index_scans(table, DatasetConfig(split="official"))
    assert index.patients.tolist() == ["7", "7", "8"]
    assert index.splits.tolist() == ["train", "test", ""]
    assert index.labels.tolist() == [0, 1, -1]
    facts = {name: index.fact(name).tolist() for name in index.facts}
    assert facts == {
        "eye": ["R", "L", ""], "visit": ["1", "2", ""], "volume": ["v1", "v2", ""], "slice": ["3", "4", ""],
        "device": ["Spectralis", "Cirrus", ""], "group": ["north", "south", ""], "mask": ["m/a.png", "", ""],
    }  # fmt: skip
    assert index.subset(np.array([1])).fact("eye").tolist() == ["L"]
    assert any("not read: age" in note for note in index.notes)


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png", "notes.txt")
    table = write(
        tmp_path,
        "file,label\na.png,CNV\nb.png,CNV\nb.png,DME\na.png,CNV\nc.png,DME\ngone.png,DME\nnotes.txt,DME\n,DME\n",
    )
    index = index_scans(table)
    assert index.files == ("a.png", "c.png")
    reasons = dict(index.left_out)
    assert reasons["b.png"] == "given twice, with different labels"
    assert reasons["gone.png"] == "no such file"
    assert reasons["notes.txt"] == "of a type that is not read"
    assert reasons["row 9"] == "no file"
    assert any("2 rows not read, of files that an earlier row names" in note for note in index.notes)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("name,label\na.png,CNV\n", [], "no column of files; it has name, label"),
        ("name,label\na.png,CNV\n", ["file=nam"], "has no column 'nam'"),
        ("name,label\na.png,CNV\n", ["files=name"], "'files' is none of file, label"),
        ("file,split\na.png,holdout\n", [], "'holdout' is not train, val or test"),
        ("file,eye\na.png,middle\n", [], "'middle' is not R or L"),
        ("file,slice\na.png,first\n", [], "'first' is no number of a slice"),
        ("file,severity\na.png,nan\n", [], "'nan' is no number"),
        ("file,label\nb.png,CNV\n", [], "no row names a scan that is there"),
        ("", [], "not a readable table"),
        ("file,label\na.png,CNV,right eye\n", [], "more cells than the first line"),
        ("file,label\n\xffa.png,x\n", [], "not UTF-8"),
    ],
)
def test_wrong_tables_are_one_line(tmp_path, text, columns, message):
    touch(tmp_path, "a.png")
    (tmp_path / "scans.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as error:
        index_scans(tmp_path / "scans.csv", DatasetConfig(columns=columns))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "not a regular expression"), ("(?P<name>.*)", "found name"), (".*", "found none"),
     (r"(?P<patient>\d+)", "none of 2 names fits"), ("(?P<split>.*)_.*", "'a' is not train")],
)  # fmt: skip
def test_wrong_patterns_are_one_line(tmp_path, pattern, message):
    touch(tmp_path, "a_1.png", "b_2.png")
    with pytest.raises(InputError, match=message):
        index_scans(tmp_path, DatasetConfig(pattern=pattern))


def test_names_that_do_not_fit_are_left_out(tmp_path):
    touch(tmp_path, "CNV_1_a.png", "DME_2_a.png", "readme.png")
    index = index_scans(tmp_path, DatasetConfig(pattern=r"(?P<label>[A-Z]+)_(?P<patient>\d+)_.*"))
    assert known(index)["CNV_1_a.png"][:2] == ["CNV", "1"]
    assert [file for file, _ in index.left_out] == ["readme.png"]


def test_octdl_gives_patients_and_eyes_from_its_table(tmp_path):
    touch(tmp_path, *(f"{c}/{c.lower()}_{i}_{k}.jpg" for c in ("AMD", "NO") for i in range(3) for k in range(2)))
    lines = [f"{c.lower()}_{i}_{k},{c},{90 + i},{'OD' if k else 'OS'},F" for c in ("AMD", "NO") for i in range(3)
             for k in range(2)]  # fmt: skip
    write(tmp_path, "\n".join(["file_name,disease,patient_id,eye,sex", *lines]), "OCTDL_labels.csv")
    index = index_scans(tmp_path)
    assert index.how.startswith("OCTDL: ")
    assert set(index.patients.tolist()) == {"90", "91", "92"}
    assert set(index.fact("eye").tolist()) == {"R", "L"}
    folders = index_scans(tmp_path, DatasetConfig(layout="folders"))
    assert len(set(folders.patients.tolist())) == 12


def test_olives_tree(tmp_path):
    touch(
        tmp_path,
        *(f"Prime_FULL/{p}/{w}/{e}/{k}.png" for p in ("01-001", "01-002") for w in ("W0", "W4") for e in ("OD", "OS")
          for k in range(3)),
        *(f"TREX DME/GILA/0201GOD/V1/OD/TREX_{k:06d}.tif" for k in range(3)),
        "Prime_FULL/01-001/W0/OD/fundus_W0.tif",
    )  # fmt: skip
    index = index_scans(tmp_path)
    assert index.how.startswith("OLIVES: ")
    assert index.class_names == ("DME", "DR")
    assert set(index.patients.tolist()) == {"Prime 01-001", "Prime 01-002", "TREX 0201GOD"}
    assert set(index.fact("visit").tolist()) == {"W0", "W4", "V1"}
    assert set(index.fact("slice").tolist()) == {"0", "1", "2"}
    assert len(set(index.fact("volume").tolist())) == 9
    assert dict(index.left_out) == {"Prime_FULL/01-001/W0/OD/fundus_W0.tif": "no B-scan"}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("OCT2017", FILES),
        ("OCTID", [f"{c}/{c}{i}.jpeg" for c in ("NORMAL", "AMRD", "CSR", "DR", "MH") for i in range(3)]),
        ("NEH", [f"{c}/{i}/{i}_{k}.jpg" for c in ("CNV", "DRUSEN", "NORMAL") for i in range(3) for k in range(2)]),
        ("Srinivasan", [f"{c}{i}/TIFFs/8bitTIFFs/{k:03d}.tif" for c in ("AMD", "DME", "NORMAL") for i in range(1, 16)
                        for k in range(2)]),
        ("a split tree", [f"{s}/{c}/{i}{s}.png" for s in ("train", "val", "test") for c in ("a_normal", "b_amd")
                          for i in range(3)]),
    ],
)  # fmt: skip
def test_published_trees_are_named(tmp_path, name, files):
    touch(tmp_path, *files)
    index = index_scans(tmp_path)
    assert index.how.startswith(name)
    assert index.class_names
    assert (index.labels >= 0).all()


def test_eyes_and_visits_of_folders(tmp_path):
    touch(tmp_path, *(f"CNV/p{p}/{v}/{e}/{k}.png" for p in range(3) for v in ("V1", "V2") for e in ("OD", "OS")
                      for k in range(2)), *(f"NORMAL/q{p}/V1/OS/0.png" for p in range(3)))  # fmt: skip
    index = index_scans(tmp_path)
    assert len(set(index.patients.tolist())) == 6
    assert set(index.fact("eye").tolist()) == {"R", "L"}
    assert set(index.fact("visit").tolist()) == {"V1", "V2"}


def test_phantom_volumes_come_with_eyes_visits_and_slices(tmp_path):
    config = PhantomConfig(patients=12, slices=3, eyes=2, visits=2, size=(32, 32))
    index = find_scans("phantom", DatasetConfig(cache_dir=str(tmp_path)), config)
    assert len(index) == 12 * 3 * 2 * 2
    assert len(set(index.fact("volume").tolist())) == 12 * 2 * 2
    assert set(index.fact("slice").tolist()) == {"0", "1", "2"}
    assert index.split_rule.startswith("the splits of scans.csv as they are")
    assert not any("not read" in note or "anew in each class" in note for note in index.notes)
