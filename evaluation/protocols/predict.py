"""Predictions for new scans, and what is to be known about each."""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from dino_oct.data.index import UNLABELLED, DatasetConfig, ScanIndex
from dino_oct.data.index import Reading as OfFolder
from dino_oct.data.phantom import PhantomConfig
from dino_oct.errors import InputError
from dino_oct.files import private_folder, replacing, write_whole
from dino_oct.precision import warn_of_slow_bf16
from dino_oct.provenance import trained_on, trained_patients
from dino_oct.scores.calibration import prediction_sets
from dino_oct.scores.class_summary import never_recognised
from dino_oct.scores.paired import ResultByClass, ScanSet, compare_scores
from dino_oct.scores.text import ACCURACY_HEADER, PHANTOM_NOTICE, accuracy_cells, show, table, write_json, written
from dino_oct.scores.units import keys_of
from dino_oct.words import counted, scans_of
from evaluation.config import ClassTargetOptions, PhantomOptions, PredictOptions
from evaluation.inputs import fitted as kept
from evaluation.inputs.fitted import Fitted
from evaluation.inputs.model import Model, as_classifier, open_model
from evaluation.inputs.scans import SHOWN_FACTS, changed, find_given, known_of, open_data
from evaluation.inputs.scans import reading as reading_of_folder
from evaluation.inputs.selection import grey_range_of
from evaluation.inputs.sources import Source, open_source
from evaluation.inputs.stream import Arrays, Reading, answers, prepared
from evaluation.maps.methods import METHODS, MapSettings, make_maps, usable
from evaluation.pages.prediction_page import Card, map_picture, page, scan_picture

