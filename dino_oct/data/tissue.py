"""Where the tissue is in a scan: retina and choroid against vitreous, shadow and border."""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from dino_oct.data.morphology import box_filter, filled, pieces

GRID = 16  # cells per side of a tissue map

_COARSE_HEIGHT = 124  # rows at which tissue is told from background; speckle averages out on the way there
_SMOOTHING = 0.012  # of the scan's height, after that: wider than speckle, narrower than the retina
_CONTRAST = 0.25  # of the way from the background's level to the bright layers' level: tissue starts here …
_BRIGHT = 0.6  # … and every connected piece of it must reach this; haze and noise of the vitreous do not
_GAP = 0.1  # of the height: dark stretches of an A-scan up to this, between tissue above and below, are tissue


class CoarseLevels(NamedTuple):
    """Grey levels of a scan at reduced resolution, without its speckle."""

    level: np.ndarray
    """(h, w) float32, 0 where unknown."""
    measured: np.ndarray
    """(h, w) bool: where it is known."""
    factor: int
    """Of the reduction: about H / h."""
    known: np.ndarray
    """(n,) float32: the levels where they are known, in ascending order."""


def tissue_mask(scan: np.ndarray, borders: np.ndarray | None = None, levels: CoarseLevels | None = None) -> np.ndarray:
    """Retina and choroid: what is brighter than the background once speckle is smoothed out, gaps included.

    The levels are the scan's own, outside the borders: background lies midway between the tenth percentile and the
    median of the pixels below Otsu's threshold, the bright layers at the 97th percentile. Tissue is what lies above a
    quarter of the way between the two and hangs together with pixels above 60 % of the way; dark layers, cysts and
    fluid within it are filled.

    Args:
        scan: (H, W) uint8.
        borders: (H, W) bool, left out of both the levels and the result.
        levels: of ``coarse_levels``, where they are already known.

    Returns:
        (H, W) bool.
    """
    levels = levels or coarse_levels(scan, borders)
    coarse, by = _coarse_tissue(levels).view(np.uint8), levels.factor
    # (Plain INTER_NEAREST errs where the factor is 49, of scans of 6,000 rows.)
    blocks = cv2.resize(coarse, None, fx=by, fy=by, interpolation=cv2.INTER_NEAREST_EXACT).view(bool)
    mask = blocks[: scan.shape[0], : scan.shape[1]]
    return mask if borders is None else mask & ~borders


