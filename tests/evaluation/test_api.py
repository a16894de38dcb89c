"""The toolkit from Python: the examples of the documentation run, results are those of the commands."""

import importlib
import pickle
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FEW_PHANTOMS, REPOSITORY, environment
from PIL import Image
from sklearn.utils.estimator_checks import check_estimator

from dino_oct.data.phantom import PhantomConfig, write_phantoms
from dino_oct.errors import InputError
from dino_oct.features import resize_all
from dino_oct.models.network import cls_feature, normalise
from dino_oct.probe import LinearProbe
from evaluation.api import commands
from evaluation.api.model import load
from evaluation.api.transform import ScanDataset, as_scan

EXAMPLES = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "python.md").read_text(), re.S)


@pytest.fixture
def place(tmp_path, cache_root, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scans(place) -> list[str]:
    """Two pictures in ``scans``."""
    (place / "scans").mkdir()
    files = [f"scans/{name}.png" for name in "ab"]
    for i, file in enumerate(files):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (60, 72)).astype(np.uint8)).save(file)
    return files


@pytest.fixture
def labelled(place) -> str:
    """A folder of a few phantoms."""
    write_phantoms(place / "labelled", PhantomConfig(12, 4, (64, 64)), progress=False)
    return "labelled"


@pytest.fixture
def model(trained, place):
    shutil.copytree(trained, place / "run")
    return load("run", device="cpu")


def test_the_examples_of_the_documentation_run(trained, scans, labelled, place, cache_root):
    shutil.copytree(trained, place / "runs" / "quickstart")
    before = "import numpy as np\nfrom PIL import Image\npixels = np.array(Image.open('scans/a.png'))\n"
    finished = subprocess.run(
        [sys.executable, "-c", before + "\n".join(EXAMPLES)], cwd=place, capture_output=True, text=True, timeout=280,
        env=environment(cache_root) | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert len(EXAMPLES) > 5


def test_features_are_those_of_the_network(model, scans):
    pixels = [np.array(Image.open(file)) for file in scans]
    table, array = model.embed(scans), model.embed(pixels)
    assert list(table.index) == scans
    assert np.array_equal(table.to_numpy(), array)
    images = torch.stack([model.transform(scan) for scan in pixels])
    with torch.no_grad():
        assert np.allclose(cls_feature(model.network, images).numpy(), array, atol=1e-5)
    assert np.allclose(model.embed(pixels[0]), array[:1], atol=1e-5)
    assert np.array_equal(model.embed(np.stack(pixels)), array)
    assert np.array_equal(model.embed("scans").to_numpy(), array)
    assert np.allclose(model.embed(pixels[0] / 255), array[:1], atol=1e-4)


def test_a_transform_is_the_way_to_the_network_and_can_be_pickled(model, scans):
    transform = pickle.loads(pickle.dumps(model.transform))
    scan = np.array(Image.open(scans[0]))
    expected = normalise(resize_all([scan], model.transform.size), model.network)[0]
    for given in (scan, scans[0], Path(scans[0]), Image.open(scans[0])):
        assert torch.allclose(transform(given), expected, atol=1e-6)


def test_predictions_are_those_of_the_command(model, scans, call, place):
    table = model.predict(scans)
    finished = call("evaluation/predict.py", place / "run", *(place / file for file in scans), "--out", place / "out")
    assert finished.returncode == 0, finished.stderr
    of_command = pd.read_csv(place / "out" / "predictions.csv", keep_default_na=False)
    assert np.allclose(table.filter(like="p_"), of_command.filter(like="p_"), atol=1e-5)
    assert (table["class"] == of_command["class"]).all()
    assert model.class_names == ("CNV", "DME", "DRUSEN", "NORMAL")
    assert "kept" not in finished.stdout or "kept in" in finished.stdout
    pixels = np.stack([np.array(Image.open(place / file)) for file in scans])
    assert np.allclose(model.predict(pixels).filter(like="p_"), table.filter(like="p_"))


def test_features_stay_as_they_are_when_a_classifier_is_fitted(model, scans):
    larger = load("run", device="cpu", image_size=(64, 64))
    before = larger.embed(scans)
    assert not np.allclose(before, model.embed(scans))
    assert np.allclose(larger.predict(scans).filter(like="p_"), model.predict(scans).filter(like="p_"))
    assert np.array_equal(larger.embed(scans), before)


def test_maps_have_the_size_of_the_scan(model, scans):
    attention = model.attention(scans[0])
    assert attention.shape == (2, 60, 72)
    assert (attention >= 0).all()
    assert not np.array_equal(attention, model.attention(scans[0], block=0))
    for method in ("attention", "relevance", "gradcam"):
        assert model.explain(scans[0], method, "CNV").shape == (60, 72)
    assert not np.array_equal(model.explain(scans[0], target="CNV"), model.explain(scans[0], target="NORMAL"))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda model: model.embed("none.png"), "no such"),
        (lambda model: model.embed([]), "no scan is given"),
        (lambda model: model.predict(np.zeros((3, 4, 5, 6))), "expected a grey scan"),
        (lambda model: model.embed(np.full((50, 50), 7.0)), "floats from 0 to 1"),
        (lambda model: model.attention("scans"), "give one scan"),
        (lambda model: model.attention("scans/a.png", block=5), "the network has 2"),
        (lambda model: model.explain("scans/a.png", "magic"), "no such method"),
        (lambda model: model.explain("scans/a.png", target="AMD"), "has CNV, DME, DRUSEN, NORMAL"),
        (lambda model: load("nowhere"), "no such file or folder"),
        (lambda model: load("run", device="cuda:9"), "this machine has"),
        (lambda model: commands.train("phantom", optim__lrr=1), "did you mean --optim.lr?"),
        (lambda model: commands.knn("run", k=0), "--k 0: must be from 1"),
        (lambda model: ScanDataset("phantom", folds=3), "folds: no such setting; there are"),
    ],
)
def test_wrong_input_is_an_input_error(ask, words, model, scans):
    with pytest.raises(InputError, match=re.escape(words)):
        ask(model)