UNLIKE = 0.99  # share of the validation scans that are nearer to the training scans
_NONE = "none"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Every scan that could be read, in the order of the index.

    Attributes:
        index: of what was given. positions: (N,) of the scans in it. flags: of each.
        probabilities: (N, C) calibrated; sets: (N, C) bool.
        similarity, similar: (N, k) of the most similar training scans, and their positions in ``fitted``.
        share_nearer: (N,) share of the validation scans that are nearer to the training scans.
        digests: of the files. left_out: (file, reason) of the others.
    """

    fitted: Fitted
    index: ScanIndex
    positions: np.ndarray
    flags: list[tuple[str, ...]]
    probabilities: np.ndarray
    sets: np.ndarray
    similarity: np.ndarray
    similar: np.ndarray
    share_nearer: np.ndarray
    digests: np.ndarray
    left_out: list[tuple[str, str]]

    @property
    def classes(self) -> np.ndarray:
        """Name of the most probable class of each scan."""
        return np.array(self.fitted.class_names)[self.probabilities.argmax(axis=1)]

    @property
    def is_unlike(self) -> np.ndarray:
        """(N,) bool: farther from all training scans than ``UNLIKE`` of the validation scans."""
        return self.share_nearer >= UNLIKE

    def labels(self) -> np.ndarray | None:
        """Position of each scan's class in ``fitted.class_names``, ``UNLABELLED`` where it has none of them; None where
        no scan has one."""
        names = {name: i for i, name in enumerate(self.fitted.class_names)}
        of_index = np.array([names.get(name, UNLABELLED) for name in self.index.class_names] + [UNLABELLED])
        labels = of_index[self.index.labels[self.positions]]
        return labels if (labels != UNLABELLED).any() else None


def predict(
    model: Model,
    fitted: Fitted,
    reading: Reading | Arrays,
    coverage: float,
    batch_size: int = 32,
    bf16: bool = False,
) -> Predictions:
    """Predictions for all scans of an index; memory grows with their features, not with their pixels.

    Args:
        model: with the classifier that was fitted.
        coverage: see ``conformal_limit``.

    Raises:
        InputError: no file is a scan.
    """
    if bf16:
        warn_of_slow_bf16(model.device)
    # Into arrays of all scans: small results kept between large ones of a network would leave memory in pieces.
    n, left_out = len(reading.index), list(reading.index.left_out)
    digests, flags, is_read = np.full(n, b"", "S32"), [()] * n, np.zeros(n, dtype=bool)
    outputs: list[np.ndarray] = []
    for batch in prepared(reading, batch_size):
        left_out += [(reading.index.files[item.position], item.reason) for item in batch if item.image is None]
        batch = [item for item in batch if item.image is not None]
        if not batch:
            continue
        answered = answers(model, torch.stack([item.image for item in batch]), bf16)  # logits, features
        outputs = outputs or [np.empty((n, *values.shape[1:]), values.dtype) for values in answered]
        at = [item.position for item in batch]
        for of_all, values in zip(outputs, answered, strict=True):
            of_all[at] = values
        digests[at], is_read[at] = [item.digest for item in batch], True
        for item in batch:
            flags[item.position] = tuple(map(sys.intern, item.flags))
    if not outputs:
        raise InputError(f"{reading.index.root}: no file is a scan: {left_out[0][0]}: {left_out[0][1]}")
    positions = np.flatnonzero(is_read)
    logits, features = (values[positions] for values in outputs)
    similarity, similar = fitted.similar(features)
    probabilities = fitted.probabilities(logits)
    return Predictions(
        fitted=fitted,
        index=reading.index,
        positions=positions,
        flags=[flags[i] for i in positions],
        probabilities=probabilities,
        sets=prediction_sets(probabilities, fitted.limit(coverage)),
        similarity=similarity,
        similar=similar,
        share_nearer=fitted.share_nearer(similarity),
        digests=digests[positions],
        left_out=left_out,
    )


# ---- tables ----------------------------------------------------------------------------------------------------------


def table_of_scans(found: Predictions) -> pd.DataFrame:
    """A row a scan: file, what is known of it, class, probabilities, set, how unlike, similar scans, flags."""
    fitted, index, rows = found.fitted, found.index, found.positions
    columns: dict[str, Any] = known_of(index, rows)
    if found.labels() is not None:
        named = np.array([*index.class_names, ""])
        columns["label"] = named[index.labels[rows]]
    columns |= _class_columns(found.classes, found.probabilities, fitted.class_names)
    columns["set"] = set_names(found.sets, fitted.class_names)
    columns |= {"unlike": found.is_unlike, "nearer": found.share_nearer.round(4)}
    for n in range(found.similar.shape[1]):
        columns[f"similar_{n + 1}"] = [fitted.files[i] for i in found.similar[:, n]]
    classes = np.array(fitted.class_names)[fitted.labels[found.similar]]
    columns["similar_classes"] = [" ".join(row) for row in classes.tolist()]
    columns["flags"] = ["; ".join(flags) for flags in found.flags]
    return pd.DataFrame(columns)


def _class_columns(classes: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {"class": classes} | {f"p_{name}": probabilities[:, c].round(5) for c, name in enumerate(names)}


def set_names(sets: np.ndarray, names: Sequence[str]) -> list[str]:
    """The classes of each set (N, C), separated by blanks."""
    return [" ".join(name for name, inside in zip(names, row, strict=True) if inside) or _NONE for row in sets.tolist()]


def tables_of_units(found: Predictions) -> Iterator[tuple[str, pd.DataFrame]]:
    """A row an eye and a patient, where these are known: mean probabilities of their scans."""
    index, rows, names = found.index, found.positions, found.fitted.class_names
    facts = {name: index.fact(name)[rows] for name in ("eye", "visit", "volume")}
    keys = keys_of(index.patients[rows], [index.files[i] for i in rows], facts)
    for unit in ("eye", "patient"):
        known = np.flatnonzero(keys[unit] != "")
        if not len(known):
            continue
        _, first, of_scan = np.unique(keys[unit][known], return_index=True, return_inverse=True)
        counts = np.bincount(of_scan)
        means = np.stack([np.bincount(of_scan, p) / counts for p in found.probabilities[known].T], axis=1)
        columns: dict[str, Any] = {"patient": index.patients[rows][known][first]}
        if unit == "eye":
            columns["eye"] = facts["eye"][known][first]
        columns |= _class_columns(np.array(names)[means.argmax(axis=1)], means, names)
        columns["scans"] = counts
        for c, name in enumerate(names):
            columns[f"scans_{name}"] = np.bincount(of_scan, found.probabilities[known].argmax(axis=1) == c).astype(int)
        columns["unlike"] = np.bincount(of_scan, found.is_unlike[known]).astype(int)
        yield unit, pd.DataFrame(columns)


def write_table(frame: pd.DataFrame, folder: Path, name: str, form: str) -> Path:
    """Write a table, whole or not at all."""
    path = folder / f"{name}.{form}"
    with replacing(path) as file:
        frame.to_csv(file, index=False) if form == "csv" else frame.to_parquet(file, index=False)
    return path


# ---- page ------------------------------------------------------------------------------------------------------------


def most_wanted(found: Predictions, n: int) -> np.ndarray:
    """Positions (≤ n,) among the predictions of those that a person should look at first: unlike anything seen, then
    without a single class, then of low probability."""
    order = np.lexsort((found.probabilities.max(axis=1), found.sets.sum(axis=1) == 1, ~found.is_unlike))
    return order[:n]


def cards(found: Predictions, reading: Reading, model: Model, method: str | None, n: int) -> list[Card]:
    """The scans of the page, each read anew, with the map of its most probable class."""
    table, names, made = table_of_scans(found), found.fitted.class_names, []
    settings = MapSettings(model.source.attention_size)
    for i in tqdm(most_wanted(found, n).tolist(), desc="page", unit="scan", disable=None, leave=False):
        scan, _ = reading.scan(int(found.positions[i]))
        overlay = ""
        if method:
            target = int(found.probabilities[i].argmax())
            overlay = map_picture(make_maps(model, method, [scan], [target], settings)[0].mean(axis=0))
        row = table.iloc[i]
        known = [f"{name} {row[name]}" for name in ("patient", *SHOWN_FACTS) if name in table and str(row[name])]
        similar = [(names[found.fitted.labels[j]], found.fitted.files[j]) for j in found.similar[i].tolist()]
        made.append(
            Card(
                file=str(row["file"]),
                place=", ".join(known),
                label=str(row.get("label", "")),
                called=str(row["class"]),
                probabilities={name: 100 * float(p) for name, p in zip(names, found.probabilities[i], strict=True)},
                inside=tuple(name for name, inside in zip(names, found.sets[i].tolist(), strict=True) if inside),
                is_unlike=bool(found.is_unlike[i]),
                nearer=100 * float(found.share_nearer[i]),
                similar=tuple(similar),
                flags=found.flags[i],
                image=scan_picture(scan),
                overlay=overlay,
                ratio=scan.shape[1] / scan.shape[0],
            )
        )
    return made


def write_page(
    found: Predictions, reading: Reading, model: Model, options: PredictOptions, notes: Sequence[str]
) -> Path:
    """Write ``predictions.html``.

    Raises:
        InputError: a map that this network cannot have.
    """
    method = options.method
    if method:
        METHODS[method].check(model)
    else:
        method = next(iter(usable(model, ["attention", "gradcam"])[0]), None)
    shown, n = cards(found, reading, model, method, options.page), len(found.positions)
    some = "All scans are shown" if len(shown) == n else f"{len(shown):,} of {n:,} scans are shown"
    of_class = " of the most probable class" if method and METHODS[method].of_class else ""
    html = page(
        f"{n:,} scan{'s' * (n > 1)}, read by {model.name}",
        PHANTOM_NOTICE if is_phantom(found) else "",
        [f"Classifier: {_in_words(model, found.fitted)}.", *report(found, None, options.coverage, [])],
        notes,
        shown,
        f"{some}: unlike anything seen first, then uncertain ones.",
        f"The map over a scan is {method}{of_class}." if method else "",
    )
    file = Path(options.out) / "predictions.html"
    write_whole(file, html.encode(errors="backslashreplace"))
    file.chmod(0o600)
    return file


# ---- judged where labels are known -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """The predictions of labelled scans: as a classifier, and how often the set holds the class, per cent."""

    scans: int
    patients: int
    result: ResultByClass
    covered: float
    notes: list[str]


def judge(found: Predictions, bootstrap: int, seed: int) -> Judged | None:
    """Metrics of the scans whose class is known and one of the model's; None where there are none."""
    labels = found.labels()
    if labels is None:
        return None
    known = labels != UNLABELLED
    scans = ScanSet(labels[known], found.index.patients[found.positions][known])
    names = found.fitted.class_names
    reference = ScanSet(found.fitted.labels, np.full(len(found.fitted.labels), ""))
    compared = compare_scores(
        {"model": {"": found.probabilities[known]}}, reference, scans, names, bootstrap=bootstrap, seed=seed
    )
    covered = found.sets[known][np.arange(known.sum()), scans.labels]
    _, of_patient = np.unique(scans.patients, return_inverse=True)
    by_patient = np.bincount(of_patient, covered) / np.bincount(of_patient)
    return Judged(
        int(known.sum()),
        len(by_patient),
        compared.rows["model"][""],
        100 * float(by_patient.mean()),
        compared.notes,
    )


