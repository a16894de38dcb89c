"""Milliseconds a scan of decoding and of each analysis that is stored with it.

python tests/benchmarks/decode_speed.py --scans DIR        one thread, every tenth image under DIR
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_oct.cli import run_command
from dino_oct.data.borders import border_features, find_borders, neutralise
from dino_oct.data.brightness import brightness_features
from dino_oct.data.decode import decode
from dino_oct.data.tissue import coarse_levels, tissue_map, tissue_mask


@dataclass
class Options:
    """Time decoding."""

    scans: Path = Path("OCT2017")
    """Folder of JPEGs."""
    every: int = 10
    """Take one file of so many."""


def main(options: Options) -> None:
    """Print means over the scans."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable[..., Any], *given: Any) -> Any:
        start = time.perf_counter()
        result = work(*given)
        seconds[name] += time.perf_counter() - start
        return result

    files = sorted(options.scans.rglob("*.jp*g"))[:: options.every]
    for file in files:
        scan = timed("decode", decode, file).scan
        borders = timed("borders", find_borders, scan)
        levels = timed("levels", coarse_levels, scan, borders)
        timed("brightness", brightness_features, scan, borders, levels)
        tissue = timed("tissue", tissue_mask, scan, borders, levels)
        timed("fill", neutralise, scan, borders, tissue)
        timed("maps", lambda b, t: (border_features(b), tissue_map(t)), borders, tissue)
    print(f"{len(files)} scans: " + " · ".join(f"{name} {1e3 * s / len(files):.2f} ms" for name, s in seconds.items()))
    print(f"beside decoding: {1e3 * (sum(seconds.values()) - seconds['decode']) / len(files):.2f} ms")


if __name__ == "__main__":
    run_command(main, Options)
