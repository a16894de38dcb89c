"""Volumes as scans: every B-scan of a volume becomes a row of its own, with what the file knows of it."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dino_oct.data.rows import FACTS, ScanRows, examples, holder
from dino_oct.data.volumes import beside, group_series, holds_volume
from dino_oct.data.volumes.unpacking import Unpacked, unpack
from dino_oct.words import counted

_TIFFS, _PROBED = (".tif", ".tiff"), 256


def with_slices(rows: ScanRows, root: Path, cache_root: Path) -> ScanRows:
    """Rows in which volumes are replaced by their B-scans, named ``VOLUME#0012`` from 0 on; pictures stay as they are.

    What the rows say of a volume holds for all of its B-scans; rows of single B-scans choose among them. Of patient,
    eye and visit the file's header knows more than folders and names, and less than a table. ``visit`` numbers the
    days of a patient's examinations, ``volume`` the volumes of a patient.

    Raises:
        InputError, OSError: as ``unpack``.
    """
    positions = _volumes(rows["file"], root)
    if not positions:
        return rows
    files = {root / file: file for file in positions}
    groups = _groups(files, {root / file for file, at in positions.items() if any(rows["file"][i] != file for i in at)})
    result = ScanRows(
        rows.no_columns(), stored=dict(rows.stored), splits_from=rows.splits_from, is_told=rows.is_told,
        notes=rows.notes, left_out=rows.left_out,
    )  # fmt: skip
    sliced = {i for at in positions.values() for i in at}
    for i in range(len(rows)):
        if i not in sliced:
            result.add(**{name: values[i] for name, values in rows.columns.items()})
    broken, missing, found = [], [], []
    for group, volumes in zip(groups, unpack(groups, cache_root), strict=True):
        file = next(files[path] for path in group if path in files)
        if isinstance(volumes, str):
            broken.append((file, volumes))
            continue
        asked = {_name(rows["file"][i]): {name: rows[name][i] for name in rows.columns} for i in positions[file]}
        named = [(_names(file, n if len(volumes) > 1 else None, v), v, asked) for n, v in enumerate(volumes)]
        there = {file, *(name for names, _, _ in named for name in names)}
        missing += [(name, "no such slice") for name in asked if name not in there and holder(name) == file]
        found += named
    _add(result, found, rows.is_told)
    result.left_out += broken + missing
    result.notes += [f"left out: {file}: {reason}" for file, reason in broken[:3]]
    if missing:
        result.notes.append(
            f"{counted(len(missing), 'slice')} left out, no such slice: {examples([name for name, _ in missing])}"
        )
    if len(broken) > 3:
        result.notes.append(f"{counted(len(broken), 'volume')} left out: {examples([file for file, _ in broken])}")
    result.how = f"{rows.how}; {len(found):,} volume{'' if len(found) == 1 else 's'}"
    return _sorted(result)


def _volumes(files: Sequence[str], root: Path) -> dict[str, list[int]]:
    """Files of volumes → positions of their rows."""
    tiffs = [file for file in files if file.lower().endswith(_TIFFS)]
    probed = [tiffs[i] for i in np.unique(np.linspace(0, len(tiffs) - 1, _PROBED).astype(int))] if tiffs else []
    are_pictures = not any(holds_volume(root / file) for file in probed)  # spares 100,000 headers
    found = defaultdict(list)
    for i, file in enumerate(files):
        name = holder(file)
        suffix = Path(name).suffix.lower()
        if suffix in (".jpeg", ".jpg", ".png", ".bmp") or (suffix in _TIFFS and are_pictures and name == file):
            continue
        if name in found or holds_volume(root / name):
            found[name].append(i)
    return dict(found)


def _groups(files: dict[Path, str], sliced: set[Path]) -> list[tuple[Path, ...]]:
    """Files of one volume each. A B-scan's name says one file of its series; the others are found beside it."""
    groups = group_series(dict.fromkeys([*files, *sorted(beside(sliced))]))
    return [group for group in groups if any(path in files for path in group)]


def _name(file: str) -> str:
    """A B-scan as ``_names`` spells it: ``eye.vol#7`` is ``eye.vol#0007``."""
    volume, number = holder(file), file.rpartition("-" if "-" in file[len(holder(file)) :] else "#")[2]
    return file if volume == file else f"{file.removesuffix(number)}{int(number):04d}"


def _names(file: str, number: int | None, volume: Unpacked) -> list[str]:
    start = "" if number is None else f"{number}-"
    return [f"{file}#{start}{position:04d}" for position in range(len(volume.pictures))]


def _add(result: ScanRows, found: list[tuple[list[str], Unpacked, dict[str, dict[str, str]]]], is_told: bool) -> None:
    """Add the B-scans that are asked for, with patients, visits and volumes counted over all."""
    people = [_first(is_told, volume.patient, next(iter(asked.values()))["patient"]) for _, volume, asked in found]
    days, count = defaultdict(set), defaultdict(int)
    for person, (_, volume, _) in zip(people, found, strict=True):
        if volume.day is not None:
            days[person].add(volume.day)
    for person, (names, volume, asked) in zip(people, found, strict=True):
        file = holder(names[0])
        count[person or file] += 1
        known = {
            "patient": person,
            "eye": volume.eye,
            "visit": str(1 + sorted(days[person]).index(volume.day)) if volume.day is not None else "",
            "volume": str(count[person or file]),
            "device": volume.device,
            "axial_um": _text(volume.axial_um),
            "lateral_um": _text(volume.lateral_um),
        }
        whole = asked.get(file)
        for position, (name, picture) in enumerate(zip(names, volume.pictures, strict=True)):
            row = asked.get(name, whole)
            if row is None:
                continue
            fovea = volume.fovea, volume.spacing_um
            away = (position - fovea[0]) * fovea[1] if None not in fovea else None
            of_slice = {**known, "slice": str(position), "position_um": _text(away)}
            facts = {column: _first(is_told, of_slice.get(column, ""), row[column]) for column in ("patient", *FACTS)}
            result.add(**{**row, **facts, "file": name})
            result.stored[name] = picture


def _first(is_told: bool, of_header: str, of_row: str) -> str:
    return (of_row or of_header) if is_told else (of_header or of_row)


def _text(value: float | None) -> str:
    return "" if value is None else re.sub(r"\.0$", "", f"{value:.6g}")


def _sorted(rows: ScanRows) -> ScanRows:
    order = sorted(range(len(rows)), key=lambda i: rows["file"][i])
    rows.columns = {name: [values[i] for i in order] for name, values in rows.columns.items()}
    return rows
