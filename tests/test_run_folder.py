"""A run folder has one owner, an earlier run is never lost, and another plan is counted in scans seen."""

import json
import os
import shutil
import signal
import threading

import pytest
import torch
from conftest import TINY_FIT, TINY_RUN, with_signal

from dino_oct import config as pretraining
from dino_oct.errors import InputError
from dino_oct.learner import Learner
from dino_oct.pretraining import train
from dino_oct.progress import Plan, Progress
from dino_oct.run_folder import RunFolder
from supervised import config as supervision
from supervised.learner import ClassifierLearner
from supervised.training import train as fit


@pytest.fixture(autouse=True)
def cache(cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))


def pretrain(run, *more):
    train(pretraining.load_config([*TINY_RUN, "--run.log-every", "1", "--run.workers", "0", "--out", str(run), *more]))


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state_of(run, name="last.pt"):
    return torch.load(run / "checkpoints" / name, weights_only=True)


def files_of(run):
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def stop_at(step, learner, monkeypatch):
    """Let a signal come while the trainer computes a step."""
    monkeypatch.setattr(learner, "step", with_signal(step, learner.step))


def test_a_second_trainer_is_refused_and_told_who_works_there(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with RunFolder(run, owns=True):
        before = files_of(run)
        for start in (lambda: pretrain(run, "--resume", "never"), lambda: fit(a_fit(run))):
            with pytest.raises(InputError, match=f"is in use by process {os.getpid()} on .* since .*--out"):
                start()
        assert files_of(run) == before
    with RunFolder(run, owns=True):
        pass
    assert files_of(run) == files_of(trained)


def test_the_lock_of_a_killed_trainer_holds_nobody(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("process 1 on elsewhere since yesterday\n")
    with RunFolder(run, owns=True) as folder:
        assert str(os.getpid()) in (run / ".lock").read_text()
        assert folder.find_resume("auto") is None
    assert not run.exists(), "nothing came of the run"


def test_a_run_that_never_began_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="fewer than optim"):
        pretrain(tmp_path / "run", "--optim.batch-size", "999")
    assert not (tmp_path / "run").exists()


def test_resuming_another_run_keeps_the_run_that_was_there(trained, tmp_path, monkeypatch, capsys):
    other, run = tmp_path / "other", tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(3, Learner, patch)
        pretrain(other, "--seed", "1")
    shutil.copytree(trained, run)
    with monkeypatch.context() as patch:
        stop_at(2, Learner, patch)
        pretrain(run, "--seed", "1", "--resume", str(other))
    (kept,) = (path for path in tmp_path.iterdir() if path.name.startswith("run-"))
    assert files_of(kept) == files_of(trained)
    assert state_of(run)["step"] == 5
    assert f"the earlier run is kept in {kept}" in capsys.readouterr().out
    # It takes along what it goes on from: the log, and the weights before training.
    assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2, 3, 4, 5]
    assert files_of(run / "checkpoints" / "start") == files_of(other / "checkpoints" / "start")
    # The same command again goes on from there.
    pretrain(run, "--seed", "1", "--resume", str(other))
    assert [line["step"] for line in lines(run) if "loss" in line] == list(range(1, 9))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("batch", [4, 16])
