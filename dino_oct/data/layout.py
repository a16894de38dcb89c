"""What the place of each image in a folder says about it: published split, class and patient.

Read are `{train,val,test}/CLASS/FILE` (OCT2017) and `CLASS/{train,val,test}/FILE`, `CLASS/FILE`, both with a folder for
each patient between class and file, `PATIENT/FILE`, `CLASS01/FILE` (one folder for each patient of a class) and any
folder of images; each with other folders above. The layout is that of most images; the few that lie elsewhere are left
out and listed. No image is opened here.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dino_oct.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp"})
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "valset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}

_MASKS = re.compile(r"^(masks?|annotations?|segmentations?|ground[ _-]?truth)([ _.-]|$)", re.I)
_DEEPEST_TREE = 2  # folders between the given one and train/: `OCT2017 /OCT2017/train` occurs
_FEW = 0.2  # share of the images up to which those that lie elsewhere are exceptions to the layout
_FEW_CLASSES = 10  # numbered folders up to which they may be grades; more of them are patients
_NO_SCANS = frozenset(
    {".txt", ".md", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xlsx", ".xls", ".pdf", ".html", ".db", ".ini", ".npz"}
    | {".py", ".log", ".docx", ".url", ".lnk"}
)  # notes beside scans; nobody expects them to be read
_NUMBERED = re.compile(r"^(?P<word>[^\W\d_]*)[\s_.#-]*(?P<number>\d+)(?:[\s_-]*(?:od|os|ou|l|r|left|right))?$", re.I)
_PATIENT_WORDS = frozenset(
    {"patient", "patients", "pat", "pt", "subject", "subj", "sub", "person", "proband", "case", "id", "p", "s", "eye"}
)
_GRADE_WORDS = frozenset({"grade", "class", "stage", "label", "category", "cat", "level", "severity", "group", "type"})
_NO_PATIENTS = frozenset(
    {"left", "right", "od", "os", "ou", "l", "r", "images", "image", "img", "imgs", "scans", "bscans", "oct", "raw"}
)  # folders below a class that name no person


@dataclass
class Layout:
    """Images of a folder in the order of their paths.

    Attributes:
        files: POSIX paths relative to the folder.
        splits: "train", "val", "test", or "" without such folders.
        classes: class folder of each, "" without.
        patients: patient folder of each, "" without.
        notes: one line each, what a user should know.
        left_out: (file, reason) of images that do not belong to the layout.
    """

    files: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def add(self, file: str, split: str, label: str = "", patient: str = "") -> None:
        """Add an image."""
        for values, value in ((self.files, file), (self.splits, split), (self.classes, label)):
            values.append(value)
        self.patients.append(patient)


def read_layout(folder: Path) -> Layout:
    """Find the images below a folder and read what their places say.

    Raises:
        InputError: missing or empty folder, or two data sets in one folder.
    """
    files, notes = image_files(folder)
    if not files:
        skipped = f"; {notes[0]}" if notes else ""
        raise InputError(
            f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder or below it{skipped}"
        )
    places = {file: tuple(plain(part) for part in PurePosixPath(file).parts[:-1]) for file in files}
    root, has_splits = _root(folder, places)
    inside = {file: names[len(root) :] for file, names in places.items() if names[: len(root)] == root}
    masks = {file for file, names in inside.items() if any(_MASKS.match(name) for name in names)}
    others = sorted({name for file in masks for name in inside[file] if _MASKS.match(name) and name != "masks"})
    inside = {file: names for file, names in inside.items() if file not in masks}
    if others:  # masks/ is where phantoms and this toolkit's users keep them
        notes.append(f"{len(masks):,} images in folders of masks are not read as scans ({examples(others)})")
    layout = Layout(notes=notes)
    if has_splits:
        split_of = {file: _split(names[0]) for file, names in inside.items() if names}
        below = {file: names[1:] for file, names in inside.items() if split_of.get(file)}
    else:
        split_of, below = {}, inside
        if inside and all(len(names) >= 2 and _split(names[1]) for names in inside.values()):
            split_of = {file: _split(names[1]) for file, names in inside.items()}
            below = {file: (names[0], *names[2:]) for file, names in inside.items()}
    _read_levels(below, split_of, bool(split_of), layout)
    where = "the folders train/val/test" if has_splits else "the folder of the scans"
    outside = (file for file in files if file not in below and file not in masks)
    layout.left_out += [(file, f"outside {where}") for file in outside]
    if layout.left_out:
        by_reason: dict[str, list[str]] = defaultdict(list)
        for file, reason in layout.left_out:
            by_reason[reason].append(file)
        for reason, names in by_reason.items():
            layout.notes.append(f"{_count(names)} left out, {reason}: {examples(names)}")
    return layout


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Image files below a folder as sorted POSIX paths relative to it, and a note on files of other types.

    Linked folders are followed once. Hidden files and `__MACOSX` are not looked at.
    """
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {problem}; give a folder of scans")
    files, visited, others = [], {os.path.realpath(folder)}, []
    for parent, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            target = os.path.realpath(os.path.join(parent, name))
            if not (name.startswith(".") or name == "__MACOSX" or target in visited):
                visited.add(target)
                kept.append(name)
        folders[:] = kept
        relative = Path(parent).relative_to(folder)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                files.append((relative / name).as_posix())
            elif not name.startswith(".") and suffix not in _NO_SCANS:
                others.append((relative / name).as_posix())
    if not others:
        return sorted(files), []
    types = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in others).most_common(4)
    counted = ", ".join(f"{suffix} {count:,}" for suffix, count in types)
    return sorted(files), [f"{len(others):,} files of types that are not read ({counted}): {examples(sorted(others))}"]


