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
from sklearn.metrics import average_precision_score

from dino_oct.data.tissue import otsu
from dino_oct.streams import generator
from evaluation.config import SCORES
from evaluation.scores.attention import mass_mask

MASS = 0.6
FILLS = ("mean", "blur")
_BLUR = 0.05  # standard deviation of the blurred fill, as a share of the shorter side


def score_map(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """All of ``SCORES`` of a map (H, W) against a mask (H, W) bool: (7,) float64.

    - pointing: pointing game (Zhang et al. 2016), the share of the map's highest pixels that lie in the mask;
    - energy: share of the map's sum in the mask (energy-based pointing game, Wang et al. 2020); enrichment: energy over
      the mask's share of the pixels, 1 for a uniform map;
    - rank_accuracy: share of the |M| highest pixels that lie in the mask (Arras et al. 2022); pixels that tie at the
      limit count by the share of them that is taken;
    - auprc: average precision of the pixels; the mask's share of the pixels for a map that says nothing;
    - iou_otsu, iou_mass: overlap of the mask with the map above Otsu's threshold, and with the fewest pixels that hold
      60 % of its sum.

    Raises:
        ValueError: sizes that differ, or a negative or not finite value.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != mask.shape:
        raise ValueError(f"a map of {values.shape} and a mask of {mask.shape}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("map values must be finite and not negative")
    total = values.sum()
    if not mask.any():
        return np.full(len(SCORES), np.nan)
    if not total > 0:
        return np.zeros(len(SCORES))
    energy = values[mask].sum() / total
    return np.array(
        [
            mask[values == values.max()].mean(),
            energy,
            energy / mask.mean(),
            rank_accuracy(values, mask),
            average_precision_score(mask.ravel(), values.ravel()),
            iou(values > otsu(values), mask),
            iou(mass_mask(values[None], MASS)[0], mask),
        ]
    )


def rank_accuracy(values: np.ndarray, mask: np.ndarray) -> float:
    """Share of the |M| highest pixels inside the mask, ties at the limit by their expected share."""
    count = int(mask.sum())
    limit = np.partition(values.ravel(), values.size - count)[values.size - count]
    above, tied = values > limit, values == limit
    expected = (count - above.sum()) * mask[tied].mean()
    return float((mask[above].sum() + expected) / count)


def iou(predicted: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    union = (predicted | mask).sum()
    return float((predicted & mask).sum() / union) if union else 0.0


THRESHOLDS = np.linspace(0, 1, 51)[:-1]  # shares of a map's maximum that a threshold is chosen from


def iou_curve(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``iou_at`` of each of ``THRESHOLDS``, (T,), from one sort of the map."""
    if not mask.any():
        return np.full(len(THRESHOLDS), np.nan)
    if not values.max() > 0:
        return np.zeros(len(THRESHOLDS))
    limits = THRESHOLDS * values.max()
    above, inside = (
        len(part) - np.searchsorted(np.sort(part), limits, side="right") for part in (values.ravel(), values[mask])
    )
    return inside / (mask.sum() + above - inside)


def tune_threshold(curves: np.ndarray) -> float:
    """The threshold, as a share of a map's maximum, of highest mean IoU over validation scans.

    Args:
        curves: (N, T) from ``iou_curve``; NaN rows (no lesion) are left out, ValueError where nothing is left.
    """
    known = curves[np.isfinite(curves).all(axis=1)]
    if not len(known):
        raise ValueError("no map with a lesion to tune a threshold on")
    return float(THRESHOLDS[known.mean(axis=0).argmax()])


def iou_at(values: np.ndarray, mask: np.ndarray, share: float) -> float:
    """IoU of the mask with the map above ``share`` of its maximum, 0 for a map of zeros; NaN for an empty mask."""
    if not mask.any():
        return np.nan
    return iou(values > share * values.max(), mask)


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
