"""k-NN classification on frozen features, beside the controls it must beat.

    python evaluation/knn.py --k 5 10                      the newest run, on the data it was trained with
    python evaluation/knn.py --model timm:NAME --data DIR  any other backbone

Training scans vote (weighted k-NN, as DINO's protocol) on the scans of patients who were never seen.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from dino_oct.cli import run_command
from dino_oct.data.cache import cache_root
from dino_oct.features import check_size
from dino_oct.knn import check_k, check_temperature, knn_votes
from dino_oct.models.backbone import patch_size
from dino_oct.monitor import MonitorConfig
from evaluation.bootstrap import Interval, PatientBootstrap
from evaluation.classification import METRICS, confusion, score_all
from evaluation.feature_cache import FeatureCache, of_network, of_pixels
from evaluation.reports import heading, make_folder, show, table, write_json
from evaluation.runs import (
    EvaluationOptions,
    Frozen,
    Source,
    default_device,
    load_frozen,
    open_source,
    random_weights,
    starting_weights,
)
from evaluation.scan_data import ScanData, open_data

Setting = TypeVar("Setting", int, str)
MODEL, START, RANDOM, PIXELS = "model", "starting weights", "random weights", "raw pixels"


@dataclass
class Options(EvaluationOptions):
    """k-NN classification on frozen features, with patient-bootstrap intervals, beside controls."""

    k: tuple[int, ...] = (5, 10)
    """Numbers of neighbours."""
    split: Literal["test", "val"] = "test"
    """Scans to classify; the training split votes."""
    temperature: float = 0.07
    """Of the votes exp(similarity / temperature)."""
    exclude_same_patient: bool = False
    """Leave scans of the classified scan's own patient out of the vote (for splits that share patients)."""
    image_size: tuple[int, int] | None = None
    """Rows and columns that scans are squashed to; unset: the run's monitor.image_size, or the model's own size."""

    def __post_init__(self):
        super().__post_init__()
        check_temperature(self.temperature)


@dataclass(frozen=True)
class ScanSet:
    """Classes (N,) and patients (N,) of some scans."""

    labels: np.ndarray
    patients: np.ndarray


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
) -> dict[str, Any]:
    """k-NN of several feature sets on the same scans.

    Args:
        features: row name → features of the reference scans (N, D) and of the queries (M, D). Differences are those of
            the first row to each other row, on the same resamples of patients.

    Returns:
        ``rows[name][k]``: an ``Interval`` in per cent for each of ``METRICS``, recall by class and the confusion
        matrix (true class by row); ``differences["a − b"][k]``: an ``Interval`` in points for each metric; ``notes``.

    Raises:
        InputError: k out of range, a temperature not above 0, or no query.
    """
    patients = (reference.patients, queries.patients) if exclude_same_patient else None
    votes = {
        name: knn_votes(train, reference.labels, test, ks, len(class_names), temperature, patients)
        for name, (train, test) in features.items()
    }
    return compare_scores(votes, reference, queries, class_names, bootstrap=bootstrap, seed=seed)