def plain(name: str) -> str:
    """A name in one spelling: composed characters (NFC), no blanks around it."""
    return unicodedata.normalize("NFC", name).strip()


def examples(names: Sequence[str], most: int = 3) -> str:
    """The first names, and whether there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _count(files: Sequence[str]) -> str:
    return f"{len(files):,} image{'' if len(files) == 1 else 's'}"


def _split(name: str) -> str:
    return SPLIT_FOLDERS.get(name.lower(), "")


def _root(folder: Path, places: dict[str, tuple[str, ...]]) -> tuple[tuple[str, ...], bool]:
    """The folder that holds the layout, as path parts, and whether train/val/test lie in it."""
    trees = _split_trees(places.values())
    if len(trees) > 1:
        names = " and ".join(f"'{'/'.join(tree)}'" for tree in trees)
        raise InputError(f"{folder}: more than one train/val/test tree ({names}); give the folder of one of them")
    if trees:
        return trees[0], True
    root: tuple[str, ...] = ()
    inside = list(places.values())
    while True:
        tops = Counter(names[len(root)] for names in inside if len(names) > len(root))
        if len(tops) != 1 or tops.total() <= (1 - _FEW) * len(inside) or _split(next(iter(tops))):
            is_split = [bool(_split(top)) for top in tops.elements()]
            return root, bool(is_split) and sum(is_split) > (1 - _FEW) * len(inside)
        root = (*root, next(iter(tops)))
        inside = [names for names in inside if names[: len(root)] == root]


def _split_trees(all_places: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Folders (as path parts) that hold {train,val,test}/CLASS; a copy nested in another one is not listed."""
    trees: set[tuple[str, ...]] = set()
    for names in all_places:
        for depth in range(min(_DEEPEST_TREE, len(names) - 2) + 1):
            if _split(names[depth]):
                trees.add(names[:depth])
                break
    return sorted(tree for tree in trees if not any(tree[:n] in trees for n in range(len(tree))))


def _read_levels(below: dict[str, tuple[str, ...]], split_of: dict[str, str], has_splits: bool, layout: Layout) -> None:
    """Read the folders between the split (or the root) and the file: none, class, patient, or class and patient."""
    tops = Counter(names[0] for names in below.values() if names)
    in_folders = tops.total()
    is_layered = in_folders > len(below) / 2 and (len(tops) > 1 or (has_splits and bool(tops)))
    if not is_layered:
        if len(tops) > 1:
            layout.notes.append(
                f"{in_folders:,} of {len(below):,} images lie in folders ({examples(sorted(tops))}), too few or too "
                "unlike classes to be read as such: no classes"
            )
        for file in below:
            layout.add(file, split_of.get(file, ""))
        return
    kind = _kind(list(tops))
    if kind == "patients":
        layout.notes.append(
            f"{len(tops):,} folders are read as patients, not as classes ({examples(sorted(tops))}): no classes"
        )
        for file, names in below.items():
            layout.add(file, split_of.get(file, ""), patient=names[0] if names else "")
        return
    if kind == "patients of classes":
        layout.notes.append(
            f"{len(tops):,} folders are read as patients of the classes that begin their names "
            f"({examples(sorted({_NUMBERED.match(top)['word'] for top in tops}), 6)})"
        )
    deep = sum(len(names) > 1 for names in below.values())
    has_patients, is_mixed = deep > (1 - _FEW) * in_folders, _FEW * in_folders < deep <= (1 - _FEW) * in_folders
    if is_mixed:
        layout.notes.append(
            f"{deep:,} of {in_folders:,} images lie in folders below the class folders: the class is the first folder"
        )
    for file, names in below.items():
        if not names:
            layout.left_out.append((file, "beside the class folders"))
        elif not is_mixed and (len(names) > 1) != has_patients:
            layout.left_out.append((file, f"{'higher' if has_patients else 'deeper'} than most images of the classes"))
        elif kind == "patients of classes":
            layout.add(file, split_of.get(file, ""), _NUMBERED.match(names[0])["word"], names[0])
        else:
            person = next((name for name in names[1:] if name.lower() not in _NO_PATIENTS), "")
            layout.add(file, split_of.get(file, ""), names[0], person)


def _kind(tops: Sequence[str]) -> str:
    """Whether folders are "classes", "patients" or "patients of classes" (AMD1, AMD2, DME1, …), by their names."""
    numbered = [match for top in tops if (match := _NUMBERED.match(top))]
    if len(numbered) < 0.9 * len(tops):
        return "classes"
    per_word = Counter(match["word"].casefold() for match in numbered)
    if set(per_word) <= _GRADE_WORDS:
        return "classes"
    if len(per_word) > 1:
        is_repeated = min(per_word.values()) > 1 and len(numbered) == len(tops)
        return "patients of classes" if is_repeated and not set(per_word) & _PATIENT_WORDS else "classes"
    (word,) = per_word
    return "patients" if word in _PATIENT_WORDS or len(tops) > _FEW_CLASSES else "classes"
