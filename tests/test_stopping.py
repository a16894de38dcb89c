"""A signal is heard in seconds wherever a trainer is, and loses nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY_FIT, TINY_RUN, environment, with_signal

import dino_oct.train as pretrain_command
from dino_oct import features, pretraining
from dino_oct.config import load_config
from dino_oct.monitor import Monitor
from dino_oct.speed import PACE
from supervised import config as supervision
from supervised import train as fit_command
from supervised import training


@pytest.fixture(autouse=True)
def cache(cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))


def pretrain(run, *more):
    pretraining.train(load_config([*TINY_RUN, "--run.workers", "0", "--out", str(run), *more]))


def fit(run, *more):
    training.train(supervision.load_config([*TINY_FIT, "--test", "False", "--out", str(run), *more]))


def lines(run):
    clocks = (*PACE, "epoch_seconds")
    return [
        {key: value for key, value in json.loads(line).items() if key not in clocks}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def equal_runs(first, second, part):
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True)[part] for run in (first, second)]
    assert lines(first) == lines(second)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("call", [1, 8, 14])  # of the first evaluation, of a later one, and of the last one
def test_a_signal_inside_an_evaluation_of_a_pretraining(call, tmp_path, monkeypatch, capsys):
    """Between two batches; the evaluation is done again, so that the run is the same in the end."""
    calls, normalise = [], features.normalise

    def counted(*args):
        calls.append(1)
        return normalise(*args)

    with monkeypatch.context() as patch:
        patch.setattr(features, "normalise", with_signal(call, counted))
        pretrain(tmp_path / "stopped", "--monitor.batch-size", "8")
    assert len(calls) == call, "no batch is computed after the signal"
    assert "stopped by a signal after step" in capsys.readouterr().out
    pretrain(tmp_path / "stopped", "--monitor.batch-size", "8")
    pretrain(tmp_path / "whole", "--monitor.batch-size", "8")
    equal_runs(tmp_path / "stopped", tmp_path / "whole", "teacher")


def test_a_signal_while_attention_is_drawn(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "panels", with_signal(1, Monitor.panels))
        pretrain(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "attention").exists()
    pretrain(tmp_path / "stopped")
    pretrain(tmp_path / "whole")
    equal_runs(tmp_path / "stopped", tmp_path / "whole", "teacher")
    names = [sorted(file.name for file in (tmp_path / run / "attention").iterdir()) for run in ("stopped", "whole")]
    assert names[0] == names[1]


def test_a_signal_inside_the_validation_of_a_supervised_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", with_signal(2, features.extract))
        fit(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "stopped").exists()
    fit(tmp_path / "stopped")
    fit(tmp_path / "whole")
    equal_runs(tmp_path / "stopped", tmp_path / "whole", "model")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
@pytest.mark.parametrize(
    ("command", "trainer", "options"), [(pretrain_command, pretraining, TINY_RUN), (fit_command, training, TINY_FIT)]
)
def test_a_signal_before_anything_can_be_saved_ends_at_once(
    command, trainer, options, number, status, tmp_path, monkeypatch, capsys
):
    """In the decoding of the scans, say."""
    monkeypatch.setattr(trainer, "load_scans", lambda *_: os.kill(os.getpid(), number))
    monkeypatch.setattr("sys.argv", ["train.py", *options, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == status
    assert capsys.readouterr().err == "interrupted\n"
    assert not (tmp_path / "run").exists()


def test_a_signal_inside_the_test_of_a_supervised_run_loses_nothing(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    arguments = ["train.py", *TINY_FIT, "--optim.epochs", "1", "--out", str(run)]
    monkeypatch.setattr("sys.argv", arguments)
    with monkeypatch.context() as patch:
        patch.setattr(training, "test", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as end:
            fit_command.main()
    assert end.value.code == 143
    fit_command.main()
    assert (run / "evaluation" / "supervised" / "supervised_test.json").exists()
    assert [line["step"] for line in lines(run) if "val_loss" in line] == [0, 2]


SWALLOWED = """
import ctypes, os, signal, sys, time
from dino_oct.cli import one_line_errors
callback = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.{name}))
with one_line_errors():
    print("computing")
    {call}
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("call", ["callback()", "os.kill(os.getpid(), signal.{name})"])
def test_a_signal_ends_a_command_even_inside_a_callback_of_compiled_code(name, call):
    """There an exception is printed and forgotten."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED.format(name=name, call=call.format(name=name))], cwd=REPOSITORY,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 128 + getattr(signal, name)
    assert (done.stdout, done.stderr) == ("computing\n", "interrupted\n")


AT_EXIT = """
import atexit, os, signal
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))  # Ctrl-C while a library cleans up
from dino_oct.cli import one_line_errors
with one_line_errors():
    print("done", flush=True)
"""


def test_a_signal_after_the_last_line_ends_a_command_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT], cwd=REPOSITORY, capture_output=True, text=True, timeout=30
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "done\n", "")


def test_a_process_that_waits_for_a_launcher_that_is_gone_ends_by_a_signal(cache_root, tmp_path):
    """Its launcher was killed before the processes had met: it waits inside torch, which hears no handler of Python."""
    with socket.socket() as taken:  # bound and not listening: nobody answers, and nobody else takes the port
        taken.bind(("127.0.0.1", 0))
        launched = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
        launched |= {"MASTER_PORT": str(taken.getsockname()[1]), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "dino_oct/train.py", *TINY_RUN, "--out", str(tmp_path / "run")],
            cwd=REPOSITORY, env={**environment(cache_root), **launched}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline and not is_sleeping_in_torch(process.pid):
                time.sleep(0.2)
            process.terminate()
            assert process.wait(timeout=20) == -signal.SIGTERM
        finally:
            process.kill()
            process.wait()


def is_sleeping_in_torch(pid: int) -> bool:
    """Whether the main thread sleeps between two tries to reach the launcher."""
    return Path(f"/proc/{pid}/wchan").read_text() == "hrtimer_nanosleep"
