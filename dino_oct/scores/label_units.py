"""Volumes, eyes and patients as units of several labels: a unit has a label if any of its scans has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dino_oct.scores.multilabel import Label, compare_labels, log_loss, macro_average_precision
from dino_oct.scores.paired import Setting
from dino_oct.scores.units import MEAN, RULES, BySet, highest_means


@dataclass(frozen=True)
class LabelUnits:
    """Scans grouped to units.

    Attributes:
        unit_of_scan: (N,) position of each scan's unit; −1 for scans whose unit is not known.
        values: (U, L) 1 where any scan has the label, 0 where none has and it is known of all, else −1.
        patients: (U,).
    """

    unit_of_scan: np.ndarray
    values: np.ndarray
    patients: np.ndarray


LabelGroupings = dict[str, dict[str, LabelUnits]]
"""Unit → set of scans ("queries", "val") → its scans grouped."""


def group_labels(keys: np.ndarray, values: np.ndarray, patients: np.ndarray) -> LabelUnits:
    """Group scans by the key (N,) of their unit, "" where it is not known; values: (N, L), patients: (N,)."""
    kept = np.flatnonzero(keys != "")
    _, first, unit = np.unique(keys[kept], return_index=True, return_inverse=True)
    has, lacks_some = (np.zeros((len(first), values.shape[1]), dtype=bool) for _ in range(2))
    np.logical_or.at(has, unit, values[kept] == 1)
    np.logical_or.at(lacks_some, unit, values[kept] < 0)
    unit_of_scan = np.full(len(keys), -1)
    unit_of_scan[kept] = unit
    return LabelUnits(unit_of_scan, np.where(has, 1, np.where(lacks_some, -1, 0)), patients[kept][first])


@dataclass(frozen=True, kw_only=True)
class LabelsByUnit:
    """Classifiers on the same units.

    Attributes:
        val_units: that chose the rules; 0 where the rule is the mean for want of them.
        rules: row → setting → by which its scores became those of units.
        labels: on the units; rows, differences: as ``ComparedLabels``. Without the setting where there is one only.
    """

    val_units: int
    rules: dict
    labels: dict[str, Label]
    rows: dict
    differences: dict
    notes: list[str]

    def of(self, setting: Setting) -> "LabelsByUnit":
        """Of one setting alone."""
        parts = {
            part: {name: by_setting[setting] for name, by_setting in getattr(self, part).items()}
            for part in ("rules", "rows", "differences")
        }
        return LabelsByUnit(val_units=self.val_units, labels=self.labels, notes=self.notes, **parts)


def compare_label_units(
    scores: Mapping[str, Mapping[Setting, BySet]],
    groupings: LabelGroupings,
    names: Sequence[str],
    *,
    unfitted: Mapping[str, str],
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, LabelsByUnit]:
    """Scores of several classifiers on the same units, each by the rule that is best on the validation units.

    Best is the highest mean average precision over labels; ties: the lower log-loss, then the earlier of ``RULES``.

    Args:
        scores: row → setting → set → scores (N, L) of its scans; groupings: without "val" the rule is the mean.
        names, unfitted: as ``compare_labels``.
    """
    results = {}
    for unit, of_unit in groupings.items():
        queries, val = of_unit["queries"], of_unit.get("val")
        rules = {
            row: {k: _rule(by_set["val"], val) if val else MEAN for k, by_set in by_k.items()}
            for row, by_k in scores.items()
        }
        of_queries = {
            row: {
                k: highest_means(by_set["queries"], queries.unit_of_scan, RULES[rules[row][k]])
                for k, by_set in by_k.items()
            }
            for row, by_k in scores.items()
        }
        compared = compare_labels(
            of_queries, queries.values, queries.patients, names, unfitted=unfitted, bootstrap=bootstrap, seed=seed
        )
        results[unit] = LabelsByUnit(
            val_units=len(val.patients) if val else 0,
            rules=rules,
            labels=compared.labels,
            rows=compared.rows,
            differences=compared.differences,
            notes=[note.replace("scans to judge", f"{unit}s to judge") for note in compared.notes],
        )
    return results


def _rule(scores: np.ndarray, units: LabelUnits) -> str:
    by_rule = {rule: highest_means(scores, units.unit_of_scan, share) for rule, share in RULES.items()}
    return max(
        by_rule,
        key=lambda rule: (
            np.nan_to_num(macro_average_precision(units.values, by_rule[rule])),
            -np.nan_to_num(log_loss(units.values, by_rule[rule])),
        ),
    )
