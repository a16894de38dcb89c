"""Maps of several sources as one, and where they disagree.

Maps of different methods have no common unit, so each is replaced by the ranks of its pixels: what is left is the order
in which a method would point at the pixels of a scan.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def rank_normalise(values: np.ndarray) -> np.ndarray:
    """A map (H, W) as ranks of its pixels from 0 to 1, float32; pixels that tie share their mean rank, and a constant
    map is .5 everywhere."""
    ranks = rankdata(values, method="average").reshape(values.shape)
    return ((ranks - 1) / max(values.size - 1, 1)).astype(np.float32)


def ensemble(ranked: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of rank-normalised maps (H, W) of one scan, from 0 to 1, float32; ValueError where there is no map."""
    return np.mean(np.stack(ranked), axis=0, dtype=np.float32)


def disagreement(ranked: Sequence[np.ndarray]) -> np.ndarray:
    """Standard deviation of rank-normalised maps (H, W) of one scan at each pixel: 0 where all agree, .5 at most;
    ValueError where there is no map."""
    return np.std(np.stack(ranked), axis=0, dtype=np.float32)


def rank_correlations(ranked: Sequence[np.ndarray]) -> np.ndarray:
    """Spearman's correlation (M, M) of rank-normalised maps over the pixels; NaN for a constant map."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef(np.reshape(ranked, (len(ranked), -1)), dtype=np.float64)
