"""Volumes and eyes on the pages of embedding maps and attention."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dino_oct.errors import InputError
from dino_oct.limits import check_settings
from evaluation.config import AttentionOptions
from evaluation.inputs.selection import Chosen
from evaluation.pages.attention import volume_rows
from evaluation.pages.embedding_results import Points
from evaluation.protocols.attention import ScanAttention, volume_pages

PHANTOMS = ["--data", "phantom", "--phantom.patients", "12", "--phantom.slices", "3", "--phantom.eyes", "2"]
PHANTOMS += ["--phantom.size", "48", "48", "--phantom.visits", "2", "--model", "random:test_vit", "--bootstrap", "20"]


@pytest.fixture
def data():
    """Eight scans: two eyes of one patient, in no order, an eye of two classes, and a scan of no known eye."""
    facts = {
        "eye": np.array(["R", "L", "R", "L", "R", "", "R", "R"]),
        "slice": np.array(["2", "0", "0", "1", "1", "", "0", "1"]),
    }
    patients = np.array(["7", "7", "7", "7", "7", "7", "8", "8"])
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    words = [f"eye {eye}" if eye else "" for eye in facts["eye"]]
    return SimpleNamespace(
        index=SimpleNamespace(labels=labels, patients=patients, fact=facts.__getitem__),
        unit_keys=lambda: {"eye": np.where(facts["eye"] == "", "", patients + facts["eye"])},
        place=lambda i, facts: words[i],
    )


def test_points_are_means_of_their_scans(data):
    points, notes = Points.of_units(data, np.arange(8), "eye")
    assert notes == ["1 of 3 eyes left out: their scans have several classes",
                     "1 of 8 scans left out: their eye is not known"]  # fmt: skip
    assert points.words(data) == ["eye L · 2 scans", "eye R · 3 scans"]
    assert points.chosen.tolist() == [3, 4]  # slices in the middle
    features = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    means = points.means(features[points.scans])
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, [features[[1, 3]].mean(axis=0), features[[0, 2, 4]].mean(axis=0)], rtol=1e-6)
    right = points.subset(np.array([1]))
    np.testing.assert_allclose(right.means(features[right.scans]), means[1:])
    assert right.words(data) == ["eye R · 3 scans"]


def test_scans_stay_as_they_are():
    points, features = Points.of_scans(np.array([4, 9])), np.arange(6.0).reshape(2, 3)
    assert points.means(features) is features
    assert points.subset(np.array([1])).scans.tolist() == [9]


def test_the_map_of_eyes_says_which_eye_a_point_is(call, tmp_path):
    options = ["--unit", "eye", "--seeds", "1", "--controls", "False", "--projector", "False", "--out", tmp_path]
    done = call("evaluation/embedding_map.py", *PHANTOMS, *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"test split, 8 eyes \(means of 48 scans\) of 4 patients", done.stdout)
    result = json.loads((tmp_path / "embedding_map.json").read_text())
    assert result["settings"]["unit"] == "eye"
    assert (result["data"]["sets"]["points"]["scans"], result["data"]["sets"]["scans"]["scans"]) == (8, 48)
    page = (tmp_path / "maps.html").read_text()
    drawn = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert len(drawn["panels"][0]["frames"][0]["x"]) == len(drawn["scans"]["label"]) == 8
    assert sorted(drawn["scans"]["place"]) == 4 * ["eye L · 6 scans"] + 4 * ["eye R · 6 scans"]
    assert "Point at an eye" in page
    assert np.load(tmp_path / "maps.npz")["row0"].shape == (1, 8, 2)


def test_the_map_of_scans_says_where_each_was_taken(call, tmp_path):
    options = ["--seeds", "1", "--controls", "False", "--projector", "False", "--out", tmp_path]
    done = call("evaluation/embedding_map.py", *PHANTOMS, *options)
    assert done.returncode == 0, done.stderr
    drawn = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "maps.html").read_text())[1])
    for file, place in zip(drawn["scans"]["file"], drawn["scans"]["place"], strict=True):
        patient = re.search(r"-(\d+)-\d+\.jpeg", file)[1]
        assert re.fullmatch(rf"eye ([RL]) · visit ([12]) · volume {patient}-\1-\2 · slice [012]", place)


def test_units_that_are_not_known_are_refused_in_one_line(call, tmp_path):
    single = ["--data", "phantom", "--phantom.patients", "12", "--phantom.scans-per-patient", "4"]
    single += ["--phantom.size", "64", "64", "--model", "random:test_vit", "--out", tmp_path]
    done = call("evaluation/embedding_map.py", *single, "--unit", "eye")
    assert done.returncode == 2
    assert "0 eyes; a map needs at least 5" in done.stderr.splitlines()[-1]
    done = call("evaluation/attention.py", *single, "--volumes", "1")
    assert done.returncode == 2
    assert "no volume of several slices" in done.stderr.splitlines()[-1]


def test_a_page_of_attention_has_the_slices_side_by_side(call, tmp_path):
    options = ["--volumes", "2", "--attention-size", "48", "--out", tmp_path]
    done = call("evaluation/attention.py", *PHANTOMS, *options)
    assert done.returncode == 0, done.stderr
    assert "6 scans of 2 patients" in done.stdout
    result = json.loads((tmp_path / "attention.json").read_text())
    assert len(result["scans"]) == len({volume["patient"] for volume in result["scans"]}) == 2
    for volume in result["scans"]:
        assert re.fullmatch(r"eye [RL] · visit [12] · volume .*", volume["place"])
        assert [of_slice["slice"] for of_slice in volume["slices"]] == ["slice 0", "slice 1", "slice 2"]
        with Image.open(tmp_path / volume["page"]) as image:
            assert image.width > 3 * 220


def test_rows_hold_slices_in_their_order_over_several_lines():
    rng = np.random.default_rng(0)
    scans = [np.full((30, 40), 10 * s, np.uint8) for s in range(10)]
    maps = {which: list(rng.random((10, 3, 4))) for which in ("model", "start")}
    rows, _ = volume_rows(scans, [f"slice {s}" for s in range(10)], maps)
    assert len(rows) == 2 * (1 + 2 * 2)
    tiles = [tile for label, of_row in rows if label == "slices" for tile in of_row]
    assert [tile.caption for tile in tiles] == [f"slice {s}" for s in range(10)]
    assert [int(tile.picture.mean()) for tile in tiles] == [10 * s for s in range(10)]
    peaks = [f"up to {values.max() / values.mean():.1f} ×" for values in maps["start"]]
    alone = [tile.caption for label, of_row in rows if label == "start\nmap alone" for tile in of_row]
    assert alone == peaks


def test_a_page_is_of_one_volume():
    scan = np.zeros((8, 8), np.uint8)
    heads = {"model": np.full((2, 2, 2), 0.25, np.float32)}
    spread = {"model": np.zeros((3, 3))}
    order = [("1", "visit 1"), ("1", "visit 1"), ("1", "visit 2"), ("2", "visit 2")]
    maps = [
        ScanAttention(Chosen(f"{i}.png", patient, None, scan, volume, f"slice {i}"), scan, heads, spread)
        for i, (patient, volume) in enumerate(order)
    ]
    pages = list(volume_pages(maps))
    assert [len(page.facts["slices"]) for page in pages] == [2, 1, 1]
    assert [page.chosen.place for page in pages] == ["visit 1", "visit 2", "visit 2"]
    assert set(pages[0].arrays) == {"slice0_image", "slice0_model", "slice1_image", "slice1_model"}


def test_no_volumes_of_image_files():
    with pytest.raises(InputError, match="volumes"):
        check_settings(AttentionOptions(scans=("a.png",), volumes=1))
