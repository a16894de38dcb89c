"""How well a map agrees with a lesion mask: every score that the field quotes, for one map and one mask.

A map is S ≥ 0 and a mask M of one size; enlarge the map to the mask, never the mask to the map. A map that is 0
everywhere finds nothing: it is a miss, and every score of it is 0. Scores are NaN only where the mask is empty (there
is nothing to find, so nothing is a hit or a miss), which holds for all maps of that scan alike.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter

from dino_oct.data.tissue import otsu
from dino_oct.streams import generator
from evaluation.config import SCORES
from evaluation.scores.ranks import pixel_order

MASS = 0.6
FILLS = ("mean", "blur")
_BLUR = 0.05  # standard deviation of the blurred fill, as a share of the shorter side


class RankedPixels:
    """A map (H, W) ≥ 0 and a mask (H, W) bool that holds something: pixels from the highest, and how many of the
    highest lie in the mask. One sort serves every score.

    Attributes:
        values: (H · W,) float32, descending; pixels that tie are in reading order.
        hits: (H · W,) of the first 1, 2, … pixels those in the mask.
    """

    def __init__(self, values: np.ndarray, mask: np.ndarray):
        order = pixel_order(values, descending=True)
        self.values = np.asarray(values, dtype=np.float32).ravel()[order]
        self.hits = mask.ravel()[order].cumsum()
        self.size = int(self.hits[-1])  # of the mask

    def above(self, limits: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Number of pixels above each limit, and of those in the mask."""
        rounded = np.float32(limits)
        below = np.where(rounded > limits, np.nextafter(rounded, np.float32(-np.inf)), rounded)
        count = len(self.values) - np.searchsorted(self.values[::-1], below, side="right")
        return count, np.where(count > 0, self.hits[count - 1], 0)

    def iou(self, count: np.ndarray, hits: np.ndarray) -> np.ndarray:
        """Intersection over union with ``count`` pixels, ``hits`` of them in the mask."""
        return hits / (self.size + count - hits)

    def iou_above(self, limits: np.ndarray | float) -> np.ndarray:
        """IoU of the mask with what lies above each limit."""
        return self.iou(*self.above(limits))

    def average_precision(self) -> float:
        """As scikit-learn's ``average_precision_score``."""
        ends = np.flatnonzero(np.concatenate([self.values[1:] != self.values[:-1], [True]]))
        hits = self.hits[ends]
        return float((np.diff(hits, prepend=0) * (hits / (ends + 1))).sum() / self.size)

    def rank_accuracy(self) -> float:
        """See ``score_map``."""
        limit = self.values[self.size - 1]
        above, inside = self.above(limit)
        tied = len(self.values) - np.searchsorted(self.values[::-1], limit, side="left")
        expected = (self.size - above) * (self.hits[tied - 1] - inside) / (tied - above)
        return float((inside + expected) / self.size)

    def highest(self) -> float:
        """Share of the highest pixels, all that tie, that lie in the mask."""
        tied = len(self.values) - np.searchsorted(self.values[::-1], self.values[0], side="left")
        return float(self.hits[tied - 1] / tied)

    def iou_of_mass(self, mass: float) -> float:
        """IoU with the fewest pixels that hold a share of the map's sum."""
        held = self.values.cumsum(dtype=np.float64)
        count = 1 + np.count_nonzero(held[:-1] < mass * held[-1])
        return float(self.iou(count, self.hits[count - 1]))


