"""What the place of each image in a folder says about it: published split, class and patient.

Read are `{train,val,test}/CLASS/FILE` (OCT2017) and `CLASS/{train,val,test}/FILE`, `CLASS/FILE`, both with a folder for
each patient between class and file, `PATIENT/FILE`, `CLASS01/FILE` (one folder for each patient of a class) and any
folder of images; each with other folders above, and with folders of an eye (OD, OS) and a visit (V1, W4) below the
patient. The layout is that of most images; the few that lie elsewhere are left out and listed. No image is opened here.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from dino_oct.data.rows import ScanRows, examples, eye_of, plain, split_of
from dino_oct.data.volumes import holds_volume, owned_files
from dino_oct.errors import InputError
from dino_oct.words import counted

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp"})

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
_VISIT = re.compile(
    r"^((visit|v|week|w|month|m|year|y|day|d|session|ses|follow[ _-]?up|fu)[ _-]?\d+|baseline|\d{4}-\d\d-\d\d)$", re.I
)
_GRADE_WORDS = frozenset({"grade", "class", "stage", "label", "category", "cat", "level", "severity", "group", "type"})
_NO_PATIENTS = frozenset(
    {"ou", "images", "image", "img", "imgs", "scans", "bscans", "oct", "raw"}
)  # folders below a class that name no person


def read_layout(folder: Path) -> ScanRows:
    """Find the images below a folder and read what their places say.

    Raises:
        InputError: missing or empty folder, or two data sets in one folder.
    """
    files, notes = image_files(folder)
    if not files:
        skipped = f"; {notes[0]}" if notes else ""
        raise InputError(
            f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) or volumes in this folder or below it{skipped}"
        )
    places = {file: tuple(plain(part) for part in PurePosixPath(file).parts[:-1]) for file in files}
    root, has_splits = _root(folder, places)
    inside = {file: names[len(root) :] for file, names in places.items() if names[: len(root)] == root}
    masks = {file for file, names in inside.items() if any(_MASKS.match(name) for name in names)}
    others = sorted({name for file in masks for name in inside[file] if _MASKS.match(name) and name != "masks"})
    inside = {file: names for file, names in inside.items() if file not in masks}
    if others:  # masks/ is where phantoms and this toolkit's users keep them
        notes.append(f"not read as scans, in folders of masks: {counted(len(masks), 'image')} ({examples(others)})")
    rows = ScanRows(notes=notes)
    if has_splits:
        splits = {file: split_of(names[0]) for file, names in inside.items() if names}
        below = {file: names[1:] for file, names in inside.items() if splits.get(file)}
    else:
        splits, below = {}, inside
        if inside and all(len(names) >= 2 and split_of(names[1]) for names in inside.values()):
            splits = {file: split_of(names[1]) for file, names in inside.items()}
            below = {file: (names[0], *names[2:]) for file, names in inside.items()}
    how = _read_levels(below, splits, rows)
    rows.how = f"{rows.splits_from}, {how}" if splits else how
    where = rows.splits_from if has_splits else "the folder of the scans"
    outside = (file for file in files if file not in below and file not in masks)
    rows.left_out += [(file, f"outside {where}") for file in outside]
    rows.note_left_out()
    return rows


def is_scan_file(file: Path) -> bool:
    """Whether a file is named as a picture, or is a volume (``holds_volume``)."""
    return file.suffix.lower() in IMAGE_SUFFIXES or holds_volume(file)


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Pictures and volumes below a folder as sorted POSIX paths relative to it, and a note on files of other types.

    Linked folders are followed once. Hidden files and `__MACOSX` are not looked at, nor what belongs to a volume.
    """
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {problem}; give a folder of scans, a table of them, or a volume")
    files, owned, visited, others = [], set(), {os.path.realpath(folder)}, []
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
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if is_scan_file(Path(parent, name)):
                files.append((relative / name).as_posix())
                if suffix not in IMAGE_SUFFIXES:
                    owned.update((relative / file.name).as_posix() for file in owned_files(Path(parent, name)))
            elif suffix not in _NO_SCANS:
                others.append((relative / name).as_posix())
    files, others = [file for file in files if file not in owned], [file for file in others if file not in owned]
    if not others:
        return sorted(files), []
    types = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in others).most_common(4)
    by_type = ", ".join(f"{suffix} {count:,}" for suffix, count in types)
    return sorted(files), [
        f"{counted(len(others), 'file')} of types that are not read ({by_type}): {examples(sorted(others))}"
    ]


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
        if len(tops) != 1 or tops.total() <= (1 - _FEW) * len(inside) or split_of(next(iter(tops))):
            is_split = [bool(split_of(top)) for top in tops.elements()]
            return root, bool(is_split) and sum(is_split) > (1 - _FEW) * len(inside)
        root = (*root, next(iter(tops)))
        inside = [names for names in inside if names[: len(root)] == root]


