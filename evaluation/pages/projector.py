"""Features for TensorBoard's embedding projector, with classes, patients, files and the scans themselves."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch.utils.tensorboard import SummaryWriter

from dino_oct.errors import InputError
from dino_oct.files import naming
from dino_oct.streams import short_seed_of

MOST_COLUMNS = 256  # the projector reads features as text: wider ones are cut to this many principal components
_CONFIG = "projector_config.pbtxt"


def write_projector(
    features: dict[str, np.ndarray],
    columns: Sequence[str],
    metadata: Sequence[Sequence[str]],
    images: np.ndarray,
    folder: Path,
) -> list[str]:
    """Write one embedding a row of features into a folder of its own, in place of what an earlier export left there.

    Args:
        features: row name → (N, D).
        columns: names of the metadata, and metadata: N rows of them.
        images: (N, side, side) uint8, shown at the points.

    Returns:
        notes.

    Raises:
        InputError: the folder holds something other than an earlier export.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _CONFIG).is_file():
            raise InputError(f"{folder}: not an earlier export for the projector, and not empty; give another --out")
        shutil.rmtree(folder)
    notes = []
    rows = [[re.sub(r"\s+", " ", value) for value in row] for row in metadata]  # a tab would end its column
    sprites = torch.from_numpy(images).float()[:, None].expand(-1, 3, -1, -1) / 255
    with naming(folder), SummaryWriter(str(folder)) as writer:
        for name, values in features.items():
            if min(values.shape) > MOST_COLUMNS:
                reduced = PCA(
                    MOST_COLUMNS, svd_solver="randomized", random_state=short_seed_of("components for the projector")
                ).fit(values)
                kept = 100 * reduced.explained_variance_ratio_.sum()
                notes.append(
                    f"projector: {name}: {MOST_COLUMNS} principal components of {values.shape[1]} features "
                    f"({kept:.1f} % of the variance)"
                )
                values = reduced.transform(values)
            digits = 4 - int(np.floor(np.log10(max(float(np.abs(values).max()), 1e-30))))
            short = np.round(values.astype(np.float64), digits)  # float32 would be written with 17 digits
            writer.add_embedding(short, rows, sprites, tag=name, metadata_header=list(columns))
    return notes
