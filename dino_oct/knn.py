"""Weighted k-nearest-neighbour classification (Wu et al. 2018; DINO's k-NN protocol)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from dino_oct.errors import InputError
from dino_oct.features import unit

_GPU_LARGEST_K = 2048  # of FAISS's GPU search
_GPU_SCRATCH = 256 << 20  # bytes


def neighbours(train: np.ndarray, test: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact cosine neighbours by FAISS, on the GPU where FAISS finds one.

    Args:
        train: (N, D), test: (M, D); need not be normalised.

    Returns:
        similarities (M, k) float32, descending, and positions in ``train`` (M, k). Equal similarities are in order of
        position, so results do not depend on the search's internals.
    """
    return nearest_rows(unit(train), unit(test), k)


def nearest_rows(
    rows: np.ndarray, queries: np.ndarray, k: int, metric: Literal["product", "squared distance"] = "product"
) -> tuple[np.ndarray, np.ndarray]:
    """As ``neighbours``, by the inner product (descending) or the squared distance (ascending) of rows as they are."""
    import faiss

    rows, queries = (np.ascontiguousarray(part, dtype=np.float32) for part in (rows, queries))
    index = (faiss.IndexFlatIP if metric == "product" else faiss.IndexFlatL2)(rows.shape[1])
    if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() and k <= _GPU_LARGEST_K:
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(_GPU_SCRATCH)  # by default FAISS takes 1.5 GB from a GPU that is training
        index = faiss.index_cpu_to_gpu(resources, torch.cuda.current_device(), index)
    index.add(rows)
    value, position = index.search(queries, k)
    order = np.lexsort((position, -value if metric == "product" else value), axis=1)
    return np.take_along_axis(value, order, 1), np.take_along_axis(position, order, 1)


def class_votes(similarity: np.ndarray, labels: np.ndarray, n_classes: int, temperature: float = 0.07) -> np.ndarray:
    """Votes exp(similarity / temperature), summed per class and normalised.

    Args:
        similarity: (M, k); labels: (M, k) classes of the neighbours.

    Returns:
        (M, n_classes), rows sum to 1; the prediction is the arg-max (ties: the lower class).
    """
    # Relative to the nearest: the same votes, no overflow at low temperatures.
    weight = np.exp((similarity.astype(np.float64) - similarity[:, :1]) / temperature)
    votes = np.stack([(weight * (labels == c)).sum(axis=1) for c in range(n_classes)], axis=1)
    return votes / votes.sum(axis=1, keepdims=True)


def knn_votes(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    ks: Sequence[int],
    n_classes: int,
    temperature: float = 0.07,
    patients: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[int, np.ndarray]:
    """Votes of each test image for several k from one search.

    Args:
        patients: (N,) of the training and (M,) of the test images: a test image's own patient then has no vote.

    Returns:
        k → (M, n_classes).

    Raises:
        InputError: k is smaller than 1 or larger than the number of training images that may vote, or the temperature
            is not above 0.
    """
    similarity, position = _voters(train, test, ks, temperature, patients)
    labels = train_labels[position]
    return {k: class_votes(similarity[:, :k], labels[:, :k], n_classes, temperature) for k in ks}


def label_votes(
    train: np.ndarray,
    train_values: np.ndarray,
    test: np.ndarray,
    ks: Sequence[int],
    temperature: float = 0.07,
    patients: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[int, np.ndarray]:
    """Share of the votes for each of several labels, for several k; of a label the nearest scans vote that know it.

    Args:
        train_values: (N, L) 1, 0, or negative where not known.
        patients: as ``knn_votes``.

    Returns:
        k → (M, L) in [0, 1]; NaN for a label that no training image knows.

    Raises:
        InputError: as ``knn_votes``; of the images that know a label.
    """
    shares = {k: np.full((len(test), train_values.shape[1]), np.nan) for k in ks}
    masks, mask_of_label = np.unique(train_values >= 0, axis=1, return_inverse=True)
    for m, known in enumerate(masks.T):  # labels that the same images know share a search
        if not known.any():
            continue
        voting = (patients[0][known], patients[1]) if patients else None
        similarity, position = _voters(train[known], test, ks, temperature, voting)
        for label in np.flatnonzero(mask_of_label.reshape(-1) == m):
            values = train_values[known, label][position]
            for k in ks:
                shares[k][:, label] = class_votes(similarity[:, :k], values[:, :k], 2, temperature)[:, 1]
    return shares


def _voters(
    train: np.ndarray,
    test: np.ndarray,
    ks: Sequence[int],
    temperature: float,
    patients: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and positions (M, max k) of the training images that vote; arguments as ``knn_votes``."""
    if not temperature > 0:
        raise InputError(f"temperature {temperature}: must be above 0")
    own = _largest_own(*patients) if patients else 0
    check_k(ks, len(train) - own, f"of other patients (of {len(train)} in all)" if own else "")
    similarity, position = neighbours(train, test, max(ks) + own)
    if patients and own:
        # A stable sort moves the own patient's scans behind all others, which stay in order.
        is_own = patients[0][position] == patients[1][:, None]
        order = np.argsort(is_own, axis=1, kind="stable")[:, : max(ks)]
        similarity, position = (np.take_along_axis(values, order, 1) for values in (similarity, position))
    return similarity, position


def check_k(ks: Sequence[int], n_train: int, which: str = "") -> None:
    """Raise InputError unless every k is from 1 to the number of training scans."""
    if not ks:
        raise InputError("no k given; name at least one, for example 5")
    if min(ks) < 1 or max(ks) > n_train:
        wrong = max(ks) if min(ks) > 0 else min(ks)
        scans = f"the number of training scans {which}".rstrip()
        raise InputError(f"k = {wrong}: must be from 1 to {n_train}, {scans}")


def _largest_own(train_patients: np.ndarray, test_patients: np.ndarray) -> int:
    """The most training images that one patient of the test images has."""
    shared = train_patients[np.isin(train_patients, test_patients)]
    return int(np.unique(shared, return_counts=True)[1].max()) if len(shared) else 0
