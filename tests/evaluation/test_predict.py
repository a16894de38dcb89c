"""Predictions for new scans: what is kept of a classifier, the tables, what is told, and what is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from browser import check_page, in_browser, needs_chromium
from conftest import FEW_PHANTOMS
from PIL import Image

from dino_oct.errors import InputError
from dino_oct.features import resize_all
from dino_oct.models.backbone import load_backbone
from dino_oct.models.network import normalise
from evaluation.inputs import fitted as kept
from evaluation.inputs.model import open_model
from evaluation.inputs.sources import open_source
from evaluation.inputs.stream import answers
from evaluation.pages.prediction_page import Card, map_picture, page, scan_picture

CLASSES = ["CNV", "DME", "DRUSEN", "NORMAL"]


@pytest.fixture
def predict(call, tmp_path):
    """``predict(MODEL, SCAN, …)``: what was printed, the table and the facts."""

    def run(*args):
        finished = call("evaluation/predict.py", *args, "--out", tmp_path / "out")
        assert finished.returncode == 0, finished.stderr
        table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
        return finished.stdout, table, json.loads((tmp_path / "out" / "predictions.json").read_text())

    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of a tiny pretraining run."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "export" / "classifier.json").unlink(missing_ok=True)
    return tmp_path / "run"


def test_a_run_predicts_with_a_probe_that_is_fitted_once(run, predict):
    said, first, facts = predict(run, "phantom", *FEW_PHANTOMS)
    assert "fitted now" in said
    assert (facts["classifier"]["head"], facts["model"]["classes"]) == ("probe", CLASSES)
    said, second, _ = predict(run, "phantom", *FEW_PHANTOMS)
    assert "kept in" in said
    pd.testing.assert_frame_equal(first, second)
    probabilities = second[[f"p_{name}" for name in CLASSES]].to_numpy()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert (second["class"] == np.array(CLASSES)[probabilities.argmax(axis=1)]).all()
    assert set(second["label"]) <= set(CLASSES)
    assert second["similar_1"].str.startswith("train/").all()
    patients = pd.read_csv(run.parent / "out" / "patients.csv")
    assert patients["scans"].sum() == len(second) == facts["scans"]
    means = second.groupby("patient")[[f"p_{name}" for name in CLASSES]].mean()
    assert np.allclose(patients.set_index("patient").loc[means.index, means.columns], means, atol=1e-4)
    assert "that the model was trained on" not in said
    own = predict(run, "phantom", *FEW_PHANTOMS, "--phantom.depth", "0.5")[0]
    assert "16 of 48 scans are of 4 patients that the model was trained on" in own


def test_the_kept_classifier_gives_what_the_network_gives(fitted, predict, tmp_path):
    _, _, facts = predict(fitted, "phantom", *FEW_PHANTOMS)
    assert facts["classifier"]["head"] == "own"
    stored = kept.read(fitted / "export")
    network = load_backbone(str(fitted), num_classes=None).eval()
    model = open_model(open_source(str(fitted)), with_classifier=True)
    scan = np.random.default_rng(0).integers(0, 255, (70, 50)).astype(np.uint8)
    images = resize_all([scan], model.input_size)
    with torch.no_grad():
        expected = network(normalise(images, network)).double().numpy()
    logits, features = answers(model, images)
    assert np.allclose(logits, expected, atol=1e-5)
    assert features.shape[1] == stored.reference.shape[1]
    assert np.allclose(
        stored.probabilities(expected)[0], np.exp(x := expected[0] / stored.temperature) / np.exp(x).sum()
    )


def test_another_network_is_not_given_the_kept_classifier(run, trained, predict):
    predict(run, "phantom", *FEW_PHANTOMS)
    model = open_model(open_source(str(run / "checkpoints" / "start")))
    with pytest.raises(InputError, match="of other weights"):
        kept.attach(model, kept.read(run / "export"))
    facts = json.loads((run / "export" / "classifier.json").read_text())
    (run / "export" / "classifier.json").write_text(json.dumps(facts | {"weights": "0" * 16}))
    assert "fitted now" in predict(run, "phantom", *FEW_PHANTOMS)[0]
    (run / "export" / "classifier.json").write_text("{")
    assert "fitted now" in predict(run, "phantom", *FEW_PHANTOMS, "--refit", "True")[0]


def test_files_are_predicted_alone_and_what_is_no_scan_is_left_out(run, predict, tmp_path):
    rng, files = np.random.default_rng(0), []
    for name in ('one "<b>, two".png', "noise.png"):
        files.append(tmp_path / name)
        Image.fromarray(rng.integers(0, 256, (96, 96)).astype(np.uint8)).save(files[-1])
    white = np.full((96, 96), 20, np.uint8)
    white[:, :12] = 255
    white[40:60] = rng.integers(80, 250, (20, 96))
    Image.fromarray(white).save(tmp_path / "border.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    said, table, facts = predict(run, *files, tmp_path / "border.png", tmp_path / "broken.png")
    assert sorted(table["file"]) == sorted(str(file) for file in (*files, tmp_path / "border.png"))
    assert "label" not in table
    assert "patient" not in table
    assert "white border" in table.set_index("file")["flags"][str(tmp_path / "border.png")]
    assert [entry["file"] for entry in facts["left_out"]] == [str(tmp_path / "broken.png")]
    assert "left out" in said
    assert facts["judged"] is None


def test_a_scan_is_unlike_where_validation_scans_are_nearer(run, predict, tmp_path):
    predict(run, "phantom", *FEW_PHANTOMS)
    stored = kept.read(run / "export")
    similarity, nearest = stored.similar(stored.reference[:3])
    assert nearest[:, 0].tolist() == [0, 1, 2]
    assert similarity[:, 0] == pytest.approx(1, abs=1e-3)
    middle = np.full((1, 5), 1 - np.median(stored.distances))
    assert 0.3 < stored.share_nearer(middle)[0] < 0.7
    assert stored.share_nearer(np.full((1, 5), -1.0)) == 1
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)).save(tmp_path / "noise.png")
    assert predict(run, tmp_path / "noise.png")[1]["unlike"].all()


def test_new_scans_are_read_as_asked_for_and_hidden_as_the_run_hid_its_own(run, predict, tmp_path):
    folder = tmp_path / "clinic"
    folder.mkdir()
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"CNV_{i + 70}_left.png")
    pattern = r"(?P<label>[A-Z]+)_(?P<patient>\d+)_.*"
    _, table, facts = predict(run, folder, "--dataset.pattern", pattern)
    assert (table["label"].tolist(), sorted(table["patient"].astype(str))) == (["CNV", "CNV"], ["70", "71"])
    assert facts["judged"]["scans"] == 2
    stored = json.loads((run / "export" / "classifier.json").read_text())
    stored["reading"]["anonymise"] = True
    (run / "export" / "classifier.json").write_text(json.dumps(stored))
    _, table, _ = predict(run, folder)
    assert not table["file"].str.contains("70|71|left").any()


def test_too_few_validation_patients_are_told(run, predict):
    said, table, _ = predict(run, "phantom", *FEW_PHANTOMS, "--coverage", "0.99")
    assert "every set holds every class" in said
    assert (table["set"] == " ".join(CLASSES)).all()


def test_tables_may_be_parquet(run, call, tmp_path):
    out = tmp_path / "out"
    finished = call("evaluation/predict.py", run, "phantom", *FEW_PHANTOMS, "--format", "parquet", "--out", out)
    assert finished.returncode == 0, finished.stderr
    assert len(pd.read_parquet(out / "predictions.parquet")) == 48
    assert str(out / "predictions.parquet") in finished.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["random:test_vit", "SCAN"], "give --data DIR"),
        (["RUN"], "expected a model and scans"),
        (["RUN", "none.png"], "none.png: no such"),
        (["RUN", "SCAN", "SCAN"], "is given twice"),
        (["RUN", "SCAN", "FOLDER"], "a folder; give it alone"),
        (["RUN", "BROKEN"], "no file is a scan"),
        (["RUN", "SCAN", "--coverage", "1"], "--coverage 1.0: must be above 0 and below 1"),
    ],
)
def test_wrong_input_is_one_line(args, words, run, call, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)).save(tmp_path / "scan.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    places = {"RUN": run, "SCAN": tmp_path / "scan.png", "FOLDER": tmp_path, "BROKEN": tmp_path / "broken.png"}
    finished = call("evaluation/predict.py", *(places.get(arg, arg) for arg in args), "--out", tmp_path / "out")
    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
    assert words in finished.stderr


def test_labels_of_other_classes_do_not_judge(run, predict, tmp_path):
    for name in ("CNV", "AMD"):
        folder = tmp_path / "scans" / name
        folder.mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 256, (64, 64)).astype(np.uint8)
            Image.fromarray(noise + i).save(folder / f"{name}-{i + 5000}-1.png")
    _, table, facts = predict(run, tmp_path / "scans")
    assert sorted(table["label"]) == ["AMD", "AMD", "CNV", "CNV"]
    assert (facts["judged"]["scans"], facts["judged"]["patients"]) == (2, 2)


HOSTILE = """<img src=x onerror="document.title='owned'">'"&{{ 7*7 }}</script>"""


