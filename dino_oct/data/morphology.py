"""Operations on binary masks, by OpenCV."""

import cv2
import numpy as np

cv2.setNumThreads(1)  # masks of a scan are small, and scans are worked on side by side


def box_filter(mask: np.ndarray, window: tuple[int, int], combine: np.ufunc) -> np.ndarray:
    """Dilation (``np.logical_or``) or erosion (``np.logical_and``) of a mask (H, W) by a box of odd sides.

    What lies beyond the mask's edges has no say.
    """
    operation = cv2.dilate if combine is np.logical_or else cv2.erode
    return operation(mask.view(np.uint8), np.ones(window, dtype=np.uint8)).view(bool)


def pieces(mask: np.ndarray, diagonal: bool = False) -> np.ndarray:
    """Connected pieces of a mask (H, W), numbered from 1; int32, 0 outside them.

    Args:
        diagonal: pixels that touch at a corner hang together.
    """
    return cv2.connectedComponents(mask.view(np.uint8), connectivity=8 if diagonal else 4)[1]


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) without its holes: what its outside does not reach from the edges in steps of one pixel."""
    outside = pieces(~mask)
    reached = np.zeros(outside.max() + 1, dtype=bool)
    for rim in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        reached[rim] = True
    reached[0] = False
    return ~reached[outside]