# ---- the command -----------------------------------------------------------------------------------------------------


def ready(source: Source, options: PredictOptions, keep: bool = True) -> tuple[Model, Fitted, str]:
    """A model with its kept classifier; fitted, calibrated and kept where there is none, or it is of other weights.

    Args:
        keep: what is fitted.

    Returns:
        The model, what is kept, and in words where it comes from.

    Raises:
        InputError: no labelled scans to fit to, or as ``open_model``.
    """
    folder = source.run / "export" if source.is_final and options.data is None else Path(options.out) / "classifier"
    model = open_model(source, with_classifier=options.classifier != "probe")
    if kept.exists(folder) and not options.refit and options.data is None:
        stored = kept.read(folder)
        if stored.weights == model.weights.sha256 and options.classifier in (None, stored.head):
            return kept.attach(model, stored), stored, f"kept in {folder}"
    if options.data is None:  # how the scans to be predicted are read, or drawn, is not how the run's were
        plain = dataclasses.replace(options.dataset, **vars(OfFolder()))
        options = dataclasses.replace(options, dataset=plain, phantom=PhantomOptions())
    data = open_data(source, options)
    model = as_classifier(model, ClassTargetOptions(classifier=options.classifier, data=options.data), data)
    fitted = kept.fit(model, data, options.seed)
    if keep:
        kept.save(fitted, folder)
    return model, fitted, f"fitted now, kept in {folder}"


