"""``--help`` and wrong options are answered before any heavy library is imported: modules are counted, not seconds."""

import json
import os
import subprocess
import sys

import pytest
from campaigns.draw_settings import commands
from conftest import REPOSITORY

HEAVY = {
    *("torch", "torchvision", "timm", "accelerate", "optuna", "scipy", "sklearn", "matplotlib", "faiss", "umap"),
    *("tensorboard", "numba", "safetensors"),
}
SCRIPTS = [command.script for command in commands()]
HAS_PRESETS = [command.script for command in commands() if any(one.name == "config" for one in command.settings)]
# Runs a script as ``python SCRIPT …`` does; at its end, the packages that it has imported are the last line of stdout.
RUN = """
import json, runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def run(script: str, *args: str) -> tuple[int, str, set[str]]:
    """Exit status, what it wrote on both streams, and the packages that it imported."""
    code = f"import sys; sys.argv = {[script, *args]!r}{RUN}"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    text, _, packages = finished.stdout.rstrip().rpartition("\n")
    return finished.returncode, text + finished.stderr, set(json.loads(packages))


def test_every_command_is_found():
    assert len(SCRIPTS) == 22
    assert set(HAS_PRESETS) == {"dino_oct/train.py", "supervised/train.py"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_wrong_option_import_nothing_heavy(script):
    status, text, packages = run(script, "--help")
    assert (status, HEAVY & packages) == (0, set())
    assert "--help" in text
    status, text, packages = run(script, "--no-such-option", "1")
    assert (status, HEAVY & packages) == (2, set())
    assert "error: --no-such-option: no such option" in text


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        *((script, ["--config", "configs/none.yaml"], "no such settings file") for script in HAS_PRESETS),
        ("supervised/search.py", ["--base.config", "configs/none.yaml"], "no such settings file"),
        ("supervised/search.py", ["--space", "configs/none.yaml"], "no such search space"),
        ("supervised/search.py", ["--trials", "0"], "--trials 0: must be from 1"),
        ("supervised/train.py", ["--network.train", "tail"], "give full, head or a number of last blocks"),
        ("supervised/zoo.py", ["--filter", "lenet"], "--filter lenet: no such name among ResNet18"),
        ("dino_oct/train.py", ["--optim.lr", "-1"], "--optim.lr -1.0: must be from 0"),
        ("dino_oct/train.py", ["--resume", "none.pt"], "no such checkpoint"),
    ],
)
def test_a_wrong_value_or_file_imports_nothing_heavy(script, args, message):
    status, text, packages = run(script, *args)
    assert (status, HEAVY & packages) == (2, set())
    assert message in text


def test_the_package_itself_is_light_and_a_heavy_import_would_be_seen():
    def imported(code: str) -> set[str]:
        code += "; import json, sys; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
        return set(json.loads(subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True).stdout))

    assert not HEAVY & imported("import dino_oct, supervised, evaluation")
    assert "torch" in imported("import dino_oct.processes")


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_soon_sleep_unless_told_otherwise(given, spins):
    """OpenMP reads it when torch is loaded: a machine with other work would else take many times as long a step."""
    code = (
        "import os, sys\nfrom dino_oct.cli import one_line_errors\n"
        "with one_line_errors(): print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert finished.stdout.split() == [spins, "False"]
