"""How bright a scan is: what a model could read the device or the exposure from, and whether it is inverted."""

import cv2
import numpy as np

from dino_oct.data.tissue import CoarseLevels, coarse_levels, quantiles_of_sorted

FEATURES = ("mean", "std", "p1", "p25", "median", "p75", "p99", "noise", "level")  # as brightness_features returns them
INVERTED = "seems inverted (bright background, dark retina): a model of other scans cannot read that, so check it"
_LEVEL = 0.5  # of 684 scans of five sources none reached .43, and all but one of their negatives exceed it


def brightness_features(scan: np.ndarray, borders: np.ndarray, levels: CoarseLevels | None = None) -> np.ndarray:
    """Summary of a scan's grey values outside white borders: see ``FEATURES``.

    Args:
        scan: (H, W) uint8.
        borders: (H, W) bool from ``find_borders``.
        levels: of ``coarse_levels``, where they are already known.

    Returns:
        (9,) float32: mean, standard deviation and percentiles in grey levels; noise, mean absolute second difference of
        neighbouring pixels in grey levels; level, where the mean of the smoothed scan lies between its 2nd and 98th
        percentile (0 to 1): the background covers most of a scan, so this is low.
    """
    measured = None if borders.all() or not borders.any() else (~borders).view(np.uint8)
    steps = cv2.subtract(scan[:, 1:], scan[:, :-1], dtype=cv2.CV_16S)
    inside = None if measured is None else cv2.erode(measured, np.ones((2, 2), dtype=np.uint8), anchor=(1, 1))[1:, 1:]
    noise = cv2.mean(cv2.absdiff(steps[1:], steps[:-1]), inside)[0] / 2  # 0 where nothing is inside
    known = (levels or coarse_levels(scan, borders)).known
    low, high = quantiles_of_sorted(known, (0.02, 0.98)) if len(known) else (0, 0)
    position = (known.mean() - low) / (high - low) if high > low else 0.0
    counts = cv2.calcHist([scan], [0], measured, [256], [0, 256]).ravel().astype(np.float64)
    total, greys = counts.sum(), np.arange(256)
    mean = counts @ greys / total
    std = np.sqrt(counts @ (greys - mean) ** 2 / total)
    return np.array([mean, std, *_percentiles(counts, (1, 25, 50, 75, 99)), noise, position], dtype=np.float32)


def _percentiles(counts: np.ndarray, percents: tuple[int, ...]) -> np.ndarray:
    """Percentiles of whole numbers from 0 on, given how often each occurs; between two of them linearly."""
    rank = np.array(percents) / 100 * (counts.sum() - 1)
    below, above = (counts.cumsum().searchsorted(place, side="right") for place in (np.floor(rank), np.ceil(rank)))
    return below + (above - below) * (rank % 1)


def are_inverted(features: np.ndarray) -> np.ndarray:
    """Which scans have a bright background and a dark retina, (N,) bool of ``brightness_features`` (N, 9)."""
    return features[:, FEATURES.index("level")] > _LEVEL