def run(options: PredictOptions) -> None:
    """Predict, print, and write tables, JSON and page."""
    source = open_source(options.model)
    model, fitted, origin = ready(source, options)
    print(f"classifier: {_in_words(model, fitted)}; {origin}")
    of_folder = reading_of_folder(options.dataset, options.scans[0])
    settings = changed(dataclasses.replace(DatasetConfig(), **fitted.reading, **of_folder), options.dataset)
    index = find_given(options.scans, settings, changed(PhantomConfig(), options.phantom))
    files = [str(index.path(i)) for i in range(len(index))]
    grey_range, notes = grey_range_of(files, source, options.dataset)
    reading = Reading(index, settings, grey_range, model.preprocessing())
    found = predict(model, fitted, reading, options.coverage, options.batch_size, options.precision == "bf16")
    judged = judge(found, options.bootstrap, options.seed)
    notes += [*known_patients(source, found), *few_patients(fitted, options.coverage)]
    folder = private_folder(options.out)
    outputs = [write_table(table_of_scans(found), folder, "predictions", options.format)]
    for unit, frame in tables_of_units(found):
        outputs.append(write_table(frame, folder, f"{unit}s", options.format))
    write_json(facts(source, found, judged, options, notes), folder / "predictions.json")
    outputs.append(folder / "predictions.json")
    if options.page:
        outputs.append(write_page(found, reading, model, options, notes))
    print(
        "\n".join([*([PHANTOM_NOTICE] if is_phantom(found) else []), *report(found, judged, options.coverage, notes)])
    )
    print(written(*outputs))


def known_patients(source: Source, found: Predictions) -> list[str]:
    """A note where scans are of patients that the model was trained on."""
    index = found.index.subset(found.positions)
    known = trained_patients(index, found.digests, trained_on(source.name))
    if known is None or not known.patients:
        return []
    scans, patients = np.isin(index.patients, sorted(known.patients)).sum(), counted(len(known.patients), "patient")
    return [f"{scans:,} of {len(index):,} scans are of {patients} that the model was trained on"]


