"""What a user relies on when a folder is read: every layout found, patients never torn apart."""

import numpy as np
import pytest

from dino_oct.data.index import UNLABELLED, DatasetConfig, assert_patients_disjoint, index_scans
from dino_oct.data.people import patient_of
from dino_oct.data.splits import split_patients
from dino_oct.errors import InputError

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")  # the index never opens an image


def patients_by_split(index):
    return {split: set(index.patients[index.positions(split)].tolist()) for split in ("train", "val", "test")}


@pytest.mark.parametrize("above", ["", "OCT2017 /", "OCT2017/OCT2017/", "OCT2017 /OCT2017/"])
def test_oct2017_tree_is_found_wherever_the_archive_put_it(tmp_path, above):
    touch(
        tmp_path,
        *(f"{above}{split}/{c}/{c}-{i}{j}-1.jpeg" for i, split in enumerate(("train", "val", "test"), 1)
          for j, c in enumerate(CLASSES)),
        f"{above}.DS_Store", f"{above}train/CNV/._CNV-10-1.jpeg", f"{above}train/.hidden/CNV-99-1.jpeg",
        f"__MACOSX/{above}train/CNV/CNV-10-1.jpeg", f"{above}train/CNV/readme.txt",
        f"{above}masks/train/CNV/CNV-10-1.png",
    )  # fmt: skip
    index = index_scans(tmp_path, DatasetConfig(split="official"))
    assert len(index) == 12
    assert index.class_names == CLASSES
    assert [len(index.positions(split)) for split in ("train", "val", "test")] == [4, 4, 4]
    assert list(index.files) == sorted(index.files)
    assert all(index.path(i).is_file() for i in range(len(index)))
    assert index.notes == ()


def test_upper_case_suffixes_and_names_are_read(tmp_path):
    touch(tmp_path, "train/CNV/cnv-0012-1.JPEG", "train/NORMAL/NORMAL-7-1.TIF", "test/cnv/CNV-12-2.PnG")
    index = index_scans(tmp_path, DatasetConfig(split="official"))
    assert index.class_names == ("CNV", "NORMAL")
    # The number alone, without leading zeros, whatever the case and the class.
    assert sorted(index.patients.tolist()) == ["12", "12", "7"]
    assert "official split: 1 patient with scans in more than one split: 12" in index.notes


def test_class_missing_from_a_split_keeps_its_label_elsewhere(tmp_path):
    touch(tmp_path, "train/A/A-1-1.png", "train/B/B-2-1.png", "train/C/C-3-1.png", "val/C/C-4-1.png")
    index = index_scans(tmp_path, DatasetConfig(split="official"))
    assert index.class_names == ("A", "B", "C")
    assert index.labels[index.positions("val")].tolist() == [2]


def test_class_folders_without_splits_are_labelled_and_split_by_patient(tmp_path):
    touch(tmp_path, *(f"scans/{c}/{c}-{i}-{n}.png" for c in ("CNV", "NORMAL") for i in range(20) for n in range(3)))
    index = index_scans(tmp_path)
    assert index.class_names == ("CNV", "NORMAL")
    assert all(len(index.positions(split)) for split in ("train", "val", "test"))
    assert_patients_disjoint(index)
    with pytest.raises(InputError, match="no train/val/test"):
        index_scans(tmp_path, DatasetConfig(split="official"))


@pytest.mark.parametrize("files", [("a.png", "b.png"), ("one/a.png", "one/b.png"), ("a.png", "x/y/b.png", "x/c.png")])
def test_other_folders_are_unlabelled(tmp_path, files):
    touch(tmp_path, *files)
    index = index_scans(tmp_path)
    assert index.class_names == ()
    assert set(index.labels.tolist()) == {UNLABELLED}
    assert len(index) == len(files)
    assert len(set(index.patients.tolist())) == len(files)  # each its own patient
    assert "no patient number" in index.notes[0]


def test_split_folders_without_classes_are_unlabelled_but_keep_their_split(tmp_path):
    touch(tmp_path, "train/a.png", "train/b.png", "test/c.png")
    index = index_scans(tmp_path, DatasetConfig(split="official"))
    assert index.class_names == ()
    assert index.splits.tolist() == ["test", "train", "train"]


def test_mislabelled_files_keep_the_folder_class_and_are_listed(tmp_path):
    touch(tmp_path, "train/CNV/NORMAL-5-1.jpeg", "train/CNV/CNV-6-1.jpeg", "train/NORMAL/NORMAL-7-1.jpeg")
    index = index_scans(tmp_path)
    assert index.mislabelled == ("train/CNV/NORMAL-5-1.jpeg",)
    assert index.class_names[index.labels[index.files.index("train/CNV/NORMAL-5-1.jpeg")]] == "CNV"
    assert any("named after another class" in note for note in index.notes)


