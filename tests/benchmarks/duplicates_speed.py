"""Seconds and memory of the search for near-duplicates as the scans grow.

    python tests/benchmarks/duplicates_speed.py                      1,000, 10,000 and 100,000 scans of 496 × 512

Scans are bands with shadows and speckle, drawn when asked for, each of another patient; every hundredth is a copy of
the one before, with noise, shifted by two rows. Drawing is timed apart.
"""

import resource
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dino_oct.cli import run_command
from dino_oct.data.duplicates import near_pairs


@dataclass
class Options:
    """Measure the search for near-duplicates."""

    scans: list[int] = field(default_factory=lambda: [1_000, 10_000, 100_000])
    height: int = 496
    width: int = 512


class Drawn:
    """As a ``ScanCache``: many scans, none of them stored."""

    def __init__(self, count: int, folder: Path, options: Options):
        self.folder, self.digests, self.shape = folder, np.arange(count), (options.height, options.width)
        rng = np.random.default_rng(0)
        self.speckle = rng.gamma(4, 1 / 4, (8, *self.shape)).astype(np.float32)
        self.rows, self.columns = np.arange(options.height, dtype=np.float32)[:, None], np.arange(options.width)
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, i: int) -> np.ndarray:
        start = time.thread_time()
        is_copy = i % 100 == 99
        rng = np.random.default_rng(i - is_copy)
        shadows = np.repeat(rng.uniform(0.5, 1.5, 32).astype(np.float32), -(-self.shape[1] // 32))[: self.shape[1]]
        level = self.shape[0] * (0.4 + 0.1 * np.sin(self.columns / rng.uniform(60, 200) + rng.uniform(0, 6)))
        band = shadows * np.exp(-(((self.rows - level.astype(np.float32)) / rng.uniform(20, 60)) ** 2))
        shift = tuple(rng.integers(0, self.shape))
        scan = (20 + 120 * band) * np.roll(self.speckle[rng.integers(8)], shift, axis=(0, 1))
        if is_copy:
            scan = np.roll(scan, 2, axis=0) + np.random.default_rng(i).normal(0, 4, self.shape)
        scan = scan.clip(0, 255).astype(np.uint8)
        self.seconds += time.thread_time() - start
        return scan


def main(options: Options) -> None:
    """Print a line for each number of scans."""
    for count in options.scans:
        with tempfile.TemporaryDirectory() as folder:
            drawn, before = Drawn(count, Path(folder), options), time.process_time()
            start = time.perf_counter()
            pairs = near_pairs(drawn, np.arange(count))
            busy = time.process_time() - before - drawn.seconds
        copies = {(i - 1, i) for i in range(99, count, 100)}
        print(
            f"{count:9,} scans: {busy:7.1f} s of one core beside drawing ({time.perf_counter() - start:.0f} s in all), "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most; "
            f"{len(copies & {pair[:2] for pair in pairs})} of {len(copies)} copies found",
            flush=True,
        )


if __name__ == "__main__":
    run_command(main, Options)
