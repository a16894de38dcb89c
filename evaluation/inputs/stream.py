"""Scans of any number on their way through a classifier: decoded ahead in other processes, none kept in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dino_oct.data.borders import find_borders, neutralise
from dino_oct.data.brightness import are_inverted, brightness_features
from dino_oct.data.building import digest_of_file
from dino_oct.data.cores import usable_cores
from dino_oct.data.decode import BadScan, GreyRange, decode
from dino_oct.data.index import UNLABELLED, DatasetConfig, ScanIndex
from dino_oct.data.tissue import coarse_levels, tissue_map, tissue_mask
from evaluation.inputs.model import Model
from evaluation.inputs.preprocessing import Preprocessing

_FEW = 64  # scans that are decoded in this process: others take seconds to start
_MOST_WORKERS = 8
_BORDER = 0.01  # share of the pixels from which a white border is told of
_LEAST, _MOST = 0.04, 0.85  # share of tissue of a scan that shows a retina; 8 to 65 % in scans of five sources
_CUT = 0.25  # share of the width on which tissue reaches the upper edge


@dataclass(frozen=True)
class Prepared:
    """A scan ready for a network.

    Attributes:
        position: in the index. image: (1, rows, columns) uint8; None where the file is no scan, for a ``reason``.
        digest: of its file. flags: what limits it, each a few words.
    """

    position: int
    image: torch.Tensor | None
    digest: bytes = b""
    flags: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Reading:
    """How the files of an index become images.

    Attributes:
        dataset: its ``max_side``, ``pixel_um`` and ``neutralise_borders`` are used.
        grey_range: of deep images; None where there are none.
    """

    index: ScanIndex
    dataset: DatasetConfig
    grey_range: GreyRange | None
    preprocessing: Preprocessing

    @cached_property
    def _stretches(self) -> np.ndarray:
        return self.index.stretches(self.dataset.pixel_um)

    def scan(self, i: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """Scan ``i`` (H, W) uint8 as the cache of scans would have it, and its flags; raises as ``decode``."""
        path, stretch = self.index.path(i), tuple(self._stretches[i].tolist())
        scan, _, remarks = decode(path, self.dataset.max_side, grey_range=self.grey_range, stretch=stretch)
        scan, flags = examined(scan, self.dataset.neutralise_borders)
        return scan, (*flags, *(["clipped"] if "clipped" in remarks else []))

    def prepare(self, i: int) -> Prepared:
        """Scan ``i`` for the network."""
        try:
            scan, flags = self.scan(i)
            digest = digest_of_file(self.index.path(i))
        except (BadScan, OSError) as reason:
            return Prepared(i, None, reason=str(reason))
        return Prepared(i, self.preprocessing([scan])[0], digest, flags)


@dataclass(frozen=True)
class Arrays:
    """Scans (H, W) uint8 that are in memory, as ``Reading`` has those of files; they are named 0, 1, 2, …"""

    scans: Sequence[np.ndarray]
    dataset: DatasetConfig
    preprocessing: Preprocessing

    @cached_property
    def index(self) -> ScanIndex:
        """Of which nothing is known."""
        n, names = len(self.scans), tuple(map(str, range(len(self.scans))))
        nothing = np.full(n, "", dtype=np.str_)
        labels = np.full(n, UNLABELLED, dtype=np.int64)
        return ScanIndex(Path(), names, labels, np.array(names, dtype=np.str_), nothing, (), nothing)

    def scan(self, i: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """As ``Reading.scan``."""
        return examined(np.asarray(self.scans[i]), self.dataset.neutralise_borders)

    def prepare(self, i: int) -> Prepared:
        """As ``Reading.prepare``."""
        scan, flags = self.scan(i)
        return Prepared(i, self.preprocessing([scan])[0], flags=flags)


def examined(scan: np.ndarray, neutralise_borders: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """A scan (H, W) uint8 as networks get it, and what limits it."""
    borders = find_borders(scan)
    levels = coarse_levels(scan, borders)
    tissue = tissue_mask(scan, borders, levels)
    share, cells = tissue.mean(), tissue_map(tissue)
    found = {
        "white border": borders.mean() > _BORDER,
        "no clear retina": not _LEAST < share < _MOST,
        "cut off at the top": (cells[0] > 0).mean() > _CUT and share < _MOST,
        "inverted": are_inverted(brightness_features(scan, borders, levels)[None])[0],
    }
    flags = tuple(name for name, is_so in found.items() if is_so)
    return (neutralise(scan, borders, tissue) if neutralise_borders else scan), flags


class _Decoded(Dataset):
    def __init__(self, reading: Reading | Arrays):
        self.reading = reading

    def __len__(self) -> int:
        return len(self.reading.index)

    def __getitem__(self, i: int) -> Prepared:
        return self.reading.prepare(i)


def prepared(reading: Reading | Arrays, batch_size: int) -> Iterator[list[Prepared]]:
    """All scans of an index in their order, a batch at a time; files that are no scans included."""
    is_quick = len(reading.index) <= _FEW or isinstance(reading, Arrays)
    workers = 0 if is_quick else min(usable_cores(), _MOST_WORKERS)
    loader = DataLoader(_Decoded(reading), batch_size, num_workers=workers, collate_fn=list)
    with tqdm(total=len(reading.index), desc="scans", unit="scan", disable=None, leave=False) as bar:
        for batch in loader:
            yield batch
            bar.update(len(batch))


@torch.no_grad()
def answers(model: Model, images: torch.Tensor, bf16: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, C) float64 of images (B, 1, rows, columns) uint8, and the classifier's input (B, D) float32, by one
    pass."""
    seen: list[torch.Tensor] = []
    layer = model.model.get_submodule(model.embedding_layer)
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logits = model.forward(images)
    finally:
        hook.remove()
    return logits.double().cpu().numpy(), seen[0].flatten(1).float().cpu().numpy()
