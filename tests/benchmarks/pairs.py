"""Does the second global view from another slice, visit, eye or scan of the patient help? On phantoms with volumes.

    python tests/benchmarks/pairs.py --seeds 0 1 2

Trains the quickstart's network on phantoms of two eyes at two visits with each kind of positive pair, and classifies
scans of patients that it has not seen by k-NN. Differences to plain DINO are paired by scan, intervals by patient.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dino_oct.cli import run_command
from dino_oct.knn import knn_votes
from dino_oct.limits import Seed
from dino_oct.scores.bootstrap import PatientBootstrap, Scale
from evaluation.config import DataOptions, KnnOptions
from evaluation.inputs.features import features_of
from evaluation.inputs.model import open_model
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import open_source

REPOSITORY = Path(__file__).resolve().parents[2]
K = 5


@dataclass
class Options:
    """Train and compare."""

    pairs: list[str] = field(default_factory=lambda: ["none", "slice", "visit", "eye", "patient"])
    seeds: list[Seed] = field(default_factory=lambda: [0])
    patients: int = 80
    epochs: int = 12
    distance: int = 1
    """Slices that a partner may be away."""
    out: Path = Path("runs/pairs")


def right(pair: str, seed: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Which test scans (M,) a network trained with a kind of pair gets right, and their patients."""
    run = options.out / f"{pair}-{seed}"
    if not (run / "export").is_dir():
        settings = [
            "--config", "configs/quickstart.yaml", "--phantom.patients", options.patients, "--phantom.slices", 7,
            "--phantom.eyes", 2, "--phantom.visits", 2, "--optim.epochs", options.epochs, "--augment.pair", pair,
            "--augment.pair-distance", options.distance, "--seed", seed, "--out", run,
        ]  # fmt: skip
        subprocess.run([sys.executable, "dino_oct/train.py", *map(str, settings)], cwd=REPOSITORY, check=True)
    source = open_source(str(run))
    data = open_data(source, DataOptions(model=(str(run),)), lambda text: None)
    model, knn = open_model(source, "model"), KnnOptions()
    train, test = data.labelled("train"), data.labelled("test")
    features = [features_of(model, knn, data, positions) for positions in (train, test)]
    labels = data.index.labels
    votes = knn_votes(features[0], labels[train], features[1], (K,), len(data.index.class_names), knn.temperature)[K]
    return votes.argmax(axis=1) == labels[test], data.index.patients[test]


def main(options: Options) -> None:
    """Print a row for each kind of pair."""
    rows = {}
    for pair in options.pairs:
        answers = [right(pair, seed, options) for seed in options.seeds]
        rows[pair], patients = np.mean([of_seed for of_seed, _ in answers], axis=0), answers[0][1]
    bootstrap = PatientBootstrap(patients)
    print(f"k-NN accuracy %, k = {K}, {len(patients):,} scans of {len(set(patients.tolist()))} patients")
    for pair, values in rows.items():
        change = ""
        if rows[options.pairs[0]] is not values:
            change = bootstrap.mean(100 * (values - rows[options.pairs[0]]), Scale.DIFFERENCE).words(signed=True)
        print(f"{pair:10}{bootstrap.mean(100 * values, Scale.PERCENT).words():24}{change}", flush=True)


if __name__ == "__main__":
    run_command(main, Options)
