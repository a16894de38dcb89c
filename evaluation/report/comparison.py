"""One report that compares models: self-supervised against supervised, on the same test scans.

It reuses what the single evaluations cached, and its own finished steps (OUT/cache), so the same command goes on where
an earlier one was stopped. A model that cannot give a number or a map leaves a gap with its reason.
"""

import csv
import datetime
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.errors import InputError
from dino_oct.files import private_folder, write_whole
from dino_oct.knn import check_k
from dino_oct.limits import check_settings
from dino_oct.phases import phase
from dino_oct.scores.text import (
    ACCURACY_HEADER,
    accuracy_cells,
    majority_row,
    show,
    table,
    unit_lines,
    write_json,
    written,
)
from dino_oct.scores.units import ByUnit
from dino_oct.words import counted, scans_of
from evaluation.config import ComparisonOptions, Reader
from evaluation.inputs.masks import LesionMasks
from evaluation.inputs.scans import open_data, open_external
from evaluation.inputs.sources import newest_beside_start, open_source
from evaluation.inputs.steps import StepCache
from evaluation.pages.embedding_figures import marks
from evaluation.protocols.external import external_lines
from evaluation.report.answers import Answers, ask
from evaluation.report.cases import Case, Pictures, choose_cases, show_scans
from evaluation.report.certainty import roc
from evaluation.report.embedding import embedding
from evaluation.report.external import judge_elsewhere
from evaluation.report.figures import write_figures
from evaluation.report.findings import warnings
from evaluation.report.label_errors import suspects
from evaluation.report.leaderboard import leaderboard
from evaluation.report.methods import INTENDED_USE, command, limits, paragraphs, single_commands, versions
from evaluation.report.models import Candidate, check_names, open_candidates
from evaluation.report.overview import overview, pixel_accuracy
from evaluation.report.page import gap_lines, render
from evaluation.report.results import Answered, ClassFacts, DataFacts, Media, ModelFacts, Results
from evaluation.report.scans import ShownScans
from evaluation.report.severity import lesion_loads, severity
from evaluation.report.steps import Setting
from evaluation.report.subgroups import subgroups
from evaluation.report.table import URGENT, Intervals, make_table, protocol_title, score
from evaluation.report.units import judge_units
from evaluation.report.verdict import START, best_of_kinds, best_on_validation, verdict
from evaluation.report.volumes import Volumes, choose_volumes, with_answers

_URGENT = ("urgent_sensitivity", "urgent_specificity")


