"""Values that change during training, one per iteration or epoch (DINO, Caron et al. 2021, section 3)."""

import numpy as np


def cosine(start: float, end: float, steps: int) -> np.ndarray:
    """Half a cosine: ``end + (start - end) / 2 * (1 + cos(pi * i / steps))`` for i = 0 … steps - 1."""
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * np.arange(steps) / max(steps, 1)))


def warmup_cosine(base: float, end: float, steps: int, warmup_steps: int = 0) -> np.ndarray:
    """A line from 0 to ``base``, both included, over ``warmup_steps``, then a cosine from ``base`` to ``end``.

    Returns:
        (steps,) float64. A warm-up longer than the training is cut off at ``steps``.
    """
    warmup = np.linspace(0, base, warmup_steps)
    return np.concatenate([warmup, cosine(base, end, max(steps - warmup_steps, 0))])[:steps]


def linear_then_constant(start: float, end: float, warmup: int, length: int) -> np.ndarray:
    """A line from ``start`` to ``end``, both included, over ``warmup`` entries, then ``end`` (teacher temperature)."""
    return np.concatenate([np.linspace(start, end, warmup), np.full(max(length - warmup, 0), end)])[:length]
