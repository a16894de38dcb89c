"""One report that compares models: self-supervised against supervised, on the same test scans.

It reuses what the single evaluations cached, and its own finished steps (OUT/cache), so the same command goes on where
an earlier one was stopped. A model that cannot give a number or a map leaves a gap with its reason.
"""

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.errors import InputError
from dino_oct.files import private_folder
from dino_oct.knn import check_k
from dino_oct.limits import check_settings
from dino_oct.scores.text import ACCURACY_HEADER, PHANTOM_NOTICE, accuracy_cells, majority_row, show, table
from evaluation.config import ComparisonOptions
from evaluation.inputs.masks import LesionMasks
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import open_source
from evaluation.pages.embedding_figures import marks
from evaluation.report.answers import Answers, Setting, ask, data_digest
from evaluation.report.cases import Case, Pictures, choose_cases, show_cases
from evaluation.report.embedding import embedding
from evaluation.report.figures import write_figures
from evaluation.report.files import write_report
from evaluation.report.findings import warnings
from evaluation.report.label_errors import suspects
from evaluation.report.leaderboard import league
from evaluation.report.methods import INTENDED_USE, command, limits, paragraphs, single_commands, versions
from evaluation.report.models import SPLITS, Candidate, check_names, open_candidates
from evaluation.report.results import Answered, ClassFacts, DataFacts, Media, ModelFacts, Results
from evaluation.report.scans import ShownScans
from evaluation.report.severity import lesion_loads, severity
from evaluation.report.steps import StepCache
from evaluation.report.table import (
    URGENT,
    confusions,
    make_table,
    protocol_title,
    reliabilities,
    resampled,
    single_results,
)
from evaluation.report.verdict import best_on_validation, verdict

_URGENT = ("urgent_sensitivity", "urgent_specificity")


def compare(options: ComparisonOptions, say: Callable[[str], None] = print) -> tuple[Results, Media, StepCache]:
    """Run, or go on with, the whole comparison, figures included.

    Returns:
        What ``results.json`` holds, the pictures of the page, and the cache that was used.

    Raises:
        InputError: no model, one twice, one class only, k out of range, or as ``load_backbone`` and ``open_data``.
    """
    check_settings(options)
    check_names(options.sources)
    folder = private_folder(options.out)
    # ---- data and models -------------------------------------------------------------------------------------------
    first = next((source for source in map(open_source, options.sources) if source.run is not None), None)
    data = open_data(first, options.data, options.dataset, options.phantom, say)
    positions = {split: data.labelled(split) for split in SPLITS}
    index = data.index
    for split in ("train", "test"):
        if len(set(index.labels[positions[split]].tolist())) < 2:
            raise InputError(
                f"{index.root}: {split} scans of one class only; give two or more, or another --dataset.split"
            )
    check_k(options.k, len(positions["train"]))
    are_given = bool(options.masks or options.lesion_values or options.retina_values)
    masks = LesionMasks(data, options.masks, options.lesion_values, options.retina_values) if are_given else None
    models = open_candidates(options.sources, data, positions)
    cache = StepCache(folder / "cache")
    shared = Setting(data, positions, cache, data_digest(data), options.bootstrap, options.seed)
    scans, gaps = ShownScans(shared), []
    # ---- numbers ---------------------------------------------------------------------------------------------------
    answers, values = {}, {}
    for i, (key, model) in enumerate(models.items()):
        say(f"[{i + 1}/{len(models)}] {key}: k-NN, linear probe, classifier")
        answers[key] = ask(model, options.k, options.temperature, shared)
        values[key] = resampled(answers[key], model, shared)
    if not options.league:
        gaps.append("explanations: not asked for (--league 0)")
    reference = best_on_validation({key: answered.classifier_validation for key, answered in answers.items()})
    evaluations = single_results(models, answers, values, shared)
    say("data audit, suspected label errors")
    findings = warnings(models, shared)
    doubted = _section("suspects", gaps, lambda: suspects(models, answers, shared, scans))
    say("embedding maps")
    embedded = _section("embedding", gaps, lambda: embedding(models, shared))
    ordered = _section("severity", gaps, lambda: severity(models, shared, masks))
    say("explanation maps")
    scored = _section("explanations", gaps, lambda: league(models, shared, options)) if options.league else None
    heads = scored.heads if scored else {}
    cases, pictures = _cases(models, answers, reference, masks, heads, shared, options, gaps)
    # ---- results ---------------------------------------------------------------------------------------------------
    marked = marks(index.class_names, False)
    sets = data.summary(**positions)["sets"]
    results = Results(
        evaluation="compare",
        title=f"{len(models)} model{'' if len(models) == 1 else 's'} on {sets['test']['scans']:,} test scans of "
        f"{sets['test']['patients']:,} patients",
        command=command(),
        commands=single_commands(models, options),
        made=datetime.date.today().isoformat(),
        notice=PHANTOM_NOTICE if data.is_phantom else None,
        verdict=verdict(models, answers, values, evaluations, options.k, options.temperature, shared),
        warnings=findings,
        data=DataFacts(
            folder="phantom" if data.is_phantom and options.data in (None, "phantom") else Path(index.root).name,
            synthetic=data.is_phantom,
            sets=sets,
        ),
        classes=[ClassFacts(m.name, m.colour, m.shape, m.name.casefold() in URGENT) for m in marked],
        models={key: _about(model, answers[key]) for key, model in models.items()},
        table=make_table(models, answers, values, evaluations, options.k, shared),
        confusions=confusions(answers, evaluations, shared),
        reliability=reliabilities(models, answers, shared),
        answers={
            key: Answered(np.arange(len(probabilities)), probabilities.argmax(axis=1), probabilities.max(axis=1))
            for key, probabilities in ((key, answered.classifier) for key, answered in answers.items())
            if probabilities is not None
        },
        suspects=doubted,
        embedding=embedded and embedded[0],
        league=scored,
        severity=ordered,
        cases=cases,
        gaps=gaps,
        versions=versions(),
        settings=_settings(options, reference, shared),
        intended_use=INTENDED_USE,
        evaluations=evaluations,
        scans=scans.columns(),
    )
    results = replace(results, limits=limits(models, results), methods=paragraphs(models, results, shared, options))
    files, drawn = write_figures(results, embedded[1] if embedded else {}, marked, folder)
    return replace(results, figures=files), Media(scans.thumbnails(), pictures, drawn), cache


