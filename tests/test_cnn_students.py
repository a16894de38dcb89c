"""Convolutional students: trained, resumed, exported, drawn and evaluated by the same commands as transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import TINY_RUN, with_signal
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dino_oct import learner as learner_module
from dino_oct.config import LossConfig, ModelConfig, OptimConfig
from dino_oct.errors import InputError
from dino_oct.learner import Learner, Schedules
from dino_oct.models.backbone import load_backbone
from dino_oct.models.layers import check_runs, feature_cam, layer_maps
from dino_oct.models.network import cls_feature
from dino_oct.networks import build_networks
from dino_oct.runlog import events_folder
from dino_oct.speed import PACE

RUN = [*TINY_RUN, "--model.args", "--augment.global-size", "64", "--augment.local-size", "32", "--run.log-every", "1"]
RUN += ["--monitor.image-size", "64", "64", "--monitor.attention-size", "64", "--optim.lr", "0.03"]


def metrics_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in PACE} for line in lines]


def teacher_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)["teacher"]


@pytest.fixture(scope="module")
def runs(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn")
    for name in ("test_resnet", "test_convnext"):
        finished = command("dino_oct/train.py", *RUN, "--init", f"random:{name}", "--out", folder / name)
        assert finished.returncode == 0, finished.stderr
        (folder / name / "stdout.txt").write_text(finished.stdout)
    return folder


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_run_of_a_convolutional_network(name, runs):
    run = runs / name
    evaluations = [line for line in metrics_of(run) if "rankme" in line]
    assert [line["step"] for line in evaluations] == [0, 4, 8]
    assert {"knn_3", "probe", "cka_start", "weight_drift"} <= evaluations[0].keys()
    assert not any("attention" in key for line in evaluations for key in line)
    assert evaluations[0]["weight_drift"] == 0 < evaluations[1]["weight_drift"]
    assert evaluations[2]["cka_start"] < evaluations[0]["cka_start"] == pytest.approx(1)
    printed = (run / "stdout.txt").read_text()
    assert "attention" not in printed
    assert "step 8/8 · k-NN" in printed

    assert not (run / "attention").exists()
    images = sorted((run / "gradcam").iterdir())
    assert len(images) == 4 * 3  # a scan of each class, three times
    heights = {Image.open(image).size[1] for image in images}
    assert heights == {2 * 22 + 2 * (256 + 4)}  # two lines of text, start and now
    events = EventAccumulator(str(events_folder(run)), size_guidance={"images": 0}).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("gradcam/")]
    assert len(tags) == 4
    assert all([event.step for event in events.Images(tag)] == [0, 4, 8] for tag in tags)

    ours = load_backbone(str(run)).eval()
    hub = json.loads((run / "export" / "config.json").read_text())
    weights = str(run / "export" / "backbone.safetensors")
    plain = timm.create_model(hub["architecture"], num_classes=0, checkpoint_path=weights, **hub["model_args"]).eval()
    batch = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(batch), cls_feature(ours, batch))
    start = load_backbone(str(run / "checkpoints" / "start")).state_dict()
    assert any(not torch.equal(t, start[n]) for n, t in ours.state_dict().items()), "training changed nothing"


def test_a_stopped_run_goes_on_to_the_same_bits(runs, call, monkeypatch, tmp_path):
    """BatchNorm's statistics, the comparison with the start and the images included."""
    run, whole = tmp_path / "stopped", runs / "test_resnet"
    arguments = [*RUN, "--init", "random:test_resnet", "--out", run]
    with monkeypatch.context() as patch:
        patch.setattr(learner_module, "follow", with_signal(6, learner_module.follow))
        stopped = call("dino_oct/train.py", *arguments)
    assert "stopped by a signal after step 6 of 8" in stopped.stdout
    assert call("dino_oct/train.py", *arguments).returncode == 0
    assert metrics_of(run) == metrics_of(whole)
    theirs = teacher_of(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in teacher_of(run).items())
    for image in sorted((whole / "gradcam").iterdir()):
        assert image.read_bytes() == (run / "gradcam" / image.name).read_bytes(), image.name


