"""Maps of features in the plane (UMAP), and how well features and maps keep classes and neighbours together."""

import warnings
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import cKDTree, procrustes

from dino_oct.knn import nearest_rows, neighbours
from dino_oct.streams import short_seed_of

_EXACT = range(4096, 60_000)  # scans of which FAISS finds the neighbours sooner than umap-learn


def umap_map(
    features: np.ndarray,
    seed: int,
    *,
    n_neighbours: int = 15,
    min_dist: float = 0.1,
    metric: str = "euclidean",
    start: np.ndarray | None = None,
) -> np.ndarray:
    """UMAP (McInnes, Healy & Melville 2018) of features in the plane; the defaults are umap-learn's.

    A map belongs to its seed: umap-learn then works on one thread. It searches all rows for neighbours below 4,096 and
    approximates them from there on, by code that takes half a minute to compile. Where an exact search takes less than
    that, FAISS makes one, on all threads or the GPU.

    Args:
        features: (N, D), N at least ``FEWEST`` and above ``n_neighbours``.
        start: (N, 2) where points start; None: the spectral layout.

    Returns:
        (N, 2) float32; the axes have no units.
    """
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        import umap  # here, because importing it takes seconds

        # What follows from a seed, and from groups without a link between them, is in the docstring and on the page.
        warnings.filterwarnings("ignore", "n_jobs value 1 overridden", UserWarning)
        warnings.filterwarnings("ignore", r"(?s).*Spectral initialisation failed", UserWarning)
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)  # new points are not mapped later
        features = np.asarray(features, dtype=np.float32)
        found = (None, None, None)
        if len(features) in _EXACT and metric in ("cosine", "euclidean"):
            found = (*_with_themselves(features, n_neighbours, metric), None)
        mapper = umap.UMAP(
            n_neighbors=n_neighbours,
            min_dist=min_dist,
            metric=metric,
            random_state=short_seed_of("UMAP", seed),
            n_jobs=1,
            init="spectral" if start is None else start,
            precomputed_knn=found,
        )
        try:
            return mapper.fit_transform(features)
        finally:
            torch.set_num_threads(threads)  # numba, on which umap-learn rests, sets it for the whole process


def _with_themselves(features: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, k) of each row's nearest rows, itself among them, and their distances as umap-learn measures
    them."""
    if metric == "cosine":
        similarity, position = neighbours(features, features, k)
        distance = 1 - similarity
    else:
        squared, position = nearest_rows(features, features, k, "squared distance")
        distance = np.sqrt(squared.clip(min=0))
    distance[position == np.arange(len(features))[:, None]] = 0  # rounding would put a row beside itself
    return position, distance.clip(min=0)


def nearest(
    points: np.ndarray, groups: np.ndarray, k: int, metric: str = "cosine", queries: np.ndarray | None = None
) -> np.ndarray:
    """The k nearest points of other groups, the nearest first.

    Args:
        points: (N, D).
        groups: (N,) a point's own group (its patient) is left out; ``np.arange(N)`` leaves out only the point itself.
        metric: "cosine", or "euclidean" for points in the plane.
        queries: (M,) positions of the points that are asked for; unset: all.

    Returns:
        (M, k) positions; k must not exceed ``most_neighbours(groups)``.
    """
    _, groups, counts = np.unique(groups, return_inverse=True, return_counts=True)
    queries, search = np.arange(len(points)) if queries is None else queries, k + int(counts.max())
    if metric == "cosine":
        _, position = neighbours(points, points[queries], search)
    else:
        _, position = cKDTree(points).query(points[queries], search)
    # A stable sort moves the own group's points behind all others, which stay in order.
    order = np.argsort(groups[position] == groups[queries][:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(position, order, 1)


def most_neighbours(groups: np.ndarray) -> int:
    """The largest k of ``nearest``: what the largest group leaves over."""
    return len(groups) - int(np.unique(groups, return_counts=True)[1].max())


def purity(near: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each point's neighbours that are of its class: (N,), from ``nearest``'s (N, k) and labels (N,)."""
    return (labels[near] == labels[:, None]).mean(axis=1)


def chance_purity(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """``purity`` to be expected of neighbours drawn at random from other groups: (N,)."""
    _, labels = np.unique(labels, return_inverse=True)
    _, groups = np.unique(groups, return_inverse=True)
    table = np.zeros((groups.max() + 1, labels.max() + 1))
    np.add.at(table, (groups, labels), 1)
    same = table.sum(axis=0)[labels] - table[groups, labels]
    return same / np.maximum(len(labels) - table.sum(axis=1)[groups], 1)


def agreement(maps: Sequence[np.ndarray], k: int) -> dict[str, tuple[float, float, float]]:
    """How far maps (N, 2) of the same points from several seeds agree, over all pairs of them: mean, lowest, highest.

    ``overlap``: of the sets of k nearest points, intersection over union, 1 = the same. ``procrustes``: squared
    distance left after the best shift, turn, mirror and scale, relative to the map's spread; 0 = the same, 1 = nothing
    in common.
    """
    alone = np.arange(len(maps[0]))
    near = [np.sort(nearest(points, alone, k, "euclidean"), axis=1) for points in maps]
    of_pairs: dict[str, list[float]] = {"overlap": [], "procrustes": []}
    for a, b in combinations(range(len(maps)), 2):
        shared = np.array([len(np.intersect1d(x, y)) for x, y in zip(near[a], near[b], strict=True)])
        of_pairs["overlap"].append(float((shared / (2 * k - shared)).mean()))
        of_pairs["procrustes"].append(float(procrustes(maps[a], maps[b])[2]))
    return {name: (float(np.mean(values)), min(values), max(values)) for name, values in of_pairs.items()}


def aligned(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """A map (N, 2) turned or mirrored and shifted to lie on another one as well as it can; its scale stays."""
    centred = points - points.mean(axis=0)
    turn, _ = orthogonal_procrustes(centred, onto - onto.mean(axis=0))
    return (centred @ turn + onto.mean(axis=0)).astype(points.dtype)
