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
_CODE = "import busy_cores; busy_cores.steps({})"
_BESIDE = {"nothing": None, "a busy loop": "while True: pass", "another training": _CODE.format(1e6)}
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
    for name, work in [*_BESIDE.items()] * options.rounds:
        beside = work and subprocess.Popen([sys.executable, "-c", work], cwd=FOLDER, env=_waiting(_USUAL))
        try:
            for way, spins in (("OpenMP's own way", _USUAL), ("as commands do", SPINS)):
                code = [sys.executable, "-c", _CODE.format(options.seconds)]
                pace = subprocess.check_output(code, cwd=FOLDER, env=_waiting(spins), text=True).strip()
                print(f"{usable_cores()} cores, beside {name}: {way}: {pace} steps/s", flush=True)
        finally:
            if beside:
                beside.kill()
                beside.wait()


def _waiting(spins: str) -> dict[str, str]:
    return os.environ | {"GOMP_SPINCOUNT": spins}


if __name__ == "__main__":
    run_command(main, Options)
