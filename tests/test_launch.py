"""Launch files: valid for accelerate, and the SLURM script puts a stopped job back into the queue."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY, environment

LAUNCH = REPOSITORY / "launch"


@pytest.mark.parametrize("name", ["cpu", "one_gpu", "one_node", "sharded", "several_nodes"])
def test_accelerate_configs_are_understood(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.num_processes >= config.num_machines >= 1
    assert yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())["mixed_precision"] == "no"


@pytest.mark.parametrize("script", ["launch/environment.sh", "launch/quickstart.sh", "launch/slurm.sh",
                                    "launch/torchrun.sh", "launch/compare_phantoms.sh", "tests/run.sh",
                                    ".ci/run"])  # fmt: skip
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", REPOSITORY / script], check=True, timeout=10)


@pytest.fixture
def fake_slurm(tmp_path):
    """A submission folder whose srun runs each task once; scontrol and python write down how they were called."""
    tools, work = tmp_path / "bin", tmp_path / "work"
    tools.mkdir()
    (work / ".venv" / "bin").mkdir(parents=True)
    (work / ".venv" / "bin" / "activate").write_text("")
    (work / "runs" / "r").mkdir(parents=True)
    scripts = {
        "srun": 'shift; for id in 0 1; do SLURM_PROCID=$id SLURM_LOCALID=$id SLURM_NTASKS=2 "$@" || exit $?; done',
        "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "node1\\nnode2\\n" || true',
        "python": 'echo "$RANK/$WORLD_SIZE/$LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $*" >> calls; exit ${STATUS:-0}',
    }
    for name, body in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)

    def submit(*args, **variables):
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(work), "SLURM_JOB_ID": "7"}
        environment |= {"SLURM_JOB_NODELIST": "node[1-2]", **variables}
        done = subprocess.run(
            ["bash", LAUNCH / "slurm.sh", *args], env=environment, capture_output=True, text=True, timeout=30
        )
        calls = work / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    submit.run = work / "runs" / "r"
    return submit


def test_slurm_starts_one_trainer_per_task(fake_slurm):
    done, calls = fake_slurm("--config", "configs/vitb8_oct2017.yaml", "--out", "runs/r")
    assert done.returncode == 0, done.stderr
    trainers = [call for call in calls if "train.py" in call]
    expected = "dino_oct/train.py --config configs/vitb8_oct2017.yaml --out runs/r"
    assert trainers == [f"{rank}/2/{rank} node1:29500 {expected}" for rank in (0, 1)]
    assert not any("requeue" in call for call in calls)


def test_slurm_requeues_a_run_that_a_signal_stopped(fake_slurm):
    (fake_slurm.run / "stopped").write_text("120\n")
    done, calls = fake_slurm("--out", "runs/r")
    assert done.returncode == 0, done.stderr
    assert calls[-1] == "scontrol requeue 7"


def test_slurm_does_not_requeue_a_failure_and_wants_a_run_folder(fake_slurm):
    done, calls = fake_slurm("--out", "runs/r", STATUS="1")
    assert done.returncode == 1
    assert not any("requeue" in call for call in calls)
    done, _ = fake_slurm("--config", "x.yaml")
    assert done.returncode == 2
    assert "--out" in done.stderr


def test_torchrun_script_works_without_a_gpu(tmp_path):
    (tmp_path / "torchrun").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    for program in ("bash", "wc", "dirname"):
        (tmp_path / program).symlink_to(shutil.which(program))
    done = subprocess.run(
        ["bash", LAUNCH / "torchrun.sh", "--out", "x"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["--standalone", "--nproc-per-node", "1", "dino_oct/train.py", "--out", "x"]


@pytest.fixture
def fake_project(tmp_path):
    """A clone whose trainers and evaluations write down how they were called; a trainer makes its run folder."""
    work = tmp_path / "clone"
    shutil.copytree(LAUNCH, work / "launch")
    (work / "launch" / "environment.sh").write_text("install_project() { :; }\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    trainer = (
        'while [ $# -gt 0 ]; do [ "$1" = --out ] && run=$2; shift; done; run=${run:-runs/quickstart}\n'
        "mkdir -p $run/export; touch $run/export/config.json; rm -f $run/stopped\n"
        '[ "${STOPPED:-}" != "$(basename $run)" ] || echo 3 > $run/stopped\necho "train $run" >> calls'
    )
    for name, body in {"accelerate": trainer, "python": 'echo "$@" >> calls'}.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)

    def run(script, **variables):
        (work / "calls").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", work / "launch" / script], env={"PATH": f"{tools}:{os.environ['PATH']}", **variables},
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return done, (work / "calls").read_text()

    return run


@pytest.mark.parametrize("stopped", ["dino", "vit", "resnet"])
def test_the_comparison_does_not_take_a_stopped_training_for_a_finished_one(stopped, fake_project):
    done, calls = fake_project("compare_phantoms.sh", STOPPED=stopped)
    assert done.returncode != 0
    assert f"{stopped} was stopped" in done.stderr
    assert "compare.py" not in calls
    done, calls = fake_project("compare_phantoms.sh")
    assert done.returncode == 0, done.stderr
    assert f"train runs/compare/{stopped}" in calls
    assert "compare.py" in calls
    done, calls = fake_project("compare_phantoms.sh")
    assert "train" not in calls


def test_the_quickstart_does_not_evaluate_a_stopped_training(fake_project):
    done, calls = fake_project("quickstart.sh", STOPPED="quickstart")
    assert (done.returncode, calls.count("\n")) == (1, 1)
    assert "was stopped" in done.stderr
    done, calls = fake_project("quickstart.sh")
    assert done.returncode == 0
    assert "knn.py" in calls


def test_a_file_for_one_process_says_why_it_does_not_start_two(cache_root):
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", LAUNCH / "cpu.yaml",
         "--num_processes", "2", "--num_cpu_threads_per_process", "1", "dino_oct/train.py"],
        cwd=REPOSITORY, env=environment(cache_root), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: several processes were asked for, and 1 works alone" in done.stderr
    assert "Traceback" not in done.stderr
