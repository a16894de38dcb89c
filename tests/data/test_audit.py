"""The audit finds what was planted: duplicates, leaks, shortcuts, bad files."""

import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from dino_oct.data import duplicates
from dino_oct.data.audit_text import render
from dino_oct.data.cache import open_cache
from dino_oct.data.checks import audit
from dino_oct.data.duplicates import exact_groups, near_pairs, people_of
from dino_oct.data.fix import fixed_table
from dino_oct.data.index import DatasetConfig, index_scans
from dino_oct.data.shortcut import check_shortcuts
from dino_oct.data.table import table_of, write_table
from dino_oct.scan_data import ScanData
from evaluation.report.findings import of_data

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_SCANS = REPOSITORY.parent / "shared" / "data" / "oct2017-sample"


def eye(patient, scan, size=(128, 256)):
    """Band with a shape that belongs to the patient and speckle that belongs to the scan."""
    anatomy, speckle = np.random.default_rng(patient), np.random.default_rng((patient, scan))
    height, width = size
    columns = np.linspace(0, 1, width)
    level = (
        0.3
        + 0.4 * anatomy.random()
        + 0.1 * np.sin(2 * np.pi * (columns * anatomy.uniform(0.3, 1.5) + anatomy.random()))
    )
    distance = (np.arange(height)[:, None] / height - level) / (0.04 + 0.08 * anatomy.random())
    return ((20 + 150 * np.exp(-(distance**2))) * speckle.gamma(4, 1 / 4, size)).clip(0, 235).astype(np.uint8)


def save(root, file, scan, **options):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scan).save(root / file, **options)


def recompressed(scan, quality=70):
    data = io.BytesIO()
    Image.fromarray(scan).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


