"""Volumes of phantoms: lesions go on from slice to slice, eyes of a patient are alike, and severity grows."""

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from dino_oct.data.index import assert_patients_disjoint, index_scans
from dino_oct.data.phantom import PhantomConfig, phantom_folder, write_phantoms
from dino_oct.data.phantom_anatomy import LAYERS
from dino_oct.data.phantom_bodies import DISEASES
from dino_oct.data.phantom_draw import CLASSES
from dino_oct.data.phantom_volume import draw_volume, eye_plan
from dino_oct.errors import InputError
from dino_oct.limits import check_settings

DISEASED = [label for label in CLASSES if label != "NORMAL"]
SLICES, SIZE, DEPTH = 19, (64, 96), 0.6
SMALL = PhantomConfig(patients=8, size=(32, 40), seed=3, slices=3, eyes=2, visits=2)


def drawn(label, patient, eye="R", visit=1, slices=SLICES, size=SIZE):
    volume = draw_volume(label, patient, eye, visit, slices)
    return [volume.draw(number, size, DEPTH) for number in range(slices)]


def areas(scans):
    return np.array([scan.lesion.sum() for scan in scans], dtype=float)


def thickness(scans):
    """(S, W) of the whole retina, px."""
    return np.stack([scan.layers[-1] - scan.layers[0] for scan in scans])


# Slices


@pytest.fixture(scope="module")
def eyes():
    """Class → volumes of several eyes."""
    return {label: [drawn(label, patient) for patient in range(6)] for label in CLASSES}


@pytest.mark.parametrize("label", DISEASED)
def test_lesions_go_on_from_slice_to_slice(label, eyes):
    """Size and place of what a slice shows are nearly those of the next, and hardly those of another eye."""
    shown = np.array([[scan.lesion.sum(0) for scan in scans] for scans in eyes[label]], dtype=float)  # (eyes, S, W)
    shown = np.apply_along_axis(np.convolve, 2, shown, np.ones(9) / 9, mode="same")
    here, next_to_it = shown[:, :-1], shown[:, 1:]
    others = np.roll(next_to_it, 1, axis=0)
    same_eye, other_eye = (np.corrcoef(here.ravel(), there.ravel())[0, 1] for there in (next_to_it, others))
    assert same_eye > 0.6
    assert other_eye < 0.5 * same_eye


def test_a_single_lesion_is_in_slices_side_by_side(eyes):
    for scans in eyes["CNV"]:
        shows = np.flatnonzero(areas(scans))
        assert 3 <= len(shows) < SLICES
        assert (np.diff(shows) == 1).all()


@pytest.mark.parametrize("slices", [1, 2, 3, 8])
@pytest.mark.parametrize("label", DISEASED)
def test_every_diseased_eye_shows_its_disease(label, slices):
    for patient in range(12):
        assert areas(drawn(label, patient, slices=slices, size=(32, 32))).any()


@pytest.mark.parametrize("label", CLASSES)
def test_severity_of_a_slice_is_what_it_shows(label, eyes):
    for patient, scans in enumerate(eyes[label]):
        of_eye = draw_volume(label, patient, "R", 1, SLICES).severity
        severity, area = np.array([scan.severity for scan in scans]), areas(scans)
        assert ((severity > 0) == (area > 0)).all()
        assert severity.max() == pytest.approx(of_eye)
        if label != "NORMAL":
            ranks = [np.argsort(np.argsort(values)) for values in (severity, area)]
            assert np.corrcoef(*ranks)[0, 1] > 0.5


