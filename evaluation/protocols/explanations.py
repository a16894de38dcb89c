"""One runner for the commands that explain what classifiers say about scans: each brings its maps, the rest is here."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dino_oct.files import private_folder
from dino_oct.limits import check_settings
from dino_oct.scan_data import ScanData
from dino_oct.scores.text import Evaluation, closing, heading, table, written
from evaluation.config import ExplanationOptions
from evaluation.inputs.model import Answer, FittedHead, Model, ask, open_classifiers
from evaluation.inputs.selection import Chosen
from evaluation.inputs.sources import open_sources
from evaluation.pages.tiles import Page, Tile, as_picture, overlay, write_pages
from evaluation.protocols.results import choose_scans, of_source


@dataclass(frozen=True)
class Classifier:
    """What is said about a model whose answers are explained.

    Attributes:
        architecture: timm's name; classifier: as ``Model.head``; target: in words, what a class's logit is.
        fitted: of a fitted head, else nothing.
    """

    architecture: str
    input_size: tuple[int, int]
    classes: tuple[str, ...]
    classifier: str
    target: str
    fitted: FittedHead | dict


@dataclass(frozen=True, kw_only=True)
class Explanation(Evaluation):
    """What ``NAME.json`` holds beside its scans."""

    models: dict[str, Classifier]


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
class Explainer:
    """What is particular to one command.

    Attributes:
        name: of its files; title: of its text.
        draw: from a scan and every model's answer to its page; its facts are of each model, beside the answer.
        units: of the arrays; settings, notes: for the JSON file.
        subtitle, foot: of the pages.
    """

    name: str
    title: str
    draw: Callable[[Chosen, dict[str, Answer]], Page]
    units: str
    settings: dict[str, Any]
    subtitle: str
    foot: str
    notes: list[str] = field(default_factory=list)


def open_subjects(options: ExplanationOptions) -> Subjects:
    """Open models and scans.

    Raises:
        InputError: a source given twice, a target that a model does not have, or as ``open_classifiers`` and
            ``choose_scans``.
    """
    sources = open_sources(options.sources)
    scans, about, data = choose_scans(sources, options)
    models = open_classifiers(sources, options, data)
    for model in models.values():
        if options.target not in ("predicted", "true"):
            model.class_index(options.target)
    return Subjects(models, scans, about, data)


def run(options: ExplanationOptions, prepare: Callable[[Subjects], Explainer]) -> None:
    """Explain every scan, print, and write pages, ``NAME.npz``, ``NAME.json`` and TensorBoard images.

    Raises:
        InputError: as ``open_subjects`` and ``ask``.
    """
    check_settings(options)
    subjects = open_subjects(options)
    models, source = subjects.models, next(iter(subjects.models.values())).source
    explainer, pages, rows = prepare(subjects), [], []
    for scan in tqdm(subjects.scans, desc=explainer.name, unit="scan", disable=None, leave=False):
        answers = {name: ask(model, scan, options.target) for name, model in models.items()}
        page = explainer.draw(scan, answers)
        facts = {name: {**answer.facts(), **page.facts.get(name, {})} for name, answer in answers.items()}
        pages.append(dataclasses.replace(page, facts={"models": facts}))
        rows.append([Path(scan.file).name, scan.label or "–", *(answer.verdict for answer in answers.values())])
    random = [name for name, model in models.items() if model.is_random]
    result = Explanation(
        evaluation=explainer.name,
        model=of_source(source),
        weights={name: model.weights for name, model in models.items()},
        data=subjects.about,
        models={
            name: Classifier(
                model.timm_name, model.input_size, model.class_names, model.head, model.target, model.fitted or {}
            )
            for name, model in models.items()
        },
        settings={"target": options.target, **explainer.settings},
        units=explainer.units,
        notes=[
            *subjects.about["notes"],
            *(f"{name} has random weights: its maps are a control, not a finding" for name in random),
            *explainer.notes,
        ],
    )
    folder = private_folder(source.results_folder(explainer.name, options.out))
    files = write_pages(result, pages, explainer.subtitle, explainer.foot, folder)
    targets = [
        f"{name}: {model.timm_name}, {model.input_size[0]} × {model.input_size[1]} px, {model.target}"
        for name, model in models.items()
    ]
    lines = [*heading(explainer.title, result), *targets, "", table(["scan", "class", *models], rows)]
    print("\n".join([*lines, *closing(result)]))
    print(written(*files))


def draw_methods(
    scan: Chosen, answers: dict[str, Answer], methods: Sequence[str], make: Callable[[Answer, str], np.ndarray]
) -> Page:
    """A row of positive parts for each method, a column for each model; arrays ``MODEL_METHOD``.

    Args:
        make: from an answer and a method to a map (rows, columns).
    """
    rows, arrays = [], {}
    for method in methods:
        tiles = [Tile(as_picture(scan.scan), f"scan\n{scan.label or ''}")]
        for name, answer in answers.items():
            values = arrays[f"{name}_{method}"] = make(answer, method)
            explained = "any class" if method in ("eigencam", "rollout") else answer.explained
            height = f"up to {values.max():.2g}" if values.max() > 0 else "nothing positive"
            caption = f"for {explained}, {values.shape[0]} × {values.shape[1]}, {height}"
            tiles.append(Tile(overlay(scan.scan, values), f"{name}: {answer.verdict}\n{caption}"))
        rows.append((method, tiles))
    return Page(scan, rows, arrays)
