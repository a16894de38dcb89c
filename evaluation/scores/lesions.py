"""How much of a map lies on the lesion relative to the retina, maps that need no network, and shares of layers."""

import zlib

import numpy as np

from dino_oct.features import resize
from dino_oct.streams import generator

CONTROLS = ("random", "centre", "retina band", "brightness", "the mask itself")
SIMPLE = CONTROLS[:4]  # what a map must exceed before anything is said about a network


def lesion_over_retina(values: np.ndarray, lesion: np.ndarray, retina: np.ndarray) -> float:
    """Density of a map on the lesion over its density on the whole retina.

    Above 1, the map prefers the lesion to the rest of the retina; a map that only finds the retina stays at 1, however
    much of it lies on the lesion.

    Args:
        values: (H, W), not negative.
        lesion, retina: (H, W) bool, the retina includes the lesion.

    Returns:
        0 or more; 0 for a map with nothing on the retina, which misses the lesion; NaN only where there is no lesion.
    """
    values = values.astype(np.float64)
    on_lesion, on_retina = values[lesion].sum(), values[retina].sum()
    if not lesion.any():
        return np.nan
    if on_retina <= 0:
        return 0.0
    # From the sums, not from two densities: 1 for a map uniform on the retina, to the last bit.
    return float((on_lesion * retina.sum()) / (on_retina * lesion.sum()))


def with_mean(attention: np.ndarray) -> np.ndarray:
    """Heads (H, rows, columns), and behind them their mean: (H + 1, rows, columns)."""
    return np.concatenate([attention, attention.mean(axis=0, keepdims=True)])


def control_maps(scan: np.ndarray, lesion: np.ndarray, retina: np.ndarray) -> np.ndarray:
    """Maps that need no network, (5, H, W) float64 in the order of ``CONTROLS``, at the size of the masks.

    random: independent numbers, keyed by the scan; centre: a Gaussian in the middle, standard deviation a
    quarter of each side; brightness: the scan itself.
    """
    height, width = lesion.shape
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    centre = np.exp(-0.5 * ((y[:, None] / 0.25) ** 2 + (x[None] / 0.25) ** 2))
    brightness = resize(scan, (height, width))[0].numpy()
    random = generator("random map", zlib.crc32(np.ascontiguousarray(scan))).random((height, width))
    return np.stack([random, centre, retina, brightness, lesion]).astype(np.float64)


def layer_densities(values: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    """Density of a map in each band between two layer boundaries, over its density between the first and the last.

    Args:
        values: (H, W), not negative.
        boundaries: (L, W) rows in pixels, from the inside of the eye outwards; a pixel belongs to the band in which its
            centre lies.

    Returns:
        (L − 1,) float64, 1 for a map uniform on the retina, 0 for one with nothing on it; NaN only for a band without
        pixels, which no map can have anything on.
    """
    centres = np.arange(values.shape[0])[:, None] + 0.5
    inside = (centres >= boundaries[:-1, None]) & (centres < boundaries[1:, None])  # (L − 1, H, W)
    sums, counts = (inside * values).sum(axis=(1, 2)), inside.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return (sums / counts) / (sums.sum() / counts.sum() or 1.0)
