"""Maps of several sources as one, and where they disagree.

Maps of different methods have no common unit, so each is replaced by the ranks of its pixels: what is left is the order
in which a method would point at the pixels of a scan.
"""

from collections.abc import Sequence

import numpy as np


def pixel_order(values: np.ndarray, descending: bool = False) -> np.ndarray:
    """Positions of a map's pixels (any shape, read in float32) from the lowest to the highest, or the other way round;
    pixels that tie stay in reading order.

    Value and position are sorted as one integer, which numpy does several times as fast as an argsort.
    """
    bits = (np.ascontiguousarray(values, dtype=np.float32).ravel() + np.float32(0)).view(np.uint32)  # + 0: no -0
    keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # integers in the order of the floats
    packed = (~keys if descending else keys).astype(np.uint64) << np.uint64(32)
    packed |= np.arange(packed.size, dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)


def rank_normalise(values: np.ndarray) -> np.ndarray:
    """A map (H, W) as ranks of its pixels from 0 to 1, float32; pixels that tie share their mean rank, and a constant
    map is .5 everywhere."""
    order = pixel_order(values)
    ordered = np.asarray(values, dtype=np.float32).ravel()[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    lengths = np.diff(starts, append=len(ordered))
    ranks = np.empty(len(ordered), dtype=np.float32)
    ranks[order] = np.repeat((starts + (lengths - 1) / 2) / max(len(ordered) - 1, 1), lengths)
    return ranks.reshape(values.shape)


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
