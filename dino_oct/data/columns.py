"""A user's table of scans (CSV, TSV or Parquet), read into rows."""

import csv
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_oct.data.layout import is_scan_file
from dino_oct.data.rows import COLUMNS, OF_LABEL, OF_TARGET, ScanRows, examples, holder, plain, read_value
from dino_oct.errors import InputError
from dino_oct.files import check_regular
from dino_oct.words import counted

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
SEVERAL = {"labels": OF_LABEL, "targets": OF_TARGET}
"""Name → what it names a column each of: ``labels=drusen,fluid``."""
_SEPARATOR = re.compile(r"[;|]")  # of several labels in a cell
_LONGEST_CELL = 4096


def is_table(path: Path) -> bool:
    """Whether a path is named as a table."""
    return path.suffix.lower() in SUFFIXES


def read_table(file: Path, root: Path, columns: Sequence[str] = ()) -> ScanRows:
    """Rows of a table, sorted by file; no scan is opened.

    Several labels of a scan are in one cell, separated by ``;`` or ``|``, or in a column each, ``label:NAME`` or named
    by ``columns``. Both give the same rows.

    Args:
        root: folder that relative files are below.
        columns: ``NAME=COLUMN`` where a column of the table has another name; ``labels=A,B`` and ``targets=A,B`` for
            columns of one label, or of one number to predict, each.

    Raises:
        InputError: not a table, no column of files, a column that is not there, or a value that a column cannot have.
    """
    values = read_cells(file)
    found = _find_columns(file, list(values), columns)
    cells = {name: _read(file, name, column, values[column]) for name, column in found.items()}
    if "label" in cells and (of_labels := _split_labels(cells["label"])):
        del cells["label"]
        cells |= of_labels
    further = {name: [] for name in cells if name not in COLUMNS}
    rows = ScanRows(splits_from=f"the splits of {file.name}", is_told="patient" in found)
    rows.columns |= further
    _add_rows(rows, cells, root)
    if not len(rows):
        reason = f"; {rows.left_out[0][0]}: {rows.left_out[0][1]}" if rows.left_out else ""
        raise InputError(f"{file}: no row names a scan that is there{reason}")
    known = [name if name == column else f"{name} from {column}" for name, column in found.items() if name in COLUMNS]
    for several, kind in SEVERAL.items():
        if names := rows.names(kind):
            known.append(f"{len(names)} {several if len(names) > 1 else several[:-1]} ({examples(names, 6)})")
    rows.how = f"the table {file.name}: {', '.join(known)}"
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
    """Name of ``COLUMNS`` → the table's column, in the order of ``COLUMNS``, then those of one label or target each."""
    found: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for entry in given:
        name, _, column = entry.partition("=")
        if name not in COLUMNS and name not in SEVERAL:
            raise InputError(f"--dataset.columns {entry}: '{name}' is none of {', '.join((*COLUMNS, *SEVERAL))}")
        listed = [part.strip() for part in column.split(",")] if name in SEVERAL else [column]
        for wanted in listed:
            if wanted not in there:
                raise InputError(
                    f"--dataset.columns {entry}: {file} has no column '{wanted}'; it has {', '.join(there)}"
                )
        if name in SEVERAL:
            several.setdefault(name, []).extend(listed)
        else:
            found[name] = column
    if "label" in found and "labels" in several:
        raise InputError("--dataset.columns: label is one class a scan, labels are several; give one of them")
    further = _further_columns(file, there, several)
    if "label" in found:
        further = {name: column for name, column in further.items() if not name.startswith(OF_LABEL)}
    one_class = not any(name.startswith(OF_LABEL) for name in further)
    by_name: dict[str, str] = {}
    for column in there:
        by_name.setdefault(column.strip().casefold(), column)
    for name in COLUMNS if one_class else [name for name in COLUMNS if name != "label"]:
        candidates = (by_name.get(alias) for alias in (name, *ALIASES[name]))
        column = next((c for c in candidates if c and c not in found.values()), None)
        if name not in found and column:
            found[name] = column
    if "file" not in found:
        raise InputError(
            f"{file}: no column of files; it has {', '.join(there)[:200]}; say which: --dataset.columns file=COLUMN"
        )
    return {name: found[name] for name in COLUMNS if name in found} | further


