"""Volumes, eyes and patients as units of evaluation: class scores of slices become those of what they are slices of.

Rules are mean, maximum and mean of the highest scores; which one is used is chosen on validation patients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dino_oct.phases import phase
from dino_oct.scores.class_summary import Majority
from dino_oct.scores.paired import ResultByClass, ScanSet, Setting, compare_scores
from dino_oct.scores.probes import best_candidate

UNITS = ("volume", "eye", "patient")  # from the smallest
NEARLY_ALL = 0.95  # of the scans must be known to belong to a unit
MEAN, ATTENTION = "mean", "attention"
RULES = {MEAN: 1.0, "max": 0.0, "top 10 %": 0.1, "top 25 %": 0.25, "top 50 %": 0.5}
"""Rule → share of a unit's scans whose highest scores are averaged, one scan at least."""


@dataclass(frozen=True)
class Grouping:
    """Scans grouped to units of one class each.

    Attributes:
        unit_of_scan: (N,) position of each scan's unit; −1 for scans that are left out.
        units: classes (U,) and patients (U,).
        mixed: units that are left out, as their scans have several classes.
        unknown: scans that are left out, as their unit is not known.
    """

    unit_of_scan: np.ndarray
    units: ScanSet
    mixed: int
    unknown: int


Groupings = dict[str, dict[str, Grouping]]
"""Unit → set of scans ("queries"; "train" and "val" where there are any) → its scans grouped."""