def compare(options: ComparisonOptions, say: Callable[[str], None] = print) -> tuple[Results, Media, StepCache]:
    """Run, or go on with, the whole comparison, figures included.

    Returns:
        What ``results.json`` holds, the pictures of the page, and the cache that was used.

    Raises:
        InputError: no model, one twice, one class only, k out of range, or as ``load_backbone`` and ``open_data``.
    """
    check_settings(options)
    if not options.sources:
        options = replace(options, model=newest_beside_start())
    check_names(options.sources)
    folder = private_folder(options.out)
    # ---- data and models -------------------------------------------------------------------------------------------
    first = next((source for source in map(open_source, options.sources) if source.run is not None), None)
    data = open_data(first, options, say)
    shared, index = Setting(data, StepCache(folder / "cache"), options), data.index
    for split in ("train", "test"):
        if len(set(index.labels[shared.positions[split]].tolist())) < 2:
            raise InputError(
                f"{index.root}: {split} scans of one class only; give two or more, or another --dataset.split"
            )
    check_k(options.k, len(shared.positions["train"]))
    masks = LesionMasks(data, options) if options.are_masks_given else None
    external = open_external(first, options, data, say)
    models = open_candidates(options.sources, shared)
    scans, gaps = ShownScans(shared), []
    # ---- numbers ---------------------------------------------------------------------------------------------------
    answers, intervals = {}, Intervals(shared)
    for i, (key, model) in enumerate(models.items()):
        say(f"[{i + 1}/{len(models)}] {key}: k-NN, linear probe, classifier")
        answers[key] = ask(model, shared)
        score(answers[key], intervals, shared)
    elsewhere = None
    if external:
        say(f"scans from elsewhere: {external.data.index.root}")
        elsewhere = judge_elsewhere(answers, shared, external)
    reference = best_on_validation({key: of_model.classifier_validation for key, of_model in answers.items()})

    pair = best_of_kinds(answers)
    first_of_pair = next((answers[key] for key in (*pair, *answers) if key and answers[key].knn), None)
    pixels = pixel_accuracy(first_of_pair.model, options.k[0], intervals, shared) if first_of_pair else None

    first_screen = overview(answers, pair, pixels, intervals, shared)
    two = [key for key in (first_screen.leader, first_screen.rival) if key]

    def section(name: str, make: Callable[[], Any]) -> Any:
        """A section of the report, or None and its reason among the gaps."""
        try:
            return make()
        except InputError as reason:
            gaps.append(f"{name}: {reason}")
            return None

    if not options.leaderboard:
        gaps.append("explanations: not asked for (--leaderboard 0)")
    say("data audit, suspected label errors")
    findings = warnings(models, shared)
    doubted = section("suspects", lambda: suspects(answers, shared, scans))
    say("embedding maps")
    embedded, points = section("embedding", lambda: embedding(models, shared)) or (None, {})
    ordered = section("severity", lambda: severity(models, shared, masks))
    say("explanation maps")
    ranked = section("explanations", lambda: leaderboard(models, shared)) if options.leaderboard else None
    by_unit = judge_units(answers, shared)
    shown = section("cases", lambda: _cases(answers, reference, masks, ranked.heads if ranked else {}, by_unit, shared))
    cases, pictures, volumes, of_volumes = shown or ([], [], None, [])
    # ---- results ---------------------------------------------------------------------------------------------------
    summary = data.summary(**shared.positions)
    sets = summary["sets"]
    results = Results(
        evaluation="compare",
        title=f"{counted(len(models), 'model')} on {scans_of(sets['test'], 'test')}",
        command=command(),
        commands=single_commands(models, options),
        made=datetime.date.today().isoformat(),
        notice=summary["notice"],
        verdict=verdict(answers, pair, pixels, intervals, shared),
        overview=first_screen,
        warnings=findings,
        data=DataFacts(
            folder="phantom" if data.is_phantom and options.data in (None, "phantom") else Path(index.root).name,
            synthetic=data.is_phantom,
            sets=sets,
        ),
        classes=[ClassFacts(**vars(m), urgent=m.name.casefold() in URGENT) for m in marks(index.class_names, False)],
        models={
            key: ModelFacts(
                **vars(answers[key].facts),
                source=model.source.name,
                kind=model.kind,
                architecture=model.model.timm_name,
                sha256=model.model.weights.sha256,
                loaded=model.model.weights.loaded,
                start_of=_start_of(model, models),
                gaps=model.gaps,
            )
            for key, model in models.items()
        },
        table=make_table(answers, intervals, shared),
        confusions={key: of_model.confusion for key, of_model in answers.items() if of_model.confusion},
        reliability={key: of_model.reliability for key, of_model in answers.items()},
        roc={key: roc(answers[key], intervals, shared) for key in two},
        subgroups=subgroups(answers, two, intervals, shared) if two else None,
        answers={
            key: Answered(np.arange(len(stated)), stated.argmax(axis=1), stated.max(axis=1))
            for key, of_model in answers.items()
            if (stated := of_model.classifier) is not None
        },
        suspects=doubted,
        embedding=embedded,
        leaderboard=ranked,
        severity=ordered,
        cases=cases,
        volumes=volumes,
        gaps=gaps,
        versions=versions(),
        settings={
            **{name: getattr(options, name) for name in ("k", "temperature", "methods", "cases", "seed")},
            "bootstrap": options.intervals,
            "reference_model": reference,
            "dataset": summary["dataset"],
        },
        intended_use=INTENDED_USE,
        evaluations={key: of_model.results for key, of_model in answers.items()},
        by_unit=by_unit,
        external=elsewhere,
        scans=scans.columns(),
    )
    results = replace(results, limits=limits(results), methods=paragraphs(results, shared))
    files, drawn = write_figures(results, points, folder)
    return replace(results, figures=files), Media(scans.thumbnails(), pictures, drawn, of_volumes), shared.cache


def _start_of(model: Candidate, models: dict[str, Candidate]) -> str | None:
    """The finished model of the run that starting weights are of."""
    runs = (key for key, other in models.items() if other is not model and other.source.run == model.source.run)
    return next(runs, None) if model.kind == START else None


