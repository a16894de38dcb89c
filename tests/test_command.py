"""The console command ``dino-oct``, the wheel, and what it brings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from campaigns.draw_settings import commands
from conftest import REPOSITORY

from dino_oct import __version__
from dino_oct.cli import parse_options
from dino_oct.command import COMMANDS
from dino_oct.devices import default_device, on_device
from dino_oct.errors import InputError
from dino_oct.presets import PRESETS, find_preset
from evaluation.config import KnnOptions


def run(*args: str, cwd: Path = REPOSITORY, path: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "dino_oct.command", *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def test_every_script_has_a_name_and_every_name_a_script():
    scripts = {command.script.removesuffix(".py").replace("/", ".") for command in commands()}
    assert {command.module for command in COMMANDS.values()} == scripts
    shown = run("--help").stdout
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert max(map(len, shown.splitlines())) <= 80
    assert run("--version").stdout == f"dino-oct {__version__}\n"


def test_a_command_is_its_script():
    by_name, by_path = run("knn", "--k", "0"), [sys.executable, "evaluation/knn.py", "--k", "0"]
    by_path = subprocess.run(by_path, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (by_name.returncode, by_name.stderr) == (by_path.returncode, by_path.stderr)
    assert "usage: dino-oct knn" in run("knn", "--help").stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nkn"], "nkn: no such command; did you mean knn?"),
        (["launch", "2", "knn"], "expected dino-oct launch N train"),
        (["launch", "train"], "expected dino-oct launch N train"),
        (["completion", "tcsh"], "expected one of bash, zsh, fish"),
        (["train", "--device", "gpu"], "--device gpu: must be auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_a_wrong_call_is_one_line(args, words):
    finished = run(*args)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert words in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_the_shell_completes_commands_and_options():
    script = run("completion", "bash").stdout

    def completed(*words: str) -> set[str]:
        ask = (
            f"{script}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _dino_oct; echo ${{COMPREPLY[@]}}"
        )
        return set(subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60).stdout.split())

    assert completed("dino-oct", "lo") == {"localize"}
    assert {"--k", "--device"} <= completed("dino-oct", "knn", "--")
    assert "--optim.lr" in completed("dino-oct", "train", "--optim.l")
    assert "--for" in completed("dino-oct", "compare", "--fo")
    assert completed("dino-oct", "launch", "2", "tr") == {"train"}
    assert "--optim.lr" in completed("dino-oct", "launch", "2", "train", "--optim.l")
    fish = run("completion", "fish").stdout
    assert "complete -c dino-oct" in fish
    assert "-l for" in fish


def test_presets_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/small_cpu.yaml", "small_cpu"):
        assert find_preset(name) == PRESETS / "small_cpu.yaml"
    assert find_preset("phantoms_vit") == PRESETS / "supervised" / "phantoms_vit.yaml"
    Path("small_cpu").write_text("seed: 1\n")
    assert find_preset("small_cpu") == Path("small_cpu")
    names = [path.stem for path in PRESETS.rglob("*.yaml")]
    assert len(set(names)) == len(names)


def test_the_device_is_what_was_asked_for_and_only_there():
    before = default_device()
    with on_device("cpu"):
        assert default_device() == torch.device("cpu")
        with on_device("auto"):
            assert default_device() == torch.device("cpu")
        with on_device("cuda:99"), pytest.raises(InputError, match="--device cuda:99: this machine has"):
            default_device()
    assert default_device() == before
    assert parse_options(KnnOptions, ["--device", "cuda:1"]).device == "cuda:1"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel's files, in a folder of their own."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    for name in ("dino_oct", "supervised", "evaluation", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run([sys.executable, *install], check=True, timeout=240, capture_output=True)
    return target


def test_the_wheel_holds_every_file_of_the_packages(installed):
    def files(root: Path, *folders: str) -> set[str]:
        found = (file.relative_to(root) for folder in folders for file in (root / folder).rglob("*"))
        return {str(file) for file in found if file.suffix not in ("", ".pyc")}

    packages = ("dino_oct", "supervised", "evaluation")
    expected = files(REPOSITORY, *packages) | {f"dino_oct/{name}" for name in files(REPOSITORY, "configs")}
    assert files(installed, *packages) == expected
    assert (installed / "bin" / "dino-oct").is_file()


def test_a_wheel_trains_and_evaluates_without_the_clone(installed, tmp_path):
    tiny = ["--optim.epochs", "1", "--phantom.patients", "24", "--phantom.scans-per-patient", "2", "--run.workers", "0"]
    tiny += ["--optim.warmup-epochs", "0", "--optim.batch-size", "8", "--monitor.attention-scans", "0"]
    variables = {"DINO_OCT_CACHE": str(tmp_path / "cache")}
    trained = run("train", *tiny, "--out", "run", cwd=tmp_path, path=installed, **variables)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "export" / "backbone.safetensors").is_file()
    judged = run("knn", "--model", "run", "--k", "1", "--bootstrap", "0", cwd=tmp_path, path=installed, **variables)
    assert judged.returncode == 0, judged.stderr
    assert "k = 1" in judged.stdout or "k=1" in judged.stdout


def test_the_doctor_names_device_memory_weights_and_speed():
    finished = run("doctor", "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    lines = [line.split(None, 1) for line in finished.stdout.splitlines()]
    assert {"dino-oct", "device", "memory", "caches", "extras", "weights", "speed", "about"} == {
        name for name, _ in lines
    }
    assert lines[1][1].startswith("CPU, ")