def keys_of(patients: np.ndarray, files: Sequence[str], facts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The volume, eye and patient that each scan belongs to.

    Args:
        patients: (N,); a scan's own file where its patient is not known.
        files: N paths; facts: "eye", "visit", "volume" → (N,) str, "" where not known.

    Returns:
        Name of ``UNITS`` → (N,) str, a key of its own for each unit, "" where not known.
    """
    is_known = patients != np.asarray(files, dtype=np.str_)
    parts = {
        "volume": (patients, facts["eye"], facts["visit"], facts["volume"]),
        "eye": (patients, facts["eye"]),
        "patient": (patients,),
    }
    keys = {}
    for unit, columns in parts.items():
        joined = np.array(["\x1f".join(row) for row in zip(*(column.tolist() for column in columns), strict=True)])
        keys[unit] = np.where(is_known & (columns[-1] != ""), joined, "")
    return keys


def units_to_report(keys: dict[str, np.ndarray]) -> list[str]:
    """The units that are known for nearly all scans and hold several; of those that group alike only the largest.

    Args:
        keys: as ``keys_of`` gives them, of one set of scans.
    """
    kept: list[str] = []
    for unit in reversed(UNITS):
        known = keys[unit] != ""
        groups = len(np.unique(keys[unit][known]))
        if known.mean() < NEARLY_ALL or groups == known.sum():
            continue
        if all(groups > len(np.unique(keys[larger][known])) for larger in kept):
            kept.append(unit)
    return kept[::-1]


def group(keys: np.ndarray, scans: ScanSet) -> Grouping:
    """Group scans by the key (N,) of their unit; "" where it is not known."""
    names, first, unit_of_scan = np.unique(keys, return_index=True, return_inverse=True)
    labels = scans.labels[first]
    is_mixed = np.zeros(len(names), dtype=bool)
    is_mixed[unit_of_scan[scans.labels != labels[unit_of_scan]]] = True
    kept = ~is_mixed & (names != "")
    position = np.where(kept, kept.cumsum() - 1, -1)
    units = ScanSet(labels[kept], scans.patients[first][kept])
    return Grouping(position[unit_of_scan], units, int((is_mixed & (names != "")).sum()), int((keys == "").sum()))


def aggregate(scores: np.ndarray, unit_of_scan: np.ndarray, share: float) -> np.ndarray:
    """Class scores of units: for each class the mean of its highest scores among the unit's scans.

    Args:
        scores: (N, C) ≥ 0, rows sum to 1.
        unit_of_scan: (N,) position of each scan's unit, all from 0 on; scans of a negative one do not count.
        share: of a unit's scans that are averaged, rounded up, one at least: 1 is the mean, 0 the maximum.

    Returns:
        (U, C), rows sum to 1.
    """
    means = highest_means(scores, unit_of_scan, share)
    return means / means.sum(axis=1, keepdims=True)


def highest_means(scores: np.ndarray, unit_of_scan: np.ndarray, share: float) -> np.ndarray:
    """As ``aggregate``, of any scores, each column by itself."""
    kept = unit_of_scan >= 0
    unit, scores = unit_of_scan[kept], scores[kept]
    counts = np.bincount(unit)
    first = np.cumsum(counts) - counts
    used = np.maximum(np.ceil(share * counts - 1e-9), 1)
    columns = []
    for of_class in scores.T:
        order = np.lexsort((-of_class, unit))  # unit by unit, each from its highest score down
        rank = np.arange(len(unit)) - first[unit[order]]
        highest = of_class[order] * (rank < used[unit[order]])
        columns.append(np.bincount(unit[order], weights=highest) / used)
    return np.stack(columns, axis=1)


def unit_means(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the scans of each unit.

    Args:
        keys: (N,) of the scans' units, "" where not known; values: (N, R).

    Returns:
        Position of the first scan of each unit (U,), and the means (U, R).
    """
    known = np.flatnonzero(keys != "")
    _, first, unit, counts = np.unique(keys[known], return_index=True, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, unit, values[known])
    return known[first], sums / counts[:, None]


@dataclass(frozen=True, kw_only=True)
class UnitResult(ResultByClass):
    """A classifier on units.

    Attributes:
        rule: by which its scores became those of units.
        val_balanced_accuracy: of every rule on the validation units, in per cent; empty where nothing was chosen.
    """

    rule: str
    val_balanced_accuracy: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ByUnit:
    """Classifiers on the same units.

    Attributes:
        units, patients: how many; classes: units of each class.
        val_units: that chose the rules; 0 where nothing was chosen; why_mean: the reason then.
        rows: row → setting → ``UnitResult``; differences: "a − b" → setting → ``Metrics``. Without the setting where
            there is one only.
        majority: the most frequent class; None without units.
    """

    units: int = 0
    patients: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    val_units: int = 0
    why_mean: str = ""
    rows: dict[str, Any] = field(default_factory=dict)
    differences: dict[str, Any] = field(default_factory=dict)
    majority: Majority | None = None
    notes: list[str]

    def of(self, setting: Any) -> "ByUnit":
        """Of one setting alone."""
        rows = {name: by_setting[setting] for name, by_setting in self.rows.items()}
        differences = {name: by_setting[setting] for name, by_setting in self.differences.items()}
        return replace(self, rows=rows, differences=differences)


BySet = dict[str, np.ndarray]
"""Set ("queries", "val") → class scores (N, C) of its scans, or (U, C) of its units."""


@phase("eyes and patients")
def compare_units(
    scores: dict[str, dict[Setting, BySet]],
    groupings: Groupings,
    reference: ScanSet,
    class_names: tuple[str, ...],
    *,
    why_mean: str = "there are no validation scans",
    pool: Callable[[str, dict[str, Grouping]], BySet | None] = lambda row, of_unit: None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, ByUnit]:
    """Metrics of several classifiers on the same units, each by the rule that is best on the validation units.

    Best is the highest balanced accuracy; ties: the lower log-loss, then the earlier of ``RULES``.

    Args:
        scores: row → setting (the same ones in every row) → set → scores of its scans.
        groupings: without validation scans the mean is used.
        reference: the training scans; of classes without any, a note.
        why_mean: why there are no validation scans to choose on.
        pool: from a row's name and its grouped sets to the scores of their units by one more candidate, or None.

    Returns:
        Unit → its results. A unit whose members all have several classes has a note, and no rows.
    """
    results = {}
    for unit, of_unit in groupings.items():
        queries, val = of_unit["queries"], of_unit.get("val")
        can_choose = val is not None and len(val.units.labels) > 0
        notes = left_out(unit, queries)
        if not len(queries.units.labels):
            results[unit] = ByUnit(notes=notes)
            continue
        chosen = {}
        for row, by_setting in scores.items():
            pooled = pool(row, of_unit) if can_choose else None
            chosen[row] = {
                setting: _choose(by_set, of_unit, pooled, can_choose) for setting, by_set in by_setting.items()
            }
        of_queries = {row: {k: scored for k, (_, _, scored) in by_k.items()} for row, by_k in chosen.items()}
        compared = compare_scores(
            of_queries, reference, queries.units, class_names, bootstrap=bootstrap, seed=seed, noun=unit
        )
        rows = {
            row: {
                k: UnitResult(**vars(result), rule=chosen[row][k][0], val_balanced_accuracy=chosen[row][k][1])
                for k, result in by_k.items()
            }
            for row, by_k in compared.rows.items()
        }
        counts = np.bincount(queries.units.labels, minlength=len(class_names)).tolist()
        results[unit] = ByUnit(
            units=len(queries.units.labels),
            patients=len(np.unique(queries.units.patients)),
            classes=dict(zip(class_names, counts, strict=True)),
            val_units=len(val.units.labels) if can_choose else 0,
            why_mean="" if can_choose else why_mean if val is None else f"no validation {unit} has one class",
            rows=rows,
            differences=compared.differences,
            majority=compared.majority,
            notes=notes + compared.notes,
        )
    return results


def _choose(
    by_set: BySet, of_unit: dict[str, Grouping], pooled: BySet | None, can_choose: bool
) -> tuple[str, dict[str, float], np.ndarray]:
    """The rule, the balanced accuracy of every one on the validation units, and the scores of the query units by it."""

    def candidates(name: str) -> dict[str, np.ndarray]:
        by_rule = {rule: aggregate(by_set[name], of_unit[name].unit_of_scan, share) for rule, share in RULES.items()}
        return by_rule | ({ATTENTION: pooled[name]} if pooled else {})

    rule, accuracies = MEAN, {}
    if can_choose:
        rule, accuracies = best_candidate(candidates("val"), of_unit["val"].units.labels)
    return rule, accuracies, candidates("queries")[rule]


def left_out(unit: str, queries: Grouping) -> list[str]:
    """Notes on units and scans that a grouping leaves out."""
    notes = []
    if queries.mixed:
        total = queries.mixed + len(queries.units.labels)
        notes.append(f"{queries.mixed} of {total} {unit}s left out: their scans have several classes")
    if queries.unknown:
        notes.append(f"{queries.unknown} of {len(queries.unit_of_scan)} scans left out: their {unit} is not known")
    return notes
