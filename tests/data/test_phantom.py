"""Phantoms: reproducible, exact in what they say about themselves, and not solvable by a shortcut."""

import hashlib
import json
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from dino_oct.data import phantom_worker
from dino_oct.data.phantom import PhantomConfig, patient_plan, phantom_folder, write_phantoms
from dino_oct.data.phantom_anatomy import LAYERS
from dino_oct.data.phantom_draw import CLASSES, draw_phantom
from dino_oct.errors import InputError

SMALL = PhantomConfig(patients=12, scans_per_patient=2, size=(64, 80), seed=3)
DISEASED = [label for label in CLASSES if label != "NORMAL"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "small", SMALL, progress=False)


def about(folder):
    return json.loads((folder / "phantom.json").read_text())


# One scan


@pytest.mark.parametrize("label", CLASSES)
def test_the_same_arguments_draw_the_same_scan_whatever_was_drawn_before(label):
    first = draw_phantom(label, 5, 2, (96, 128), seed=7)
    draw_phantom("DME", 6, 1, (64, 64), seed=8)
    again = draw_phantom(label, 5, 2, (96, 128), seed=7)
    assert first.severity == again.severity
    for name in ("image", "lesion", "retina", "layers"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_every_number_of_the_key_matters():
    keys = [(5, 2, 7), (5, 3, 7), (6, 2, 7), (5, 2, 8), (5, 0, 7), (0, 5, 7), (0, 0, 0), (0, 0, 1), (7, 0, 0)]
    images = {draw_phantom("NORMAL", patient, scan, (64, 64), seed).image.tobytes() for patient, scan, seed in keys}
    assert len(images) == len(keys)


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (64, 300), (300, 64), (496, 512)])
def test_masks_layers_and_severity_agree_with_the_class(size):
    for i in range(24 if max(size) > 400 else 80):
        label = CLASSES[i % 4]
        phantom = draw_phantom(label, i, 1, size, seed=1)
        assert phantom.image.shape == phantom.lesion.shape == phantom.retina.shape == size
        assert phantom.image.dtype == np.uint8
        assert phantom.lesion.dtype == phantom.retina.dtype == bool
        assert phantom.layers.shape == (len(LAYERS), size[1])
        assert phantom.layers.dtype == np.float32
        assert not (phantom.lesion & ~phantom.retina).any()
        assert phantom.lesion.any() == (label != "NORMAL")
        assert (phantom.severity == 0) if label == "NORMAL" else (0.05 <= phantom.severity <= 1)
        assert (np.diff(phantom.layers, axis=0) >= 0).all()
        assert phantom.layers.min() >= 0
        assert phantom.layers.max() <= size[0] - 1


def test_layers_lie_where_the_picture_changes():
    """Bright nerve fibres start at the ILM; the bright epithelium ends at Bruch's membrane."""
    brighter_below_ilm, darker_below_bruch = [], []
    for patient in range(12):
        phantom = draw_phantom("NORMAL", patient, 0, (496, 512))
        image, columns = phantom.image.astype(float), np.arange(512)
        ilm, bruch = (np.rint(phantom.layers[LAYERS.index(name)]).astype(int) for name in ("ILM", "BM"))
        brighter_below_ilm.append(image[ilm + 4, columns].mean() - image[ilm - 4, columns].mean())
        darker_below_bruch.append(image[bruch - 4, columns].mean() - image[bruch + 4, columns].mean())
    assert min(brighter_below_ilm) > 10
    assert min(darker_below_bruch) > 10


def test_druse_mask_is_the_space_between_epithelium_and_bruchs_membrane():
    phantom = draw_phantom("DRUSEN", 3, 0, (496, 512))
    base, bruch = (phantom.layers[LAYERS.index(name)] for name in ("RPE base", "BM"))
    np.testing.assert_allclose(phantom.lesion.sum(0), np.where(bruch - base > 0.6, bruch - base, 0), atol=1.0)


def test_cysts_are_dark_and_neovascular_mounds_lift_the_retina():
    for patient in range(8):
        normal = draw_phantom("NORMAL", patient, 0, (496, 512))
        edema = draw_phantom("DME", patient, 0, (496, 512))
        assert edema.image[edema.lesion].mean() < normal.image[normal.retina].mean() - 10
        mound = draw_phantom("CNV", patient, 0, (496, 512))
        lifted = normal.layers[LAYERS.index("EZ")] - mound.layers[LAYERS.index("EZ")]
        assert lifted[mound.lesion.any(0)].mean() > 4


