"""The evaluation commands as a user runs them."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REFERENCE, REPOSITORY, environment
from PIL import Image

from dino_oct.cli import parse_options
from dino_oct.errors import InputError
from dino_oct.models.frozen import load_frozen
from dino_oct.provenance import TABLE
from evaluation.config import DataOptions, DatasetOptions, PhantomOptions
from evaluation.inputs.model import open_model, random_control
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import newest_run, open_source, starting_weights

CPU = torch.device("cpu")


def failed(finished: subprocess.CompletedProcess, message: str) -> None:
    """Exit status 2, and one line that says what is wrong."""
    assert finished.returncode == 2, finished.stderr
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_knn(trained, call):
    finished = call("evaluation/knn.py", "--model", trained, "--k", 1, 3, "--bootstrap", 200)
    assert finished.returncode == 0, finished.stderr
    for words in ("PHANTOMS: synthetic scans", "starting weights", "raw pixels", "model − raw pixels", "accuracy %",
                  "k=3: the model", "4 patients are few", "16 test scans of 4 patients", "no row for random weights",
                  "sha256"):  # fmt: skip
        assert words in finished.stdout, finished.stdout
    result = json.loads((trained / "evaluation" / "knn" / "knn_test.json").read_text())
    assert list(result["rows"]) == ["model", "starting weights", "raw pixels"]
    for row in result["rows"].values():
        for by_k in row.values():
            interval = by_k["accuracy"]
            assert interval["low"] <= interval["point"] <= interval["high"]
            assert np.sum(by_k["confusion"]) == 16
    assert result["data"]["synthetic"] is True
    assert result["settings"]["image_size"] == [32, 32]
    assert result["weights"]["model"]["sha256"] != result["weights"]["starting weights"]["sha256"]


def test_knn_on_validation_repeats_what_the_trainer_logged(trained, call, tmp_path):
    finished = call(
        "evaluation/knn.py", "--model", trained, "--k", 3, "--split", "val", "--out", tmp_path, "--bootstrap", 0
    )
    assert finished.returncode == 0, finished.stderr
    rows = json.loads((tmp_path / "knn_val.json").read_text())["rows"]
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    logged = [line["knn_3"] for line in logged if "knn_3" in line]
    assert rows["model"]["3"]["accuracy"]["point"] == pytest.approx(logged[-1])
    assert rows["starting weights"]["3"]["accuracy"]["point"] == pytest.approx(logged[0])
    assert rows["model"]["3"]["accuracy"]["low"] is None


def test_knn_of_a_file_that_is_no_run_on_a_folder(call, tmp_path):
    """Also: patients shared between splits are told, and their own scans can be left out of the vote."""
    rng = np.random.default_rng(0)
    for split, label, patient, scan in [
        *(("train", "CNV" if p % 2 else "NORMAL", p, s) for p in range(8) for s in (1, 2)),
        *(("test", "CNV" if p % 2 else "NORMAL", p, 3) for p in (0, 1, 20, 21)),
    ]:
        folder = tmp_path / "scans" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / f"{label}-{patient}-{scan}.png")
    args = [
        "evaluation/knn.py", "--model", REFERENCE / "backbone_final.pth", "--heads", 3, "--data", tmp_path / "scans",
        "--dataset.split", "official", "--k", 3, "--bootstrap", 100, "--image-size", 32, 32, "--out", tmp_path / "out",
    ]  # fmt: skip
    finished = call(*args)
    assert finished.returncode == 0, finished.stderr
    assert "leak: 2 of 4 test scans are known from train scans" in finished.stdout
    assert "2 scans of 2 patients in both (e.g. 0); use --dataset.split patient" in finished.stdout
    assert "PHANTOM" not in finished.stdout
    assert list(json.loads((tmp_path / "out" / "knn_test.json").read_text())["rows"]) == [
        "model", "random weights", "raw pixels",
    ]  # fmt: skip
    finished = call(*args, "--exclude-same-patient", "True")
    assert finished.returncode == 0, finished.stderr
    assert "leak" not in finished.stdout
    failed(call(*args, "--k", 15, "--exclude-same-patient", "True"), "k = 15: must be from 1 to 14")


def test_localization(trained, fitted, command):
    finished = command(
        "evaluation/localization.py", "--model", trained, "--beside", fitted, "--bootstrap", 200, "--n", 12,
        "--faithfulness", 2, "--sanity", 2, "--pages", 2, timeout=240,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    for words in ("PHANTOMS: synthetic scans", "average precision %", "lesion / retina",
                  "tiny: attention (block 1 head", "start: attention (block 1 head",
                  "supervised: gradcam", "every model: ensemble", "the mask itself",
                  "validation patients", "not a segmentation", "Does self-supervised attention localise better",
                  "deletion, blur", "upper half", "EZ to RPE", "a control"):  # fmt: skip
        assert words in finished.stdout, finished.stdout
    folder = trained / "evaluation" / "localization"
    result = json.loads((folder / "localization.json").read_text())
    rows = result["rows"]
    assert set(rows) >= {"random", "centre", "retina band", "brightness", "the mask itself"}
    perfect = rows["the mask itself"]["scores"]
    assert perfect["energy"]["point"] == perfect["iou_otsu"]["point"] == perfect["pointing"]["point"] == 1
    area = result["area"]["lesion"]["point"]
    assert rows["random"]["scores"]["auprc"]["point"] == pytest.approx(area, rel=0.3)
    assert rows["retina band"]["scores"]["lesion_over_retina"]["point"] == 1
    for name in ("tiny: attention", "supervised: occlusion", "tiny: relevance"):
        assert rows[name]["ms"] > 0
        assert rows[name]["mb"] > 0
        assert 0 < rows[name]["scores"]["energy"]["point"] < 1
    assert set(rows["tiny: attention"]["classes"]) == {"CNV", "DME", "DRUSEN"}
    assert rows["tiny: attention"]["candidate"] == result["heads"]["tiny"]["name"]
    assert result["faithfulness"]["models"]["supervised"]["supervised: gradcam"]["deletion_mean"]["point"] < 1
    assert set(result["sanity"]["models"]) == {"tiny", "supervised"}
    assert len(result["scans"]) == 2
    for page in result["scans"]:
        with Image.open(folder / page["page"]) as image:
            assert min(image.size) > 500
    arrays = np.load(folder / "localization.npz")
    assert arrays["scan0_tiny_attention"].shape[0] == 2
    assert arrays["scan0_supervised_gradcam"].ndim == 3


def test_side_by_side(trained, fitted, call, tmp_path):
    finished = call("evaluation/side_by_side.py", "--model", trained, "--beside", fitted, "--n", 2, "--out", tmp_path)
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "side_by_side.json").read_text())
    assert [page["class"] for page in result["scans"]] == ["CNV", "DME"]
    arrays = np.load(tmp_path / "side_by_side.npz")
    assert {key.removeprefix("scan1_tiny_") for key in arrays if key.startswith("scan1_tiny_")} == {
        "attention", "relevance", "gradcam", "occlusion", "ensemble", "disagreement",
    }  # fmt: skip
    assert (arrays["scan0_tiny_occlusion"] < 0).any()  # signed
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 2


@pytest.mark.parametrize(
    ("figure", "keys"),
    [("5", {"tiny_gradcam"}), ("6", {"tiny_occlusion"}), ("7", {"tiny_lrp"}),
     ("9", {"tiny block 1 head 0_attention", "tiny block 1 head 1_attention"})],
)  # fmt: skip
def test_figures_of_the_paper(figure, keys, trained, cache_root, monkeypatch, tmp_path):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    module = importlib.import_module("evaluation.side_by_side")
    args = ["--model", str(trained), "--figure", figure, "--n", "1", "--out", str(tmp_path)]
    module.main(parse_options(module.Options, args))
    assert {key.removeprefix("scan0_") for key in np.load(tmp_path / "side_by_side.npz")} == keys


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("knn", ["--k", "17"], "k = 17: must be from 1 to 16, the number of training scans"),
        ("knn", ["--image-size", "33", "32"], "image-size 33 32 is not a multiple of the patch (8 px)"),
        ("knn", ["--temperature", "0"], "temperature"),
        ("knn", ["--bootstrap", "-1"], "bootstrap"),
        ("knn", ["--split", "train"], "split"),
        ("localization", ["--attention-size", "0"], "attention-size"),
        ("localization", ["--phantom.patients", "8"], "no lesion masks of the val split"),
        ("localization", ["--methods", "gradcam", "gradcam"], "each once"),
        ("localization", ["--masks", "nowhere"], "nowhere: no such folder of lesion masks"),
        ("localization", ["--lesion-values", "9"], "value 9"),
        ("side_by_side", ["--target", "GLAUCOMA"], "class GLAUCOMA: "),
        ("side_by_side", ["--figure", "8"], "figure"),
    ],
)
def test_wrong_settings_are_one_line(script, args, message, trained, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    module = importlib.import_module(f"evaluation.{script}")
    with pytest.raises(InputError) as error:
        module.main(parse_options(module.Options, ["--model", str(trained), *args]))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def folders(tmp_path):
    """Scans without classes, and scans of two classes without masks."""
    plain, labelled = tmp_path / "plain", tmp_path / "labelled"
    rng = np.random.default_rng(0)
    for folder in (plain, labelled / "CNV", labelled / "NORMAL"):
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / f"{folder.name}-{i}-1.png")
    return {"plain": plain, "labelled": labelled}


def test_wrong_input_exits_with_status_2(trained, call, folders):
    failed(call("evaluation/knn.py", "--model", trained, "--k", 9999), "k = 9999")
    failed(
        call("evaluation/localization.py", "--model", trained, "--data", folders["labelled"]),
        "folder of lesion masks",
    )


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("knn", ["--model", "RUN", "--data", "plain"], "needs at least two classes, found none"),
        ("knn", ["--model", "random:vit_tiny_patch16_224"], "give --data DIR"),
        ("knn", ["--model", "nowhere", "--data", "labelled", "--k", "1"], "nowhere: no such file or folder"),
        ("localization", ["--model", "RUN", "--data", "nowhere"], "nowhere: no such folder"),
        (
            "localization",
            [
                "--model",
                "random:resnet18",
                "--data",
                "phantom",
                "--phantom.patients",
                "12",
                "--phantom.size",
                "64",
                "64",
                "--image-size",
                "32",
                "32",
                "--methods",
                "attention",
            ],
            "has no CLS token",
        ),
    ],
)
def test_wrong_data_and_sources_are_one_line(script, args, message, trained, folders, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    args = [str({"RUN": trained, **folders}.get(arg, arg)) for arg in args]
    module = importlib.import_module(f"evaluation.{script}")
    with pytest.raises(InputError) as error:
        module.main(parse_options(module.Options, args))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_without_any_run_the_way_out_is_named(cache_root, tmp_path):
    script = REPOSITORY / "evaluation" / "knn.py"
    finished = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment(cache_root), capture_output=True, text=True, timeout=120
    )
    failed(finished, "no run under runs/")


def test_the_newest_run_is_the_one_that_wrote_metrics_last(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("b", "a", "c")):
        run = Path("runs") / name
        run.mkdir(parents=True)
        shutil.copy(trained / "config.yaml", run)
        (run / "metrics.jsonl").write_text("{}\n")
        os.utime(run / "metrics.jsonl", (1e9 - age, 1e9 - age))
    assert newest_run() == Path("runs/b")
    source = open_source(None)
    assert (source.run, source.chosen) == (Path("runs/b"), "newest under runs/")
    assert source.results_folder("knn", None) == Path("runs/b/evaluation/knn")


def test_sources_within_a_run_bring_its_settings_and_keep_their_results_apart(trained):
    export = open_source(str(trained / "export"))
    assert export.results_folder("knn", None) == trained / "evaluation" / "knn"
    checkpoint = open_source(str(trained / "checkpoints" / "last.pt"))
    assert (checkpoint.run, checkpoint.config.monitor.k) == (trained, (3,))
    assert checkpoint.results_folder("knn", None) == trained / "evaluation" / "knn_last"
    assert checkpoint.results_folder("knn", "elsewhere") == Path("elsewhere")
    assert "the model itself" in starting_weights(open_source(str(trained / "checkpoints" / "start")))
    assert open_source("timm:vit_base_patch8_224.dino").results_folder("knn", None) == Path(
        "runs/timm_vit_base_patch8_224.dino/evaluation/knn"
    )


def test_random_weights_are_the_same_architecture_by_seed(trained):
    file = str(REFERENCE / "backbone_final.pth")
    model = open_model(open_source(file), heads=3)
    random = [random_control(model, seed) for seed in (0, 0, 1)]
    shapes = [{name: tensor.shape for name, tensor in m.model.state_dict().items()} for m in (model, random[0])]
    assert shapes[0] == shapes[1]
    assert random[0].weights.sha256 == random[1].weights.sha256 != random[2].weights.sha256
    assert tuple(random[0].model.pretrained_cfg["mean"]) == tuple(model.model.pretrained_cfg["mean"])
    assert "started from random weights" in random_control(open_model(open_source(str(trained))), 0)


def test_weights_that_are_not_finite_are_refused(trained, tmp_path):
    shutil.copytree(trained / "export", tmp_path / "export")
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "export" / "backbone.safetensors")
    tensors["cls_token"][:] = float("nan")
    save_file(tensors, tmp_path / "export" / "backbone.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not finite"):
        load_frozen(str(tmp_path / "export"), CPU)


def test_patients_seen_in_pretraining_are_counted(trained, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    source = open_source(str(trained))
    own = open_data(source, DataOptions(), lambda text: None)
    assert own.training_notes(own.labelled("test")) == []
    again = open_data(source, DataOptions(dataset=DatasetOptions(split="patient", split_seed=3)), lambda text: None)
    test = again.labelled("test")
    trained_on = set(own.index.patients[own.labelled("train")].tolist())
    tested = set(again.index.patients[test].tolist())
    assert f"{len(trained_on & tested)} of {len(tested)} patients were trained on" in again.training_notes(test)[-1]
    assert trained_on & tested
    other = open_data(source, DataOptions(phantom=PhantomOptions(seed=5)), lambda text: None)
    notes = other.training_notes(other.labelled("test"))
    assert not any("were trained on, in this run" in note for note in notes)  # the same numbers, other eyes
    assert any("other data than the run was trained on" in note for note in other.notes)


def test_a_run_is_judged_by_its_own_table(trained, cache_root, monkeypatch, tmp_path):
    """Also on phantoms, whose splits the generator would give too."""
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    run = shutil.copytree(trained, tmp_path / "run")
    rows = (run / TABLE).read_text()
    tested = sum(",test," in row for row in rows.splitlines())
    (run / TABLE).write_text(rows.replace(",test,", ",train,", tested - 4))
    for data in (None, "phantom"):
        judged = open_data(open_source(str(run)), DataOptions(data=data), lambda text: None)
        assert len(judged.labelled("test")) == 4 < tested


@pytest.fixture(scope="module")
def oct2017(tmp_path_factory):
    """The shape of OCT2017: four classes, train unbalanced, 32 validation and 32 test scans, published folders."""
    root, rng = tmp_path_factory.mktemp("data") / "OCT2017 ", np.random.default_rng(0)
    patient = 0
    for split, counts in (("train", (12, 8, 6, 10)), ("val", (8,) * 4), ("test", (8,) * 4)):
        for c, (name, count) in enumerate(zip(("CNV", "DME", "DRUSEN", "NORMAL"), counts, strict=True)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                patient += i % 2  # two scans a patient
                pixels = rng.integers(0, 60, (64, 96)) + 40 * (np.arange(64)[:, None] // 16 == c)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}-{patient}-{i}.jpeg")
    return root


@pytest.mark.parametrize(
    "settings",
    [
        ["--image-size", "32", "48"],
        ["--image-size", "32", "32", "--preprocessing", "dino", "--precision", "bf16"],
        ["--image-size", "32", "32", "--features", "mean-patch"],
    ],
)
def test_four_classes_and_a_validation_split_of_32_scans(settings, oct2017, cache_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    common = ["--model", str(REFERENCE / "backbone_final.pth"), "--heads", "3", "--data", str(oct2017), "--bootstrap",
              "100", "--dataset.split", "official", "--out", str(tmp_path), *settings]  # fmt: skip
    for script, args in (("knn", ["--k", "5", "--split", "val"]), ("linear", ["--n-c", "4", "--fractions", "1"])):
        module = importlib.import_module(f"evaluation.{script}")
        module.main(parse_options(module.Options, [*common, *args]))
        printed = capsys.readouterr().out
        assert "shortcut check: balanced accuracy without the shape of the retina" in printed
        result = json.loads(next(tmp_path.glob(f"{script}_*.json")).read_text())
        row = result["rows"]["raw pixels"]
        row = row["5"] if script == "knn" else row
        assert set(row["recall"]) == {"CNV", "DME", "DRUSEN", "NORMAL"}
        assert np.array(row["confusion"]).sum(axis=1).tolist() == [8] * 4
        if "dino" not in settings:  # the crop loses the bands' position only a little; pixels see them anyway
            assert row["accuracy"]["point"] > 90


def test_the_shortcut_check_finds_a_class_that_is_told_by_size(tmp_path, cache_root, monkeypatch, capsys):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    rng = np.random.default_rng(0)
    for p in range(30):
        name = ("CNV", "NORMAL")[p % 2]
        folder = tmp_path / "scans" / name
        folder.mkdir(parents=True, exist_ok=True)
        shape = (64, 64 + 32 * (p % 2))
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / f"{name}-{p}-1.png")
    knn = importlib.import_module("evaluation.knn")
    knn.main(parse_options(knn.Options, [
        "--model", str(REFERENCE / "backbone_final.pth"), "--heads", "3", "--data", str(tmp_path / "scans"), "--k", "3",
        "--image-size", "32", "32", "--bootstrap", "0", "--out", str(tmp_path / "out"),
    ]))  # fmt: skip
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("shortcut check"))
    shares = {name: tuple(map(float, numbers)) for name, *numbers in
             re.findall(r"([a-z+ ]+) ([\d.]+) \[([\d.]+), ([\d.]+)\]", line)}  # fmt: skip
    (size, size_low, _), (_, border_low, border_high) = shares[" from size"], shares[" border"]
    assert size == 100
    assert size_low > 50
    assert border_low < 50 < border_high
