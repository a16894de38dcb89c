"""Which scans an evaluation uses, and what it must say about them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from dino_oct.bootstrap import Interval
from dino_oct.config import RunSettings
from dino_oct.data.cache import ScanCache
from dino_oct.data.index import UNLABELLED, DatasetConfig, ScanIndex, index_scans
from dino_oct.data.load import load_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.data.shortcut import check_shortcuts
from dino_oct.errors import InputError

PHANTOM_NOTICE = "PHANTOMS: synthetic scans"
OTHER_DATA = "other data than the run was trained on: whether it saw these patients is not known"
Settings = TypeVar("Settings", DatasetConfig, PhantomConfig)


@dataclass
class DatasetOptions:
    """How scans are split and cached; unset: as in training."""

    split: Literal["patient", "official", "auto"] | None = None
    """patient: by patient number; official: the folders train/val/test; auto: official for phantoms, else patient."""
    split_seed: int | None = None
    """Seed of the patient split."""
    val_fraction: float | None = None
    """Share of each class's scans kept for validation (patient split)."""
    test_fraction: float | None = None
    """Share of each class's scans kept for the test (patient split)."""
    neutralise_borders: bool | None = None
    """Replace white borders by the scan's own dark background."""
    max_side: int | None = None
    """Larger scans are scaled down to this longer side, in pixels."""
    cache_dir: str | None = None
    """Folder of the decode-once cache."""


@dataclass
class PhantomOptions:
    """Which phantoms '--data phantom' means; unset: those of training."""

    patients: int | None = None
    """Number of patients."""
    scans_per_patient: int | None = None
    """Scans of each patient."""
    size: tuple[int, int] | None = None
    """Height and width of a scan, in pixels."""
    seed: int | None = None
    """Seed; another one gives other eyes."""
    depth: float | None = None
    """Share of the axial range shown, .4 to 1."""


@dataclass(frozen=True)
class ScanData:
    """Indexed and decoded scans, aligned, with what a reader must know about them.

    Attributes:
        seen: patients whose scans the run was trained on; None where that is not known.
        notes: one line each.
    """

    index: ScanIndex
    scans: ScanCache
    dataset: DatasetConfig
    seen: frozenset[str] | None
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
        if len(self.index.class_names) < 2:
            found = f"only '{self.index.class_names[0]}'" if self.index.class_names else "none"
            raise InputError(
                f"{root}: needs at least two class folders, found {found}; give labelled scans with --data"
            )
        positions = self.index.positions(split)
        positions = positions[self.index.labels[positions] != UNLABELLED]
        if not len(positions):
            raise InputError(f"{root}: no labelled scans in the {split} split; give more patients or another split")
        return positions

    def counts(self, positions: np.ndarray) -> dict[str, Any]:
        """Scans and patients, in all and of each class."""
        labels, patients = self.index.labels[positions], self.index.patients[positions]
        by_class = {
            name: {"scans": int((labels == c).sum()), "patients": len(set(patients[labels == c].tolist()))}
            for c, name in enumerate(self.index.class_names)
        }
        return {"scans": len(positions), "patients": len(set(patients.tolist())), "classes": by_class}

    def seen_among(self, positions: np.ndarray) -> int | None:
        """Patients of these scans that the run was trained on."""
        return None if self.seen is None else len(self.seen & set(self.index.patients[positions].tolist()))

    def shortcuts(self, positions: np.ndarray) -> list[dict[str, Any]] | None:
        """How well size and white border of the files alone tell the classes of these scans (``data.shortcut``).

        Balanced accuracy and its 95 % interval by patient, in per cent. None for phantoms, which have neither, and
        where there are too few patients to say.
        """
        if self.is_phantom:
            return None
        found, _ = check_shortcuts(
            self.index.labels[positions],
            self.index.patients[positions],
            self.scans.original_sizes[positions],
            np.asarray(self.scans.border[positions]),
        )
        return [
            {
                "features": one.features,
                "balanced_accuracy": Interval(one.balanced_accuracy, one.low, one.high).times(100),
                "chance": 100 * one.chance,
            }
            for one in found
        ] or None

    def describe(self, **positions: np.ndarray) -> dict[str, Any]:
        """What goes into a result: folder, kind, split settings, and counts of each named set of scans."""
        kept = ("split", "split_seed", "val_fraction", "test_fraction", "neutralise_borders")
        return {
            "folder": self.index.root.resolve(),
            "synthetic": self.is_phantom,
            "notice": PHANTOM_NOTICE if self.is_phantom else None,
            "dataset": {name: getattr(self.dataset, name) for name in kept},
            "sets": {name: self.counts(chosen) for name, chosen in positions.items()},
            "notes": self.notes,
        }


def open_data(
    config: RunSettings | None,
    data: str | None,
    dataset: DatasetOptions,
    phantom: PhantomOptions,
    say: Callable[[str], None],
) -> ScanData:
    """Open the data of an evaluation: the run's own unless options say otherwise.

    Args:
        config: settings of the run; None where the model is not from a run.
        say: takes what a reader should know while scans are indexed.

    Raises:
        InputError: no data named and no run to take them from; or as ``load_scans``.
    """
    if data is None and config is None:
        raise InputError("the model is not from a run, so it brings no data; give --data DIR or --data phantom")
    data = data or config.data
    trained_dataset = config.dataset if config else DatasetConfig()
    trained_phantom = config.phantom if config else PhantomConfig()
    own = config is not None and data == config.data
    # Unlabelled folders are not evaluated, but with them the cache that training made serves as it is.
    further = [folder for folder in trained_dataset.unlabelled if own and Path(folder).is_dir()]
    chosen = dataclasses.replace(_changed(trained_dataset, dataset), unlabelled=further)
    chosen_phantom = _changed(trained_phantom, phantom)
    index, scans = load_scans(data, chosen, chosen_phantom, say)
    seen, notes = None, list(index.notes)
    if own and (data != "phantom" or chosen_phantom == trained_phantom):
        same = dataclasses.replace(trained_dataset, unlabelled=further)
        trained = index if chosen == same else index_scans(index.root, same)
        seen = frozenset(trained.patients[trained.positions("train")].tolist())
    elif config is not None:
        notes.append(OTHER_DATA)
    return ScanData(index, scans, chosen, seen, tuple(notes))


def _changed(settings: Settings, options: DatasetOptions | PhantomOptions) -> Settings:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return dataclasses.replace(settings, **{name: value for name, value in given.items() if value is not None})
