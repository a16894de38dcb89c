"""Indexed and decoded scans, and what a reader must know about them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from dino_oct.data.cache import ScanCache
from dino_oct.data.index import UNLABELLED, DatasetConfig, ScanIndex
from dino_oct.data.leaks import describe_leak, find_leak
from dino_oct.data.rows import examples
from dino_oct.data.shortcut import check_shortcuts, shortcut_features
from dino_oct.errors import InputError
from dino_oct.phases import phase
from dino_oct.provenance import TRAINED_ON, TrainedPatients, trained_on, trained_patients
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.label_units import LabelGroupings, group_labels
from dino_oct.scores.paired import ScanSet
from dino_oct.scores.text import PHANTOM_NOTICE, slice_words
from dino_oct.scores.units import Groupings, group, keys_of, units_to_report


class ScanCounts(TypedDict, total=False):
    """Numbers of scans and of their patients; ``classes``: of each class, where these are counted."""

    scans: int
    patients: int
    classes: dict[str, "ScanCounts"]


class Shortcut(TypedDict):
    """How well some features without the retina tell classes: balanced accuracy beside chance, in per cent."""

    features: str
    balanced_accuracy: Interval
    chance: float


class DataSummary(TypedDict, total=False):
    """What a result says about its scans.

    ``folder`` and ``split`` are None for image files; ``notice`` is what phantoms bear; ``dataset``: settings of
    reading and splitting; ``sets``: counts of each named set, or those of the one set (``ScanCounts``) in their place.
    """

    folder: Path | None
    synthetic: bool
    notice: str | None
    dataset: dict[str, Any]
    split: str | None
    sets: dict[str, ScanCounts]
    scans: int
    patients: int
    classes: dict[str, ScanCounts]
    notes: Sequence[str]


@dataclass(frozen=True)
class ScanData:
    """Indexed and decoded scans, aligned, with what a reader must know about them.

    Attributes:
        provenance: what is known of these patients and the model's training; None where nothing is.
        notes: one line each.
    """

    index: ScanIndex
    scans: ScanCache
    dataset: DatasetConfig
    provenance: TrainedPatients | None
    notes: tuple[str, ...]

    @property
    def is_phantom(self) -> bool:
        """Whether the scans are synthetic."""
        return (Path(self.index.root) / "phantom.json").is_file()

    def labelled(self, split: str) -> np.ndarray:
        """Positions of the labelled scans of a split.

        Raises:
            InputError: fewer than two classes, or no labelled scan in this split.
        """
        root = self.index.root
        if self.index.multilabels:
            raise InputError(
                f"{root}: a scan may have several labels ({examples(list(self.index.multilabels))}), and this command "
                "takes one class a scan: give --dataset.columns label=COLUMN; several labels are for "
                "dino-oct linear and dino-oct knn"
            )
        if self.index.targets and not self.index.class_names:
            raise InputError(f"{root}: its table has numbers and no classes; dino-oct linear predicts numbers")
        if len(self.index.class_names) < 2:
            classes = f"only '{self.index.class_names[0]}'" if self.index.class_names else "none"
            raise InputError(
                f"{root}: needs at least two classes, found {classes}; give labelled scans with --data: folders of "
                "classes, or a table whose column label is filled in"
            )
        positions = self._labelled(split)
        if not len(positions):
            raise InputError(f"{root}: no labelled scans in the {split} split; give more patients or another split")
        return positions

    def known(self, split: str, *, targets: bool) -> np.ndarray:
        """Positions of the scans of a split of which any of several labels is known, or, with ``targets``, any of
        these.

        Raises:
            InputError: none.
        """
        positions = self.index.positions(split)
        known = self.index.is_labelled[positions]
        if targets:
            known |= np.isfinite(self.index.target_matrix()[positions]).any(axis=1)
        if not known.any():
            what = "label or target" if targets else "label"
            raise InputError(
                f"{self.index.root}: no scan of the {split} split with a known {what}; give more patients or another "
                "split"
            )
        return positions[known]

    def _labelled(self, split: str) -> np.ndarray:
        positions = self.index.positions(split)
        return positions[self.index.labels[positions] != UNLABELLED]

    def unit_keys(self) -> dict[str, np.ndarray]:
        """The volume, eye and patient that each scan belongs to; see ``keys_of``."""
        facts = {name: self.index.fact(name) for name in ("eye", "visit", "volume")}
        return keys_of(self.index.patients, self.index.files, facts)

    def place(self, i: int, facts: Sequence[str] = ("eye", "visit", "volume", "slice")) -> str:
        """Where scan ``i`` was taken, in words, of these facts as far as they are known."""
        known = {name: str(self.index.fact(name)[i]) for name in facts}
        away = self.index.fact("position_um")[i]
        return " · ".join(
            slice_words(value, float(away) if away else None) if name == "slice" else f"{name} {value}"
            for name, value in known.items()
            if value
        )

    def groupings(self, split: str) -> Groupings:
        """Labelled scans grouped to the units that are worth reporting of a split, whose scans are the queries.

        Training and validation scans are grouped beside them, unless they are the queries or there are none.
        """
        index, keys = self.index, self.unit_keys()
        positions = {"queries": self.labelled(split)}
        positions |= {name: self._labelled(name) for name in ("train", "val") if name != split}
        reported = units_to_report({unit: of_scans[positions["queries"]] for unit, of_scans in keys.items()})
        sets = {name: ScanSet(index.labels[rows], index.patients[rows]) for name, rows in positions.items()}
        return {
            unit: {name: group(keys[unit][rows], sets[name]) for name, rows in positions.items() if len(rows)}
            for unit in reported
        }

    def label_groupings(self, positions: np.ndarray, val: np.ndarray | None = None) -> LabelGroupings:
        """Scans with several labels grouped to the units that are worth reporting, and validation scans beside them.

        Args:
            positions: of the scans that are judged; val: of those that choose the rule, if any do.
        """
        keys, values, patients = self.unit_keys(), self.index.multilabel_matrix(), self.index.patients
        sets = {"queries": positions} | ({"val": val} if val is not None and len(val) else {})
        return {
            unit: {name: group_labels(keys[unit][rows], values[rows], patients[rows]) for name, rows in sets.items()}
            for unit in units_to_report({unit: of_scans[positions] for unit, of_scans in keys.items()})
        }

    def counts(self, positions: np.ndarray) -> ScanCounts:
        """Scans and patients, in all and of each class, or with each of several labels."""
        labels, patients = self.index.labels[positions], self.index.patients[positions]
        by_class = {
            name: {"scans": int((labels == c).sum()), "patients": len(set(patients[labels == c].tolist()))}
            for c, name in enumerate(self.index.class_names)
        }
        for name, values in self.index.multilabels.items():
            has = values[positions] == 1
            by_class[name] = {"scans": int(has.sum()), "patients": len(set(patients[has].tolist()))}
        return {"scans": len(positions), "patients": len(set(patients.tolist())), "classes": by_class}

    def training_notes(self, positions: np.ndarray, others: Sequence[str] = ()) -> list[str]:
        """What a reader must know of these scans' patients and the training of the model, and of other SOURCEs."""
        notes = [note for note in self.notes if note not in self.index.notes]  # those were said when it was read
        notes += self._of_training(self.provenance, positions)
        for name in others:
            notes += [f"{name}: {note}" for note in self._of_training(self.provenance_of(name), positions)]
        return notes

    @phase("looking for leaks")
    def leak_notes(self, positions: np.ndarray, split: str, with_patients: bool = True) -> list[str]:
        """What train scans give away of these scans of a split, in one line; none where nothing leaks.

        Phantoms of different patients are drawn apart, so their near-duplicates are not sought.

        Args:
            with_patients: patients in both count, beside copies and near-duplicates.
        """
        train = np.setdiff1d(self.index.positions("train"), positions)
        leak = find_leak(self.index, self.scans, train, positions, has_near=not self.is_phantom)
        if not with_patients:
            leak = replace(leak, of_people=())
        return describe_leak(leak, self.index, positions, split)

    def provenance_of(self, source: str) -> TrainedPatients | None:
        """What is known of these patients and the training of any SOURCE."""
        return trained_patients(self.index, self.scans.file_digests, trained_on(source))

    def _of_training(self, provenance: TrainedPatients | None, positions: np.ndarray) -> list[str]:
        patients = set(self.index.patients[positions].tolist())
        if provenance is None:
            return [f"whether the weights were trained on these patients is not known: no {TRAINED_ON} beside them"]
        notes = []
        if shared := len(provenance.patients & patients):
            notes.append(
                f"{shared} of {len(patients)} patients were trained on, in this run or one that it started from: not a "
                "test on new patients"
            )
        if provenance.unknown:
            notes.append(
                f"training began with {', '.join(provenance.unknown)}: whether those weights know these patients is "
                "not known"
            )
        return notes

    @phase("shortcut check")
    def shortcuts(self, positions: np.ndarray) -> list[Shortcut] | None:
        """How well the classes of these scans are told by what is no anatomy (``data.shortcut``).

        Balanced accuracy and its 95 % interval by patient, in per cent. None for phantoms, whose size and gain do
        not know the class, where there are too few patients to say, and for several labels a scan, which the audit
        checks.
        """
        if self.is_phantom or not self.index.class_names:
            return None
        results, _ = check_shortcuts(
            self.index.labels[positions],
            self.index.patients[positions],
            {name: table[positions] for name, table in shortcut_features(self.index, self.scans).items()},
        )
        return [
            {
                "features": result.features,
                "balanced_accuracy": Interval(result.balanced_accuracy, result.low, result.high).times(100),
                "chance": 100 * result.chance,
            }
            for result in results
        ] or None

    def summary(self, **positions: np.ndarray) -> DataSummary:
        """What goes into a result: folder, kind, split settings, and counts of each named set of scans."""
        kept = ("split", "split_seed", "val_fraction", "test_fraction", "neutralise_borders", "grey_range")
        return {
            "folder": self.index.root.resolve(),
            "synthetic": self.is_phantom,
            "notice": PHANTOM_NOTICE if self.is_phantom else None,
            "dataset": {name: getattr(self.dataset, name) for name in kept},
            "split": self.index.split_rule,
            "sets": {name: self.counts(rows) for name, rows in positions.items()},
            "notes": self.notes,
        }
