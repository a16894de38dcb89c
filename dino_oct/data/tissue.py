"""Where the tissue is in a scan: retina and choroid against vitreous, shadow and border."""

import itertools

import numpy as np
from scipy import ndimage

GRID = 16  # cells per side of a tissue map

_COARSE_HEIGHT = 124  # rows at which tissue is told from background; speckle averages out on the way there
_SMOOTHING = 0.012  # of the scan's height, after that: wider than speckle, narrower than the retina
_CONTRAST = 0.25  # of the way from the background's level to the bright layers' level: tissue starts here …
_BRIGHT = 0.6  # … and every connected piece of it must reach this; haze and noise of the vitreous do not
_GAP = 0.1  # of the height: dark stretches of an A-scan up to this, between tissue above and below, are tissue


def tissue_mask(scan: np.ndarray, borders: np.ndarray | None = None) -> np.ndarray:
    """Retina and choroid: what is brighter than the background once speckle is smoothed out, gaps included.

    The levels are the scan's own, outside the borders: background lies midway between the tenth percentile and the
    median of the pixels below Otsu's threshold, the bright layers at the 97th percentile. Tissue is what lies above a
    quarter of the way between the two and hangs together with pixels above 60 % of the way; dark layers, cysts and
    fluid within it are filled.

    Args:
        scan: (H, W) uint8.
        borders: (H, W) bool, left out of both the levels and the result.

    Returns:
        (H, W) bool.
    """
    coarse, factor = _coarse_tissue(scan, borders)
    mask = coarse.repeat(factor, axis=0).repeat(factor, axis=1)[: scan.shape[0], : scan.shape[1]]
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


def coarse_levels(scan: np.ndarray, borders: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Grey levels of a scan at reduced resolution without its speckle, where they are known, and the reduction.

    Args:
        scan: (H, W) uint8.
        borders: (H, W) bool, without weight in the levels.

    Returns:
        (h, w) float32, 0 where unknown; (h, w) bool; and the factor, about H / h.
    """
    factor = max(1, round(scan.shape[0] / _COARSE_HEIGHT))
    weight = np.ones(scan.shape, dtype=np.uint8) if borders is None else (~borders).view(np.uint8)
    sigma = _SMOOTHING * scan.shape[0] / factor
    # Normalised averages: a border has no weight, so its white does not bleed into the tissue beside it.
    values = ndimage.gaussian_filter(_block_means(scan * weight, factor), sigma, truncate=3)
    weights = ndimage.gaussian_filter(_block_means(weight, factor), sigma, truncate=3)
    measured = weights > 0.25
    return np.where(measured, values / np.maximum(weights, 1e-6), 0), measured, factor


def _coarse_tissue(scan: np.ndarray, borders: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Tissue at reduced resolution, and the factor of the reduction."""
    level, measured, factor = coarse_levels(scan, borders)
    if not measured.any():
        return np.zeros(level.shape, dtype=bool), factor
    levels = level[measured]
    # The lowest tenth alone would take bright speckle of the vitreous for tissue in noisy scans, the median alone
    # would count the fading choroid as background.
    dark = (np.median(levels[levels <= otsu(levels)]) + np.quantile(levels, 0.1)) / 2
    bright = np.quantile(levels, 0.97)
    pieces, count = ndimage.label((level > dark + _CONTRAST * (bright - dark)) & measured)
    reaches = np.zeros(count + 1, dtype=bool)
    reaches[pieces[(level > dark + _BRIGHT * (bright - dark)) & measured]] = True
    reaches[0] = False
    return _without_gaps(reaches[pieces]) & measured, factor


def _without_gaps(tissue: np.ndarray) -> np.ndarray:
    """Cysts, fluid and dark layers between bright ones belong to the retina."""
    reach = round(_GAP * len(tissue) / 2)
    window = (2 * reach + 1, 1)
    padded = np.pad(tissue, ((reach, reach), (0, 0)))  # else closing would reach in from the edges
    closed = box_filter(box_filter(padded, window, np.logical_or), window, np.logical_and)
    return ndimage.binary_fill_holes(closed[reach : len(padded) - reach])


def box_filter(mask: np.ndarray, window: tuple[int, int], combine: np.ufunc) -> np.ndarray:
    """Dilation (``np.logical_or``) or erosion (``np.logical_and``) of a mask (H, W) by a box of odd sides.

    What lies beyond the mask's edges has no say. Windows grow by doubling: log₂ of their side passes over the mask.
    """
    for axis, side in enumerate(window):
        shape, inside = list(mask.shape), [slice(None), slice(None)]
        shape[axis] += side - 1
        inside[axis] = slice(side // 2, shape[axis] - side // 2)
        padded = np.full(shape, combine is np.logical_and)
        padded[tuple(inside)] = mask
        mask = padded
        reach = 1
        while reach < side:
            step = min(reach, side - reach)
            n = mask.shape[axis] - step
            mask = combine(mask[:n], mask[step:]) if axis == 0 else combine(mask[:, :n], mask[:, step:])
            reach += step
    return mask


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


def _block_means(values: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor x factor blocks of an 8-bit image (H, W), float32; those at the right and bottom edge may be
    smaller."""
    counts = []
    for axis, side in enumerate(values.shape):
        if side % factor:
            padding = [(0, 0), (0, 0)]
            padding[axis] = (0, -side % factor)
            values = np.pad(values, padding)
        parts = [values[i::factor] if axis == 0 else values[:, i::factor] for i in range(factor)]
        values = parts[0].astype(np.int32)
        for part in parts[1:]:
            values += part
        counts.append(np.minimum(factor, side - np.arange(0, side, factor)))
    return (values * (1 / np.outer(*counts))).astype(np.float32)
