"""Exact and near duplicates among cached scans.

A near duplicate shows the same place of the same eye under another patient's name: one acquisition saved twice
(compressed again, rescaled, stretched, brightened, cropped above or below, with another border), or one line imaged
twice. Scans that look alike at a coarse scale are found by FAISS (HNSW graph, Malkov and Yashunin 2020), so time grows
as scans × log(scans). Each candidate is confirmed by its fine detail along the rows, which layers do not share.

Decision: only scans of different people are compared. Slices of one volume and scans of one eye are no duplicates,
however much they look alike: they are of one person, who is in one split.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import faiss
import numpy as np
from PIL import Image
from scipy import fft, ndimage
from tqdm import tqdm

from dino_oct.data.cache import ScanCache
from dino_oct.data.cores import usable_cores
from dino_oct.data.index import ScanIndex, is_own_patient
from dino_oct.data.rows import holder
from dino_oct.files import check_regular, replacing, share_as

NEAR_VERSION = 1  # raise it when the search changes: kept pairs are then sought anew
CORRELATION = 0.26  # no two of 367 patients of OCT2017 exceed 0.09; in 715 scans of OCTDL different eyes reach 0.23,
# and the 11 pairs above it all show one eye

_SIMILARITY = 0.68  # of descriptors; the least of those 11 pairs is 0.70
_NEAREST = 4  # people's scans compared with each scan
_MOST = 256  # neighbours searched where a scan's nearest are all of its own patient
_GRAPH_LINKS, _GRAPH_EFFORT = 16, 64  # of HNSW: M and efSearch
_THUMBNAIL = (64, 32)  # width, height
_COARSE, _FINE = 6.0, 3.0  # sigma, pixels of the thumbnail and of the detail: what is wider along a row is taken out
_SIDE = 256  # pixels; width of the detail
_PLAUSIBLE = 0.08  # correlation as a whole, below which strips need not be aligned
_STRIP, _GIVE = 64, 6  # pixels; width of a strip, and how far it may move from where the whole lies
_LOCAL = 8.0  # sigma, pixels: detail is relative to its contrast in this neighbourhood
_NOISE = 2.0  # grey levels: fainter detail counts less
_ROWS = 4096  # descriptors searched at a time
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def people_of(index: ScanIndex) -> np.ndarray:
    """(N,) str: who each scan is of. The patient; where that is not known the volume; else the file alone."""
    volumes = index.fact("volume")
    is_picture = np.array([holder(file) == file for file in index.files])  # a volume's file is its patient already
    told = is_own_patient(index) & (volumes != "") & is_picture
    return np.where(told, np.char.add("volume ", volumes), index.patients)


def exact_groups(cache: ScanCache) -> list[list[int]]:
    """Positions of scans that are equal to the pixel, in groups of two or more."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, digest in enumerate(cache.digests.tolist()):
        groups[digest].append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(cache: ScanCache, people: np.ndarray, progress: bool = False) -> list[tuple[int, int, float]]:
    """Scans of different people that show the same place of an eye, but are not equal to the pixel.

    They are kept in the cache's folder, so that only the first call with these people seeks them. Of copies that are
    equal to the pixel the first stands for all. Each scan is compared with the four most similar ones of other people,
    so of a large group of copies not every pair is listed. Not found: mirrored copies, those tilted
    by more than half a degree, and those that lost more than 3 % at the sides.

    Args:
        people: (N,) as ``people_of`` gives them.
        progress: show a progress bar on stderr.

    Returns:
        (i, j, correlation of fine detail), i < j.
    """
    _, codes = np.unique(people, return_inverse=True)
    content = np.ascontiguousarray(codes, dtype=np.int64).tobytes() + cache.digests.tobytes()
    key = hashlib.sha256(content).hexdigest()[:16]
    file = cache.folder / f"near-{NEAR_VERSION}-{key}.npy"
    try:
        kept = np.load(check_regular(file), allow_pickle=False)
        return [(int(i), int(j), float(correlation)) for i, j, correlation in kept]
    except Exception:  # not there or damaged: numpy raises almost anything
        pairs = _seek(cache, codes, progress)
    try:
        with replacing(file) as partial, partial.open("wb") as stream:
            np.save(stream, np.array(pairs, dtype=np.float64).reshape(-1, 3))
        share_as(file, file.parent)
    except OSError:  # another user's cache, or a full disk: sought again next time
        print(f"near-duplicates not kept in {file.parent}", file=sys.stderr, flush=True)
    return pairs


def _seek(cache: ScanCache, codes: np.ndarray, progress: bool) -> list[tuple[int, int, float]]:
    _, first = np.unique(cache.digests, return_index=True)
    first = np.sort(first)
    if len(np.unique(codes[first])) < 2:
        return []

    def each(work: Callable[[_Item], _Result], items: list[_Item], title: str) -> list[_Result]:
        with ThreadPoolExecutor(usable_cores()) as pool:
            results = pool.map(work, items)
            return list(tqdm(results, title, len(items), disable=None if progress else True, leave=False))

    descriptors = np.stack(each(lambda i: descriptor(cache[i]), first.tolist(), "looking at scans"))
    pairs = [(int(first[i]), int(first[j])) for i, j in _candidates(descriptors, codes[first])]
    detail = lru_cache(maxsize=1024)(lambda i, stretched: fine_detail(cache[i], stretched))

    def correlation(pair: tuple[int, int]) -> float:
        i, j = pair
        # A picture may be cropped, or stretched: of scans with another aspect both are tried.
        shapes = (False,) if _height(cache[i]) == _height(cache[j]) else (False, True)
        return max(aligned_correlation(detail(i, shape), detail(j, shape)) for shape in shapes)

    found = zip(pairs, each(correlation, pairs, "comparing scans"), strict=True)
    return [(*pair, value) for pair, value in found if value >= CORRELATION]


