"""How bright a scan is: what a model could read the device or the exposure from, and whether it is inverted."""

import numpy as np

from dino_oct.data.tissue import coarse_levels

FEATURES = ("mean", "std", "p1", "p25", "median", "p75", "p99", "noise", "level")  # as brightness_features returns them
INVERTED = "seems inverted (bright background, dark retina): a model of other scans cannot read that, so check it"
_LEVEL = 0.5  # of 684 scans of five sources none reached .43, and all but one of their negatives exceed it


def brightness_features(scan: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Summary of a scan's grey values outside white borders: see ``FEATURES``.

    Args:
        scan: (H, W) uint8.
        borders: (H, W) bool from ``find_borders``.

    Returns:
        (9,) float32: mean, standard deviation and percentiles in grey levels; noise, mean absolute second difference of
        neighbouring pixels in grey levels; level, where the mean of the smoothed scan lies between its 2nd and 98th
        percentile (0 to 1): the background covers most of a scan, so this is low.
    """
    measured = ~borders if not borders.all() else np.ones_like(borders)
    values = scan[measured]
    grey = scan.astype(np.int16)
    second = np.abs(grey[1:, 1:] - grey[1:, :-1] - grey[:-1, 1:] + grey[:-1, :-1])
    inside = measured[1:, 1:] & measured[1:, :-1] & measured[:-1, 1:] & measured[:-1, :-1]
    noise = second[inside].mean() / 2 if inside.any() else 0.0
    level, known, _ = coarse_levels(scan, borders)
    low, high = np.quantile(level[known], [0.02, 0.98]) if known.any() else (0, 0)
    position = (level[known].mean() - low) / (high - low) if high > low else 0.0
    percentiles = np.percentile(values, [1, 25, 50, 75, 99])
    return np.array([values.mean(), values.std(), *percentiles, noise, position], dtype=np.float32)


def are_inverted(features: np.ndarray) -> np.ndarray:
    """Which scans have a bright background and a dark retina, (N,) bool of ``brightness_features`` (N, 9)."""
    return features[:, FEATURES.index("level")] > _LEVEL
