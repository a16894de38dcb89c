"""Files decoded, measured and written as parts of the scan cache."""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dino_oct.data.borders import border_features, find_borders, neutralise
from dino_oct.data.brightness import brightness_features
from dino_oct.data.cores import usable_cores
from dino_oct.data.decode import (
    REMARKS,
    BadScan,
    GreyRange,
    Levels,
    RangeNeeded,
    Remark,
    choose_range,
    decode,
    given_range,
    measure_levels,
    open_image,
)
from dino_oct.data.index import DatasetConfig, ScanIndex
from dino_oct.data.segment import KINDS, Segment, SegmentWriter, deep_row
from dino_oct.data.tissue import coarse_levels, tissue_map, tissue_mask
from dino_oct.errors import InputError
from dino_oct.files import remove, scratch_folder, share_as
from dino_oct.words import counted

REMARK_BITS = tuple(REMARKS)
"""Remarks by the bit that a part's table has for each."""
_SEGMENT = 4096  # files of a part: what a killed build loses at most
_CHUNK = 512  # scans decoded before they are written; bounds the memory of a build
_HEADERS = 256  # file headers read to estimate the size of a build
_LARGE = 1 << 30  # bytes; larger builds are announced
_TOLD_EVERY = 60  # seconds, where there is no terminal for a bar


@dataclass(frozen=True)
class _Decoded:
    scan: np.ndarray
    remarks: frozenset[Remark]
    row: dict[str, np.ndarray | bytes | tuple[int, int]]


def _decode(
    path: Path, config: DatasetConfig, grey_range: GreyRange | None, stretch: tuple[float, float]
) -> _Decoded | str | None:
    """Decode and measure one scan, or say why it is left out; None for a deep image without a grey range."""
    try:
        scan, original_size, remarks = decode(path, config.max_side, grey_range=grey_range, stretch=stretch)
        file_digest = digest_of_file(path)
    except (BadScan, OSError) as reason:
        return str(reason)
    except RangeNeeded:
        return None
    borders = find_borders(scan)
    levels = coarse_levels(scan, borders)
    brightness = brightness_features(scan, borders, levels)
    tissue = tissue_mask(scan, borders, levels)
    if config.neutralise_borders:
        scan = neutralise(scan, borders, tissue)
    row = {
        "original_sizes": original_size,
        "border": border_features(borders),
        "brightness": brightness,
        "tissue": tissue_map(tissue),
        "file_digests": file_digest,
        "remarks": sum(1 << bit for bit, remark in enumerate(REMARK_BITS) if remark in remarks),
    }
    return _Decoded(np.ascontiguousarray(scan), remarks, row)


def build(
    index: ScanIndex,
    config: DatasetConfig,
    stamps: np.ndarray,
    missing: list[int],
    levels: dict[int, Levels],
    prefix: Path,
    progress: bool,
) -> dict[bytes, str]:
    """Decode files into new parts.

    Args:
        stamps: (N,) of all files of the index.
        missing: positions of the files to decode.
        levels: position → of the deep images that are in parts already.
        prefix: of the parts' folders.
        progress: as ``cache.open_cache``.

    Returns:
        Stamp → reason of the files that cannot be used.
    """
    _check_space(index, config, missing, prefix.parent, progress)
    stretches = index.stretches(config.pixel_um).tolist()
    grey_range, levels = given_range(config.grey_range), dict(levels)
    reasons: dict[bytes, str] = {}

    def read(chunk: list[int]) -> list[_Decoded | str | None]:
        return list(pool.map(lambda i: _decode(index.path(i), config, grey_range, tuple(stretches[i])), chunk))

    # Threads suffice: decoding, filtering and array arithmetic release the interpreter lock.
    with ThreadPoolExecutor(min(32, usable_cores())) as pool, _Progress(len(missing), progress) as told:
        for start in range(0, len(missing), _SEGMENT):
            block = missing[start : start + _SEGMENT]
            with scratch_folder(prefix) as building, contextlib.closing(SegmentWriter(building)) as writer:
                for at in range(0, len(block), _CHUNK):
                    chunk = block[at : at + _CHUNK]
                    results = read(chunk)
                    if None in results:
                        # The first deep images: all that are left are measured, so that one range is for the whole.
                        left = [i for i in missing[start + at :] if i not in levels]
                        measured = pool.map(lambda i: measure_levels(index.path(i)), left)
                        levels |= {i: of_file for i, of_file in zip(left, measured, strict=True) if of_file is not None}
                        grey_range = choose_range(levels.values())
                        results = read(chunk)
                    for i, decoded in zip(chunk, results, strict=True):
                        if isinstance(decoded, str):
                            reasons[stamps[i]] = decoded
                            writer.skip(stamps[i], decoded)
                            continue
                        kind = next((kind for kind in KINDS[1:] if kind in decoded.remarks), "")
                        white = getattr(grey_range, kind) if kind else 0.0
                        deep = deep_row(kind, white, levels.get(i))
                        writer.add(decoded.scan, stamps=stamps[i], deep=deep, **decoded.row)
                    told.advance(len(chunk))
                if len(writer):
                    writer.finish()
                    share_as(building, prefix.parent)
                    _put_in_place(building, prefix.with_name(f"{prefix.name}-{writer.key()}"))
    return reasons


