"""Files that a command reads back, damaged: a sample of ``campaigns/corrupt_files.py``, which tries them all."""

import random
import sys
from pathlib import Path

import pytest
import torch
import yaml
from clean_process import Ended, in_a_process

sys.path.insert(0, str(Path(__file__).parent / "campaigns"))
from corrupt_files import FILES, LIMIT, Campaign, _changed, damages

from dino_oct import checkpoint
from dino_oct.cli import write_settings
from dino_oct.config import TrainConfig
from dino_oct.errors import InputError
from evaluation.inputs.sources import open_source

SAMPLE = 24


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("campaign"))


def test_damaged_files_are_recovered_or_one_line(campaign):
    rng = random.Random(12)
    trials = rng.sample(campaign.trials(rng), SAMPLE)
    outcomes = [campaign.run(*trial) for trial in trials]
    assert not [outcome for outcome in outcomes if not outcome.is_right]
    assert {outcome.verdict for outcome in outcomes} == {"recovered", "one line"}


@pytest.mark.parametrize(
    ("name", "reader", "changes"),
    [
        ("fit/checkpoints/last.pt", 0, {
            "rate.lr": {"a": 1}, "rate": {},
            "best.metrics.val_loss": [1, 2], "best.metrics.val_balanced_accuracy": None,
            "best.epoch": "x", "progress.step": [], "progress.plan.epochs": "x", "losses": {}, "is_judged": 1,
            "hub_config.model_args.embed_dim": "", "hub_config.model_args.num_heads": 10**30,
        }),
        ("run/checkpoints/last.pt", 0, {
            "values.lr": "x", "values": {}, "start.metrics.rankme": [], "start.right": 3, "progress.scans_seen": -1,
            "progress.plan.batch_size": None, "dino_loss.center": 1, "optimizer.param_groups": [],
            "hub_config.model_args.depth": "x", "freeze_backbone_epochs": "x",
        }),
    ],
)  # fmt: skip
def test_a_checkpoint_that_holds_what_it_should_not_is_one_line(name, reader, changes, campaign):
    file = next(file for file in FILES if file.name == name)
    state = torch.load(campaign.sound / name, weights_only=True)
    for where, value in changes.items():
        changed = _changed(state, tuple(where.split(".")), value)
        outcome = campaign.run(file, reader, "content: " + where, lambda path, s=changed: torch.save(s, path))
        assert outcome.verdict == "one line", (where, outcome)


def test_the_campaign_knows_a_traceback_a_hang_and_a_wrong_answer(campaign, tmp_path):
    """It could not fail otherwise."""
    file = next(file for file in FILES if file.name == "run/metrics.jsonl")
    stderr, path = "Traceback (most recent call last):", tmp_path / "metrics.jsonl"
    campaign.answers[file.name, 0] = "the weights"
    judge = campaign._verdict
    assert judge(file, 0, path, Ended(1, None, stderr)) == "traceback"
    assert judge(file, 0, path, Ended(None, None, "")) == "hang"
    assert judge(file, 0, path, Ended(0, "other weights", "")).startswith("another result")
    assert judge(file, 0, path, Ended(2, None, "error: something is wrong")) == "a line that does not name the file"
    assert judge(file, 0, path, Ended(2, None, f"error: {path}: damaged")) == "one line"
    del campaign.answers[file.name, 0]

    def hang():
        while True:
            pass

    assert in_a_process(hang, 0.2).status is None
    assert LIMIT > 0


def test_every_file_is_damaged_in_twenty_ways_or_more(campaign):
    campaign.restore()
    for file in FILES:
        names = [name for name, _ in damages(campaign._find(campaign.sound, file), file.kind, random.Random(0))]
        assert len({name for name in names if not name.startswith("content: ")}) >= 20


def a_run(folder: Path, without: str = "") -> Path:
    """A run folder whose settings lack one."""
    write_settings(TrainConfig(data="scans", out=str(folder)), folder / "config.yaml")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    section, _, name = without.rpartition(".")
    if without:
        del (settings[section] if section else settings)[name]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "metrics.jsonl").write_text("")
    return folder


@pytest.mark.parametrize(
    "name", ["data", "dataset", "dataset.split_seed", "phantom.seed", "monitor", "monitor.image_size"]
)
def test_settings_of_a_run_are_never_made_up(name, tmp_path):
    """Without its data an evaluation would judge on phantoms, without its monitor at another image size."""
    assert open_source(str(a_run(tmp_path))).config.data == "scans"
    with pytest.raises(InputError, match=rf"config\.yaml: damaged: '{name}.*' is missing"):
        open_source(str(a_run(tmp_path, without=name)))


def test_damaged_lines_of_a_log_are_left_out_and_sound_ones_kept(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {i}, "epoch": 0.5, "loss": {i}.5}}'.encode() for i in range(6)]
    lines[1], lines[3] = b'{"step": 1, "epo\xff', b'{"step": "x", "epoch": 1}'
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b'\r\n{"step": 6, "ep')
    assert checkpoint.trim_metrics(file, 4) == 2, "the last line was only cut short"
    assert [line["step"] for line in checkpoint.read_metrics(file)[0]] == [0, 2, 4]


def test_a_damaged_checkpoint_names_the_way_out(tmp_path):
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"PK\3\4 damaged")
    with pytest.raises(InputError, match=r"last\.pt: .*; --resume never starts anew$"):
        checkpoint.read_training_state(folder / "last.pt", {})
    torch.save({}, folder / "step_0000002.pt")
    with pytest.raises(InputError, match=r"last\.pt: .*; --resume .*step_0000002\.pt goes on from an earlier one"):
        checkpoint.read_training_state(folder / "last.pt", {})


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path):
    torch.save({"model": {"a": torch.tensor([1.0, float("inf")])}}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"last\.pt: damaged, or of a run that diverged: model\.a is not finite"):
        checkpoint.read_training_state(tmp_path / "last.pt", {"model": dict})
