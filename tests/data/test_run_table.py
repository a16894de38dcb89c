"""What a user relies on after a run: its table says what it was trained on, whatever became of the folder."""

import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from dino_oct import provenance
from dino_oct.data.index import DatasetConfig
from dino_oct.data.load import load_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.data.run_table import by_table, read_rows, rows_of, write_rows
from dino_oct.errors import InputError


def quiet(text):
    pass


def draw(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(file.encode())).integers(0, 200, (48, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(root / file)


@pytest.fixture
def scans(tmp_path, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(tmp_path / "cache"))
    draw(
        tmp_path / "scans", *(f"{c}/{c}-{1000 + 2 * i + (c == 'DME')}-1.png" for c in ("CNV", "DME") for i in range(30))
    )
    return tmp_path / "scans"


def opened(folder, **settings):
    return load_scans(str(folder), DatasetConfig(**settings), PhantomConfig(), quiet)


def test_a_table_comes_back_as_it_was_written(scans, tmp_path):
    index, cache = opened(scans)
    rows = rows_of(index, cache.file_digests)
    write_rows(tmp_path / "t.csv", rows)
    assert read_rows(tmp_path / "t.csv") == rows
    assert {row.label for row in rows} == {"CNV", "DME"}


@pytest.mark.parametrize("text", ["", "file,label\n", "file,label,patient,split,digest\na,b,c,nowhere,e\n",
                                  "file,label,patient,split,digest\na,b\n"])  # fmt: skip
def test_a_damaged_table_is_one_line(tmp_path, text):
    (tmp_path / "scans.csv").write_text(text)
    with pytest.raises(InputError, match="not a readable table"):
        read_rows(tmp_path / "scans.csv")


def test_the_table_holds_when_files_are_added_moved_changed_and_removed(scans):
    index, cache = opened(scans)
    rows = rows_of(index, cache.file_digests)
    assert by_table(index, cache.file_digests, rows)[1] == []
    of_split = {split: [row.file for row in rows if row.split == split] for split in ("train", "val", "test")}
    moved, changed, gone = of_split["train"][0], of_split["test"][0], of_split["val"][0]
    (scans / moved).rename(scans / "CNV" / "CNV-99999-1.png")  # a trained-on scan under an unknown patient's number
    draw(scans, "DME/DME-88888-1.png", "other.png")
    shutil.copy(scans / "other.png", scans / changed)
    (scans / "other.png").unlink()
    (scans / gone).unlink()
    patient = of_split["train"][1].split("-")[1]
    draw(scans, f"CNV/CNV-{patient}-2.png")
    index, cache = opened(scans)
    today, notes = by_table(index, cache.file_digests, rows)
    split_of = dict(zip(today.files, today.splits.tolist(), strict=True))
    assert split_of["CNV/CNV-99999-1.png"] == "train"
    assert split_of[f"CNV/CNV-{patient}-2.png"] == "train"
    assert split_of[changed] == "test"
    text = "; ".join(notes)
    for word in ("2 scans new", "1 scan moved or renamed", "1 scan with other content", "1 scan gone"):
        assert word in text


def test_the_table_wins_over_a_split_that_is_made_otherwise_today(scans):
    index, cache = opened(scans)
    rows = rows_of(index, cache.file_digests)
    other, _ = opened(scans, split_seed=5)
    today, notes = by_table(other, cache.file_digests, rows)
    assert today.splits.tolist() == index.splits.tolist()
    assert any("splits are those of the run's table" in note for note in notes)


def test_unlabelled_copies_of_held_out_scans_are_not_trained_on(scans, tmp_path):
    index, _ = opened(scans)
    test = index.positions("test")
    more = tmp_path / "more"
    more.mkdir()
    for n, i in enumerate(test[:2]):
        shutil.copy(index.path(i), more / f"nameless_{n}.png")
    draw(more, "another.png")
    joined, _ = opened(scans, unlabelled=[str(more)])
    used = {joined.files[i] for i in joined.positions("train")}
    assert not any("nameless" in file for file in used)
    assert any("another" in file for file in used)
    assert any("2 unlabelled scans equal validation or test scans to the pixel" in note for note in joined.notes)


def record(run, folder, start="random:x", resume=None, **settings):
    index, cache = opened(folder, **settings)
    provenance.record(run, index, cache.file_digests, start, resume)
    return index, cache


def test_provenance_follows_the_whole_chain_of_runs(scans, tmp_path):
    draw(tmp_path / "second", *(f"{c}/{c}-{7000 + i}-1.png" for c in ("CNV", "DME") for i in range(15)))
    draw(tmp_path / "third", *(f"{c}/{c}-{9000 + i}-1.png" for c in ("CNV", "DME") for i in range(15)))
    first, second, third = (tmp_path / name for name in ("run1", "run2", "run3"))
    index, cache = record(first, scans)
    record(second, tmp_path / "second", start=str(first))
    record(third, tmp_path / "third", start=str(second / "export"))
    known = provenance.trained_patients(index, cache.file_digests, provenance.trained_on(str(third)))
    assert known.patients == set(index.patients[index.positions("train")].tolist())
    assert known.unknown == ()
    # The start of a run knows what came before it, not what it is trained on.
    own, own_cache = opened(tmp_path / "third")
    start = provenance.trained_on(str(third / "checkpoints" / "start"))
    assert provenance.trained_patients(own, own_cache.file_digests, start).patients == frozenset()
    assert provenance.trained_patients(index, cache.file_digests, start).patients == known.patients
    # An export that was copied elsewhere brings its history along.
    shutil.copytree(third / "export", tmp_path / "elsewhere")
    copied = provenance.trained_on(str(tmp_path / "elsewhere"))
    assert provenance.trained_patients(index, cache.file_digests, copied).patients == known.patients


def test_trained_on_patients_are_known_in_a_renamed_copy_of_the_folder(scans, tmp_path):
    index, _ = record(tmp_path / "run", scans)
    copy = tmp_path / "copy"
    for i in range(len(index)):
        target = copy / index.class_names[index.labels[i]] / f"image_{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index.path(i), target)
    today, cache = opened(copy)
    known = provenance.trained_patients(today, cache.file_digests, provenance.trained_on(str(tmp_path / "run")))
    assert known.is_home
    assert len(known.patients) == len(index.positions("train"))


def test_scans_are_known_again_however_they_are_decoded(scans, tmp_path):
    index, _ = record(tmp_path / "run", scans)
    shutil.copytree(scans, tmp_path / "copy")
    today, cache = opened(tmp_path / "copy", max_side=60, neutralise_borders=False)
    known = provenance.trained_patients(today, cache.file_digests, provenance.trained_on(str(tmp_path / "run")))
    assert known.is_home
    assert by_table(today, cache.file_digests, rows_of(*files_of(index, scans)))[1] == []


def files_of(index, scans):
    return index, opened(scans)[1].file_digests


def test_patient_numbers_tell_in_another_folder_only_where_they_are_long(tmp_path, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "a", "CNV/CNV-3-1.png", "DME/DME-12345-1.png", "CNV/CNV-4-1.png")
    draw(tmp_path / "b", "CNV/CNV-3-2.png", "DME/DME-12345-2.png")
    record(tmp_path / "run", tmp_path / "a", val_fraction=0, test_fraction=0)
    index, cache = opened(tmp_path / "b")
    known = provenance.trained_patients(index, cache.file_digests, provenance.trained_on(str(tmp_path / "run")))
    assert known.patients == {"12345"}
    assert not known.is_home


def test_what_is_not_known_is_said(scans, tmp_path):
    assert provenance.trained_on("timm:vit_tiny_patch16_224") == []
    (tmp_path / "weights.pth").write_bytes(b"")
    assert provenance.trained_on(str(tmp_path / "weights.pth")) is None
    index, cache = record(tmp_path / "run", scans, start=str(tmp_path / "weights.pth"))
    known = provenance.trained_patients(index, cache.file_digests, provenance.trained_on(str(tmp_path / "run")))
    assert known.unknown == (str(tmp_path / "weights.pth"),)


def test_a_resumed_run_still_knows_scans_that_are_gone(scans, tmp_path):
    run = tmp_path / "run"
    index, _ = record(run, scans)
    last = run / "checkpoints" / "last.pt"
    gone = index.files[index.positions("train")[0]]
    (scans / gone).unlink()
    table = provenance.table_of(last)
    assert [row.file for row in table] == list(index.files)
    today, cache = load_scans(str(scans), DatasetConfig(), PhantomConfig(), quiet, table)
    provenance.record(run, today, cache.file_digests, "random:x", last)
    assert gone in {row.file for row in provenance.trained_on(str(run))}
    assert gone in {row.file for row in provenance.table_of(last)}


def test_phantoms_of_other_seeds_are_other_patients(tmp_path, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(tmp_path / "cache"))
    small = {"patients": 8, "scans_per_patient": 1, "size": (64, 64)}
    index, cache = load_scans("phantom", DatasetConfig(), PhantomConfig(**small), quiet)
    provenance.record(tmp_path / "run", index, cache.file_digests, "random:x", None)
    other, other_cache = load_scans("phantom", DatasetConfig(), PhantomConfig(seed=1, **small), quiet)
    rows = provenance.trained_on(str(tmp_path / "run"))
    assert provenance.trained_patients(other, other_cache.file_digests, rows).patients == frozenset()
    assert provenance.trained_patients(index, cache.file_digests, rows).patients