class _Progress:
    """A bar on a terminal; elsewhere a line a minute."""

    def __init__(self, total: int, show: bool):
        self._bar = tqdm(total=total, desc="decoding scans", unit="scan", disable=None if show else True, leave=False)
        self._tells = show and self._bar.disable
        self._total, self._done, self._began = total, 0, time.monotonic()
        self._told = self._began

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Some more files are done."""
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._tells and now - self._told > _TOLD_EVERY:
            self._told = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate / 60
            print(
                f"decoding scans: {self._done:,} of {self._total:,} · {rate:.0f} scans/s · {left:.0f} min left",
                file=sys.stderr,
                flush=True,
            )


def _put_in_place(building: Path, folder: Path) -> None:
    """Rename a finished part: over a damaged one, but not over a sound one of another process."""
    is_posix = hasattr(os, "getuid")  # the second place: where another user's stands in the first, closed or damaged
    for place in (folder, folder.with_name(f"{folder.name}-user{os.getuid()}")) if is_posix else (folder,):
        for attempt in range(2):
            with contextlib.suppress(ValueError):
                Segment(place)  # another process was first, where locks do not work; the content is the same
                return
            if attempt == 0:
                remove(place)
                with contextlib.suppress(OSError):  # another process was first, or another user's stands there
                    building.rename(place)
                    return
    raise PermissionError(errno.EACCES, "what stands in its place cannot be removed", str(folder))


def _check_space(index: ScanIndex, config: DatasetConfig, positions: list[int], folder: Path, progress: bool) -> None:
    """Estimate a large build from the headers of some files; refuse it where the disk is too full."""
    pixels = []
    for k in np.unique(np.linspace(0, len(positions) - 1, _HEADERS).astype(int)).tolist():
        with contextlib.suppress(BadScan), open_image(index.path(positions[k])) as image:  # bad files take no space
            shrink = min(1.0, config.max_side / max(image.size))
            pixels.append(image.size[0] * image.size[1] * shrink**2)
    needed = int(np.mean(pixels) * len(positions)) if pixels else 0
    if needed < _LARGE:
        return
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise InputError(
            f"the scan cache needs about {readable(needed)} and {folder} has {readable(free)} free; "
            "name another folder with cache_dir or $DINO_OCT_CACHE, or lower max_side"
        )
    if progress:
        print(
            f"decoding {counted(len(positions), 'scan')} once: about {readable(needed)} in {folder}",
            file=sys.stderr,
            flush=True,
        )


def digest_of_file(path: Path) -> bytes:
    """What identifies the content of a file."""
    content = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            content.update(block)
    return content.hexdigest().encode()


def readable(count: float) -> str:
    """Bytes as a short text: 46 MB, 1.2 GB."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.1f} {units[0]}" if count < 10 and units[0] != "bytes" else f"{count:.0f} {units[0]}"