def tissue_map(mask: np.ndarray) -> np.ndarray:
    """Fraction of tissue pixels in each cell of a 16 x 16 grid over a scan.

    Args:
        mask: (H, W) bool from ``tissue_mask``, both sides at least 16.

    Returns:
        (16, 16) float32 in [0, 1].
    """
    rows, columns = (np.arange(GRID + 1) * side // GRID for side in mask.shape)
    above_left = cv2.integral(mask.view(np.uint8))[rows[:, None], columns]
    counts = np.diff(np.diff(above_left, axis=0), axis=1)
    return (counts / np.outer(np.diff(rows), np.diff(columns))).astype(np.float32)


def coarse_levels(scan: np.ndarray, borders: np.ndarray | None) -> CoarseLevels:
    """Smoothed grey levels of a scan.

    Args:
        scan: (H, W) uint8.
        borders: (H, W) bool, without weight in the levels.
    """
    factor = max(1, round(scan.shape[0] / _COARSE_HEIGHT))
    # Normalised averages: a border has no weight, so its white does not bleed into the tissue beside it.
    if borders is None or not borders.any():
        values, weights = _smoothed_means(scan, factor), _weights_of_all(scan.shape, factor)
    else:
        weight = (~borders).view(np.uint8)
        values, weights = _smoothed_means(scan * weight, factor), _smoothed_means(weight, factor)
    measured = weights > 0.25
    level = np.where(measured, values / np.maximum(weights, 1e-6), 0)
    return CoarseLevels(level, measured, factor, np.sort(level[measured]))


def _coarse_tissue(coarse: CoarseLevels) -> np.ndarray:
    """Tissue at reduced resolution, (h, w) bool."""
    level, measured, _, known = coarse
    if not len(known):
        return measured
    # The lowest tenth alone would take bright speckle of the vitreous for tissue in noisy scans, the median alone
    # would count the fading choroid as background.
    below = known[: known.searchsorted(otsu(known, ascending=True), side="right")]
    low, bright = quantiles_of_sorted(known, (0.1, 0.97))
    dark = (below[(len(below) - 1) // 2 : len(below) // 2 + 1].mean() + low) / 2  # its median and that
    labels = pieces((level > dark + _CONTRAST * (bright - dark)) & measured)
    reaches = np.zeros(labels.max() + 1, dtype=bool)
    reaches[labels[(level > dark + _BRIGHT * (bright - dark)) & measured]] = True
    reaches[0] = False
    return _without_gaps(reaches[labels]) & measured


def _without_gaps(tissue: np.ndarray) -> np.ndarray:
    """Cysts, fluid and dark layers between bright ones belong to the retina."""
    reach = round(_GAP * len(tissue) / 2)
    window = (2 * reach + 1, 1)
    # Else closing would reach in from the edges.
    padded = cv2.copyMakeBorder(tissue.view(np.uint8), reach, reach, 0, 0, cv2.BORDER_CONSTANT, value=0).view(bool)
    closed = box_filter(box_filter(padded, window, np.logical_or), window, np.logical_and)
    return filled(closed[reach : len(padded) - reach])


def otsu(values: np.ndarray, bins: int = 256, ascending: bool = False) -> float:
    """The threshold of greatest variance between the values above it and the others (Otsu 1979), an edge of ``bins``
    equal bins; the value itself where all are the same.

    Args:
        values: finite, of any shape.
        ascending: they are (n,) in ascending order, and so quickly counted.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return high
    if ascending:
        edges = np.linspace(low, high, bins + 1, dtype=values.dtype)
        counts = np.diff(values.searchsorted(edges[:-1]), append=len(values))
    else:
        counts, edges = np.histogram(values, bins=bins, range=(low, high))
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * (edges[:-1] + edges[1:]) / 2).cumsum()
    between = (sums * below[-1] - sums[-1] * below) ** 2 / np.maximum(below * above, 1)
    return float(edges[1:][between[:-1].argmax()])


def quantiles_of_sorted(values: np.ndarray, shares: ArrayLike) -> np.ndarray:
    """What ``np.quantile`` gives for several shares, without searching: the values (n,) are in ascending order."""
    place = np.asarray(shares) * (len(values) - 1)
    low, high = values[np.floor(place).astype(int)], values[np.ceil(place).astype(int)]
    part, step = place % 1, high - low
    return np.where(part < 0.5, low + step * part, high - step * (1 - part))


def _smoothed_means(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor x factor blocks of an 8-bit image (H, W), float32, smoothed by a Gaussian of three sigma.

    Blocks at the right and bottom edge may be smaller. Beyond the edges the means are mirrored.
    """
    below, right = (-side % factor for side in image.shape)
    whole = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0)
    sums = np.diff(np.diff(cv2.integral(whole)[::factor, ::factor], axis=0), axis=1)
    means = (sums * _shares(image.shape, factor)).astype(np.float32)
    sigma = _SMOOTHING * image.shape[0] / factor
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return cv2.sepFilter2D(means, -1, kernel / kernel.sum(), kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


@functools.lru_cache(maxsize=8)  # scans of a folder have few sizes
def _shares(shape: tuple[int, int], factor: int) -> np.ndarray:
    """One over the pixels of each block."""
    rows, columns = (np.diff(np.append(np.arange(0, side, factor), side)) for side in shape)
    return 1 / np.outer(rows, columns)


@functools.lru_cache(maxsize=8)
def _weights_of_all(shape: tuple[int, int], factor: int) -> np.ndarray:
    """``_smoothed_means`` of a weight of one everywhere: one, but for rounding."""
    weights = _smoothed_means(np.ones(shape, dtype=np.uint8), factor)
    weights.flags.writeable = False
    return weights
