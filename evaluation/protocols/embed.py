"""Features of any scans, with their file names and what else is known of them, as one file."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dino_oct.data.index import UNLABELLED, DatasetConfig, ScanIndex
from dino_oct.data.phantom import PhantomConfig
from dino_oct.errors import InputError
from dino_oct.files import private_folder, replacing
from dino_oct.limits import check_settings
from dino_oct.scores.text import write_json, written
from dino_oct.words import counted
from evaluation.config import EmbedOptions, kind_of
from evaluation.inputs.feature_cache import of_network
from evaluation.inputs.model import Model, open_model
from evaluation.inputs.scans import changed, find_given, known_of, reading
from evaluation.inputs.selection import grey_range_of
from evaluation.inputs.sources import Source, open_source
from evaluation.inputs.stream import Reading, prepared

_READING = ("neutralise_borders", "max_side", "grey_range")  # settings that an export brings


@dataclass(frozen=True, eq=False)
class Embedded:
    """Every scan that could be read, in the order of the index.

    Attributes:
        features: (N, D) float32. columns: name → (N,) what is known of each scan.
        left_out: (file, reason) of the others.
    """

    features: np.ndarray
    columns: dict[str, np.ndarray]
    left_out: list[tuple[str, str]]


def embed(model: Model, reading: Reading, options: EmbedOptions) -> Embedded:
    """Features of all scans of an index; memory does not grow with their pixels.

    Raises:
        InputError: no file is a scan, or features that the network does not have.
    """
    kind = kind_of(options.features, options.n_blocks)
    extraction = of_network(model.model, model.device, options.batch_size, kind, options.precision)
    n, left_out = len(reading.index), list(reading.index.left_out)
    features, is_read = np.empty((n, 0), np.float32), np.zeros(n, dtype=bool)
    for batch in prepared(reading, options.batch_size):
        left_out += [(reading.index.files[item.position], item.reason) for item in batch if item.image is None]
        batch = [item for item in batch if item.image is not None]
        if batch:
            some, at = (
                extraction.extract(torch.stack([item.image for item in batch])),
                [item.position for item in batch],
            )
            if not is_read.any():  # all in one array: batches kept one by one would leave memory in pieces
                features = np.empty((n, some.shape[1]), some.dtype)
            features[at], is_read[at] = some, True
    if not is_read.any():
        raise InputError(f"{reading.index.root}: no file is a scan: {left_out[0][0]}: {left_out[0][1]}")
    return Embedded(features[is_read], _columns(reading.index, np.flatnonzero(is_read)), left_out)


def _columns(index: ScanIndex, rows: np.ndarray) -> dict[str, np.ndarray]:
    columns = known_of(index, rows)
    if (index.labels[rows] != UNLABELLED).any():
        columns["label"] = np.array([*index.class_names, ""])[index.labels[rows]]
    return columns


def write(found: Embedded, file: Path) -> None:
    """Write the file, whole or not at all.

    ``.npz``: ``features`` (N, D), ``files`` and an array of each other column, to be read without pickle. ``.csv``,
    ``.parquet``: the columns, then ``f0``, ``f1``, … of the features.
    """
    private_folder(file.parent)
    with replacing(file) as partial:
        if file.suffix == ".npz":
            with partial.open("wb") as stream:
                columns = {name: np.asarray(values, str) for name, values in found.columns.items()}
                columns["files"] = columns.pop("file")  # savez has an argument of that name
                np.savez(stream, features=found.features, **columns)
            return
        names = [f"f{i}" for i in range(found.features.shape[1])]
        frame = pd.concat([pd.DataFrame(found.columns), pd.DataFrame(found.features, columns=names)], axis=1)
        frame.to_csv(partial, index=False) if file.suffix == ".csv" else frame.to_parquet(partial, index=False)


def settings_of(source: Source, model: Model, options: EmbedOptions) -> DatasetConfig:
    """How scans are read: as the run's own, or as an export says, unless options say otherwise."""
    own = source.config.dataset if source.config else DatasetConfig()
    if source.config is None:
        described = model.model.hub_config.get("scans", {})
        own = dataclasses.replace(own, **{name: described[name] for name in _READING if name in described})
    own = dataclasses.replace(own, **reading(options.dataset, options.scans[0]), unlabelled=[])
    return changed(own, options.dataset)


def run(options: EmbedOptions) -> None:
    """Compute, print what was found, and write the file, with a JSON of how it was made beside it."""
    check_settings(options)
    source = open_source(options.model)
    model = open_model(source, image_size=options.image_size, heads=options.heads)
    settings = settings_of(source, model, options)
    index = find_given(options.scans, settings, changed(PhantomConfig(), options.phantom))
    files = [str(index.path(i)) for i in range(len(index))]
    grey_range, notes = grey_range_of(files, source, options.dataset)
    preprocessing = model.preprocessing(options.image_size, options.preprocessing)
    found = embed(model, Reading(index, settings, grey_range, preprocessing), options)
    write(found, options.out)
    about: dict[str, Any] = {
        "model": {"source": source.name, "weights": model.weights.sha256},
        "settings": {
            "features": options.features,
            "n_blocks": options.n_blocks if options.features == "blocks" else None,
            "image_size": preprocessing.size,
            "preprocessing": preprocessing.protocol,
            "precision": options.precision,
        },
        "scans": len(found.features),
        "left_out": [{"file": file, "reason": reason} for file, reason in found.left_out],
        "notes": notes,
    }
    write_json(about, beside := options.out.with_name(f"{options.out.name}.json"))
    print(f"{model.name}: {model.model.load_report.counts}")
    rows, columns = preprocessing.size
    print(
        f"{counted(len(found.features), 'scan')}, {found.features.shape[1]:,} features ({options.features}, "
        f"{rows} × {columns})"
    )
    print(
        "\n".join([f"left out: {file}: {reason}" for file, reason in found.left_out[:3]]),
        end="\n" * bool(found.left_out),
    )
    if len(found.left_out) > 3:
        print(f"left out: {len(found.left_out) - 3:,} more, in {beside.name}")
    print("\n".join([*(f"note: {note}" for note in notes), written(options.out, beside)]))