def test_without_the_start_a_run_goes_on_and_says_so(runs, call, monkeypatch, tmp_path):
    run = tmp_path / "stopped"
    arguments = [*RUN, "--init", "random:test_resnet", "--out", run]
    with monkeypatch.context() as patch:
        patch.setattr(learner_module, "follow", with_signal(2, learner_module.follow))
        call("dino_oct/train.py", *arguments)
    (run / "checkpoints" / "start" / "config.json").unlink()
    finished = call("dino_oct/train.py", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("note: nothing is compared with the features and weights at the start") == 1
    assert "cka_start" not in metrics_of(run)[-1]
    assert "k-NN" in finished.stdout


@pytest.mark.parametrize("command_line", [["knn.py", "--k", "3"], ["linear.py"], ["gradcam.py"]])
def test_evaluations_of_such_a_run(command_line, runs, call, tmp_path):
    script, *options = command_line
    finished = call(f"evaluation/{script}", "--model", runs / "test_resnet", "--out", tmp_path, *options)
    assert finished.returncode == 0, finished.stderr


def test_attention_says_in_one_line_that_there_is_none(runs, call, tmp_path):
    finished = call("evaluation/attention.py", "--model", runs / "test_resnet", "--out", tmp_path)
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1
    assert "ResNet has no CLS token: this needs a vision transformer" in finished.stderr


def learner_of(name: str, loss: LossConfig | None = None, **settings) -> tuple[Learner, Schedules]:
    config = ModelConfig(args=[], drop_path=0.0, out_dim=32, hidden_dim=32, bottleneck_dim=16, **settings)
    networks = build_networks(f"random:{name}", config, loss or LossConfig(), 0, None, str)
    optim = OptimConfig(
        epochs=2, batch_size=8, warmup_epochs=0, lr=1e-2, teacher_momentum=0.5, teacher_momentum_end=0.5
    )
    return Learner(networks.student, LossConfig(), optim, Accelerator(cpu=True)), Schedules(optim, LossConfig(), 2)


def views(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 4, 3, side, side, generator=random) + 1 for n, side in ((2, 64), (3, 32))]


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers() if "running" in name}


def test_the_teachers_batch_norm_uses_and_learns_its_own_batch():
    """As in DINO's code: its statistics are buffers that are not averaged, and used in evaluation."""
    learner, schedules = learner_of("test_resnet")
    before, batch = buffers(learner.teacher), views(0)
    inputs: list[torch.Tensor] = []
    norm = next(module for module in learner.teacher.modules() if isinstance(module, nn.BatchNorm2d))
    hook = norm.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    learner.step([batch], schedules[0])
    hook.remove()
    after, students = buffers(learner.teacher), buffers(learner.student)
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    assert any(not torch.allclose(after[name], students[name]) for name in after)  # the student saw small views too
    ((momentum, x),) = [(norm.momentum, value) for value in inputs]  # one pass, both large views together
    expected = (1 - momentum) * 0 + momentum * x.mean(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected)
    assert not any(module.training for module in learner.teacher.modules())
    learner.teacher_statistics(batch, 0.05)
    assert all(torch.equal(value, after[name]) for name, value in buffers(learner.teacher).items())


