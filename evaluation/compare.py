"""One report that compares models: self-supervised against supervised, on the same test scans.

    python evaluation/compare.py runs/quickstart runs/phantoms_resnet         on the data of the first run
    python evaluation/compare.py RUN RUN timm:NAME --data DIR --masks DIR --out report

It reuses what the single evaluations cached, and its own finished steps (OUT/cache), so the same command goes on where
an earlier one was stopped. A model that cannot give a number or a map leaves a gap with its reason.
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.knn import check_k
from dino_oct.limits import Items, MaskValues, Name, Neighbours, NewPath, Range, Resamples, Seed, check_settings
from evaluation.comparison_cache import StepCache
from evaluation.comparison_cases import choose_cases, show_cases
from evaluation.comparison_embedding import embedding
from evaluation.comparison_figures import write_figures
from evaluation.comparison_files import ShownScans, write_report
from evaluation.comparison_league import league
from evaluation.comparison_measures import Answers, Setting, ask, data_digest
from evaluation.comparison_methods import INTENDED_USE, command, limits, paragraphs, single_commands, versions
from evaluation.comparison_models import SPLITS, Model, check_names, open_models
from evaluation.comparison_severity import lesion_loads, severity
from evaluation.comparison_suspects import suspects
from evaluation.comparison_table import URGENT, confusions, make_table, protocol_title, resampled, single_results
from evaluation.comparison_verdict import best_on_validation, verdict
from evaluation.comparison_warnings import warnings
from evaluation.embedding_figures import marks
from evaluation.knn import VoteTemperature
from evaluation.lesion_masks import LesionMasks
from evaluation.localization import METHODS_BY_DEFAULT, SomeScans
from evaluation.map_methods import MethodName
from evaluation.reports import ACCURACY_HEADER, accuracy_cells, majority_row, make_folder, show, table
from evaluation.runs import open_source
from evaluation.scan_data import PHANTOM_NOTICE, DatasetOptions, PhantomOptions, open_data

_URGENT = ("urgent_sensitivity", "urgent_specificity")


@dataclass
class Options:
    """Compare models on the same test scans: one page, numbers as JSON and CSV, figures as PNG and SVG."""

    models: tyro.conf.Positional[tuple[Name, ...]] = ()
    """Runs, exports, checkpoints (RUN/checkpoints/start: the weights before training), files of weights, timm:NAME,
    timm:NAME@FILE or random:NAME; each once."""
    data: Name | None = None
    """OCT2017-style folder, or 'phantom'; unset: the first run's own."""
    masks: Name | None = None
    """Folder of lesion masks (SPLIT/CLASS/NAME.png); unset: masks/ beside the splits, if there is one."""
    lesion_values: MaskValues = ()
    """Values of the lesion in a mask, any of several labels; unset: 255 for phantoms, else all but 0 and
    --retina-values."""
    retina_values: MaskValues = ()
    """Values of the retina outside lesions; unset: 128 for phantoms, else the retina is estimated from the scan."""
    out: NewPath = Path("report")
    """Folder for report.html, results.json, results.csv, figures/ and the cache of finished steps."""
    k: Neighbours = (5, 10)
    """Numbers of neighbours of k-NN."""
    temperature: VoteTemperature = 0.07
    """Of k-NN's votes exp(similarity / temperature)."""
    methods: Annotated[tuple[MethodName, ...], Items(1, distinct=True)] = METHODS_BY_DEFAULT
    """Explanation maps, for the models that can give them. lrp is patented."""
    league: SomeScans = 96
    """Test scans with a lesion on which maps are scored against the masks; 0: no league."""
    cases: Annotated[int, Range(0, 1000)] = 8
    """Scans of the case viewer, in turns: drawn by seed, best, median and worst of the model that validation chose."""
    bootstrap: Resamples = 1000
    """Resamples of patients behind each 95 % interval; 0 gives none."""
    seed: Seed = 0
    """Of the resamples, the maps and the random cases."""
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    phantom: PhantomOptions = field(default_factory=PhantomOptions)