def test_the_pit_is_deepest_in_the_middle_and_gone_at_the_ends(eyes):
    depth = []
    for scans in eyes["NORMAL"]:
        rows = thickness(scans)
        depth.append(np.median(rows, axis=1) - rows[:, 20:76].min(axis=1))
        assert abs(depth[-1].argmax() - SLICES // 2) <= 1
        assert depth[-1][SLICES // 2] > 3 * depth[-1][[0, 1, -2, -1]].mean()
    profile = np.mean(depth, axis=0)
    assert (np.diff(profile[6:10]) > 0).all()
    assert (np.diff(profile[9:13]) < 0).all()


def test_borders_and_tissue_change_smoothly_and_speckle_is_new_in_every_slice(eyes):
    for scans in eyes["NORMAL"]:
        bruch = np.stack([scan.layers[LAYERS.index("BM")] for scan in scans])
        assert np.abs(np.diff(bruch, axis=0)).max() < 0.05 * SIZE[0]
        vitreous = np.stack([scan.image[:3].ravel() for scan in scans]).astype(float)
        assert abs(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairwise(vitreous)])) < 0.1
        columns = np.stack([scan.image[40:].mean(0) for scan in scans]).astype(float)
        near = [np.corrcoef(a, b)[0, 1] for a, b in pairwise(columns)]
        assert np.mean(near) > 0.5


@pytest.mark.parametrize("label", CLASSES)
def test_a_slice_drawn_alone_is_the_slice_of_the_volume(label, eyes):
    alone = draw_volume(label, 5, "R", 1, SLICES).draw(7, SIZE, DEPTH)
    for name in ("image", "lesion", "retina", "layers", "severity"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(eyes[label][5][7], name))


@pytest.mark.parametrize("label", DISEASED)
def test_only_the_lesion_depends_on_the_class(label, eyes):
    """Slices without a lesion are those of the healthy eye; elsewhere Bruch's membrane and the vitreous are."""
    untouched = 0
    for patient, scans in enumerate(eyes[label]):
        for healthy, diseased in zip(eyes["NORMAL"][patient], scans, strict=True):
            np.testing.assert_allclose(healthy.layers[-1], diseased.layers[-1])
            same = healthy.image == diseased.image
            assert same[np.arange(SIZE[0])[:, None] < diseased.layers[0] - 12].all()
            untouched += same.all()
    assert untouched > 20 or label == "DRUSEN"


# Eyes and visits


def test_every_number_of_the_key_matters():
    keys = [(5, "R", 1, 0), (6, "R", 1, 0), (5, "L", 1, 0), (5, "R", 2, 0), (5, "R", 1, 1), (0, "R", 1, 5)]
    volumes = [draw_volume("NORMAL", patient, eye, visit, 3, seed) for patient, eye, visit, seed in keys]
    images = {volume.draw(number, (32, 32)).image.tobytes() for volume in volumes for number in range(3)}
    assert len(images) == 3 * len(keys)


def test_eyes_of_a_patient_are_alike_and_mirrored():
    """Thickness tells patients apart better than eyes; nerve fibres are thicker on the nasal side: right in R."""
    mean = np.array([[thickness(drawn("NORMAL", p, eye, slices=3)).mean() for eye in "RL"] for p in range(16)])
    assert np.corrcoef(mean.T)[0, 1] > 0.8
    assert np.abs(mean[:, 0] - mean[:, 1]).mean() > 0.05
    for eye, side in (("R", 1), ("L", -1)):
        fibres = np.stack([np.diff(drawn("NORMAL", p, eye, slices=3)[0].layers[:2], axis=0)[0] for p in range(16)])
        assert side * (fibres[:, 60:].mean() - fibres[:, :36].mean()) > 0.5


def test_the_fellow_eye_is_diseased_in_most_patients():
    plans = [eye_plan("CNV", patient, 2, seed=0) for patient in range(400)]
    assert all([eye for eye, _ in plan] == ["R", "L"] for plan in plans)
    assert all("CNV" in dict(plan).values() for plan in plans)
    both = np.mean([[label for _, label in plan] == ["CNV", "CNV"] for plan in plans])
    assert 0.63 < both < 0.77
    assert {label for plan in plans for _, label in plan} == {"CNV", "NORMAL"}
    assert eye_plan("NORMAL", 3, 2, seed=0) == [("R", "NORMAL"), ("L", "NORMAL")]
    alone = [eye_plan("CNV", patient, 1, seed=0) for patient in range(400)]
    assert all(plan[0] in pair and len(plan) == 1 for plan, pair in zip(alone, plans, strict=True))
    assert 0.4 < np.mean([plan[0][0] == "R" for plan in alone]) < 0.6