def _candidates(descriptors: np.ndarray, codes: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (i < j, sorted) of different people whose descriptors are similar, the nearest of each scan."""
    graph = faiss.IndexHNSWFlat(descriptors.shape[1], _GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = _GRAPH_EFFORT
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # else the graph depends on which thread is first
    try:
        graph.add(descriptors)
    finally:
        faiss.omp_set_num_threads(threads)
    pairs: set[tuple[int, int]] = set()
    left, k = np.arange(len(descriptors)), 1 + 2 * _NEAREST
    while len(left):
        k = min(k, len(descriptors))
        unfinished = []
        for rows in np.split(left, range(_ROWS, len(left), _ROWS)):
            similarity, position = graph.search(descriptors[rows], k)
            is_near = (similarity >= _SIMILARITY) & (position >= 0)
            is_other = is_near & (codes[position] != codes[rows, None])
            is_other &= np.cumsum(is_other, axis=1) <= _NEAREST
            row, column = np.nonzero(is_other)
            both = np.sort(np.stack([rows[row], position[row, column]], axis=1), axis=1)
            pairs.update(map(tuple, both.tolist()))
            # All near ones are its own patient's: another may be behind them.
            unfinished.append(rows[is_near.all(axis=1) & (is_other.sum(axis=1) < _NEAREST)])
        left = np.concatenate(unfinished)
        if k >= min(_MOST, len(descriptors)):
            break
        k *= 4
    return sorted(pairs)


def descriptor(scan: np.ndarray) -> np.ndarray:
    """(512,) float32 of unit norm: a thumbnail without what is even along the rows, centred on the tissue's height."""
    small = np.asarray(Image.fromarray(scan).resize(_THUMBNAIL, Image.Resampling.BOX), dtype=np.float32)
    small = np.maximum(small - np.median(small), 0)  # the background is most of a scan
    height, mass = len(small), small.sum(axis=1)
    middle = (mass @ np.arange(height)) / max(float(mass.sum()), 1e-6)
    centred = np.sqrt(ndimage.shift(small, (height / 2 - middle, 0), order=1))
    detail = centred - ndimage.gaussian_filter1d(centred, _COARSE, axis=1)
    detail = detail.reshape(height // 2, 2, -1, 2).mean(axis=(1, 3)).ravel()
    return detail / max(float(np.linalg.norm(detail)), 1e-6)


def fine_detail(scan: np.ndarray, stretched: bool = False) -> np.ndarray:
    """(256, 129) complex64, the spectrum of a scan's detail along its rows, relative to the local contrast.

    Speckle, shadows of vessels and edges of lesions stay. Layers are smooth along the rows and do not; they agree
    between any two eyes.

    Args:
        stretched: to one height, whatever the scan's aspect.
    """
    size = (_SIDE, _SIDE // 2 if stretched else _height(scan))
    small = np.asarray(Image.fromarray(scan).resize(size, Image.Resampling.BOX), dtype=np.float32)
    detail = small - ndimage.gaussian_filter1d(small, _FINE, axis=1)
    detail /= np.sqrt(ndimage.gaussian_filter(detail**2, _LOCAL) + _NOISE**2)
    canvas = np.zeros((_SIDE, _SIDE), dtype=np.float32)
    canvas[2 : size[1] - 2, 2:-2] = detail[2:-2, 2:-2]  # edges of a picture are no detail of it
    return fft.rfft2(canvas) / max(float(np.linalg.norm(canvas)), 1e-6)


def aligned_correlation(spectrum: np.ndarray, other: np.ndarray) -> float:
    """The largest correlation of two ``fine_detail`` over all shifts, -1 to 1.

    Upright strips are then moved a little each, so that a slight tilt or another scale does not hide a copy.
    """
    whole = fft.irfft2(spectrum * np.conj(other), (_SIDE, _SIDE))
    if (plain := float(whole.max())) < _PLAUSIBLE:
        return plain
    place = [
        np.arange(centre - _GIVE, centre + _GIVE + 1) % _SIDE
        for centre in np.unravel_index(whole.argmax(), whole.shape)
    ]
    detail = fft.irfft2(spectrum, (_SIDE, _SIDE))
    total = 0.0
    for start in range(0, _SIDE, _STRIP):
        strip = np.zeros_like(detail)
        strip[:, start : start + _STRIP] = detail[:, start : start + _STRIP]
        total += float(fft.irfft2(fft.rfft2(strip) * np.conj(other), (_SIDE, _SIDE))[np.ix_(*place)].max())
    return total


def _height(scan: np.ndarray) -> int:
    """Rows of a scan that is ``_SIDE`` wide."""
    return min(max(round(_SIDE * scan.shape[0] / scan.shape[1]), 8), _SIDE)
