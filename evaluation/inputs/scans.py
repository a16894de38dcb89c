"""Which scans an evaluation uses."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dino_oct.data.columns import is_table
from dino_oct.data.index import DatasetConfig, Reading, ScanIndex, index_files, is_one_volume
from dino_oct.data.load import find_scans, load_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.data.run_table import read_rows
from dino_oct.errors import InputError
from dino_oct.files import is_same_path
from dino_oct.provenance import TABLE, trained_on, trained_patients
from dino_oct.scan_data import ScanData
from dino_oct.scores.paired import ScanSet
from evaluation.config import DataOptions, DatasetOptions, ExternalOptions, PhantomOptions
from evaluation.inputs.sources import Source

_OF_FOLDER = tuple(field.name for field in dataclasses.fields(Reading))
SHOWN_FACTS = ("eye", "visit", "volume", "slice", "device")
_SPLITTING = ("split", "split_seed", "val_fraction", "test_fraction")
Settings = TypeVar("Settings", DatasetConfig, PhantomConfig)


def open_data(source: Source | None, options: DataOptions, say: Callable[[str], None] = print) -> ScanData:
    """Open the data of an evaluation: the run's own, split as its table says, unless options say otherwise.

    Other data are split by the same rule, but one volume alone, which is all test.

    Args:
        source: the model that is evaluated.
        say: takes what a reader should know while scans are indexed.

    Raises:
        InputError: no data named and no run to take them from; or as ``reading`` and ``load_scans``.
    """
    config, data = source.config if source else None, options.data
    of_folder = reading(options.dataset, data)
    if data is None and config is None:
        name = source.name if source else "the model"
        without = ": there is no config.yaml" if source and Path(name).is_dir() else ""
        raise InputError(f"{name} is not a run{without}, so it brings no data; give --data DIR or --data phantom")
    if data is None and config.data != "phantom" and not Path(config.data).exists():
        raise InputError(f"{source.run}/config.yaml: its data are not at {config.data} any more; give --data DIR")
    data = data or config.data
    trained_dataset = config.dataset if config else DatasetConfig()
    trained_phantom = config.phantom if config else PhantomConfig()
    chosen_phantom = changed(trained_phantom, options.phantom)
    own = config is not None and (
        data == config.data if "phantom" in (data, config.data) else is_same_path(data, config.data)
    )
    own &= data != "phantom" or chosen_phantom == trained_phantom
    own &= Reading(**of_folder) == Reading()
    # Unlabelled folders are not evaluated, but with them the cache that training made serves as it is.
    further = [folder for folder in trained_dataset.unlabelled if own and Path(folder).exists()]
    trained = trained_dataset if own else dataclasses.replace(trained_dataset, **of_folder)
    settings = dataclasses.replace(changed(trained, options.dataset), unlabelled=further)
    split_as_run = all(getattr(settings, name) == getattr(trained_dataset, name) for name in _SPLITTING)
    has_table = own and split_as_run and (source.run / TABLE).is_file()
    table = read_rows(source.run / TABLE) if has_table else None
    if not own and data != "phantom":
        say(_in_words(settings, options.dataset))
    index = None
    if not own and is_one_volume(data):
        index = find_scans(data, settings, chosen_phantom)
        splits = np.full(len(index), "test", dtype="<U5")
        index = dataclasses.replace(index, splits=splits, split_rule="one volume alone: all of it is test")
    index, scans = load_scans(data, settings, chosen_phantom, say, table, index)
    notes = list(index.notes)
    if own and split_as_run and table is None:
        notes.append(f"{source.run} has no table of its scans ({TABLE}), so the splits are made anew from the folder")
    provenance = trained_patients(index, scans.file_digests, trained_on(source.name)) if source else None
    if config is not None and provenance is not None and not provenance.is_home:
        notes.append("other data than the run was trained on: none of these scans is among its training scans")
    return ScanData(index, scans, settings, provenance, tuple(notes))


def find_given(scans: Sequence[str], dataset: DatasetConfig, phantom: PhantomConfig) -> ScanIndex:
    """The index of one folder, table or 'phantom', or of files; raises as ``index_scans`` and ``index_files``."""
    if len(scans) > 1 or (Path(scans[0]).is_file() and not is_table(Path(scans[0]))):
        return index_files(scans, dataset)
    return find_scans(scans[0], dataset, phantom)


def known_of(index: ScanIndex, rows: np.ndarray) -> dict[str, Any]:
    """Columns of what is known of scans: file, and patient, eye, visit, volume, slice and device where any is.

    Args:
        rows: (N,) positions in the index.
    """
    files = np.array([index.files[i] for i in rows])
    columns, patients = {"file": files}, index.patients[rows]
    if (patients != files).any():  # a file of which nothing is known is a patient of its own
        columns["patient"] = np.where(patients == files, "", patients)
    return columns | {name: index.fact(name)[rows] for name in SHOWN_FACTS if name in index.facts}


@dataclass(frozen=True)
class External:
    """Labelled scans from elsewhere, for judging alone.

    Attributes:
        data: all that was read; positions: of the scans whose class is one of the model's.
        scans: their classes, as positions in the model's class names, and patients.
        classes: the model's class → its name there.
    """

    data: ScanData
    positions: np.ndarray
    scans: ScanSet
    classes: dict[str, str]


def open_external(
    source: Source | None, options: ExternalOptions, own: ScanData, say: Callable[[str], None] = print
) -> External | None:
    """The scans of ``--external``, decoded as the model's own; None where it is not given.

    Raises:
        InputError: classes that there are not, none in common, or as ``load_scans``.
    """
    if options.external is None:
        return None
    settings = dataclasses.replace(own.dataset, **vars(Reading()), unlabelled=[], split="patient")
    index, scans = load_scans(options.external, settings, PhantomConfig(), lambda text: say(f"external {text}"))
    if index.multilabels:
        raise InputError(f"--external {options.external}: a scan may have several labels; give scans of one class each")
    pairs = dict(entry.split("=", 1) for entry in options.external_classes)
    for names, wanted, where in (
        (own.index.class_names, pairs, own.index.root), (index.class_names, pairs.values(), index.root)
    ):  # fmt: skip
        if missing := [name for name in wanted if name not in names]:
            raise InputError(f"--external-classes: {missing[0]} is no class of {where}; it has {', '.join(names)}")
    classes = pairs or {name: name for name in own.index.class_names if name in index.class_names}
    if not classes:
        raise InputError(
            f"{index.root}: no class has the name of one of {own.index.root} ({', '.join(index.class_names)}; "
            f"{', '.join(own.index.class_names)}); say which are the same: --external-classes OWN=THEIRS"
        )
    of_theirs = {index.class_names.index(theirs): own.index.class_names.index(name) for name, theirs in classes.items()}
    positions = np.flatnonzero(np.isin(index.labels, list(of_theirs)))
    labels = np.array([of_theirs[label] for label in index.labels[positions].tolist()])
    provenance = trained_patients(index, scans.file_digests, trained_on(source.name)) if source else None
    data = ScanData(index, scans, settings, provenance, tuple(index.notes))
    return External(data, positions, ScanSet(labels, index.patients[positions]), classes)


def reading(options: DatasetOptions, data: str | None) -> dict[str, Any]:
    """The fields of ``Reading`` that are asked for; InputError where no data are named that they could be of."""
    given = {name: getattr(options, name) for name in _OF_FOLDER}
    unlike = [name for name, value in vars(Reading()).items() if given[name] != value]
    if unlike and data is None:
        raise InputError(
            f"--dataset.{unlike[0]} says how the scans of --data are read: give --data DIR as well; a run's own scans "
            "are read as in training"
        )
    return given


def _in_words(settings: DatasetConfig, options: DatasetOptions) -> str:
    """How other scans than the run's are read, on one line: what was asked for, and what is the run's."""
    usual, words = DatasetConfig(), []
    for name in (*_OF_FOLDER, "pixel_um", "anonymise"):
        value, given = getattr(settings, name), getattr(options, name)
        if value != getattr(usual, name) or (given is not None and name not in _OF_FOLDER):
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            whose = "" if given == value else " (the run's)"
            words.append(f"--dataset.{name.replace('_', '-')} {shown}{whose}")
    return f"read with: {', '.join(words) or 'the defaults of --dataset'}"


def changed(settings: Settings, options: DatasetOptions | PhantomOptions) -> Settings:
    """Settings with the options that are given in their place; how a folder is read stays (``reading``)."""
    names = [field.name for field in dataclasses.fields(options) if field.name not in _OF_FOLDER]
    given = {name: getattr(options, name) for name in names}
    return dataclasses.replace(settings, **{name: value for name, value in given.items() if value is not None})
