"""The supervised trainer as a user runs it: what it leaves, that it resumes exactly, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import FEW_PHANTOMS, REPOSITORY, TINY_FIT, environment
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino_oct.cli import read_settings, write_settings
from dino_oct.errors import InputError
from dino_oct.models.backbone import load_backbone
from dino_oct.runlog import events_folder
from evaluation.config import ClassTargetOptions
from evaluation.inputs.model import as_classifier, open_model
from evaluation.inputs.sources import open_source, starting_weights
from supervised.architectures import find
from supervised.config import SupervisedConfig, load_config
from supervised.training import Best, train

CPU = torch.device("cpu")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_clock(run: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "epoch_seconds"} for line in lines(run)]


def options(*more: object) -> SupervisedConfig:
    return load_config([*TINY_FIT, *map(str, more)])


def test_a_run_leaves_what_every_run_leaves(fitted):
    for name in ("config.yaml", "metrics.jsonl", "tensorboard", "checkpoints/last.pt", "checkpoints/best_val.pt",
                 "checkpoints/start", "export/backbone.safetensors", "export/config.json", "views",
                 "evaluation/supervised/supervised_test.json"):  # fmt: skip
        assert (fitted / name).exists(), name
    epochs = [line for line in lines(fitted) if "val_loss" in line]
    assert [line["epoch"] for line in epochs] == [0, 1, 2, 3]
    logged = {"trainable_parameters", "epoch_seconds", "train_loss", "val_accuracy", "val_balanced_accuracy",
              "val_macro_auroc", "val_recall_CNV", "val_recall_NORMAL"}  # fmt: skip
    assert logged <= epochs[-1].keys()
    tags = EventAccumulator(str(events_folder(fitted))).Reload().Tags()
    shown = {"training/loss", "training/lr", "evaluation/val_accuracy", "evaluation/val_recall_CNV"}
    assert shown <= set(tags["scalars"])
    assert any(tag.startswith("views/") for tag in tags["images"])


def test_the_test_split_has_every_metric_with_its_interval(fitted):
    result = json.loads((fitted / "evaluation" / "supervised" / "supervised_test.json").read_text())
    row = result["rows"]["classifier"]
    assert row["accuracy"]["low"] <= row["accuracy"]["point"] <= row["accuracy"]["high"]
    assert row["calibration_error"]["low"] is row["calibration_error"]["high"] is None
    assert "biased" in row["calibration_error"]["reason"]
    for metric in (
        "balanced_accuracy",
        "macro_auroc",
    ):  # one patient a class: a mean over classes has none
        assert row[metric]["low"] is None
        assert 0 <= row[metric]["point"] <= 100
    assert np.sum(row["confusion"]) == result["data"]["sets"]["queries"]["scans"] == 16
    assert {name: interval["low"] for name, interval in row["recall"].items()} == dict.fromkeys(
        ("CNV", "DME", "DRUSEN", "NORMAL")
    )
    printed = (fitted / "stdout.txt").read_text()
    for words in ("PHANTOMS: synthetic scans", "classified once: test, 16 scans of 4 patients", "calibration error %",
                  "4 patients are few", "epoch 0/3", "best: epoch", "by patient: 4 patients",
                  "rule: chosen by balanced accuracy on 4 validation patients"):  # fmt: skip
        assert words in printed, words
    (unit, of_patients), *_ = result["by_unit"].items()
    of_row = of_patients["rows"]["classifier"]
    assert (unit, of_patients["units"], of_patients["patients"]) == ("patient", 4, 4)
    assert np.sum(of_row["confusion"]) == 4
    assert of_row["val_balanced_accuracy"][of_row["rule"]] == max(of_row["val_balanced_accuracy"].values())


def test_the_export_is_the_best_epoch_and_loads_in_plain_timm(fitted):
    best = torch.load(fitted / "checkpoints" / "best_val.pt", weights_only=True)
    ours = as_classifier(open_model(open_source(str(fitted)), with_classifier=True), ClassTargetOptions())
    assert ours.class_names == ("CNV", "DME", "DRUSEN", "NORMAL")
    assert all(torch.equal(tensor, best["model"][name]) for name, tensor in ours.model.state_dict().items())
    judged = [(line["val_balanced_accuracy"], -line["val_loss"]) for line in lines(fitted) if "val_loss" in line]
    assert best["best"]["epoch"] == max(range(len(judged)), key=judged.__getitem__)
    hub = json.loads((fitted / "export" / "config.json").read_text())
    plain = timm.create_model(
        hub["architecture"],
        num_classes=hub["num_classes"],
        checkpoint_path=str(fitted / "export" / "backbone.safetensors"),
        **hub["model_args"],
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain(images), ours.model(images))


def test_evaluations_take_it_as_a_source(fitted, call):
    finished = call("evaluation/knn.py", "--model", fitted, "--k", 3, "--bootstrap", 50)
    assert finished.returncode == 0, finished.stderr
    assert "starting weights" in finished.stdout
    source = open_source(str(fitted))
    assert source.config.starts_from_random
    start = load_backbone(starting_weights(source).name)
    assert not torch.equal(start.cls_token, load_backbone(str(fitted)).cls_token)
    result = json.loads((fitted / "evaluation" / "knn" / "knn_test.json").read_text())
    assert result["settings"]["image_size"] == [32, 32]


def test_two_processes_train_as_one(fitted, command, tmp_path):
    finished = command("supervised/train.py", *TINY_FIT, "--out", tmp_path / "two", processes=2)
    assert finished.returncode == 0, finished.stderr
    for alone, two in zip(lines(fitted), lines(tmp_path / "two"), strict=True):
        for key in {"train_loss", "val_loss", "loss", "val_accuracy"} & alone.keys():
            assert alone[key] == pytest.approx(two[key], rel=1e-4)


def test_micro_batches_train_as_one(fitted, tmp_path, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    train(options("--optim.accumulate", 4, "--test", False, "--out", tmp_path / "micro"))
    for whole, two in zip(lines(fitted), lines(tmp_path / "micro"), strict=True):
        for key in {"loss", "val_loss"} & whole.keys():
            assert whole[key] == pytest.approx(two[key], rel=1e-4)


def test_mixup_does_not_depend_on_micro_batches(tmp_path, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    mixed = {}
    for parts in (1, 2, 4):
        run = tmp_path / f"{parts}"
        train(options("--optim.accumulate", parts, "--optim.mixup", 0.4, "--test", False, "--out", run))
        mixed[parts] = [line["loss"] for line in lines(run) if "loss" in line]
    assert mixed[2] == pytest.approx(mixed[1], rel=1e-4)
    assert mixed[4] == pytest.approx(mixed[1], rel=1e-4)
    with pytest.raises(InputError, match=r"optim\.mixup mixes pairs of scans, and a micro-batch has 1"):
        train(options("--optim.accumulate", 8, "--optim.mixup", 0.4, "--out", tmp_path / "odd"))


def test_killed_and_resumed_it_is_the_same_run(cache_root, call, tmp_path):
    """With mixup, dropout and an optimiser with momentum: everything random is keyed, everything moving is saved."""
    more = ["--optim.mixup", "0.4", "--network.drop-path", "0.2", "--optim.optimizer", "sgd", "--optim.lr", "0.01",
            "--run.save-every", "1", "--run.log-every", "1"]  # fmt: skip

    def start(run):
        return subprocess.Popen(
            [sys.executable, "supervised/train.py", *TINY_FIT, *more, "--out", str(run)], cwd=REPOSITORY,
            env=environment(cache_root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output, _ = start(whole).communicate(timeout=120)
    assert "written:\n" in output
    for step, number in ((2, signal.SIGKILL), (5, signal.SIGTERM)):
        process, metrics, deadline = start(killed), killed / "metrics.jsonl", time.monotonic() + 60
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 0), output
    output, _ = start(killed).communicate(timeout=120)
    assert "resuming from" in output
    assert without_clock(killed) == without_clock(whole)
    ours, theirs = (torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (killed, whole))
    assert all(torch.equal(tensor, theirs["model"][name]) for name, tensor in ours["model"].items())
    finished = call("supervised/train.py", *TINY_FIT, *more, "--out", killed)
    assert "already complete" in finished.stdout
    assert without_clock(killed) == without_clock(whole)


def test_patience_ends_a_run_that_no_longer_improves():
    best = Best()
    for epoch, (accuracy, loss) in enumerate([(30, 1.4), (50, 1.2), (50, 1.1), (40, 1.0), (45, 1.0)]):
        best.take(epoch, {"val_balanced_accuracy": accuracy, "val_loss": loss}, patience=2)
    assert (best.epoch, best.is_old) == (2, True)


def test_a_pretrained_run_is_fine_tuned_in_its_last_block(trained, tmp_path, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    config = load_config([
        "--model", str(trained), "--network.image-size", "32", "--network.train", "1", "--optim.layer-decay", "0.7",
        *FEW_PHANTOMS, "--optim.epochs", "1", "--optim.batch-size", "8", "--run.workers", "0", "--run.precision",
        "fp32", "--out", str(tmp_path / "run"),
    ])  # fmt: skip
    train(config)
    before, after = (load_backbone(str(folder)).state_dict() for folder in (trained, tmp_path / "run"))
    start = load_backbone(str(tmp_path / "run" / "checkpoints" / "start")).state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items())
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed <= {name for name in before if name.startswith(("blocks.1.", "norm."))}


def test_settings_survive_the_run_folder(tmp_path):
    config = options("--augment.scale", 0.6, 0.9, "--network.train", "head")
    write_settings(config, tmp_path / "config.yaml")
    assert read_settings(SupervisedConfig, tmp_path / "config.yaml") == config
    assert config.out == "runs/supervised_random_vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "resnet5000"], "nearest names"),
        (["--optim.lr", "1e3", "--optim.optimizer", "sgd"], "lower --optim.lr"),
        (["--network.train", "tail"], "give full, head or a number of last blocks"),
        (["--network.train", "7"], "7 last blocks: the model has"),
        (["--network.image-size", "33"], "33"),
        (["--optim.batch-size", "999"], "fewer than optim.batch_size 999"),
        (["--optim.momentum", "1"], "--optim.momentum 1.0: must be 0 or more and below 1"),
        (["--optim.optimizer", "adamm"], "adamm"),
    ],
)
def test_wrong_settings_are_one_line(args, message, tmp_path, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    with pytest.raises(InputError) as error:
        train(options(*args, "--out", tmp_path / "run"))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def scans_of(root: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for place, count in counts.items():
        (root / place).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (64, 64), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{Path(place).name}-{place[:2]}{i}-1.png")
    return root


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"CNV": 12}, "needs at least two classes, found none"),
        (
            {"train/CNV": 9, "train/NORMAL": 9, "val/AMD": 2, "val/NORMAL": 2, "test/CNV": 2},
            "class AMD has no training scans (2 in val, 0 in test); classes are AMD, CNV, NORMAL: name the folders",
        ),
        ({"train/CNV": 9, "train/NORMAL": 9, "test/CNV": 2, "test/NORMAL": 2}, "no labelled validation scans"),
    ],
)
def test_wrong_folders_are_one_line(counts, message, tmp_path, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    data = scans_of(tmp_path / "data", counts)
    split = "official" if "train/CNV" in counts else "patient"
    with pytest.raises(InputError) as error:
        train(options("--data", data, "--dataset.split", split, "--out", tmp_path / "run"))
    assert message in str(error.value)


def test_wrong_input_exits_with_status_2_and_a_pretraining_is_not_resumed(trained, command, call):
    finished = command("supervised/train.py", *TINY_FIT, "--model", "resnet5000")
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1
    finished = call("supervised/train.py", *TINY_FIT, "--out", trained)
    assert finished.returncode == 2, finished.stdout
    assert "not a checkpoint of such a run" in finished.stderr


@pytest.mark.parametrize("preset", sorted(path.name for path in (REPOSITORY / "configs" / "supervised").glob("*.yaml")))
def test_every_preset_is_valid_names_a_model_and_says_what_it_is_for(preset, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    config = load_config(["--config", f"configs/supervised/{preset}"])
    assert config.out == f"runs/{preset.removesuffix('.yaml')}"
    assert config.model.startswith("runs/") or find(config.model)
    header = (REPOSITORY / "configs" / "supervised" / preset).read_text().splitlines()
    assert header[0].startswith("# ")
    assert any("accelerate launch" in line for line in header)
    assert any("Expect" in line for line in header)
