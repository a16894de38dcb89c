"""Geometry of random views: boxes that keep tissue in sight, tilt, and bicubic resizing in two equivalent ways."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

CHUNK_BYTES = 1 << 29
"""Work memory of ``resize_matmul``: enough for tens of whole scans at once, small beside a training step."""


@dataclass(frozen=True)
class Crops:
    """Where N views lie in a list of scans. All fields are arrays of length N.

    Rows ``top + shift`` to ``top + shift + height`` of column ``left + c`` belong to the view, where
    ``shift = round(slope · (c − centre))`` is the tilt; rows beyond the scan are mirrored. ``flip`` swaps left
    and right.
    """

    scan: np.ndarray  # position in the list of scans
    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    slope: np.ndarray  # rows per column, in pixels of the scan
    flip: np.ndarray  # bool

    def shifts(self, view: slice | np.ndarray, columns: int) -> np.ndarray:
        """Row offset of each of the first ``columns`` columns of the views in ``view``; int64 (n, columns)."""
        centred = np.arange(columns) - (self.width[view, None] - 1) / 2
        slope = self.slope[view, None]
        return (np.sign(slope) * np.floor(np.abs(slope) * centred + 0.5)).astype(np.int64)


def tissue_share(top, bottom, left, right, tissue: np.ndarray) -> np.ndarray:
    """Share of each box's area that is tissue.

    Args:
        top, bottom, left, right: (B, K) edges as fractions of the scan's sides.
        tissue: (B, rows, columns) tissue fraction of each cell of a grid over the scan, in [0, 1].

    Returns:
        (B, K) in [0, 1]; cells that a box cuts count by the part inside.
    """

    def overlap(low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
        bounds = np.stack([low, high]).astype(np.float32)[..., None] * cells - np.arange(cells, dtype=np.float32)
        before_low, before_high = bounds.clip(0, 1, out=bounds)
        return before_high - before_low

    rows, columns = tissue.shape[1:]
    y, x = overlap(top, bottom, rows), overlap(left, right, columns)  # (B, K, cells)
    inside = ((y @ tissue.astype(y.dtype)) * x).sum(-1)
    return inside / np.maximum(y.sum(-1) * x.sum(-1), 1e-12)


def choose_boxes(
    draws: dict[str, np.ndarray],
    sizes: np.ndarray,
    tissue: np.ndarray | None,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    min_tissue: float,
    on_square: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random boxes as in a random resized crop, among several candidates the first that shows enough tissue.

    Candidates that do not fit into the scan are passed over, as in torchvision; where no candidate has enough tissue,
    the one with the most is taken; where none fits, they are cut to the scan.

    Args:
        draws: uniform numbers ``area``, ``ratio``, ``top``, ``left``, each (B, n, candidates) in [0, 1).
        sizes: (B, 2) height and width of the scans.
        tissue: (B, rows, columns) as for :func:`tissue_share`, or None: the first candidate that fits is taken.
        min_tissue: share of a box that must be tissue; never more than the share of the whole scan.
        scale, ratio: range of the area as a fraction of the scan, and of width / height.
        on_square: measure area and ratio on the scan resized to a square, else in its own pixels.

    Returns:
        top, left, height, width in pixels of the scan, each int64 (B, n).
    """
    full_height, full_width = (sizes[:, axis, None, None].astype(np.float64) for axis in (0, 1))
    area = scale[0] + (scale[1] - scale[0]) * draws["area"]
    aspect = np.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * draws["ratio"])  # width / height
    if not on_square:
        aspect = aspect * (full_height / full_width)
    height = np.maximum(np.rint(full_height * np.sqrt(area / aspect)), 1)
    width = np.maximum(np.rint(full_width * np.sqrt(area * aspect)), 1)
    fits = (height <= full_height) & (width <= full_width)
    height, width = np.minimum(height, full_height), np.minimum(width, full_width)
    top = np.floor(draws["top"] * (full_height - height + 1))
    left = np.floor(draws["left"] * (full_width - width + 1))

    if tissue is None or min_tissue == 0:
        best = fits.argmax(-1)
    else:
        edges = (top / full_height, (top + height) / full_height, left / full_width, (left + width) / full_width)
        flat = [edge.reshape(len(sizes), -1) for edge in edges]
        share = tissue_share(*flat, tissue).reshape(fits.shape)
        need = np.minimum(min_tissue, tissue.mean((1, 2)))[:, None, None]
        good = fits & (share >= need)
        best = np.where(good.any(-1), good.argmax(-1), (share + fits).argmax(-1))
    pick = best[..., None]
    return tuple(np.take_along_axis(box, pick, -1)[..., 0].astype(np.int64) for box in (top, left, height, width))


