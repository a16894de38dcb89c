"""The audit finds what was planted: duplicates, leaks, shortcuts, bad files."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_oct.data.checks import audit, render
from dino_oct.data.index import DatasetConfig
from dino_oct.data.shortcut import check_shortcuts
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
    assert "Neither size nor border nor brightness predicts the class" in render(report)


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
    ],
    ids=["compressed", "rescaled", "brightened", "border"],
)
def test_altered_copies_are_near_duplicates(planted, config, alter):
    save(planted, "test/CNV/CNV-900-1.png", alter(eye(2, 0)))
    duplicates = audit(planted, config, progress=False)["duplicates"]
    assert duplicates["exact"]["groups"] == []
    assert [pair[:2] for pair in duplicates["near"]["pairs"]] == [["test/CNV/CNV-900-1.png", "train/CNV/CNV-2-0.png"]]
    assert len(duplicates["near"]["across_splits_published"]) == 1
    assert duplicates["near"]["across_classes"] == []


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
    assert "Brightness alone (mean, contrast, percentiles and noise of a scan) gives the class away" in render(report)
    (warned,) = [finding for finding in of_data(report) if finding.kind == "shortcut"]
    assert warned.serious
    assert "brightness alone tells the class" in warned.text


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
    sizes, border = np.stack([np.full(400, 200), widths], axis=1), np.zeros((400, 9))
    others = (sizes, border, np.zeros((400, 9)))
    results, left_out = check_shortcuts(labels, patients, *others)
    by_scan, _ = check_shortcuts(labels, np.array([str(i) for i in range(400)]), *others)
    assert left_out == []
    assert results[0].low < results[0].balanced_accuracy < results[0].high
    assert results[0].high - results[0].low > 2 * (by_scan[0].high - by_scan[0].low)
    labels = labels.copy()
    labels[:10] = 2
    assert check_shortcuts(labels, patients, *others)[1] == [2]


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
