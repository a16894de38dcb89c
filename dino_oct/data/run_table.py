"""The table of a run's scans: which file, class and patient were in which split when the run began.

A folder changes after a run; what the run was trained on does not. So a run writes its table, goes on by it, and is
judged by it (``by_table``).
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.data.index import ScanIndex
from dino_oct.data.rows import OF_LABEL, OF_TARGET, examples
from dino_oct.data.splits import SPLITS
from dino_oct.errors import InputError
from dino_oct.files import check_regular, write_whole
from dino_oct.words import counted


@dataclass(frozen=True)
class ScanRow:
    """One scan of a table.

    Attributes:
        file: path below the folder of scans; absolute for scans of joined folders.
        label: class; "" without.
        patient: as in ``ScanIndex``.
        split: "train", "val", "test", or "" for a scan that no split may use.
        digest: of the file's bytes (``ScanCache.file_digests``).
        further: of several labels and of targets, as ``ScanIndex.further_columns``: column → value.
    """

    file: str
    label: str
    patient: str
    split: str
    digest: str
    further: Mapping[str, str] = field(default_factory=dict)


FURTHER = "further"
COLUMNS = tuple(column.name for column in fields(ScanRow) if column.name != FURTHER)


def rows_of(index: ScanIndex, digests: np.ndarray) -> list[ScanRow]:
    """The rows of an index and its cache's digests of files (N,)."""
    names = [*index.class_names, ""]  # UNLABELLED is the last
    columns = (index.files, index.labels.tolist(), index.patients.tolist(), index.splits.tolist(), digests.tolist())
    rows = [
        ScanRow(file, names[label], patient, split, digest.decode())
        for file, label, patient, split, digest in zip(*columns, strict=True)
    ]
    if further := index.further_columns():
        of_scans = (dict(zip(further, cells, strict=True)) for cells in zip(*further.values(), strict=True))
        rows = [replace(row, further=of_scan) for row, of_scan in zip(rows, of_scans, strict=True)]
    return rows


def write_rows(file: Path, rows: Sequence, columns: Sequence[str] = COLUMNS) -> None:
    """Write dataclass rows as CSV, whole or not at all; names keep bytes that no encoding explains.

    A scan's ``further`` columns are the last ones.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    further = list(dict.fromkeys(name for row in rows for name in getattr(row, FURTHER, ())))
    with io.StringIO(newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*columns, *further])
        writer.writerows(
            [*(getattr(row, column) for column in columns), *(row.further.get(name, "") for name in further)]
            for row in rows
        )
        write_whole(file, stream.getvalue())


def read_rows(file: Path, row_type: type = ScanRow) -> list:
    """Read what ``write_rows`` wrote.

    Raises:
        InputError: unreadable, other columns, or a split that there is not.
    """
    columns = [column.name for column in fields(row_type) if column.name != FURTHER]
    check_regular(file)
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            header, *lines = csv.reader(stream, strict=True)
        further = header[len(columns) :] if row_type is ScanRow else []
        if header != columns + further or not all(name.startswith((OF_LABEL, OF_TARGET)) for name in further):
            raise ValueError(f"columns {', '.join(header)}; expected {', '.join(columns)}")
        rows = [_row(row_type, line, len(columns), further) for line in lines]
        if wrong := {row.split for row in rows if hasattr(row, "split")} - {*SPLITS, ""}:
            raise ValueError(f"split '{sorted(wrong)[0]}'")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200].encode(errors="backslashreplace").decode()
        raise InputError(
            f"{file}: damaged: not a readable table of scans ({reason}); without this file "
            "commands go on and say what is then not known"
        ) from None
    return rows


def _row(row_type: type, line: list[str], n: int, further: list[str]) -> Any:
    """A row of a line, whose values from the n-th on are those of further columns."""
    if not further:
        return row_type(*line)
    return row_type(*line[:n], dict(zip(further, line[n:], strict=True)))


def by_table(index: ScanIndex, digests: np.ndarray, rows: Sequence[ScanRow]) -> tuple[ScanIndex, list[str]]:
    """Today's index with the splits of a table, and what differs between the two.

    A scan of the table keeps its split, under another name too if its file is the same. A scan that is not in it joins
    its patient's split if that patient has one alone; else it stays where the index puts it.

    Args:
        digests: (N,) of today's files.

    Returns:
        The index, and notes, none where the folder is as it was.
    """
    of_file = {row.file: row for row in rows}
    # Of copies in several splits, the one that was trained on says what is known of this content.
    of_content = {row.digest: row for row in sorted(rows, key=lambda row: row.split == "train")}
    splits_of_patient: dict[str, set[str]] = {}
    for row in rows:
        splits_of_patient.setdefault(row.patient, set()).add(row.split)
    today = rows_of(index, digests)
    changes: dict[str, list[str]] = {}
    splits, kept = [], set()
    for row in today:
        before = of_file.get(row.file) or of_content.get(row.digest)
        if before is None:
            of_patient = splits_of_patient.get(row.patient, set())
            splits.append(next(iter(of_patient)) if len(of_patient) == 1 else row.split)
            changes.setdefault("new", []).append(row.file)
            continue
        kept.add(before.file)
        splits.append(before.split)
        for what, has_changed in (
            ("moved or renamed", before.file != row.file),
            ("with other content", before.digest != row.digest),
            ("of another class", before.label != row.label),
            ("with other labels or targets", before.further != row.further),
            ("of another patient", before.patient != row.patient),
        ):
            if has_changed:
                changes.setdefault(what, []).append(row.file)
    gone = [row.file for row in rows if row.file not in kept]
    if gone:
        changes["gone"] = gone
    notes = [
        f"the folder is not as the run found it: {counted(len(files), 'scan')} {what} ({examples(sorted(files))})"
        for what, files in changes.items()
    ]
    moved = Counter(
        f"{of_folder or 'unused'} → {split or 'unused'}"
        for of_folder, split in zip(index.splits.tolist(), splits, strict=True)
        if of_folder != split
    )
    if moved:
        ways = ", ".join(f"{way} {count:,}" for way, count in moved.items())
        notes.append(f"splits are those of the run's table, where this folder's would differ: {ways} scans")
    rule = "as the run's table says (scans.csv)"
    return replace(index, splits=np.array(splits, dtype="<U5"), split_rule=rule), notes


def without_copies_of_held_out(index: ScanIndex, digests: np.ndarray) -> ScanIndex:
    """The index with unlabelled training scans taken out of use that equal a validation or test scan to the pixel."""
    held = set(digests[np.isin(index.splits, ("val", "test"))].tolist())
    copies = ~index.is_labelled & (index.splits == "train") & np.isin(digests, list(held))
    if not copies.any() or not (index.class_names or index.multilabels):
        return index
    files = [index.files[i] for i in np.flatnonzero(copies)]
    note = (
        f"{len(files):,} unlabelled scans equal validation or test scans to the pixel and are not used: "
        f"{examples(files)}"
    )
    return replace(index, splits=np.where(copies, "", index.splits), notes=(*index.notes, note))
