"""Index of a folder of scans: file, class, patient and split of each, without opening an image.

The folder's layout gives classes and published splits (``layout``); patients are known from patient folders, from
names of the form CLASS-PATIENT-N (``people``) or from the headers of volumes (``slices``). OCT2017's published split
shares patients between train and test (Kermany et al. 2018 give the data; the overlap shows in the file names): there
the default splits anew by patient.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from dino_oct.data.anonymising import anonymised
from dino_oct.data.columns import is_table, read_table
from dino_oct.data.identity import identity_key
from dino_oct.data.layout import read_layout
from dino_oct.data.pattern import by_pattern
from dino_oct.data.people import name_people
from dino_oct.data.published import read_folder
from dino_oct.data.rows import FACTS, OF_LABEL, OF_TARGET, ScanRows, examples, holder, plain
from dino_oct.data.slices import with_slices
from dino_oct.data.splits import SPLITS, split_patients
from dino_oct.data.volumes import holds_volume
from dino_oct.errors import InputError
from dino_oct.limits import Items, Range, Seed, check_settings
from dino_oct.words import counted

UNLABELLED = UNKNOWN = -1
_ALIKE = 1.1  # ratio of pixel sizes up to which nothing is said
HeldOut = Annotated[float, Range(0, below=1)]
LongerSide = Annotated[int, Range(1, 65535)]
Micrometres = Annotated[float, Range(0.1, 1000)]
WhiteValue = Annotated[float | Literal["auto"], Range(above=0)]


@dataclass
class Reading:
    """What is said of the scans of one folder alone: where their classes, patients and splits are written."""

    table: str = ""
    """Table (CSV, TSV or Parquet) beside the folder that says what each scan is; --data FILE reads one, too."""
    columns: Annotated[list[str], Items(distinct=True)] = field(default_factory=list)
    """NAME=COLUMN where the table's columns have other names, such as label=diagnosis; names are file, label, patient,
    eye, visit, volume, slice, device, split, group, mask, severity, axial_um, lateral_um, position_um. Several labels
    of a scan, a column of 0 and 1 each: labels=drusen,fluid. Numbers to predict: targets=thickness,acuity."""
    pattern: str = ""
    """Regular expression with named groups that reads file names, such as (?P<label>[A-Z]+)_(?P<patient>\\d+)_.*; one
    with a slash reads the path below the folder."""
    layout: Literal["auto", "folders"] = "auto"
    """auto also reads what published sets keep beside their scans; folders: only what the folders say."""


@dataclass
class DatasetConfig(Reading):
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
    unlabelled: Annotated[list[str], Items(distinct=True)] = field(default_factory=list)
    """Further folders of scans, for pretraining only. Patients of the validation and test splits are left out."""
    neutralise_borders: bool = True
    """Replace white borders, left by rotation or padding, by the scan's own dark background."""
    pixel_um: list[Micrometres] = field(default_factory=list)
    """Height and width of a pixel, in µm, that scans of known size are resampled to (volumes, or axial_um and
    lateral_um of a table): 3.9 11.6, say; empty: as they are."""
    anonymise: bool = False
    """Show pseudonyms in place of the names of files, folders and patients, wherever the scans' own names may tell who
    is seen. Volumes' headers are hidden in any case."""
    max_side: LongerSide = 2048
    """Larger scans are scaled down (antialiased) to this longer side, in pixels, when cached."""
    grey_range: WhiteValue = "auto"
    """Grey value that is white in 16-bit, 32-bit and float images; auto: one for the folder, decided over all of
    them."""
    cache_dir: str = ""
    """Folder of the decode-once cache; empty: $DINO_OCT_CACHE, else $XDG_CACHE_HOME/dino_oct or ~/.cache/dino_oct."""

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if len(self.pixel_um) not in (0, 2):
            return "pixel_um", "give two numbers, height and width of a pixel"
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
        class_names: sorted; empty for unlabelled folders, and for sets with several labels a scan.
        folder_splits: (N,) str, the published split: the folder each file was found in; "" where there is none.
        stored: file → where its pixels are, where that is not the file: B-scans of volumes, hidden names.
        facts: name of ``rows.FACTS`` → (N,) str, "" where not known; only those of which anything is known.
        multilabels: of a set with several labels a scan, label → (N,) int8: 1, 0, or ``UNKNOWN``; sorted.
        targets: number to predict → (N,) float64, NaN where not known; sorted.
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
    stored: Mapping[str, Path] = field(default_factory=dict)
    facts: Mapping[str, np.ndarray] = field(default_factory=dict)
    multilabels: Mapping[str, np.ndarray] = field(default_factory=dict)
    targets: Mapping[str, np.ndarray] = field(default_factory=dict)
    how: str = ""
    splits_from: str = "the folders train/val/test"
    split_rule: str = ""
    mislabelled: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        """Where the pixels of scan ``i`` are."""
        return self.stored.get(self.files[i]) or self.root / self.files[i]

    @property
    def is_labelled(self) -> np.ndarray:
        """(N,) bool: the scan has a class, or any of several labels is known of it."""
        known = [values != UNKNOWN for values in self.multilabels.values()]
        return np.logical_or.reduce([self.labels != UNLABELLED, *known])

    def multilabel_matrix(self) -> np.ndarray:
        """(N, L) int8 of the labels in ``multilabels``."""
        return np.stack([np.empty(len(self), np.int8), *self.multilabels.values()], axis=1)[:, 1:]

    def target_matrix(self) -> np.ndarray:
        """(N, T) float64 of the numbers in ``targets``."""
        return np.stack([np.empty(len(self)), *self.targets.values()], axis=1)[:, 1:]

    def further_columns(self) -> dict[str, list[str]]:
        """``label:NAME`` → 1, 0 or "", and ``target:NAME`` → a number or "", of every scan, as a table has them."""
        cells = np.array(["0", "1", ""])  # UNKNOWN is the last
        labels = {OF_LABEL + name: cells[values].tolist() for name, values in self.multilabels.items()}
        targets = {
            OF_TARGET + name: ["" if value != value else repr(value).removesuffix(".0") for value in values.tolist()]
            for name, values in self.targets.items()
        }
        return labels | targets

    def contradiction(self, i: int, j: int) -> tuple[str, str] | None:
        """What the labels of two scans say against each other, of either; None where they agree or are not known."""
        labels = self.labels[[i, j]]
        if UNLABELLED not in labels and labels[0] != labels[1]:
            return self.class_names[labels[0]], self.class_names[labels[1]]
        for name, values in self.multilabels.items():
            if {int(values[i]), int(values[j])} == {0, 1}:
                return (name, f"not {name}") if values[i] else (f"not {name}", name)
        return None

    def fact(self, name: str) -> np.ndarray:
        """One of ``rows.FACTS`` of each scan, (N,) str, "" where not known."""
        return self.facts.get(name, np.full(len(self), "", dtype=np.str_))

    def sizes_um(self) -> np.ndarray:
        """Height and width of a pixel in micrometres, (N, 2) float64, NaN where not known."""
        sizes = np.stack([self.fact("axial_um"), self.fact("lateral_um")], axis=1)
        known = np.where(sizes == "", "nan", sizes).astype(np.float64)
        known[~(known > 0).all(axis=1)] = np.nan
        return known

    def stretches(self, pixel_um: Sequence[float]) -> np.ndarray:
        """Factors of height and width, (N, 2) float64, that bring pixels to a size; 1 where theirs is not known."""
        return np.nan_to_num(self.sizes_um() / np.array(pixel_um), nan=1.0) if pixel_um else np.ones((len(self), 2))

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
            multilabels={name: values[positions] for name, values in self.multilabels.items()},
            targets={name: values[positions] for name, values in self.targets.items()},
            mislabelled=tuple(file for file in self.mislabelled if file in kept),
        )


