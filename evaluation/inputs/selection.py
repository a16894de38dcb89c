"""Some scans to look at one by one: image files, or a split's in turns through classes and patients."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np

from dino_oct.data.borders import find_borders, neutralise
from dino_oct.data.brightness import INVERTED, are_inverted, brightness_features
from dino_oct.data.cache import recorded_grey_range
from dino_oct.data.decode import REMARKS, BadScan, GreyRange, Levels, choose_range, decode, given_range, measure_levels
from dino_oct.data.index import DatasetConfig, index_scans
from dino_oct.data.people import patient_of
from dino_oct.errors import InputError
from dino_oct.files import short_name
from dino_oct.scan_data import DataSummary, ScanData
from dino_oct.words import counted
from evaluation.config import DatasetOptions
from evaluation.inputs.scans import changed, reading
from evaluation.inputs.sources import Source


@dataclass(frozen=True)
class Chosen:
    """A scan (H, W) uint8 to look at: its file, patient, and class (None where unknown), and in words its volume (eye,
    visit, number) and slice, "" where unknown."""

    file: str
    patient: str
    label: str | None
    scan: np.ndarray
    volume: str = ""
    slice: str = ""

    @property
    def place(self) -> str:
        """Where it was taken, in words."""
        return " · ".join(filter(None, [self.volume, self.slice]))


def page_name(i: int, scan: Chosen) -> str:
    """File name of the page of the ``i``-th chosen scan, as long as a file's may be."""
    return f"{i + 1:02d}_{short_name(Path(scan.file).stem.replace(' ', '_'))}.png"


def from_files(files: Sequence[str], source: Source, given: DatasetOptions) -> tuple[list[Chosen], DataSummary]:
    """Image files, read as the run read its scans unless ``given`` says otherwise, and what a result says about them;
    raises as ``reading`` and ``read_scan``."""
    reading(given, None)
    settings = changed(source.config.dataset if source.config else DatasetConfig(), given)
    grey_range, notes = grey_range_of(files, source, given)
    scans = []
    for file in files:
        scan, remarks = read_scan(file, settings, grey_range)
        scans.append(scan)
        notes += [f"{file}: {remark}" for remark in remarks]
    if source.run is not None:
        notes.append("image files: whether the run was trained on these patients is not known")
    if any(scan.patient == patient_of(scan.file) == scan.file for scan in scans):
        notes.append("file names without a patient number: each such file counts as one patient")
    return scans, {
        "folder": None,
        "split": None,
        "synthetic": any((at / "phantom.json").is_file() for file in files for at in Path(file).resolve().parents),
        "dataset": {
            "neutralise_borders": settings.neutralise_borders,
            "max_side": settings.max_side,
            "grey_range": None if grey_range is None else asdict(grey_range),
        },
        "scans": len(scans),
        "patients": len({scan.patient for scan in scans}),
        "notes": notes,
    }


def grey_range_of(files: Sequence[str], source: Source, given: DatasetOptions) -> tuple[GreyRange | None, list[str]]:
    """The grey range of deep image files, None where there are none, and whose it is in a note."""
    measured = [levels for levels in map(measure_levels, files) if levels is not None]
    if not measured:
        return None, []
    if given.grey_range is not None and (as_given := given_range(given.grey_range)):
        return as_given, [f"grey range of deep images: 0 to {as_given.integers:g}, as given"]
    if given.grey_range is None and source.config is not None:
        dataset, data = source.config.dataset, source.config.data
        if as_set := given_range(dataset.grey_range):
            return as_set, [f"grey range of deep images: 0 to {as_set.integers:g}, as the run's settings say"]
        if Path(data).exists() and (recorded := recorded_grey_range(index_scans(data, dataset), dataset)):
            return recorded, [f"grey range of deep images: as in the run's folder, {_values(recorded, measured)}"]
    own = choose_range(measured)
    text = f"grey range of deep images: {_values(own, measured)}, decided over these files"
    if source.run is not None:
        text += "; what the run's scans had is not known"
    return own, [f"{text}; --dataset.grey-range sets another"]


def _values(grey_range: GreyRange, measured: Sequence[Levels]) -> str:
    kinds = sorted({levels.kind for levels in measured}, reverse=True)
    return ", ".join(f"{kind} 0 to {getattr(grey_range, kind):g}" for kind in kinds)


