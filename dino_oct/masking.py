"""Which patches of the global views the student does not see: block masks of iBOT (Zhou et al. 2022, section 3.2)."""

import math
from collections.abc import Sequence

import numpy as np

from dino_oct.streams import seed_of

_LEAST_BLOCK = 4  # patches
_ASPECT = 0.3  # of the flattest block; its inverse of the tallest
_ATTEMPTS = 10  # to place one block


def block_masks(
    grid: tuple[int, int],
    samples: Sequence[int],
    epoch: int,
    seed: int,
    share: float,
    ratio: tuple[float, float],
    views: int = 2,
) -> np.ndarray:
    """Masks of random blocks, keyed by (seed, epoch, sample) as the views are.

    Args:
        grid: rows and columns of patches of a view.
        samples: numbers of the scans in the data set; epoch: 0 or more.
        share: of the views that are masked at all.
        ratio: range of the share of patches that a mask hides, uniform.

    Returns:
        (views, B, rows, columns) bool; True: hidden.
    """
    masks = np.zeros((views, len(samples), *grid), dtype=bool)
    for column, sample in enumerate(samples):
        for view in range(views):
            random = np.random.Generator(np.random.Philox(key=seed_of("masks", seed, epoch, sample, view)))
            if random.random() < share:
                count = round(random.uniform(*ratio) * grid[0] * grid[1])
                masks[view, column] = _blocks(grid, count, random)
    return masks


def _blocks(grid: tuple[int, int], count: int, random: np.random.Generator) -> np.ndarray:
    """Exactly ``count`` patches of random rectangles that may overlap (Bao et al. 2021, BEiT, algorithm 1)."""
    mask = np.zeros(grid, dtype=bool)
    while (wanted := count - int(mask.sum())) > 0:
        for _ in range(_ATTEMPTS):
            area = random.uniform(min(_LEAST_BLOCK, wanted), max(wanted, _LEAST_BLOCK))
            aspect = math.exp(random.uniform(math.log(_ASPECT), -math.log(_ASPECT)))
            sides = (math.sqrt(area * aspect), math.sqrt(area / aspect))
            rows, columns = (min(max(round(side), 1), most) for side, most in zip(sides, grid, strict=True))
            top, left = random.integers(grid[0] - rows + 1), random.integers(grid[1] - columns + 1)
            block = mask[top : top + rows, left : left + columns]
            if 0 < (~block).sum() <= wanted:
                block[:] = True
                break
        else:  # single patches fill up what no block fits
            free = np.flatnonzero(~mask)
            mask.flat[random.choice(free, size=min(wanted, len(free)), replace=False)] = True
    return mask
