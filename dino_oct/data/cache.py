"""Scans decoded once to grey uint8, in memory-mapped files that all processes of a run share.

What is decoded is kept in parts (``segment``) of some thousand files. New files come into new parts, and a build that
was killed goes on behind its last whole part (``building``).
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dino_oct.data.brightness import INVERTED, are_inverted
from dino_oct.data.building import REMARK_BITS, build, readable
from dino_oct.data.decode import REMARKS, GreyRange, Levels, choose_range, given_range
from dino_oct.data.index import DatasetConfig, ScanIndex, cache_root
from dino_oct.data.segment import KINDS, VERSION, Segment
from dino_oct.errors import InputError
from dino_oct.files import is_full, lock_later, lock_now, naming, open_lock, private_folder, remove, share_as
from dino_oct.limits import check_settings
from dino_oct.words import counted

_FAR = 8  # a file that alone would take a range so many times smaller than its folder's is named


class ScanCache:
    """Read-only decoded scans; ``cache[i]`` is an (H, W) uint8 view into a memory-mapped file.

    Pickling keeps folders and positions alone, so worker processes map the same files and share their pages.

    Attributes:
        folder: the folder of its (first) part.
        sizes: (N, 2) int64, height and width of each cached scan.
        original_sizes: (N, 2) int64, the same of the upright image in the file (different only where ``max_side`` or
            ``pixel_um`` applied).
        border: (N, 9) float32, the white border found in the file before any neutralising, as ``border_features`` gives
            it (column 0 is the fraction of the scan's pixels).
        brightness: (N, 9) float32, grey levels outside that border; columns ``brightness.FEATURES``.
        tissue: (N, 16, 16) float32, fraction of tissue in each cell of a grid over the scan; ``tissue[i]`` reads it.
        digests: (N,) S32, hash of shape and pixels: equal for scans that are equal to the pixel.
        file_digests: (N,) S32, hash of each file's bytes, however it is decoded.
        skipped: (file, reason) of every file left out.
        grey_range: that deep images (16-bit, 32-bit, float) were read by; None where there are none.
        notes: one line each, what a user should know about how the files were read.
    """

    def __init__(self, segments: Sequence[Segment], of: np.ndarray, rows: np.ndarray):
        """Scans of parts.

        Args:
            of: (N,) position of each scan's part in ``segments``.
            rows: (N,) its position there.
        """
        self._segments, self._of, self._rows = segments, of, rows
        self.folder = segments[0].folder
        self.skipped: list[tuple[str, str]] = []
        self.grey_range: GreyRange | None = None
        self.notes: tuple[str, ...] = ()
        self.sizes, self.original_sizes = self._table("sizes"), self._table("original_sizes")
        self.border, self.brightness = self._table("border"), self._table("brightness")
        self.digests, self.file_digests = self._table("digests"), self._table("file_digests")
        self.tissue = segments[0].tables["tissue"] if self._is_whole else _Gathered(segments, of, rows, "tissue")

    @property
    def _is_whole(self) -> bool:
        """Whether it is one part, in order."""
        is_one = len(self._segments) == 1 and len(self._rows) == len(self._segments[0])
        return is_one and np.array_equal(self._rows, np.arange(len(self._rows)))

    def _table(self, name: str) -> np.ndarray:
        return np.array(_Gathered(self._segments, self._of, self._rows, name))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> np.ndarray:
        i = range(len(self))[i]
        return self._segments[self._of[i]][self._rows[i]]

    def __getstate__(self) -> dict:
        places = None if self._is_whole else (self._of, self._rows)
        return {"folders": [segment.folder for segment in self._segments], "places": places}

    def __setstate__(self, state: dict) -> None:
        segments = [Segment(folder, verify=False) for folder in state["folders"]]
        rows = np.arange(len(segments[0]))
        self.__init__(segments, *(state["places"] or (np.zeros_like(rows), rows)))

    @property
    def nbytes(self) -> int:
        """Bytes of all cached scans."""
        return int(self.sizes.prod(axis=1).sum())

    def summary(self) -> str:
        """One line: scans, size, folder, and how many files were left out, by reason."""
        more = len(self._segments) - 1
        place = f"{self.folder}{f' and {more} more' if more else ''}"
        line = (
            f"{counted(len(self), 'scan')} cached ({readable(self.nbytes)} in {place}), {len(self.skipped):,} left out"
        )
        examples = "; ".join(f"{file}: {reason}" for file, reason in self.skipped[:3])
        more = f"; and {len(self.skipped) - 3:,} more" if len(self.skipped) > 3 else ""
        return line + (f": {examples}{more}" if examples else "")


class _Gathered:
    """A table over several parts, read where it is asked for."""

    def __init__(self, segments: Sequence[Segment], of: np.ndarray, rows: np.ndarray, name: str):
        self._tables, self._of, self._rows = [segment.tables[name] for segment in segments], of, rows
        self.shape = (len(rows), *self._tables[0].shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int | np.ndarray | slice) -> np.ndarray:
        if np.ndim(i) == 0 and not isinstance(i, slice):
            return self._tables[self._of[i]][self._rows[i]]
        of, rows = self._of[i], self._rows[i]
        values = np.empty((len(rows), *self.shape[1:]), dtype=self._tables[0].dtype)
        order = np.argsort(of, kind="stable")
        for part, at in zip(*np.unique(of[order], return_index=True), strict=True):
            positions = order[at : at + np.count_nonzero(of == part)]
            values[positions] = self._tables[part][rows[positions]]
        return values

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


def open_cache(index: ScanIndex, config: DatasetConfig, progress: bool = True) -> tuple[ScanIndex, ScanCache]:
    """Open the cache of an index; files that are not in it, or have changed, or whose part is damaged, are decoded.

    A file is known by folder, name, size and times of change, and by the settings that alter pixels. Parts are built in
    a temporary folder and renamed when complete; other processes that want the same ones wait.

    Args:
        index: from ``index_scans``.
        config: the same settings; ``cache_dir``, ``max_side``, ``pixel_um``, ``neutralise_borders`` and ``grey_range``
            are used.
        progress: show a progress bar, or a line a minute where there is no terminal, and the announcement of a large
            build on stderr.

    Returns:
        The index without the files left out and with the notes of the cache behind its own, and the cache, aligned with
        it: scan i is ``cache[i]``.

    Raises:
        InputError: no file of the index is usable, the cache folder cannot be written or is too full, or a setting is
            out of range.
    """
    check_settings(config, "dataset.")
    root, stamps = cache_root(config), _stamps(index, config)
    prefix = _prefix(index, config)
    found = _find(_segments(root, prefix), stamps, config)
    if found.missing.size:
        try:
            private_folder(root)
            with naming(root), _locked(root / f".{prefix}.lock", progress):
                found = _find(_segments(root, prefix, mend=True), stamps, config)
                for _ in range(3):  # twice where new files change the grey range of old ones
                    if found.missing.size:
                        left = found.missing.tolist()
                        reasons = build(index, config, stamps, left, found.levels, root / prefix, progress)
                        found = _find(_segments(root, prefix), stamps, config, reasons)
        except OSError as error:
            if is_full(error):
                raise
            raise InputError(
                f"cannot write the scan cache in {root}: {error.strerror or error}; name another folder with cache_dir "
                "or $DINO_OCT_CACHE"
            ) from error
    keep = found.of >= 0
    unkept = "its decoded copy could not be kept"  # removed by another process at this moment
    skipped = [(index.files[i], found.reasons.get(i, unkept)) for i in np.flatnonzero(~keep).tolist()]
    if not keep.any():
        file, reason = skipped[0]
        raise InputError(f"{index.root}: none of the {len(skipped):,} images can be used; first: {file}: {reason}")
    index = index.subset(keep)
    used, of = np.unique(found.of[keep], return_inverse=True)
    cache = ScanCache([found.segments[i] for i in used], of, found.rows[keep])
    cache.skipped, cache.grey_range = skipped, found.grey_range
    cache.notes = _notes(index, config, cache, [found.levels.get(i) for i in np.flatnonzero(keep).tolist()])
    return replace(index, notes=(*index.notes, *cache.notes)), cache


def recorded_grey_range(index: ScanIndex, config: DatasetConfig) -> GreyRange | None:
    """The grey range by which deep images of an index were read; None where its cache is missing or has none."""
    return _find(_segments(cache_root(config), _prefix(index, config)), _stamps(index, config), config).grey_range


# ---- what there is ---------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """Where the scans of an index are.

    Attributes:
        of: (N,) position in ``segments``; -1 where a scan is in none.
        rows: (N,) position in that part.
        reasons: position in the index → why a file cannot be used.
        levels: position → of deep images, whatever range they were read by.
        grey_range: of the deep images; None where there are none.
    """

    segments: list[Segment]
    of: np.ndarray
    rows: np.ndarray
    reasons: dict[int, str]
    levels: dict[int, Levels] = field(default_factory=dict)
    grey_range: GreyRange | None = None

    @property
    def missing(self) -> np.ndarray:
        """Positions of the files that are to be decoded."""
        missing = np.flatnonzero(self.of < 0)
        return missing[[i not in self.reasons for i in missing.tolist()]] if self.reasons else missing


def _segments(root: Path, prefix: str, mend: bool = False) -> list[Segment]:
    """The sound parts of a cache; ``mend``: say once that one is damaged, and remove it."""
    segments, damage = [], None
    for place in sorted(root.glob(f"{prefix}-*")):
        try:
            segments.append(Segment(place))
        except ValueError as error:
            damage = error
            if mend:
                with contextlib.suppress(OSError):  # another user's
                    remove(place)
    if damage and mend:
        print(f"scan cache damaged, decoding again: {damage}", file=sys.stderr, flush=True)
    return segments


def _find(
    segments: list[Segment], stamps: np.ndarray, config: DatasetConfig, reasons: dict[bytes, str] | None = None
) -> _Found:
    """Where files with these stamps are; of deep images, read by one range for all of them.

    Args:
        reasons: stamp → why a file cannot be used, beside what the parts say.
    """
    reasons = dict(reasons or {})
    for segment in segments:
        reasons |= segment.skipped
    known = {i: reasons[stamp] for i, stamp in enumerate(stamps.tolist()) if stamp in reasons} if reasons else {}
    found = _Found(segments, np.full(len(stamps), -1), np.zeros(len(stamps), dtype=np.int64), known)
    if not segments:
        return found
    all_stamps = np.concatenate([segment.tables["stamps"] for segment in segments])
    of = np.concatenate([np.full(len(segment), s) for s, segment in enumerate(segments)])
    rows = np.concatenate([np.arange(len(segment)) for segment in segments])
    order = np.argsort(all_stamps, kind="stable")
    first = np.searchsorted(all_stamps, stamps, "left", sorter=order)
    last = np.searchsorted(all_stamps, stamps, "right", sorter=order)
    there = np.flatnonzero(last > first)
    at = order[first[there]]
    found.of[there], found.rows[there] = of[at], rows[at]
    kinds = np.concatenate([segment.tables["deep"]["kind"] for segment in segments])
    deep = there[kinds[at] > 0].tolist()
    if not deep:
        return found
    found.levels = {i: segments[found.of[i]].levels(found.rows[i]) for i in deep}
    found.grey_range = given_range(config.grey_range) or choose_range(found.levels.values())
    whites = np.concatenate([segment.tables["deep"]["white"] for segment in segments])
    for i in deep:  # a file may be there several times, each read by another range
        versions = order[first[i] : last[i]]
        right = versions[whites[versions] == getattr(found.grey_range, KINDS[kinds[versions[0]]])]
        found.of[i], found.rows[i] = (of[right[0]], rows[right[0]]) if len(right) else (-1, 0)
    return found


def _prefix(index: ScanIndex, config: DatasetConfig) -> str:
    """Of the folders of all parts with the scans of a folder under the settings that alter pixels."""
    content = hashlib.sha256()
    grey_range = given_range(config.grey_range)  # 4095 and 4095.0 are one
    content.update(repr((VERSION, config.neutralise_borders, config.max_side, grey_range)).encode())
    # The root belongs to the key: archives unpacked with fixed times can agree in name, size and time.
    content.update(os.fsencode(index.root.resolve()))
    return f"scans-{content.hexdigest()[:16]}"


def _stamps(index: ScanIndex, config: DatasetConfig) -> np.ndarray:
    """(N,) S20 of each file as it is now, and of what is done to it alone."""
    stretches = index.stretches(config.pixel_um).tolist()
    stamps = []
    for i, file in enumerate(index.files):
        try:
            status = os.stat(index.path(i))
            # An edit may keep size and time of modification; the time of the change of status cannot be set.
            stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:
            stamp = (-1, -1, -1)
        content = b"\0".join((os.fsencode(file), repr(stamp).encode(), repr(stretches[i]).encode()))
        stamps.append(hashlib.blake2b(content, digest_size=10).hexdigest())
    return np.array(stamps, dtype="S20")


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


# ---- what to say -----------------------------------------------------------------------------------------------------


def _notes(
    index: ScanIndex, config: DatasetConfig, cache: ScanCache, levels: Sequence[Levels | None]
) -> tuple[str, ...]:
    """What a user should know about how the files were read."""
    bits = cache._table("remarks")
    remarked = {
        remark: [index.files[i] for i in np.flatnonzero(bits & (1 << bit)).tolist()]
        for bit, remark in enumerate(REMARK_BITS)
    }
    kinds = cache._table("deep")["kind"]
    deep = {kind: np.flatnonzero(kinds == k).tolist() for k, kind in enumerate(KINDS) if k}
    notes = []
    if cache.grey_range:
        parts = [
            f"0 to {getattr(cache.grey_range, kind):g} for {counted(len(positions), 'file')} of {kind}"
            for kind, positions in deep.items()
            if positions
        ]
        why = "decided over all of them; dataset.grey_range sets another"
        if config.grey_range != "auto":
            why = "as dataset.grey_range says"
        notes.append(f"grey range of deep images (16-bit, 32-bit, float): {', '.join(parts)} ({why})")
        if config.grey_range == "auto":
            darker = [
                index.files[i]
                for kind, positions in deep.items()
                for i in positions
                if getattr(choose_range([levels[i]]), kind) * _FAR < getattr(cache.grey_range, kind)
            ]
            if darker:
                text = (
                    f"are more than {_FAR} times darker than the grey range: from another device, or saved with fewer"
                )
                notes.append(_counted(sorted(darker), f"{text} bits?"))
    notes += [_counted(remarked[remark], text) for remark, text in REMARKS.items() if remarked[remark]]
    inverted = [index.files[i] for i in np.flatnonzero(are_inverted(cache.brightness)).tolist()]
    return (*notes, *([_counted(inverted, INVERTED)] if inverted else []))


def _counted(files: Sequence[str], text: str) -> str:
    """A remark with the number of its files and some of them."""
    examples = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
    return f"{len(files):,} {'scans' if len(files) > 1 else 'scan'}: {text} ({examples})"
