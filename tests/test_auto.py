"""Settings chosen from scans, weights and machine: allowed, explained, overruled by the user, kept on a resume."""

import dataclasses
import itertools
import operator
import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TINY_RUN, environment
from PIL import Image

from dino_oct import auto, preflight
from dino_oct.auto import Facts, Machine
from dino_oct.cli import read_settings
from dino_oct.config import LossConfig, TrainConfig, load_config
from dino_oct.data.index import index_scans
from dino_oct.errors import InputError
from dino_oct.learner import Schedules
from dino_oct.limits import check_settings
from dino_oct.models import hub
from dino_oct.models.backbone import load_backbone
from dino_oct.networks import build_networks

LAPTOP = Machine("cpu", 21 << 30, 2, bf16=True)
GPU = Machine("cuda", 80 << 30, 16, bf16=True)
MACHINES = [LAPTOP, Machine("cpu", 3 << 30, 1, bf16=False), GPU, Machine("cuda", 8 << 30, 4, bf16=False),
            dataclasses.replace(GPU, processes=3)]  # fmt: skip
SMALL = Facts(1778, 600, (496, 512), "backbone", 14, 384, 12, 22_056_192, 518)  # ViT-S/14 of 518 px
BASE8 = dataclasses.replace(SMALL, patch=8, width=768, parameters=85_807_872, image_size=224)
CNN = Facts(1778, 600, (496, 512), "backbone", 32, 2048, 4, 23_508_032, 224, values_per_pixel=740)  # ResNet-50
NARROW = Facts(1778, 600, (96, 96), "random", 8, 96, 3, 373_568, 48)  # the quickstart's
TINY_NETWORK = ["--model.args", "patch_size=8", "img_size=32", "embed_dim=32", "depth=2", "num_heads=2"]


def chosen(facts: Facts, machine: Machine = LAPTOP, **given) -> dict:
    """Setting → value; ``given`` as optim__lr."""
    given = {name.replace("__", "."): value for name, value in given.items()}
    return {choice.setting: choice.value for choice in auto.choose(facts, machine, given)}


def config_of(values: dict) -> TrainConfig:
    config = TrainConfig()
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        assert hasattr(operator.attrgetter(section)(config), field), name
        setattr(operator.attrgetter(section)(config), field, value)
    return config


@pytest.mark.parametrize("scans", [24, 300, 2_000, 80_000])
@pytest.mark.parametrize("machine", MACHINES, ids=["laptop", "small CPU", "GPU", "small GPU", "three GPUs"])
def test_whatever_is_chosen_is_allowed_fits_together_and_is_explained(scans, machine):
    for network, source in itertools.product((SMALL, BASE8, CNN, NARROW), ("full", "backbone", "random")):
        facts = dataclasses.replace(network, scans=scans, source=source, out_dim=4096 if source == "full" else None)
        choices = auto.choose(facts, machine)
        assert len({choice.setting for choice in choices}) == len(choices)
        assert all(choice.reason and len(f"  {choice}") <= 100 for choice in choices)
        config = config_of({choice.setting: choice.value for choice in choices})
        check_settings(config)
        views, optim = config.augment, config.optim
        sides = [views.global_size, views.local_size, *config.monitor.image_size]
        assert all(side % facts.patch == 0 for side in sides), sides
        assert views.local_size < views.global_size <= facts.image_size
        assert optim.batch_size <= scans
        assert optim.batch_size % (machine.processes * optim.accumulate) == 0
        steps_per_epoch = scans // optim.batch_size
        assert optim.epochs * steps_per_epoch >= 200
        assert optim.warmup_epochs < optim.epochs
        assert optim.freeze_backbone_epochs <= optim.epochs / 8 + 0.01
        Schedules(optim, config.loss, steps_per_epoch)
        # At the smallest micro-batch with checkpointing there is nothing left to save.
        share = optim.batch_size // machine.processes // optim.accumulate
        head = auto.Head(config.model.out_dim, config.model.hidden_dim, config.model.bottleneck_dim)
        size = auto.Views(views.global_size, views.local_size, views.n_local)
        needed = auto.memory_of_step(
            facts, size, head, share, config.run.precision, config.model.grad_checkpointing
        )  # fmt: skip
        assert needed < machine.memory or (share == 1 and config.model.grad_checkpointing)