def test_arrays_are_grey_scans():
    assert as_scan(np.array([[0.0, 1.0], [0.5, 0.25]])).tolist() == [[0, 255], [128, 64]]
    for wrong in (np.zeros(3), np.zeros((2, 2, 3)), np.array([[np.nan]]), np.array([["a"]]), np.zeros((0, 3))):
        with pytest.raises(InputError):
            as_scan(wrong)


def test_trainings_run_twice_and_in_a_thread(place):
    few = {name[2:].replace(".", "__").replace("-", "_"): value for name, value in zip(FEW_PHANTOMS[:-3:2],
           FEW_PHANTOMS[1:-3:2], strict=True)} | {"phantom__size": (64, 64)}  # fmt: skip
    small = few | {
        "config": "quickstart", "optim__epochs": 1, "optim__batch_size": 8, "optim__warmup_epochs": 0,
        "run__workers": 0, "monitor__attention_scans": 0, "run__precision": "fp32",
    }  # fmt: skip
    first = commands.train("phantom", out="runs/a", **small)
    results = []
    thread = threading.Thread(target=lambda: results.append(commands.train("phantom", out="runs/b", **small)))
    thread.start()
    thread.join()
    assert (first, results) == (Path("runs/a"), [Path("runs/b")])
    accuracies = [
        commands.knn(run, k=3, bootstrap=0, controls=False)["rows"]["model"]["3"] for run in (first, *results)
    ]
    assert accuracies[0] == accuracies[1]


def test_a_dataset_gives_scans_with_their_classes(labelled, model):
    data = ScanDataset(labelled, "val", model.transform)
    image, label = data[0]
    assert image.shape[1:] == torch.Size(model.transform.size)
    assert (label, len(data)) == (int(data.labels[0]), len(data.patients))
    assert set(data.index.splits[data.positions]) == {"val"}
    assert ScanDataset(labelled, "val")[0][0].dtype == np.uint8


def test_the_probe_keeps_the_conventions_of_scikit_learn(tmp_path):
    check_estimator(LinearProbe((0.1, 1.0)), on_skip=None)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((120, 6)).astype(np.float32)
    labels = np.where(features[:, 0] + 0.3 * rng.standard_normal(120) > 0, "CNV", "NORMAL")
    probe = LinearProbe().fit(features, labels, groups=np.arange(120) // 4)
    assert probe.score(features, labels) > 0.8
    probe.save(tmp_path / "probe")
    loaded = LinearProbe.load(tmp_path / "probe")
    assert np.array_equal(loaded.predict_proba(features), probe.predict_proba(features))
    assert (loaded.predict(features) == probe.predict(features)).all()
    (tmp_path / "probe" / "probe.json").write_text("{}")
    with pytest.raises(InputError, match="no probe"):
        LinearProbe.load(tmp_path / "probe")


def test_importing_the_module_of_a_trainer_does_not_hide_the_function(tmp_path):
    module = importlib.import_module("dino_oct.train")
    assert module is sys.modules["dino_oct"].train
    with pytest.raises(InputError, match="no-such-setting"):
        module("phantom", out=tmp_path / "run", no_such_setting=1)