def compare_scores(
    scores: dict[str, dict[Setting, np.ndarray]],
    reference: ScanSet,
    queries: ScanSet,
    class_names: tuple[str, ...],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of several classifiers on the same scans, with paired differences of the first to each other one.

    Args:
        scores: row name → setting (k, say; the same ones in every row) → class scores (M, C) of the queries.

    Returns:
        As ``compare_features``.

    Raises:
        InputError: no query.
    """
    resampled = PatientBootstrap(queries.patients, bootstrap, seed)
    n_classes, alone = len(class_names), _classes_of_one_patient(queries, class_names)
    rows: dict[str, dict[Setting, Any]] = {}
    values: dict[str, dict[Setting, np.ndarray]] = {}
    for name, votes in scores.items():
        values[name] = {
            k: resampled.values(partial(score_all, labels=queries.labels, scores=found)) for k, found in votes.items()
        }
        rows[name] = {}
        for k, found in votes.items():
            counts = confusion(queries.labels, found.argmax(axis=1), n_classes)
            present = counts.sum(axis=1) > 0
            recall = np.where(present, 100 * counts.diagonal() / np.maximum(counts.sum(axis=1), 1), np.nan)
            rows[name][k] = {
                **_intervals(resampled, values[name][k], alone),
                "recall": dict(zip(class_names, recall.tolist(), strict=True)),
                "confusion": counts,
            }
    first, *others = scores
    differences = {
        f"{first} − {other}": {
            k: _intervals(resampled, of_first - values[other][k], alone) for k, of_first in values[first].items()
        }
        for other in others
    }
    return {
        "rows": rows,
        "differences": differences,
        "notes": resampled.notes() + _class_notes(reference, queries, class_names),
    }


def _intervals(bootstrap: PatientBootstrap, values: np.ndarray, alone: list[str]) -> dict[str, Interval]:
    """The metrics of one row; those that are means over classes have no interval where a class is one patient."""
    intervals = {metric: bootstrap.interval(values[:, i]) for i, metric in enumerate(METRICS)}
    if alone:
        intervals |= {metric: Interval(intervals[metric].point) for metric in METRICS[1:]}
    return intervals


def _classes_of_one_patient(queries: ScanSet, class_names: tuple[str, ...]) -> list[str]:
    counts = [len(set(queries.patients[queries.labels == c].tolist())) for c in range(len(class_names))]
    return [name for name, count in zip(class_names, counts, strict=True) if count == 1]


def _class_notes(reference: ScanSet, queries: ScanSet, class_names: tuple[str, ...]) -> list[str]:
    notes = []
    absent = [name for c, name in enumerate(class_names) if not (queries.labels == c).any()]
    if absent:
        notes.append(
            f"no scan to classify of {', '.join(absent)}: balanced accuracy and AUROC are over the other classes"
        )
    if alone := _classes_of_one_patient(queries, class_names):
        notes.append(f"one patient only of {', '.join(alone)}: no intervals for balanced accuracy and AUROC")
    unknown = [name for c, name in enumerate(class_names) if not (reference.labels == c).any()]
    if unknown:
        notes.append(f"no training scan of {', '.join(unknown)}: such scans cannot be classified right")
    if len(set(queries.labels.tolist())) < 2:
        notes.append("AUROC is undefined: all scans to classify are of one class")
    return notes


def verdict(difference: Interval, other: str, setting: str | int) -> str:
    """What an accuracy difference of the model to ``other`` (points) lets one say, in one sentence.

    Args:
        setting: what the sentence begins with; a number is a k.
    """
    label = f"k={setting}" if isinstance(setting, int) else setting
    if difference.low is None or difference.high is None:
        return f"{label}: without an interval, nothing is shown about the model against {other}."
    interval = f"(95 % interval {difference.low:+.1f} to {difference.high:+.1f})"
    if difference.is_above(0):
        return f"{label}: the model is {difference.point:.1f} points of accuracy above {other} {interval}."
    if difference.is_below(0):
        return f"{label}: the model is WORSE than {other}, by {-difference.point:.1f} points of accuracy {interval}."
    return (
        f"{label}: the model does NOT beat {other}: the difference is {difference.point:+.1f} points of accuracy, "
        f"and its interval includes 0 {interval}."
    )


def evaluate(source: Source, options: Options) -> dict[str, Any]:
    """Run the whole evaluation; returns what the JSON file holds (intervals as ``Interval``).

    Raises:
        InputError: no run, no labels, k out of range, an image size that does not fit, or as ``load_backbone``.
    """
    data = open_data(source.config, options.data, options.dataset, options.phantom, print)
    reference, queries = data.labelled("train"), data.labelled(options.split)
    check_k(options.k, len(reference))
    device = default_device()
    model = load_frozen(source.name, device, heads=options.heads)
    size = choose_size(options.image_size, source, model)
    check_size(size, model.backbone, "image-size")
    networks, notes = with_controls(source, model, options.seed, device)
    extractions = {name: of_network(network, device, batch_size(source)) for name, network in networks.items()}
    extractions[PIXELS] = of_pixels()
    cache, index = FeatureCache(cache_root(data.dataset)), data.index
    votes, features = (cache.get(data.scans, positions, size, extractions) for positions in (reference, queries))
    compared = compare_features(
        {name: (votes[name], rows) for name, rows in features.items()},
        ScanSet(index.labels[reference], index.patients[reference]),
        ScanSet(index.labels[queries], index.patients[queries]),
        index.class_names,
        options.k,
        temperature=options.temperature,
        exclude_same_patient=options.exclude_same_patient,
        bootstrap=options.bootstrap,
        seed=options.seed,
    )
    others = [name for name in (PIXELS, START) if name in features]
    return {
        "evaluation": "knn",
        "model": {"source": source.name, "run": source.run, "chosen": source.chosen},
        "weights": {name: network.weights for name, network in networks.items()},
        "data": {**data.describe(reference=reference, queries=queries), "reference": "train", "queries": options.split},
        "settings": {
            "k": options.k,
            "temperature": options.temperature,
            "exclude_same_patient": options.exclude_same_patient,
            "image_size": size,
            "bootstrap": {"unit": "patient", "resamples": options.bootstrap, "seed": options.seed},
        },
        "units": "per cent; differences in points; each number with its 95 % patient-bootstrap interval",
        "rows": compared["rows"],
        "differences": compared["differences"],
        "verdicts": [
            verdict(compared["differences"][f"{MODEL} − {other}"][k]["accuracy"], other, k)
            for other in others
            for k in options.k
        ],
        "notes": _patient_notes(data, reference, queries, options) + compared["notes"] + notes,
    }


def with_controls(
    source: Source, model: Frozen, seed: int, device: torch.device
) -> tuple[dict[str, Frozen], list[str]]:
    """The model and the networks it is compared with, by row name, and why some are not there."""
    found = {START: starting_weights(source, device), RANDOM: random_weights(source, model, seed, device)}
    networks = {MODEL: model, **{name: item for name, item in found.items() if isinstance(item, Frozen)}}
    return networks, [item for item in found.values() if isinstance(item, str)]


def batch_size(source: Source) -> int:
    """Images at a time: the run's monitor.batch_size, or its default."""
    return (source.config.monitor if source.config else MonitorConfig()).batch_size


def choose_size(given: tuple[int, int] | None, source: Source, model: Frozen) -> tuple[int, int]:
    """Rows and columns of images: as given, else the run's monitor.image_size, else the model's own size."""
    if given:
        return given
    if source.config:
        return source.config.monitor.image_size
    patch = patch_size(model.backbone)
    rows, columns = model.backbone.pretrained_cfg.get("input_size", (3, 224, 224))[-2:]
    return max(rows // patch, 1) * patch, max(columns // patch, 1) * patch


def _patient_notes(data: ScanData, reference: np.ndarray, queries: np.ndarray, options: Options) -> list[str]:
    """Whether the classified patients are new: to the vote, and to pretraining."""
    notes = []
    patients = set(data.index.patients[queries].tolist())
    voting = len(patients & set(data.index.patients[reference].tolist()))
    if voting and not options.exclude_same_patient:
        notes.append(
            f"{voting} of {len(patients)} classified patients also have training scans, which flatters every row; use "
            "--dataset.split patient or --exclude-same-patient True"
        )
    seen = data.seen_among(queries)
    if seen:
        notes.append(
            f"{seen} of {len(patients)} classified patients were seen in pretraining: not a test on new patients"
        )
    return notes


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
        for name, by_k in result["rows"].items():
            rows.append([str(k), name, *(show(by_k[k][metric]) for metric in METRICS)])
        for name, by_k in result["differences"].items():
            rows.append([str(k), name, *(show(by_k[k][metric], signed=True) for metric in METRICS)])
    header = ["k", "", "accuracy %", "balanced accuracy %", "macro AUROC %"]
    lines += [
        table(header, rows),
        f"[95 % interval, {result['settings']['bootstrap']['resamples']} resamples of patients]",
    ]
    return "\n".join([*lines, "", *result["verdicts"], *(f"note: {note}" for note in result["notes"])])


def main(options: Options) -> None:
    """Evaluate, print, and write ``knn_SPLIT.json``."""
    source = open_source(options.model)
    result = evaluate(source, options)
    print(report(result))
    file = make_folder(source.results_folder("knn", options.out)) / f"knn_{options.split}.json"
    write_json(result, file)
    print(f"written: {file}")


if __name__ == "__main__":
    run_command(main, Options)
