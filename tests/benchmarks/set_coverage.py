"""How often sets of predictions hold the class of new patients, over many draws of the patients that set their limit.

    python tests/benchmarks/set_coverage.py --predictions predictions/predictions.csv

A table of ``dino-oct predict`` of labelled scans. Some patients set the limit, the others are judged; again and again.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dino_oct.cli import run_command
from dino_oct.scores.calibration import class_scores, conformal_limit, prediction_sets


@dataclass
class Options:
    """Count how often sets hold the class."""

    predictions: Path = Path("predictions/predictions.csv")
    patients: tuple[int, ...] = (48, 150)
    """That set the limit."""
    coverage: tuple[float, ...] = (0.8, 0.9)
    draws: int = 300


def main(options: Options) -> None:
    """Print mean and standard deviation over the draws."""
    table = pd.read_csv(options.predictions, dtype={"patient": str})
    names = [column.removeprefix("p_") for column in table if column.startswith("p_")]
    probabilities = table[[f"p_{name}" for name in names]].to_numpy()
    labels, patients = table["label"].map(names.index).to_numpy(), pd.factorize(table["patient"])[0]
    random = np.random.default_rng(0)
    for count in options.patients:
        for coverage in options.coverage:
            held = []
            for _ in range(options.draws):
                sets = np.isin(patients, random.permutation(patients.max() + 1)[:count])
                limit = conformal_limit(class_scores(probabilities[sets], labels[sets]), patients[sets], coverage)
                inside = prediction_sets(probabilities[~sets], limit)[np.arange((~sets).sum()), labels[~sets]]
                held.append(100 * pd.Series(inside).groupby(patients[~sets]).mean().mean())
            mean, spread = np.mean(held), np.std(held)
            print(f"{count} patients, {coverage:.0%} stated: {mean:.1f} % ± {spread:.1f} (standard deviation)")


if __name__ == "__main__":
    run_command(main, Options)