def _multiple_of_4(length: int) -> int:
    return -(-length // 4) * 4


def _cut(
    scan: np.ndarray, top: int, left: int, height: int, width: int, slope: float, memory: np.ndarray
) -> np.ndarray:
    """A view before resizing, uint8 (height, width rounded up to a multiple of 4), written into flat ``memory``.

    The columns beyond ``width`` are undefined.
    """
    padded = _multiple_of_4(width)
    cut = memory[: height * padded].reshape(height, padded)
    columns = scan[:, left : left + width]
    centre = (width - 1) / 2
    reach = math.floor(abs(slope) * centre + 0.5)
    if reach == 0:
        cut[:, :width] = columns[top : top + height]
        return cut
    above, below = max(reach - top, 0), max(top + height + reach - len(scan), 0)  # rows to mirror
    tall = columns[top - reach + above : top + height + reach - below]
    if above or below:
        tall = np.concatenate([columns[:above][::-1], tall, columns[len(scan) - below :][::-1]])
    # Columns of equal shift lie side by side: a few block copies instead of a gather per pixel.
    steps = np.arange(-reach, reach)
    starts = [0, *np.ceil(centre + (steps + 0.5) / abs(slope)).astype(int).tolist(), width]
    rows = range(2 * reach + 1) if slope > 0 else range(2 * reach, -1, -1)
    for row, (start, stop) in zip(rows, itertools.pairwise(starts), strict=True):
        cut[:, start:stop] = tall[row : row + height, start:stop]
    return cut


def _resize_rows(image: np.ndarray, rows: int) -> np.ndarray:
    """Antialiased bicubic along the first axis; uint8 (H, W) with W a multiple of 4 → (rows, W)."""
    # Four neighbouring columns pose as the channels of a channels-last image: torch has a vectorised kernel for that
    # layout, and none for one channel. It answers in the same layout, so neither side is copied.
    height, width = image.shape
    pixels = torch.from_numpy(image).view(1, height, width // 4, 4).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, size=(rows, width // 4), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).reshape(rows, width).numpy()


def resize_native(scans: Sequence[np.ndarray], crops: Crops, size: int) -> np.ndarray:
    """Cut and resize view by view on the CPU.

    Args:
        scans: uint8 (H, W) each.

    Returns:
        uint8 (N, size, size).
    """
    views = np.empty((len(crops.scan), size, size), np.uint8)
    padded = _multiple_of_4(size)
    # Memory used again for every view: fresh pages cost more than the copies made in them.
    longest = _multiple_of_4(int(crops.width.max(initial=0)))
    cut_memory = np.empty(int(crops.height.max(initial=0)) * longest, np.uint8)
    turned_memory = np.empty((longest, padded), np.uint8)
    boxes = (crops.scan, crops.top, crops.left, crops.height, crops.width, crops.slope, crops.flip)
    # Scan by scan, so that a scan stays in the processor's cache for all its views.
    order = np.argsort(crops.scan, kind="stable").tolist()
    for i, scan, top, left, height, width, slope, flip in zip(order, *(x[order].tolist() for x in boxes), strict=True):
        upright = _resize_rows(_cut(scans[scan], top, left, height, width, slope, cut_memory), size)
        turned = turned_memory[:width]
        turned[:, :size] = upright[:, :width].T
        resized = _resize_rows(turned, size)[:, :size]  # (columns, rows)
        views[i] = resized[::-1].T if flip else resized.T
    return views


def bicubic_matrices(lengths: np.ndarray, size: int, device: torch.device) -> torch.Tensor:
    """Antialiased bicubic (a = −0.5) as matrices.

    Args:
        lengths: (N,) source lengths.

    Returns:
        (N, size, longest): row i holds the weights of output pixel i over the source; rows sum to 1.
    """
    position = torch.arange(int(lengths.max()), device=device, dtype=torch.float32)
    lengths = torch.from_numpy(lengths.astype(np.float32)).to(device)[:, None, None]
    step = lengths / size
    centre = (torch.arange(size, device=device, dtype=torch.float32)[:, None] + 0.5) * step
    t = ((position + 0.5 - centre) / step.clamp(min=1)).abs()
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight = torch.where(t < 1, near, torch.where(t < 2, far, 0.0)) * (position < lengths)
    return weight / weight.sum(-1, keepdim=True)


def resize_matmul(scans: Sequence[np.ndarray], crops: Crops, size: int, device: torch.device) -> torch.Tensor:
    """Cut and resize all views together, for accelerators; the values of :func:`resize_native` within one grey level.

    Args:
        scans: uint8 (H, W) each.

    Returns:
        uint8 (N, size, size) on ``device``.
    """
    # Scans of any sizes travel as one flat buffer, without padding.
    pixels = torch.from_numpy(np.concatenate([scan.reshape(-1) for scan in scans])).to(device)
    sizes = np.array([scan.shape for scan in scans], np.int64)
    starts = np.concatenate([[0], sizes.prod(1).cumsum()[:-1]])
    views = torch.empty((len(crops.scan), size, size), dtype=torch.uint8, device=device)
    remaining = np.argsort(-crops.height * crops.width)  # chunks of similar boxes waste little
    while len(remaining):
        # Per pixel: two int64 indices and a transient one, the grey level, its float.
        largest = int(crops.height[remaining].max() * crops.width[remaining].max()) * 29
        part, remaining = np.split(remaining, [max(CHUNK_BYTES // largest, 1)])
        values = _gather(pixels, starts, sizes, crops, part)
        down, across = (bicubic_matrices(side[part], size, device) for side in (crops.height, crops.width))
        # Rounded between the axes, as the 8-bit kernel does.
        upright = torch.bmm(down, values).round_().clamp_(0, 255)
        resized = torch.bmm(upright, across.transpose(1, 2)).round_().clamp_(0, 255)
        views[torch.from_numpy(part).to(device)] = resized.to(torch.uint8)
    flip = torch.from_numpy(crops.flip).to(device)[:, None, None]
    return torch.where(flip, views.flip(2), views)


def _gather(
    pixels: torch.Tensor, starts: np.ndarray, sizes: np.ndarray, crops: Crops, part: np.ndarray
) -> torch.Tensor:
    """The views ``part`` before resizing, float32 (n, greatest height, greatest width).

    What lies beyond a smaller view holds arbitrary pixels; the resizing matrices give it no weight.

    Args:
        pixels: all scans in one row; ``starts`` and ``sizes`` tell where each begins, and its (height, width).
    """
    scan, height, width = crops.scan[part], crops.height[part], crops.width[part]
    scan_height, scan_width = sizes[scan, :1], sizes[scan, 1:]
    shift = crops.shifts(part, width.max())  # (n, columns)
    shift = np.where(np.arange(width.max()) < width[:, None], shift, 0)
    reach = np.abs(shift).max()
    row = crops.top[part, None] + np.arange(-reach, height.max() + reach)
    row = np.where(row < 0, -1 - row, row)
    row = np.where(row >= scan_height, 2 * scan_height - 1 - row, row).clip(0, scan_height - 1)
    column = np.minimum(crops.left[part, None] + np.arange(width.max()), scan_width - 1)
    row_starts = starts[scan, None] + row * scan_width  # address of each row's first pixel, mirrored rows included
    row_starts, column, shift = (torch.from_numpy(x).to(pixels.device) for x in (row_starts, column, shift + reach))
    down = torch.arange(int(height.max()), device=pixels.device)[:, None] + shift[:, None]  # (n, rows, columns)
    return pixels[row_starts.gather(1, down.flatten(1)).view(down.shape).add_(column[:, None])].float()
