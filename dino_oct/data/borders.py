"""White borders left by rotating or padding a scan: where they are, and how to make them inconspicuous.

In OCT2017 many scans were rotated to level the retina and the corners filled with white, more often and more widely
in some classes than in others, so a model can read the class from the border instead of the retina.
"""

import zlib

import cv2
import numpy as np
from scipy.spatial import KDTree

from dino_oct.data.morphology import box_filter, pieces
from dino_oct.data.tissue import quantiles_of_sorted, tissue_mask
from dino_oct.streams import generator

WHITE = 240  # JPEG ringing lets a white area drop to about this value at its rim
_TAPERED_WHITE = 225  # the same where a border is only a few pixels thick
_PURE_WHITE = 250  # mean of a filled area; saturated retina is speckled and stays below
_OPENING = 7  # pixels; cuts off bright retinal layers that run into a border
_MARGIN = 4  # pixels of JPEG ringing and interpolation around a border
_CORNER_CONTACT = 6  # pixels along an edge that make a white area in a corner, or a thin streak, a border
_EDGE_CONTACT = 0.1  # share of an edge that makes a white area away from the corners a border
_BLOCK = 16  # pixels; side of the background patches that fill a border
_NEAR = 12  # nearest patches to draw each from: enough that no pattern repeats, few enough to keep the local level


def find_borders(scan: np.ndarray) -> np.ndarray:
    """Find white areas that touch the edge of a scan and were filled in, not measured.

    Counted are solid, almost purely white areas that hold a corner or run along a tenth of an edge, plus a margin of
    4 pixels. Bright retina that reaches the edge is narrow and speckled, and is left alone.

    Args:
        scan: (H, W) uint8.

    Returns:
        (H, W) bool, True on borders.
    """
    borders = np.zeros(scan.shape, dtype=bool)
    rims = (scan[0], scan[-1], scan[:, 0], scan[:, -1])
    if max(np.count_nonzero(rim >= WHITE) for rim in rims) < _CORNER_CONTACT:
        return borders
    # Repeating the edge outwards keeps bars of one or two pixels through the opening.
    pad = _OPENING - 1
    white = cv2.copyMakeBorder((scan >= WHITE).view(np.uint8), pad, pad, pad, pad, cv2.BORDER_REPLICATE).view(bool)
    labels = pieces(np.ascontiguousarray(_opened(white)[pad:-pad, pad:-pad]))
    rims = (labels[0], labels[-1], labels[:, 0].copy(), labels[:, -1].copy())
    touching = np.unique(np.concatenate(rims))
    for label in touching[touching > 0]:
        if _reaches_enough([rim == label for rim in rims]):
            piece = labels == label
            if cv2.mean(scan, piece.view(np.uint8))[0] >= _PURE_WHITE:
                borders |= piece
    if borders.any():
        borders |= _thin_ends(scan, borders)
    return box_filter(borders, (2 * _MARGIN + 1,) * 2, np.logical_or) if borders.any() else borders


def border_features(borders: np.ndarray) -> np.ndarray:
    """Summary of a border mask, as a model could read the class from it.

    Returns:
        (9,) float32: share of the scan's pixels; share of the top, bottom, left and right edge; whether each corner
        is covered (0 or 1).
    """
    rims = (borders[0], borders[-1], borders[:, 0], borders[:, -1])
    corners = borders[[0, 0, -1, -1], [0, -1, 0, -1]]
    shares = (np.count_nonzero(part) / part.size for part in (borders, *rims))
    return np.array([*shares, *corners], dtype=np.float32)


