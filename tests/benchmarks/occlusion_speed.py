"""Occlusion maps of four classes against captum's, and what Grad-CAM costs beside a forward pass.

    python tests/benchmarks/occlusion_speed.py [--architecture resnet26] [--size 128] [--threads 1]

Both sweep the same windows with the same fill and batch size, on the CPU with random weights; captum needs a sweep for
each class. Times are medians of interleaved rounds. Grad-CAM (one class, batches of --images) is measured in plain
forward passes of the same batch, beside the library's own way through the whole network; maps are compared.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import Occlusion
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from dino_oct.cli import run_command
from evaluation.maps.cam import gradcam
from evaluation.maps.occlude import occlude
from supervised.architectures import build


@dataclass
class Options:
    """Time of occlusion and Grad-CAM."""

    architecture: str = "resnet26"
    """Of timm."""
    size: int = 128
    """Rows and columns, in pixels."""
    window: int = 32
    """Side of a window; half of it is the stride."""
    batch_size: int = 16
    """Hidden images per forward pass."""
    images: int = 8
    """Of a batch of Grad-CAM."""
    rounds: int = 5
    """Of each measurement."""
    threads: int = 1
    """Of the processor."""


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each way, in turns, after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if i:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = (options.size, options.size)
    classifier = build(options.architecture, 4, image_size=size, pretrained=False)
    classifier.model.eval().requires_grad_(False)
    grey = torch.randint(256, (1, *size), dtype=torch.uint8)
    window, stride = (options.window,) * 2, (options.window // 2,) * 2

    def forward(images: torch.Tensor) -> torch.Tensor:
        return classifier.model(classifier.prepare(images))

    def ours() -> np.ndarray:
        return occlude(forward, grey, window, stride, "black", batch_size=options.batch_size).maps

    def theirs() -> np.ndarray:
        explained = Occlusion(forward)
        shape, step = (1, *window), (1, *stride)
        with torch.no_grad():
            maps = [
                explained.attribute(
                    grey[None] / 255,
                    sliding_window_shapes=shape,
                    strides=step,
                    target=k,
                    baselines=0,
                    perturbations_per_eval=options.batch_size,
                )
                for k in range(4)
            ]
        return torch.cat(maps)[:, 0].numpy()

    difference = np.abs(ours() - theirs()).max() / np.abs(theirs()).max()
    seconds = medians({"ours": ours, "captum": theirs}, options.rounds)
    print(
        f"{options.architecture}, {options.size} px, {options.threads} thread(s), window {options.window} px, 4 classes"
    )
    ratio = seconds["captum"] / seconds["ours"]
    print(
        f"occlusion: {seconds['ours']:.2f} s, captum {seconds['captum']:.2f} s: {ratio:.1f} × as fast; largest "
        f"difference {difference:.1e} of the largest value"
    )

    images = classifier.prepare(torch.randint(256, (options.images, 1, *size), dtype=torch.uint8))
    targets = torch.zeros(options.images, dtype=torch.long)

    def one_forward() -> None:
        with torch.inference_mode():
            classifier.model(images)

    layer = classifier.gradcam_layer
    maps = gradcam(classifier, images, targets)[0]
    seconds = medians({"forward": one_forward, "gradcam": lambda: gradcam(classifier, images, targets)}, options.rounds)
    # The library's hooks stay on the model, and it needs gradients of the weights: its turn comes last.
    classifier.model.requires_grad_(True)
    library = GradCAM(
        classifier.model, [classifier.model.get_submodule(layer.name)], lambda out: layer.to_maps(out, size)
    )
    seconds |= medians({"library": lambda: library(images, [ClassifierOutputTarget(0)] * len(images))}, options.rounds)
    shares = {name: seconds[name] / seconds["forward"] for name in ("gradcam", "library")}
    print(f"Grad-CAM of {options.images} images: {shares['gradcam']:.2f} forward passes, the library's own way "
          f"{shares['library']:.2f}; maps finite: {bool(np.isfinite(maps).all())}")  # fmt: skip


if __name__ == "__main__":
    run_command(main, Options)
