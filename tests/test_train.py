"""The trainer as a user runs it: what it leaves behind, where it starts from, and how it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import DIVERGING, REFERENCE, TINY_RUN
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino_oct.ahead import Ahead
from dino_oct.augment import AugmentConfig
from dino_oct.models.backbone import load_backbone
from dino_oct.models.head import DinoHead
from dino_oct.models.network import DinoNetwork
from dino_oct.runlog import events_folder
from dino_oct.speed import PACE, Pace


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_run_folder(trained):
    for name in ("config.yaml", "metrics.jsonl", "tensorboard", "checkpoints/last.pt", "checkpoints/start",
                 "export/backbone.safetensors", "export/config.json", "views", "attention"):  # fmt: skip
        assert (trained / name).exists(), name
    evaluations = [line for line in metrics_of(trained) if "rankme" in line]
    assert [line["step"] for line in evaluations] == [0, 4, 8]
    wanted = {
        "knn_3",
        "rankme",
        "feature_spread",
        "attention_entropy",
        "attention_area",
        "attention_tissue",
        "probe",
        "cka_start",
        "weight_drift",
        "teacher_entropy",
        "teacher_student_kl",
        "ln_k",
        "center_norm",
    }
    assert all(wanted <= line.keys() for line in evaluations)
    drift = [line["weight_drift"] for line in evaluations]
    assert drift[0] == 0 < drift[1] < drift[2]
    assert evaluations[0]["cka_start"] == pytest.approx(1)
    training = [line for line in metrics_of(trained) if "loss" in line]
    assert {"lr", "weight_decay", "teacher_momentum", "teacher_temperature", *PACE} <= training[0].keys()


def test_terminal_says_what_matters(trained):
    printed = (trained / "stdout.txt").read_text()
    for words in ("PHANTOMS (synthetic scans)", "0 left out", "patients", "head: new, K = 64", "step 0/8 · k-NN",
                  "start", "pixels", "probe", "attention", "tensorboard --logdir"):  # fmt: skip
        assert words in printed, words
    evaluations = [line for line in printed.splitlines() if "k-NN" in line and line.startswith("step ")]
    assert len(evaluations) == 3
    assert all(len(line) <= 100 for line in evaluations)


def test_the_best_checkpoint_exists_from_the_first_evaluation(trained):
    """Of a set that can tell nothing it stays there, and this is said."""
    assert torch.load(trained / "checkpoints" / "best_knn.pt", weights_only=True)["step"] == 0
    assert "best_knn.pt stays at the first evaluation: 16 validation scans" in (trained / "stdout.txt").read_text()


def test_tensorboard_has_the_same_scans_at_every_evaluation(trained):
    events = EventAccumulator(str(events_folder(trained)), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert {"training/loss", "evaluation/knn_3", "evaluation/rankme", "training/images_per_s"} <= set(tags["scalars"])
    attention = [tag for tag in tags["images"] if tag.startswith("attention/")]
    assert len(attention) == 4  # one scan of each class
    steps = [line["step"] for line in metrics_of(trained) if "rankme" in line]
    assert all([event.step for event in events.Images(tag)] == steps for tag in attention)
    views = next(tag for tag in tags["images"] if tag.startswith("views/"))
    assert [event.step for event in events.Images(views)] == [0]


def test_export_loads_in_plain_timm_with_equal_features(trained):
    ours = load_backbone(str(trained)).eval()
    hub = json.loads((trained / "export" / "config.json").read_text())
    plain = timm.create_model(
        hub["architecture"],
        num_classes=0,
        checkpoint_path=str(trained / "export" / "backbone.safetensors"),
        **hub["model_args"],
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), ours(images))
    last = load_backbone(str(trained / "checkpoints" / "last.pt")).eval()
    with torch.no_grad():
        torch.testing.assert_close(last(images), ours(images))
    start = load_backbone(str(trained / "checkpoints" / "start")).state_dict()
    assert any(not torch.equal(t, start[name]) for name, t in ours.state_dict().items()), "training changed nothing"


def test_continuing_a_run_takes_everything(trained, call, tmp_path):
    finished = call("dino_oct/train.py", *TINY_RUN, "--init", trained, "--out", tmp_path / "more")
    assert finished.returncode == 0, finished.stderr
    assert "student, teacher and centre taken over" in finished.stdout
    first, last = metrics_of(tmp_path / "more")[0], metrics_of(trained)[-1]
    for key in ("knn_3", "rankme", "feature_spread", "center_norm"):
        assert first[key] == pytest.approx(last[key], rel=1e-5), key


def test_continuing_an_official_full_file(call, tmp_path):
    args = [arg for arg in TINY_RUN if "=" not in arg and arg not in ("--model.args",)]
    finished = call(
        "dino_oct/train.py", *args, "--model.args", "--model.heads", 3, "--init", REFERENCE / "checkpoint_final.pth",
        "--loss.centering", "center", "--optim.epochs", 1, "--optim.warmup-epochs", 0, "--out", tmp_path / "run",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "42 tensors loaded, 0 missing, 0 unexpected" in finished.stdout
    assert "K = 128; student, teacher and centre taken over (model.out_dim 64 is not used)" in finished.stdout
    assert metrics_of(tmp_path / "run")[0]["center_norm"] == pytest.approx(0.9478, abs=1e-4)  # the file's centre


def test_a_new_head_warms_up_on_a_frozen_backbone(call, tmp_path):
    args = [arg for arg in TINY_RUN if "=" not in arg and arg not in ("--model.args",)]
    run = tmp_path / "run"
    common = ["--model.args", "--model.heads", 3, "--init", REFERENCE / "backbone_final.pth", "--out", run]
    finished = call("dino_oct/train.py", *args, *common, "--optim.epochs", 1, "--optim.warmup-epochs", 0)
    assert finished.returncode == 0, finished.stderr
    checkpoint = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    original = torch.load(REFERENCE / "backbone_final.pth")
    assert all(torch.equal(t, checkpoint["student"][f"module.backbone.{name}"]) for name, t in original.items())
    assert any(t.abs().max() > 0 for name, t in checkpoint["student"].items() if name.endswith("mlp.0.bias"))


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_backbones_with_registers_train(name, call, tmp_path):
    patch = 14 if "14" in name else 16
    args = [arg for arg in TINY_RUN if "=" not in arg and arg not in ("--model.args",)]
    finished = call(
        "dino_oct/train.py", *args, "--init", f"random:{name}", "--model.args", "embed_dim=48", "depth=2",
        "num_heads=3", f"img_size={4 * patch}", "--augment.global-size", 4 * patch, "--augment.local-size", 2 * patch,
        "--monitor.image-size", 4 * patch, 4 * patch, "--optim.epochs", 1, "--optim.warmup-epochs", 0,
        "--model.grad-checkpointing", "True", "--run.precision", "bf16", "--out", tmp_path / "run",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "export" / "config.json").exists()


def test_two_processes_in_bf16_with_checkpointing_and_a_frozen_backbone(command, tmp_path):
    finished = command(
        "dino_oct/train.py", *TINY_RUN, "--run.precision", "bf16", "--model.grad-checkpointing", "True",
        "--optim.freeze-backbone-epochs", 1, "--optim.freeze-last-layer-epochs", 1, "--optim.accumulate", 2,
        "--out", tmp_path / "run", processes=2,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    losses = [line["loss"] for line in metrics_of(tmp_path / "run") if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()


def test_processes_and_workers_change_nothing(trained, command, tmp_path):
    """The whole command with two processes and loader workers sees the same scans and views and ends the same."""
    finished = command(
        "dino_oct/train.py", *TINY_RUN, "--model.drop-path", 0, "--run.log-every", 1, "--out", tmp_path / "one"
    )
    assert finished.returncode == 0, finished.stderr
    finished = command(
        "dino_oct/train.py", *TINY_RUN, "--model.drop-path", 0, "--run.log-every", 1, "--run.workers", 1,
        "--loss.koleo-weight", 0.1, "--out", tmp_path / "two", processes=2,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    single, several = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert [line["step"] for line in single] == [line["step"] for line in several]
    for a, b in zip(single, several, strict=True):
        for key in ("loss", "center_norm", "rankme"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=2e-3), (a["step"], key)


def test_unlabelled_folder_with_a_bad_file(call, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "scans" / "clinic"
    folder.mkdir(parents=True)
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (64, 80), dtype=np.uint8)).save(folder / f"scan_{i}.png")
    (folder / "broken.jpeg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    finished = call("dino_oct/train.py", *TINY_RUN, "--data", tmp_path / "scans", "--out", tmp_path / "run")
    assert finished.returncode == 0, finished.stderr
    assert "1 left out" in finished.stdout
    assert "broken.jpeg" in finished.stdout
    line = metrics_of(tmp_path / "run")[0]
    assert "rankme" in line
    assert not any(key.startswith("knn") for key in line)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--optim.batch-size", "9999"], "fewer than optim.batch_size 9999"),
        (["--optim.accumulate", "3"], "cannot be divided over 1 processes × 3"),
        (["--augment.global-size", "33"], "augment.global_size 33 33 is not a multiple of the patch (8 px)"),
        (["--init", "random:vgg11", "--model.args", "--model.drop-path", "0"], "VGG cannot take images of this size"),
        (["--lr", "1"], "--lr"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(args, message, call, tmp_path):
    finished = call("dino_oct/train.py", *TINY_RUN, "--out", tmp_path / "run", *args)
    assert finished.returncode == 2, finished.stderr
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_nothing_else_is_on_stderr_of_a_process(command, tmp_path):
    """Not even a warning of a library."""
    finished = command("dino_oct/train.py", *TINY_RUN, "--init", "nowhere.pth", "--out", tmp_path / "run")
    assert (finished.returncode, len(finished.stderr.splitlines())) == (2, 1), finished.stderr
    assert "no such file or folder" in finished.stderr


def test_a_folder_that_is_no_run_is_not_touched(call, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    finished = call("dino_oct/train.py", *TINY_RUN, "--out", tmp_path / "thesis")
    assert finished.returncode == 2
    assert "is not a run folder" in finished.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_resuming_with_other_settings_names_them(trained, call, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    changed = ["--optim.epochs", 5, "--optim.lr", 1e-3, "--monitor.k", 4]
    finished = call("dino_oct/train.py", *TINY_RUN, "--out", tmp_path / "run", *changed)
    assert finished.returncode == 0, finished.stderr
    assert "warning: settings differ from the run's: optim.epochs: 4 → 5; optim.lr: 0.008 → 0.001" in finished.stdout


def test_loss_that_is_not_finite_stops_with_advice(call, tmp_path):
    finished = call("dino_oct/train.py", *TINY_RUN, *DIVERGING, "--out", tmp_path / "run")
    assert finished.returncode == 2
    assert "stopped at step" in finished.stderr
    assert "lower --optim.lr" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("save_every", [1, 500])
def test_weights_that_are_not_finite_are_never_saved(save_every, call, tmp_path):
    run = tmp_path / "run"
    finished = call(
        "dino_oct/train.py", *TINY_RUN, *DIVERGING, "--run.save-every", save_every, "--out", run,
    )  # fmt: skip
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert all(tensor.isfinite().all() for part in ("student", "teacher") for tensor in state[part].values())


def test_a_network_whose_operations_cannot_be_counted_is_trained_all_the_same():
    network = DinoNetwork(load_backbone("random:cait_xxs24_224", model_args={"depth": 1}), DinoHead(192, 16))
    ahead = Ahead(lambda: None, 1, torch.device("cpu"))
    next(ahead)
    pace = Pace(network, AugmentConfig(), torch.device("cpu"), bf16=False)
    pace.count(8)
    assert pace.read(ahead).keys() == {"images_per_s", "waiting"}