def from_split(data: ScanData, split: str, n: int, beside: Sequence[str] = ()) -> tuple[list[Chosen], DataSummary]:
    """``n`` scans of a split by ``take_turns``, and what a result says about them and the training of the model and of
    the SOURCEs ``beside`` it; InputError where the split has none."""
    index = data.index
    positions = take_turns(index.positions(split), index.labels, index.patients, n)
    if not positions:
        raise InputError(f"{index.root}: no scans in the {split} split; give more patients or another --split")
    scans, about = _described(data, positions, split, beside)
    if len(positions) < n:
        about["notes"].append(f"the {split} split has {counted(len(positions), 'scan')} only")
    return scans, about


def from_volumes(data: ScanData, split: str, n: int, beside: Sequence[str] = ()) -> tuple[list[Chosen], DataSummary]:
    """All scans of ``n`` volumes of a split, which ``take_turns``, volume by volume in the order of their slices;
    otherwise as ``from_split``."""
    index, keys = data.index, data.unit_keys()["volume"]
    inside = index.positions(split)
    inside = inside[keys[inside] != ""]
    _, first, counts = np.unique(keys[inside], return_index=True, return_counts=True)
    volumes = take_turns(inside[np.sort(first[counts > 1])], index.labels, index.patients, n)
    if not volumes:
        raise InputError(
            f"{index.root}: no volume of several slices is known in the {split} split; leave --volumes out"
        )
    of_volumes = [inside[keys[inside] == keys[i]].tolist() for i in volumes]
    positions = [i for members in of_volumes for i in sorted(members, key=lambda i: int(index.fact("slice")[i] or 0))]
    scans, about = _described(data, positions, split, beside)
    if len(volumes) < n:
        about["notes"].append(f"the {split} split has {counted(len(volumes), 'volume')} of several slices only")
    return scans, about


def _described(
    data: ScanData, positions: list[int], split: str, beside: Sequence[str]
) -> tuple[list[Chosen], DataSummary]:
    described = data.summary(chosen=np.array(positions))
    counts = described.pop("sets")["chosen"]
    notes = [*data.index.notes, *data.training_notes(np.array(positions), beside)]
    return [chosen_scan(data, i) for i in positions], {**described, **counts, "split": split, "notes": notes}


def chosen_scan(data: ScanData, i: int) -> Chosen:
    """Scan ``i`` of the data."""
    index, label = data.index, int(data.index.labels[i])
    name = index.class_names[label] if label >= 0 else None
    places = data.place(i, ("eye", "visit", "volume")), data.place(i, ("slice",))
    return Chosen(index.files[i], str(index.patients[i]), name, np.asarray(data.scans[i]), *places)


def take_turns(positions: np.ndarray, labels: np.ndarray, patients: np.ndarray, n: int) -> list[int]:
    """``n`` positions in turns through the classes; within a class new patients first, else in the given order.

    Args:
        positions: (M,) into ``labels`` and ``patients`` (N,).
    """
    queues = []
    for c in np.unique(labels[positions]):
        members = positions[labels[positions] == c].tolist()
        of_patient = patients[members].tolist()
        turns = [of_patient[:j].count(patient) for j, patient in enumerate(of_patient)]
        queues.append([members[j] for j in np.argsort(turns, kind="stable")])
    in_turns = chain.from_iterable(zip_longest(*queues))
    return list(islice((i for i in in_turns if i is not None), n))


def read_scan(file: str, settings: DatasetConfig, grey_range: GreyRange | None = None) -> tuple[Chosen, list[str]]:
    """Read one image file as the cache of scans would, and remark on it.

    Args:
        settings: ``max_side`` and ``neutralise_borders`` are used.
        grey_range: of a deep image; None where the file is none.

    Raises:
        InputError: no such file, or not usable as a scan.
    """
    if not Path(file).exists():
        raise InputError(f"{file}: no such file; give image files, or none to use --split")
    try:
        scan, _, flags = decode(file, settings.max_side, grey_range=grey_range)
    except BadScan as reason:
        raise InputError(f"{file}: {reason}") from None
    remarks = [text for remark, text in REMARKS.items() if remark in flags]
    borders = find_borders(scan)
    if are_inverted(brightness_features(scan, borders)[None])[0]:
        remarks.append(INVERTED)
    if settings.neutralise_borders:
        scan = neutralise(scan, borders)
    return Chosen(file, patient_of(file), None, scan), remarks
