"""Scans per second of predictions, beside bare timm with a DataLoader, and whether memory grows with their number.

    python tests/benchmarks/predict_speed.py                               10,000 scans, a ViT-S/16 at 224 px
    python tests/benchmarks/predict_speed.py --scans 2000 --model random:test_vit

Both read the same JPEG files (496 × 512, drawn) with as many loader processes, and compute in float32. The bare way
decodes, resizes, normalises and computes logits. Predictions also look for borders, tissue, similar training scans and
copies of training scans. Memory is the growth of the peak of this process.
"""

import dataclasses
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dino_oct.cli import run_command
from dino_oct.data.cores import usable_cores
from dino_oct.data.index import DatasetConfig, index_files
from dino_oct.data.phantom import PhantomConfig, write_phantoms
from evaluation.config import ClassTargetOptions
from evaluation.inputs import fitted as kept
from evaluation.inputs.model import as_classifier, open_model
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import open_source
from evaluation.inputs.stream import Reading
from evaluation.protocols.predict import predict

_BATCH, _DRAWN = 32, 240


@dataclass
class Options:
    """Time predictions."""

    scans: int = 10_000
    model: str = "random:vit_small_patch16_224"
    bare: int = 1000
    """Scans of each pass of the bare way, one before the predictions and one after them."""


class Files(Dataset):
    """What a user of timm would write."""

    def __init__(self, files: list[str], size: tuple[int, int], mean: float, std: float):
        self.files, self.size, self.mean, self.std = files, size, mean, std

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        image = Image.open(self.files[i], formats=("JPEG",)).convert("RGB")
        image = image.resize(self.size[::-1], Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std


def main(options: Options) -> None:
    """Print scans per second of both ways, their ratio, and the growth of memory."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "drawn")
        write_phantoms(folder, PhantomConfig(_DRAWN // 4, 4, (496, 512)))
        drawn = sorted(folder.rglob("*.jpeg"))
        files = [str(Path(work, f"{i}.jpeg")) for i in range(options.scans)]
        for i, file in enumerate(files):
            os.link(drawn[i % len(drawn)], file)
        source = open_source(options.model)
        target = ClassTargetOptions(data=str(folder), classifier="probe")
        data = open_data(source, target)
        model = as_classifier(open_model(source), target, data)
        fitted = kept.fit(model, data)
        reading = Reading(index_files(files), DatasetConfig(), None, model.preprocessing())

        def ours(n: int) -> float:
            start = time.perf_counter()
            predict(model, fitted, dataclasses.replace(reading, index=reading.index.subset(np.arange(n))), 0.9, _BATCH)
            return n / (time.perf_counter() - start)

        def bare(n: int) -> float:
            start = time.perf_counter()
            loader = DataLoader(Files(files[:n], model.input_size, 0.5, 0.5), _BATCH, num_workers=usable_cores())
            with torch.no_grad():
                for images in loader:
                    model.model(images.to(model.device)).cpu()
            return n / (time.perf_counter() - start)

        few = min(options.bare, options.scans)
        ours(few)
        before, first = bare(few), peak()
        pace, last = ours(options.scans), peak()
        after = bare(few)
        print(f"predict {pace:.1f} scans/s; bare timm {before:.1f} before, {after:.1f} after")
        print(f"ratio {2 * pace / (before + after):.2f} of their mean")
        print(f"peak memory: {first:.0f} MB after {few:,} scans, {last:.0f} MB after {options.scans:,}")


def peak() -> float:
    """Of this process, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    run_command(main, Options)
