"""Seconds of the map of many features, beside umap-learn with the same seed, and how well both keep neighbours.

python tests/benchmarks/umap_speed.py                              84,000 × 768, as many as OCT2017 has
python tests/benchmarks/umap_speed.py --scans 10000 --dims 384
"""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from dino_oct.cli import run_command
from evaluation.scores.embeddings import umap_map


@dataclass
class Options:
    """Time UMAP."""

    scans: int = 84_000
    dims: int = 768
    threads: int = 2
    """Of the search for neighbours; the rest has one, so that a map belongs to its seed."""


def clusters(options: Options) -> np.ndarray:
    """Features in overlapping clusters on a curved sheet, as networks give."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((30, 16)).astype(np.float32)
    latent = centres[rng.integers(30, size=options.scans)] + 0.5 * rng.standard_normal((options.scans, 16))
    turned = np.tanh(latent.astype(np.float32) @ rng.standard_normal((16, options.dims)).astype(np.float32))
    return turned + 0.1 * rng.standard_normal((options.scans, options.dims), dtype=np.float32)


def bare(features: np.ndarray) -> np.ndarray:
    """umap-learn alone."""
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return umap.UMAP(random_state=0, n_jobs=1).fit_transform(features)


def main(options: Options) -> None:
    """Print seconds of both and the share of the 15 nearest that stay near in the plane."""
    torch.set_num_threads(options.threads)
    features = clusters(options)
    umap_map(features[:300], 0)  # compiles
    print(f"{options.scans:,} × {options.dims}, {options.threads} threads")
    for name, way in (("toolkit", lambda f: umap_map(f, 0)), ("umap-learn", bare)):
        start = time.perf_counter()
        points = way(features)
        seconds = time.perf_counter() - start
        some = np.random.default_rng(1).choice(len(features), min(2000, len(features)), replace=False)
        print(
            f"{name:12} {seconds:7.1f} s   kept of 15 neighbours among 2,000: {kept(features[some], points[some]):.3f}"
        )


def kept(features: np.ndarray, points: np.ndarray, k: int = 15) -> float:
    """Share of each row's k nearest that are among the k nearest in the plane."""
    near = []
    for rows in (features, points):
        distance = np.linalg.norm(rows[:, None] - rows[None], axis=2) if rows.shape[1] < 8 else _distances(rows)
        np.fill_diagonal(distance, np.inf)
        near.append(np.argpartition(distance, k, axis=1)[:, :k])
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)]))


def _distances(rows: np.ndarray) -> np.ndarray:
    squares = (rows**2).sum(axis=1)
    return squares[:, None] + squares[None] - 2 * rows @ rows.T


if __name__ == "__main__":
    run_command(main, Options)
