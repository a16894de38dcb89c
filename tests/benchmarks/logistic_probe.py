"""Speed and accuracy of the logistic probe beside scikit-learn's LogisticRegression, on the same features and C.

    python tests/benchmarks/logistic_probe.py                      20,000 × 768, 4 classes, 20 values of C
    python tests/benchmarks/logistic_probe.py --scans 2000 --dims 128 --n-c 5

Features are drawn so that classes overlap and directions differ in spread, as those of a backbone do. Both solve the
same problem in float32 on the same threads, scikit-learn with its own defaults.
"""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from dino_oct.cli import run_command
from dino_oct.scores.probes import logistic_path


@dataclass
class Options:
    """Compare the logistic probe with scikit-learn."""

    scans: int = 20_000
    """Training scans."""
    dims: int = 768
    """Width of the features."""
    classes: int = 4
    n_c: int = 20
    """Values of C, evenly in the logarithm."""
    c_range: tuple[float, float] = (1e-5, 1e2)
    """Smallest and largest C."""
    test_scans: int = 4000
    """Scans to classify."""
    threads: int = 2
    """Of both."""
    seed: int = 0


def draw(options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features (scans + test_scans, dims) float32, and classes."""
    rng = np.random.default_rng(options.seed)
    n = options.scans + options.test_scans
    labels = rng.integers(0, options.classes, n)
    spread = np.arange(1, options.dims + 1) ** -0.5  # directions of a backbone's features decay roughly like this
    signal = rng.normal(size=(options.classes, options.dims)) * spread * 2 / np.sqrt(options.dims)
    hidden = rng.normal(size=(n, options.dims)) * spread + signal[labels]
    mixed = hidden @ np.linalg.qr(rng.normal(size=(options.dims, options.dims)))[0]
    return ((mixed - mixed.mean(axis=0)) / mixed.std(axis=0)).astype(np.float32), labels


def main(options: Options) -> None:
    """Print seconds of both, their ratio, and the largest difference in accuracy."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(options.threads)
    features, labels = draw(options)
    train, test = features[: options.scans], features[options.scans :]
    train_labels, test_labels = labels[: options.scans], labels[options.scans :]
    cs = np.logspace(*np.log10(options.c_range), options.n_c).tolist()
    with threadpool_limits(options.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn stops at its 100 iterations for large C, and says so
        start = time.perf_counter()
        path = list(logistic_path(torch.from_numpy(train), train_labels, options.classes, cs))
        ours = time.perf_counter() - start
        start = time.perf_counter()
        theirs = [LogisticRegression(C=c).fit(train, train_labels) for c in cs]
        reference = time.perf_counter() - start
    worst = 0.0
    for (c, classifier), other in zip(path, theirs, strict=True):
        mine = 100 * (classifier.probabilities(torch.from_numpy(test)).argmax(axis=1) == test_labels).mean()
        sklearn = 100 * other.score(test, test_labels)
        worst = max(worst, abs(mine - sklearn))
        print(f"C {c:8.1e}  accuracy {mine:6.2f} %  scikit-learn {sklearn:6.2f} %")
    print(
        f"{options.scans:,} × {options.dims}, {options.classes} classes, {options.n_c} C, {options.threads} threads: "
        f"{ours:.1f} s, scikit-learn {reference:.1f} s: {reference / ours:.1f} times as fast; "
        f"accuracies differ by at most {worst:.2f} points"
    )


if __name__ == "__main__":
    run_command(main, Options)