def test_a_pretrained_backbone_and_some_thousand_scans_get_the_recipe_that_was_measured():
    recipe = {
        "augment.global_size": 168, "augment.local_size": 84, "augment.n_local": 4,
        "augment.global_scale": (0.4, 1.0), "augment.local_scale": (0.05, 0.4),
        "model.out_dim": 1024, "model.drop_path": 0.0, "model.grad_checkpointing": False,
        "loss.centering": "center", "loss.koleo_weight": 0.0, "loss.teacher_temperature": 0.02,
        "loss.warmup_teacher_temperature": 0.02, "loss.warmup_teacher_temperature_epochs": 0,
        "optim.epochs": 4, "optim.batch_size": 32, "optim.accumulate": 1, "optim.lr": 1.6e-4,
        "optim.warmup_epochs": 0.3, "optim.weight_decay_end": 0.04, "optim.clip_grad": 0.3,
        "optim.teacher_momentum": 0.98, "optim.teacher_momentum_end": 1.0, "optim.freeze_last_layer_epochs": 0,
        "optim.freeze_backbone_epochs": 0.5, "monitor.image_size": (224, 224), "monitor.every_epochs": 1,
        "run.workers": 0, "run.precision": "bf16",
    }  # fmt: skip
    values = chosen(SMALL)
    assert {name: values[name] for name in recipe} == recipe


def test_settings_follow_the_number_of_scans():
    few, some, many = (chosen(dataclasses.replace(SMALL, scans=n), GPU) for n in (24, 2_000, 80_000))
    assert few["optim.batch_size"] < some["optim.batch_size"] < many["optim.batch_size"]
    assert few["model.out_dim"] < some["model.out_dim"] < many["model.out_dim"] == 65536
    assert few["optim.epochs"] > many["optim.epochs"] > some["optim.epochs"]
    assert some["optim.teacher_momentum"] < many["optim.teacher_momentum"] == 0.9995
    assert (some["model.drop_path"], many["model.drop_path"]) == (0.0, 0.1)
    # The rate of a step never exceeds the gentle one.
    steps = [values["optim.lr"] * values["optim.batch_size"] / 256 for values in (few, some, many)]
    assert steps[0] < steps[1] == pytest.approx(steps[2]) == pytest.approx(2e-5)


def test_settings_follow_the_source():
    full, backbone, random = (
        chosen(dataclasses.replace(SMALL, source=source, out_dim=8192)) for source in ("full", "backbone", "random")
    )
    assert (full["model.out_dim"], full["optim.freeze_backbone_epochs"], full["loss.teacher_temperature"]) == (
        8192, 0.0, 0.07)  # fmt: skip
    assert backbone["optim.freeze_backbone_epochs"] > 0
    assert (random["loss.centering"], random["loss.koleo_weight"]) == ("sinkhorn", 0.1)
    assert random["optim.lr"] > 10 * backbone["optim.lr"]
    assert random["optim.epochs"] > backbone["optim.epochs"]
    ended = LossConfig(centering="sinkhorn", teacher_temperature=0.03, koleo_weight=0.2)
    goes_on = chosen(dataclasses.replace(SMALL, source="full", out_dim=64, loss=ended, fixed_gain=False))
    names = ("loss.centering", "loss.teacher_temperature", "loss.koleo_weight", "model.norm_last_layer")
    assert [goes_on[name] for name in names] == ["sinkhorn", 0.03, 0.2, False]


def test_settings_follow_the_machine():
    assert chosen(BASE8, GPU)["augment.global_size"] == 224
    assert chosen(SMALL, GPU)["augment.local_size"] == 98
    assert chosen(BASE8, dataclasses.replace(GPU, bf16=False))["run.precision"] == "fp32"
    assert chosen(BASE8, GPU)["run.workers"] > chosen(BASE8, LAPTOP)["run.workers"] == 0
    memories = [3, 8, 24, 80, 640]
    values = [chosen(BASE8, dataclasses.replace(GPU, memory=m << 30)) for m in memories]
    parts = [v["optim.accumulate"] for v in values if not v["model.grad_checkpointing"]]
    assert parts == sorted(parts, reverse=True)
    assert parts[0] > parts[-1] == 1
    recompute = [v["model.grad_checkpointing"] for v in values]
    assert recompute == sorted(recompute, reverse=True)
    assert recompute[0]


def test_a_process_that_holds_a_share_of_the_networks_has_room_for_more_scans():
    """ViT-H/14 on eight GPUs of 12 GB."""
    facts = dataclasses.replace(BASE8, patch=14, width=1280, depth=32, parameters=632_000_000, scans=80_000)
    machine = dataclasses.replace(GPU, memory=12 << 30, processes=8)
    whole, shared = (chosen(facts, machine, run__shard=shard) for shard in (False, True))
    assert shared["optim.accumulate"] < whole["optim.accumulate"]