@pytest.mark.parametrize("label", DISEASED)
def test_only_the_lesion_depends_on_the_class(label):
    """Eye, device, speckle and position are the same picture; far from the lesion not a pixel differs."""
    untouched = []
    for patient in range(10):
        healthy, diseased = (draw_phantom(name, patient, 4, (128, 128)) for name in ("NORMAL", label))
        np.testing.assert_allclose(healthy.layers[-1], diseased.layers[-1])  # Bruch's membrane stays
        same = healthy.image == diseased.image
        # Choroid and vitreous away from the retina, the choroid also away from the shadow of the lesion.
        lesion_free = ~(diseased.lesion.any(0) | np.any(np.abs(healthy.layers - diseased.layers) > 0.01, axis=0))
        vitreous = np.arange(128)[:, None] < diseased.layers[0] - 30
        assert same[vitreous].all()
        untouched.append(same[:, lesion_free].mean() if lesion_free.any() else 1.0)
    assert np.mean(untouched) > 0.9


@pytest.mark.parametrize("label", DISEASED)
def test_severity_drives_the_size_of_the_lesion(label):
    scans = [draw_phantom(label, patient, 0, (128, 128)) for patient in range(80)]
    severity = np.array([scan.severity for scan in scans])
    area = np.array([scan.lesion.mean() for scan in scans])
    assert area[severity > 0.7].mean() > 2 * area[severity < 0.4].mean()
    ranks = [np.argsort(np.argsort(values)) for values in (severity, area)]
    assert np.corrcoef(*ranks)[0, 1] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("GLAUCOMA", 0, 0), "CNV, DME, DRUSEN, NORMAL"),
        (("CNV", -1, 0), "from 0"),
        (("CNV", 0, 0, (16, 128)), "between 32 and 4096"),
        (("CNV", 0, 0, (128, 9999)), "between 32 and 4096"),
    ],
)
def test_wrong_arguments_say_what_would_be_right(arguments, message):
    with pytest.raises(InputError, match=message):
        draw_phantom(*arguments)


# No shortcut


def test_neither_pixels_nor_grey_statistics_give_the_class_away():
    """Nearest neighbours among 96 patients: far from solved on pixels, near chance (25 %) on global statistics."""

    def scans(patients, per_patient):
        drawn = [(draw_phantom(CLASSES[p % 4], p, s, (48, 48)).image, p % 4) for p in patients for s in per_patient]
        images, labels = zip(*drawn, strict=True)
        return np.stack(images).reshape(len(images), -1).astype(np.float32), np.array(labels)

    def accuracy(train, test, labels, truth, k=5):
        centre, spread = train.mean(0), train.std(0).mean() if train.shape[1] > 100 else train.std(0)
        train, test = (train - centre) / spread, (test - centre) / spread
        train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
        similarity = test @ train.T
        nearest = np.argsort(-similarity, axis=1)[:, :k]
        votes = np.exp(np.take_along_axis(similarity, nearest, 1) / 0.07)
        scores = np.stack([(votes * (labels[nearest] == c)).sum(1) for c in range(4)], 1)
        return (scores.argmax(1) == truth).mean()

    def statistics(pixels):
        return np.stack([pixels.mean(1), pixels.std(1), *np.percentile(pixels, [5, 25, 50, 75, 95], axis=1)], 1)

    train, labels = scans(range(96), range(6))
    test, truth = scans(range(1000, 1060), range(4))
    assert accuracy(train, test, labels, truth) < 0.75
    assert accuracy(statistics(train), statistics(test), labels, truth) < 0.40


# A folder


# Grey means of 2 x 4 fields. Other random numbers change them by more than the test allows, other rounding by less.
DRAWN = {
    "CNV": [48.12, 40.18, 43.02, 48.17, 81.61, 93.42, 83.96, 74.05],
    "DME": [48.16, 43.14, 46.18, 49.16, 81.58, 92.14, 76.89, 72.28],
    "DRUSEN": [48.12, 39.41, 36.75, 46.7, 81.23, 94.23, 86.34, 74.89],
    "NORMAL": [48.12, 39.41, 36.86, 47.15, 81.61, 94.11, 86.22, 73.64],
}


