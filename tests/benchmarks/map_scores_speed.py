"""Milliseconds of the scores of a map against a mask, beside scikit-learn's average precision of the same pixels.

python tests/benchmarks/map_scores_speed.py        a map of 496 × 768, one thread
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score

from dino_oct.cli import run_command
from evaluation.config import SCORES
from evaluation.scores.localization import score_map


@dataclass
class Options:
    """Time map scores."""

    size: tuple[int, int] = (496, 768)
    """Height and width of the map, in pixels."""
    rounds: int = 15
    """Of the ways in turns; medians are printed."""


def main(options: Options) -> None:
    """Print milliseconds of each way, and how far the two average precisions are apart."""
    rng = np.random.default_rng(0)
    values = gaussian_filter(rng.random(options.size, dtype=np.float32), 8)
    values -= values.min()
    mask = np.zeros(options.size, dtype=bool)
    mask[options.size[0] // 3 : options.size[0] // 2, options.size[1] // 4 : options.size[1] // 2] = True
    ways = {
        f"all {len(SCORES)} scores": lambda: score_map(values, mask),
        "average precision alone": lambda: score_map(values, mask, ["auprc"])[0],
        "average precision of scikit-learn": lambda: average_precision_score(mask.ravel(), values.ravel()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        print(f"{name:34} {1e3 * statistics.median(times):6.1f} ms")
    ours, theirs = (ways[name]() for name in list(ways)[1:])
    print(f"they differ by {abs(ours - theirs):.1e}")


if __name__ == "__main__":
    run_command(main, Options)