@pytest.mark.parametrize("label", DISEASED)
def test_severity_grows_from_visit_to_visit_and_the_same_lesions_with_it(label, eyes):
    kept, sizes = [], []
    for patient, first in enumerate(eyes[label]):
        severity = [draw_volume(label, patient, "R", visit, 3).severity for visit in range(1, 11)]
        assert severity[0] > 0
        assert severity[-1] <= 1
        assert (np.diff(severity) > 0).all()
        last = drawn(label, patient, visit=4)
        sizes.append((areas(first).sum(), areas(last).sum()))
        of_first, of_last = (np.stack([scan.lesion.any(0) for scan in scans]) for scans in (first, last))
        of_last = of_last | np.roll(of_last, 3, 1) | np.roll(of_last, -3, 1)  # the eye is held a little otherwise
        kept.append(of_last[of_first].mean())
    assert np.mean([last > first for first, last in sizes]) == 1
    assert np.mean(kept) > 0.85


def test_normal_eyes_have_no_severity():
    assert draw_volume("NORMAL", 0, "L", 5, 3).severity == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("GLAUCOMA", 0, "R", 1, 3), "CNV, DME, DRUSEN, NORMAL"),
        (("CNV", 0, "OD", 1, 3), "choose R or L"),
        (("CNV", -1, "R", 1, 3), "from 0"),
        (("CNV", 0, "R", 0, 3), "from 1"),
        (("CNV", 0, "R", 1, 0), "from 1"),
    ],
)
def test_wrong_arguments_say_what_would_be_right(arguments, message):
    with pytest.raises(InputError, match=message):
        draw_volume(*arguments)


def test_a_slice_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="slices 0 to 2"):
        draw_volume("CNV", 0, "R", 1, 3).draw(3, SIZE)


# A folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("volumes") / "small", SMALL, progress=False)


def about(folder):
    return json.loads((folder / "phantom.json").read_text())


def test_table_and_records_agree_with_the_files(folder):
    records = about(folder)["scans"]
    assert len(records) == SMALL.total_scans == 8 * 3 * 2 * 2
    with (folder / "scans.csv").open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["file", "label", "patient", "eye", "visit", "volume", "slice", "split", "mask", "severity"]
    assert lines == [[str(record[name]) for name in header] for record in records]
    assert sorted(record["file"] for record in records) == sorted(
        str(file.relative_to(folder)) for file in folder.glob("*/*/*.jpeg")
    )
    layers = np.load(folder / "layers.npz")
    assert layers["files"].tolist() == [record["file"] for record in records]
    numbers = {}
    for i, record in enumerate(records):
        numbers.setdefault(record["patient"], []).append(record["scan"])
        name = f"{record['split']}/{record['label']}/{record['label']}-{record['patient']}-{record['scan']}"
        assert (record["file"], record["mask"]) == (f"{name}.jpeg", f"masks/{name}.png")
        assert record["volume"] == f"{record['patient']}-{record['eye']}-{record['visit']}"
        key = (record["label"], record["patient"], record["eye"], int(record["visit"]))
        volume = draw_volume(*key, SMALL.slices, SMALL.seed)
        scan = volume.draw(record["slice"], SMALL.size, SMALL.depth)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / record["mask"])) == 255, scan.lesion)
        np.testing.assert_allclose(layers["rows"][i], scan.layers, atol=1 / 32)
        assert record["severity"] == pytest.approx(scan.severity, abs=1e-4)
        assert record["eye_severity"] == pytest.approx(volume.severity, abs=1e-4)
    assert all(scans == list(range(1, 13)) for scans in numbers.values())


def test_patients_and_classes_are_read_as_they_were_drawn(folder):
    index, records = index_scans(folder), {record["file"]: record for record in about(folder)["scans"]}
    assert index.patients.tolist() == [str(records[file]["patient"]) for file in index.files]
    assert index.splits.tolist() == [records[file]["split"] for file in index.files]
    assert [index.class_names[label] for label in index.labels] == [records[file]["label"] for file in index.files]
    assert index.left_out == index.mislabelled == ()
    assert_patients_disjoint(index)


