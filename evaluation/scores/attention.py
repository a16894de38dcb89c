"""What CLS attention maps say in numbers: patches that hold most of the mass, and spread."""

import numpy as np
from scipy.special import entr

MEASURES = ("entropy", "mass_patches", "prefix_share")


def mass_mask(attention: np.ndarray, mass: float) -> np.ndarray:
    """The smallest set of patches that holds a share of each map's mass (Caron et al. 2021, figure 3).

    Args:
        attention: (M, rows, columns) ≥ 0.
        mass: share of the attention to patches, in (0, 1].

    Returns:
        (M, rows, columns) bool. Among patches of equal attention, those first in reading order are taken.
    """
    flat = attention.reshape(len(attention), -1).astype(np.float64)
    order = np.argsort(-flat, axis=1, kind="stable")
    held = np.cumsum(np.take_along_axis(flat, order, axis=1), axis=1)
    mask = np.ones(flat.shape, dtype=bool)
    np.put_along_axis(mask, order[:, 1:], held[:, :-1] < mass * held[:, -1:], axis=1)
    return mask.reshape(attention.shape)


def spread(attention: np.ndarray, mass: float) -> np.ndarray:
    """How widely each map is spread.

    Args:
        attention: (M, rows, columns) as from ``cls_attention``: sums are 1 less the attention to CLS and registers.
        mass: of the mask, in (0, 1].

    Returns:
        (M, 3) float64, columns ``MEASURES``, all in [0, 1]: entropy of the map over the patches relative to ln N
        (1: uniform, 0: one patch); share of the patches in ``mass_mask``; share of the attention on CLS and registers.
        The entropy is NaN for a map of zeros.
    """
    flat = attention.reshape(len(attention), -1).astype(np.float64)
    total = flat.sum(axis=1)
    with np.errstate(invalid="ignore"):
        entropy = entr(flat / total[:, None]).sum(axis=1) / np.log(flat.shape[1])
    patches = mass_mask(attention, mass).mean(axis=(1, 2))
    return np.stack([entropy.clip(0, 1), patches, np.clip(1 - total, 0, 1)], axis=1)
