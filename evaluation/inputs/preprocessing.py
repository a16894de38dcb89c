"""From a grey scan to the network's image."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from dino_oct.errors import InputError
from dino_oct.features import resize, resize_all
from evaluation.config import Protocol

_RESIZE_OVER_CROP = 256 / 224


@dataclass(frozen=True)
class Preprocessing:
    """How scans are brought to ``size`` (rows, columns).

    ``squash`` resizes rows and columns each to its size and keeps the whole retina. ``dino`` is the DINO paper's
    way with photographs (Caron et al. 2021): short side to 256/224 of the crop, then the central square; it cuts off
    both ends of wide scans, and takes a square size alone (InputError).
    """

    size: tuple[int, int]
    protocol: Protocol = "squash"

    def __post_init__(self):
        if self.protocol == "dino" and self.size[0] != self.size[1]:
            raise InputError(
                f"preprocessing dino crops a square, image-size {self.size[0]} {self.size[1]} is none; give two equal "
                "numbers, or --preprocessing squash"
            )

    def __call__(self, scans: Iterable[np.ndarray]) -> torch.Tensor:
        """Grey uint8 scans (H, W), of any sizes, to images (N, 1, rows, columns) uint8."""
        if self.protocol == "squash":
            return resize_all(scans, self.size)
        return torch.stack([self._centre(scan) for scan in scans])

    def _centre(self, scan: np.ndarray) -> torch.Tensor:
        side = self.size[0]
        scale = round(side * _RESIZE_OVER_CROP) / min(scan.shape)
        resized = resize(scan, (max(round(scan.shape[0] * scale), side), max(round(scan.shape[1] * scale), side)))
        top, left = ((length - side) // 2 for length in resized.shape[-2:])
        return resized[:, top : top + side, left : left + side]
