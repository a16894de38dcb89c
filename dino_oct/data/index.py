"""Index of a folder of scans: file, class, patient and split of each, without opening an image.

Understands an OCT2017-style tree (`{train,val,test}/CLASS/CLASS-PATIENT-N.jpeg`, directly or up to two folders down),
a tree of class folders, and any folder of images without classes. OCT2017's published split shares patients between
train and test (Kermany et al. 2018 give the data; the overlap shows in the file names), so the default re-splits by
patient number.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from dino_oct.data.splits import SPLITS, split_patients
from dino_oct.errors import InputError

UNLABELLED = -1
IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp"})
# CLASS-PATIENT-N; the patient is the number alone: CNV-53018-1 and DRUSEN-53018-2 come from one person.
_SCAN_NAME = re.compile(r"^(?P<label>[^-/]+)-(?P<patient>\d+)-\d+$")
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_DEEPEST_TREE = 2  # folders between the given one and train/: `OCT2017 /OCT2017/train` occurs


@dataclass
class DatasetConfig:
    """Which scans a run sees, how they are split, and how they are cached."""

    split: Literal["patient", "official", "auto"] = "auto"
    """patient: by patient number, stratified by class; official: the folders train/val/test as they are;
    auto: official for phantoms, patient for everything else."""
    split_seed: int = 0
    """Seed of the patient split."""
    val_fraction: float = 0.1
    """Share of each class's scans whose patients are kept for validation (patient split)."""
    test_fraction: float = 0.15
    """Share of each class's scans whose patients are kept for the final test (patient split)."""
    unlabelled: list[str] = field(default_factory=list)
    """Further folders of scans, for pretraining only. Patients of the validation and test splits are left out."""
    neutralise_borders: bool = True
    """Replace white borders, left by rotation or padding, by the scan's own dark background."""
    max_side: int = 2048
    """Larger scans are scaled down (antialiased) to this longer side, in pixels, when cached."""
    grey_range: float | Literal["auto"] = "auto"
    """Grey value that is white in 16-bit, 32-bit and float images; auto: one for the folder, decided over all of
    them."""
    cache_dir: str = ""
    """Folder of the decode-once cache; empty: $DINO_OCT_CACHE, else $XDG_CACHE_HOME/dino_oct or ~/.cache/dino_oct."""


