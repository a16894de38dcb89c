"""One runner for the commands that explain what classifiers say about scans: each brings its maps, the rest is here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dino_oct.files import private_folder
from dino_oct.limits import check_settings
from dino_oct.scan_data import ScanData
from dino_oct.scores.text import heading, table
from evaluation.config import ExplanationOptions
from evaluation.inputs.model import Answer, Model, ask, open_classifiers
from evaluation.inputs.scans import open_data
from evaluation.inputs.selection import Chosen, from_files, from_split
from evaluation.inputs.sources import open_sources
from evaluation.pages.tiles import Page, Tile, write_pages
from evaluation.protocols.results import of_source

Rows = list[tuple[str, list[Tile]]]


@dataclass(frozen=True)
class Subjects:
    """What is explained: models by their short names, scans, and what a result says about the scans.

    Attributes:
        data: the scans come from; None for image files.
    """

    models: dict[str, Model]
    scans: list[Chosen]
    about: dict[str, Any]
    data: ScanData | None


@dataclass(frozen=True)
class Drawing:
    """One scan explained: rows of a page, arrays for the npz file, and facts of each model beside its answer."""

    rows: Rows
    arrays: dict[str, np.ndarray]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Explainer:
    """What is particular to one command.

    Attributes:
        name: of its files; title: of its text.
        draw: from a scan and every model's answer to its page.
        units: of the arrays; settings, notes: for the JSON file.
        subtitle, foot: of the pages.
    """

    name: str
    title: str
    draw: Callable[[Chosen, dict[str, Answer]], Drawing]
    units: str
    settings: dict[str, Any]
    subtitle: str
    foot: str
    notes: list[str] = field(default_factory=list)


Prepare = Callable[[Subjects], Explainer]


def open_subjects(options: ExplanationOptions) -> Subjects:
    """Open models and scans.

    Raises:
        InputError: a source given twice, a target that a model does not have, or as ``open_classifiers``,
            ``from_files`` and ``from_split``.
    """
    sources = open_sources(options.sources)
    data = None
    if options.scans:
        scans, about = from_files(options.scans, sources[0], options.dataset)
    else:
        data = open_data(sources[0], options.data, options.dataset, options.phantom, print)
        scans, about = from_split(data, options.split, options.n, [source.name for source in sources[1:]])
    models = open_classifiers(sources, options, data)
    for model in models.values():
        if options.target not in ("predicted", "true"):
            model.class_index(options.target)
    return Subjects(models, scans, about, data)


def evaluate(options: ExplanationOptions, prepare: Prepare) -> tuple[dict[str, Any], list[Page], str, Explainer]:
    """Explain every scan.

    Returns:
        What the JSON file holds, the pages, every model's answers as text, and the explainer.

    Raises:
        InputError: as ``open_subjects`` and ``ask``.
    """
    check_settings(options)
    subjects = open_subjects(options)
    explainer = prepare(subjects)
    pages, answers = [], []
    for scan in tqdm(subjects.scans, desc=explainer.name, unit="scan", disable=None, leave=False):
        of_scan = {name: ask(model, scan, options.target) for name, model in subjects.models.items()}
        drawing = explainer.draw(scan, of_scan)
        facts = {name: {**answer.facts(), **drawing.facts.get(name, {})} for name, answer in of_scan.items()}
        pages.append(Page(scan, drawing.rows, drawing.arrays, {"models": facts}))
        answers.append(of_scan)
    return _result(subjects, explainer, options), pages, _text(subjects.models, answers), explainer


def run(options: ExplanationOptions, prepare: Prepare) -> None:
    """Explain, print, and write pages, ``NAME.npz``, ``NAME.json`` and TensorBoard images."""
    result, pages, text, explainer = evaluate(options, prepare)
    name, source = explainer.name, open_sources(options.sources)[0]
    folder = private_folder(source.results_folder(name, options.out))
    write_pages(result, pages, explainer.subtitle, explainer.foot, folder)
    print("\n".join([*heading(explainer.title, result), text, "", *(f"note: {note}" for note in result["notes"])]))
    count = f"{len(pages)} page{'' if len(pages) == 1 else 's'}"
    print(f"written: {count}, {name}.npz, {name}.json and tensorboard/ in {folder}")


def _result(subjects: Subjects, explainer: Explainer, options: ExplanationOptions) -> dict[str, Any]:
    models, about = subjects.models, subjects.about
    return {
        "evaluation": explainer.name,
        "model": of_source(next(iter(models.values())).source),
        "weights": {name: model.weights for name, model in models.items()},
        "data": about,
        "models": {
            name: {
                "architecture": model.timm_name,
                "input_size": model.input_size,
                "classes": model.class_names,
                "classifier": model.head,
                "target": model.target,
                "fitted": model.fitted or {},
            }
            for name, model in models.items()
        },
        "settings": {"target": options.target, **explainer.settings},
        "units": explainer.units,
        "notes": [
            *about["notes"],
            *(f"{name} has random weights: its maps are a control, not a finding" for name in _random(models)),
            *explainer.notes,
        ],
    }


def _random(models: dict[str, Model]) -> list[str]:
    return [name for name, model in models.items() if model.is_random]


def _text(models: dict[str, Model], answers: Sequence[dict[str, Answer]]) -> str:
    """What every model says about every scan, as a table, and what its logits are."""
    rows = []
    for of_scan in answers:
        scan = next(iter(of_scan.values())).scan
        rows.append([Path(scan.file).name, scan.label or "–", *(answer.verdict for answer in of_scan.values())])
    targets = [
        f"{name}: {model.timm_name}, {model.input_size[0]} × {model.input_size[1]} px, {model.target}"
        for name, model in models.items()
    ]
    return "\n".join([*targets, "", table(["scan", "class", *models], rows)])
