"""Settings: presets, precedence, and one-line errors that name the way out."""

import dataclasses
import io
import os
import sys

import pytest
from conftest import REPOSITORY

from dino_oct.cli import parse_options, read_settings, write_settings
from dino_oct.config import LossConfig, OptimConfig, TrainConfig, differences, load_config
from dino_oct.errors import InputError
from dino_oct.learner import Schedules
from evaluation import knn
from evaluation.inputs.sources import open_source
from supervised.architectures import find
from supervised.config import SearchOptions

PRESETS = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def test_the_presets_of_the_design_exist():
    names = {preset.split("/")[1] for preset in PRESETS}
    expected = {"quickstart", "vitb8_oct2017", "vitb8_backbone", "vits16_oct2017", "vits16_scratch"}
    expected |= {"small_cpu", "vits14_oct", "vitb14_oct2017", "vitb16_oct2017"}
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
        ("epochs: 3", r"unknown setting 'epochs'; did you mean 'optim\.epochs'\?"),
        ("augment: {size: 3}", r"did you mean 'augment\.global_size' or 'augment\.local_size'\?"),
        ("optim: {lr: 1, lr: 2}", r"line 1: 'lr' is given twice"),
        ("optim:\n  lr: 1\nseed: 1\noptim:\n  lr: 2", r"line 4: 'optim' is given twice, first in line 1"),
        ("optim.lr: 1\noptim: {lr: 2}", r"'optim\.lr' is given twice"),
        ("1: 2", "line 1: key 1: not the name of a setting"),
        ("on: 2", "line 1: key on: not the name of a setting"),
        ("? [a]\n: 2", "line 1: key a list or section: not the name"),
        ("optim: 3", r"'optim' is a section: its settings stand below it, as optim\.epochs"),
        ("optim: &all {lr: 1, more: *all}", "nested too deeply"),
        ("[" * 3000, "nested too deeply"),
        ("optim: {lr: [1, 2]}", r"optim\.lr \[1, 2\]: must be one value, not a list"),
        ("optim: {lr: {a: 1}}", r"optim\.lr: .*must be a text or number"),
        ("monitor: {k: [[1, 2], 3]}", r"monitor\.k: \[1, 2\] must be a text or number"),
        ("monitor: {k: []}", r"monitor\.k '': must name at least one"),
        ("monitor: {image_size: [32]}", r"monitor\.image_size.*Expected 2 values"),
        ("model: {args: [--seed, 5]}", r"model\.args --seed: must not begin with a hyphen"),
        ("data: true", "data: True must be a text or number; put it in quotes"),
        ("out: null", "out: None must be a text or number; put it in quotes"),
        ("out: 2024-13-45", "not valid YAML: month must be in"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("optim: {lr: .nan}", r"optim\.lr nan: must be from 0"),
        ('data: "a\\0b"', r"data 'a\\x00b': must not hold a NUL character"),
        ("optim: {warmup-epochs: 1}", r"did you mean 'optim\.warmup_epochs'"),
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
        (["--config", "no\nwhere"], "^no where: no such settings file"),
        (["--model.args", "depth"], r"--model\.args depth: 'depth': write NAME=VALUE"),
        (["--model.args", "depth=["], r"--model\.args depth=\[: depth=\[: not a number, a word or a list"),
        (["--model.args", "depth=2", "depth=3"], r"--model\.args depth=2 depth=3: depth is given twice"),
        (["--model.args", "depth=1000000000"], r"--model\.args .*: must be at most 1,000"),
        (["--model.args", "embed_dim=[96, 1000000]"], r"--model\.args .*: must be at most 16,384"),
    ],
)
def test_mistakes_on_the_command_line(args, message):
    with pytest.raises(InputError, match=message) as error:
        load_config(args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optim.lr", "fast"], "Error parsing --optim.lr: could not convert string to float: 'fast'"),
        (["--optim.lr"], "Missing value for argument '--optim.lr'. Expected 1 values."),
        (["--monitor.image-size", "8"], "Missing value for argument '--monitor.image-size'. Expected 2 values."),
        (["--loss.centering", "x"], "invalid choice 'x' for argument '--loss.centering'. Expected one of ('center', "
         "'sinkhorn')."),
        (["--optim.freeze-backbone-epochs", "x"], "Error parsing --optim.freeze-backbone-epochs: no type matching "
         "{None}|FLOAT could be instantiated from ['x']."),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_statement_on_any_terminal(args, message, encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(InputError) as error:
        load_config(args)
    assert str(error.value) == f"{message} (--help lists every option)"


def test_an_empty_section_and_words_like_options_are_read_as_they_are(tmp_path):
    (tmp_path / "mine.yaml").write_text("optim:\nloss: {}\ndata: --seed\nmodel: {args: [depth=2, img_size=-1]}")
    config = load_config(["--config", str(tmp_path / "mine.yaml")])
    assert (config.data, config.seed, config.model.args) == ("--seed", 0, ["depth=2", "img_size=-1"])
    assert config.optim == OptimConfig()


def test_a_preset_that_is_no_file_of_settings_is_one_line(tmp_path):
    (tmp_path / "empty.yaml").touch()
    assert load_config(["--config", str(tmp_path / "empty.yaml"), "--out", "x"]).optim == OptimConfig()
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with (tmp_path / "huge.yaml").open("wb") as stream:
        stream.truncate(3 << 20)
    os.mkfifo(tmp_path / "pipe.yaml")
    names = {"": "a folder", "binary.yaml": "not text in UTF-8", "huge.yaml": "3 MB are too many", "x" * 300: "shorter"}
    names |= {
        "pipe.yaml": "not a regular file",
        "none.yaml": "no such settings file",
        "empty.yaml/x": "no such settings file",
    }
    for name, message in names.items():
        with pytest.raises(InputError, match=message) as error:
            load_config(["--config", str(tmp_path / name)])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--epochs 3", "--epochs: no such option; did you mean --optim.epochs?"),
        ("--lr=1", "--lr: no such option; did you mean --optim.lr?"),
        ("--batch_size 8", "did you mean --optim.batch-size or --monitor.batch-size?"),
        ("--koleo 1", "did you mean --loss.koleo-weight?"),
        ("--model.lr 1", "did you mean --optim.lr?"),
        ("--augment.size 8", "did you mean --augment.global-size or --augment.local-size?"),
        ("--optim.epoch 8", "did you mean --optim.epochs?"),
        ("--xyzzy 1", "--xyzzy: no such option (--help lists every option)"),
        ("--optim.lr 1 2", "'2': one value too many for --optim.lr"),
        ("runs/mine --seed 1", "'runs/mine': options are given as --name VALUE"),
    ],
)
def test_what_was_meant_is_suggested(args, message):
    with pytest.raises(InputError) as error:
        load_config(args.split())
    assert message in str(error.value)


def test_every_part_of_a_command_suggests_and_search_too(tmp_path):
    with pytest.raises(InputError, match=r"did you mean --base\.optim\.epochs\?"):
        parse_options(SearchOptions, ["--epochs", "3"])
    with pytest.raises(InputError, match=r"did you mean --phantom\.patients\?"):
        parse_options(knn.Options, ["--patients", "3"])


@pytest.mark.parametrize("name", ["runs/none", "./none", "none.pth", "/no/where", "~/none.safetensors"])
def test_a_missing_path_is_called_missing(name):
    with pytest.raises(InputError, match="no such file or folder"):
        find(name)
    with pytest.raises(InputError, match="no such file or folder"):
        open_source(name)
    with pytest.raises(InputError, match=f"^{name}: no such file"):
        open_source(f"timm:resnet10t@{name}")
    with pytest.raises(InputError, match=rf"--resume {name}: no such checkpoint"):
        load_config(["--resume", name])


def test_a_name_of_timm_without_its_kind_is_told(tmp_path):
    with pytest.raises(InputError, match=r"^resnet18: no such file or folder; did you mean timm:resnet18\?"):
        open_source("resnet18")


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
