"""Which parts of a scan a classifier's logits rest on, by hiding one window after the other (Zeiler & Fergus 2014)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, product

import numpy as np
import torch
from torch import Tensor

from dino_oct.errors import InputError
from evaluation.config import Fill


@dataclass(frozen=True)
class Occlusion:
    """One sweep of windows over one image, for all classes.

    Attributes:
        windows: (M, 4) top, left, height, width in pixels.
        hidden: (M, K) logits with each window hidden; drops: D (M, K), by how much hiding it lowers each logit.
        maps: (K, H, W) float32, mean of D over the windows that cover a pixel.
    """

    windows: np.ndarray
    hidden: np.ndarray
    drops: np.ndarray
    maps: np.ndarray

    def best_window(self, target: int) -> int:
        """The window of least D: hiding it speaks most for the class."""
        return int(self.drops[:, target].argmin())

    def best_union(self, target: int, share: float = 0.5) -> np.ndarray:
        """Windows (M,) bool with D at most ``share`` of the least, itself below 0; none where no D is."""
        drops = self.drops[:, target]
        return drops <= min(share * drops[self.best_window(target)], -1e-12)


def occlude(
    forward: Callable[[Tensor], Tensor],
    grey: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    fill: Fill = "neighbours",
    *,
    batch_size: int = 64,
) -> Occlusion:
    """Hide every window once.

    A pixel's value is the mean of D over the windows that cover it, D = logit of the image − logit with the window
    hidden (captum's convention).

    Args:
        forward: from grey images (B, 1, H, W) in [0, 1] to logits (B, K); normalisation is its part.
        grey: (1, H, W), uint8 or in [0, 1].
        window, stride: rows and columns in pixels; the last window of a row or column shifts in.
        fill: as ``Hider``.

    Raises:
        InputError: a window that does not fit, or a stride that leaves gaps.
    """
    size = tuple(grey.shape[-2:])
    grey = grey.float() / 255 if grey.dtype == torch.uint8 else grey.float()
    windows = windows_of(size, window, stride)
    hider = Hider(grey, window, fill)
    with torch.inference_mode():
        parts = np.split(windows, range(batch_size, len(windows), batch_size))
        batches = (hider(masks_of(part, size)) for part in parts)
        logits, *hidden = (forward(images).double().cpu().numpy() for images in chain([grey[None]], batches))
    hidden = np.concatenate(hidden)
    drops = logits - hidden
    return Occlusion(windows, hidden, drops, pixel_means(windows, drops, size).astype(np.float32))


def windows_of(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Windows (M, 4) that cover an image, row by row: top, left, height, width; raises as ``occlude``."""
    starts = []
    for side, length, step in zip(size, window, stride, strict=True):
        if not 1 <= length <= side:
            raise InputError(f"window {window[0]} {window[1]}: must be from 1 px to the image's {size[0]} {size[1]}")
        if not 1 <= step <= length:
            raise InputError(f"stride {stride[0]} {stride[1]}: must be from 1 px to the window, or pixels are missed")
        starts.append(sorted({*range(0, side - length + 1, step), side - length}))
    return np.array([(row, column, *window) for row, column in product(*starts)])


def masks_of(windows: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Windows (M, 4) as masks (M, 1, H, W) bool."""
    top, left, height, width = torch.from_numpy(windows).T[..., None, None, None]
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


class Hider:
    """Fills parts of one grey image, before it is normalised.

    ``black``: 0. ``mean``: the image's mean. ``blur``: the image blurred by half a window (Gaussian). ``neighbours``:
    each row goes on from the pixels beside the mask, weighted by a Gaussian of half a window's width; retinal layers
    run along rows, so they stay, and a lesion goes. Speckle is averaged out by the last three.

    Args:
        image: (1, H, W) in [0, 1].
        window: rows and columns in pixels.
    """

    def __init__(self, image: Tensor, window: tuple[int, int], fill: Fill):
        self.image, self.fill = image, fill
        vertical, self._along = (
            _gaussian(side, length / 2) for side, length in zip(image.shape[-2:], window, strict=True)
        )
        if fill == "black":
            self._filled = torch.zeros_like(image)
        elif fill == "blur":
            self._filled = (vertical / vertical.sum(1, keepdim=True)) @ image @ (self._along / self._along.sum(0))
        else:
            self._filled = torch.full_like(image, float(image.mean()))

    def __call__(self, masks: Tensor) -> Tensor:
        """The image with each of the masks (B, 1, H, W) hidden, (B, 1, H, W)."""
        filled = self._filled
        if self.fill == "neighbours":
            kept = (~masks).float()
            weight = kept @ self._along
            # A row without any pixel left gets the image's mean.
            filled = torch.where(weight > 0, (kept * self.image) @ self._along / weight.clamp_min(1e-30), filled)
        return torch.where(masks, filled, self.image)


def pixel_means(windows: np.ndarray, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """For each pixel the mean of the values (M, K) of the windows over it: (K, H, W) float64."""
    sums, counts = np.zeros((values.shape[1], *size)), np.zeros(size)
    for (top, left, height, width), value in zip(windows, values, strict=True):
        window = slice(top, top + height), slice(left, left + width)
        sums[(slice(None), *window)] += value[:, None, None]
        counts[window] += 1
    return sums / np.maximum(counts, 1)


def _gaussian(n: int, sigma: float) -> Tensor:
    """(n, n) weights of each pixel for each other one."""
    place = torch.arange(n, dtype=torch.float32)
    return (-((place[:, None] - place) ** 2) / (2 * sigma**2)).exp()
