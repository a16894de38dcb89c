"""Index of a folder of scans: file, class, patient and split of each, without opening an image.

The folder's layout gives classes and published splits (``layout``); patients are known from patient folders or from
names of the form CLASS-PATIENT-N. OCT2017's published split shares patients between train and test (Kermany et al. 2018
give the data; the overlap shows in the file names): there the default splits anew by patient.
"""

import datetime
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np

from dino_oct.data.columns import is_table, read_table
from dino_oct.data.layout import read_layout
from dino_oct.data.pattern import by_pattern
from dino_oct.data.published import read_folder
from dino_oct.data.rows import FACTS, ScanRows, examples, number, plain
from dino_oct.data.splits import SPLITS, split_patients
from dino_oct.errors import InputError
from dino_oct.limits import Items, Range, Seed, check_settings

UNLABELLED = -1
# CLASS-PATIENT-N; the patient is the number alone: CNV-53018-1 and DRUSEN-53018-2 come from one person.
_SCAN_NAME = re.compile(r"^(?P<label>[^-/]+)-(?P<patient>\d+)-\d+$")
_DATES = ("%Y%m%d", "%d%m%Y", "%m%d%Y", "%y%m%d", "%d%m%y")  # 8 digits, then 6
_YEARS = range(1990, 2040)  # of plausible dates


HeldOut = Annotated[float, Range(0, below=1)]
LongerSide = Annotated[int, Range(1, 65535)]
WhiteValue = Annotated[float | Literal["auto"], Range(above=0)]


@dataclass
class DatasetConfig:
    """Which scans a run sees, how they are split, and how they are cached."""

    split: Literal["patient", "official", "auto"] = "auto"
    """official: the folders train/val/test as they are; patient: by a hash of the patient; auto: the folders, unless a
    patient is known to be in two of them or there are none: then by patient. Without a val folder, auto takes val
    patients from train."""
    split_seed: Seed = 0
    """Seed of the patient split."""
    val_fraction: HeldOut = 0.1
    """Share of the patients that is kept for validation (patient split)."""
    test_fraction: HeldOut = 0.15
    """Share of the patients that is kept for the final test (patient split)."""
    table: str = ""
    """Table (CSV, TSV or Parquet) beside the folder that says what each scan is; --data FILE reads one, too."""
    columns: Annotated[list[str], Items(distinct=True)] = field(default_factory=list)
    """NAME=COLUMN where the table's columns have other names, such as label=diagnosis; names are file, label, patient,
    eye, visit, volume, slice, device, split, group, mask, severity."""
    pattern: str = ""
    """Regular expression with named groups that reads file names, such as (?P<label>[A-Z]+)_(?P<patient>\\d+)_.*; one
    with a slash reads the path below the folder."""
    layout: Literal["auto", "folders"] = "auto"
    """auto also reads what published sets keep beside their scans; folders: only what the folders say."""
    unlabelled: Annotated[list[str], Items(distinct=True)] = field(default_factory=list)
    """Further folders of scans, for pretraining only. Patients of the validation and test splits are left out."""
    neutralise_borders: bool = True
    """Replace white borders, left by rotation or padding, by the scan's own dark background."""
    max_side: LongerSide = 2048
    """Larger scans are scaled down (antialiased) to this longer side, in pixels, when cached."""
    grey_range: WhiteValue = "auto"
    """Grey value that is white in 16-bit, 32-bit and float images; auto: one for the folder, decided over all of
    them."""
    cache_dir: str = ""
    """Folder of the decode-once cache; empty: $DINO_OCT_CACHE, else $XDG_CACHE_HOME/dino_oct or ~/.cache/dino_oct."""

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if self.val_fraction + self.test_fraction < 1:
            return None
        return "test_fraction", f"with val_fraction {self.val_fraction:g} no patients are left to train on"


