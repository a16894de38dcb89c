"""Features of many scans from several frozen extractors, a few scans in memory at a time."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from evaluation.preprocessing import Preprocessing

Extractor = Callable[[torch.Tensor], np.ndarray]
_CHUNK = 256


def extract_all(
    scans: Sequence[np.ndarray],
    positions: np.ndarray,
    preprocessing: Preprocessing,
    extractors: dict[str, Extractor],
) -> dict[str, np.ndarray]:
    """Features of the scans at ``positions`` from each extractor.

    Args:
        scans: grey uint8 scans (H, W).
        extractors: name → function from images (n, 1, rows, columns) uint8 to features (n, D).

    Returns:
        name → (N, D) float32, in the order of ``positions``.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    with tqdm(total=len(positions), desc="features", unit="scan", disable=None, leave=False) as bar:
        for start in range(0, len(positions), _CHUNK):
            chunk = positions[start : start + _CHUNK]
            images = preprocessing(scans[i] for i in chunk)  # once for all extractors
            for name, extract in extractors.items():
                parts[name].append(extract(images))
            bar.update(len(chunk))
    return {name: np.concatenate(features) for name, features in parts.items()}