def test_wrong_folders_are_one_line_errors(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        index_scans(tmp_path / "missing")
    with pytest.raises(InputError, match="no images"):
        index_scans(tmp_path)
    touch(tmp_path, "file.txt")
    with pytest.raises(InputError, match="not a folder"):
        index_scans(tmp_path / "file.txt")
    touch(tmp_path, "oct/train/A/a.png", "xray/train/B/b.png")
    with pytest.raises(InputError, match="more than one"):
        index_scans(tmp_path)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0.1), (0.1, 1.0)])
def test_impossible_fractions_are_refused(tmp_path, fractions):
    touch(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"^--dataset\.(val|test)-fraction "):
        index_scans(tmp_path, DatasetConfig(val_fraction=fractions[0], test_fraction=fractions[1]))


def test_linked_folders_are_followed_once(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "data/b.png")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    assert index_scans(tmp_path / "data").files == ("b.png", "linked/a.png")


def test_phantoms_use_their_own_folders(tmp_path):
    touch(tmp_path, "phantom.json", "train/CNV/CNV-1-1.jpeg", "train/NORMAL/NORMAL-2-1.jpeg", "test/CNV/CNV-3-1.jpeg",
          "masks/train/CNV/CNV-1-1.png")  # fmt: skip
    index = index_scans(tmp_path)
    assert index.splits.tolist() == index.folder_splits.tolist() == ["test", "train", "train"]


def numbered(n, classes=CLASSES, scans=2):
    """Files CLASS/CLASS-PATIENT-N, patients spread over the classes."""
    return [f"{classes[i % len(classes)]}/{classes[i % len(classes)]}-{1000 + i}-{k}.png"
            for i in range(n) for k in range(scans)]  # fmt: skip


def split_of(index):
    return dict(zip(index.patients.tolist(), index.splits.tolist(), strict=True))


def test_a_patients_split_follows_from_the_patient_alone(tmp_path):
    touch(tmp_path, *numbered(200))
    before = split_of(index_scans(tmp_path))
    # A scan less, a scan of another class more for one patient, and fifty new patients.
    (tmp_path / numbered(200)[0]).unlink()
    touch(tmp_path, "DME/DME-1004-9.png", *(f"CNV/CNV-{5000 + i}-1.png" for i in range(50)))
    after = split_of(index_scans(tmp_path))
    assert {patient: after[patient] for patient in before} == before
    assert split_of(index_scans(tmp_path, DatasetConfig(split_seed=1))) != after
    # The same patients in another folder, without classes.
    touch(tmp_path / "flat", *(name.split("/")[1] for name in numbered(200)))
    assert split_of(index_scans(tmp_path / "flat")) == before


def test_the_shares_of_a_split_are_met_in_every_class_and_do_not_move_each_other():
    patients = [str(i) for i in range(8000)]
    split = split_patients(patients, {"val": 0.1, "test": 0.15})
    for label in range(4):
        where = [split[p] for p in patients[label::4]]
        assert abs(where.count("test") / 2000 - 0.15) < 0.025
        assert abs(where.count("val") / 2000 - 0.10) < 0.025
    more = split_patients(patients, {"val": 0.2, "test": 0.15})
    assert all(more[p] == s for p, s in split.items() if s != "train")


def test_a_users_own_split_is_kept_unless_patients_overlap(tmp_path):
    names = [name.split("/") for name in numbered(60)]
    folders = [("train", "val", "test")[i // 2 % 3] for i in range(len(names))]
    touch(tmp_path / "own", *(f"{f}/{c}/{n}" for f, (c, n) in zip(folders, names, strict=True)))
    index = index_scans(tmp_path / "own")
    assert index.splits.tolist() == index.folder_splits.tolist()
    assert "folders train/val/test as they are" in index.split_rule
    assert "--dataset.split patient" in index.split_rule
    # One patient in two folders, as in OCT2017 as published: by patient.
    touch(tmp_path / "own", "test/CNV/CNV-1000-7.png")
    index = index_scans(tmp_path / "own")
    assert_patients_disjoint(index)
    assert index.splits.tolist() != index.folder_splits.tolist()
    assert "because of 1 patient in more than one" in index.split_rule
    assert "1000" in index.split_rule
    assert "--dataset.split official" in index.split_rule


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "Testing"), ("TRAIN ", "Test")])
def test_without_a_folder_for_validation_patients_of_train_validate(tmp_path, train, test):
    files = [f"{train if i < 120 else test}/{name}" for i, name in enumerate(numbered(80))]
    touch(tmp_path, *files)
    index = index_scans(tmp_path)
    assert index.class_names == CLASSES
    assert set(index.splits[index.folder_splits == "test"].tolist()) == {"test"}
    assert set(index.splits[index.folder_splits == "train"].tolist()) == {"train", "val"}
    assert_patients_disjoint(index)
    assert "10 % of the patients of train validate" in index.split_rule
    assert not len(index_scans(tmp_path, DatasetConfig(split="official")).positions("val"))


