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
from dino_oct.scores.label_text import label_captions, label_lines, label_unit_lines
from dino_oct.scores.label_units import LabelsByUnit, compare_label_units
from dino_oct.scores.multilabel import Label, LabelScores, compare_labels, log_loss, rank_all, unlearned
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
from dino_oct.words import scans_of

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


def label_metrics(values: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Loss (nats) of what is known, average precision of each label, and the means over labels of it and of AUROC (per
    cent), prefixed by ``val_``.

    Args:
        values: (N, L) 1, 0, or negative where not known; probabilities: (N, L).
    """
    (scores,) = rank_all(np.ones((1, len(values))), values, probabilities)
    judged = np.isfinite(scores[:, 0])
    area, precision = scores[judged].mean(axis=0)
    each = dict(zip(names, scores[:, 1], strict=True))
    metrics = {
        "val_loss": log_loss(values, probabilities),
        "val_mean_auroc": area,
        "val_mean_average_precision": precision,
        **{f"val_average_precision_{name}": value for name, value in each.items()},
    }
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


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


@dataclass(frozen=True, kw_only=True)
class FinalLabels(Evaluation):
    """What ``supervised_test.json`` holds of a set with several labels a scan."""

    evaluation: str = "supervised"
    units: str = "per cent; each number with its 95 % interval by patient, or the reason why it has none"
    labels: dict[str, Label]
    rows: dict[str, LabelScores]
    by_unit: dict[str, LabelsByUnit] = field(default_factory=dict, metadata={"may_be_empty": True})


def final_labels(
    data: ScanData,
    positions: dict[str, np.ndarray],
    probabilities: BySet,
    weights: Weights,
    settings: dict[str, Any],
    seed: int = 0,
) -> FinalLabels:
    """AUROC and average precision of every label with patient-bootstrap intervals.

    Args:
        positions: "queries", and "val" where there are units: as the ``probabilities`` of ``final_result``.
    """
    index, names = data.index, list(data.index.multilabels)
    values, trained = index.multilabel_matrix(), data.known("train", targets=False)
    queries, resampling = positions["queries"], {"bootstrap": _RESAMPLES, "seed": seed}
    resampling |= {"unfitted": unlearned(values[trained], names)}
    compared = compare_labels(
        {NAME: {"test": probabilities["queries"]}}, values[queries], index.patients[queries], names, **resampling
    )
    groupings = data.label_groupings(queries, positions.get("val"))
    by_unit = compare_label_units({NAME: {"test": probabilities}}, groupings, names, **resampling)
    return FinalLabels(
        model={"source": weights.source, "chosen": "weights of the best validation"},
        weights={NAME: weights},
        data={**data.summary(train=trained, queries=queries), "queries": "test"},
        settings={**settings, "bootstrap": {"unit": "patient", "resamples": _RESAMPLES, "seed": seed}},
        labels=compared.labels,
        rows={NAME: compared.rows[NAME]["test"]},
        by_unit={unit: of_unit.of("test") for unit, of_unit in by_unit.items()},
        notes=[*data.notes, *data.leak_notes(queries, "test"), *compared.notes],
    )


def read_result(file: Path) -> dict[str, Any] | None:
    """What the JSON file of a test holds; None, and a line where it is damaged, if the test must be made again."""
    if not os.path.lexists(file):
        return None
    try:
        result = read_json(file)
        row = result["rows"][NAME]
        if "macro" in row:  # several labels a scan
            row = {"accuracy": row["macro"]["auroc"], "balanced_accuracy": row["macro"]["average_precision"]}
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


def result_text(result: FinalResult | FinalLabels) -> str:
    """The result of a test as text."""
    if isinstance(result, FinalLabels):
        return _labels_text(result)
    (row,), sets = result.rows.values(), result.data["sets"]
    names = list(row.recall)
    lines = [
        *_title(result),
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


def _labels_text(result: FinalLabels) -> str:
    lines = label_lines(result.labels, result.rows, {}) + label_unit_lines(result.by_unit, result.notes)
    lines += label_captions(result.settings["bootstrap"]["resamples"])
    return "\n".join([*_title(result), *lines, *closing(result)])


def _title(result: Evaluation) -> list[str]:
    sets = result.data["sets"]
    return [
        *heading("test", result),
        f"data: {result.data['folder']} · trained: {scans_of(sets['train'])} · "
        f"classified once: test, {scans_of(sets['queries'])}",
        "",
    ]
