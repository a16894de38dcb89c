"""Exact and near duplicates among cached scans.

A near duplicate is one acquisition saved twice (compressed again, rescaled, brightened, with another border) or the
very same line of the retina imaged again. Other scans of one eye look alike too, but not down to the speckle, so
candidates that look alike at a coarse scale (perceptual hash) are confirmed by the correlation of their fine detail.
"""

from collections import defaultdict
from functools import lru_cache

import faiss
import numpy as np
from PIL import Image
from scipy import fft, ndimage

from dino_oct.data.cache import ScanCache

HASH_BITS = 256
HASH_DISTANCE = 64  # of 256 bits; unrelated scans differ in about half
DETAIL_CORRELATION = 0.6  # other scans of an OCT2017 patient stay below 0.5, copies at half the size above 0.85

_CANDIDATES = 16  # nearest hashes looked at for each scan
_DETAIL_SIZE = (256, 128)  # width, height
_DETAIL_SIGMA = 1.5  # pixels at that size: coarser structure, which scans of one eye share, is taken out


def exact_groups(cache: ScanCache) -> list[list[int]]:
    """Positions of scans that are equal to the pixel, in groups of two or more."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, digest in enumerate(cache.digests.tolist()):
        groups[digest].append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(cache: ScanCache) -> list[tuple[int, int, float]]:
    """Pairs (i < j, correlation of fine detail) whose fine detail agrees, but which are not equal to the pixel.

    Each scan is compared with its 16 nearest by perceptual hash, so of a large group of copies not every pair is
    listed. Mirrored or re-cropped copies are not found.
    """
    if len(cache) < 2:
        return []
    hashes = np.stack([perceptual_hash(cache[i]) for i in range(len(cache))])
    search = faiss.IndexBinaryFlat(HASH_BITS)
    search.add(hashes)
    distances, neighbours = search.search(hashes, min(_CANDIDATES + 1, len(cache)))
    candidates = {
        (min(i, j), max(i, j))
        for i, row in enumerate(neighbours.tolist())
        for j, distance in zip(row, distances[i].tolist(), strict=True)
        if j not in (i, -1) and distance <= HASH_DISTANCE
    }
    detail = lru_cache(maxsize=512)(lambda i: fine_detail(cache[i]))
    pairs = []
    for i, j in sorted(candidates):
        if cache.digests[i] != cache.digests[j]:
            correlation = float(np.vdot(detail(i), detail(j)))
            if correlation >= DETAIL_CORRELATION:
                pairs.append((i, j, correlation))
    return pairs


def perceptual_hash(scan: np.ndarray) -> np.ndarray:
    """(32,) uint8: the signs of the 16 x 16 lowest cosine frequencies of a 32 x 32 thumbnail, against their median."""
    thumbnail = np.asarray(Image.fromarray(scan).resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
    low = fft.dctn(thumbnail, norm="ortho")[:16, :16]
    low[0, 0] = 0  # overall brightness
    return np.packbits(low > np.median(low))


def fine_detail(scan: np.ndarray) -> np.ndarray:
    """(128, 256) float32 of unit norm: speckle and edges, without coarse structure and brightness."""
    small = np.asarray(Image.fromarray(scan).resize(_DETAIL_SIZE, Image.Resampling.BOX), dtype=np.float32)
    detail = small - ndimage.gaussian_filter(small, _DETAIL_SIGMA)
    return detail / max(float(np.linalg.norm(detail)), 1e-6)
