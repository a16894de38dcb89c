"""What commands import, at once and late; a server of clean processes holds it (``clean_process``)."""

import encodings.utf_8_sig  # noqa: F401
import importlib
import os
from pathlib import Path

# One thread: OpenMP does not survive a fork.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}
os.environ |= ONE_THREAD

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)
Image.init()  # its readers are imported late: another user may not read the environment that the tests run in

REPOSITORY = Path(__file__).resolve().parents[1]
for package in ("dino_oct", "supervised", "evaluation"):
    for file in sorted((REPOSITORY / package).rglob("*.py")):
        importlib.import_module(".".join(file.relative_to(REPOSITORY).with_suffix("").parts))

from evaluation.scores.embeddings import umap_map  # noqa: E402

umap_map(np.random.default_rng(0).random((12, 4)), 0, n_neighbours=3)  # numba compiles once, not in each fork
