"""Scans decoded once to grey uint8, in one memory-mapped file that all processes of a run share."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dino_oct.data.borders import border_features, find_borders, neutralise
from dino_oct.data.brightness import INVERTED, are_inverted, brightness_features
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
from dino_oct.data.index import DatasetConfig, ScanIndex, cache_root
from dino_oct.data.tissue import tissue_map, tissue_mask
from dino_oct.errors import InputError
from dino_oct.files import (
    check_regular,
    is_full,
    lock_later,
    lock_now,
    naming,
    open_lock,
    private_folder,
    read_json,
    remove,
    scratch_folder,
    share_as,
)
from dino_oct.limits import check_settings

CACHE_VERSION = 4  # raise it when decoding, borders or tissue maps change: older caches are then built anew

_TABLES = {
    "sizes": "i8",
    "original_sizes": "i8",
    "border": "f4",
    "brightness": "f4",
    "tissue": "f4",
    "digests": "S32",
    "file_digests": "S32",
}
_CHUNK = 512  # scans decoded before they are written; bounds the memory of a build
_PROBED = 1 << 26  # bytes of pixels that are checked against their digests when a cache is opened
_HEADERS = 256  # file headers read to estimate the size of a build
_LARGE = 1 << 30  # bytes; larger builds are announced
_FAR = 8  # a file that alone would take a range so many times smaller than its folder's is named


class ScanCache:
    """Read-only decoded scans; ``cache[i]`` is an (H, W) uint8 view into the memory-mapped file.

    Pickling keeps only the folder, so worker processes map the same file and share its pages.

    Attributes:
        folder: the cache's folder.
        sizes: (N, 2) int64, height and width of each cached scan.
        original_sizes: (N, 2) int64, the same of the upright image in the file (different only where ``max_side``
            applied).
        border: (N, 9) float32, the white border found in the file before any neutralising, as ``border_features`` gives
            it (column 0 is the fraction of the scan's pixels).
        brightness: (N, 9) float32, grey levels outside that border; columns ``brightness.FEATURES``.
        tissue: (N, 16, 16) float32, fraction of tissue in each cell of a grid over the scan.
        digests: (N,) S32, hash of shape and pixels: equal for scans that are equal to the pixel.
        file_digests: (N,) S32, hash of each file's bytes, however it is decoded.
        skipped: (file, reason) of every file left out.
        grey_range: that deep images (16-bit, 32-bit, float) were read by; None where there are none.
        notes: one line each, what a user should know about how the files were read.
    """

    def __init__(self, folder: str | Path):
        """Map a built cache.

        Raises:
            ValueError: the folder is not a complete, undamaged cache (``open_cache`` then rebuilds it).
        """
        self.folder = Path(folder)
        try:
            about = read_json(self.folder / "cache.json")
            tables = {name: _read_table(self.folder, name) for name in _TABLES}
            self._pixels = np.memmap(check_regular(self.folder / "scans.bin"), dtype=np.uint8, mode="r")
            if about["version"] != CACHE_VERSION or about["checksum"] != _checksum(about, tables):
                raise ValueError("the checksum of its tables does not agree")
            self.skipped: list[tuple[str, str]] = [(file, reason) for file, reason in about["skipped"]]
            self.grey_range = GreyRange(**about["grey_range"]) if about["grey_range"] else None
            self.notes: tuple[str, ...] = tuple(about["notes"])
        except Exception as error:  # damaged headers make numpy raise almost anything
            raise ValueError(f"{self.folder}: {' '.join(str(error).split())}") from error
        self.sizes, self.original_sizes = np.array(tables["sizes"]), np.array(tables["original_sizes"])
        self.border, self.brightness = tables["border"], tables["brightness"]
        self.tissue, self.digests, self.file_digests = tables["tissue"], tables["digests"], tables["file_digests"]
        self._starts = np.concatenate([[0], self.sizes.prod(axis=1).cumsum()]).astype(np.int64)
        if len(self._pixels) != self._starts[-1]:
            raise ValueError(f"{self.folder}: scans.bin holds {len(self._pixels)} bytes, expected {self._starts[-1]}")
        probes = int(min(len(self), max(_PROBED // max(self.nbytes // len(self), 1), 16)))
        for i in np.unique(np.linspace(0, len(self) - 1, probes).astype(int)).tolist():
            if _digest(self[i]) != self.digests[i]:
                raise ValueError(f"{self.folder}: scan {i} does not match its digest")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> np.ndarray:
        i = range(len(self))[i]
        return self._pixels[self._starts[i] : self._starts[i + 1]].reshape(self.sizes[i])

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["folder"])

    @property
    def nbytes(self) -> int:
        """Bytes of all cached scans."""
        return int(self._starts[-1])

    def summary(self) -> str:
        """One line: scans, size, folder, and how many files were left out, by reason."""
        line = f"{len(self):,} scans cached ({_readable(self.nbytes)} in {self.folder}), {len(self.skipped):,} left out"
        examples = "; ".join(f"{file}: {reason}" for file, reason in self.skipped[:3])
        more = f"; and {len(self.skipped) - 3:,} more" if len(self.skipped) > 3 else ""
        return line + (f": {examples}{more}" if examples else "")


def open_cache(index: ScanIndex, config: DatasetConfig, progress: bool = True) -> tuple[ScanIndex, ScanCache]:
    """Open the cache of an index, building it first where it is missing, outdated or damaged.

    The cache is keyed by the files (path, size, times of change) and the settings that alter pixels. It is built in a
    temporary folder and renamed when complete; other processes that want the same cache wait for it.

    Args:
        index: from ``index_scans``.
        config: the same settings; ``cache_dir``, ``max_side``, ``neutralise_borders`` and ``grey_range`` are used.
        progress: show a progress bar and the announcement of a large build on stderr.

    Returns:
        The index without the files left out and with the notes of the cache behind its own, and the cache, aligned with
        it: scan i is ``cache[i]``.

    Raises:
        InputError: no file of the index is usable, the cache folder cannot be written or is too full, or a setting is
            out of range.
    """
    check_settings(config, "dataset.")
    root = cache_root(config)
    folder = root / f"scans-{_key(index, config)}"
    cache = _open_built(folder, announce=False)  # under the lock another process may already be mending it
    if cache is None:
        try:
            private_folder(root)
            with naming(root), _locked(root / f".{folder.name}.lock", progress):
                cache = _open_built(folder) or _build(index, config, folder, progress)
        except OSError as error:
            if is_full(error):
                raise
            raise InputError(
                f"cannot write the scan cache in {root}: {error.strerror or error}; name another folder with cache_dir "
                "or $DINO_OCT_CACHE"
            ) from error
    left_out = {file for file, _ in cache.skipped}
    keep = np.array([file not in left_out for file in index.files], dtype=bool)
    index = index.subset(keep)
    return replace(index, notes=(*index.notes, *cache.notes)), cache


def recorded_grey_range(index: ScanIndex, config: DatasetConfig) -> GreyRange | None:
    """The grey range by which deep images of an index were read; None where its cache is missing or has none."""
    cache = _open_built(cache_root(config) / f"scans-{_key(index, config)}", announce=False)
    return cache.grey_range if cache else None


@dataclass(frozen=True)
class _Decoded:
    scan: np.ndarray
    original_size: tuple[int, int]
    border: np.ndarray
    brightness: np.ndarray
    tissue: np.ndarray
    file_digest: bytes
    remarks: frozenset[Remark]


def _decode(
    path: Path, config: DatasetConfig, grey_range: GreyRange | None, stretch: tuple[float, float]
) -> _Decoded | str | None:
    """Decode and measure one scan, or say why it is left out; None for a deep image without a grey range."""
    try:
        scan, original_size, remarks = decode(path, config.max_side, grey_range=grey_range, stretch=stretch)
        file_digest = _digest_file(path)
    except (BadScan, OSError) as reason:
        return str(reason)
    except RangeNeeded:
        return None
    borders = find_borders(scan)
    brightness = brightness_features(scan, borders)
    tissue = tissue_mask(scan, borders)
    if config.neutralise_borders:
        scan = neutralise(scan, borders, tissue)
    return _Decoded(
        np.ascontiguousarray(scan),
        original_size,
        border_features(borders),
        brightness,
        tissue_map(tissue),
        file_digest,
        remarks,
    )


def _open_built(folder: Path, announce: bool = True) -> ScanCache | None:
    damage = None
    for place in _places(folder):
        if not os.path.lexists(place):
            continue
        try:
            return ScanCache(place)
        except ValueError as error:
            damage = error
    if announce and damage:
        print(f"scan cache damaged, decoding again: {damage}", file=sys.stderr, flush=True)
    return None


def _places(folder: Path) -> tuple[Path, ...]:
    """Where a cache may be; the second is for where another user's stands in the first, closed or damaged."""
    return (folder, folder.with_name(f"{folder.name}-user{os.getuid()}")) if hasattr(os, "getuid") else (folder,)


def _build(index: ScanIndex, config: DatasetConfig, folder: Path, progress: bool) -> ScanCache:
    with scratch_folder(folder) as building:
        _check_space(index, config, folder.parent, progress)
        _write(index, config, building, progress)
        share_as(building, folder.parent)
        return _put_in_place(building, folder)


def _put_in_place(building: Path, folder: Path) -> ScanCache:
    """Rename a finished build: over a damaged cache, but not over a sound one of another process."""
    for place in _places(folder):
        with contextlib.suppress(ValueError):
            return ScanCache(place)  # another process was first, where locks do not work; the content is the same
        remove(place)
        with contextlib.suppress(OSError):  # another process was first, just now, or another user's cannot be removed
            building.rename(place)
            return ScanCache(place)
        with contextlib.suppress(ValueError):
            return ScanCache(place)
    raise PermissionError(errno.EACCES, "what stands in its place cannot be removed", str(folder))


def _write(index: ScanIndex, config: DatasetConfig, building: Path, progress: bool) -> None:
    rows: dict[str, list] = {name: [] for name in _TABLES}
    skipped: list[tuple[str, str]] = []
    remarked: dict[Remark, list[str]] = defaultdict(list)
    grey_range, measured = given_range(config.grey_range), {}
    stretches = index.stretches(config.pixel_um).tolist()

    def read(pool: ThreadPoolExecutor, chunk: range, grey_range: GreyRange | None) -> list[_Decoded | str | None]:
        return list(pool.map(lambda i: _decode(index.path(i), config, grey_range, tuple(stretches[i])), chunk))

    bar = tqdm(total=len(index), desc="decoding scans", unit="scan", disable=None if progress else True, leave=False)
    # Threads suffice: decoding, filtering and array arithmetic release the interpreter lock.
    with ThreadPoolExecutor(min(32, usable_cores())) as pool, (building / "scans.bin").open("wb") as pixels, bar:
        for start in range(0, len(index), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(index)))
            results = read(pool, chunk, grey_range)
            if None in results:
                # The first deep images: all that are left are measured, so that one range is for the whole folder.
                left = range(start, len(index))
                levels = pool.map(lambda i: measure_levels(index.path(i)), left)
                measured = {index.files[i]: level for i, level in zip(left, levels, strict=True) if level is not None}
                grey_range = choose_range(measured.values())
                results = read(pool, chunk, grey_range)
            for i, decoded in zip(chunk, results, strict=True):
                if isinstance(decoded, str):
                    skipped.append((index.files[i], decoded))
                else:
                    pixels.write(decoded.scan.data)
                    rows["sizes"].append(decoded.scan.shape)
                    rows["original_sizes"].append(decoded.original_size)
                    rows["border"].append(decoded.border)
                    rows["brightness"].append(decoded.brightness)
                    rows["tissue"].append(decoded.tissue)
                    rows["digests"].append(_digest(decoded.scan))
                    rows["file_digests"].append(decoded.file_digest)
                    for remark in decoded.remarks:
                        remarked[remark].append(index.files[i])
                bar.update()
    if not rows["sizes"]:
        file, reason = skipped[0]
        raise InputError(f"{index.root}: none of the {len(skipped):,} images can be used; first: {file}: {reason}")
    for name, dtype in _TABLES.items():
        np.save(building / f"{name}.npy", np.array(rows[name], dtype=dtype))
    left_out = {file for file, _ in skipped}
    kept = np.array([file for file in index.files if file not in left_out])
    inverted = kept[are_inverted(np.array(rows["brightness"]))].tolist()
    is_deep = bool(remarked["integers"] or remarked["floats"])
    about: dict[str, Any] = {
        "version": CACHE_VERSION,
        "scans": len(rows["sizes"]),
        "skipped": skipped,
        "grey_range": asdict(grey_range) if is_deep else None,
        "notes": [
            *(_range_notes(grey_range, config, remarked, measured) if is_deep else []),
            *(_counted(remarked[remark], text) for remark, text in REMARKS.items() if remarked[remark]),
            *([_counted(inverted, INVERTED)] if inverted else []),
        ],
    }
    about["checksum"] = _checksum(about, {name: _read_table(building, name) for name in _TABLES})
    (building / "cache.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def _read_table(folder: Path, name: str) -> np.ndarray:
    table = np.load(check_regular(folder / f"{name}.npy"), mmap_mode="r", allow_pickle=False)
    if table.dtype != np.dtype(_TABLES[name]):
        raise ValueError(f"{name}.npy holds {table.dtype}, expected {_TABLES[name]}")
    return table


def _checksum(about: dict[str, Any], tables: dict[str, np.ndarray]) -> str:
    """Of what a cache says about itself and of its tables; the pixels have digests of their own."""
    content = hashlib.blake2b(digest_size=16)
    entries = {name: value for name, value in about.items() if name != "checksum"}
    content.update(json.dumps(entries, sort_keys=True).encode())
    for name, table in sorted(tables.items()):
        content.update(f"{name} {table.dtype} {table.shape}".encode())
        content.update(np.ascontiguousarray(table))
    return content.hexdigest()


def _range_notes(
    grey_range: GreyRange, config: DatasetConfig, remarked: dict[Remark, list[str]], measured: dict[str, Levels]
) -> list[str]:
    """The grey range of deep images in one line, and the files that fit it badly."""
    parts = [
        f"0 to {getattr(grey_range, kind):g} for {len(remarked[kind]):,} files of {kind}"
        for kind in ("integers", "floats")
        if remarked[kind]
    ]
    why = "decided over all of them; dataset.grey_range sets another"
    if config.grey_range != "auto":
        why = "as dataset.grey_range says"
    notes = [f"grey range of deep images (16-bit, 32-bit, float): {', '.join(parts)} ({why})"]
    darker = [
        file
        for file, levels in measured.items()
        if getattr(choose_range([levels]), levels.kind) * _FAR < getattr(grey_range, levels.kind)
    ]
    if darker:
        text = f"are more than {_FAR} times darker than the grey range: from another device, or saved with fewer bits?"
        notes.append(_counted(darker, text))
    return notes


def _counted(files: Sequence[str], text: str) -> str:
    """A remark with the number of its files and some of them."""
    examples = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
    return f"{len(files):,} {'scans' if len(files) > 1 else 'scan'}: {text} ({examples})"


def _check_space(index: ScanIndex, config: DatasetConfig, folder: Path, progress: bool) -> None:
    """Estimate a large build from the headers of some files; refuse it where the disk is too full."""
    pixels = []
    for i in np.unique(np.linspace(0, len(index) - 1, _HEADERS).astype(int)).tolist():
        with contextlib.suppress(BadScan), open_image(index.path(i)) as image:  # bad files take no space
            shrink = min(1.0, config.max_side / max(image.size))
            pixels.append(image.size[0] * image.size[1] * shrink**2)
    needed = int(np.mean(pixels) * len(index)) if pixels else 0
    if needed < _LARGE:
        return
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise InputError(
            f"the scan cache needs about {_readable(needed)} and {folder} has {_readable(free)} free; "
            "name another folder with cache_dir or $DINO_OCT_CACHE, or lower max_side"
        )
    if progress:
        print(f"decoding {len(index):,} scans once: about {_readable(needed)} in {folder}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(file: Path, progress: bool) -> Iterator[None]:
    """Hold an exclusive lock, where locks work, which the system releases should the process die."""
    try:
        handle = open_lock(file)
        with contextlib.suppress(OSError):  # all who may write in the folder must be able to lock there
            share_as(file, file.parent, write=True)
    except PermissionError:  # another user's, of a closed folder or an earlier time
        yield
        return
    with handle:
        if not lock_now(handle.fileno()):
            if progress:
                print("waiting for another process to decode the scans", file=sys.stderr, flush=True)
            lock_later(handle.fileno())
        yield


def _key(index: ScanIndex, config: DatasetConfig) -> str:
    content = hashlib.sha256()
    grey_range = given_range(config.grey_range)  # 4095 and 4095.0 are one
    content.update(repr((CACHE_VERSION, config.neutralise_borders, config.max_side, grey_range)).encode())
    # The root belongs to the key: archives unpacked with fixed times can agree in name, size and time.
    content.update(os.fsencode(index.root.resolve()))
    if config.pixel_um:
        content.update(index.stretches(config.pixel_um))
    for i, file in enumerate(index.files):
        try:
            status = os.stat(index.path(i))
            # An edit may keep size and time of modification; the time of the change of status cannot be set.
            stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:
            stamp = (-1, -1, -1)
        content.update(b"\0" + os.fsencode(file) + repr(stamp).encode())
    return content.hexdigest()[:20]


def _digest_file(path: Path) -> bytes:
    content = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            content.update(block)
    return content.hexdigest().encode()


def _digest(scan: np.ndarray) -> bytes:
    return hashlib.blake2b(scan.data, digest_size=16, salt=np.uint32(scan.shape).tobytes()).hexdigest().encode()


def _readable(count: float) -> str:
    """Bytes as a short text: 46 MB, 1.2 GB."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.1f} {units[0]}" if count < 10 and units[0] != "bytes" else f"{count:.0f} {units[0]}"
