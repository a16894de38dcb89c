"""Masks of lesion and retina beside the scans, as phantoms have them."""

from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dino_oct.data.index import ScanIndex
from dino_oct.errors import InputError

LESION, RETINA = 255, 128  # values in a mask file; 0 is outside the retina


def mask_file(index: ScanIndex, position: int) -> Path:
    """``masks/SPLIT/CLASS/NAME.png`` beside the split folders of scan ``position``."""
    parts = PurePosixPath(index.files[position]).with_suffix(".png").parts
    return Path(index.root).joinpath(*parts[:-3], "masks", *parts[-3:])


def read_mask(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Lesion and whole retina (lesion included), each (H, W) bool.

    Raises:
        InputError: unreadable, or values other than 0, 128 and 255.
    """
    try:
        with Image.open(file) as image:
            values = np.asarray(image.convert("L"))
    except OSError as error:
        raise InputError(f"{file}: not a readable mask ({error})") from None
    wrong = sorted(set(np.unique(values).tolist()) - {0, RETINA, LESION})
    if wrong:
        raise InputError(f"{file}: value {wrong[0]} in a mask; expected 0 outside, {RETINA} retina, {LESION} lesion")
    return values == LESION, values > 0


def scans_with_lesion(index: ScanIndex, split: str) -> np.ndarray:
    """Positions of the scans of a split whose mask has lesion pixels.

    Raises:
        InputError: no masks, or no scan with a lesion in this split.
    """
    positions = [int(i) for i in index.positions(split) if mask_file(index, i).is_file()]
    if not (Path(index.root) / "masks").is_dir() or not positions:
        raise InputError(
            f"{index.root}: no lesion masks of the {split} split (masks/SPLIT/CLASS/NAME.png); phantoms have them: "
            "--data phantom, with 12 patients or more"
        )
    found = [i for i in positions if read_mask(mask_file(index, i))[0].any()]
    if not found:
        raise InputError(f"{index.root}: no scan of the {split} split has a lesion in its mask; give more patients")
    return np.array(found, dtype=np.int64)
