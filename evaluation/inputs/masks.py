"""Masks of lesion and retina: those of phantoms, or a folder of PNG files beside any scans."""

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from dino_oct.data.decode import BadScan, open_image, upright
from dino_oct.data.tissue import tissue_mask
from dino_oct.errors import InputError
from dino_oct.scan_data import ScanData
from evaluation.config import MaskOptions

LESION, RETINA = 255, 128  # values in a phantom's mask; 0 is outside the retina
_PHANTOM_VALUES = {0, RETINA, LESION}
_LISTED = 8  # values that a note has room for


@dataclass(frozen=True)
class Mask:
    """Lesion and whole retina (lesion included) of one scan, each (H, W) bool."""

    lesion: np.ndarray
    retina: np.ndarray


class LesionMasks:
    """Where the masks of an index of scans are, and what their values mean.

    A scan ``SPLIT/CLASS/NAME.jpeg`` has its mask in ``SPLIT/CLASS/NAME.png``, ``CLASS/NAME.png`` or ``NAME.png`` of the
    folder, in the size of the scan's file. A place that several scans would share is refused. Without a given folder,
    the column ``mask`` of a table says each scan's file, beside the scans or absolute; scans without one have none.

    Unset values mean what ``MaskOptions`` says; a retina without values is estimated by ``data.tissue``.

    Raises:
        InputError: no such folder, or a value that is given for both. Values of phantoms in masks of other scans are
            refused by whatever reads them, unless one of the two is given.
    """

    def __init__(self, data: ScanData, options: MaskOptions):
        self.data = data
        self._named = None if options.masks else data.index.facts.get("mask")
        self.folder = Path(options.masks or Path(data.index.root) / ("" if self._named is not None else "masks"))
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder}: no such folder of lesion masks; give one with --masks DIR (DIR/SPLIT/CLASS/NAME.png), "
                "a column 'mask' in a table of scans, or use phantoms, which have them (--data phantom)"
            )
        if both := set(options.lesion_values) & set(options.retina_values):
            raise InputError(f"mask value {both.pop()} is given for the lesion and for the retina; give it once")
        self._has_given_values = bool(options.lesion_values or options.retina_values)
        self.lesion_values = tuple(options.lesion_values) or ((LESION,) if data.is_phantom else ())
        self.retina_values = tuple(options.retina_values) or ((RETINA,) if data.is_phantom else ())

    @property
    def estimates_retina(self) -> bool:
        """Whether the retina comes from the scan's brightness and not from the mask."""
        return not self.retina_values

    def file(self, i: int) -> Path | None:
        """The mask file of scan ``i``, None where there is none; InputError if it would be another scan's as well."""
        if self._named is not None:
            if not self._named[i]:
                return None
            if not (file := self.folder / self._named[i]).is_file():
                raise InputError(f"{file}: no such mask, which the table names for {self.data.index.files[i]}")
            return file
        place = next((place for place in _places(self.data.index.files[i]) if (self.folder / place).is_file()), None)
        if place is None:
            return None
        if len(scans := self._scans_of[place]) > 1:
            raise InputError(
                f"{self.folder / place}: is it the mask of {scans[0]} or of {scans[1]}? {len(scans)} scans share this "
                f"name; give masks as {self.folder}/SPLIT/CLASS/NAME.png, one for each scan"
            )
        return self.folder / place

    @cached_property
    def _scans_of(self) -> dict[PurePosixPath, list[str]]:
        """Place of a mask → the scans that would have it."""
        scans = defaultdict(list)
        for file in self.data.index.files:
            for place in _places(file):
                scans[place].append(file)
        return scans

    @cached_property
    def values(self) -> frozenset[int]:
        """Every value in the masks of these scans; raises as ``read_values`` and ``file``."""
        files = {file for i in range(len(self.data.index)) if (file := self.file(i)) is not None}
        return frozenset(value for file in sorted(files) for value in np.unique(read_values(file)).tolist())

    def notes(self) -> list[str]:
        """What a reader must know about the meaning of the values: one line, or none; raises as ``values``."""
        if self.lesion_values or len(counted := sorted(self.values - {0} - set(self.retina_values))) < 2:
            return []
        shown = ", ".join(map(str, counted[:_LISTED])) + (f", … ({len(counted)} values)" if counted[_LISTED:] else "")
        return [f"masks of several values: {shown} all count as lesion; --lesion-values says which"]

    def digest(self) -> str:
        """Of the contents of all masks and the meaning of their values: equal where every mask reads the same."""
        digest = hashlib.sha256(repr((self.lesion_values, self.retina_values)).encode())
        for i, name in enumerate(self.data.index.files):
            if (file := self.file(i)) is not None:
                digest.update(os.fsencode(name) + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def read(self, i: int) -> Mask:
        """The mask of scan ``i``.

        Raises:
            InputError: no mask, unreadable, in colours, of another size than its scan, another scan's as well, or with
                a value that has no meaning or an uncertain one.
        """
        file = self.file(i)
        if file is None:
            raise InputError(f"{self.data.index.files[i]}: no mask in {self.folder} (SPLIT/CLASS/NAME.png)")
        values = read_values(file)
        size = tuple(self.data.scans.original_sizes[i].tolist())
        scan = self.data.scans[i]
        if values.shape not in (size, scan.shape):
            raise InputError(
                f"{file}: a mask of {values.shape[0]} × {values.shape[1]} px for a scan of {size[0]} × {size[1]}; give "
                "masks in the size of their scans (nearest neighbour keeps labels), or remove this one"
            )
        is_phantom, is_given = self.data.is_phantom, self._has_given_values
        if not is_given and not is_phantom and self.values | {0} == _PHANTOM_VALUES:
            raise InputError(
                f"{self.folder}: its masks hold 0, {RETINA} and {LESION} like those of phantoms, where {RETINA} is the "
                f"retina, but these scans are no phantoms; give --lesion-values {LESION} --retina-values {RETINA}, or "
                f"--lesion-values {RETINA} {LESION} if both are lesions"
            )
        if not is_given and is_phantom and (wrong := sorted(set(np.unique(values).tolist()) - _PHANTOM_VALUES)):
            raise InputError(
                f"{file}: value {wrong[0]} in a mask; expected 0 outside, {RETINA} retina, {LESION} lesion"
            )
        retina = np.isin(values, self.retina_values)
        lesion = np.isin(values, self.lesion_values) if self.lesion_values else (values != 0) & ~retina
        if self.estimates_retina:
            tissue = tissue_mask(np.asarray(scan))
            rows, columns = (np.arange(n) * m // n for n, m in zip(values.shape, tissue.shape, strict=True))
            retina = tissue[rows][:, columns]  # in the mask's size, by the nearest pixel
        return Mask(lesion, lesion | retina)

    def with_lesion(self, split: str) -> np.ndarray:
        """Positions of the scans of a split whose mask has lesion pixels; InputError where there is none."""
        positions = [int(i) for i in self.data.index.positions(split) if self.file(int(i)) is not None]
        if not positions:
            raise InputError(
                f"{self.folder}: no lesion masks of the {split} split (SPLIT/CLASS/NAME.png); give masks of its scans, "
                "another split of the data, or, for phantoms, 12 patients or more"
            )
        with_lesion = [i for i in positions if self.read(i).lesion.any()]
        if not with_lesion:
            values = f"value {' or '.join(map(str, self.lesion_values))}" if self.lesion_values else "any value but 0"
            raise InputError(
                f"{self.folder}: no scan of the {split} split has a lesion ({values}) in its mask; give --lesion-values"
                ", or more patients"
            )
        return np.array(with_lesion, dtype=np.int64)


def has_masks(data: ScanData) -> bool:
    """Whether there are masks without being given: a column of a table, or a folder beside the scans."""
    return "mask" in data.index.facts or (Path(data.index.root) / "masks").is_dir()


def read_values(file: Path) -> np.ndarray:
    """Labels of a one-channel or palette PNG, (H, W) int; InputError if it is unreadable or in colours."""
    try:
        with open_image(file) as image:
            values = np.asarray(upright(image)[0]).astype(np.int64)
    except BadScan as reason:
        raise InputError(f"{file}: not a readable mask ({reason})") from None
    if values.ndim != 2:
        raise InputError(f"{file}: a mask in colours; give one channel (or a palette) whose values are labels")
    return values


def read_boundaries(data: ScanData) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Layer boundaries beside the scans, ``layers.npz`` as phantoms have it: names (L,) from the vitreous down, and
    file → rows (L, W) in pixels; both empty where there is no such file."""
    file = _layers_file(data)
    if not file.is_file():
        return (), {}
    try:
        with np.load(file, allow_pickle=False) as stored:
            names, files, rows = tuple(stored["names"].tolist()), stored["files"].tolist(), stored["rows"]
        if rows.ndim != 3 or rows.dtype.kind != "f" or rows.shape[:2] != (len(files), len(names)):
            raise ValueError(f"rows of shape {rows.shape} for {len(files)} files and {len(names)} boundaries")
    except Exception as error:  # damaged headers make numpy and zip raise almost anything
        raise InputError(
            f"{file}: damaged: not readable boundaries of layers ({' '.join(str(error).split())[:160]}); without this "
            "file scores are not told by layer"
        ) from None
    return names, dict(zip(files, rows, strict=True))


def layers_digest(data: ScanData) -> str | None:
    """Of the contents of the file that ``read_boundaries`` reads; None where there is none."""
    file = _layers_file(data)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _layers_file(data: ScanData) -> Path:
    return Path(data.index.root) / "layers.npz"


def _places(file: str) -> list[PurePosixPath]:
    """Where the mask of a scan may be, relative to the folder of masks: the longest path first."""
    parts = PurePosixPath(file).with_suffix(".png").parts
    return [PurePosixPath(*parts[-n:]) for n in range(min(len(parts), 3), 0, -1)]
