"""k-NN classification on frozen features, beside the controls it must beat."""

from dataclasses import dataclass

import numpy as np

from dino_oct.knn import check_k, knn_votes
from dino_oct.limits import check_settings
from dino_oct.scores.paired import MODEL, Metrics, ResultByClass, ScanSet, compare_scores
from dino_oct.scores.text import accuracy_cells, closing, difference_cells, heading, unit_lines, write_json, written
from dino_oct.scores.units import compare_units
from dino_oct.words import scans_of
from evaluation.config import KnnOptions
from evaluation.inputs.features import extract_features
from evaluation.inputs.model import open_model
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import Source
from evaluation.protocols.labels import LabelVotes, vote_labels, votes_text
from evaluation.protocols.results import (
    Classification,
    of_source,
    shared_with_validation,
    tables,
    verdicts,
    why_mean,
    with_folders,
)


@dataclass(frozen=True, kw_only=True)
class Knn(Classification):
    """What ``knn_SPLIT.json`` holds: row → k → result, and the model's difference to each other row."""

    evaluation: str = "knn"
    rows: dict[str, dict[int, ResultByClass]]
    differences: dict[str, dict[int, Metrics]]


def vote(
    features: dict[str, tuple[np.ndarray, np.ndarray]],
    reference: ScanSet,
    queries: ScanSet,
    n_classes: int,
    options: KnnOptions,
) -> dict[str, dict[int, np.ndarray]]:
    """k-NN of several feature sets on the same scans.

    Args:
        features: row name → features of the reference scans (N, D) and of the queries (M, D).

    Returns:
        Row name → k → votes (M, n_classes).

    Raises:
        InputError: k out of range, or a temperature not above 0.
    """
    patients = (reference.patients, queries.patients) if options.exclude_same_patient else None
    return {
        name: knn_votes(train, reference.labels, test, options.k, n_classes, options.temperature, patients)
        for name, (train, test) in features.items()
    }


def evaluate(source: Source, options: KnnOptions) -> Knn | LabelVotes:
    """Run the whole evaluation, of several labels where a scan may have them.

    Raises:
        InputError: no run, no labels, k out of range, an image size that does not fit, or as ``load_backbone``.
    """
    check_settings(options)
    data = open_data(source, options)
    if data.index.multilabels:
        return vote_labels(source, options, data)
    index, names = data.index, data.index.class_names
    positions = {"reference": data.labelled("train"), "queries": data.labelled(options.split)}
    groupings = data.groupings(options.split)
    val = {"val": data.labelled("val")} if any("val" in of_unit for of_unit in groupings.values()) else {}
    sets = {name: ScanSet(index.labels[p], index.patients[p]) for name, p in (positions | val).items()}
    reference, queries = sets["reference"], sets["queries"]
    check_k(options.k, len(reference.labels))
    model = open_model(source, MODEL, image_size=options.image_size, heads=options.heads)
    extracted = extract_features(model, options, data, positions | val)
    features = extracted.by_set
    votes = {
        name: vote(
            {row: (features["reference"][row], of_row) for row, of_row in features[name].items()},
            reference, sets[name], len(names), options,
        )
        for name in ("queries", *val)
    }  # fmt: skip
    resampling = {"bootstrap": options.bootstrap, "seed": options.seed}
    compared = compare_scores(votes["queries"], reference, queries, names, **resampling)
    by_set = {
        row: {k: {name: of_set[row][k] for name, of_set in votes.items()} for k in by_k}
        for row, by_k in votes["queries"].items()
    }
    by_unit = compare_units(by_set, groupings, reference, names, why_mean=why_mean(options.split), **resampling)
    notes = data.training_notes(positions["queries"])
    notes += data.leak_notes(positions["queries"], options.split, with_patients=not options.exclude_same_patient)
    if val:
        notes += shared_with_validation(queries, sets["val"])
    return Knn(
        model=of_source(source),
        weights=extracted.weights,
        data={
            **data.summary(**positions, **val),
            "reference": "train",
            "queries": options.split,
            "shortcut": data.shortcuts(np.concatenate(list(positions.values()))),
        },
        settings={
            "k": options.k,
            "temperature": options.temperature,
            "exclude_same_patient": options.exclude_same_patient,
            **extracted.settings,
            "bootstrap": options.intervals,
        },
        rows=compared.rows,
        differences=compared.differences,
        by_unit=by_unit,
        majority=compared.majority,
        verdicts=verdicts(compared, lambda name, k: f"{name}, k={k}"),
        notes=notes + compared.notes + extracted.notes,
    )


def report(result: Knn) -> str:
    """The result as text: what was used, one table, and what it lets one say."""
    sets, ks = result.data["sets"], result.settings["k"]
    classes = ", ".join(f"{name} {count['scans']}" for name, count in sets["queries"]["classes"].items())
    lines = [
        *heading("k-NN", result),
        f"data: {result.data['folder']} · votes: "
        f"{scans_of(sets['reference'], 'train')} · classified: "
        f"{scans_of(sets['queries'], result.data['queries'])} ({classes})",
        "",
    ]
    rows = []
    for k in ks:
        rows += [[str(k), name, *accuracy_cells(by_k[k])] for name, by_k in result.rows.items()]
        rows += [[str(k), name, *difference_cells(by_k[k])] for name, by_k in result.differences.items()]
    recalls = {f"k={ks[0]}, {name}": by_k[ks[0]] for name, by_k in result.rows.items()}
    lines += tables(result, ["k", ""], rows, recalls)
    lines += unit_lines(result.by_unit, result.settings["bootstrap"]["resamples"], result.notes, "k")
    return "\n".join([*lines, *closing(result, result.verdicts)])


def run(options: KnnOptions) -> None:
    """Evaluate each model, print, and write ``knn_SPLIT.json``."""
    for source, folder in with_folders("knn", options):
        result = evaluate(source, options)
        file = folder / f"knn_{options.split}.json"
        write_json(result, file)
        print(votes_text(result) if isinstance(result, LabelVotes) else report(result))
        print(written(file))