def test_folder_says_how_it_was_made_and_how_large_a_pixel_is(folder):
    settings = {"patients": 8, "size": [32, 40], "seed": 3, "depth": 1.0, "slices": 3, "eyes": 2, "visits": 2}
    assert about(folder)["config"] == settings
    assert about(folder)["pixel"] == {"axial_um": 59.375, "lateral_um": 150.0, "spacing_um": 2000.0}


def test_single_scans_take_the_place_of_volumes(tmp_path):
    out = tmp_path / "phantoms"
    write_phantoms(out, PhantomConfig(4, size=(32, 32), eyes=2), progress=False)
    assert (out / "scans.csv").is_file()
    write_phantoms(out, PhantomConfig(4, 1, (32, 32)), progress=False)
    assert len(list(out.glob("*/*/*.jpeg"))) == 4
    assert not (out / "scans.csv").exists()
    assert "volume" not in about(out)["scans"][0]


def test_cached_volumes_are_named_by_what_they_depend_on(tmp_path):
    base = {"patients": 4, "size": (32, 32)}
    folder = phantom_folder(PhantomConfig(slices=2, **base), tmp_path)
    drawn_at = (folder / "phantom.json").stat().st_mtime_ns
    assert phantom_folder(PhantomConfig(slices=2, scans_per_patient=3, **base), tmp_path) == folder
    assert (folder / "phantom.json").stat().st_mtime_ns == drawn_at
    others = [{"slices": 3}, {"slices": 2, "eyes": 2}, {"slices": 2, "visits": 2}, {"scans_per_patient": 2}]
    assert len({folder, *(phantom_folder(PhantomConfig(**base, **other), tmp_path) for other in others)}) == 5
    (folder / "scans.csv").unlink()
    assert (phantom_folder(PhantomConfig(slices=2, **base), tmp_path) / "scans.csv").is_file()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slices": 0}, "--slices 0: must be from 1 to 1,000"),
        ({"eyes": 3}, "--eyes 3: must be from 1 to 2"),
        ({"visits": 11}, "--visits 11: must be from 1 to 10"),
        (
            {"patients": 1000, "slices": 501, "eyes": 2},
            "--slices 501: in 2 x 1 volumes (eyes x visits) of 1,000 patients are more than 1,000,000 scans in all",
        ),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(wrong, message):
    with pytest.raises(InputError) as error:
        check_settings(PhantomConfig(**wrong))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("label", "part", "expected"),
    [
        ("DRUSEN", "drusen", [20, 6.197201333740884, 13.929723401064479, 9.855123022286591, 10.757836994016632]),
        ("DME", "cysts", [21, 2.564243730299844, 12.30445662315724, 9.657273331076976, 10.845177706909206]),
    ],
)
def test_bodies_of_an_eye_are_drawn_as_ever(label, part, expected):
    """Published numbers are of these phantoms."""
    rng = np.random.default_rng(5)
    bodies = getattr(DISEASES[label].draw_in_eye(np.linspace(-3, 3, 7), rng), part)
    drawn = [(b.place.z, b.place.radius, b.place.onset, b.tallness) for b in bodies]
    assert [len(bodies), *map(sum, zip(*drawn, strict=True))] == expected


def test_scans_per_patient_does_not_count_for_volumes():
    check_settings(PhantomConfig(patients=100_000, scans_per_patient=10_000, slices=10))


def test_command_writes_volumes_and_counts_them(command, tmp_path):
    options = ["--patients", 4, "--slices", 3, "--eyes", 2, "--visits", 2, "--size", 32, 32]
    done = command("dino_oct/data/phantom.py", "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines() == [
        f"{tmp_path / 'out'}: 48 SYNTHETIC scans (phantoms, not patient data) in 16 volumes of 3 scans, "
        "2 x 2 a patient (eyes x visits), 32 x 32 px, 4 classes; train 4 patients"
    ]
    assert len((tmp_path / "out" / "scans.csv").read_text().splitlines()) == 49
