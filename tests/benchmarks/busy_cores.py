"""Steps per second of a small transformer on all cores, alone and beside other work, by how long threads wait awake.

    python tests/benchmarks/busy_cores.py

Commands set ``GOMP_SPINCOUNT`` (``dino_oct/cli.py``), unless it or OMP_WAIT_POLICY is set.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dino_oct.cli import SPINS, run_command
from dino_oct.data.cores import usable_cores

FOLDER = Path(__file__).parent
_BUSY = "while True: pass"
_USUAL = "300000"  # libgomp's where nothing is set


@dataclass
class Options:
    """Time steps."""

    seconds: float = 8
    """Of each measurement."""
    rounds: int = 2


def steps(seconds: float) -> None:
    """Print the steps per second of this process."""
    import torch

    layers = [torch.nn.TransformerEncoderLayer(96, 3, 384, 0.0, batch_first=True, norm_first=True) for _ in range(3)]
    network, tokens = torch.nn.Sequential(*layers), torch.randn(64, 37, 96)
    optimizer = torch.optim.AdamW(network.parameters())
    start = None
    for done in range(10**9):
        network(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        start = start or time.perf_counter()
        if time.perf_counter() - start > seconds:
            print(f"{done / (time.perf_counter() - start):.2f}")
            return


def main(options: Options) -> None:
    """Print a line for each measurement, in turns."""
    code = f"import busy_cores; busy_cores.steps({options.seconds})"
    for beside in (0, 1) * options.rounds:
        busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(beside)]
        try:
            for way, spins in (("OpenMP's own way", _USUAL), ("as commands do", SPINS)):
                environment = os.environ | {"GOMP_SPINCOUNT": spins}
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    env=environment,
                    cwd=FOLDER,
                    check=True,
                    capture_output=True,
                    text=True,
                )
                print(
                    f"{usable_cores()} cores, {beside} busy beside: {way:16} {done.stdout.strip()} steps/s", flush=True
                )
        finally:
            for process in busy:
                process.kill()
                process.wait()


if __name__ == "__main__":
    run_command(main, Options)