def _section(name: str, gaps: list[str], make: Callable[[], Any]) -> Any:
    """A section of the report, or None and its reason among the gaps."""
    try:
        return make()
    except InputError as reason:
        gaps.append(f"{name}: {reason}")
        return None


def _cases(
    models: dict[str, Candidate], answers: dict[str, Answers], reference: str | None, masks: LesionMasks | None,
    heads: dict[str, str], shared: Setting, options: ComparisonOptions, gaps: list[str],
) -> tuple[list[Case], list[Pictures]]:  # fmt: skip
    if reference is None or answers[reference].classifier is None or not options.cases:
        gaps.append("cases: " + ("none were asked for" if reference else "no model has a classifier to choose them by"))
        return [], []
    queries = shared.set_of("test")
    right = answers[reference].classifier[np.arange(len(queries.labels)), queries.labels]
    choices = choose_cases(right, queries.labels, queries.patients, options.cases, shared.seed, reference)
    try:
        beside = masks or LesionMasks(shared.data)
        _, loads = lesion_loads(shared.data, shared.positions["test"], masks)
    except InputError:
        beside, loads = None, None
    return show_cases(choices, models, options.methods, heads, shared, beside, loads)


def _about(model: Candidate, answers: Answers) -> ModelFacts:
    return ModelFacts(
        source=model.source.name,
        kind=model.kind,
        architecture=model.architecture,
        sha256=model.model.weights.sha256,
        loaded=model.model.weights.loaded,
        gaps=model.gaps,
        **answers.facts,
    )


def _settings(options: ComparisonOptions, reference: str | None, shared: Setting) -> dict[str, Any]:
    return {
        "k": options.k,
        "temperature": options.temperature,
        "methods": options.methods,
        "cases": options.cases,
        "bootstrap": {"unit": "patient", "resamples": options.bootstrap, "seed": options.seed},
        "seed": options.seed,
        "reference_model": reference,
        "dataset": shared.data.summary()["dataset"],
    }


def report(results: Results) -> str:
    """The result as text: the verdict, one table, and the serious warnings."""
    rows = [
        [key, protocol_title(name), *accuracy_cells(metrics)]
        for key, by_protocol in results.evaluations.items()
        for name, metrics in by_protocol.items()
    ]
    always, *cells = majority_row(results.verdict.majority, results.data.sets["test"]["classes"])
    urgent = [
        [key, *(show(row[name]) for name in _URGENT)]
        for key, row in results.table.rows.items()
        if all(row.get(name) for name in _URGENT)
    ]
    return "\n".join(
        [
            results.title + (f" · {results.notice}" if results.notice else ""),
            "",
            table(["model", "by", *ACCURACY_HEADER], [*rows, [always, "", *cells]]),
            "",
            *([table(["urgent against routine", "sensitivity %", "specificity %"], urgent), ""] if urgent else []),
            *(f"{key}: {model.loaded}" for key, model in results.models.items()),
            "",
            results.verdict.headline,
            *results.verdict.sentences,
            *(f"warning: {finding.text}" for finding in results.warnings if finding.serious),
            *(f"gap: {text}" for text in results.gaps),
        ]
    )


def run(options: ComparisonOptions) -> None:
    """Compare, print, and write the page, numbers and figures."""
    results, media, _ = compare(options)
    written = write_report(results, media, options.out)
    print("\n" + report(results))
    print(f"written: {', '.join(written)} and figures/ in {options.out}")