def few_patients(fitted: Fitted, coverage: float) -> list[str]:
    """A note where prediction sets hold every class, as too few patients validated."""
    if math.isfinite(fitted.limit(coverage)):
        return []
    needed = math.ceil(coverage / (1 - coverage) - 1e-9)
    return [
        f"every set holds every class: {fitted.val['patients']:,} validation patients say nothing about "
        f"{100 * coverage:g} %, {needed:,} would; give a lower --coverage"
    ]


def is_phantom(found: Predictions) -> bool:
    """Whether the scans are synthetic."""
    places = {found.index.path(i).parent for i in found.positions.tolist()}
    return any((folder / "phantom.json").is_file() for place in places for folder in (place, *place.resolve().parents))


def _in_words(model: Model, fitted: Fitted) -> str:
    what = "the model's own" if fitted.head == "own" else "a linear probe"
    checked = fitted.validation
    return (
        f"{what}, {len(fitted.class_names)} classes; on "
        f"{scans_of(fitted.val, 'validation')} balanced accuracy {checked.balanced_accuracy:.1f} %, calibration error "
        f"{checked.calibration_error:.1f} % ({checked.calibration_error_before:.1f} % before the temperature "
        f"{fitted.temperature:.2f})"
    )


def report(found: Predictions, judged: Judged | None, coverage: float, notes: Sequence[str]) -> list[str]:
    """What a reader should know at once: counts, warnings, and the metrics where labels are known."""
    names, n = found.fitted.class_names, len(found.positions)
    called = Counter(found.classes.tolist())
    sizes = Counter(found.sets.sum(axis=1).tolist())
    lines = [
        f"{counted(n, 'scan')}: " + ", ".join(f"{name} {called[name]:,}" for name in names),
        f"sets at {100 * coverage:g} %: one class {sizes[1]:,}, several {sum(sizes[k] for k in sizes if k > 1):,}, "
        f"none {sizes[0]:,}",
        f"unlike anything seen: {counted(found.is_unlike.sum(), 'scan')} (farther from the training scans than "
        f"{100 * UNLIKE:g} % of validation)",
    ]
    flags = Counter(flag for of_scan in found.flags for flag in of_scan)
    if flags:
        lines.append("flags: " + ", ".join(f"{flag} {count:,}" for flag, count in flags.most_common()))
    lines += [f"left out: {file}: {reason}" for file, reason in found.left_out[:3]]
    if len(found.left_out) > 3:
        lines.append(f"left out: {len(found.left_out) - 3:,} more, in predictions.json")
    if judged:
        row = judged.result
        recalls = ", ".join(f"{name} {show(value)}" for name, value in row.recall.items())
        lines += [
            "",
            f"judged on the labels of {counted(judged.scans, 'scan')} of {counted(judged.patients, 'patient')}:",
            table(["", *ACCURACY_HEADER], [["model", *accuracy_cells(row)]]),
            f"recall %: {recalls}",
            f"sets that hold the class: {judged.covered:.1f} %, a mean over patients ({100 * coverage:g} % is stated)",
            *never_recognised([("model", row.never_recognised)]),
        ]
    return [*lines, *(f"note: {note}" for note in notes)]


def facts(
    source: Source, found: Predictions, judged: Judged | None, options: PredictOptions, notes: Sequence[str]
) -> dict[str, Any]:
    """What ``predictions.json`` holds."""
    fitted = found.fitted
    return {
        "evaluation": "predictions",
        "model": {"source": source.name, "weights": fitted.weights, "classes": fitted.class_names},
        "classifier": {
            "head": fitted.head, "temperature": fitted.temperature, "table": fitted.table,
            "train": fitted.train, "val": fitted.val, "validation": fitted.validation,
        },
        "settings": {"coverage": options.coverage, "limit": fitted.limit(options.coverage), "unlike_from": UNLIKE},
        "scans": len(found.positions),
        "synthetic": is_phantom(found),
        "left_out": [{"file": file, "reason": reason} for file, reason in found.left_out],
        "judged": judged,
        "notes": list(notes),
    }  # fmt: skip
