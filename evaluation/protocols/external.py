"""Classifiers judged on labelled scans from elsewhere, to which nothing was fitted."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dino_oct.scan_data import ScanData
from dino_oct.scores.paired import Metrics, ResultByClass, ScanSet, compare_scores
from dino_oct.scores.text import ACCURACY_HEADER, accuracy_cells, difference_cells, table
from dino_oct.words import counted
from evaluation.config import DataOptions
from evaluation.inputs.scans import External

_ONLY = "scores"


@dataclass(frozen=True)
class OnExternal:
    """Results on scans from elsewhere.

    Attributes:
        folder: their folder's name; classes: the model's class → its name there.
        scans, patients: judged; by_class: scans of each of the model's classes.
        rows, differences: as on the model's own test scans; by: row → protocol, where there are several.
        notes: what a reader must know about these scans.
    """

    folder: str
    classes: dict[str, str]
    scans: int
    patients: int
    by_class: dict[str, int]
    rows: dict[str, ResultByClass]
    differences: dict[str, Metrics]
    notes: list[str]
    by: dict[str, str] = field(default_factory=dict)


def judge_external(
    scores: dict[str, np.ndarray], external: External, own: ScanData, train: ScanSet, options: DataOptions
) -> OnExternal:
    """Metrics of several classifiers on the same scans from elsewhere.

    A scan that is called a class which is not judged there is wrong.

    Args:
        scores: row → class scores (M, C) over the model's own classes.
    """
    names, scans = own.index.class_names, external.scans
    compared = compare_scores(
        {name: {_ONLY: of_row} for name, of_row in scores.items()}, train, scans, names,
        bootstrap=options.bootstrap, seed=options.seed,
    )  # fmt: skip
    notes = external.data.training_notes(external.positions)
    both = set(scans.patients.tolist()) & set(train.patients.tolist())
    if both:
        notes.append(
            f"{len(both):,} patient numbers occur among the training scans, too: if they are the same people, this is "
            "no test on new patients"
        )
    return OnExternal(
        folder=Path(external.data.index.root).name,
        classes=external.classes,
        scans=len(scans.labels),
        patients=len(set(scans.patients.tolist())),
        by_class={name: int((scans.labels == names.index(name)).sum()) for name in external.classes},
        rows={name: of_row[_ONLY] for name, of_row in compared.rows.items()},
        differences={name: of_row[_ONLY] for name, of_row in compared.differences.items()},
        notes=notes + [note for note in compared.notes if "no scans" not in note],
    )


def external_lines(result: OnExternal) -> list[str]:
    """The result as text: one line about the scans, one table, notes."""
    counts = ", ".join(
        f"{name}{'' if theirs == name else f' ({theirs} there)'} {result.by_class[name]:,}"
        for name, theirs in result.classes.items()
    )
    by = ["by"] if result.by else []
    rows = [[name, *(result.by[name] for _ in by), *accuracy_cells(row)] for name, row in result.rows.items()]
    rows += [[name, *("" for _ in by), *difference_cells(row)] for name, row in result.differences.items()]
    return [
        "",
        f"on {result.folder}, from elsewhere: {counted(result.scans, 'scan')} of "
        f"{counted(result.patients, 'patient')} ({counts}); "
        "nothing was fitted to them, and any other class is wrong",
        table(["", *by, *ACCURACY_HEADER], rows),
        *(f"note: {result.folder}: {note}" for note in result.notes),
    ]