@dataclass(frozen=True, eq=False)
class ScanIndex:
    """Scans in a fixed order: sorted by path below ``root``, then each joined unlabelled folder, sorted likewise.

    Attributes:
        root: the indexed folder.
        files: N paths, relative to ``root`` (absolute for scans of joined folders).
        labels: (N,) int64, position in ``class_names``, or ``UNLABELLED``.
        patients: (N,) str, the patient number of the file name without leading zeros, else the file's own path.
        splits: (N,) str, "train", "val" or "test".
        class_names: sorted; empty for unlabelled folders.
        folder_splits: (N,) str, the published split: the folder each file was found in; "" where there is none.
        mislabelled: files whose name says another class than their folder. The folder's label is kept.
        notes: one line each, what a user should know about how the folder was read.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    patients: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]
    folder_splits: np.ndarray
    mislabelled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        """Absolute or root-joined path of scan ``i``."""
        return self.root / self.files[i]

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
        chosen = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        files = tuple(self.files[i] for i in chosen)
        kept = set(files)
        return replace(
            self,
            files=files,
            labels=self.labels[chosen],
            patients=self.patients[chosen],
            splits=self.splits[chosen],
            folder_splits=self.folder_splits[chosen],
            mislabelled=tuple(file for file in self.mislabelled if file in kept),
        )


def index_scans(folder: str | Path, config: DatasetConfig | None = None) -> ScanIndex:
    """Find the scans under ``folder`` and give each its class, patient and split.

    Ignored: hidden files and folders, `__MACOSX`, a top-level `masks` folder, files without an image's suffix.

    Raises:
        InputError: missing or empty folder, two data sets in one folder, fractions that leave no training scans,
            `official` asked of a folder without train/val/test.
    """
    config = config or DatasetConfig()
    _check_fractions(config)
    folder = Path(folder)
    found = _image_files(folder)
    if not found:
        raise InputError(f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder or below it")
    files, folder_splits, folder_classes, notes = _read_layout(folder, found)
    spelling: dict[str, str] = {}
    for name in sorted(set(filter(None, folder_classes))):
        spelling.setdefault(name.casefold(), name)  # `cnv` in one split and `CNV` in another are one class
    class_names = tuple(sorted(spelling.values()))
    position = {name.casefold(): i for i, name in enumerate(class_names)}
    labels = np.array([position.get(name.casefold(), UNLABELLED) for name in folder_classes], dtype=np.int64)
    index = ScanIndex(
        root=folder,
        files=tuple(files),
        labels=labels,
        patients=np.array([patient_of(file) for file in files], dtype=np.str_),
        splits=np.array([split or "train" for split in folder_splits], dtype="<U5"),
        class_names=class_names,
        folder_splits=np.array(folder_splits, dtype="<U5"),
        mislabelled=tuple(_mislabelled(files, labels, position)),
        notes=tuple(notes + _naming_notes(files)),
    )
    if index.mislabelled:
        note = f"{len(index.mislabelled)} files named after another class than their folder (folder's class kept)"
        index = replace(index, notes=(*index.notes, f"{note}: {_examples(index.mislabelled)}"))
    if _split_kind(folder, config) == "official":
        if not any(folder_splits):
            raise InputError(f"{folder}: no train/val/test folders, so no official split; use split: patient")
        shared = shared_patients(index.patients, index.splits)
        if shared:
            note = f"official split: {len(shared):,} patients have scans in more than one split"
            index = replace(index, notes=(*index.notes, f"{note}: {_examples(shared)}"))
    else:
        index = replace(index, splits=_patient_splits(index, config))
        assert_patients_disjoint(index)
    for further in config.unlabelled:
        index = _join_unlabelled(index, Path(further))
    return index


def assert_patients_disjoint(index: ScanIndex) -> None:
    """Check that no patient has scans in two splits.

    Raises:
        InputError: names the shared patients.
    """
    shared = shared_patients(index.patients, index.splits)
    if shared:
        raise InputError(
            f"{len(shared)} patients have scans in more than one split ({_examples(shared)}); use split: patient"
        )


def shared_patients(patients: np.ndarray, groups: np.ndarray) -> list[str]:
    """Patients (sorted) that occur in more than one group, e.g. split or class."""
    seen: dict[str, set] = defaultdict(set)
    for patient, group in zip(patients.tolist(), groups.tolist(), strict=True):
        seen[patient].add(group)
    return sorted(patient for patient, where in seen.items() if len(where) > 1)


def patient_of(file: str) -> str:
    """Patient id of a file: the number in `CLASS-PATIENT-N`, else the path itself (a patient of its own)."""
    match = _SCAN_NAME.match(PurePosixPath(file).stem)
    return str(int(match["patient"])) if match else file


def _check_fractions(config: DatasetConfig) -> None:
    for name in ("val_fraction", "test_fraction"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}; give a share from 0 to below 1")
    if config.val_fraction + config.test_fraction >= 1:
        raise InputError("val_fraction + test_fraction must stay below 1, so that scans are left to train on")


def _image_files(folder: Path) -> list[str]:
    """Image files below a folder as sorted POSIX paths relative to it; linked folders are followed once."""
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {problem}; give a folder of scans")
    files, visited = [], {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            target = os.path.realpath(os.path.join(parent, name))
            if not (name.startswith(".") or name == "__MACOSX" or target in visited):
                visited.add(target)
                kept.append(name)
        folders[:] = kept
        relative = Path(parent).relative_to(folder)
        files += [
            (relative / name).as_posix()
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(files)


def _read_layout(folder: Path, found: list[str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Files kept, the split folder and the class folder of each ("" for none), and notes."""
    parts = {file: PurePosixPath(file).parts for file in found}
    trees = _split_trees(parts.values())
    if trees:
        if len(trees) > 1:
            names = " and ".join(f"'{'/'.join(tree)}'" for tree in trees)
            raise InputError(f"{folder}: more than one train/val/test tree ({names}); give the folder of one of them")
        return _read_split_tree(parts, trees[0])
    prefix = _shared_prefix(list(parts.values()))
    inside = {file: names for file, names in parts.items() if names[len(prefix)] != "masks"}
    depths = {len(names) - len(prefix) for names in inside.values()}
    classes = {names[len(prefix)] for names in inside.values()}
    if depths == {2} and len(classes) > 1 and not {name.strip().lower() for name in classes} & set(_SPLIT_FOLDERS):
        return list(inside), [""] * len(inside), [names[len(prefix)].strip() for names in inside.values()], []
    splits = [_SPLIT_FOLDERS.get(names[len(prefix)].strip().lower(), "") for names in inside.values()]
    if not all(splits):
        splits = [""] * len(inside)
    return list(inside), splits, [""] * len(inside), []


