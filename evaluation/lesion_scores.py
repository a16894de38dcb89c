"""How much of a map lies on the lesion, always beside how much lies on the whole retina."""

import zlib

import numpy as np
import torch
import torch.nn.functional as F

from dino_oct.errors import InputError
from dino_oct.features import squash

MEASURES = ("energy_lesion", "energy_retina", "enrichment_lesion", "enrichment_retina", "lesion_over_retina")
RATIO = MEASURES.index("lesion_over_retina")
CONTROLS = ("uniform", "random", "centre", "retina band", "brightness", "the mask itself")


def localize(maps: np.ndarray, lesion: np.ndarray, retina: np.ndarray) -> np.ndarray:
    """Scores of maps against the masks of one scan.

    Energy is the share of the map's sum inside a mask; enrichment is energy over the mask's share of the pixels (1 for
    a uniform map); lesion over retina is the ratio of the two enrichments: the density of the map on the lesion over
    its density on the whole retina. Above 1, the map prefers the lesion to the rest of the retina; a map that only
    finds the retina stays at 1, however high its lesion enrichment.

    Args:
        maps: (M, H, W), not negative.
        lesion, retina: (H, W) bool, neither empty; the retina includes the lesion.

    Returns:
        (M, 5), columns ``MEASURES``; NaN for a map that is 0 everywhere, or (the ratio) 0 on the retina.
    """
    maps = maps.astype(np.float64)
    total, on_lesion, on_retina = (maps[:, mask].sum(axis=1) for mask in (np.ones_like(lesion), lesion, retina))
    with np.errstate(invalid="ignore", divide="ignore"):
        energy = np.stack([on_lesion / total, on_retina / total], axis=1)
        enrichment = energy / np.array([lesion.mean(), retina.mean()])
        # From the sums, not from the enrichments: 1 for a map uniform on the retina, to the last bit.
        ratio = (on_lesion * retina.sum()) / (on_retina * lesion.sum())
    return np.concatenate([energy, enrichment, ratio[:, None]], axis=1)


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Attention (M, rows, columns) to the size of a mask, each pixel from the patch that its centre lies in.

    Raises:
        InputError: the mask is smaller than the attention.
    """
    if maps.shape[1] > size[0] or maps.shape[2] > size[1]:
        raise InputError(
            f"attention of {maps.shape[1]} × {maps.shape[2]} patches is finer than the mask "
            f"({size[0]} × {size[1]} px); lower --attention-size"
        )
    return F.interpolate(torch.from_numpy(maps)[None], size=size, mode="nearest-exact")[0].numpy()


def with_mean(attention: np.ndarray) -> np.ndarray:
    """Heads (H, rows, columns), and behind them their mean: (H + 1, rows, columns)."""
    return np.concatenate([attention, attention.mean(axis=0, keepdims=True)])


def control_maps(scan: np.ndarray, lesion: np.ndarray, retina: np.ndarray) -> np.ndarray:
    """Maps that need no network, (6, H, W) in the order of ``CONTROLS``, at the size of the masks.

    random: independent numbers, keyed by the scan; centre: a Gaussian in the middle, standard deviation a
    quarter of each side; brightness: the scan itself.
    """
    height, width = lesion.shape
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    centre = np.exp(-0.5 * ((y[:, None] / 0.25) ** 2 + (x[None] / 0.25) ** 2))
    brightness = squash(scan, (height, width))[0].numpy()
    random = np.random.default_rng(zlib.crc32(np.ascontiguousarray(scan))).random((height, width))
    return np.stack([np.ones((height, width)), random, centre, retina, brightness, lesion]).astype(np.float64)
