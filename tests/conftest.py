"""What the tests share: reference arrays, tiny networks, and a bounded way to run the command lines."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from evaluation.report.results import Media, Results

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = Path(__file__).parent / "reference" / "dino"
REAL_SCANS = REPOSITORY.parent / "shared" / "data"
TRAINERS = ("dino_oct/train.py", "supervised/train.py")

pytest.register_assert_rewrite("browser")

# Small tests on shared cores: one thread is faster than two, and sums are then in one order.
torch.set_num_threads(1)

# Shells start what runs in the background with Ctrl-C ignored, and commands would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def number_of_threads():
    """Nothing leaves torch with another number of threads: the last bits of what runs later would differ."""
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session")
def record():
    """Settings and results of the reference run (public implementation, 6 iterations)."""
    return json.loads((REFERENCE / "record.json").read_text())


@pytest.fixture(scope="session")
def reference_views():
    """Per step: groups (2, 4, 3, 32, 32) and (4, 4, 3, 16, 16), normalised float32."""
    return views_of_reference()


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory):
    """One cache for all runs of a test session, so that phantoms are drawn and decoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, command):
    """A finished tiny run, made once and only read or added to; what it said is in ``stdout.txt``."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    finished = command("dino_oct/train.py", *TINY_RUN, "--out", run)
    assert finished.returncode == 0, finished.stderr
    (run / "stdout.txt").write_text(finished.stdout)
    return run


@pytest.fixture(scope="session")
def command(cache_root):
    """``command("dino_oct/train.py", …)`` runs a script as a user does and returns the finished process."""

    def run(script: str, *args: object, timeout: float = 120, processes: int = 1) -> subprocess.CompletedProcess:
        launch = [sys.executable]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        return subprocess.run(
            [*launch, script, *map(str, args)],
            cwd=REPOSITORY,
            env=environment(cache_root),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def call(cache_root, monkeypatch):
    """As ``command``, in this process: five seconds less, for what needs no process of its own.

    Trainers load scans in this process too, unless ``--run.workers`` is given.
    """

    def run(script: str, *args: object) -> subprocess.CompletedProcess:
        words = [script, *map(str, args)]
        if script in TRAINERS and "--run.workers" not in words:
            words += ["--run.workers", "0"]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        status, stdout, stderr = 0, io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as stop:
                status = stop.code
        return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())

    return run


def environment(cache_root: Path) -> dict[str, str]:
    """The environment of child processes: one thread, no GPU, loopback only, the session's cache."""
    return {
        **os.environ,
        "DINO_OCT_CACHE": str(cache_root),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def with_signal(call: int, made: Callable) -> Callable:
    """A function in whose n-th call this process gets SIGTERM."""
    calls = []

    def function(*args, **more):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return made(*args, **more)

    return function


def views_of_reference() -> list[list[torch.Tensor]]:
    """The six batches of the reference run."""
    crops = np.load(REFERENCE / "crops.npz")
    steps = []
    for i in range(6):
        views = [torch.from_numpy(crops[f"step{i}_crop{j}"]).float() for j in range(6)]
        steps.append([torch.stack(views[:2]), torch.stack(views[2:])])
    return steps


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, command):
    """A finished tiny supervised run, made once and only read or added to; what it said is in ``stdout.txt``."""
    run = tmp_path_factory.mktemp("runs") / "supervised"
    finished = command("supervised/train.py", *TINY_FIT, "--out", run)
    assert finished.returncode == 0, finished.stderr
    (run / "stdout.txt").write_text(finished.stdout)
    return run


@dataclass(frozen=True)
class Comparison:
    """A small report: its folder, what the command printed, and what the page was rendered from."""

    folder: Path
    printed: str
    results: "Results"
    media: "Media"


@pytest.fixture(scope="session")
def compared(trained, fitted, cache_root, tmp_path_factory):
    """One whole report of a tiny run, its starting weights, a supervised run and a random network on a few phantoms,
    made once and only read."""
    from dino_oct.cli import parse_options
    from evaluation import compare
    from evaluation.report import comparison

    folder = tmp_path_factory.mktemp("report") / "new"
    models = [str(trained), str(trained / "checkpoints" / "start"), str(fitted), "random:test_resnet"]
    written = []

    def write(*what):
        written.append(what)
        return write_report(*what)

    write_report = comparison.write_report
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("DINO_OCT_CACHE", str(cache_root))
        patch.setattr(comparison, "write_report", write)
        compare.main(parse_options(compare.Options, [*models, *SMALL_REPORT, "--out", str(folder)]))
    ((results, media, *_),) = written
    return Comparison(folder, printed.getvalue(), results, media)


SMALL_REPORT = ["--k", "3", "--cases", "8", "--leaderboard", "2", "--methods", "attention", "gradcam"]
SMALL_REPORT += ["--bootstrap", "60", "--seed", "3"]

FEW_PHANTOMS = ["--phantom.patients", "12", "--phantom.scans-per-patient", "4", "--phantom.size", "64", "64"]

# A run of seconds: 2-block network on a few small phantoms, two evaluations.
TINY_RUN = [
    *("--config", "configs/quickstart.yaml", "--run.precision", "fp32", *FEW_PHANTOMS),
    *("--optim.epochs", "4", "--optim.batch-size", "8", "--optim.warmup-epochs", "1"),
    *("--model.args", "patch_size=2", "img_size=32", "embed_dim=32", "depth=2", "num_heads=2"),
    *("--model.drop-path", "0.1", "--model.out-dim", "64"),
    *("--augment.global-size", "32", "--augment.local-size", "16", "--augment.n-local", "2"),
    *("--monitor.image-size", "32", "32", "--monitor.attention-size", "32"),
    *("--monitor.k", "3", "--monitor.every-epochs", "2"),
]

# Settings inside their limits whose weights grow by 30,000 times a step.
DIVERGING = [
    *("--optim.lr", "1000", "--optim.warmup-epochs", "0", "--optim.clip-grad", "0", "--optim.epochs", "10"),
    *("--optim.weight-decay", "1000", "--optim.weight-decay-end", "1000"),
]

# The same with labels: no dropout, so that processes do not differ.
TINY_FIT = [
    *("--model", "random:vit_tiny_patch16_224", "--run.precision", "fp32", "--run.workers", "0", *FEW_PHANTOMS),
    *("--network.args", "patch_size=8", "img_size=32", "embed_dim=32", "depth=2", "num_heads=2"),
    *("--network.image-size", "32", "--optim.epochs", "3", "--optim.batch-size", "8", "--optim.lr", "1e-3"),
]
