"""A run that is killed anywhere goes on to exactly the losses and weights of one that never stopped."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import DIVERGING, REPOSITORY, TINY_RUN, environment

from dino_oct import checkpoint
from dino_oct.learner import Learner
from dino_oct.speed import PACE


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    finished = command(*command_line(run))
    assert finished.returncode == 0, finished.stderr
    return run


def command_line(run):
    return ["dino_oct/train.py", *TINY_RUN, "--out", str(run), "--run.save-every", "1", "--run.log-every", "1"]


def start(run, cache_root, *more):
    return subprocess.Popen(
        [sys.executable, *command_line(run), *more], cwd=REPOSITORY, env=environment(cache_root),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_clock(line):
    return {key: value for key, value in line.items() if key not in PACE}


def assert_equal_runs(run, whole):
    assert [without_clock(line) for line in lines(run)] == [without_clock(line) for line in lines(whole)]
    ours, theirs = (torch.load(r / "checkpoints" / "last.pt", weights_only=True) for r in (run, whole))
    for part in ("student", "teacher"):
        assert all(torch.equal(tensor, theirs[part][name]) for name, tensor in ours[part].items())


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


def test_killed_at_random_points_and_while_saving(uninterrupted, cache_root, tmp_path):
    run, rng = tmp_path / "killed", random.Random(0)
    total = lines(uninterrupted)[-1]["step"]
    checkpoints, metrics = run / "checkpoints", run / "metrics.jsonl"
    for kill in range(2):
        process = start(run, cache_root)
        reached = rng.randrange(1 + kill * total // 3, 1 + (kill + 1) * total // 3)
        wait_for(lambda n=reached: metrics.exists() and f'"step": {n},' in metrics.read_text(), process)
        if kill % 2:
            wait_for(
                lambda: any(checkpoints.glob("last.pt.*.partial")), process
            )  # in the middle of writing a checkpoint
        else:
            time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    process = start(run, cache_root)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "resuming from" in output
    assert_equal_runs(run, uninterrupted)


def test_sigterm_saves_and_exits_cleanly(uninterrupted, cache_root, call, tmp_path):
    run = tmp_path / "stopped"
    process = start(run, cache_root, "--run.workers", "1")
    wait_for(lambda: (run / "metrics.jsonl").exists() and '"step": 3,' in (run / "metrics.jsonl").read_text(), process)
    os.killpg(process.pid, signal.SIGTERM)  # as launchers do: loader processes get it too
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped by a signal after step" in output
    saved = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert saved == lines(run)[-1]["step"] < lines(uninterrupted)[-1]["step"]
    assert call(*command_line(run)).returncode == 0
    assert_equal_runs(run, uninterrupted)


def test_what_step_0_measured_stays_where_step_1_was_never_saved(uninterrupted, call, monkeypatch, tmp_path):
    def crash(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", crash)
        with contextlib.suppress(MemoryError):
            call(*command_line(tmp_path / "crashed"))
    assert torch.load(tmp_path / "crashed" / "checkpoints" / "last.pt", weights_only=True)["step"] == 0
    assert call(*command_line(tmp_path / "crashed")).returncode == 0
    assert_equal_runs(tmp_path / "crashed", uninterrupted)


def loaders_of(pid):
    """Process numbers of a trainer's children."""
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def assert_ends(pids, seconds=10):
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"still running: {pids}"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_saves_and_no_loader_stays(number, uninterrupted, cache_root, call, tmp_path):
    run = tmp_path / "stopped"
    process = start(run, cache_root, "--run.workers", "2")
    wait_for(lambda: (run / "metrics.jsonl").exists() and '"step": 3,' in (run / "metrics.jsonl").read_text(), process)
    children = loaders_of(process.pid)
    assert len(children) >= 2
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert "stopped by a signal after step" in output
    assert_ends(children)
    assert call(*command_line(run)).returncode == 0
    assert_equal_runs(run, uninterrupted)


def test_an_error_with_loaders_ends_in_seconds_with_one_line(cache_root, tmp_path):
    process = start(tmp_path / "diverged", cache_root, "--run.workers", "2", *DIVERGING)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert "error: " in output.splitlines()[-1]
    assert "stopped at step " in output.splitlines()[-1]


def test_a_killed_trainer_leaves_no_loader_behind(cache_root, tmp_path):
    run = tmp_path / "killed"
    process = start(run, cache_root, "--run.workers", "2")
    wait_for(lambda: (run / "metrics.jsonl").exists() and '"step": 3,' in (run / "metrics.jsonl").read_text(), process)
    children = loaders_of(process.pid)
    process.kill()
    process.communicate()
    assert_ends(children)


def test_a_finished_run_stays_as_it_is(uninterrupted, call):
    before = (uninterrupted / "metrics.jsonl").read_text()
    finished = call(*command_line(uninterrupted))
    assert finished.returncode == 0
    assert "already complete" in finished.stdout
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_never_moves_the_old_run_aside(uninterrupted, call, tmp_path):
    run = tmp_path / "again"
    shutil.copytree(uninterrupted, run)
    finished = call(*command_line(run), "--resume", "never")
    assert finished.returncode == 0, finished.stderr
    assert "the earlier run is kept in" in finished.stdout
    kept = next(path for path in tmp_path.iterdir() if path.name.startswith("again-"))
    assert_equal_runs(kept, uninterrupted)
    assert_equal_runs(run, uninterrupted)  # the same seed gives the same run


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path, "best_knn.pt")
    checkpoints.save({"step": 1, "x": torch.zeros(3)})

    def crash(*_):
        raise OSError("disk full")

    for moment in ("fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, moment, crash)
            if moment == "link":
                patch.setattr(checkpoint.shutil, "copyfile", crash)
            with pytest.raises(OSError, match="disk full"):
                checkpoints.save({"step": 2, "x": torch.ones(3)}, best=True)
        assert torch.load(checkpoints.last, weights_only=True)["step"] == 1


def test_keeping_a_checkpoint_survives_the_next_save(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, "best_knn.pt")
    checkpoints.save({"step": 1}, keep=True, best=True)
    checkpoints.save({"step": 2})
    read = {file.name: torch.load(file)["step"] for file in checkpoints.folder.iterdir()}
    assert read == {"last.pt": 2, "best_knn.pt": 1, "step_0000001.pt": 1}


def test_trimming_drops_later_and_broken_lines(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "epoch": 0.5}\n{"step": 2, "epoch": 1}\n{"step": 3, "epoch": 1.5}\n{"st')
    checkpoint.trim_metrics(file, 2)
    assert file.read_text() == '{"step": 1, "epoch": 0.5}\n{"step": 2, "epoch": 1}\n'
