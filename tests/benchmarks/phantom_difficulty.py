"""How hard phantoms are: what pixels, grey statistics and a small supervised network make of them.

    python tests/benchmarks/phantom_difficulty.py [--phantom.depth 0.5] [--phantom.seed 1] [--epochs 4]

k-NN (k=5, weighted) on pixels and on grey statistics, and a small CNN trained with labels, all judged on unseen
patients. Pixels should not solve phantoms, statistics should be near chance (25 %), and the CNN should solve them: then
the classes lie in the lesions.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dino_oct.cli import run_command
from dino_oct.data.index import DatasetConfig
from dino_oct.data.load import load_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.features import pixel_features, resize_all
from dino_oct.knn import knn_votes

BATCH = 64


@dataclass
class Options:
    """Measure how hard phantoms are."""

    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    epochs: int = 4
    """Passes of the small CNN over the training scans."""


def statistics(images: torch.Tensor) -> np.ndarray:
    """Mean, standard deviation and nine percentiles of each image (N, 1, H, W) uint8."""
    pixels = images.flatten(1).numpy().astype(np.float32)
    percentiles = np.percentile(pixels, [1, 5, 10, 25, 50, 75, 90, 95, 99], axis=1).T
    return np.concatenate([pixels.mean(1, keepdims=True), pixels.std(1, keepdims=True), percentiles], axis=1)


class MeanAndMaximum(nn.Module):
    """Global pooling that keeps a small bright spot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)


def small_cnn(n_classes: int) -> nn.Module:
    """Four convolutions, 0.1 M parameters."""

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    stem = [nn.Conv2d(1, 12, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    middle = [*block(12, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2), *block(64, 96)]
    return nn.Sequential(*stem, *middle, MeanAndMaximum(), nn.Linear(192, n_classes))


def standardise(images: torch.Tensor) -> torch.Tensor:
    """Each image to mean 0 and deviation 1: gain and brightness are no clue."""
    images = images.float()
    return (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)


def supervised_accuracy(train: torch.Tensor, labels: np.ndarray, test: torch.Tensor, epochs: int, seed: int):
    """Predictions of the small CNN for the test images."""
    torch.manual_seed(seed)
    train, test, labels = standardise(train), standardise(test), torch.from_numpy(labels)
    net = small_cnn(int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    size = min(BATCH, len(train))
    steps = len(train) // size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(train))[: steps * size].view(steps, size):
            images = train[batch].flip(3) if torch.rand(1) < 0.5 else train[batch]
            images = images.roll(torch.randint(-8, 9, (2,)).tolist(), (2, 3))
            loss = F.cross_entropy(net(images), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in test.split(96)]).argmax(1).numpy()


def main(options: Options) -> None:
    index, scans = load_scans("phantom", DatasetConfig(), options.phantom, print)
    train, test = index.positions("train"), index.positions("test")
    labels, truth = index.labels[train], index.labels[test]
    images = resize_all([scans[i] for i in [*train, *test]], options.phantom.size)

    def knn(features: np.ndarray) -> np.ndarray:
        votes = knn_votes(features[: len(train)], labels, features[len(train) :], [5], len(index.class_names))
        return votes[5].argmax(1)

    grey = statistics(images)
    grey = (grey - grey[: len(train)].mean(0)) / grey[: len(train)].std(0)
    rows = {
        "k-NN on pixels": knn(pixel_features(images)),
        "k-NN on grey statistics": knn(grey),
        "small CNN, with labels": supervised_accuracy(
            images[: len(train)], labels, images[len(train) :], options.epochs, options.phantom.seed
        ),
    }
    print(f"accuracy on {len(set(index.patients[test]))} unseen patients, {len(index.class_names)} classes:")
    for name, predicted in rows.items():
        print(f"  {name:<26} {100 * (predicted == truth).mean():5.1f} %")


if __name__ == "__main__":
    run_command(main, Options)
