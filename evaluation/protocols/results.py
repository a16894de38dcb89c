"""What the results of all evaluations have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.errors import InputError
from dino_oct.files import private_folder
from dino_oct.scan_data import ScanData
from dino_oct.scores.class_summary import Majority, never_recognised
from dino_oct.scores.paired import MODEL, PIXELS, START, Compared, ResultByClass, ScanSet, Setting, verdict
from dino_oct.scores.text import ACCURACY_HEADER, Evaluation, majority_row, show, table
from dino_oct.scores.units import ByUnit
from evaluation.config import EvaluationOptions, MapOptions, ScanOptions
from evaluation.inputs.model import Model
from evaluation.inputs.scans import open_data
from evaluation.inputs.selection import Chosen, from_files, from_split, from_volumes
from evaluation.inputs.sources import Source, open_sources, short_names
from evaluation.maps.chefer import PATENT_NOTICE
from evaluation.maps.methods import MapSettings, usable
from evaluation.maps.rows import MapMaker


@dataclass(frozen=True)
class Features:
    """Features (N, D) of the training, validation and classified scans."""

    train: np.ndarray
    val: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Classification(Evaluation):
    """The model and its controls, each a row, as classifiers of the same scans.

    Attributes:
        differences: "model − row", in points.
        by_unit: the same rows on volumes, eyes and patients, where these hold several scans.
        verdicts: what the numbers let one say.
    """

    units: str = (
        "per cent; differences in points; each number with its 95 % interval by patient, or the reason why it has none"
    )
    rows: dict[str, Any]
    differences: dict[str, Any]
    by_unit: dict[str, ByUnit] = field(default_factory=dict, metadata={"may_be_empty": True})
    majority: Majority
    verdicts: list[str]


def of_source(source: Source) -> dict[str, str | Path | None]:
    """Which source was evaluated, and how it was chosen."""
    return {"source": source.name, "run": source.run, "chosen": source.chosen}


def shared_with_validation(queries: ScanSet, val: ScanSet) -> list[str]:
    """A note where classified patients also have validation scans."""
    tested = set(queries.patients.tolist())
    shared = len(tested & set(val.patients.tolist()))
    return [f"{shared} of {len(tested)} classified patients also have validation scans"] if shared else []


def why_mean(split: str) -> str:
    """Why no rule is chosen for units of a split: its own scans may not choose."""
    return f"the {'classified scans are those of validation' if split == 'val' else 'folder has no validation scans'}"


def choose_scans(
    sources: Sequence[Source], options: ScanOptions
) -> tuple[list[Chosen], dict[str, Any], ScanData | None]:
    """The scans to show, what a result says about them, and the data they are from; None for image files.

    Raises:
        InputError: as ``from_files``, ``open_data``, ``from_split`` and ``from_volumes``.
    """
    if options.scans:
        return *from_files(options.scans, sources[0], options.dataset), None
    data, beside = open_data(sources[0], options), [source.name for source in sources[1:]]
    if volumes := getattr(options, "volumes", 0):
        return *from_volumes(data, options.split, volumes, beside), data
    return *from_split(data, options.split, options.n, beside), data


def map_makers(models: Sequence[Model], options: MapOptions, **settings: Any) -> list[MapMaker]:
    """The models with the maps that each can give.

    Args:
        settings: of ``MapSettings``, beside the attention size.

    Raises:
        InputError: a method is asked for that no model has.
    """
    makers = []
    for model in models:
        methods, gaps = usable(model, options.methods)
        side = options.attention_size or model.source.attention_size
        makers.append(MapMaker(model, MapSettings(side, **settings), tuple(methods), gaps))
    if not any(maker.methods for maker in makers):
        raise InputError(next(iter(makers[0].gaps.values())))
    return makers


def map_notes(makers: Sequence[MapMaker]) -> list[str]:
    """Maps that a model cannot give, and that one is patented."""
    notes = [f"{maker.name} has no {method}: {reason}" for maker in makers for method, reason in maker.gaps.items()]
    return notes + ([PATENT_NOTICE] if any("lrp" in maker.methods for maker in makers) else [])


def verdicts(compared: Compared[Setting], name_of: Callable[[str, Setting], str]) -> list[str]:
    """Whether the model beats raw pixels and its starting weights, and which classes are never recognised.

    Args:
        name_of: from a row and a setting to a name of both.
    """
    beside = [(other, compared.differences.get(f"{MODEL} − {other}", {})) for other in (PIXELS, START)]
    rows = [(name_of(name, k), row) for name, by_setting in compared.rows.items() for k, row in by_setting.items()]
    return [
        *(verdict(of_k.accuracy, other, k) for other, by_setting in beside for k, of_k in by_setting.items()),
        *never_recognised((name, row.never_recognised) for name, row in rows),
    ]


def tables(
    result: Classification, columns: Sequence[str], rows: Sequence[list[str]], recalls: dict[str, ResultByClass]
) -> list[str]:
    """Tables of accuracies and of recalls, and what their intervals are.

    Args:
        columns: titles of the cells before the accuracies; the empty one is that of a row's name.
        rows: cells under ``columns`` and ``ACCURACY_HEADER``.
        recalls: row name → result.
    """
    classes = result.data["sets"]["queries"]["classes"]
    always, *cells = majority_row(result.majority, classes)
    header = ["recall %", *(f"{name} ({count['scans']})" for name, count in classes.items())]
    return [
        table([*columns, *ACCURACY_HEADER], [*rows, [*("" if column else always for column in columns), *cells]]),
        "",
        table(header, [[name, *(show(row.recall[label]) for label in classes)] for name, row in recalls.items()]),
        f"[95 % interval, {result.settings['bootstrap']['resamples']} resamples of patients]",
    ]


def with_folders(evaluation: str, options: EvaluationOptions) -> list[tuple[Source, Path]]:
    """The sources of an evaluation, each with a folder for its results, a new one for its owner alone; several share
    ``--out``, one below it each."""
    sources = open_sources(options.sources)
    share_out = options.out and len(sources) > 1
    outs = [Path(options.out, name.replace("/", "_")) if share_out else options.out for name in short_names(sources)]
    return [
        (source, private_folder(source.results_folder(evaluation, out)))
        for source, out in zip(sources, outs, strict=True)
    ]