def compare(options: Options, say: Callable[[str], None] = print) -> tuple[dict[str, Any], dict[str, Any], StepCache]:
    """Run, or go on with, the whole comparison, figures included.

    Returns:
        What ``results.json`` holds, what the page needs besides, and the cache that was used.

    Raises:
        InputError: no model, one twice, one class only, k out of range, or as ``load_backbone`` and ``open_data``.
    """
    check_settings(options)
    check_names(options.models)
    folder = make_folder(options.out)
    # ---- data and models -------------------------------------------------------------------------------------------
    first = next((source for source in map(open_source, options.models) if source.run is not None), None)
    data = open_data(first, options.data, options.dataset, options.phantom, say)
    positions = {split: data.labelled(split) for split in SPLITS}
    index = data.index
    for split in ("train", "test"):
        if len(set(index.labels[positions[split]].tolist())) < 2:
            raise InputError(f"{index.root}: {split} scans of one class only; give scans of at least two classes")
    check_k(options.k, len(positions["train"]))
    are_given = bool(options.masks or options.lesion_values or options.retina_values)
    masks = LesionMasks(data, options.masks, options.lesion_values, options.retina_values) if are_given else None
    models = open_models(options.models, data, positions)
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
    reference = best_on_validation({key: one.classifier_validation for key, one in answers.items()})
    say("data audit, suspected label errors")
    warned = warnings(models, shared)
    doubted = _section("suspects", gaps, lambda: suspects(models, answers, shared, scans))
    say("embedding maps")
    embedded = _section("embedding", gaps, lambda: embedding(models, shared))
    ordered = _section("severity", gaps, lambda: severity(models, shared, masks))
    say("explanation maps")
    scored = _section("explanations", gaps, lambda: league(models, shared, options)) if options.league else None
    heads = scored["heads"] if scored else {}
    cases, shown = _cases(models, answers, reference, masks, heads, shared, options, gaps)
    # ---- results ---------------------------------------------------------------------------------------------------
    marked = marks(index.class_names, False)
    wrong = confusions(answers, shared)
    counts = data.describe(**positions)["sets"]
    results: dict[str, Any] = {
        "evaluation": "compare",
        "title": f"{len(models)} model{'' if len(models) == 1 else 's'} on {counts['test']['scans']:,} test scans of "
        f"{counts['test']['patients']:,} patients",
        "command": command(),
        "commands": single_commands(models, options),
        "made": datetime.date.today().isoformat(),
        "notice": PHANTOM_NOTICE if data.is_phantom else None,
        "verdict": verdict(models, answers, values, options.k, options.temperature, shared),
        "warnings": [one._asdict() for one in warned],
        "data": {
            "folder": "phantom" if data.is_phantom and options.data in (None, "phantom") else Path(index.root).name,
            "synthetic": data.is_phantom,
            "sets": counts,
        },
        "classes": [
            {"name": m.name, "colour": m.colour, "shape": m.shape, "urgent": m.name.casefold() in URGENT}
            for m in marked
        ],
        "models": {key: _about(model, answers[key]) for key, model in models.items()},
        "table": make_table(models, answers, values, options.k, shared),
        "confusions": wrong,
        "answers": {
            key: {
                "scans": np.arange(len(one.classifier)),
                "called": one.classifier.argmax(axis=1),
                "probability": one.classifier.max(axis=1),
            }
            for key, one in answers.items()
            if one.classifier is not None
        },
        "suspects": doubted,
        "embedding": embedded and embedded[0],
        "league": scored,
        "severity": ordered,
        "cases": cases,
        "gaps": gaps,
        "versions": versions(),
        "settings": _settings(options, reference, shared),
        "intended_use": INTENDED_USE,
        "evaluations": single_results(models, answers, values, shared),
    }
    results |= {"scans": scans.describe(), "limits": limits(models, shared, results)}
    results["methods"] = paragraphs(models, results, shared, options)
    results["figures"] = write_figures(results, embedded[1] if embedded else {}, marked, folder)
    return results, {"thumbnails": scans.thumbnails(), "cases": shown}, cache


def _section(name: str, gaps: list[str], make: Callable[[], Any]) -> Any:
    """A section of the report, or None and its reason among the gaps."""
    try:
        return make()
    except InputError as reason:
        gaps.append(f"{name}: {reason}")
        return None


def _cases(
    models: dict[str, Model], answers: dict[str, Answers], reference: str | None, masks: LesionMasks | None,
    heads: dict[str, str], shared: Setting, options: Options, gaps: list[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    if reference is None or answers[reference].classifier is None or not options.cases:
        gaps.append("cases: " + ("none were asked for" if reference else "no model has a classifier to choose them by"))
        return [], []
    queries = shared.set_of("test")
    right = answers[reference].classifier[np.arange(len(queries.labels)), queries.labels]
    chosen = choose_cases(right, queries.labels, queries.patients, options.cases, shared.seed, reference)
    try:
        beside = masks or LesionMasks(shared.data)
        _, loads = lesion_loads(shared.data, shared.positions["test"], masks)
    except InputError:
        beside, loads = None, None
    return show_cases(chosen, models, options.methods, heads, shared, beside, loads)


def _about(model: Model, answers: Answers) -> dict[str, Any]:
    return {
        "source": model.source.name,
        "kind": model.kind,
        "architecture": model.architecture,
        "sha256": model.sha256,
        "loaded": model.loaded,
        **answers.facts,
        "gaps": model.gaps,
    }


def _settings(options: Options, reference: str | None, shared: Setting) -> dict[str, Any]:
    return {
        "k": options.k,
        "temperature": options.temperature,
        "methods": options.methods,
        "cases": options.cases,
        "bootstrap": {"unit": "patient", "resamples": options.bootstrap, "seed": options.seed},
        "seed": options.seed,
        "reference_model": reference,
        "dataset": shared.data.describe()["dataset"],
    }


def report(results: dict[str, Any]) -> str:
    """The result as text: the verdict, one table, and the serious warnings."""
    rows = [
        [key, protocol_title(name), *accuracy_cells(metrics)]
        for key, by_protocol in results["evaluations"].items()
        for name, metrics in by_protocol.items()
    ]
    found, test = results["verdict"], results["data"]["sets"]["test"]["classes"]
    always, *cells = majority_row(found["majority"], test)
    urgent = [
        [key, *(show(row[name]) for name in _URGENT)]
        for key, row in results["table"]["rows"].items()
        if all(row.get(name) for name in _URGENT)
    ]
    return "\n".join(
        [
            results["title"] + (f" · {results['notice']}" if results["notice"] else ""),
            "",
            table(["model", "by", *ACCURACY_HEADER], [*rows, [always, "", *cells]]),
            "",
            *([table(["urgent against routine", "sensitivity %", "specificity %"], urgent), ""] if urgent else []),
            *(f"{key}: {one['loaded']}" for key, one in results["models"].items()),
            "",
            found["headline"],
            *found["sentences"],
            *(f"warning: {one['text']}" for one in results["warnings"] if one["serious"]),
            *(f"gap: {text}" for text in results["gaps"]),
        ]
    )


def main(options: Options) -> None:
    """Compare, print, and write the page, numbers and figures."""
    results, media, _ = compare(options)
    written = write_report(results, media, options.out)
    print("\n" + report(results))
    print(f"written: {', '.join(written)} and figures/ in {options.out}")


if __name__ == "__main__":
    run_command(main, Options)