def test_another_batch_size_goes_on_where_the_scans_were(batch, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(4, Learner, patch)
        pretrain(run)
    pretrain(run, "--optim.batch-size", str(batch))
    printed, losses = capsys.readouterr().out, [line for line in lines(run) if "loss" in line]
    assert "warning: the plan was 4 epochs of 2 steps of 8 scans and is now 4 of" in printed
    assert "32 scans were seen, 2.00 of 4 epochs" in printed
    assert [line["step"] for line in losses] == list(range(1, 5 + 32 // batch))
    assert losses[-1]["scans_seen"] == 64
    assert losses[-1]["epoch"] == 4
    assert [line["epoch"] for line in losses] == sorted(line["epoch"] for line in losses)
    rates = [line["lr"] for line in losses]
    steps = 16 // batch  # of an epoch, over which the rate goes over
    planned = lines_of_whole(tmp_path, monkeypatch, batch)
    assert rates[4 + steps - 1 :] == planned[-len(rates[4 + steps - 1 :]) :]
    if steps > 1:
        assert abs(rates[4] - rates[3]) < abs(planned[8] - rates[3])


def lines_of_whole(tmp_path, monkeypatch, batch):
    """Learning rates of a run that had the plan from the beginning."""
    pretrain(tmp_path / "whole", "--optim.batch-size", str(batch))
    return [line["lr"] for line in lines(tmp_path / "whole") if "loss" in line]


def test_more_epochs_go_over_without_a_jump_and_a_stop_in_between_changes_nothing(tmp_path, monkeypatch, capsys):
    run, twice = tmp_path / "run", tmp_path / "twice"
    with monkeypatch.context() as patch:
        stop_at(6, Learner, patch)
        pretrain(run)
    shutil.copytree(run, twice)
    pretrain(run, "--optim.epochs", "8")
    printed = capsys.readouterr().out
    assert "the plan was 4 epochs" in printed
    assert "go over to the present settings' within 2 steps" in printed
    with monkeypatch.context() as patch:
        stop_at(1, Learner, patch)
        pretrain(twice, "--optim.epochs", "8")
    pretrain(twice, "--optim.epochs", "8")
    whole, stopped = ([line for line in lines(r) if "loss" in line] for r in (run, twice))
    assert [line["step"] for line in whole] == list(range(1, 17))
    assert [(line["step"], line["loss"], line["lr"]) for line in whole] == [
        (line["step"], line["loss"], line["lr"]) for line in stopped
    ]
    assert all(torch.equal(t, state_of(twice)["teacher"][name]) for name, t in state_of(run)["teacher"].items())


def test_progress_counts_scans():
    half = Progress(Plan(8, 100, 64))
    for _ in range(400):
        half.advance()
    for plan, position in ((Plan(8, 200, 32), 800), (Plan(8, 50, 128), 200), (Plan(16, 100, 64), 400)):
        now = Progress(plan)
        assert now.resume(half.state_dict())
        assert (now.position, now.step, now.is_complete) == (position, 400, False)
        assert now.last_step == 400 + plan.steps - position
    same = Progress(Plan(8, 100, 64))
    assert same.resume(half.state_dict()) == ""
    assert not same.hand_over({"lr": 0.5}, {"lr": 0.5})
    assert same.hand_over({"lr": 0.5}, {"lr": 1.0})
    assert same.values({"lr": 1.0})["lr"] == pytest.approx(0.505)
    assert same.values({"lr": 1.0}, 499) == {"lr": 1.0}


def a_fit(run, *more):
    return supervision.load_config([*TINY_FIT, "--test", "False", "--run.log-every", "1", "--out", str(run), *more])


def test_a_supervised_run_counts_scans_too(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(3, ClassifierLearner, patch)
        fit(a_fit(run))
    fit(a_fit(run, "--optim.batch-size", "4"))
    assert "24 scans were seen" in capsys.readouterr().out
    losses = [line for line in lines(run) if "loss" in line]
    assert losses[-1]["scans_seen"] == 48
    assert [line["step"] for line in losses] == list(range(1, 10))
    assert [line["epoch"] for line in lines(run) if "val_loss" in line] == [0, 1, 2, 3]


def test_two_runs_of_one_process_and_one_in_a_thread(trained, tmp_path):
    """As in a notebook: another precision, then a thread, which gets no signals."""
    before = signal.getsignal(signal.SIGTERM)
    pretrain(tmp_path / "bf16", "--run.precision", "bf16", "--optim.epochs", "1")
    failed = []

    def in_thread():
        try:
            pretrain(tmp_path / "thread", "--optim.warmup-epochs", "1", "--run.log-every", "10")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join(timeout=120)
    assert not failed, failed
    assert signal.getsignal(signal.SIGTERM) is before
    weights = state_of(trained)["teacher"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state_of(tmp_path / "thread")["teacher"].items())
