"""Features of any scans as a file: those of the network, each beside what is known of its scan."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FEW_PHANTOMS
from PIL import Image

from dino_oct.data.borders import find_borders, neutralise
from dino_oct.data.decode import decode
from dino_oct.features import resize_all
from dino_oct.models.attention import linear_probe_features
from dino_oct.models.backbone import load_backbone
from dino_oct.models.network import cls_feature, normalise

VOLUMES = ["--phantom.patients", "4", "--phantom.size", "64", "64", "--phantom.slices", "5", "--phantom.eyes", "2"]


@pytest.fixture
def embed(call, tmp_path):
    """``embed(NAME, MODEL, SCAN, …)``: the file that was written, and what was printed."""

    def run(name, *args):
        finished = call("evaluation/embed.py", *args, "--out", tmp_path / name)
        assert finished.returncode == 0, finished.stderr
        return tmp_path / name, finished.stdout

    return run


@pytest.fixture
def scans(tmp_path):
    """Three scans of sizes of their own, one with a white border, and a file that is none."""
    rng, folder = np.random.default_rng(0), tmp_path / "scans"
    folder.mkdir()
    for i, size in enumerate([(60, 90), (80, 64), (96, 96)]):
        pixels = rng.integers(0, 200, size).astype(np.uint8)
        if i == 2:
            pixels[:, :20] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return [folder / f"{i}.png" for i in range(3)] + [folder / "broken.png"]


def expected(model, files, size, forward=cls_feature, neutral=True):
    network = load_backbone(str(model)).eval()
    pixels = [decode(file).scan for file in files]
    images = resize_all([neutralise(scan, find_borders(scan)) if neutral else scan for scan in pixels], size)
    with torch.no_grad():
        return forward(network, normalise(images, network)).numpy()


def test_features_are_those_of_the_network_in_every_form(trained, embed, scans):
    file, said = embed("x.npz", trained, *scans)
    arrays = np.load(file, allow_pickle=False)
    assert arrays["files"].tolist() == [str(scan) for scan in scans[:3]]
    assert arrays["features"].dtype == np.float32
    np.testing.assert_allclose(arrays["features"], expected(trained, scans[:3], (32, 32)), atol=1e-5)
    assert "patient" not in arrays
    assert f"left out: {scans[3]}" in said
    about = json.loads((file.parent / "x.npz.json").read_text())
    assert (about["scans"], about["settings"]["image_size"]) == (3, [32, 32])
    assert [entry["file"] for entry in about["left_out"]] == [str(scans[3])]
    for name, read in (("x.csv", pd.read_csv), ("x.parquet", pd.read_parquet)):
        table = read(embed(name, trained, *scans)[0])
        assert table["file"].tolist() == arrays["files"].tolist()
        of_table = table[[f"f{i}" for i in range(arrays["features"].shape[1])]]
        np.testing.assert_allclose(of_table, arrays["features"], rtol=1e-6)


def test_kind_and_size_are_as_asked_for(trained, embed, scans):
    file, _ = embed("x.npz", trained, *scans[:2], "--features", "mean-patch", "--image-size", "48", "64")

    def mean_patch(network, images):
        return linear_probe_features(network, images, 0, mean_patch=True)

    np.testing.assert_allclose(np.load(file)["features"], expected(trained, scans[:2], (48, 64), mean_patch), atol=1e-5)
    rounded, _ = embed("x.npz", trained, *scans[:2], "--precision", "bf16")
    exact, features = expected(trained, scans[:2], (32, 32)), np.load(rounded)["features"]
    assert 0 < np.abs(features - exact).max() < 0.1 * np.abs(exact).max()


def test_what_is_known_of_a_scan_stands_beside_it(trained, embed):
    table = pd.read_csv(embed("x.csv", trained, "phantom", *VOLUMES)[0], dtype=str)
    assert len(table) == 4 * 2 * 5
    assert table.groupby(["patient", "eye", "volume"]).size().tolist() == [5] * 8
    assert set(table["slice"]) == set("01234")
    assert set(table["label"]) <= {"CNV", "DME", "DRUSEN", "NORMAL"}
    few = pd.read_csv(embed("x.csv", trained, "phantom", *FEW_PHANTOMS)[0], dtype=str)
    assert few["patient"].nunique() == 12
    assert "eye" not in few


def test_an_export_reads_scans_as_it_says(trained, embed, scans, tmp_path):
    shutil.copytree(trained / "export", tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    for neutral in (True, False):
        scans_as = {**config["scans"], "neutralise_borders": neutral}
        (tmp_path / "export" / "config.json").write_text(json.dumps({**config, "scans": scans_as}))
        features = np.load(embed("x.npz", tmp_path / "export", *scans[:3])[0])["features"]
        of_export = expected(tmp_path / "export", scans[:3], (32, 32), neutral=neutral)
        np.testing.assert_allclose(features, of_export, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["RUN"], "expected a model and scans"),
        (["RUN", "none.png"], "none.png: no such"),
        (["RUN", "SCAN", "--out", "x.txt"], "--out x.txt: must end in .npz, .csv or .parquet"),
        (["RUN", "BROKEN"], "no file is a scan"),
        (["RUN", "SCAN", "--image-size", "31", "31"], "not a multiple of the patch"),
        (["random:test_resnet", "SCAN", "--features", "mean-patch"], "has no CLS token"),
    ],
)
def test_wrong_input_is_one_line(args, words, trained, scans, call, tmp_path):
    places = {"RUN": trained, "SCAN": scans[0], "BROKEN": scans[3]}
    out = [] if "--out" in args else ["--out", tmp_path / "x.npz"]
    finished = call("evaluation/embed.py", *(places.get(arg, arg) for arg in args), *out)
    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
    assert words in finished.stderr
    assert not (tmp_path / "x.npz").exists()