@pytest.fixture
def config(tmp_path):
    return DatasetConfig(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def planted(tmp_path):
    """40 patients with 3 scans each, clean but for what the test plants."""
    for patient in range(40):
        name = ("CNV", "NORMAL")[patient % 2]
        split = "test" if patient >= 30 else "train"
        for scan in range(3):
            save(tmp_path / "scans", f"{split}/{name}/{name}-{patient}-{scan}.png", eye(patient, scan))
    return tmp_path / "scans"


def test_clean_folder_has_no_findings(planted, config):
    report = audit(planted, config, progress=False)
    assert report["duplicates"]["exact"]["groups"] == []
    assert report["duplicates"]["near"]["pairs"] == []  # other scans of a patient are not duplicates
    assert report["patients"]["in_several_classes"] == []
    assert all(not shared["patients"] for shared in report["patients"]["shared_between_splits"].values())
    assert not any(result["better_than_chance"] for result in report["shortcut"]["results"])
    assert report["splits"]["published"]["CNV"]["train"] == {"scans": 45, "patients": 15}
    assert report["splits"]["published"]["all"]["all"] == {"scans": 120, "patients": 40}
    assert "None predicts the class better than chance: size, border, brightness, noise." in render(report)


def test_exact_duplicates_are_found_across_splits_classes_and_formats(planted, config):
    save(planted, "test/NORMAL/NORMAL-900-1.png", eye(2, 0))
    save(planted, "train/CNV/CNV-901-1.bmp", eye(2, 0))
    exact = audit(planted, config, progress=False)["duplicates"]["exact"]
    assert exact["groups"] == [["test/NORMAL/NORMAL-900-1.png", "train/CNV/CNV-2-0.png", "train/CNV/CNV-901-1.bmp"]]
    assert exact["surplus_scans"] == 2
    assert len(exact["across_splits_published"]) == 2
    assert len(exact["across_classes"]) == 2
    assert len(exact["across_patients"]) == 3


@pytest.mark.parametrize(
    "alter",
    [
        recompressed,
        lambda s: np.asarray(Image.fromarray(s).resize((192, 96), Image.Resampling.BICUBIC)),
        lambda s: (s * 0.8 + 10).astype(np.uint8),
        lambda s: np.concatenate([np.full((12, s.shape[1]), 255, np.uint8), s[12:]]),
        lambda s: s[14:],
        lambda s: np.asarray(Image.fromarray(s).resize((s.shape[1], s.shape[0] * 5 // 4), Image.Resampling.BICUBIC)),
        lambda s: np.asarray(Image.fromarray(s).rotate(0.5, Image.Resampling.BICUBIC)),
    ],
    ids=["compressed", "rescaled", "brightened", "border", "cropped", "stretched", "tilted"],
)
def test_altered_copies_are_near_duplicates(planted, config, alter):
    save(planted, "test/CNV/CNV-900-1.png", alter(eye(2, 0)))
    index, cache = open_cache(index_scans(planted, config), config, progress=False)
    assert exact_groups(cache) == []
    ((i, j, _),) = near_pairs(cache, people_of(index))
    assert (index.files[i], index.files[j]) == ("test/CNV/CNV-900-1.png", "train/CNV/CNV-2-0.png")


def test_a_near_duplicate_with_another_label_is_named(planted, config):
    save(planted, "test/NORMAL/NORMAL-900-1.png", recompressed(eye(2, 0)))
    report = audit(planted, config, progress=False)
    pair = ["test/NORMAL/NORMAL-900-1.png", "train/CNV/CNV-2-0.png"]
    assert report["duplicates"]["near"]["across_classes"] == [pair]
    assert report["duplicates"]["near"]["across_splits_published"] == [pair]
    assert "across classes: 1 pair\n    test/NORMAL/NORMAL-900-1.png  =  train/CNV/CNV-2-0.png" in render(report)


def test_scans_of_one_patient_are_no_near_duplicates_and_slices_of_one_volume_neither(planted, config):
    """Also where the table knows the volume but not the patient."""
    save(planted, "train/CNV/CNV-2-9.png", recompressed(eye(2, 0)))
    assert audit(planted, config, progress=False)["duplicates"]["near"]["pairs"] == []
    save(planted, "a.png", eye(50, 0))
    save(planted, "b.png", recompressed(eye(50, 0)))
    for volumes, pairs in ((("1", "1"), []), (("1", "2"), [["a.png", "b.png"]])):
        rows = [f"{file},{volume}" for file, volume in zip(("a.png", "b.png"), volumes, strict=True)]
        (planted / "t.csv").write_text("\n".join(["file,volume", *rows]))
        near = audit(planted / "t.csv", config, progress=False)["duplicates"]["near"]
        assert [pair[:2] for pair in near["pairs"]] == pairs


def test_a_copy_is_found_behind_many_slices_of_its_own_volume(tmp_path, config):
    """The nearest of a slice are its neighbours in the volume; the other patient's copy comes after them."""
    base, rng = eye(1, 0), np.random.default_rng(0)
    for i in range(40):
        noisy = (base + rng.normal(0, 2, base.shape)).clip(0, 255).astype(np.uint8)
        save(tmp_path / "scans", f"NORMAL/NORMAL-1-{i}.png", noisy)
    save(
        tmp_path / "scans",
        "NORMAL/NORMAL-2-1.png",
        (base + rng.normal(0, 25, base.shape)).clip(0, 255).astype(np.uint8),
    )
    pairs = audit(tmp_path / "scans", config, progress=False)["duplicates"]["near"]["pairs"]
    assert pairs
    assert all("NORMAL/NORMAL-2-1.png" in pair for pair in pairs)


def test_near_duplicates_are_kept_beside_the_cache_and_sought_again_for_other_people(planted, config, monkeypatch):
    save(planted, "test/CNV/CNV-900-1.png", recompressed(eye(2, 0)))
    index, cache = open_cache(index_scans(planted, config), config, progress=False)
    people = people_of(index)
    pairs = near_pairs(cache, people)
    assert len(pairs) == 1
    calls = []
    monkeypatch.setattr(duplicates, "_seek", lambda *args: calls.append(args) or [])
    assert near_pairs(cache, people) == pairs
    assert not calls
    assert near_pairs(cache, np.where(people == "900", "2", people)) == []
    assert len(calls) == 1
    for file in cache.folder.glob("near-*"):
        file.write_bytes(b"damaged")
    near_pairs(cache, people)
    assert len(calls) == 2


def test_a_bar_that_is_drawn_changes_no_pair(planted, config, monkeypatch):
    index, cache = open_cache(index_scans(planted, config), config, progress=False)
    sought = {"people": people_of(index), "cache": cache}
    pairs = near_pairs(**sought)
    for file in cache.folder.glob("near-*"):
        file.unlink()
    drawn = {"disable": False, "mininterval": 0}
    monkeypatch.setattr(duplicates, "tqdm", lambda *args, **options: tqdm(*args, **options | drawn))
    assert near_pairs(**sought, progress=True) == pairs


def volumes_of_eyes(root, **columns):
    """A table of 20 patients, two eyes each at two visits, two slices a volume; ``columns`` add or change values."""
    rows = []
    for patient, side, visit, number in product(range(20), "RL", (1, 2), (0, 1)):
        row = {"file": f"{patient}-{side}-{visit}-{number}.png", "label": ("CNV", "NORMAL")[patient % 2],
               "patient": patient, "eye": side, "visit": visit, "volume": f"{patient}{side}{visit}",
               "slice": number}  # fmt: skip
        row |= {name: value(patient, side, visit, number, row) for name, value in columns.items()}
        save(root, row["file"], eye(100 * patient + 10 * "RL".index(side), 2 * visit + number))
        rows.append(row)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (root / "t.csv").write_text("\n".join(lines))
    return root / "t.csv"


def test_patients_eyes_visits_volumes_and_devices_are_counted(tmp_path, config):
    table = volumes_of_eyes(tmp_path, device=lambda p, *_: "A" if p < 12 else "B" if p < 18 else "")
    report = audit(table, config, progress=False)
    units = report["units"]
    assert {name: counts["count"] for name, counts in units.items()} == {
        "patients": 20, "eyes": 40, "visits": 40, "volumes": 80, "devices": 2,
    }  # fmt: skip
    assert units["volumes"]["scans_each"] == {"least": 2, "median": 2, "most": 2}
    assert units["devices"]["of_scans"] == 18 * 8
    assert sum(units["eyes"]["splits"].values()) == 40
    assert report["devices"]["CNV"]["B"] == {"scans": 24, "patients": 3}
    assert report["eyes"] == {"at_one_visit": [], "over_visits": []}
    assert report["duplicates"]["near"]["pairs"] == []
    assert not any(result["better_than_chance"] for result in report["shortcut"]["results"])
    text = render(report)
    assert "devices: 2, with 48 to 96 scans each (median 72), known of 144 scans; train" in text
    assert "eyes: 40, with 4 scans each; train" in text
    assert "scans (patients) of each device" in text
    assert "labels differ" not in text


def test_labels_that_differ_within_an_eye_are_named(tmp_path, config):
    def label(patient, side, visit, number, row):
        if patient == 3 and side == "R" and visit == 2 and number == 1:
            return "CNV"  # at one visit
        return "CNV" if patient == 5 and side == "L" and visit == 2 else row["label"]  # from one visit to the next

    report = audit(volumes_of_eyes(tmp_path, label=label), config, progress=False)
    at_one, over = report["eyes"]["at_one_visit"], report["eyes"]["over_visits"]
    files = {"NORMAL": "3-R-2-0.png", "CNV": "3-R-2-1.png"}
    assert at_one == [{"patient": "3", "eye": "R", "visit": "2", "labels": {"NORMAL": 1, "CNV": 1}, "files": files}]
    assert [(entry["patient"], entry["eye"], entry["labels"]) for entry in over] == [
        ("5", "L", {"NORMAL": 2, "CNV": 2})
    ]
    text = render(report)
    assert "labels differ within an eye at one visit: 1\n  patient 3, R, visit 2: NORMAL 1 (3-R-2-0.png), CNV 1" in text
    assert "labels differ within an eye over visits, as disease may: 1\n  patient 5, L: NORMAL 2" in text


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("device", lambda p, *_: "A" if p % 2 or p == 4 else "B", "The device alone gives the class away"),
        ("slice", lambda p, s, v, number, row: 2 * number + p % 2, "The slice's number alone gives the class away"),
    ],
)
def test_a_device_or_slices_for_each_class_are_shortcuts(tmp_path, config, name, column, said):
    report = audit(volumes_of_eyes(tmp_path, **{name: column}), config, progress=False)
    by_name = {result["features"]: result for result in report["shortcut"]["results"]}
    told = {features for features, result in by_name.items() if result["better_than_chance"]}
    assert told == {{"slice": "position"}.get(name, name)}
    assert said in render(report)
    (warned,) = [finding for finding in of_data(report) if finding.kind == "shortcut"]
    assert f"{told.pop()} alone tells the class" in warned.text


def test_noise_of_one_class_is_a_shortcut(tmp_path, config):
    rng = np.random.default_rng(0)
    for patient in range(40):
        name = ("CNV", "NORMAL")[patient % 2]
        scan = 100 + rng.normal(0, 4 if name == "CNV" else 8, (64, 64))
        save(tmp_path / "scans", f"{name}/{name}-{patient}-0.png", scan.clip(0, 255).astype(np.uint8))
    report = audit(tmp_path / "scans", config, progress=False)
    by_name = {result["features"]: result for result in report["shortcut"]["results"]}
    assert by_name["noise"]["balanced_accuracy"] > 0.9
    assert "Noise alone gives the class away" in render(report)


def test_what_is_not_known_of_some_scans_is_checked_on_the_others():
    labels, patients = np.repeat([0, 1], 20), np.array([str(i) for i in range(40)])
    device = np.stack([labels == 0, labels == 1], axis=1).astype(float)
    unknown = np.arange(40) % 20 >= 12
    device[unknown] = np.nan
    (result,), _ = check_shortcuts(labels, patients, {"device": device})
    assert result.balanced_accuracy == 1
    device[labels == 1] = np.nan
    assert check_shortcuts(labels, patients, {"device": device})[0] == []


# ---- leaks between splits, and a table without them ------------------------------------------------------------------


@pytest.fixture
def leaking(planted):
    """Of train scans in test, under other patients: a near-duplicate, an exact copy, and one with another label; a
    patient in both; and two files without a patient that are one."""
    save(planted, "test/CNV/CNV-900-1.png", recompressed(eye(2, 0)))
    save(planted, "test/CNV/CNV-901-1.png", eye(4, 1))
    save(planted, "test/NORMAL/NORMAL-902-1.png", eye(6, 1))
    save(planted, "test/CNV/CNV-8-7.png", eye(8, 7))
    save(planted, "train/CNV/alone.png", eye(77, 1))
    save(planted, "test/CNV/copied.png", recompressed(eye(77, 1)))
    return planted


def test_the_leak_of_a_split_is_told_in_one_line(leaking, config):
    config.split = "official"
    index, cache = open_cache(index_scans(leaking, config), config, progress=False)
    data = ScanData(index, cache, config, None, ())
    (note,) = data.leak_notes(index.positions("test"), "test")
    assert note.startswith("leak: 5 of 35 test scans are known from train scans")
    assert "1 scan of 1 patient in both (e.g. 8)" in note
    assert "2 exact copies (e.g. test/CNV/CNV-901-1.png = train/CNV/CNV-4-1.png)" in note
    assert "2 near-duplicates of another patient (e.g. test/CNV/CNV-900-1.png = train/CNV/CNV-2-0.png)" in note
    assert "--fix FILE" in note
    (without,) = data.leak_notes(index.positions("test"), "test", with_patients=False)
    assert without.startswith("leak: 4 of 35")
    others = [i for i in index.positions("test") if "NORMAL-3" in index.files[i]]
    assert len(others) == 15
    assert data.leak_notes(np.array(others), "test") == []


def test_a_clean_split_leaks_nothing(planted, config):
    index, cache = open_cache(index_scans(planted, config), config, progress=False)
    assert ScanData(index, cache, config, None, ()).leak_notes(index.positions("test"), "test") == []


def test_a_fixed_table_has_no_leak(leaking, config, call, tmp_path):
    fixed = leaking / "fixed.csv"
    done = call("dino_oct/data/audit.py", leaking, "--fix", fixed, "--dataset.cache-dir", config.cache_dir)
    assert done.returncode == 0, done.stderr
    for line in (
        "8 patients joined into 4: exact copies or near-duplicates of each other",
        "2 scans left out: exact copies with different labels",
        "4 scans of 4 patients moved to where most of theirs are: 4 to train",
        f"{fixed}: 124 scans; use it with --data {fixed}",
    ):
        assert line in done.stdout.splitlines()
    for line in (
        "left out: test/NORMAL/NORMAL-902-1.png: NORMAL, but equal to train/CNV/CNV-6-1.png, which is CNV",
        "left out: train/CNV/CNV-6-1.png: CNV, but equal to test/NORMAL/NORMAL-902-1.png, which is NORMAL",
    ):
        assert line in done.stderr.splitlines()
    report = audit(fixed, config, progress=False)
    assert report["scans"]["usable"] == 124
    assert report["duplicates"]["near"]["pairs"] == []
    assert all(not shared["patients"] for shared in report["patients"]["shared_between_splits"].values())
    assert report["duplicates"]["exact"]["across_patients"] == []
    assert report["duplicates"]["exact"]["across_classes"] == []
    for split in ("auto", "official", "patient"):
        index, cache = open_cache(index_scans(fixed, replace(config, split=split)), config, progress=False)
        data = ScanData(index, cache, config, None, ())
        assert [data.leak_notes(index.positions(part), part) for part in ("val", "test")] == [[], []]
    patients = dict(zip(index.files, index.patients.tolist(), strict=True))
    assert patients["test/CNV/CNV-900-1.png"] == patients["train/CNV/CNV-2-0.png"] == "2"
    assert patients["test/CNV/copied.png"] == patients["train/CNV/alone.png"] == "joined 1"
    again = fixed_table(index, cache, tmp_path)
    assert not again.changes
    assert again.columns["patient"] == table_of(index)["patient"]
    write_table(tmp_path / "again.csv", again.columns)  # not beside the scans
    away = index_scans(tmp_path / "again.csv", config)
    assert [away.path(i) for i in range(len(away))] == [index.path(i) for i in range(len(index))]


def test_slices_without_a_patient_take_their_volume(tmp_path, config):
    for i in range(20):
        save(tmp_path, f"{i}.png", eye(i // 2, i))
    lines = [f"{i}.png,{'AB'[i // 2 % 2]},v{i // 2}" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["file,label,volume", *lines]))
    index, cache = open_cache(index_scans(tmp_path / "t.csv", config), config, progress=False)
    fixed = fixed_table(index, cache, tmp_path)
    assert fixed.columns["patient"] == [f"volume {volume}" for volume in fixed.columns["volume"]]
    assert fixed.changes == ("20 scans without a patient took their volume as one",)


def test_the_table_of_a_fix_is_named_as_one(call, planted, tmp_path):
    done = call("dino_oct/data/audit.py", planted, "--fix", tmp_path / "fixed.txt")
    assert done.returncode == 2
    assert "a table ends in .csv, .tsv or .parquet" in done.stderr


def test_patients_in_two_splits_and_two_classes_are_named_and_the_used_split_is_clean(planted, config):
    save(planted, "test/NORMAL/NORMAL-4-8.png", eye(4, 8))  # patient 4 trains as CNV
    report = audit(planted, config, progress=False)
    shared = report["patients"]["shared_between_splits"]
    assert report["patients"]["in_several_classes"] == ["4"]
    assert shared["published: train and test"] == {"patients": ["4"], "scans": {"train": 3, "test": 1}}
    assert all(not overlap["patients"] for where, overlap in shared.items() if where.startswith("used"))
    assert "shared, published: train and test: 1, with 3 train, 1 test scans (4)" in render(report)


def test_class_dependent_size_is_called_a_shortcut(tmp_path, config):
    for patient in range(40):
        name = ("CNV", "NORMAL")[patient % 2]
        size = (128, 256) if patient % 10 and name == "CNV" else (128, 192)
        for scan in range(2):
            save(tmp_path / "scans", f"train/{name}/{name}-{patient}-{scan}.png", eye(patient, scan, size))
    report = audit(tmp_path / "scans", config, progress=False)
    size, border, *_ = report["shortcut"]["results"]
    assert size["balanced_accuracy"] > 0.8
    assert size["better_than_chance"]
    assert border["balanced_accuracy"] == pytest.approx(0.5)
    assert "Image size gives the class away" in render(report)


def test_a_device_for_each_class_is_called_a_shortcut(tmp_path, config):
    """One of the two saves 12 bits as if they were 16: the same eyes, darker."""
    for patient in range(40):
        name = ("CNV", "NORMAL")[patient % 2]
        scan = eye(patient, 0).astype(np.uint16) * (257 if name == "CNV" else 100)
        save(tmp_path / "scans", f"train/{name}/{name}-{patient}-0.png", scan)
    report = audit(tmp_path / "scans", config, progress=False)
    by_name = {result["features"]: result for result in report["shortcut"]["results"]}
    assert by_name["brightness"]["balanced_accuracy"] > 0.9
    assert by_name["brightness"]["better_than_chance"]
    assert not by_name["size + border"]["better_than_chance"]
    assert "Brightness alone (mean, contrast and percentiles of a scan) gives the class away" in render(report)
    warned = [finding for finding in of_data(report) if finding.kind == "shortcut"]
    assert [finding.text.split(" alone tells the class")[0] for finding in warned] == ["brightness", "noise"]
    assert warned[0].serious


def test_inverted_scans_are_listed(planted, config):
    save(planted, "train/CNV/CNV-2-0.png", 255 - eye(2, 0))
    report = audit(planted, config, progress=False)
    assert report["inverted"] == ["train/CNV/CNV-2-0.png"]
    text = render(report)
    assert "seem inverted (bright background, dark retina): 1\n  train/CNV/CNV-2-0.png" in text
    assert "note: 1 scan: seems inverted" in text


def test_class_dependent_border_is_called_a_shortcut_and_gone_after_neutralising(tmp_path, config):
    for patient in range(40):
        name = ("CNV", "NORMAL")[patient % 2]
        scan = eye(patient, 0)
        if name == "CNV":
            scan[: 8 + patient % 7] = 255
        save(tmp_path / "scans", f"train/{name}/{name}-{patient}-0.png", scan)
    report = audit(tmp_path / "scans", config, progress=False)
    assert report["borders"]["per_class"]["CNV"]["with_border"] == 20
    assert report["borders"]["per_class"]["NORMAL"]["with_border"] == 0
    assert report["borders"]["left_after"] == 0
    border = report["shortcut"]["results"][1]
    assert border["balanced_accuracy"] > 0.9
    assert "The white border gives the class away" in render(report)


def test_intervals_are_by_patient_and_tiny_classes_are_named():
    # Ten scans of each patient say the same: the interval must be as wide as 40 patients make it, not 400 scans.
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40) % 2, 10)
    patients = np.repeat([str(i) for i in range(40)], 10)
    widths = np.repeat(np.where(rng.random(40) < 0.75, np.arange(40) % 2, 1 - np.arange(40) % 2), 10) * 200 + 300
    sizes = np.stack([np.full(400, 200), widths], axis=1)
    features = {"size": sizes.astype(float)}
    results, left_out = check_shortcuts(labels, patients, features)
    by_scan, _ = check_shortcuts(labels, np.array([str(i) for i in range(400)]), features)
    assert left_out == []
    assert results[0].low < results[0].balanced_accuracy < results[0].high
    assert results[0].high - results[0].low > 2 * (by_scan[0].high - by_scan[0].low)
    labels = labels.copy()
    labels[:10] = 2
    assert check_shortcuts(labels, patients, features)[1] == [2]


def test_bad_files_are_listed_and_the_rest_is_audited(planted, config):
    (planted / "train/CNV/CNV-2-0.png").write_bytes(b"")
    report = audit(planted, config, progress=False)
    assert report["left_out"] == [{"file": "train/CNV/CNV-2-0.png", "reason": "empty file"}]
    assert report["scans"]["usable"] == 119
    assert "left out: 1\n  train/CNV/CNV-2-0.png: empty file" in render(report)


def test_command_prints_a_report_of_unlabelled_scans_and_writes_json(call, tmp_path):
    for i in range(4):
        save(tmp_path / "scans", f"scan_{i}.jpg", eye(i, 0))
    done = call("dino_oct/data/audit.py", tmp_path / "scans", "--json", tmp_path / "out/report.json")
    assert done.returncode == 0, done.stderr
    assert "4 images, 4 usable" in done.stdout
    assert "unlabelled" in done.stdout
    assert "not possible" in done.stdout
    assert json.loads((tmp_path / "out/report.json").read_text())["sizes"] == {"unlabelled": {"256 x 128": 4}}


def test_command_refuses_missing_and_empty_folders_in_one_line(call, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, reason in (("missing", "no such folder"), ("empty", "no images")):
        done = call("dino_oct/data/audit.py", tmp_path / folder)
        assert done.returncode == 2
        assert done.stdout == ""
        assert reason in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(not REAL_SCANS.is_dir(), reason="no real scans beside the repository")
def test_real_scans_carry_a_border_shortcut(tmp_path, config):
    for file in sorted(REAL_SCANS.glob("*/*/*.jpeg"))[::2]:
        linked = tmp_path / "scans" / file.relative_to(REAL_SCANS)
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.symlink_to(file)
    report = audit(tmp_path / "scans", config, progress=False)
    assert report["left_out"] == []
    border = report["shortcut"]["results"][1]
    assert border["features"] == "border"
    assert border["better_than_chance"]
    assert report["borders"]["left_after"] == 0
    assert report["inverted"] == []
