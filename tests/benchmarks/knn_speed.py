"""Seconds of the exact k-NN search at the size of OCT2017, beside bare FAISS and torch's matmul and topk.

    python tests/benchmarks/knn_speed.py                      83,484 × 768 against 968 queries, k = 10

All start from features as extracted and normalise them; repeats are interleaved, the best of each counts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from dino_oct.cli import run_command
from dino_oct.knn import neighbours

Search = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass
class Options:
    """Compare the k-NN search with bare FAISS and torch."""

    scans: int = 83_484
    """Training scans."""
    queries: int = 968
    """Scans to classify."""
    dims: int = 768
    """Width of the features."""
    k: int = 10
    repeats: int = 5
    threads: int = 2
    """Of all three, on a CPU."""


def bare_faiss(train: np.ndarray, test: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's own normalisation and flat index."""
    train, test = train.copy(), test.copy()
    faiss.normalize_L2(train)
    faiss.normalize_L2(test)
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    return index.search(test, k)


def torch_topk(train: np.ndarray, test: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """One matrix product and topk, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, queries = (F.normalize(torch.from_numpy(part).to(device)) for part in (train, test))
    similarity, position = (queries @ rows.T).topk(k)
    return similarity.cpu().numpy(), position.cpu().numpy()


def main(options: Options) -> None:
    """Print seconds of each, and whether all found the same neighbours."""
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    train = rng.standard_normal((options.scans, options.dims), dtype=np.float32)
    test = rng.standard_normal((options.queries, options.dims), dtype=np.float32)
    searches: dict[str, Search] = {"toolkit": neighbours, "faiss": bare_faiss, "torch matmul + topk": torch_topk}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    neighbours_by = {}
    for _ in range(options.repeats):
        for name, search in searches.items():
            start = time.perf_counter()
            neighbours_by[name] = search(train, test, options.k)
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(times) for name, times in seconds.items()}
    fastest = min(best["faiss"], best["torch matmul + topk"])
    print(
        f"{options.scans:,} × {options.dims} against {options.queries:,} queries, k = {options.k}, "
        f"{options.threads} threads"
    )
    for name, value in best.items():
        same = float((neighbours_by[name][1] == neighbours_by["toolkit"][1]).mean())
        print(
            f"{name:20} {value:6.2f} s  {value / fastest:5.2f} × the fastest of the two others  "
            f"same neighbours {same:.2%}"
        )


if __name__ == "__main__":
    run_command(main, Options)