def index_scans(folder: str | Path, config: DatasetConfig | None = None) -> ScanIndex:
    """Find the scans under ``folder``, in its table or in one volume, and give each its class, patient and split.

    Ignored: hidden files and folders, `__MACOSX`, folders of masks, files without an image's suffix.

    Raises:
        InputError: missing or empty folder, two data sets in one folder, fractions that leave no training scans,
            `official` asked of a folder without train/val/test.
    """
    config = config or DatasetConfig()
    check_settings(config, "dataset.")
    is_alone = config.split == "auto" and not config.table and is_one_volume(folder)
    return _of_rows(*read_rows(Path(folder), config), config, is_split=not is_alone)


def index_files(files: Sequence[str], config: DatasetConfig | None = None) -> ScanIndex:
    """An index of image files and volumes, of which nothing is known but what names and headers say.

    Args:
        files: paths, by which the index names them.

    Raises:
        InputError: a file that is not there, or is given twice.
    """
    config = config or DatasetConfig()
    paths = [Path(file).absolute() for file in files]
    for file, path in zip(files, paths, strict=True):
        if not path.is_file():
            reason = "a folder; give it alone" if path.is_dir() else "no such file"
            raise InputError(f"{file}: {reason}")
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise InputError(f"{twice[0]}: is given twice")
    rows = ScanRows(how=counted(len(files), "file"))
    for file in files:
        rows.add(Path(file).as_posix())
    return _of_rows(Path(), _completed(rows, Path(), config), config, is_split=False)