def test_a_split_or_class_without_patients_is_said(tmp_path):
    touch(tmp_path, "CNV/CNV-1-1.png", "DME/DME-2-1.png")
    notes = " ".join(index_scans(tmp_path, DatasetConfig(val_fraction=0, test_fraction=0)).notes)
    assert "no patient in the val split" in notes
    assert "no patient in the test split" in notes
    touch(tmp_path / "b", "train/CNV/CNV-1-1.png", "train/DME/DME-2-1.png", "test/CNV/CNV-3-1.png")
    assert "no patient of DME in the test split" in " ".join(index_scans(tmp_path / "b").notes)


@pytest.mark.parametrize(
    ("stray", "reason"),
    [("overview.png", "beside the class folders"), ("CNV/old/CNV-77-1.png", "deeper than most images"),
     ("CNV/masks/CNV-1000-0.png", "")],
)  # fmt: skip
def test_one_stray_image_leaves_the_classes_alone(tmp_path, stray, reason):
    touch(tmp_path, *numbered(40), stray)
    index = index_scans(tmp_path)
    assert index.class_names == CLASSES
    assert len(index) == 80
    assert stray not in index.files
    if reason:
        assert any(reason in why for file, why in index.left_out if file == stray)
        assert any(stray in note and "left out" in note for note in index.notes)


def test_one_stray_image_beside_the_split_folders_is_listed(tmp_path):
    touch(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in numbered(8)), "x.png", "train/y.png")
    index = index_scans(tmp_path, DatasetConfig(split="official"))
    assert index.class_names == CLASSES
    assert dict(index.left_out).keys() == {"x.png", "train/y.png"}


def test_a_folder_for_each_patient_below_the_class(tmp_path):
    touch(tmp_path, *(f"{c}/P{p}/{n}.png" for c in CLASSES for p in (f"{c}{i}" for i in range(3)) for n in range(4)))
    index = index_scans(tmp_path)
    assert index.class_names == CLASSES
    assert len(set(index.patients.tolist())) == 12
    # One file beside the patients' folders is the exception.
    touch(tmp_path, "CNV/scan.png")
    index = index_scans(tmp_path)
    assert len(set(index.patients.tolist())) == 12
    assert dict(index.left_out) == {"CNV/scan.png": "higher than most images of the classes"}


def test_a_folder_for_each_patient_without_classes(tmp_path):
    touch(tmp_path, *(f"patient_{i:02d}/{n}.png" for i in range(12) for n in range(5)))
    index = index_scans(tmp_path)
    assert index.class_names == ()
    assert len(set(index.patients.tolist())) == 12
    assert_patients_disjoint(index)
    assert any("12 folders are read as patients, not as classes" in note for note in index.notes)


def test_numbered_folders_of_each_class_are_its_patients(tmp_path):
    touch(tmp_path, *(f"{c}{i}/{n}.tif" for c in ("AMD", "DME", "NORMAL") for i in range(1, 16) for n in range(3)))
    index = index_scans(tmp_path)
    assert index.class_names == ("AMD", "DME", "NORMAL")
    assert len(set(index.patients.tolist())) == 45


@pytest.mark.parametrize("names", [("0", "1", "2", "3"), ("grade0", "grade1", "grade2")])
def test_grades_are_classes(tmp_path, names):
    touch(tmp_path, *(f"{name}/a{i}.png" for name in names for i in range(4)))
    assert index_scans(tmp_path).class_names == names


def test_class_folders_with_splits_below_them(tmp_path):
    touch(tmp_path, *(f"{c}/{split}/{c}-{p}-1.png" for p, (c, split) in
                      enumerate((c, s) for c in CLASSES for s in ("train", "val", "test"))))  # fmt: skip
    index = index_scans(tmp_path)
    assert index.class_names == CLASSES
    assert index.splits.tolist() == index.folder_splits.tolist()
    assert set(index.splits.tolist()) == {"train", "val", "test"}


def test_composed_and_decomposed_spellings_are_one_class_and_one_patient(tmp_path):
    composed, decomposed = "\u00d6dem", "O\u0308dem"
    touch(
        tmp_path,
        f"train/{composed}/x-\u00fc.png",
        f"test/{decomposed}/{decomposed}-2-1.png",
        "train/NORMAL/NORMAL-3-1.png",
    )
    index = index_scans(tmp_path, DatasetConfig(split="official"))
    assert index.class_names == ("NORMAL", composed)
    assert index.mislabelled == ()
    assert patient_of("u\u0308.png") == patient_of("\u00fc.png")
    assert all(index.path(i).is_file() for i in range(len(index)))


