"""What a training refuses or tells before it decodes a scan."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY_RUN
from PIL import Image

from dino_oct import preflight, runtime
from dino_oct.data.cores import usable_cores
from dino_oct.data.index import DatasetConfig, index_scans
from dino_oct.data.sampler import StepSampler


@pytest.fixture
def scans(tmp_path):
    """Six pictures of six patients, one of them damaged: decoding would tell of it."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 80)).astype(np.uint8)).save(folder / f"{i}.png")
    (folder / "5.png").write_bytes(b"damaged")
    return folder


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--augment.global-size", "50", "--augment.local-size", "33", "--monitor.image-size", "50", "48"],
            "not multiples of the patch (8 px): augment.global_size 50 50 (use 48 48), augment.local_size 33 33 (use "
            "32 32), monitor.image_size 50 48 (use 48 48)",
        ),
        (["--monitor.image-size", "50", "48"], "image_size 50 48 is not a multiple of the patch (8 px); use 48 48"),
        (["--optim.batch-size", "64"], "training scans are fewer than optim.batch_size 64; lower it"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_decoding(args, message, scans, call, tmp_path):
    finished = call("dino_oct/train.py", *TINY_RUN, "--data", scans, "--out", tmp_path / "run", *args)
    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
    assert message in finished.stderr
    assert "scans cached" not in finished.stdout
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_no_more_loaders_than_cores_are_started(monkeypatch):
    def workers(asked: int) -> int:
        return runtime.step_loader(list(range(8)), StepSampler(8, 2, 1, 0, 0, 4, 0), asked).num_workers

    assert workers(256) == usable_cores()
    assert workers(0) == 0
    assert workers(1) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert workers(256) == 1


def test_a_disk_that_may_be_too_small_is_told(scans, tmp_path, monkeypatch):
    said, config = [], DatasetConfig(cache_dir=str(tmp_path / "not" / "yet"))
    preflight.warn_of_disk(index_scans(scans, config), config, said.append)
    assert said == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=6 * 64 * 80 - 1))
    preflight.warn_of_disk(index_scans(scans, config), config, said.append)
    (line,) = said
    assert line.startswith("warning: 6 decoded scans take about")
    assert "--dataset.cache-dir" in line


def test_processes_that_share_the_cores_are_told_once(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(runtime, "usable_cores", lambda: 1)
    config = runtime.RunConfig(precision="fp32")
    runtime.start_processes(config)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    runtime.start_processes(config)
    assert "warning: 8 processes share 1 core" in capsys.readouterr().out