def test_the_teachers_dropout_stays_off():
    learner, schedules = learner_of("test_resnet")
    learner.teacher.backbone.layer4.append(nn.Dropout(0.9).eval())
    seen: list[bool] = []
    learner.teacher.backbone.layer4[-1].register_forward_hook(lambda module, args, output: seen.append(module.training))
    learner.step([views(0)], schedules[0])
    assert seen == [False]


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_gradient_checkpointing_changes_no_step(name):
    plain, schedules = learner_of(name)
    checkpointed, _ = learner_of(name, grad_checkpointing=True)
    for step in range(2):
        losses = [learner.step([views(step)], schedules[step])["loss"] for learner in (plain, checkpointed)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_compiled_steps_are_equal():
    plain, schedules = learner_of("test_resnet")
    compiled, _ = learner_of("test_resnet")
    compiled.compile(backend="eager")
    for step in range(2):
        losses = [learner.step([views(step)], schedules[step])["loss"] for learner in (plain, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    theirs = buffers(compiled.teacher)
    assert all(torch.allclose(value, theirs[name]) for name, value in buffers(plain.teacher).items())


def test_what_a_backbone_cannot_do_is_one_line():
    with pytest.raises(InputError, match=r"grad_checkpointing True: timm has none for VGG; leave it out"):
        learner_of("vgg11", grad_checkpointing=True)
    with pytest.raises(InputError, match=r"loss.gram_weight needs tokens of patches, and ResNet has none"):
        learner_of("test_resnet", LossConfig(gram_weight=1.0))
    vgg = load_backbone("random:vgg11")
    check_runs(vgg, (224, 224), "augment.global_size")
    with pytest.raises(InputError, match=r"^augment.local_size 16 16: VGG cannot take images of this size \("):
        check_runs(vgg, (16, 16), "augment.local_size")


def test_a_head_takes_what_the_backbone_gives():
    """Behind MobileNetV3's pooling there is one more layer, wider than its feature map."""
    learner, schedules = learner_of("mobilenetv3_small_050")
    assert np.isfinite(learner.step([views(0)], schedules[0])["loss"])


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_the_map_of_a_feature_shows_what_sets_the_scan_apart(name):
    """Its parts along the scan's own difference from the mean add up to the length of that difference."""
    model = load_backbone(f"random:{name}").eval()
    random = torch.Generator().manual_seed(0)
    others, images = (torch.randn(8, 3, 96, 128, generator=random) for _ in range(2))
    images[:, :, 32:64, 64:96] += 4  # one bright cell of the map
    mean = layer_maps(model, others).mean(dim=(0, 2, 3))
    maps = feature_cam(model, images, mean)
    assert maps.shape == (8, 3, 4)
    assert maps.min() == 0 < maps.max()
    outputs = layer_maps(model, images)
    pooled = outputs.mean(dim=(2, 3)) - mean
    along = torch.einsum("bchw,bc->bhw", outputs - mean[:, None, None], F.normalize(pooled, dim=1))
    torch.testing.assert_close(along.mean(dim=(1, 2)), pooled.norm(dim=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps, along.clamp_min(0), rtol=1e-4, atol=1e-6)
    if name == "test_resnet":  # ConvNeXt divides by the norm at each position, and brightness is lost
        assert maps.flatten(1).argmax(dim=1).tolist() == [1 * 4 + 2] * 8
    torch.testing.assert_close(feature_cam(model.train(), images[:1], mean), maps[:1], rtol=1e-4, atol=1e-5)
    assert model.training


def test_two_processes_evaluate_one_network(command, call, tmp_path):
    """Each extracts the features of its share of the scans: their teachers' statistics must be the same."""
    more = ["--init", "random:test_resnet", "--optim.epochs", "1", "--out", tmp_path / "two"]
    finished = command("dino_oct/train.py", *RUN, *more, processes=2)
    assert finished.returncode == 0, finished.stderr
    more = ["--init", tmp_path / "two", "--optim.epochs", "1", "--out", tmp_path / "one"]
    finished = call("dino_oct/train.py", *RUN, *more)
    assert finished.returncode == 0, finished.stderr
    last = [line for line in metrics_of(tmp_path / "two") if "rankme" in line][-1]
    first = metrics_of(tmp_path / "one")[0]
    for key in ("rankme", "feature_spread", "knn_3", "probe"):
        assert first[key] == pytest.approx(last[key], rel=1e-4), key
