"""Results of several labels a scan, and of predicted numbers, as text in 80 columns."""

import math
from collections.abc import Mapping, Sequence

from dino_oct.scores.label_units import LabelsByUnit
from dino_oct.scores.multilabel import Label, LabelScores
from dino_oct.scores.regression import Regression, Target
from dino_oct.scores.text import narrow, table
from dino_oct.words import counted

_NUMBERS = ("R²", "Spearman", "mean error")
_TITLES = {"auroc": "AUROC %", "average_precision": "AP %"}


def label_lines(
    labels: Mapping[str, Label],
    rows: Mapping[str, LabelScores],
    differences: Mapping[str, LabelScores],
    title: str = "",
    noun: str = "scans",
) -> list[str]:
    """A row for each label of the first classifier, then each metric of all classifiers, then the differences of means.

    Args:
        rows: name → scores; differences: "a − b" → difference of the first row to another one.
        title: of the first table, where there are several; noun: what is counted, before patients in brackets.
    """
    (first, scores), *others = rows.items()
    lines = [f"{title}{first}"] if others or title else []
    lines.append(table(["label", f"{noun} with", "known", "share %", *_TITLES.values()], _first(labels, scores)))
    if others:
        for metric, title in _TITLES.items():
            cells = [
                [name, *(narrow(getattr(row.labels[name], metric)) for row in rows.values())] for name in scores.labels
            ]
            cells.append([_mean(scores), *(narrow(getattr(row.macro, metric)) for row in rows.values())])
            lines += ["", table([title, *rows], cells)]
        minus = [
            [name.split(" − ", 1)[1], *(narrow(getattr(row.macro, metric), signed=True) for metric in _TITLES)]
            for name, row in differences.items()
        ]
        lines += ["", table([f"{first} minus", *(f"mean {title}" for title in _TITLES.values())], minus)]
    return lines


def label_unit_lines(by_unit: Mapping[str, LabelsByUnit], said: Sequence[str] = (), title: str = "") -> list[str]:
    """As ``label_lines`` of each unit, with the rule of each row, and notes.

    Args:
        by_unit: of one setting; said: notes that are not said again.
    """
    lines = []
    for unit, of_unit in by_unit.items():
        rules = ", ".join(f"{row} {rule}" for row, rule in of_unit.rules.items())
        how = f"chosen on {of_unit.val_units} validation {unit}s" if of_unit.val_units else "not chosen"
        tables = label_lines(of_unit.labels, of_unit.rows, of_unit.differences, f"by {unit}, {title}", f"{unit}s")
        lines += ["", *tables, f"rule: {rules}; {how}"]
        lines += [f"note: by {unit}: {note}" for note in of_unit.notes if note not in said]
    return lines


def label_captions(resamples: int) -> list[str]:
    """What the cells of ``label_lines`` are."""
    return [
        "with, known: in brackets the patients",
        "AP: average precision; that of chance is the share of the scans with the label",
        *([_intervals(resamples)] if resamples else []),
    ]


def _first(labels: Mapping[str, Label], scores: LabelScores) -> list[list[str]]:
    rows = []
    for name, label in labels.items():
        found = scores.labels.get(name)
        cells = [narrow(getattr(found, metric)) for metric in _TITLES] if found else ["–", "–"]
        share = "–" if math.isnan(label.prevalence) else f"{label.prevalence:.1f}"
        rows.append(
            [
                name,
                f"{label.positive:,} ({label.positive_patients:,})",
                f"{label.scans:,} ({label.patients:,})",
                share,
                *cells,
            ]
        )
    return [*rows, [_mean(scores), "", "", "", *(narrow(getattr(scores.macro, metric)) for metric in _TITLES)]]


def _mean(scores: LabelScores) -> str:
    return f"mean of {len(scores.labels)}"


def target_lines(
    targets: Mapping[str, Target],
    rows: Mapping[str, Mapping[str, Regression]],
    differences: Mapping[str, Mapping[str, Regression]],
    resamples: int,
) -> list[str]:
    """A table for each target: every row, then the differences of the first.

    Args:
        rows, differences: target → row → scores.
    """
    lines = []
    for name, target in targets.items():
        if not rows[name]:
            continue
        digits = _digits(target.error)
        cells = [[row, *_cells(scores, digits)] for row, scores in rows[name].items()]
        cells.append(["training median", "", "", f"{target.error:.{digits}f}"])
        lines += [
            "",
            f"{name}: {counted(target.scans, 'scan')} of {counted(target.patients, 'patient')}",
            table(["", *_NUMBERS], cells),
        ]
        if differences[name]:
            minus = [
                [row.split(" − ", 1)[1], *_cells(scores, digits, signed=True)]
                for row, scores in differences[name].items()
            ]
            lines += ["", table([f"{next(iter(rows[name]))} minus", *_NUMBERS], minus)]
    return [*lines, _intervals(resamples, "")] if lines and resamples else lines


def _cells(scores: Regression, digits: int, signed: bool = False) -> list[str]:
    return [scores.r2.words(2, signed), scores.spearman.words(2, signed), scores.error.words(digits, signed)]


def _digits(size: float) -> int:
    """Decimals that show three digits of an error."""
    return min(max(2 - math.floor(math.log10(size)), 0), 6) if size > 0 and math.isfinite(size) else 2


def _intervals(resamples: int, rounded: str = ", ends rounded outwards") -> str:
    return f"[95 % interval{rounded}, {resamples} resamples of patients]"
