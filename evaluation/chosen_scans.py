"""Some scans to look at one by one: image files, or a split's in turns through classes and patients."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.data.borders import find_borders, neutralise
from dino_oct.data.decode import BadScan, decode_grey
from dino_oct.data.index import DatasetConfig, patient_of
from dino_oct.errors import InputError
from evaluation.runs import Source
from evaluation.scan_data import DatasetOptions, ScanData


@dataclass(frozen=True)
class Chosen:
    """A scan (H, W) uint8 to look at: its file, patient, and class (None where unknown)."""

    file: str
    patient: str
    label: str | None
    scan: np.ndarray


def from_files(files: Sequence[str], source: Source, given: DatasetOptions) -> tuple[list[Chosen], dict[str, Any]]:
    """Image files, read as the run read its scans unless ``given`` says otherwise, and what a result says about them.

    Raises:
        InputError: a ``max_side`` below 1, or as ``read_scan``.
    """
    settings = source.config.dataset if source.config else DatasetConfig()
    cleaned = settings.neutralise_borders if given.neutralise_borders is None else given.neutralise_borders
    max_side = settings.max_side if given.max_side is None else given.max_side
    if max_side < 1:
        raise InputError(f"max_side is {max_side}; give a positive number of pixels")
    reading = DatasetConfig(neutralise_borders=cleaned, max_side=max_side)
    chosen = [read_scan(file, reading) for file in files]
    notes = []
    if source.run is not None:
        notes.append("image files: whether the run was trained on these patients is not known")
    if any(one.patient == patient_of(one.file) == one.file for one in chosen):
        notes.append("file names without a patient number: each such file counts as one patient")
    return chosen, {
        "folder": None,
        "split": None,
        "synthetic": any(_is_phantom(file) for file in files),
        "dataset": {"neutralise_borders": cleaned, "max_side": max_side},
        "scans": len(chosen),
        "patients": len({one.patient for one in chosen}),
        "notes": notes,
    }


def from_split(data: ScanData, split: str, n: int, beside: Sequence[str] = ()) -> tuple[list[Chosen], dict[str, Any]]:
    """``n`` scans of a split by ``take_turns``, and what a result says about them.

    Args:
        beside: further SOURCEs that are shown with the model.

    Raises:
        InputError: the split has none.
    """
    index = data.index
    positions = take_turns(index.positions(split), index.labels, index.patients, n)
    if not positions:
        raise InputError(f"{index.root}: no scans in the {split} split; choose another --split")
    chosen = [
        Chosen(index.files[i], str(index.patients[i]), _label(data, i), np.asarray(data.scans[i])) for i in positions
    ]
    described = data.describe(chosen=np.array(positions))
    counts = described.pop("sets")["chosen"]
    notes = [*data.index.notes, *data.training_notes(np.array(positions), beside)]
    if len(positions) < n:
        notes.append(f"the {split} split has {len(positions)} scans only")
    return chosen, {**described, **counts, "split": split, "notes": notes}


def take_turns(positions: np.ndarray, labels: np.ndarray, patients: np.ndarray, n: int) -> list[int]:
    """``n`` positions in turns through the classes; within a class new patients first, else in the given order.

    Args:
        positions: (M,) into ``labels`` and ``patients`` (N,).
    """
    queues = []
    for c in np.unique(labels[positions]):
        members = positions[labels[positions] == c].tolist()
        seen: dict[str, int] = {}
        rank = []
        for i in members:
            rank.append(seen.get(patients[i], 0))
            seen[patients[i]] = rank[-1] + 1
        queues.append([members[j] for j in np.argsort(rank, kind="stable")])
    turns = (queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue))
    return [int(i) for i, _ in zip(turns, range(n), strict=False)]


def read_scan(file: str, settings: DatasetConfig) -> Chosen:
    """Read one image file as the cache of scans would.

    Args:
        settings: ``max_side`` and ``neutralise_borders`` are used.

    Raises:
        InputError: no such file, or not usable as a scan.
    """
    if not Path(file).is_file():
        raise InputError(f"{file}: no such file; give image files, or none to use --split")
    try:
        scan = decode_grey(file, settings.max_side)
    except (BadScan, OSError) as reason:
        raise InputError(f"{file}: {reason}") from None
    if settings.neutralise_borders:
        scan = neutralise(scan, find_borders(scan))
    return Chosen(file, patient_of(file), None, scan)


def _is_phantom(file: str) -> bool:
    return any((folder / "phantom.json").is_file() for folder in Path(file).resolve().parents)


def _label(data: ScanData, i: int) -> str | None:
    label = int(data.index.labels[i])
    return data.index.class_names[label] if label >= 0 else None