def test_given_settings_are_not_chosen_and_the_others_fit_them():
    values = chosen(SMALL, optim__epochs=20, optim__batch_size=16, augment__global_size=112)
    assert not {"optim.epochs", "optim.batch_size", "augment.global_size"} & values.keys()
    assert values["optim.teacher_momentum"] >= 0.998  # 2,220 steps
    assert values["augment.local_size"] == 56
    assert values["optim.lr"] * 16 / 256 == pytest.approx(1e-5)
    whole = chosen(BASE8, dataclasses.replace(GPU, memory=8 << 30), model__grad_checkpointing=False)
    assert "model.grad_checkpointing" not in whole


@pytest.mark.parametrize(
    ("args", "preset", "file"),
    [
        ("", "none", "configs/quickstart.yaml"),
        ("--data phantom", "none", "configs/quickstart.yaml"),
        ("--data SCANS", "auto", ""),
        ("--data SCANS --preset none", "none", "configs/quickstart.yaml"),
        ("--preset auto", "auto", ""),
        ("--data SCANS --config configs/vitb8_oct2017.yaml", "none", "configs/vitb8_oct2017.yaml"),
        ("--data SCANS --config configs/vitb8_oct2017.yaml --preset auto", "auto", "configs/vitb8_oct2017.yaml"),
    ],
)
def test_when_settings_are_chosen(args, preset, file):
    config = load_config(args.split())
    assert (config.preset, config.config) == (preset, file)


def test_what_is_given_in_a_file_or_on_the_command_line_is_known(tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: auto\noptim: {epochs: 3}\n")
    config = load_config(["--config", str(tmp_path / "mine.yaml"), "--loss.koleo-weight=0.1", "--dry-run"])
    assert (config.preset, config.dry_run) == ("auto", True)
    assert config.given == {"preset", "optim.epochs", "config", "loss.koleo_weight", "dry_run"}
    assert load_config(["--data", str(tmp_path), "--dry-run", "False"]).out == f"runs/{tmp_path.name}"


# ---- the command -----------------------------------------------------------------------------------------------------


def write_scans(folder, n, start=0):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n):
        Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(folder / f"scan_{i}.png")


@pytest.fixture
def folder(tmp_path):
    write_scans(tmp_path / "scans" / "clinic", 32)
    return tmp_path / "scans"


def small_run(folder, run):
    return ["dino_oct/train.py", "--data", folder, "--init", "random:vit_tiny_patch16_224", *TINY_NETWORK,
            "--optim.epochs", 1, "--monitor.attention-size", 32, "--out", run]  # fmt: skip


def settings_of(run):
    return read_settings(TrainConfig, run / "config.yaml")


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_says_settings_and_cost_and_leaves_nothing(folder, call, cache_root, tmp_path):
    before = files_of(cache_root)
    finished = call(*small_run(folder, tmp_path / "runs" / "mine"), "--dry-run")
    assert finished.returncode == 0, finished.stderr
    assert not (tmp_path / "runs").exists()
    assert files_of(cache_root) == before
    assert re.search(r"^  augment\.global_size 32: .", finished.stdout, re.M)
    assert "optim.epochs 1," in finished.stdout.partition("given: ")[2]
    assert re.search(r"^estimate: \d+ steps of [\d.]+ (s|min)", finished.stdout, re.M)
    assert re.search(r"^estimate: [\d.]+ GB of memory", finished.stdout, re.M)
    assert "data:" not in finished.stdout, "scans were decoded"


def test_a_dry_run_of_a_preset_says_its_cost(call, tmp_path):
    finished = call("dino_oct/train.py", *TINY_RUN, "--dry-run", "--out", tmp_path / "run")
    assert finished.returncode == 0, finished.stderr
    assert "estimate: 8 steps of" in finished.stdout
    assert "settings chosen" not in finished.stdout
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_what_was_chosen_and_a_resume_chooses_nothing(folder, call, tmp_path):
    run = tmp_path / "run"
    finished = call(*small_run(folder, run))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.index("estimate:") < finished.stdout.index("data:"), "decoded first"
    first = settings_of(run)
    assert (first.preset, first.augment.global_size, first.loss.centering) == ("auto", 32, "sinkhorn")
    assert (first.optim.batch_size, first.model.out_dim) == (8, 256)
    write_scans(folder / "clinic", 600, start=32)  # for which a larger batch and other epochs would be chosen
    finished = call(*small_run(folder, run), "--optim.epochs", 2, "--loss.koleo-weight", 0.2)
    assert finished.returncode == 0, finished.stderr
    assert "settings chosen" not in finished.stdout
    again = settings_of(run)
    assert (again.optim.epochs, again.loss.koleo_weight) == (2, 0.2)
    again.optim.epochs, again.loss.koleo_weight = 1, first.loss.koleo_weight
    assert again == first


