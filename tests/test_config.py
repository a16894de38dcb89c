"""Settings: presets, precedence, and one-line errors that name the way out."""

import dataclasses

import pytest
from conftest import REPOSITORY

from dino_oct.cli import parse_options, read_settings, write_settings
from dino_oct.config import TrainConfig, differences, load_config
from dino_oct.errors import InputError
from dino_oct.learner import OptimConfig, Schedules
from dino_oct.loss import LossConfig

PRESETS = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def test_the_presets_of_the_design_exist():
    names = {preset.split("/")[1] for preset in PRESETS}
    expected = {"quickstart", "vitb8_oct2017", "vitb8_backbone", "vits16_oct2017", "vits16_scratch"}
    assert {f"{name}.yaml" for name in expected} <= names


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_survives_a_round_trip(preset, tmp_path):
    config = load_config(["--config", preset])
    assert config.out == f"runs/{preset.split('/')[1].removesuffix('.yaml')}"
    write_settings(config, tmp_path / "config.yaml")
    assert read_settings(TrainConfig, tmp_path / "config.yaml") == config
    Schedules(config.optim, config.loss, 100)  # warm-ups fit into the epochs
    assert config.optim.warmup_epochs < config.optim.epochs
    header = (REPOSITORY / preset).read_text().splitlines()
    assert header[0].startswith("# "), "a preset says what it is for"
    assert any("accelerate launch" in line for line in header), "and with which command"


def test_without_options_it_is_the_quickstart_on_phantoms():
    assert load_config([]) == load_config(["--config", "configs/quickstart.yaml"])
    assert load_config([]).data == "phantom"


def test_command_line_over_preset_over_defaults():
    config = load_config(["--config", "configs/vits16_scratch.yaml", "--optim.lr", "1e-5"])
    assert config.optim.lr == 1e-5  # command line
    assert config.loss.koleo_weight == 0.1  # preset
    assert config.optim.weight_decay == OptimConfig().weight_decay  # default


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: {koleo: 0.1}", r"unknown setting 'loss\.koleo'; did you mean 'loss\.koleo_weight'\?"),
        ("optim: {lr: fast}", r"optim\.lr.*fast"),
        ("optim: [1, 2", "not valid YAML"),
        ("just text", "expected 'key: value'"),
        ("augment: {global_scale: [0.9, 0.4]}", "global_scale"),
        ("loss: {teacher_temperature: 0}", r"mine\.yaml: loss\.teacher_temperature 0\.0: must be from 0\.001 to 100"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(["--config", str(tmp_path / "mine.yaml")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--loss.koleo", "0.1"], r"--loss\.koleo.*did you mean --loss\.koleo-weight"),
        (["--optim.epochs", "ten"], r"--optim\.epochs.*ten"),
        (["--loss.centering", "centre"], r"invalid choice 'centre'"),
        (["--config", "configs/none.yaml"], r"no such settings file; presets: configs/quickstart\.yaml"),
        (["--resume", "nowhere.pt"], "no such checkpoint"),
        (["--model.args", "depth"], r"model\.args 'depth': write NAME=VALUE"),
    ],
)
def test_mistakes_on_the_command_line(args, message):
    with pytest.raises(InputError, match=message) as error:
        load_config(args).model.timm_args()
    assert "\n" not in str(error.value)


def test_the_command_line_is_frozen():
    """Options that people's scripts name. Removing or renaming one is a decision, not an accident."""
    config = load_config([])
    sections = {f.name for f in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, f.name))}
    assert sections == {"dataset", "phantom", "augment", "model", "loss", "optim", "monitor", "run"}
    args = """--data phantom --out x --init random:vit_tiny_patch16_224 --resume never --seed 1
        --dataset.split patient --dataset.unlabelled a b --dataset.neutralise-borders False --phantom.patients 8
        --phantom.scans-per-patient 2 --phantom.size 64 64 --augment.preset parity --augment.global-size 96
        --augment.n-local 2 --model.args depth=2 --model.out-dim 64 --model.grad-checkpointing True
        --model.compile True --loss.centering sinkhorn --loss.koleo-weight 0.1 --loss.teacher-temperature 0.02
        --optim.epochs 2 --optim.batch-size 8 --optim.accumulate 2 --optim.lr 1e-3 --optim.freeze-backbone-epochs None
        --monitor.image-size 32 32 --monitor.k 5 10 --run.precision bf16 --run.workers 0 --run.save-every 5"""
    config = parse_options(TrainConfig, args.split())
    assert config.dataset.unlabelled == ["a", "b"]
    assert config.monitor.k == (5, 10)
    assert config.optim.freeze_backbone_epochs is None


def test_differences_name_what_changes_training():
    old, new = load_config([]), load_config(["--optim.lr", "1", "--run.workers", "3", "--out", "elsewhere"])
    assert differences(old, new) == [f"optim.lr: {old.optim.lr} → 1.0"]


def test_schedules_follow_steps_and_epochs():
    optim = OptimConfig(epochs=4, batch_size=256, lr=1.0, min_lr=0.1, warmup_epochs=1, freeze_backbone_epochs=0.5)
    loss = LossConfig(
        warmup_teacher_temperature=0.02, teacher_temperature=0.04, warmup_teacher_temperature_epochs=3
    )  # fmt: skip
    schedules = Schedules(optim, loss, steps_per_epoch=10)
    assert schedules.steps == 40
    assert schedules[0].lr == 0
    assert schedules[9].lr == pytest.approx(1.0)  # the end of the warm-up is the peak
    assert [schedules[s].teacher_temperature for s in (0, 10, 20, 39)] == pytest.approx([0.02, 0.03, 0.04, 0.04])
    assert [schedules[s].freeze_backbone for s in (0, 4, 5)] == [True, True, False]
    assert [schedules[s].freeze_last_layer for s in (9, 10)] == [True, False]