def test_single_scans_are_those_that_this_version_always_drew(tmp_path):
    """Cached folders are named by version and settings, so neither a picture nor a name may change without the version.

    Digests where nothing depends on how a processor rounds; means where it may turn one grey value into the next.
    """
    folder = phantom_folder(PhantomConfig(4, 2, (64, 80), seed=3, depth=0.6), tmp_path)
    assert folder.name == "phantom-v2-18699cb8b544"
    assert digest((folder / "phantom.json").read_bytes()) == "f46b06b06594dcb1"
    masks = sorted((folder / "masks").rglob("*.png"))
    assert digest(b"".join(np.asarray(Image.open(mask)).tobytes() for mask in masks)) == "f774538b3fb29a12"
    for label, expected in DRAWN.items():
        image = draw_phantom(label, 5, 2, (64, 80), seed=7, depth=0.6).image
        means = image.reshape(2, 32, 4, 20).mean((1, 3), dtype=float)
        np.testing.assert_allclose(means.ravel(), expected, atol=0.03)


def digest(content):
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def test_folder_has_the_shape_and_names_of_oct2017(folder):
    images = sorted(folder.glob("*/*/*.jpeg"))
    assert len(images) == SMALL.patients * SMALL.scans_per_patient
    rows = np.load(folder / "layers.npz")
    records = {record["file"]: record for record in about(folder)["scans"]}
    assert sorted(records) == sorted(rows["files"].tolist()) == [str(i.relative_to(folder)) for i in images]
    assert rows["rows"].shape == (len(images), len(LAYERS), 80)
    for i, name in enumerate(rows["files"].tolist()):
        split, label, file = name.split("/")
        record = records[name]
        assert file == f"{label}-{record['patient']}-{record['scan']}.jpeg"
        assert (split, label) == (record["split"], record["label"])
        drawn = draw_phantom(label, record["patient"], record["scan"], SMALL.size, SMALL.seed)
        with Image.open(folder / name) as image:
            assert image.mode == "L"
            assert np.abs(np.asarray(image).astype(float) - drawn.image).mean() < 4  # JPEG
        mask = np.asarray(Image.open(folder / "masks" / split / label / file.replace(".jpeg", ".png")))
        np.testing.assert_array_equal(mask == 255, drawn.lesion)
        np.testing.assert_array_equal(mask > 0, drawn.retina)
        assert set(np.unique(mask)) <= {0, 128, 255}
        np.testing.assert_allclose(rows["rows"][i], drawn.layers, atol=1 / 32)
        assert record["severity"] == pytest.approx(drawn.severity, abs=1e-4)


def test_folder_says_that_it_is_synthetic_and_how_it_was_made(folder):
    assert about(folder)["synthetic"] is True
    settings = {"patients": 12, "scans_per_patient": 2, "size": [64, 80], "seed": 3, "depth": 1.0}
    assert about(folder)["config"] == settings
    assert not list(folder.parent.glob(".*")), "no staging folder is left behind"


@pytest.mark.parametrize("patients", [4, 5, 8, 12, 13, 40, 400])
def test_splits_are_balanced_and_share_no_patient(patients):
    plan = patient_plan(patients)
    assert sorted(number for number, _, _ in plan) == list(range(1, patients + 1))
    counts = {split: [sum(p[1:] == (label, split) for p in plan) for label in CLASSES] for split in ("val", "test")}
    assert all(len(set(of_class)) == 1 for of_class in counts.values())
    assert all(any(p[1:] == (label, "train") for p in plan) for label in CLASSES)
    assert (counts["test"][0] > 0) == (patients >= 8)
    assert (counts["val"][0] > 0) == (patients >= 12)
    if patients == 400:
        assert (counts["val"][0], counts["test"][0]) == (12, 24)


def test_worker_processes_draw_the_same_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_worker, "_PIXELS_PER_WORKER", 1)
    monkeypatch.setattr(phantom_worker, "usable_cores", lambda: 2)
    other = write_phantoms(tmp_path / "parallel", SMALL, progress=False)
    files = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in (folder, other)]
    assert files[0] == files[1]
    for file in files[0]:
        if file.suffix != ".npz":
            assert (folder / file).read_bytes() == (other / file).read_bytes(), file
    np.testing.assert_array_equal(np.load(folder / "layers.npz")["rows"], np.load(other / "layers.npz")["rows"])


def test_a_failing_worker_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_worker, "_PIXELS_PER_WORKER", 1)
    monkeypatch.setattr(phantom_worker, "usable_cores", lambda: 2)
    monkeypatch.setattr(phantom_worker, "asdict", lambda job: {"nonsense": 1})
    with pytest.raises(RuntimeError, match="worker process"):
        write_phantoms(tmp_path / "out", SMALL, progress=False)
    assert not list(tmp_path.iterdir())


