"""Views per second and their sharpness: the OCT multi-crop against DINO's way, in one run on one thread.

    python tests/benchmarks/augment_speed.py [--scans DIR] [--seconds 20]

Both make 2 views of 224 px and 8 of 96 px per scan. DINO's way decodes the file to RGB with PIL and uses torchvision's
transforms on PIL images for every view. Ours starts from the grey uint8 scan that the cache holds. Times are CPU
seconds of one thread; the ways take turns, batch by batch, so that other load on the machine meets all of them.
Sharpness compares our views, intensity changes off, with the same boxes cut from the original file by PIL.
"""

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from dino_oct.augment import AugmentConfig, MultiCrop
from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.views import Crops, resize_native

PLAIN = {"tilt": 0.0, "tone_p": 0.0, "speckle_p": 0.0, "blur_p": 0.0, "shadow_p": 0.0}


@dataclass
class Options:
    """Speed and sharpness of the OCT multi-crop, against DINO's views by PIL and torchvision."""

    scans: str = ""
    """Folder of scans (searched in depth); unset: phantoms, drawn for the occasion."""
    seconds: float = 20.0
    """CPU time to spend."""
    count: int = 48
    """Scans to use, spread over the folder."""


class DinoViews:
    """2 global and 8 local views of an RGB PIL image, as DINO's data augmentation describes them."""

    def __init__(self):
        def pipeline(size: int, scale: tuple[float, float], blur_p: float, solarize_p: float) -> transforms.Compose:
            return transforms.Compose([
                transforms.RandomResizedCrop(size, scale, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(0.5),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(0.2),
                transforms.Lambda(lambda image: _blur(image, blur_p)),
                transforms.RandomSolarize(128, solarize_p),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ])  # fmt: skip

        local = pipeline(96, (0.05, 0.4), 0.5, 0.0)
        self.pipelines = [pipeline(224, (0.4, 1.0), 1.0, 0.0), pipeline(224, (0.4, 1.0), 0.1, 0.2), *[local] * 8]

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [views(image) for views in self.pipelines]


def _blur(image: Image.Image, p: float) -> Image.Image:
    if random.random() >= p:
        return image
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def main(options: Options) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        files = _files(options.scans, options.count) if options.scans else _phantoms(Path(folder), options.count)
        scans = [np.asarray(Image.open(file).convert("L")) for file in files]
        shapes = sorted({f"{scan.shape[0]}x{scan.shape[1]}" for scan in scans})
        kind = "scans" if options.scans else "phantoms"
        print(f"{len(files)} {kind} of {', '.join(shapes)}; 2x224 + 8x96 views; 1 thread")
        _report_speed(files, scans, options.seconds)
        _report_sharpness(files, scans)


def _files(folder: str, count: int) -> list[Path]:
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not files:
        raise InputError(f"{folder}: no .jpg, .jpeg or .png below it; name a folder of scans")
    return files[:: max(len(files) // count, 1)][:count]


def _phantoms(folder: Path, count: int) -> list[Path]:
    from dino_oct.data.phantom_draw import CLASSES, draw_phantom

    for i in range(count):
        label = CLASSES[i % len(CLASSES)]
        image = draw_phantom(label, patient=i, scan=0, size=(496, 512)).image
        Image.fromarray(image).save(folder / f"{label}-{i}-1.jpeg", quality=90)
    return sorted(folder.iterdir())


def _report_speed(files: list[Path], scans: list[np.ndarray], seconds: float) -> None:
    dino = DinoViews()
    tissue = np.ones((len(scans), 16, 16), np.float32)
    batches = [range(first, min(first + 16, len(files))) for first in range(0, len(files), 16)]
    decoded = [Image.open(file).convert("RGB") for file in files]
    ours = {
        "ours, whole path": MultiCrop(AugmentConfig(), 0),
        "ours, crops alone": MultiCrop(AugmentConfig(**PLAIN), 0),
        "ours, parity preset": MultiCrop(AugmentConfig(preset="parity"), 0),
    }

    def from_files(batch: range, epoch: int) -> None:
        for i in batch:
            dino(Image.open(files[i]).convert("RGB"))

    def from_memory(batch: range, epoch: int) -> None:
        for i in batch:
            dino(decoded[i])

    def by(augment: MultiCrop) -> Callable[[range, int], None]:
        return lambda batch, epoch: augment([scans[i] for i in batch], tissue[batch.start : batch.stop], batch, epoch)

    ways = {"DINO's way from the file": from_files, "DINO's way, decoding not counted": from_memory}
    ways |= {name: by(augment) for name, augment in ours.items()}
    spent, made = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for way in ways.values():
        way(batches[0], 0)  # first calls allocate and plan
    turn = 0
    while sum(spent.values()) < seconds:
        epoch, batch = divmod(turn, len(batches))
        for name, way in ways.items():
            start = time.process_time()
            way(batches[batch], epoch)
            spent[name] += time.process_time() - start
            made[name] += len(batches[batch])
        turn += 1
    rates = {name: made[name] / spent[name] for name in ways}
    reference = rates["DINO's way from the file"]
    for name, rate in rates.items():
        print(f"{name:<34}{rate:8.1f} images/s a core  {rate / reference:6.1f} x  ({made[name]} images)")


def _report_sharpness(files: list[Path], scans: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    for size, low, high in ((224, 0.4, 1.0), (96, 0.05, 0.4)):
        ours, theirs = [], []
        for file, scan in zip(files, scans, strict=True):
            height, width = (max(int(side * rng.uniform(low, high) ** 0.5), 1) for side in scan.shape)
            top, left = rng.integers(scan.shape[0] - height + 1), rng.integers(scan.shape[1] - width + 1)
            box = [np.array([value]) for value in (0, top, left, height, width, 0.0, False)]
            ours.append(resize_native([scan], Crops(*box), size)[0])
            with Image.open(file) as image:
                box = (left, top, left + width, top + height)
                theirs.append(np.asarray(image.convert("L").resize((size, size), Image.Resampling.BICUBIC, box=box)))
        a, b = np.stack(ours).astype(np.float64), np.stack(theirs).astype(np.float64)
        error, psnr = np.abs(a - b).mean(), 10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-12))
        ratio = _laplacian_energy(a) / _laplacian_energy(b)
        print(
            f"sharpness at {size} px: mean difference to the original file's crop {error:.3f} grey levels, "
            f"PSNR {psnr:.1f} dB, Laplacian energy {ratio:.4f} x"
        )


def _laplacian_energy(images: np.ndarray) -> float:
    inner = images[:, 1:-1, 1:-1]
    neighbours = images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]
    return float(((4 * inner - neighbours) ** 2).mean())


if __name__ == "__main__":
    run_command(main, Options)
