"""Which scans an evaluation uses, and what it must say about them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from dino_oct.bootstrap import Interval
from dino_oct.data.cache import ScanCache
from dino_oct.data.index import UNLABELLED, DatasetConfig, HeldOut, LongerSide, ScanIndex, WhiteValue
from dino_oct.data.load import load_scans
from dino_oct.data.phantom import Depth, Patients, PhantomConfig, PictureSide, ScansPerPatient
from dino_oct.data.shortcut import check_shortcuts
from dino_oct.data.table import ScanRow, read_rows
from dino_oct.errors import InputError
from dino_oct.files import is_same_path
from dino_oct.limits import Seed
from dino_oct.provenance import TABLE, TRAINED_ON, Seen, seen_in, trained_on

if TYPE_CHECKING:
    from evaluation.runs import Source

PHANTOM_NOTICE = "PHANTOMS: synthetic scans"
_SPLITTING = ("split", "split_seed", "val_fraction", "test_fraction")
Settings = TypeVar("Settings", DatasetConfig, PhantomConfig)


@dataclass
class DatasetOptions:
    """How scans are split and cached; unset: as in training."""

    split: Literal["patient", "official", "auto"] | None = None
    """official: the folders train/val/test; patient: by a hash of the patient; auto: the folders unless patients are
    known to be in two of them. Unset, on the run's own data: the run's own table (scans.csv)."""
    split_seed: Seed | None = None
    """Seed of the patient split."""
    val_fraction: HeldOut | None = None
    """Share of the patients kept for validation (patient split)."""
    test_fraction: HeldOut | None = None
    """Share of the patients kept for the test (patient split)."""
    neutralise_borders: bool | None = None
    """Replace white borders by the scan's own dark background."""
    max_side: LongerSide | None = None
    """Larger scans are scaled down to this longer side, in pixels."""
    grey_range: WhiteValue | None = None
    """Grey value that is white in 16-bit, 32-bit and float images; auto: decided over all of them."""
    cache_dir: str | None = None
    """Folder of the decode-once cache."""


@dataclass
class PhantomOptions:
    """Which phantoms '--data phantom' means; unset: those of training."""

    patients: Patients | None = None
    """Number of patients."""
    scans_per_patient: ScansPerPatient | None = None
    """Scans of each patient."""
    size: tuple[PictureSide, PictureSide] | None = None
    """Height and width of a scan, in pixels."""
    seed: Seed | None = None
    """Seed; another one gives other eyes."""
    depth: Depth | None = None
    """Share of the axial range shown, .4 to 1."""