@dataclass(frozen=True, eq=False)
class ScanIndex:
    """Scans in a fixed order: sorted by path below ``root``, then each joined unlabelled folder, sorted likewise.

    Attributes:
        root: the indexed folder.
        files: N paths, relative to ``root`` (absolute for scans of joined folders).
        labels: (N,) int64, position in ``class_names``, or ``UNLABELLED``.
        patients: (N,) str, the patient folder or the patient number of the file name, numbers without leading zeros;
            else the file's own path.
        splits: (N,) str, "train", "val" or "test"; "" for scans that no split may use.
        class_names: sorted; empty for unlabelled folders.
        folder_splits: (N,) str, the published split: the folder each file was found in; "" where there is none.
        facts: name of ``rows.FACTS`` → (N,) str, "" where not known; only those of which anything is known.
        how: how the scans were read, one line.
        splits_from: what says the published split, in words.
        split_rule: how ``splits`` came about, why, and the option for another way; one line.
        mislabelled: files whose name says another class than their folder. The folder's label is kept.
        left_out: (file, reason) of images that do not belong to the folder's layout.
        notes: one line each, what a user should know about how the folder was read.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    patients: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]
    folder_splits: np.ndarray
    facts: Mapping[str, np.ndarray] = field(default_factory=dict)
    how: str = ""
    splits_from: str = "the folders train/val/test"
    split_rule: str = ""
    mislabelled: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        """Absolute or root-joined path of scan ``i``."""
        return self.root / self.files[i]

    def fact(self, name: str) -> np.ndarray:
        """One of ``rows.FACTS`` of each scan, (N,) str, "" where not known."""
        return self.facts.get(name, np.full(len(self), "", dtype=np.str_))

    def positions(self, split: str) -> np.ndarray:
        """Positions (int64, ascending) of the scans of one split."""
        if split not in SPLITS:
            raise InputError(f"unknown split '{split}'; choose one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits == split).astype(np.int64)

    def subset(self, keep: np.ndarray | Sequence[int] | Sequence[bool]) -> "ScanIndex":
        """The scans that ``keep`` selects: a bool mask of length N, or positions."""
        keep = np.asarray(keep)
        if keep.dtype == bool and len(keep) != len(self):
            raise ValueError(f"mask of length {len(keep)} for {len(self)} scans")
        positions = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        files = tuple(self.files[i] for i in positions)
        kept = set(files)
        return replace(
            self,
            files=files,
            labels=self.labels[positions],
            patients=self.patients[positions],
            splits=self.splits[positions],
            folder_splits=self.folder_splits[positions],
            facts={name: values[positions] for name, values in self.facts.items()},
            mislabelled=tuple(file for file in self.mislabelled if file in kept),
        )


def index_scans(folder: str | Path, config: DatasetConfig | None = None) -> ScanIndex:
    """Find the scans under ``folder`` and give each its class, patient and split.

    Ignored: hidden files and folders, `__MACOSX`, folders of masks, files without an image's suffix.

    Raises:
        InputError: missing or empty folder, two data sets in one folder, fractions that leave no training scans,
            `official` asked of a folder without train/val/test.
    """
    config = config or DatasetConfig()
    check_settings(config, "dataset.")
    root, rows = read_rows(Path(folder), config)
    if not len(rows):
        raise InputError(f"{folder}: no images left to use; {'; '.join(rows.notes)}")
    spelling: dict[str, str] = {}
    for name in sorted(set(filter(None, rows["label"]))):
        spelling.setdefault(name.casefold(), name)  # `cnv` in one split and `CNV` in another are one class
    class_names = tuple(sorted(spelling.values()))
    position = {name.casefold(): i for i, name in enumerate(class_names)}
    labels = np.array([position.get(name.casefold(), UNLABELLED) for name in rows["label"]], dtype=np.int64)
    patients, naming_notes = _patients(rows, labels, class_names)
    folder_splits = np.array(rows["split"], dtype="<U5")
    index = ScanIndex(
        root=root,
        files=tuple(rows["file"]),
        labels=labels,
        patients=patients,
        splits=folder_splits if any(rows["split"]) else np.full(len(rows), "train", dtype="<U5"),
        class_names=class_names,
        folder_splits=folder_splits,
        facts={name: np.array(rows[name], dtype=np.str_) for name in FACTS if any(rows[name])},
        how=rows.how,
        splits_from=rows.splits_from,
        mislabelled=tuple(_mislabelled(rows["file"], labels, position)),
        left_out=tuple(rows.left_out),
        notes=tuple(rows.notes + naming_notes),
    )
    if index.mislabelled:
        note = f"{len(index.mislabelled)} files named after another class than their folder (folder's class kept)"
        index = replace(index, notes=(*index.notes, f"{note}: {examples(index.mislabelled)}"))
    index = _with_splits(index, config)
    index = replace(index, notes=(*index.notes, *_missing_from_splits(index)))
    for further in config.unlabelled:
        index = _join_unlabelled(index, Path(further))
    return index


def read_rows(data: Path, config: DatasetConfig) -> tuple[Path, ScanRows]:
    """The folder that files are below, and what table, folders and names say of each scan.

    Raises:
        InputError: as ``read_table``, ``read_layout`` and ``by_pattern``.
    """
    if config.table or (is_table(data) and data.is_file()):
        table, root = (Path(config.table), data) if config.table else (data, data.parent)
        if config.table and not root.is_dir():
            raise InputError(
                f"{root}: {'not a' if root.exists() else 'no such'} folder; --dataset.table describes the scans of one"
            )
        rows = read_table(table, root, config.columns)
    else:
        if config.columns:
            raise InputError("--dataset.columns names columns of a table: give one with --data or --dataset.table")
        root, rows = data, read_layout(data) if config.layout == "folders" else read_folder(data)
    return root, by_pattern(rows, config.pattern) if config.pattern else rows


def assert_patients_disjoint(index: ScanIndex) -> None:
    """Check that no patient has scans in two splits.

    Raises:
        InputError: names the shared patients.
    """
    shared = shared_patients(index.patients, index.splits)
    if shared:
        raise InputError(
            f"{len(shared)} patients have scans in more than one split ({examples(shared)}); use split: patient"
        )


def shared_patients(patients: np.ndarray, groups: np.ndarray) -> list[str]:
    """Patients (sorted) that occur in more than one group, e.g. split or class."""
    groups_of: dict[str, set] = defaultdict(set)
    for patient, group in zip(patients.tolist(), groups.tolist(), strict=True):
        groups_of[patient].add(group)
    return sorted(patient for patient, where in groups_of.items() if len(where) > 1)


def patient_of(file: str) -> str:
    """Patient of a file by its name: the number in `CLASS-PATIENT-N`, else the path itself (a patient of its own).

    An eight-digit date is no patient number.
    """
    match = _SCAN_NAME.match(PurePosixPath(file).stem)
    if match and not (len(match["patient"]) == 8 and _is_date(match["patient"])):
        return str(int(match["patient"]))
    return plain(file)


def is_own_patient(index: ScanIndex) -> np.ndarray:
    """(N,) bool: the patient is not known, and the scan counts as one of its own."""
    return np.array([name == plain(file) for file, name in zip(index.files, index.patients.tolist(), strict=True)])


def _patients(rows: ScanRows, labels: np.ndarray, class_names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Patient of each scan, (N,) str, and what a user should know about how they were told."""
    files, given = rows["file"], [number(name) for name in rows["patient"]]
    patients = [name or patient_of(file) for file, name in zip(files, given, strict=True)]
    numbers = {file: match["patient"] for file in files if (match := _SCAN_NAME.match(PurePosixPath(file).stem))}
    dated = {file for file, name in zip(files, given, strict=True) if not name and file in numbers}
    are_dates = _are_dates({numbers[file] for file in dated}, len(dated))
    notes = []
    if are_dates:  # every number is a date, six digits and years included
        patients = [plain(file) if file in dated else name for file, name in zip(files, patients, strict=True)]
    dated = {file for file, name in zip(files, patients, strict=True) if file in dated and name == plain(file)}
    unnamed = sum(name == plain(file) for file, name in zip(files, patients, strict=True))
    own = "each such scan counts as a patient of its own, so one person's scans may be in several splits"
    if dated:
        shown = examples(sorted({numbers[file] for file in dated}))
        notes.append(
            f"{len(dated):,} of {len(patients):,} file names have a date ({shown}) where CLASS-PATIENT-N has the "
            f"patient's number: {own}"
        )
    if unnamed > len(dated):
        notes.append(
            f"{unnamed - len(dated):,} of {len(patients):,} file names carry no patient number (CLASS-PATIENT-N): {own}"
        )
    patient_array = np.array(patients, dtype=np.str_)
    return patient_array, notes + ([] if rows.is_told else _restart_notes(patient_array, labels, class_names))


