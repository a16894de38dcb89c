"""What is known of each scan before any is opened: one row a scan, whatever says it (folders, names, a table)."""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SIZES = ("axial_um", "lateral_um", "position_um")
FACTS = ("eye", "visit", "volume", "slice", "device", "group", "mask", "severity", *SIZES)
COLUMNS = ("file", "label", "patient", *FACTS[:5], "split", *FACTS[5:])
"""Of a table of scans, in the order in which it is written."""
OF_LABEL, OF_TARGET = "label:", "target:"
"""What the names of further columns begin with: one for each label of a set with several a scan, one a target."""
EYES = {
    **dict.fromkeys(("r", "od", "right", "re", "oculus dexter"), "R"),
    **dict.fromkeys(("l", "os", "left", "le", "oculus sinister"), "L"),
}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "valset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
_YES_NO = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), "1"),
    **dict.fromkeys(("0", "0.0", "false", "no"), "0"),
}
_SLICE = re.compile(r"#(\d+-)?\d+$")


@dataclass
class ScanRows:
    """Scans and what is known of each; "" where something is not known.

    Attributes:
        columns: name of ``COLUMNS`` → values, all of one length. ``file``: POSIX path below the folder, or absolute.
            ``split``: train, val, test. ``eye``: R, L. ``slice``: digits. ``severity``: a number. ``axial_um``,
            ``lateral_um``: height and width of a pixel, ``position_um``: from the fovea across the slices; micrometres.
            Further ones, where there are any: ``label:NAME``, 1 or 0, and ``target:NAME``, a number. With the former
            no scan has a ``label``.
        stored: file → where its pixels are, where that is not the file.
        how: one line, how the rows came about.
        splits_from: what says the splits, in words.
        is_told: someone wrote the patients down; nothing was concluded from names.
        notes: one line each, what a user should know.
        about_people: the same, of how patients were told.
        mislabelled: files whose name says another class than their label.
        left_out: (file, reason) of images that are no scans of this set.
    """

    columns: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    stored: dict[str, Path] = field(default_factory=dict)
    how: str = ""
    splits_from: str = "the folders train/val/test"
    is_told: bool = False
    notes: list[str] = field(default_factory=list)
    about_people: list[str] = field(default_factory=list)
    mislabelled: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.columns["file"])

    def __getitem__(self, column: str) -> list[str]:
        return self.columns[column]

    def names(self, kind: str) -> list[str]:
        """Names of the further columns of a kind, ``OF_LABEL`` or ``OF_TARGET``, sorted."""
        return sorted(name.removeprefix(kind) for name in self.columns if name.startswith(kind))

    def no_columns(self) -> dict[str, list[str]]:
        """The same columns, empty."""
        return {name: [] for name in self.columns}

    def add(self, file: str, **known: str) -> None:
        """Add a scan."""
        for name, values in self.columns.items():
            values.append(file if name == "file" else known.get(name, ""))

    def note_left_out(self) -> None:
        """Say once for each reason how many images were left out."""
        by_reason: dict[str, list[str]] = {}
        for file, reason in self.left_out:
            by_reason.setdefault(reason, []).append(file)
        for reason, names in by_reason.items():
            images = f"{len(names):,} image{'' if len(names) == 1 else 's'}"
            self.notes.append(f"{images} left out, {reason}: {examples(names)}")


def holder(file: str) -> str:
    """The file that holds a scan: the volume of a B-scan ``eye.vol#0012`` (or ``eye.e2e#1-0012``, of its volume 1)."""
    return _SLICE.sub("", file)


def split_of(name: str) -> str:
    """One of ``SPLITS`` that a folder or a value names; "" if none."""
    return SPLIT_NAMES.get(name.strip().lower(), "")


def eye_of(name: str) -> str:
    """R or L; "" where a name says neither."""
    return EYES.get(name.strip().lower(), "")


def read_value(column: str, text: str) -> str:
    """A value as ``ScanRows`` has it.

    Raises:
        ValueError: the column cannot have this value; says what it can have.
    """
    text = plain(text)
    if column in ("split", "eye") and text:
        value = split_of(text) if column == "split" else eye_of(text)
        if not value:
            raise ValueError(
                f"'{text[:50]}' is not {'train, val or test' if column == 'split' else 'R or L (OD or OS)'}"
            )
        return value
    if column.startswith(OF_LABEL) and text:
        if text.casefold() not in _YES_NO:
            raise ValueError(f"'{text[:50]}' is none of 1, 0, true, false, yes, no, or empty where not known")
        return _YES_NO[text.casefold()]
    if (column in ("severity", *SIZES) or column.startswith(OF_TARGET)) and text:
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.I) or not math.isfinite(float(text)):
            raise ValueError(f"'{text[:50]}' is no number")
        return text
    if column == "slice" and text and not text.isdecimal():
        raise ValueError(f"'{text[:50]}' is no number of a slice (0, 1, 2, …)")
    return number(text) if column in ("patient", "slice") else text


def number(text: str) -> str:
    """Digits without leading zeros; any other text as it is."""
    return str(int(text)) if text.isdecimal() else text


def plain(name: str) -> str:
    """A name in one spelling: composed characters (NFC), no blanks around it."""
    return unicodedata.normalize("NFC", name).strip()


def examples(names: Sequence[str], most: int = 3) -> str:
    """The first names, and whether there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
