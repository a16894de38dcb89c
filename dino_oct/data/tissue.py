"""Where the tissue is in a scan: retina and choroid against vitreous, shadow and border."""

import itertools
from typing import NamedTuple

import cv2
import numpy as np

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
    factor = levels.factor
    mask = _coarse_tissue(levels).repeat(factor, axis=0).repeat(factor, axis=1)[: scan.shape[0], : scan.shape[1]]
    return mask if borders is None else mask & ~borders


def tissue_map(mask: np.ndarray) -> np.ndarray:
    """Fraction of tissue pixels in each cell of a 16 x 16 grid over a scan.

    Args:
        mask: (H, W) bool from ``tissue_mask``, both sides at least 16.

    Returns:
        (16, 16) float32 in [0, 1].
    """
    rows, columns = (np.arange(GRID + 1) * side // GRID for side in mask.shape)
    bands = [mask[top:bottom].sum(axis=0, dtype=np.uint16) for top, bottom in itertools.pairwise(rows)]
    counts = np.add.reduceat(np.stack(bands), columns[:-1], axis=1, dtype=np.int64)
    return (counts / np.outer(np.diff(rows), np.diff(columns))).astype(np.float32)


def coarse_levels(scan: np.ndarray, borders: np.ndarray | None) -> CoarseLevels:
    """Smoothed grey levels of a scan.

    Args:
        scan: (H, W) uint8.
        borders: (H, W) bool, without weight in the levels.
    """
    factor = max(1, round(scan.shape[0] / _COARSE_HEIGHT))
    weight = np.ones(scan.shape, dtype=np.uint8) if borders is None else (~borders).view(np.uint8)
    sigma = _SMOOTHING * scan.shape[0] / factor
    # Normalised averages: a border has no weight, so its white does not bleed into the tissue beside it.
    values = _smoothed(_block_means(scan * weight, factor), sigma)
    weights = _smoothed(_block_means(weight, factor), sigma)
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
    below = known[: known.searchsorted(otsu(known), side="right")]
    low, bright = np.quantile(known, [0.1, 0.97])
    dark = (np.median(below) + low) / 2
    labels = pieces((level > dark + _CONTRAST * (bright - dark)) & measured)
    reaches = np.zeros(labels.max() + 1, dtype=bool)
    reaches[labels[(level > dark + _BRIGHT * (bright - dark)) & measured]] = True
    reaches[0] = False
    return _without_gaps(reaches[labels]) & measured


def _without_gaps(tissue: np.ndarray) -> np.ndarray:
    """Cysts, fluid and dark layers between bright ones belong to the retina."""
    reach = round(_GAP * len(tissue) / 2)
    window = (2 * reach + 1, 1)
    padded = np.pad(tissue, ((reach, reach), (0, 0)))  # else closing would reach in from the edges
    closed = box_filter(box_filter(padded, window, np.logical_or), window, np.logical_and)
    return filled(closed[reach : len(padded) - reach])


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """The threshold of greatest variance between the values above it and the others (Otsu 1979), an edge of ``bins``
    equal bins; the value itself where all are the same.

    Args:
        values: finite, of any shape.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return high
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * (edges[:-1] + edges[1:]) / 2).cumsum()
    between = (sums * below[-1] - sums[-1] * below) ** 2 / np.maximum(below * above, 1)
    return float(edges[1:][between[:-1].argmax()])


def _smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of three sigma on each side; the values are mirrored at the edges."""
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return cv2.sepFilter2D(values, -1, kernel / kernel.sum(), kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _block_means(values: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor x factor blocks of an 8-bit image (H, W), float32; those at the right and bottom edge may be
    smaller."""
    rows, columns = (np.append(np.arange(0, side, factor), side) for side in values.shape)
    sums = np.diff(np.diff(cv2.integral(values)[np.ix_(rows, columns)], axis=0), axis=1)
    return (sums * (1 / np.outer(np.diff(rows), np.diff(columns)))).astype(np.float32)