def test_an_earlier_phantom_is_replaced_and_foreign_files_stay(tmp_path):
    out = tmp_path / "phantoms"
    write_phantoms(out, PhantomConfig(8, 2, (32, 32)), progress=False)
    (out / "notes.txt").write_text("mine")
    write_phantoms(out, PhantomConfig(4, 1, (32, 32)), progress=False)
    assert len(list(out.glob("*/*/*.jpeg"))) == len(about(out)["scans"]) == 4
    assert not (out / "test").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_other_folders_are_never_written_to(tmp_path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpeg").write_bytes(b"x")
    for content in (None, "{}", "not json", '{"synthetic": true, "scans": [{"file": "../x", "mask": "y"}]}'):
        if content is not None:
            (out / "phantom.json").write_text(content)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="not empty"):
            write_phantoms(out, SMALL, progress=False)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="is a file"):
        write_phantoms(out / "holiday.jpeg", SMALL, progress=False)


@pytest.mark.parametrize(
    "wrong",
    [{"patients": 3}, {"scans_per_patient": 0}, {"size": (8, 8)}, {"seed": -1}],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(InputError):
        write_phantoms(tmp_path / "out", PhantomConfig(**wrong), progress=False)
    with pytest.raises(InputError):
        phantom_folder(PhantomConfig(**wrong), tmp_path)
    assert not list(tmp_path.iterdir())


# The cache


def test_cached_folder_is_drawn_once_and_named_by_its_settings(tmp_path):
    config = PhantomConfig(4, 1, (32, 32))
    folder = phantom_folder(config, tmp_path)
    drawn_at = (folder / "phantom.json").stat().st_mtime_ns
    assert phantom_folder(PhantomConfig(4, 1, [32, 32]), tmp_path) == folder
    assert (folder / "phantom.json").stat().st_mtime_ns == drawn_at
    others = [PhantomConfig(5, 1, (32, 32)), PhantomConfig(4, 2, (32, 32)), PhantomConfig(4, 1, (32, 33))]
    others += [PhantomConfig(4, 1, (32, 32), seed=1)]
    assert len({folder, *(phantom_folder(other, tmp_path) for other in others)}) == 5


def ask_for_folder(root, start, answers):
    start.wait()
    answers.put(str(phantom_folder(PhantomConfig(8, 3, (64, 64)), root)))


def test_processes_that_ask_at_once_get_one_complete_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(3), context.Queue()
    processes = [context.Process(target=ask_for_folder, args=(tmp_path, start, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    folders = {answers.get(timeout=240) for _ in processes}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(folders) == 1
    assert [str(path) for path in tmp_path.iterdir()] == list(folders), "no half-drawn folder is left"
    assert len(list(tmp_path.glob("*/*/*/*.jpeg"))) == 24


# The command line


def test_command_writes_a_folder_and_calls_it_synthetic(call, tmp_path):
    options = ["--patients", 4, "--scans-per-patient", 2, "--size", 40, 48, "--seed", 9]
    done = call("dino_oct/data/phantom.py", "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
    file = tmp_path / "out" / "train" / "DRUSEN" / "DRUSEN-3-2.jpeg"
    assert Image.open(file).size == (48, 40)
    assert about(tmp_path / "out")["config"]["seed"] == 9


def test_command_refuses_wrong_use_in_one_line(call, tmp_path):
    done = call("dino_oct/data/phantom.py", "--out", tmp_path / "out", "--patients", 2)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["error: --patients 2: must be from 4 to 100,000"]


def test_a_shorter_axial_range_shows_the_retina_larger():
    """The same eyes, magnified; the window tells nothing of the class, and masks stay with the picture."""
    for patient in range(6):
        whole = draw_phantom("CNV", patient, 1, (128, 128))
        close = draw_phantom("CNV", patient, 1, (128, 128), depth=0.5)
        assert close.image.shape == close.lesion.shape == (128, 128)
        assert 1.6 < close.retina.sum() / whole.retina.sum() < 2.1
        assert close.lesion.sum() > 1.5 * whole.lesion.sum()
        assert (close.lesion <= close.retina).all()
        inside = (close.layers > 0) & (close.layers < 127)
        assert inside.mean() > 0.97  # the retina is in view
        healthy, swollen = (draw_phantom(c, patient, 1, (128, 128), depth=0.5) for c in ("NORMAL", "DME"))
        assert np.abs(healthy.layers[-1] - swollen.layers[-1]).max() < 1e-4  # Bruch's membrane did not move
    with pytest.raises(InputError, match=r"depth 0\.1"):
        draw_phantom("CNV", 0, 0, depth=0.1)