def card(n: int, **changes) -> Card:
    shares = {"CNV": 60.0, HOSTILE: 40.0}
    usual = Card(
        file=f"{n}{HOSTILE}.png", place=f"patient {HOSTILE}", label=HOSTILE, called="CNV", probabilities=shares,
        inside=("CNV",), is_unlike=False, nearer=12.0, similar=((HOSTILE, HOSTILE),), flags=(HOSTILE,),
        image=scan_picture(np.zeros((40, 60), np.uint8)), overlay=map_picture(np.eye(6)), ratio=1.5,
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


def test_every_name_on_the_page_is_escaped_and_nothing_is_fetched():
    html = page(HOSTILE, HOSTILE, [HOSTILE], [HOSTILE], [card(0), card(1, inside=())], HOSTILE, HOSTILE)
    tags = re.findall(r"<(img|script|link|iframe)\b([^>]*)", html)
    assert [name for name, _ in tags] == ["img", "img"] * 2 + ["script"]
    assert all('src="data:' in attributes for name, attributes in tags if name == "img")
    assert "{{" not in re.sub(r"\{\{ 7\*7 \}\}", "", html)
    assert "49" not in re.sub(r"base64,[^\"]*", "", html)
    assert "default-src 'none'" in html
    assert "fits no class" in html


@needs_chromium
def test_the_page_filters_in_a_browser(tmp_path):
    cards = [card(0), card(1, inside=("CNV", HOSTILE)), card(2, is_unlike=True, flags=())]
    html = page("Predictions", "", [], [], cards, "", "")
    steps = """
      const choose = (id, value) => { const control = document.getElementById(id); control.value = value;
        control.dispatchEvent(new Event("input")); };
      const shown = () => all("article").map(card => card.hidden ? 0 : 1).join("");
      seen.shown = [shown()];
      for (const kind of ["uncertain", "unlike", "flagged", "certain"]) {
        choose("kind", kind);
        seen.shown.push(shown());
      }
      choose("kind", ""); choose("name", "2<IMG"); seen.shown.push(shown());
      seen.count = document.getElementById("count").textContent;
    """
    seen = in_browser(html, tmp_path, steps=steps)
    assert seen["problems"] == []
    assert seen["shown"] == ["111", "010", "001", "110", "101", "001"]
    assert seen["count"] == "1 of 3 scans"


@needs_chromium
@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 480)])
def test_the_page_is_right_for_everyone(scheme, width, tmp_path):
    cards = [card(0), card(1, inside=("CNV", HOSTILE)), card(2, is_unlike=True, flags=())]
    check_page(page(HOSTILE, HOSTILE, [HOSTILE], [HOSTILE], cards, HOSTILE, HOSTILE), tmp_path, scheme, width)


def test_the_page_shows_what_a_person_should_look_at_first(run, predict, tmp_path):
    said, table, _ = predict(run, "phantom", *FEW_PHANTOMS, "--page", "3")
    html = (tmp_path / "out" / "predictions.html").read_text()
    assert "PHANTOMS" in said
    assert "PHANTOMS" in html
    assert html.count("<article") == 3
    assert "3 of 48 scans are shown" in html
    if table["unlike"].any():
        assert 'class="badge serious"' in html.partition("</article>")[0]
    assert oct((tmp_path / "out" / "predictions.html").stat().st_mode)[-3:] == "600"


def test_a_flat_map_is_not_drawn():
    assert map_picture(np.full((8, 8), 0.3)) == ""
    assert map_picture(np.zeros((8, 8))) == ""
    assert map_picture(np.eye(8)) != ""
