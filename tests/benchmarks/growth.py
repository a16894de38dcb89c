"""What a step costs as the work grows: more scans, more processes.

    python tests/benchmarks/growth.py

Scans: milliseconds for the items of a step of 64 scans, from 1,000 to 1,000,000 scans, at the first step of an epoch
(which draws its order), at a later one, and at one to which a run was resumed. Processes: images per second of one and
of two processes, of one thread each, on the same phantoms.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dino_oct.cli import run_command
from dino_oct.data.sampler import StepSampler, TrainingScans

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Options:
    """Measure growth."""

    scans: list[int] = field(default_factory=lambda: [1_000, 10_000, 100_000, 1_000_000])
    batch_size: int = 64
    steps: int = 200
    processes: bool = True
    """Also compare one and two processes (two minutes)."""


class Stored:
    """As many scans as one likes: all are views of one."""

    def __init__(self, count: int):
        self.scan = np.zeros((496, 512), dtype=np.uint8)
        self.tissue = np.lib.stride_tricks.as_strided(np.zeros((16, 16), dtype=np.float32), (count, 16, 16), (0, 64, 4))

    def __getitem__(self, position: int) -> np.ndarray:
        return self.scan


def of_scans(count: int, options: Options) -> tuple[float, float, float]:
    """Milliseconds of the first step of an epoch, of a later step (median), and of the first after a resume."""
    data = TrainingScans(Stored(count), np.arange(count))
    seconds = []
    start = time.perf_counter()
    for items in StepSampler(count, options.batch_size, 1, 0, 0, min(options.steps, count // options.batch_size), 0):
        for item in items:
            data[item]
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    middle = 7 * (count // options.batch_size) + 5  # of the eighth epoch
    start = time.perf_counter()
    next(iter(StepSampler(count, options.batch_size, 1, 0, middle, middle + 1, 0)))
    return seconds[0] * 1e3, float(np.median(seconds[1:])) * 1e3, (time.perf_counter() - start) * 1e3


def of_processes(count: int, work: Path) -> float:
    """Images per second of a small training by so many processes of one thread each."""
    settings = [
        "--config", "configs/quickstart.yaml", "--init", "random:vit_tiny_patch16_224",
        "--optim.epochs", "2", "--optim.batch-size", "32", "--run.log-every",
        "1", "--run.workers", "0", "--monitor.every-epochs", "1000", "--monitor.attention-scans", "0",
        "--model.args", "patch_size=8", "img_size=96", "embed_dim=192", "depth=6", "num_heads=3",
        "--run.precision", "fp32", "--out", str(work / f"run-{count}"),
    ]  # fmt: skip
    command = [sys.executable, "dino_oct/train.py", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if count > 1:
        command = ["bash", "launch/torchrun.sh", *settings]
        environment["PROCESSES"] = str(count)
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (work / f"run-{count}" / "metrics.jsonl").read_text().splitlines()]
    return float(np.median([line["images_per_s"] for line in lines if "images_per_s" in line]))


def main(options: Options) -> None:
    """Print a row for each number of scans, and the gain of a second process."""
    print(
        f"{'scans':>10}  first of an epoch  a later one  after a resume   milliseconds for {options.batch_size} scans"
    )
    for count in options.scans:
        first, later, resumed = of_scans(count, options)
        print(f"{count:>10,}  {first:17.2f}  {later:11.2f}  {resumed:14.2f}", flush=True)
    if options.processes:
        with tempfile.TemporaryDirectory() as work:
            one, two = (of_processes(count, Path(work)) for count in (1, 2))
        print(f"one process {one:.1f} images/s, two {two:.1f}: {two / one:.2f} times")


if __name__ == "__main__":
    run_command(main, Options)