def test_the_same_settings_train_the_same_chosen_or_given(folder, call, tmp_path):
    """Choosing and measuring leave no trace in what is learned."""
    assert call(*small_run(folder, tmp_path / "chosen")).returncode == 0
    finished = call("dino_oct/train.py", "--config", tmp_path / "chosen" / "config.yaml", "--preset", "none",
                    "--out", tmp_path / "given")  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "estimate" not in finished.stdout
    ours, theirs = (torch.load(tmp_path / run / "checkpoints" / "last.pt", weights_only=True)["student"]
                    for run in ("chosen", "given"))  # fmt: skip
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_facts_come_from_names_and_headers(folder):
    config = load_config(["--data", str(folder), "--init", "random:vit_small_patch14_dinov2"])
    index = index_scans(folder)
    facts = preflight.facts_of(config, index)
    assert (facts.scans, facts.labelled, facts.size) == (len(index.positions("train")), 0, (40, 48))
    assert (facts.source, facts.patch, facts.width, facts.depth) == ("random", 14, 384, 12)
    assert (facts.parameters, facts.image_size) == (SMALL.parameters, 518)
    assert preflight.facts_of(dataclasses.replace(config, init="timm:vit_small_patch14_dinov2.lvd142m"), index) == (
        dataclasses.replace(facts, source="backbone")
    )


def test_facts_of_a_run_are_those_of_its_checkpoint(folder, trained):
    config = load_config(["--data", str(folder), "--init", str(trained)])
    facts = preflight.facts_of(config, index_scans(folder))
    assert (facts.source, facts.out_dim, facts.patch, facts.image_size) == ("full", 64, 8, 32)
    assert facts.fixed_gain
    assert facts.loss == settings_of(trained).loss


@pytest.mark.parametrize(
    "more", [[], ["--loss.ibot-weight", "1", "--loss.gram-weight", "1"], ["--model.lora-rank", "2"]]
)
def test_measuring_changes_no_weight_and_no_random_number(more, folder):
    config = load_config([*TINY_RUN, "--data", str(folder), *more])
    networks = build_networks(config.init, config.model, config.loss, 0, None, lambda text: None)
    before = {name: tensor.clone() for name, tensor in networks.student.state_dict().items()}
    state, said = torch.get_rng_state(), []
    preflight.say_cost(config, networks, index_scans(folder), Accelerator(cpu=True), said.append)
    assert len(said) == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in networks.student.state_dict().items())
    assert all(parameter.grad is None for parameter in networks.student.parameters())


# ---- weights that cannot be had --------------------------------------------------------------------------------------


def test_weights_that_cannot_be_reached_are_said_once_before_decoding(
    folder, command, cache_root, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert "HF_HUB_OFFLINE" in environment(cache_root)
    before = files_of(cache_root)
    finished = command("dino_oct/train.py", "--data", folder, "--init", "timm:vit_tiny_patch16_224", "--out",
                       tmp_path / "run", processes=2, timeout=240)  # fmt: skip
    assert finished.returncode != 0
    errors = [line for line in finished.stderr.splitlines() if re.match(r"(\[rank\d+\]:)?error", line)]
    assert len(errors) == 1, finished.stderr
    assert "timm:vit_tiny_patch16_224: weights could not be had" in errors[0]
    assert files_of(cache_root) == before
    assert not (tmp_path / "run").exists()


class ConnectError(Exception):
    pass


@pytest.mark.parametrize(("error", "is_said"), [(ConnectError("no route"), True), (ValueError("404"), False)])
def test_the_hub_is_asked_once_and_only_its_absence_is_an_error(error, is_said, monkeypatch):
    asked = []

    def ask(address, timeout):
        asked.append(address)
        raise error

    monkeypatch.setattr(hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    if is_said:
        with pytest.raises(InputError, match=r"no connection to https://.*no route"):
            load_backbone("timm:vit_tiny_patch16_224")
    else:
        hub.check_reachable("vit_tiny_patch16_224")
    assert len(asked) == 1


def test_weights_in_the_cache_need_no_hub(monkeypatch):
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: "file")
    hub.check_reachable("vit_tiny_patch16_224")