def _of_rows(root: Path, rows: ScanRows, config: DatasetConfig, is_split: bool) -> ScanIndex:
    if not len(rows):
        raise InputError(f"{root}: no images left to use; {'; '.join(rows.notes)}")
    spelling: dict[str, str] = {}
    for name in sorted(set(filter(None, rows["label"]))):
        spelling.setdefault(name.casefold(), name)  # `cnv` in one split and `CNV` in another are one class
    class_names = tuple(sorted(spelling.values()))
    position = {name.casefold(): i for i, name in enumerate(class_names)}
    labels = np.array([position.get(name.casefold(), UNLABELLED) for name in rows["label"]], dtype=np.int64)
    folder_splits = np.array(rows["split"], dtype="<U5")
    index = ScanIndex(
        root=root,
        files=tuple(rows["file"]),
        labels=labels,
        patients=np.array(rows["patient"], dtype=np.str_),
        splits=folder_splits if any(rows["split"]) else np.full(len(rows), "train", dtype="<U5"),
        class_names=class_names,
        folder_splits=folder_splits,
        stored=rows.stored,
        facts={name: np.array(rows[name], dtype=np.str_) for name in FACTS if any(rows[name])},
        multilabels={name: _yes_or_no(rows[OF_LABEL + name]) for name in rows.names(OF_LABEL)},
        targets={name: _numbers(rows[OF_TARGET + name]) for name in rows.names(OF_TARGET)},
        how=rows.how,
        splits_from=rows.splits_from,
        mislabelled=tuple(rows.mislabelled),
        left_out=tuple(rows.left_out),
        notes=(*rows.notes, *rows.about_people),
    )
    if index.mislabelled:
        note = (
            f"{counted(len(index.mislabelled), 'file')} named after another class than the folder (folder's class kept)"
        )
        index = replace(index, notes=(*index.notes, f"{note}: {examples(index.mislabelled)}"))
    if is_split:
        index = _with_splits(index, config)
        index = replace(index, notes=(*index.notes, *_missing_from_splits(index)))
    else:
        index = replace(index, split_rule="one volume alone: all of it trains")
    index = replace(index, notes=(*index.notes, *_size_notes(index, config)))
    for further in config.unlabelled:
        index = _join_unlabelled(index, Path(further), config)
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
    elif config.columns:
        raise InputError("--dataset.columns names columns of a table: give one with --data or --dataset.table")
    elif is_one_volume(data):
        root, rows = data.parent, ScanRows(how="one file")
        rows.add(data.name)
    else:
        root, rows = data, read_layout(data) if config.layout == "folders" else read_folder(data)
    return root, _completed(by_pattern(rows, config.pattern) if config.pattern else rows, root, config)


def _completed(rows: ScanRows, root: Path, config: DatasetConfig) -> ScanRows:
    """The rows with B-scans in place of volumes, and patients."""
    rows = with_slices(rows, root, cache_root(config))
    name_people(rows)
    return anonymised(rows, root, identity_key(cache_root(config))) if config.anonymise else rows


def is_one_volume(data: str | Path) -> bool:
    """Whether data are the file of a volume, in place of a folder or a table."""
    path = Path(data)
    return path.is_file() and not is_table(path) and holds_volume(path)


