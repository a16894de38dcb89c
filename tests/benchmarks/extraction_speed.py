"""Images per second of feature extraction in bfloat16 and float32, and the time to read features back.

    python tests/benchmarks/extraction_speed.py                                    a ViT-S/16 at 224 px
    python tests/benchmarks/extraction_speed.py --architecture vit_base_patch8_224 --scans 16

The float32 way is timm's model run eagerly, as any script would; repeats are interleaved, the best of each counts.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dino_oct.cli import run_command
from dino_oct.devices import default_device
from dino_oct.models.frozen import load_frozen
from dino_oct.models.network import normalise
from evaluation.inputs.feature_cache import FeatureCache, of_network
from evaluation.inputs.preprocessing import Preprocessing


@dataclass
class Options:
    """Compare the precisions of feature extraction."""

    architecture: str = "vit_small_patch16_224"
    """timm's name."""
    image_size: tuple[int, int] = (224, 224)
    """Rows and columns."""
    scans: int = 128
    batch_size: int = 32
    repeats: int = 3
    threads: int = 2
    """On a CPU."""


class Scans(list):
    """Scans with digests, as ``ScanCache`` has."""

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        super().__init__(rng.integers(0, 255, (496, 512), dtype=np.uint8) for _ in range(count))
        self.digests = np.array([str(i) for i in range(count)], dtype="S32")


@torch.no_grad()
def eager(backbone: torch.nn.Module, images: torch.Tensor, device: torch.device, batch_size: int) -> np.ndarray:
    """CLS features by a plain loop in float32."""
    batches = (normalise(batch.to(device), backbone) for batch in images.split(batch_size))
    return torch.cat([backbone.forward_features(batch)[:, 0].cpu() for batch in batches]).numpy()


def main(options: Options) -> None:
    """Print images per second of each way, how far bfloat16 is off, and milliseconds of a cached read."""
    torch.set_num_threads(options.threads)
    device = default_device()
    network = load_frozen(f"random:{options.architecture}", device)
    scans, preprocessing = Scans(options.scans), Preprocessing(options.image_size)
    images = preprocessing(scans)
    ways = {
        "eager float32": lambda: eager(network, images, device, options.batch_size),
        "toolkit fp32": lambda: of_network(network, device, options.batch_size).extract(images),
        "toolkit bf16": lambda: of_network(network, device, options.batch_size, precision="bf16").extract(images),
    }
    seconds, features = {name: [] for name in ways}, {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            features[name] = way()
            seconds[name].append(time.perf_counter() - start)
    print(f"random {options.architecture}, {options.image_size[0]} × {options.image_size[1]} px, {device.type}")
    for name, times in seconds.items():
        speed = options.scans / min(times)
        difference = np.abs(features[name] - features["eager float32"]).max() / np.abs(features["eager float32"]).max()
        print(
            f"{name:14} {speed:7.1f} images/s  {min(seconds['eager float32']) / min(times):5.2f} × eager float32  "
            f"largest difference {difference:.1e} of the range"
        )
    with tempfile.TemporaryDirectory() as folder:
        cache, positions = FeatureCache(Path(folder)), np.arange(options.scans)
        extraction = {"model": of_network(network, device, options.batch_size)}
        cache.get(scans, positions, preprocessing, extraction)
        start = time.perf_counter()
        cache.get(scans, positions, preprocessing, extraction)
        print(f"read back from the cache: {1000 * (time.perf_counter() - start):.1f} ms")


if __name__ == "__main__":
    run_command(main, Options)