def _split_trees(all_places: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Folders (as path parts) that hold {train,val,test}/CLASS; a copy nested in another one is not listed."""
    trees: set[tuple[str, ...]] = set()
    for names in all_places:
        for depth in range(min(_DEEPEST_TREE, len(names) - 2) + 1):
            if split_of(names[depth]):
                trees.add(names[:depth])
                break
    return sorted(tree for tree in trees if not any(tree[:n] in trees for n in range(len(tree))))


def _read_levels(below: dict[str, tuple[str, ...]], splits: dict[str, str], rows: ScanRows) -> str:
    """Read the folders between the split (or the root) and the file into rows; says in words how they were read."""
    tops = Counter(names[0] for names in below.values() if names)
    in_folders = tops.total()
    is_layered = in_folders > len(below) / 2 and (len(tops) > 1 or (bool(splits) and bool(tops)))
    if not is_layered:
        if len(tops) > 1:
            rows.notes.append(
                f"{in_folders:,} of {len(below):,} images lie in folders ({examples(sorted(tops))}), too few or too "
                "unlike classes to be read as such: no classes"
            )
        for file in below:
            rows.add(file, split=splits.get(file, ""))
        return "no classes"
    kind = _kind(list(tops))
    if kind == "patients":
        rows.notes.append(
            f"{len(tops):,} folders are read as patients, not as classes ({examples(sorted(tops))}): no classes"
        )
        for file, names in below.items():
            rows.add(file, split=splits.get(file, ""), **_person(names))
        return "a folder for each patient, no classes"
    if kind == "patients of classes":
        rows.notes.append(
            f"{len(tops):,} folders are read as patients of the classes that begin their names "
            f"({examples(sorted({_NUMBERED.match(top)['word'] for top in tops}), 6)})"
        )
    deep = sum(len(names) > 1 for names in below.values())
    has_patients, is_mixed = deep > (1 - _FEW) * in_folders, _FEW * in_folders < deep <= (1 - _FEW) * in_folders
    if is_mixed:
        rows.notes.append(
            f"{deep:,} of {in_folders:,} images lie in folders below the class folders: the class is the first folder"
        )
    for file, names in below.items():
        if not names:
            rows.left_out.append((file, "beside the class folders"))
        elif not is_mixed and (len(names) > 1) != has_patients:
            rows.left_out.append((file, f"{'higher' if has_patients else 'deeper'} than most images of the classes"))
        elif kind == "patients of classes":
            known = {**_person(names), "patient": names[0]}
            rows.add(file, split=splits.get(file, ""), label=_NUMBERED.match(names[0])["word"], **known)
        else:
            rows.add(file, split=splits.get(file, ""), label=names[0], **_person(names[1:]))
    if kind == "patients of classes":
        return "a folder for each patient, named after the class"
    return "a folder for each class" + (", below it one for each patient" if any(rows["patient"]) else "")


def _person(names: Sequence[str]) -> dict[str, str]:
    """Patient, eye and visit that folders below a class name, the patient's first."""
    eye = next(filter(None, map(eye_of, names)), "")
    person, *others = [name for name in names if name.lower() not in _NO_PATIENTS and not eye_of(name)] or [""]
    visit = next((name for name in others if _VISIT.match(name)), "")
    return {"patient": person, "eye": eye, "visit": visit}


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