def cache_root(config: DatasetConfig) -> Path:
    """Folder of all caches: the setting, $DINO_OCT_CACHE, $XDG_CACHE_HOME/dino_oct or ~/.cache/dino_oct."""
    if folder := config.cache_dir or os.environ.get("DINO_OCT_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dino_oct"


def _yes_or_no(cells: list[str]) -> np.ndarray:
    values = np.array(cells, dtype="<U1")
    return np.where(values == "", UNKNOWN, values == "1").astype(np.int8)


def _numbers(cells: list[str]) -> np.ndarray:
    values = np.array(cells, dtype=np.str_)
    return np.where(values == "", "nan", values).astype(np.float64)


def assert_patients_disjoint(index: ScanIndex) -> None:
    """Check that no patient has scans in two splits.

    Raises:
        InputError: names the shared patients.
    """
    shared = shared_patients(index.patients, index.splits)
    if shared:
        raise InputError(
            f"{counted(len(shared), 'patient')} with scans in more than one split ({examples(shared)}); "
            "use split: patient"
        )


def shared_patients(patients: np.ndarray, groups: np.ndarray) -> list[str]:
    """Patients (sorted) that occur in more than one group, e.g. split or class."""
    groups_of: dict[str, set] = defaultdict(set)
    for patient, group in zip(patients.tolist(), groups.tolist(), strict=True):
        groups_of[patient].add(group)
    return sorted(patient for patient, where in groups_of.items() if len(where) > 1)


def is_own_patient(index: ScanIndex) -> np.ndarray:
    """(N,) bool: the patient is not known, and the scan counts as one of its own."""
    return np.array(
        [name == plain(holder(file)) for file, name in zip(index.files, index.patients.tolist(), strict=True)]
    )


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
            note = f"official split: {counted(len(shared), 'patient')} with scans in more than one split"
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
            f"{by_patient}, because of {counted(len(shared), 'patient')} in more than one of {published} "
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
        absent += [name for name, values in index.multilabels.items() if not np.any(values[inside] == 1)]
        if absent and index.is_labelled[inside].any():
            notes.append(f"no patient of {', '.join(absent)} in the {split} split{cure}")
    return notes


def _size_notes(index: ScanIndex, config: DatasetConfig) -> list[str]:
    """A note where pixels of known sizes differ, or some are not known though all are to have one."""
    sizes = index.sizes_um()
    known = sizes[~np.isnan(sizes[:, 0])]
    if config.pixel_um:
        missing = len(sizes) - len(known)
        return [f"not resized, as the size of their pixels is not known: {counted(missing, 'scan')}"] if missing else []
    if not len(known):
        return []
    least, most = known.min(axis=0), known.max(axis=0)
    if (most <= _ALIKE * least).all():
        return []
    middle = " ".join(f"{size:.3g}" for size in np.median(known, axis=0))
    return [
        f"pixels differ in size: {least[0]:.3g} to {most[0]:.3g} µm high, {least[1]:.3g} to {most[1]:.3g} µm wide; "
        f"--dataset.pixel-um {middle} makes them equal"
    ]


def _join_unlabelled(index: ScanIndex, folder: Path, config: DatasetConfig) -> ScanIndex:
    """Add a folder's scans to the training split, without labels and without patients held out for val and test."""
    root, rows = read_rows(folder, DatasetConfig(cache_dir=config.cache_dir, anonymise=config.anonymise))
    held_out = set(index.patients[index.splits != "train"].tolist())
    known = {os.path.realpath(index.path(i)) for i in range(len(index))}
    reasons: Counter[str] = Counter()
    kept: list[int] = []
    files, people = [], []
    n_unknown = 0
    stored = dict(index.stored)
    for i, (name, patient) in enumerate(zip(rows["file"], rows["patient"], strict=True)):
        file = str(root.resolve() / name)
        place = rows.stored.get(name, file)
        if os.path.realpath(place) in known:
            reasons["already in the index"] += 1
        elif patient in held_out:
            reasons["of patients in the validation or test split"] += 1
        else:
            kept.append(i)
            files.append(file)
            if name in rows.stored:
                stored[file] = rows.stored[name]
            is_unknown = patient == plain(holder(name))
            people.append(plain(holder(file)) if is_unknown else patient)
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
        stored=stored,
        facts={
            name: np.concatenate([index.fact(name), np.array([rows[name][i] for i in kept], dtype=np.str_)])
            for name in FACTS
            if name in index.facts or any(rows[name])
        },
        multilabels={
            name: np.concatenate([values, np.full(n, UNKNOWN, dtype=np.int8)])
            for name, values in index.multilabels.items()
        },
        targets={name: np.concatenate([values, np.full(n, np.nan)]) for name, values in index.targets.items()},
        left_out=(*index.left_out, *((str(root / file), reason) for file, reason in rows.left_out)),
        notes=(*index.notes, *notes),
    )