def _further_columns(file: Path, there: list[str], several: dict[str, list[str]]) -> dict[str, str]:
    """``label:NAME`` and ``target:NAME`` → the table's column; those that are given, else those named so."""
    further: dict[str, str] = {}
    for name, kind in SEVERAL.items():
        is_named = {column: column.casefold().startswith(kind) for column in there}
        spelled: dict[str, str] = {}
        for column in several.get(name) or [column for column in there if is_named[column]]:
            called = plain(column[len(kind) :] if is_named[column] else column)
            if not called or called.casefold() in spelled:
                raise InputError(f"{file}: column {column}: another column has this name, or it has none")
            spelled[called.casefold()] = column
            further[kind + called] = column
    return further


def _split_labels(cells: list[str]) -> dict[str, list[str]]:
    """``label:NAME`` → 1 or 0 of each scan, "" without any label; empty where no cell holds several."""
    names_in = {cell: [name.strip() for name in _SEPARATOR.split(cell) if name.strip()] for cell in set(cells)}
    if not any(map(_SEPARATOR.search, names_in)):
        return {}
    spelling: dict[str, str] = {}
    for name in sorted({name for names in names_in.values() for name in names}):
        spelling.setdefault(name.casefold(), name)  # `cnv` and `CNV` are one label, as they are one class
    folded = {cell: {name.casefold() for name in names} for cell, names in names_in.items()}
    of_label = {}
    for key, name in spelling.items():
        value = {cell: str(int(key in names)) if names else "" for cell, names in folded.items()}
        of_label[OF_LABEL + name] = [value[cell] for cell in cells]
    return of_label


def _read(file: Path, name: str, column: str, cells: list[str]) -> list[str]:
    if name == "file":  # its spelling is the file system's
        return [cell.strip().replace("\\", "/") for cell in cells]
    try:
        values = {cell: read_value(name, cell) for cell in set(cells)}
    except ValueError:
        row, error = _first_wrong(name, cells)
        raise InputError(f"{file}: row {row}, column {column}: {error}") from None
    return [values[cell] for cell in cells]


def _first_wrong(name: str, cells: list[str]) -> tuple[int, ValueError]:
    """Row, from the table's first line as 1, of the first cell that a column cannot have, and why."""
    for i, cell in enumerate(cells):
        try:
            read_value(name, cell)
        except ValueError as error:
            several = "; several labels in a cell are read with label=COLUMN" if _is_list(name, cell) else ""
            return i + 2, ValueError(f"{error}{several}")
    raise AssertionError("a wrong cell is among the cells")


def _is_list(name: str, cell: str) -> bool:
    return name.startswith(OF_LABEL) and _SEPARATOR.search(cell) is not None


def _add_rows(rows: ScanRows, cells: dict[str, list[str]], root: Path) -> None:
    """Add each file once, sorted; list what cannot be used."""
    first: dict[str, int] = {}
    repeated, contradicting, differing = [], set(), set()
    labels = [name for name in cells if name == "label" or name.startswith(OF_LABEL)]
    for i, cell in enumerate(cells["file"]):
        if not cell.strip():
            rows.left_out.append((f"row {i + 2}", "no file"))
            continue
        file = os.path.normpath(cell).replace(os.sep, "/")
        j = first.setdefault(file, i)
        if j == i:
            continue
        repeated.append(file)
        if any(cells[name][i] != cells[name][j] for name in labels):
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
        rows.notes.append(
            f"{counted(len(repeated), 'row')} not read, of files that an earlier row names: {examples(repeated)}"
        )
    if differing:
        rows.notes.append(
            f"{counted(len(differing), 'file')} given twice with different values; the first row counts: "
            f"{examples(sorted(differing))}"
        )
    rows.note_left_out()
