"""k-NN classification on frozen features, beside the controls it must beat."""

from typing import Any

import numpy as np

from dino_oct.knn import check_k, knn_votes
from dino_oct.limits import check_settings
from dino_oct.scan_data import ScanData
from dino_oct.scores.class_summary import never_recognised
from dino_oct.scores.paired import MODEL, PIXELS, START, Compared, ScanSet, compare_scores, verdict
from dino_oct.scores.text import (
    ACCURACY_HEADER,
    accuracy_cells,
    closing,
    difference_cells,
    heading,
    majority_row,
    recall_table,
    table,
    write_json,
)
from evaluation.config import KnnOptions
from evaluation.inputs.features import extract_features
from evaluation.inputs.model import open_model
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import Source, open_sources
from evaluation.protocols.results import folders, of_bootstrap, of_source, shared_patients


def compare_features(
    features: dict[str, tuple[np.ndarray, np.ndarray]],
    reference: ScanSet,
    queries: ScanSet,
    class_names: tuple[str, ...],
    ks: tuple[int, ...],
    *,
    temperature: float = 0.07,
    exclude_same_patient: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Compared[int]:
    """k-NN of several feature sets on the same scans.

    Args:
        features: row name → features of the reference scans (N, D) and of the queries (M, D).

    Returns:
        As ``compare_scores``, by k.

    Raises:
        InputError: k out of range, a temperature not above 0, or no query.
    """
    patients = (reference.patients, queries.patients) if exclude_same_patient else None
    votes = {
        name: knn_votes(train, reference.labels, test, ks, len(class_names), temperature, patients)
        for name, (train, test) in features.items()
    }
    return compare_scores(votes, reference, queries, class_names, bootstrap=bootstrap, seed=seed)


def evaluate(source: Source, options: KnnOptions) -> dict[str, Any]:
    """Run the whole evaluation; returns what the JSON file holds (intervals as ``Interval``).

    Raises:
        InputError: no run, no labels, k out of range, an image size that does not fit, or as ``load_backbone``.
    """
    check_settings(options)
    data = open_data(source, options.data, options.dataset, options.phantom, print)
    reference, queries = data.labelled("train"), data.labelled(options.split)
    check_k(options.k, len(reference))
    model = open_model(source, MODEL, image_size=options.image_size, heads=options.heads)
    extracted = extract_features(model, options, data, {"reference": reference, "queries": queries})
    index, votes = data.index, extracted.by_set["reference"]
    compared = compare_features(
        {name: (votes[name], rows) for name, rows in extracted.by_set["queries"].items()},
        ScanSet(index.labels[reference], index.patients[reference]),
        ScanSet(index.labels[queries], index.patients[queries]),
        index.class_names,
        options.k,
        temperature=options.temperature,
        exclude_same_patient=options.exclude_same_patient,
        bootstrap=options.bootstrap,
        seed=options.seed,
    )
    others = [name for name in (PIXELS, START) if name in votes]
    return {
        "evaluation": "knn",
        "model": of_source(source),
        "weights": extracted.weights,
        "data": {
            **data.summary(reference=reference, queries=queries),
            "reference": "train",
            "queries": options.split,
            "shortcut": data.shortcuts(np.concatenate([reference, queries])),
        },
        "settings": {
            "k": options.k,
            "temperature": options.temperature,
            "exclude_same_patient": options.exclude_same_patient,
            **extracted.settings,
            "bootstrap": of_bootstrap(options),
        },
        "units": "per cent; differences in points; each number with its 95 % interval by patient, "
        "or the reason why it has none",
        "rows": compared.rows,
        "differences": compared.differences,
        "majority": compared.majority,
        "verdicts": [
            *(
                verdict(compared.differences[f"{MODEL} − {other}"][k].accuracy, other, k)
                for other in others
                for k in options.k
            ),
            *never_recognised(
                (f"{name}, k={k}", row.never_recognised)
                for name, by_k in compared.rows.items()
                for k, row in by_k.items()
            ),
        ],
        "notes": _patient_notes(data, reference, queries, options) + compared.notes + extracted.notes,
    }


def _patient_notes(data: ScanData, reference: np.ndarray, queries: np.ndarray, options: KnnOptions) -> list[str]:
    """Whether the classified patients are new: to the vote, and to pretraining."""
    notes = data.training_notes(queries)
    if options.exclude_same_patient:
        return notes
    tested, voting = (set(data.index.patients[positions].tolist()) for positions in (queries, reference))
    way_out = "use --dataset.split patient or --exclude-same-patient True"
    return notes + shared_patients(tested, voting, way_out)


def report(result: dict[str, Any]) -> str:
    """The result as text: what was used, one table, and what it lets one say."""
    sets = result["data"]["sets"]
    lines = [
        *heading("k-NN", result),
        f"data: {result['data']['folder']} · votes: {sets['reference']['scans']} train scans of "
        f"{sets['reference']['patients']} patients · classified: {sets['queries']['scans']} "
        f"{result['data']['queries']} scans of {sets['queries']['patients']} patients ("
        + ", ".join(f"{name} {count['scans']}" for name, count in sets["queries"]["classes"].items())
        + ")",
        "",
    ]
    rows = []
    for k in result["settings"]["k"]:
        rows += [[str(k), name, *accuracy_cells(by_k[k])] for name, by_k in result["rows"].items()]
        rows += [[str(k), name, *difference_cells(by_k[k])] for name, by_k in result["differences"].items()]
    rows.append(["", *majority_row(result["majority"], sets["queries"]["classes"])])
    lines += [
        table(["k", "", *ACCURACY_HEADER], rows),
        "",
        recall_table(
            {f"k={k}, {name}": by_k[k] for k in result["settings"]["k"][:1] for name, by_k in result["rows"].items()},
            {name: count["scans"] for name, count in sets["queries"]["classes"].items()},
        ),
        f"[95 % interval, {result['settings']['bootstrap']['resamples']} resamples of patients]",
    ]
    return "\n".join([*lines, *closing(result)])


def run(options: KnnOptions) -> None:
    """Evaluate each model, print, and write ``knn_SPLIT.json``."""
    sources = open_sources(options.sources)
    for source, folder in zip(sources, folders(sources, "knn", options.out), strict=True):
        result = evaluate(source, options)
        file = folder / f"knn_{options.split}.json"
        write_json(result, file)
        print(report(result))
        print(f"written: {file}")
