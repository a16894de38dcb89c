"""What weights were trained on, followed through every run that they come from.

Each folder of weights that a trainer writes holds ``trained_on.csv``: the training scans of its run and of all runs
before it (fine-tuned from, continued from). An evaluation asks ``trained_patients`` which of its patients are among
them.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dino_oct.data.index import ScanIndex
from dino_oct.data.run_table import ScanRow, read_rows, rows_of, write_rows

TRAINED_ON, TABLE = "trained_on.csv", "scans.csv"
_TELLING_DIGITS = 4  # of a patient number that two folders share by more than chance


@dataclass(frozen=True)
class TrainedScan:
    """A scan that weights were trained on.

    Attributes:
        run: the run that trained on it.
        data: identity of its folder (``data_identity``).
        file, label, patient, digest: as in the run's table. Without a file: ``run`` is a start (a file of weights) of
            which nothing more is known.
    """

    run: str
    data: str
    file: str
    label: str
    patient: str
    digest: str


@dataclass(frozen=True)
class TrainedPatients:
    """What is known of a folder's patients and some weights.

    Attributes:
        patients: those of the folder with scans that the weights were trained on.
        is_home: whether the weights were trained on this folder (or on these very scans elsewhere).
        unknown: starts in the chain whose training data are not known.
    """

    patients: frozenset[str]
    is_home: bool
    unknown: tuple[str, ...] = ()


def data_identity(root: Path) -> str:
    """A folder's identity: of phantoms what they were drawn by, of any other its place, hashed."""
    about = Path(root) / "phantom.json"
    if about.is_file():
        return "phantom-" + hashlib.sha256(about.read_bytes()).hexdigest()[:16]
    return hashlib.sha256(str(Path(root).resolve()).encode(errors="surrogateescape")).hexdigest()[:16]


def run_of(source: str) -> Path | None:
    """The run folder that a SOURCE is, or is a checkpoint or export of, or leads to; None for any other."""
    path = Path(source)
    if not path.exists():
        return None
    for start in (path, path.resolve()):
        for folder in (start, start.parent, start.parent.parent):
            if os.path.lexists(folder / "config.yaml") and _parts(folder):
                return folder
    return None


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is a run's, sound or not: it has its settings, or two of the other things that a run leaves."""
    return os.path.lexists(folder / "config.yaml") or _parts(folder) > 1


def _parts(folder: Path) -> int:
    return sum(os.path.lexists(folder / name) for name in ("metrics.jsonl", "checkpoints", "export"))


def table_of(checkpoint: Path | None) -> list[ScanRow] | None:
    """The table of the run whose checkpoint (``RUN/checkpoints/FILE``) this is; None without checkpoint or table.

    Raises:
        InputError: a damaged table.
    """
    file = checkpoint.parent.parent / TABLE if checkpoint is not None else None
    return read_rows(file) if file is not None and file.is_file() else None


def trained_on(source: str) -> list[TrainedScan] | None:
    """The scans that a SOURCE's weights were trained on.

    Returns:
        None where that is not known: a file of weights, or a run, without ``trained_on.csv``. Weights of timm and of an
        address are taken to know no scan of any folder here.

    Raises:
        InputError: a damaged ``trained_on.csv``.
    """
    kind, _, name = source.partition(":")
    if kind in ("timm", "random", "https"):
        if "@" not in name:
            return []
        source = name.partition("@")[2]
    path = Path(source)
    inside = path if path.is_dir() else path.parent
    places = [inside / TRAINED_ON, inside / "export" / TRAINED_ON]
    if not path.is_dir() and (run := run_of(source)) is not None:
        places.append(run / "export" / TRAINED_ON)
    file = next((place for place in places if place.is_file()), None)
    return None if file is None else read_rows(file, TrainedScan)


def trained_patients(
    index: ScanIndex, digests: np.ndarray, rows: Sequence[TrainedScan] | None
) -> TrainedPatients | None:
    """Which patients of a folder some weights were trained on.

    A patient is known by a file of the same content; in the same folder also by name; elsewhere by a patient number of
    four digits or more.

    Args:
        digests: (N,) of the index's files.
        rows: from ``trained_on``; None gives None.
    """
    if rows is None:
        return None
    here = data_identity(index.root)
    contents = {row.digest.encode() for row in rows if row.file}
    names = {row.patient for row in rows if row.file and row.data == here}
    numbers = {row.patient for row in rows if row.patient.isdecimal() and len(row.patient) >= _TELLING_DIGITS}
    equal = np.isin(digests, np.array(sorted(contents), dtype=digests.dtype))
    known = equal | np.isin(index.patients, sorted(names | numbers))
    return TrainedPatients(
        frozenset(index.patients[known].tolist()),
        is_home=any(row.data == here for row in rows) or bool(equal.any()),
        unknown=tuple(sorted({row.run for row in rows if not row.file})),
    )


def record(run: Path, index: ScanIndex, digests: np.ndarray, start: str, resume: Path | None) -> None:
    """Write what a run trains on: its table, and ``trained_on.csv`` beside its start and its export.

    Scans of the run's earlier table that are gone today stay in it: the weights know them.

    Args:
        start: SOURCE of the first weights.
        resume: checkpoint that the run goes on from; None at its beginning.
    """
    table = run / TABLE
    today = rows_of(index, digests)
    if resume is not None and table.is_file():
        present = {row.file for row in today}
        today += [row for row in read_rows(table) if row.file not in present]
    before = trained_on(start if resume is None else str(resume))
    if before is None:
        before = [TrainedScan(str(start if resume is None else resume), "", "", "", "", "")]
    columns = [column.name for column in fields(TrainedScan)]
    if resume is None:
        write_rows(run / "checkpoints" / "start" / TRAINED_ON, before, columns)
    own = [_trained(run, index, row) for row in today if row.split == "train"]
    known = set(own)
    write_rows(run / "export" / TRAINED_ON, [*own, *(row for row in before if row not in known)], columns)
    write_rows(table, today)


def _trained(run: Path, index: ScanIndex, row: ScanRow) -> TrainedScan:
    return TrainedScan(run.name, data_identity(index.root), row.file, row.label, row.patient, row.digest)
