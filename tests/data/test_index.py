"""What a user relies on when a folder is read: every layout found, patients never torn apart."""

import numpy as np
import pytest

from dino_oct.data.index import UNLABELLED, DatasetConfig, assert_patients_disjoint, index_scans, patient_of
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
    assert "official split: 1 patients have scans in more than one split: 12" in index.notes


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
    with pytest.raises(InputError):
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


def tree_of(n_patients, seed=0):
    """Patients with uneven numbers of scans; every ninth has scans of two classes."""
    rng = np.random.default_rng(seed)
    patients, labels = [], []
    for patient in range(n_patients):
        label = int(rng.choice(4, p=[0.5, 0.1, 0.1, 0.3]))
        for _ in range(int(rng.integers(1, 8))):
            patients.append(str(patient))
            labels.append((label + 1) % 4 if patient % 9 == 0 and rng.random() < 0.5 else label)
    return np.array(patients), np.array(labels)


@pytest.mark.parametrize("seed", range(20))
def test_patient_split_is_disjoint_stratified_and_free_of_file_order(seed):
    patients, labels = tree_of(300, seed)
    fractions = {"val": 0.1, "test": 0.15}
    split = split_patients(patients, labels, fractions, seed)
    assert set(split) == set(patients.tolist())
    where = np.array([split[p] for p in patients])
    for label in range(4):
        members = where[labels == label]
        assert abs((members == "test").mean() - 0.15) < 0.07
        assert abs((members == "val").mean() - 0.10) < 0.07
        assert (members == "train").any()
    order = np.random.default_rng(seed).permutation(len(patients))
    assert split_patients(patients[order], labels[order], fractions, seed) == split
    assert split_patients(patients, labels, fractions, seed + 1) != split


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_small_classes_train_first_then_test_then_val(n):
    patients = np.array([str(i) for i in range(n)])
    split = split_patients(patients, np.zeros(n, dtype=int), {"val": 0.1, "test": 0.15})
    found = set(split.values())
    assert found == {1: {"train"}, 2: {"train", "test"}}.get(n, {"train", "val", "test"})


def test_every_class_trains_even_if_its_patients_all_have_a_rarer_class():
    # Class 1 lives only in patients that also carry the rarer classes 0 or 2.
    patients = np.array(["a", "a", "b", "b", "c", "c", "d", "d", "e"])
    labels = np.array([0, 1, 0, 1, 2, 1, 2, 1, 3])
    for seed in range(30):
        split = split_patients(patients, labels, {"val": 0.3, "test": 0.4}, seed)
        assert {int(c) for p, c in zip(patients, labels, strict=True) if split[p] == "train"} == {0, 1, 2, 3}


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
