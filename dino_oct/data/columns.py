"""A user's table of scans (CSV, TSV or Parquet), read into rows."""

import csv
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_oct.data.layout import is_scan_file
from dino_oct.data.rows import COLUMNS, ScanRows, examples, holder, read_value
from dino_oct.errors import InputError
from dino_oct.files import check_regular

SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
ALIASES = {
    "file": ("filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "scan"),
    "label": ("class", "diagnosis", "disease", "category"),
    "patient": ("patient_id", "patientid", "subject", "subject_id"),
    "eye": ("laterality",),
    "visit": ("visit_id", "timepoint", "session"),
    "volume": ("volume_id",),
    "slice": ("slice_id", "bscan", "b_scan"),
    "device": ("scanner", "manufacturer"),
    "split": ("subset", "partition"),
    "mask": ("mask_path",),
    "group": (),
    "severity": (),
    "axial_um": (),
    "lateral_um": (),
    "position_um": (),
}
"""Other names that are understood, in any case, where a column has no name of ``COLUMNS``."""
_LONGEST_CELL = 4096


def is_table(path: Path) -> bool:
    """Whether a path is named as a table."""
    return path.suffix.lower() in SUFFIXES


def read_table(file: Path, root: Path, columns: Sequence[str] = ()) -> ScanRows:
    """Rows of a table, sorted by file; no scan is opened.

    Args:
        root: folder that relative files are below.
        columns: ``NAME=COLUMN`` where a column of the table has another name.

    Raises:
        InputError: not a table, no column of files, a column that is not there, or a value that a column cannot have.
    """
    values = read_cells(file)
    found = _find_columns(file, list(values), columns)
    cells = {name: _read(file, name, column, values[column]) for name, column in found.items()}
    rows = ScanRows(splits_from=f"the splits of {file.name}", is_told="patient" in found)
    _add_rows(rows, cells, root)
    if not len(rows):
        reason = f"; {rows.left_out[0][0]}: {rows.left_out[0][1]}" if rows.left_out else ""
        raise InputError(f"{file}: no row names a scan that is there{reason}")
    names = ", ".join(name if name == column else f"{name} from {column}" for name, column in found.items())
    rows.how = f"the table {file.name}: {names}"
    if others := [column for column in values if column not in found.values()]:
        rows.notes.append(f"columns that are not read: {examples(others, 6)}; --dataset.columns NAME=COLUMN reads one")
    return rows


def column_names(file: Path) -> list[str]:
    """Of a CSV file's first line; none where it cannot be read."""
    try:
        check_regular(file)
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline(1 << 16)
        return [name.strip() for name in next(csv.reader([header], delimiter=_separator(header)), [])]
    except (OSError, ValueError, csv.Error):
        return []


def read_cells(file: Path) -> dict[str, list[str]]:
    """Column → its cells as text, "" where empty.

    Raises:
        InputError: not a readable table.
    """
    import pandas as pd  # half a second, and only tables need it

    try:
        check_regular(file)
        if file.suffix.lower() == ".parquet":
            frame = pd.read_parquet(file)
            return {str(name): [_text(cell) for cell in frame[name].tolist()] for name in frame.columns}
        with file.open(encoding="utf-8-sig") as stream:
            separator = _separator(stream.readline(1 << 16))
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else cells beyond the header are dropped
            frame = pd.read_csv(
                file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
            )
        frame = frame.fillna("")  # cells that a short row lacks
        return {str(name).strip(): frame[name].tolist() for name in frame.columns}
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8; save the table as 'CSV UTF-8'") from None
    except pd.errors.ParserWarning:
        raise InputError(f"{file}: a row has more cells than the first line; quote texts with commas") from None
    except Exception as error:  # pandas and pyarrow raise almost anything on damaged files
        raise InputError(f"{file}: not a readable table: {' '.join(str(error).split())[:200]}") from None


def _separator(header: str) -> str:
    return max((",", ";", "\t"), key=header.count)


def _text(cell: Any) -> str:
    if cell is None or cell != cell:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _find_columns(file: Path, there: list[str], given: Sequence[str]) -> dict[str, str]:
    """Name of ``COLUMNS`` → the table's column, in the order of ``COLUMNS``."""
    found: dict[str, str] = {}
    for entry in given:
        name, _, column = entry.partition("=")
        if name not in COLUMNS:
            raise InputError(f"--dataset.columns {entry}: '{name}' is none of {', '.join(COLUMNS)}")
        if column not in there:
            raise InputError(f"--dataset.columns {entry}: {file} has no column '{column}'; it has {', '.join(there)}")
        found[name] = column
    by_name: dict[str, str] = {}
    for column in there:
        by_name.setdefault(column.strip().casefold(), column)
    for name in COLUMNS:
        candidates = (by_name.get(alias) for alias in (name, *ALIASES[name]))
        column = next((c for c in candidates if c and c not in found.values()), None)
        if name not in found and column:
            found[name] = column
    if "file" not in found:
        raise InputError(
            f"{file}: no column of files; it has {', '.join(there)[:200]}; say which: --dataset.columns file=COLUMN"
        )
    return {name: found[name] for name in COLUMNS if name in found}


def _read(file: Path, name: str, column: str, cells: list[str]) -> list[str]:
    if name == "file":  # its spelling is the file system's
        return [cell.strip().replace("\\", "/") for cell in cells]
    try:
        values = {cell: read_value(name, cell) for cell in set(cells)}
    except ValueError as error:
        raise InputError(f"{file}: column {column}: {error}") from None
    return [values[cell] for cell in cells]


def _add_rows(rows: ScanRows, cells: dict[str, list[str]], root: Path) -> None:
    """Add each file once, sorted; list what cannot be used."""
    first: dict[str, int] = {}
    repeated, contradicting, differing = [], set(), set()
    for i, cell in enumerate(cells["file"]):
        if not cell.strip():
            rows.left_out.append((f"row {i + 2}", "no file"))
            continue
        file = os.path.normpath(cell).replace(os.sep, "/")
        j = first.setdefault(file, i)
        if j == i:
            continue
        repeated.append(file)
        if "label" in cells and cells["label"][i] != cells["label"][j]:
            contradicting.add(file)
        elif any(column[i] != column[j] for name, column in cells.items() if name != "file"):
            differing.add(file)
    for file in sorted(first):
        if file in contradicting:
            rows.left_out.append((file, "given twice, with different labels"))
        elif len(file) > _LONGEST_CELL or "\0" in file or not (root / holder(file)).is_file():
            rows.left_out.append((file, "no such file"))
        elif not is_scan_file(root / holder(file)):
            rows.left_out.append((file, "of a type that is not read"))
        else:
            rows.add(file, **{name: column[first[file]] for name, column in cells.items() if name != "file"})
    if repeated:
        rows.notes.append(f"{len(repeated):,} rows repeat a file and are not read: {examples(repeated)}")
    if differing:
        rows.notes.append(
            f"{len(differing):,} files are given twice with different values; the first row counts: "
            f"{examples(sorted(differing))}"
        )
    rows.note_left_out()