@dataclass(frozen=True)
class ScanData:
    """Indexed and decoded scans, aligned, with what a reader must know about them.

    Attributes:
        seen: what is known of these patients and the model's training; None where nothing is.
        notes: one line each.
    """

    index: ScanIndex
    scans: ScanCache
    dataset: DatasetConfig
    seen: Seen | None
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
        """Patients of these scans that the model was trained on; None where that is not known."""
        return self.seen and len(self.seen.patients & set(self.index.patients[positions].tolist()))

    def training_notes(self, positions: np.ndarray, others: Sequence[str] = ()) -> list[str]:
        """What a reader must know of these scans' patients and the training of the model, and of other SOURCEs."""
        notes = [note for note in self.notes if note not in self.index.notes]  # those were said when it was read
        notes += self._of_training(self.seen, positions)
        for name in others:
            notes += [f"{name}: {note}" for note in self._of_training(self.seen_by(name), positions)]
        return notes

    def seen_by(self, source: str) -> Seen | None:
        """What is known of these patients and the training of any SOURCE."""
        return seen_in(self.index, self.scans.file_digests, trained_on(source))

    def _of_training(self, seen: Seen | None, positions: np.ndarray) -> list[str]:
        patients = set(self.index.patients[positions].tolist())
        if seen is None:
            return [f"whether the weights were trained on these patients is not known: no {TRAINED_ON} beside them"]
        notes = []
        if shared := len(seen.patients & patients):
            notes.append(
                f"{shared} of {len(patients)} patients were trained on, in this run or one that it started from: not a "
                "test on new patients"
            )
        if seen.unknown:
            notes.append(
                f"training began with {', '.join(seen.unknown)}: whether those weights know these patients is not known"
            )
        return notes

    def shortcuts(self, positions: np.ndarray) -> list[dict[str, Any]] | None:
        """How well size, white border or brightness alone tell the classes of these scans (``data.shortcut``).

        Balanced accuracy and its 95 % interval by patient, in per cent. None for phantoms, whose size and gain do
        not know the class, and where there are too few patients to say.
        """
        if self.is_phantom:
            return None
        found, _ = check_shortcuts(
            self.index.labels[positions],
            self.index.patients[positions],
            self.scans.original_sizes[positions],
            np.asarray(self.scans.border[positions]),
            np.asarray(self.scans.brightness[positions]),
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
        kept = ("split", "split_seed", "val_fraction", "test_fraction", "neutralise_borders", "grey_range")
        return {
            "folder": self.index.root.resolve(),
            "synthetic": self.is_phantom,
            "notice": PHANTOM_NOTICE if self.is_phantom else None,
            "dataset": {name: getattr(self.dataset, name) for name in kept},
            "split": self.index.split_rule,
            "sets": {name: self.counts(chosen) for name, chosen in positions.items()},
            "notes": self.notes,
        }


def open_data(
    source: "Source | None",
    data: str | None,
    dataset: DatasetOptions,
    phantom: PhantomOptions,
    say: Callable[[str], None],
) -> ScanData:
    """Open the data of an evaluation: the run's own, split as its table says, unless options say otherwise.

    Args:
        source: the model that is evaluated.
        say: takes what a reader should know while scans are indexed.

    Raises:
        InputError: no data named and no run to take them from; or as ``load_scans``.
    """
    config = source.config if source else None
    if data is None and config is None:
        name = source.name if source else "the model"
        without = ": there is no config.yaml" if source and Path(name).is_dir() else ""
        raise InputError(f"{name} is not a run{without}, so it brings no data; give --data DIR or --data phantom")
    if data is None and config.data != "phantom" and not Path(config.data).is_dir():
        raise InputError(f"{source.run}/config.yaml: its data are not at {config.data} any more; give --data DIR")
    data = data or config.data
    trained_dataset = config.dataset if config else DatasetConfig()
    trained_phantom = config.phantom if config else PhantomConfig()
    chosen_phantom = _changed(trained_phantom, phantom)
    own = config is not None and _same_data(data, config.data)
    own &= data != "phantom" or chosen_phantom == trained_phantom
    # Unlabelled folders are not evaluated, but with them the cache that training made serves as it is.
    further = [folder for folder in trained_dataset.unlabelled if own and Path(folder).is_dir()]
    chosen = dataclasses.replace(_changed(trained_dataset, dataset), unlabelled=further)
    split_as_run = all(getattr(chosen, name) == getattr(trained_dataset, name) for name in _SPLITTING)
    table = _table_of(source.run) if own and split_as_run else None
    index, scans = load_scans(data, chosen, chosen_phantom, say, table)
    notes = list(index.notes)
    if own and split_as_run and table is None:
        notes.append(f"{source.run} has no table of its scans ({TABLE}), so the splits are made anew from the folder")
    seen = seen_in(index, scans.file_digests, trained_on(source.name)) if source else None
    if config is not None and seen is not None and not seen.is_home:
        notes.append("other data than the run was trained on: none of these scans is among its training scans")
    return ScanData(index, scans, chosen, seen, tuple(notes))


def _table_of(run: Path) -> list[ScanRow] | None:
    return read_rows(run / TABLE) if (run / TABLE).is_file() else None


def _same_data(one: str, other: str) -> bool:
    """Whether two ``data`` settings mean the same scans."""
    return one == other or ("phantom" not in (one, other) and is_same_path(one, other))


def _changed(settings: Settings, options: DatasetOptions | PhantomOptions) -> Settings:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return dataclasses.replace(settings, **{name: value for name, value in given.items() if value is not None})
