"""Numbers of a table predicted from frozen features by ridge regression, beside the controls."""

from dataclasses import dataclass

import numpy as np
import torch

from dino_oct.runtime import default_device
from dino_oct.scan_data import ScanData
from dino_oct.scores.label_text import target_lines
from dino_oct.scores.probes import ridge_path, standardisation
from dino_oct.scores.regression import Regression, Target, compare_numbers
from evaluation.config import LinearOptions
from evaluation.protocols.results import Features

_LEAST = 3  # scans that show whether a number is predicted


@dataclass(frozen=True)
class OnTarget:
    """A number that was predicted.

    Attributes:
        target: on the classified scans, or why there are no scores.
        fitted, chosen_on: training and validation scans of which it is known.
        c: row → inverse of the penalty that validation chose: the lowest squared error.
        rows: row → scores; differences: "model − row" → difference.
    """

    target: Target
    fitted: int
    chosen_on: int
    c: dict[str, float]
    rows: dict[str, Regression]
    differences: dict[str, Regression]


def judge_targets(
    features: dict[str, Features], data: ScanData, sets: list[np.ndarray], options: LinearOptions
) -> dict[str, OnTarget]:
    """Ridge regressions of every target on the scans of which it is known.

    Args:
        features: row → features of ``sets``.
        sets: positions of the training, validation and classified scans.
    """
    return {
        name: _judge(features, [values[positions] for positions in sets], data.index.patients[sets[-1]], options)
        for name, values in data.index.targets.items()
    }


def _judge(
    features: dict[str, Features], values: list[np.ndarray], patients: np.ndarray, options: LinearOptions
) -> OnTarget:
    known = [np.isfinite(of_set) for of_set in values]
    train, val, truth = (of_set[is_known] for of_set, is_known in zip(values, known, strict=True))
    error = float(np.abs(truth - np.median(train)).mean()) if len(train) and len(truth) else float("nan")
    undefined = ""
    if len(train) < _LEAST or np.ptp(train) == 0:
        undefined = f"known of {len(train)} training scans" if len(train) < _LEAST else "the same in all training scans"
    elif not len(val):
        undefined = "known of no validation scan, which choose the penalty"
    elif len(truth) < _LEAST:
        undefined = f"known of {len(truth)} scans to judge"
    target = Target(len(truth), len(np.unique(patients[known[-1]])), error, undefined)
    if undefined:
        return OnTarget(target, len(train), len(val), {}, {}, {})
    cs, predicted = {}, {}
    for row, of_row in features.items():
        parts = (of_row.train, of_row.val, of_row.queries)
        cs[row], predicted[row] = _predict(
            *(part[is_known] for part, is_known in zip(parts, known, strict=True)), train, val, options.cs
        )
    rows, differences = compare_numbers(
        predicted, truth, patients[known[-1]], bootstrap=options.bootstrap, seed=options.seed
    )
    return OnTarget(target, len(train), len(val), cs, rows, differences)


def _predict(
    train: np.ndarray, val: np.ndarray, queries: np.ndarray, y_train: np.ndarray, y_val: np.ndarray, cs: list[float]
) -> tuple[float, np.ndarray]:
    """The C of the lowest squared error on validation scans, and the predictions (M,) of the queries with it."""
    mean, scale = standardisation(train)
    x, x_val, x_queries = (
        torch.from_numpy((part - mean) / scale).to(default_device()) for part in (train, val, queries)
    )
    centre, spread = y_train.mean(), y_train.std()
    fits = ridge_path(x, torch.from_numpy((y_train - centre) / spread).to(x.device), cs)

    def predict(rows: torch.Tensor, c: float) -> np.ndarray:
        weight, bias = fits[c]
        return centre + spread * (rows @ weight + bias).double().cpu().numpy()

    best = min(fits, key=lambda c: float(np.square(predict(x_val, c) - y_val).mean()))
    return best, predict(x_queries, best)


def on_target_lines(targets: dict[str, OnTarget], resamples: int) -> list[str]:
    """The results as text; targets without scores with the reason."""
    lines = target_lines(
        {name: on.target for name, on in targets.items()},
        {name: on.rows for name, on in targets.items()},
        {name: on.differences for name, on in targets.items()},
        resamples,
    )
    if lines:
        lines.append("mean error: absolute, of ridge regression; the validation scans chose the penalty")
    gaps = {name: on.target.undefined for name, on in targets.items() if on.target.undefined}
    return lines + [f"{name}: not predicted, {reason}" for name, reason in gaps.items()]
