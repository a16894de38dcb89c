"""The way of a scan to a network as a transform, and scans as a Dataset of torch."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dino_oct.data.decode import BadScan, decode
from dino_oct.data.index import DatasetConfig
from dino_oct.data.load import load_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.errors import InputError
from dino_oct.features import resize
from evaluation.inputs.stream import examined


def as_scan(array: np.ndarray) -> np.ndarray:
    """A grey scan (H, W) uint8, of uint8 or of floats in [0, 1].

    Raises:
        InputError: another shape, type or range.
    """
    array = np.asarray(array)
    if array.ndim != 2 or not array.size:
        raise InputError(f"an array of shape {array.shape}: expected a grey scan (rows, columns)")
    if array.dtype == np.uint8:
        return array
    is_float = np.issubdtype(array.dtype, np.floating)
    if is_float and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        return np.round(255 * array).astype(np.uint8)
    raise InputError(f"an array of {array.dtype}: expected uint8, or floats from 0 to 1")


@dataclass(frozen=True)
class Transform:
    """From a scan to the input of a network; it can be pickled and knows no network.

    Attributes:
        size: rows and columns; mean, std: of each channel.
        neutralise_borders: replace white borders by the scan's own dark background.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    neutralise_borders: bool = True

    def __call__(self, scan: str | PathLike | np.ndarray | Image.Image) -> torch.Tensor:
        """(C, rows, columns) float32 of a file, a grey array (H, W) or a picture.

        Raises:
            InputError: a file that is no scan, or another kind of array.
        """
        if isinstance(scan, Image.Image):
            scan = np.asarray(scan.convert("L"))
        elif not isinstance(scan, np.ndarray):
            try:
                scan = decode(scan).scan
            except BadScan as reason:
                raise InputError(f"{scan}: {reason}") from None
        grey, _ = examined(as_scan(scan), self.neutralise_borders)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (resize(grey, self.size).float() / 255 - mean) / std


class ScanDataset(Dataset):
    """Scans of a folder, a table or phantoms, decoded once, with split and class by patient.

    Attributes:
        index: what is known of all scans; positions: (N,) of these in it; class_names: by label.

    Args:
        data: a folder, a table, or ``phantom``.
        split: train, val or test; None: all.
        transform: of a scan (H, W) uint8, such as ``OctModel.transform``; None: the scan as it is.
        settings: of reading and splitting, as ``--dataset.NAME`` has them: ``split="official"``.

    Raises:
        InputError: as the commands.
    """

    def __init__(
        self,
        data: str | PathLike,
        split: str | None = None,
        transform: Callable[[np.ndarray], Any] | None = None,
        say: Callable[[str], None] = lambda text: None,
        **settings: Any,
    ):
        known = [field.name for field in dataclasses.fields(DatasetConfig)]
        if wrong := sorted(settings.keys() - set(known)):
            raise InputError(f"ScanDataset: {wrong[0]}: no such setting; there are {', '.join(known)}")
        dataset = DatasetConfig(**settings)
        self.index, self._scans = load_scans(str(data), dataset, PhantomConfig(), say)
        self.positions = np.arange(len(self.index)) if split is None else self.index.positions(split)
        self.class_names, self.transform = self.index.class_names, transform

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        """The scan, transformed, and its label (−1 where it has none)."""
        scan = self.scan(i)
        return (self.transform(scan) if self.transform else scan), int(self.labels[i])

    def scan(self, i: int) -> np.ndarray:
        """The scan (H, W) uint8 without the transform."""
        return np.array(self._scans[int(self.positions[i])])

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64."""
        return self.index.labels[self.positions]

    @property
    def patients(self) -> np.ndarray:
        """(N,) str: the groups of a cross-validation."""
        return self.index.patients[self.positions]
