"""What a table of many scans costs: seconds and memory of index, splits and cache key, and what 100 new scans cost.

    python tests/benchmarks/table_speed.py
    python tests/benchmarks/table_speed.py --scans 1000000 --decode 0

Scans are links to 64 small pictures. Each number of scans has a process of its own, so that memory is its own.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dino_oct.cli import run_command

_PICTURES = 64  # a file system allows some 65,000 links to one file
_CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")


@dataclass
class Options:
    """Measure tables."""

    scans: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000])
    decode: int = 10_000
    """Scans that are also decoded, before and after 100 more are added; 0 for none."""


def write_set(folder: Path, count: int, start: int = 0) -> None:
    """Link scans and write their table: 25 slices of an eye, two eyes of a patient."""
    for i in range(_PICTURES):  # of its own: a further link changes the time of a file's status
        grey = np.random.default_rng(i).integers(0, 90, (64, 64), dtype=np.uint8)
        Image.fromarray(grey).save(folder / f"picture-{start}-{i}.png")
    rows = [] if start else ["file,label,patient,eye,visit,volume,slice,device"]
    for i in range(start, start + count):
        place = folder / str(i // 1000)
        place.mkdir(exist_ok=True)
        os.link(folder / f"picture-{start}-{i % _PICTURES}.png", place / f"{i}.png")
        eye = i // 25
        label, patient = _CLASSES[eye % 4], eye // 2
        rows.append(f"{i // 1000}/{i}.png,{label},P{patient},{'RL'[eye % 2]},1,{eye},{i % 25},{'AB'[patient % 2]}")
    with (folder / "scans.csv").open("a" if start else "w") as table:
        table.write("\n".join(rows) + "\n")


def measure(folder: Path, decode: bool) -> dict[str, float]:
    """Seconds of each part, and GiB of memory at most."""
    from dino_oct.data import cache as cache_module
    from dino_oct.data.index import DatasetConfig, index_scans

    config = DatasetConfig(cache_dir=str(folder / "cache"))
    start = time.perf_counter()
    index = index_scans(folder / "scans.csv", config)
    indexed = time.perf_counter()
    cache_module._stamps(index, config)
    seconds = {"index": indexed - start, "key": time.perf_counter() - indexed}
    if decode:
        start = time.perf_counter()
        cache_module.open_cache(index, config, progress=False)
        seconds["cache"] = time.perf_counter() - start
    return {**seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def run(folder: Path, decode: bool) -> dict[str, float]:
    """``measure`` in a process of its own."""
    code = "import json, sys, pathlib, table_speed as t; print(json.dumps(t.measure(pathlib.Path(sys.argv[1]), %r)))"
    command = [sys.executable, "-c", code % decode, str(folder)]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=here).stdout)


def main(options: Options) -> None:
    """Print a row for each number of scans."""
    print(f"{'scans':>10}  index and splits s  cache key s  memory GiB")
    for count in options.scans:
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder), count)
            row = run(Path(folder), False)
        print(f"{count:>10,}  {row['index']:18.2f}  {row['key']:11.2f}  {row['memory']:10.2f}", flush=True)
    if options.decode:
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder), options.decode)
            first, again = run(Path(folder), True), run(Path(folder), True)
            write_set(Path(folder), 100, start=options.decode)
            more = run(Path(folder), True)
        print(
            f"decoding {options.decode:,} scans {first['cache']:.1f} s, opening them {again['cache']:.2f} s, "
            f"with 100 more {more['cache']:.2f} s"
        )


if __name__ == "__main__":
    run_command(main, Options)