def score_map(
    values: np.ndarray, mask: np.ndarray, names: Sequence[str] = SCORES, ranked: RankedPixels | None = None
) -> np.ndarray:
    """Scores ``names`` of a map (H, W) against a mask (H, W) bool, float64; values count in float32.

    - pointing: pointing game (Zhang et al. 2016), the share of the map's highest pixels that lie in the mask;
    - energy: share of the map's sum in the mask (energy-based pointing game, Wang et al. 2020); enrichment: energy over
      the mask's share of the pixels, 1 for a uniform map;
    - rank_accuracy: share of the |M| highest pixels that lie in the mask (Arras et al. 2022); pixels that tie at the
      limit count by the share of them that is taken;
    - auprc: average precision of the pixels; the mask's share of the pixels for a map that says nothing;
    - iou_otsu, iou_mass: overlap of the mask with the map above Otsu's threshold, and with the fewest pixels that hold
      60 % of its sum.

    Args:
        ranked: of the same map and mask, where it is already there.

    Raises:
        ValueError: sizes that differ, or a negative or not finite value.
    """
    values = np.asarray(values, dtype=np.float32)
    if values.shape != mask.shape:
        raise ValueError(f"a map of {values.shape} and a mask of {mask.shape}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("map values must be finite and not negative")
    if not mask.any():
        return np.full(len(names), np.nan)
    if not values.any():
        return np.zeros(len(names))

    def pixels() -> RankedPixels:
        nonlocal ranked
        ranked = ranked or RankedPixels(values, mask)
        return ranked

    def energy() -> float:
        return float(values[mask].sum(dtype=np.float64) / values.sum(dtype=np.float64))

    scores: dict[str, Callable[[], float]] = {
        "pointing": lambda: pixels().highest(),
        "energy": energy,
        "enrichment": lambda: energy() / mask.mean(),
        "rank_accuracy": lambda: pixels().rank_accuracy(),
        "auprc": lambda: pixels().average_precision(),
        "iou_otsu": lambda: float(pixels().iou_above(otsu(values.astype(np.float64)))),
        "iou_mass": lambda: pixels().iou_of_mass(MASS),
    }
    return np.array([scores[name]() for name in names])


def rank_accuracy(values: np.ndarray, mask: np.ndarray) -> float:
    """Of ``score_map``, for a mask that holds something."""
    return RankedPixels(values, mask).rank_accuracy()


THRESHOLDS = np.linspace(0, 1, 51)[:-1]  # shares of a map's maximum that a threshold is chosen from


def iou_curve(values: np.ndarray, mask: np.ndarray, ranked: RankedPixels | None = None) -> np.ndarray:
    """``iou_at`` of each of ``THRESHOLDS``, (T,)."""
    return iou_at(values, mask, THRESHOLDS, ranked)


def tune_threshold(curves: np.ndarray) -> float:
    """The threshold, as a share of a map's maximum, of highest mean IoU over validation scans.

    Args:
        curves: (N, T) from ``iou_curve``; NaN rows (no lesion) are left out, ValueError where nothing is left.
    """
    known = curves[np.isfinite(curves).all(axis=1)]
    if not len(known):
        raise ValueError("no map with a lesion to tune a threshold on")
    return float(THRESHOLDS[known.mean(axis=0).argmax()])


def iou_at(
    values: np.ndarray, mask: np.ndarray, share: np.ndarray | float, ranked: RankedPixels | None = None
) -> np.ndarray:
    """IoU of the mask with the map above each ``share`` of its maximum, 0 for a map of zeros; NaN for an empty mask."""
    if not mask.any():
        return np.full(np.shape(share), np.nan)
    if not values.max() > 0:
        return np.zeros(np.shape(share))
    ranked = ranked or RankedPixels(values, mask)
    return ranked.iou_above(share * ranked.values[0])


def fill_of(scan: np.ndarray, fill: str) -> np.ndarray:
    """What hides a scan (H, W) uint8: its mean grey value, or itself blurred; float32.

    Raises:
        ValueError: a fill that is not in ``FILLS``.
    """
    if fill == "mean":
        return np.full(scan.shape, scan.mean(), dtype=np.float32)
    if fill == "blur":
        return gaussian_filter(scan.astype(np.float32), _BLUR * min(scan.shape))
    raise ValueError(f"fill {fill}: give one of {', '.join(FILLS)}")


def deletion_insertion(
    probability: Callable[[torch.Tensor], np.ndarray], scan: np.ndarray, values: np.ndarray, fill: str, steps: int = 16
) -> tuple[float, float]:
    """Deletion and insertion AUC (Petsiuk et al. 2018, RISE): what the class's probability does as pixels go and come.

    Deletion hides the map's highest pixels first (low is good); insertion shows them first on the hidden scan (high is
    good). Pixels that tie are taken in a fixed random order, so that a constant map scores like a random one.

    Args:
        probability: from grey scans (n, 1, H, W) float32 in 0 … 255 to the class's probability (n,).
        scan: (H, W) uint8; values: (H, W) the map; fill: of ``FILLS``.
        steps: equal shares of the pixels by which the curve is drawn.

    Returns:
        Areas under the two curves, 0 to 1, by the trapezoidal rule.
    """
    hidden, shown = fill_of(scan, fill), scan.astype(np.float32)
    ties = generator("order of tied pixels").random(values.size)
    rank = np.argsort(np.lexsort((ties, -values.ravel()))).reshape(values.shape)
    taken = [rank < round(values.size * i / steps) for i in range(steps + 1)]
    areas = []
    for front, back in ((hidden, shown), (shown, hidden)):
        images = np.stack([np.where(mask, front, back) for mask in taken])
        probabilities = probability(torch.from_numpy(images)[:, None])
        areas.append(float(trapezoid(probabilities, dx=1 / steps)))
    return areas[0], areas[1]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P values adjusted for their number by Holm's step-down method (1979), in the given order; at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted[np.argsort(order, kind="stable")]