@pytest.mark.parametrize("dates", [["20210503"], ["210503", "210612"], ["03052021", "12062021"], ["2021", "2022"]])
def test_a_date_in_a_name_is_no_patient(tmp_path, dates):
    touch(tmp_path, *(f"CNV/OCT-{dates[i % len(dates)]}-{i}.png" for i in range(72)), "DME/OCT-nothing.png")
    index = index_scans(tmp_path)
    assert len(set(index.patients.tolist())) == 73
    assert any("72 of 73 file names have a date" in note and dates[0] in note for note in index.notes)


def test_numbers_that_begin_anew_in_each_class_are_said(tmp_path):
    touch(tmp_path, *(f"{c}/{c}-{i}-1.png" for c in CLASSES for i in range(1, 31)))
    index = index_scans(tmp_path)
    assert len(set(index.patients.tolist())) == 30
    assert any("as if numbering began anew in each class" in note for note in index.notes)
    # OCT2017: a few of many far-flung numbers are in two classes.
    touch(tmp_path / "b", *numbered(30), *(f"CNV/CNV-{i * 7919}-1.png" for i in range(1, 40)), "DME/DME-7919-1.png")
    assert not any("anew" in note for note in index_scans(tmp_path / "b").notes)


def test_files_of_types_that_are_not_read_are_said(tmp_path):
    touch(tmp_path, *numbered(8), "CNV/a.mp4", "CNV/b.mp4", "c.webp", "readme.txt")
    (note,) = (note for note in index_scans(tmp_path).notes if "not read" in note)
    assert "3 files of types that are not read (.mp4 2, .webp 1)" in note
    touch(tmp_path / "only", "a.mp4")
    with pytest.raises(InputError, match=r"\.mp4 1"):
        index_scans(tmp_path / "only")


def test_same_number_in_two_classes_is_one_patient(tmp_path):
    folders = ("train/CNV/CNV", "test/DRUSEN/DRUSEN")
    touch(tmp_path, *(f"{folder}-{i}-1.jpeg" for i in range(40) for folder in folders))
    for seed in range(5):
        index = index_scans(tmp_path, DatasetConfig(split_seed=seed))
        assert len(set(index.patients.tolist())) == 40
        groups = patients_by_split(index)
        assert not groups["train"] & groups["test"]
        assert not groups["train"] & groups["val"]
        assert not groups["val"] & groups["test"]
    with pytest.raises(InputError, match="40 patients"):
        assert_patients_disjoint(index_scans(tmp_path, DatasetConfig(split="official")))


def test_joined_folders_keep_test_and_validation_patients_out_of_pretraining(tmp_path):
    names = [f"{c}-{i}-1.jpeg" for i in range(40) for c in ("CNV", "NORMAL")]
    touch(tmp_path / "main", *(f"train/{n.split('-')[0]}/{n}" for n in names))
    # The same people again, other scans; and scans without numbers.
    touch(tmp_path / "more", *(n.replace("-1.", "-2.") for n in names), "nameless_1.jpeg", "nameless_2.jpeg")
    index = index_scans(tmp_path / "main", DatasetConfig(unlabelled=[str(tmp_path / "more"), str(tmp_path / "main")]))
    joined = index.labels == UNLABELLED
    assert set(index.splits[joined].tolist()) == {"train"}
    held_out = set(index.patients[index.splits != "train"].tolist())
    assert held_out
    assert not held_out & set(index.patients[joined].tolist())
    excluded = sum(patient_of(n) in held_out for n in names)
    assert excluded > 0
    assert joined.sum() == len(names) - excluded + 2
    text = " ".join(index.notes)
    assert f"{excluded} unlabelled scans of patients in the validation or test split left out" in text
    assert f"{len(names)} unlabelled scans already in the index left out" in text
    assert "2 unlabelled scans carry no patient number" in text
    assert all(index.path(i).is_file() for i in range(len(index)))


def test_subset_by_mask_and_by_position(tmp_path):
    touch(tmp_path, *(f"{c}/{c}-{i}-1.png" for c in ("A", "B") for i in range(5)))
    index = index_scans(tmp_path)
    by_mask, by_position = index.subset(index.labels == 1), index.subset(np.flatnonzero(index.labels == 1))
    assert by_mask.files == by_position.files == index.files[5:]
    assert by_mask.labels.tolist() == [1] * 5
    assert by_mask.class_names == ("A", "B")
    assert len(index.subset([])) == 0
