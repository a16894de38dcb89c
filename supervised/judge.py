"""How good a classifier is: every epoch on validation scans, once on the test."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.errors import InputError
from dino_oct.files import read_json
from dino_oct.models.frozen import Weights
from dino_oct.scan_data import ScanData
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.class_summary import Majority, majority, never_recognised
from dino_oct.scores.classification import METRICS, NO_CALIBRATION_INTERVAL, calibration_error, confusion, score_all
from dino_oct.scores.paired import ResultByClass, ScanSet, compare_scores
from dino_oct.scores.text import (
    ACCURACY_HEADER,
    Evaluation,
    accuracy_cells,
    closing,
    heading,
    majority_row,
    show,
    table,
    unit_lines,
)
from dino_oct.scores.units import BySet, ByUnit, compare_units

NAME = "classifier"
_RESAMPLES = 1000


def validation_metrics(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Loss (nats), accuracy, balanced accuracy, AUROC, recall of each class and the share of the most frequent one (per
    cent), prefixed by ``val_``.

    Args:
        probabilities: (N, C).
    """
    right = probabilities[np.arange(len(labels)), labels]
    (scores,) = score_all(np.ones((1, len(labels))), labels, probabilities)
    counts = confusion(labels, probabilities.argmax(axis=1), len(class_names))
    recalls = {
        f"val_recall_{name}": 100 * row[c] / row.sum()
        for c, (name, row) in enumerate(zip(class_names, counts, strict=True))
        if row.sum()
    }
    share = majority(labels, class_names).share
    metrics = {"val_majority": share, "val_loss": -np.log(np.maximum(right, 1e-12)).mean()} | dict(
        zip((f"val_{metric}" for metric in METRICS), scores, strict=True)
    )
    return {name: float(value) for name, value in (metrics | recalls).items() if np.isfinite(value)}


@dataclass(frozen=True, kw_only=True)
class TestResult(ResultByClass):
    """A classifier on the test scans, with its expected calibration error in per cent."""

    __test__ = False  # pytest takes it for tests otherwise

    calibration_error: Interval


@dataclass(frozen=True, kw_only=True)
class FinalResult(Evaluation):
    """What ``test.json`` holds; by_unit: the same on volumes, eyes and patients, where these hold several scans;
    verdicts: classes that are never recognised."""

    evaluation: str = "supervised"
    units: str = "per cent; each number with its 95 % interval by patient, or the reason why it has none"
    rows: dict[str, TestResult]
    by_unit: dict[str, ByUnit] = field(default_factory=dict, metadata={"may_be_empty": True})
    majority: Majority
    verdicts: list[str]


def final_result(
    data: ScanData,
    positions: np.ndarray,
    probabilities: BySet,
    weights: Weights,
    settings: dict[str, Any],
    seed: int = 0,
) -> FinalResult:
    """Every metric with its patient-bootstrap interval.

    Args:
        positions: of the classified scans in ``data``.
        probabilities: "queries" → (N, C) of them; "val" → those of the labelled validation scans, which choose how
            slices are joined to units, where there are units.
        weights: what identifies the weights.
    """
    index = data.index
    labels, names = index.labels[positions], index.class_names
    trained = data.labelled("train")
    sets = [ScanSet(index.labels[p], index.patients[p]) for p in (trained, positions)]
    resampling = {"bootstrap": _RESAMPLES, "seed": seed}
    compared = compare_scores({NAME: {"test": probabilities["queries"]}}, *sets, names, **resampling)
    by_unit = compare_units({NAME: {"test": probabilities}}, data.groupings("test"), sets[0], names, **resampling)
    (error,) = calibration_error(np.ones((1, len(labels))), labels, probabilities["queries"])
    row = TestResult(
        **vars(compared.rows[NAME]["test"]),
        calibration_error=Interval(float(error), reason=NO_CALIBRATION_INTERVAL),
    )
    return FinalResult(
        model={"source": weights.source, "chosen": "weights of the best validation"},
        weights={NAME: weights},
        data={
            **data.summary(train=trained, queries=positions),
            "queries": "test",
            "shortcut": data.shortcuts(np.concatenate([trained, positions])),
        },
        settings={**settings, "bootstrap": {"unit": "patient", "resamples": _RESAMPLES, "seed": seed}},
        rows={NAME: row},
        by_unit={unit: of_unit.of("test") for unit, of_unit in by_unit.items()},
        majority=compared.majority,
        verdicts=never_recognised([(NAME, row.never_recognised)]),
        notes=[*data.notes, *data.leak_notes(positions, "test"), *compared.notes],
    )


def read_result(file: Path) -> dict[str, Any] | None:
    """What the JSON file of a test holds; None, and a line where it is damaged, if the test must be made again."""
    if not os.path.lexists(file):
        return None
    try:
        result = read_json(file)
        row = result["rows"][NAME]
        numbers = [row[name][key] for name in ("accuracy", "balanced_accuracy") for key in ("point", "low", "high")]
        if lowest := row.get("lowest_recall"):
            numbers += [lowest["recall"]["point"], result["majority"]["share"]]
            str.strip(lowest["class"])
        if not all(number is None or 0 <= number <= 100 for number in numbers):
            raise ValueError("numbers that are no per cent")
    except (InputError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{file}: damaged: {type(error).__name__} {error}"
        print(f"warning: {reason}; the test is made again", file=sys.stderr, flush=True)
        return None
    return result


def result_text(result: FinalResult) -> str:
    """The result of a test as text."""
    (row,), sets = result.rows.values(), result.data["sets"]
    names = list(row.recall)
    lines = [
        *heading("test", result),
        f"data: {result.data['folder']} · trained: {sets['train']['scans']} scans of {sets['train']['patients']} "
        f"patients · classified once: test, {sets['queries']['scans']} scans of {sets['queries']['patients']} patients",
        "",
        table(
            ["", *ACCURACY_HEADER, "calibration error %"],
            [
                [NAME, *accuracy_cells(row), show(row.calibration_error)],
                [*majority_row(result.majority, sets["queries"]["classes"]), ""],
            ],
        ),
        "",
        table(
            ["true class", "scans", "recall %", *(f"called {name}" for name in names)],
            [
                [name, str(int(sum(counts))), show(row.recall[name]), *(str(int(count)) for count in counts)]
                for name, counts in zip(names, row.confusion, strict=True)
            ],
        ),
        f"[95 % interval, {result.settings['bootstrap']['resamples']} resamples of patients]",
        *unit_lines(result.by_unit, result.settings["bootstrap"]["resamples"], result.notes),
    ]
    return "\n".join([*lines, *closing(result, result.verdicts)])