def _is_date(digits: str) -> bool:
    """Whether digits are a plausible date."""
    return any(_parses(digits, form) for form in _DATES)


def _parses(digits: str, form: str) -> bool:
    if len(digits) != (8 if "%Y" in form else 6):
        return False
    try:
        return datetime.datetime.strptime(digits, form).year in _YEARS
    except ValueError:
        return False


def _are_dates(numbers: set[str], n_files: int) -> bool:
    """Whether all numbers are dates of one form, or a few years over many files; one number alone may be either."""
    if not numbers:
        return False
    if all(len(number) == 4 for number in numbers):
        return len(numbers) <= 8 and n_files >= 10 * len(numbers) and all(int(number) in _YEARS for number in numbers)
    return any(all(_parses(number, form) for number in numbers) for form in _DATES)


def _restart_notes(patients: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """A note where patient numbers begin anew in every class, so that a number may stand for several people."""
    of_class = [
        {int(name) for name in patients[labels == c].tolist() if name.isdecimal()} for c in range(len(class_names))
    ]
    of_class = [numbers for numbers in of_class if len(numbers) > 2]
    if len(of_class) < 2:
        return []
    counts = Counter(number for numbers in of_class for number in numbers)
    repeated = sum(count > 1 for count in counts.values())
    is_dense = all(max(numbers) - min(numbers) < 3 * len(numbers) for numbers in of_class)
    if not is_dense or repeated < 0.5 * min(map(len, of_class)):
        return []
    return [
        f"{repeated:,} patient numbers occur in several classes and numbers follow each other closely, as if numbering "
        "began anew in each class: equal numbers count as one person; if they are not, put the class into the number "
        "(CNV 17 as 100017) or the scans of a patient into a folder CLASS/PATIENT/"
    ]


def _mislabelled(files: Sequence[str], labels: np.ndarray, position: dict[str, int]) -> list[str]:
    wrong = []
    for file, label in zip(files, labels.tolist(), strict=True):
        match = _SCAN_NAME.match(PurePosixPath(file).stem)
        named = position.get(match["label"].strip().casefold()) if match else None
        if label != UNLABELLED and named is not None and named != label:
            wrong.append(file)
    return wrong


def _with_splits(index: ScanIndex, config: DatasetConfig) -> ScanIndex:
    """The index split as asked for, with the rule in words."""
    has_folders = bool(np.any(index.folder_splits != ""))
    published = index.splits_from
    if config.split == "official" and not has_folders:
        raise InputError(f"{index.root}: no train/val/test folders or column, so no official split; use split: patient")
    shared = shared_patients(index.patients, index.folder_splits) if has_folders else []
    by_patient = f"by patient (hash with seed {config.split_seed})"
    if config.split == "official":
        rule = f"{published} as they are, as asked for; --dataset.split patient splits by patient"
        if shared:
            note = f"official split: {len(shared):,} patients have scans in more than one split"
            index = replace(index, notes=(*index.notes, f"{note}: {examples(shared)}"))
    elif config.split == "patient":
        rule = f"{by_patient}, as asked for"
        rule += f"; --dataset.split official takes {published}" if has_folders else ""
    elif has_folders and not shared:
        rule = f"{published} as they are: no patient is known to be in two of them"
        is_phantom = (index.root / "phantom.json").is_file()  # few phantom patients have no val on purpose
        if not np.any(index.folder_splits == "val") and np.any(index.folder_splits == "train") and not is_phantom:
            split_of = split_patients(index.patients.tolist(), {"val": config.val_fraction}, config.split_seed)
            held = np.array([split_of[patient] == "val" for patient in index.patients.tolist()])
            held &= index.splits == "train"
            index = replace(index, splits=np.where(held, "val", index.splits))
            rule += f"; without a part val, {100 * config.val_fraction:g} % of the patients of train validate"
        rule += "; --dataset.split patient splits by patient"
    elif has_folders:
        rule = (
            f"{by_patient}, because {len(shared):,} patients are in more than one of {published} "
            f"({examples(shared)}); --dataset.split official takes them as they are"
        )
    else:
        rule = f"{by_patient}, as nothing says train, val and test"
    if rule.startswith(by_patient):
        fractions = {"val": config.val_fraction, "test": config.test_fraction}
        split_of = split_patients(index.patients.tolist(), fractions, config.split_seed)
        splits = np.array([split_of[patient] for patient in index.patients.tolist()], dtype="<U5")
        index = replace(index, splits=splits)
        assert_patients_disjoint(index)
    return replace(index, split_rule=rule)


def _missing_from_splits(index: ScanIndex) -> list[str]:
    """Notes on splits, and classes of splits, without any patient."""
    is_hashed = index.split_rule.startswith("by patient")
    cure = "; another --dataset.split-seed or larger --dataset.val-fraction or -test-fraction may help"
    cure = cure if is_hashed else ""
    notes = []
    for split in SPLITS:
        inside = index.splits == split
        if not inside.any():
            notes.append(f"no patient in the {split} split{cure}")
            continue
        labels = set(index.labels[inside].tolist())
        absent = [name for c, name in enumerate(index.class_names) if c not in labels]
        if absent and labels != {UNLABELLED}:
            notes.append(f"no patient of {', '.join(absent)} in the {split} split{cure}")
    return notes


def _join_unlabelled(index: ScanIndex, folder: Path) -> ScanIndex:
    """Add a folder's scans to the training split, without labels and without patients held out for val and test."""
    root, rows = read_rows(folder, DatasetConfig())
    patients, _ = _patients(rows, np.full(len(rows), UNLABELLED), ())
    held_out = set(index.patients[index.splits != "train"].tolist())
    known = {os.path.realpath(index.path(i)) for i in range(len(index))}
    reasons: Counter[str] = Counter()
    kept: list[int] = []
    files, people = [], []
    n_unknown = 0
    for i, (name, patient) in enumerate(zip(rows["file"], patients.tolist(), strict=True)):
        file = str(root.resolve() / name)
        if os.path.realpath(file) in known:
            reasons["already in the index"] += 1
        elif patient in held_out:
            reasons["of patients in the validation or test split"] += 1
        else:
            kept.append(i)
            files.append(file)
            is_unknown = patient == plain(name)
            people.append(plain(file) if is_unknown else patient)
            n_unknown += is_unknown
    notes = [f"{folder}: {note}" for note in rows.notes if "no classes" not in note]
    notes += [f"{folder}: {count:,} unlabelled scans {reason} left out" for reason, count in sorted(reasons.items())]
    if n_unknown:
        notes.append(f"{folder}: {n_unknown:,} unlabelled scans carry no patient number: they may show test patients")
    n = len(files)
    return replace(
        index,
        files=(*index.files, *files),
        labels=np.concatenate([index.labels, np.full(n, UNLABELLED, dtype=np.int64)]),
        patients=np.concatenate([index.patients, np.array(people, dtype=np.str_)]),
        splits=np.concatenate([index.splits, np.full(n, "train", dtype="<U5")]),
        folder_splits=np.concatenate([index.folder_splits, np.full(n, "", dtype="<U5")]),
        facts={
            name: np.concatenate([index.fact(name), np.array([rows[name][i] for i in kept], dtype=np.str_)])
            for name in FACTS
            if name in index.facts or any(rows[name])
        },
        left_out=(*index.left_out, *((str(root / file), reason) for file, reason in rows.left_out)),
        notes=(*index.notes, *notes),
    )