def neutralise(scan: np.ndarray, borders: np.ndarray, tissue: np.ndarray | None = None) -> np.ndarray:
    """Fill borders with the scan's own dark background, so that neither white nor flat black marks them.

    The fill is made of patches copied from tissue-free places near by, so it has the local level and grain of the
    noise. It is drawn from the scan's content: the same scan is always filled the same way.

    Args:
        scan: (H, W) uint8.
        borders: (H, W) bool from ``find_borders``.
        tissue: (H, W) bool from ``tissue_mask``, where it is already known.

    Returns:
        (H, W) uint8, equal to ``scan`` outside the borders.
    """
    if not borders.any() or borders.all():
        return scan
    random = generator("fill of borders", zlib.crc32(np.ascontiguousarray(scan)))
    tissue = tissue_mask(scan, borders) if tissue is None else tissue
    sources, block = _background_patches(scan, borders, tissue)  # (M, 2)
    filled = scan.copy()
    if len(sources) == 0:  # no free patch: draw single pixels from the darkest quarter of the scan
        measured = scan[~borders]
        dark = measured[measured <= np.quantile(measured, 0.25)]
        filled[borders] = random.choice(dark, size=np.count_nonzero(borders))
        return filled
    corners = np.argwhere(_any_in_blocks(borders, block))  # (K, 2) blocks to fill
    _, near = KDTree(sources).query(corners * block, k=min(_NEAR, len(sources)), p=1)  # (K, up to 12)
    near = near.reshape(len(corners), -1)
    origins = sources[near[np.arange(len(near)), random.integers(near.shape[1], size=len(near))]]
    flipped = random.choice((False, True), size=(len(near), 2))
    along = np.where(flipped[..., None], np.arange(block)[::-1], np.arange(block)) + origins[..., None]  # (K, 2, block)
    fill = np.empty((-(-scan.shape[0] // block), block, -(-scan.shape[1] // block), block), dtype=np.uint8)
    fill[corners[:, 0], :, corners[:, 1]] = scan[along[:, 0, :, None], along[:, 1, None, :]]
    np.copyto(filled, fill.reshape(fill.shape[0] * block, -1)[: scan.shape[0], : scan.shape[1]], where=borders)
    return filled


def _reaches_enough(rims: list[np.ndarray]) -> bool:
    """Whether a white area with these pixels at the top, bottom, left and right edge may be a border."""
    top, bottom, *_ = rims
    in_corner = top[0] or top[-1] or bottom[0] or bottom[-1]
    contacts = [np.count_nonzero(rim) for rim in rims]
    wide = any(contact / len(rim) >= _EDGE_CONTACT for contact, rim in zip(contacts, rims, strict=True))
    return wide or bool(in_corner and max(contacts) >= _CORNER_CONTACT)


def _thin_ends(scan: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """White streaks along an edge, at least twice as long as thick: where a border tapers off below the opening."""
    white = (scan >= _TAPERED_WHITE) & ~borders
    if max(np.count_nonzero(rim) for rim in (white[0], white[-1], white[:, 0], white[:, -1])) < _CORNER_CONTACT:
        return np.zeros_like(white)
    labels = pieces(white, diagonal=True)
    ends = np.zeros_like(white)
    for rim, axis in ((labels[0], 0), (labels[-1], 0), (labels[:, 0], 1), (labels[:, -1], 1)):
        for label, contact in zip(*np.unique(rim[rim > 0], return_counts=True), strict=True):
            piece = labels == label
            thickness = np.ptp(piece.any(axis=1 - axis).nonzero()[0]) + 1
            if contact >= max(_CORNER_CONTACT, 2 * thickness):
                ends |= piece
    return ends


def _any_in_blocks(mask: np.ndarray, block: int) -> np.ndarray:
    rows, columns = (-(-side // block) for side in mask.shape)
    whole = np.zeros((rows * block, columns * block), dtype=bool)
    whole[: mask.shape[0], : mask.shape[1]] = mask
    return whole.reshape(rows, block, -1).any(axis=1).reshape(rows, columns, block).any(axis=2)


def _background_patches(scan: np.ndarray, borders: np.ndarray, tissue: np.ndarray) -> tuple[np.ndarray, int]:
    """Top-left corners (M, 2) of squares that hold neither tissue nor border, and the side of the squares."""
    occupied = tissue | borders
    free_pixels = scan[~occupied]
    if len(free_pixels):
        # A bright speck of the vitreous would be copied many times over.
        some = np.sort(free_pixels[:: 1 + len(free_pixels) // 20_000], kind="stable")
        occupied |= scan > 2 * quantiles_of_sorted(some, 0.99)
    for block in (_BLOCK, _BLOCK // 2):
        step = block // 2
        rows, columns = (side // step * step for side in scan.shape)
        free = ~_any_in_blocks(occupied[:rows, :columns], step)
        corners = np.argwhere(free[:-1, :-1] & free[1:, :-1] & free[:-1, 1:] & free[1:, 1:]) * step
        if len(corners):
            return corners, block
    return np.empty((0, 2), dtype=np.int64), _BLOCK


def _opened(mask: np.ndarray) -> np.ndarray:
    return box_filter(box_filter(mask, (_OPENING, _OPENING), np.logical_and), (_OPENING, _OPENING), np.logical_or)