def _cases(
    answers: dict[str, Answers], reference: str | None, masks: LesionMasks | None, heads: dict[str, str],
    by_unit: dict[str, ByUnit], shared: Setting,
) -> tuple[list[Case], list[Pictures], Volumes | None, list[list[Pictures]]]:  # fmt: skip
    options, queries = shared.options, shared.set_of("test")
    if reference is None or not options.cases:
        raise InputError("none were asked for" if reference else "no model has a classifier to choose them by")
    right = answers[reference].classifier[np.arange(len(queries.labels)), queries.labels]
    cases = choose_cases(right, queries.labels, queries.patients, options.cases, options.seed, reference)
    try:
        beside = masks or LesionMasks(shared.data, options)
        _, loads = lesion_loads(shared.data, shared.positions["test"], masks)
        known = [load if np.isfinite(load) else None for load in loads.tolist()]
        cases = [replace(case, severity=known[case.scan]) for case in cases]
    except InputError:
        beside = None
    of_cases = [int(shared.positions["test"][case.scan]) for case in cases]
    volumes, slices = choose_volumes(cases, shared)
    positions = list(dict.fromkeys([*of_cases, *itertools.chain.from_iterable(slices)]))
    models = {key: of_model.model for key, of_model in answers.items()}
    answered = dict(
        zip(positions, zip(*show_scans(positions, models, heads, shared, beside), strict=True), strict=True)
    )
    cases = [replace(case, models=answered[i][1]) for case, i in zip(cases, of_cases, strict=True)]
    of_volumes = []
    if volumes:
        volumes, of_volumes = with_answers(volumes, slices, answered, answers, by_unit, shared)
    return cases, [answered[i][0] for i in of_cases], volumes, of_volumes


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
    units = unit_lines(
        {
            unit: replace(
                of_unit,
                rows={
                    key: {protocol_title(name): row for name, row in by_protocol.items()}
                    for key, by_protocol in of_unit.rows.items()
                },
                differences={},
            )
            for unit, of_unit in results.by_unit.items()
        },
        results.settings["bootstrap"]["resamples"],
        said=[finding.text for finding in results.warnings],
        setting="by",
    )[1:]
    return "\n".join(
        [
            results.title + (f" · {results.notice}" if results.notice else ""),
            "",
            table(["model", "by", *ACCURACY_HEADER], [*rows, [always, "", *cells]]),
            "",
            *([*units, ""] if units else []),
            *([*external_lines(results.external)[1:], ""] if results.external else []),
            *([table(["urgent against routine", "sensitivity %", "specificity %"], urgent), ""] if urgent else []),
            *(f"{key}: {model.loaded}" for key, model in results.models.items()),
            "",
            results.verdict.headline,
            *results.verdict.sentences,
            *(f"warning: {finding.text}" for finding in results.warnings if finding.serious),
            *(f"gap: {text}" for text in gap_lines(results.gaps)),
        ]
    )


def write_report(results: Results, media: Media, folder: Path, reader: Reader = "author") -> None:
    """Write ``results.json``, ``results.csv`` and ``report.html``, each whole or not at all; for a clinician also
    ``clinician.html``."""
    write_json(results, folder / "results.json")
    write_whole(folder / "results.csv", as_csv(results))
    write_whole(folder / "report.html", render(results, media))
    if reader == "clinician":
        write_whole(folder / "clinician.html", render(results, media, reader))


def as_csv(results: Results) -> str:
    """The table of models: one row a model; point, low and high of every column."""
    with io.StringIO() as stream:
        writer = csv.writer(stream)
        facts = ("kind", "architecture", "source", "sha256")
        columns = [f"{column.key}{end}" for column in results.table.columns for end in ("", "_low", "_high")]
        writer.writerow(["model", *facts, "test_scans", "test_patients", *columns])
        for model, row in results.table.rows.items():
            about = [getattr(results.models[model], name) for name in facts]
            numbers = [value and getattr(value, part) for value in row.values() for part in ("point", "low", "high")]
            cells = ["" if number is None or not np.isfinite(number) else repr(number) for number in numbers]
            writer.writerow([model, *about, results.verdict.scans, results.verdict.patients, *cells])
        return stream.getvalue()


def run(options: ComparisonOptions) -> None:
    """Compare, print, and write the page, numbers and figures."""
    results, media, _ = compare(options)
    with phase("figures and page"):
        write_report(results, media, options.out, options.reader)
    pages = ["report.html", *(["clinician.html"] if options.reader == "clinician" else [])]
    print("\n" + report(results))
    print(written(*(options.out / name for name in (*pages, "results.json", "results.csv", "figures"))))