def _split_trees(all_parts: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Folders (as path parts) that hold {train,val,test}/CLASS/file; a copy nested in another one is not listed."""
    trees: set[tuple[str, ...]] = set()
    for names in all_parts:
        for depth in range(min(_DEEPEST_TREE, len(names) - 3) + 1):
            if names[depth].strip().lower() in _SPLIT_FOLDERS:
                trees.add(names[:depth])
                break
    return sorted(tree for tree in trees if not any(tree[:n] in trees for n in range(len(tree))))


def _read_split_tree(parts: dict[str, tuple[str, ...]], tree: tuple[str, ...]):
    files, splits, classes = [], [], []
    for file, names in parts.items():
        inside = names[len(tree) :] if names[: len(tree)] == tree else ()
        split = _SPLIT_FOLDERS.get(inside[0].strip().lower()) if len(inside) >= 3 else None
        if split:
            files.append(file)
            splits.append(split)
            classes.append(inside[1].strip())
    masks = sum(names[: len(tree) + 1] == (*tree, "masks") for names in parts.values())
    outside = len(parts) - len(files) - masks
    notes = [f"{outside:,} images outside {{train,val,test}}/CLASS folders ignored"] if outside else []
    return files, splits, classes, notes


def _shared_prefix(all_parts: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Leading folders that every file shares, so that `DIR/OCT/{CNV,DME}` reads like `DIR/{CNV,DME}`."""
    first, last = min(all_parts)[:-1], max(all_parts)[:-1]
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _naming_notes(files: Sequence[str]) -> list[str]:
    unnamed = sum(patient_of(file) == file for file in files)
    if not unnamed:
        return []
    return [
        f"{unnamed:,} of {len(files):,} file names carry no patient number (CLASS-PATIENT-N): each such scan counts "
        "as a patient of its own, so one person's scans may be in several splits"
    ]


def _mislabelled(files: Sequence[str], labels: np.ndarray, position: dict[str, int]) -> list[str]:
    wrong = []
    for file, label in zip(files, labels.tolist(), strict=True):
        match = _SCAN_NAME.match(PurePosixPath(file).stem)
        named = position.get(match["label"].strip().casefold()) if match else None
        if label != UNLABELLED and named is not None and named != label:
            wrong.append(file)
    return wrong


def _split_kind(folder: Path, config: DatasetConfig) -> str:
    if config.split != "auto":
        return config.split
    return "official" if (folder / "phantom.json").is_file() else "patient"


def _patient_splits(index: ScanIndex, config: DatasetConfig) -> np.ndarray:
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    of_patient = split_patients(index.patients, index.labels, fractions, config.split_seed)
    return np.array([of_patient[patient] for patient in index.patients.tolist()], dtype="<U5")


def _join_unlabelled(index: ScanIndex, folder: Path) -> ScanIndex:
    """Add a folder's scans to the training split, without labels and without patients held out for val and test."""
    found = [str(folder.resolve() / file) for file in _image_files(folder)]
    if not found:
        raise InputError(f"{folder}: no images in this folder of unlabelled scans or below it")
    held_out = set(index.patients[index.splits != "train"].tolist())
    known = {os.path.realpath(index.path(i)) for i in range(len(index))}
    reasons: Counter[str] = Counter()
    joined = []
    for file in found:
        if os.path.realpath(file) in known:
            reasons["already in the index"] += 1
        elif patient_of(file) in held_out:
            reasons["of patients in the validation or test split"] += 1
        else:
            joined.append(file)
    notes = [f"{folder}: {count:,} unlabelled scans {reason} left out" for reason, count in sorted(reasons.items())]
    unknown = sum(patient_of(file) == file for file in joined)
    if unknown:
        notes.append(f"{folder}: {unknown:,} unlabelled scans carry no patient number: they may show test patients")
    n = len(joined)
    return replace(
        index,
        files=(*index.files, *joined),
        labels=np.concatenate([index.labels, np.full(n, UNLABELLED, dtype=np.int64)]),
        patients=np.concatenate([index.patients, np.array([patient_of(f) for f in joined], dtype=np.str_)]),
        splits=np.concatenate([index.splits, np.full(n, "train", dtype="<U5")]),
        folder_splits=np.concatenate([index.folder_splits, np.full(n, "", dtype="<U5")]),
        notes=(*index.notes, *notes),
    )


def _examples(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
