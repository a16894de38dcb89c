"""Sets in which a scan may have several labels: linear probes and k-NN votes for each label, beside the controls."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from dino_oct.errors import InputError
from dino_oct.knn import label_votes
from dino_oct.runtime import default_device
from dino_oct.scan_data import ScanData
from dino_oct.scores import probes
from dino_oct.scores.label_text import label_captions, label_lines, label_unit_lines
from dino_oct.scores.label_units import LabelsByUnit, compare_label_units
from dino_oct.scores.multilabel import ComparedLabels, Label, LabelScores, compare_labels, unlearned
from dino_oct.scores.paired import MODEL, PIXELS, START, ScanSet, Setting, verdict
from dino_oct.scores.text import Evaluation, closing, heading
from dino_oct.scores.units import BySet
from dino_oct.words import counted, scans_of
from evaluation.config import IMAGE_FEATURE, FeatureOptions, KnnOptions, LinearOptions
from evaluation.inputs.features import FrozenFeatures, extract_features
from evaluation.inputs.model import open_model
from evaluation.inputs.sources import Source
from evaluation.protocols.results import Features, of_source, shared_with_validation
from evaluation.protocols.targets import OnTarget, judge_targets, on_target_lines

_UNITS = "per cent; differences in points; each number with its 95 % interval by patient, or the reason why it has none"
_ONE = "probe"


@dataclass(frozen=True, kw_only=True)
class LabelEvaluation(Evaluation):
    """The model and its controls, each a row, on several labels of the same scans.

    Attributes:
        labels: what is known of each on the classified scans; verdicts: what the numbers let one say.
        by_unit: the same rows on volumes, eyes and patients, where these hold several scans.
    """

    units: str = _UNITS
    labels: dict[str, Label]
    by_unit: dict[str, LabelsByUnit] = field(default_factory=dict, metadata={"may_be_empty": True})
    verdicts: list[str]


@dataclass(frozen=True)
class LabelProbe(LabelScores):
    """With the C (or epoch) of all labels, the mean average precision of every candidate on the validation scans, in
    per cent, and the width of the features."""

    setting: float
    val_average_precision: dict[float, float]
    features: int


@dataclass(frozen=True, kw_only=True)
class LabelProbes(LabelEvaluation):
    """What ``linear_PROTOCOL_SPLIT.json`` holds of such a set; rows: empty where the table has targets alone."""

    evaluation: str = "linear"
    rows: dict[str, LabelProbe] = field(default_factory=dict)
    differences: dict[str, LabelScores] = field(default_factory=dict)
    targets: dict[str, OnTarget] = field(default_factory=dict, metadata={"may_be_empty": True})


@dataclass(frozen=True, kw_only=True)
class LabelVotes(LabelEvaluation):
    """What ``knn_SPLIT.json`` holds of such a set: row → k → scores, and the model's difference to each other row."""

    evaluation: str = "knn"
    rows: dict[str, dict[int, LabelScores]]
    differences: dict[str, dict[int, LabelScores]]


def probe_labels(source: Source, options: LinearOptions, data: ScanData) -> LabelProbes:
    """A logistic regression of each label against its absence, and a ridge regression of each target.

    Raises:
        InputError: ``--external``, no label that can be learned, no validation scans, or as ``load_backbone``.
    """
    if options.external is not None:
        raise InputError("--external judges one class a scan; of several labels, give those scans with --data")
    index, names = data.index, list(data.index.multilabels)
    positions = {
        name: data.known(split, targets=True)
        for name, split in (("train", "train"), ("val", "val"), ("queries", options.split))
    }
    values = {name: index.multilabel_matrix()[rows] for name, rows in positions.items()}
    default_kind = None if options.protocol == "dino" else IMAGE_FEATURE
    extracted = _extract(source, options, data, positions, default_kind)
    features = {
        row: Features(*(of_set[row] for of_set in extracted.by_set.values())) for row in extracted.by_set["train"]
    }
    probed, labels, verdicts = {}, {}, []
    differences: dict[str, LabelScores] = {}
    by_unit: dict[str, LabelsByUnit] = {}
    notes = _notes(data, positions, options, val=positions["val"])
    if names:
        unfitted = unlearned(values["train"], names)
        if len(unfitted) == len(names):
            raise InputError(f"{index.root}: no label can be learned: {names[0]}: {unfitted[names[0]]}")
        fitted = {row: _fit(of_row, row, values, options) for row, of_row in features.items()}
        resampling = {"unfitted": unfitted, "bootstrap": options.bootstrap, "seed": options.seed}
        compared = compare_labels(
            {row: {_ONE: by_set["queries"]} for row, (_, by_set) in fitted.items()},
            values["queries"], index.patients[positions["queries"]], names, **resampling,
        )  # fmt: skip
        val = positions["val"] if options.split != "val" else None
        units = compare_label_units(
            {row: {_ONE: by_set} for row, (_, by_set) in fitted.items()},
            data.label_groupings(positions["queries"], val), names, **resampling,
        )  # fmt: skip
        by_unit = {unit: of_unit.of(_ONE) for unit, of_unit in units.items()}
        for row, (choice, _) in fitted.items():
            scores, width = compared.rows[row][_ONE], features[row].train.shape[1]
            probed[row] = LabelProbe(**vars(scores), setting=choice.setting,
                                     val_average_precision=choice.average_precisions, features=width)  # fmt: skip
        labels, differences = compared.labels, {name: of[_ONE] for name, of in compared.differences.items()}
        verdicts = _verdicts(compared, lambda _: "linear probe")
        notes += compared.notes
        if all(np.isnan(list(fitted[MODEL][0].average_precisions.values()))):
            notes.append("no label has a validation scan with it and one without: the setting was chosen by log-loss")
    tried = {"c": options.cs} if options.protocol == "fast" else {"epochs": options.epochs}
    return LabelProbes(
        model=of_source(source),
        weights=extracted.weights,
        data={**data.summary(**positions), "queries": options.split},
        settings={
            "protocol": options.protocol,
            "chosen_on": "val: mean average precision over labels, one setting for all, ties by log-loss",
            **tried,
            **extracted.settings,
            "bootstrap": options.intervals,
        },
        labels=labels,
        by_unit=by_unit,
        rows=probed,
        differences=differences,
        targets=judge_targets(features, data, list(positions.values()), options),
        verdicts=verdicts,
        notes=notes + extracted.notes,
    )


def _fit(
    features: Features, row: str, values: dict[str, np.ndarray], options: LinearOptions
) -> tuple[probes.LabelChoice, BySet]:
    """The setting that validation chose, and probabilities (M, L) of the validation and the classified scans."""
    # SGD's learning rate is made for a backbone's features as they are; grey values need scaling.
    standardise = options.protocol == "fast" or row == PIXELS
    mean, scale = probes.standardisation(features.train) if standardise else (0.0, 1.0)
    train, val, queries = (
        torch.from_numpy(((part - mean) / scale).astype(np.float32)).to(default_device())
        for part in (features.train, features.val, features.queries)
    )
    if options.protocol == "fast":
        fits = probes.logistic_labels(train, values["train"], options.cs)
    else:
        fits = probes.one_vs_rest(
            partial(probes.sgd_epochs, epochs=options.epochs, seed=options.seed), train, values["train"]
        )
    choice = probes.choose_labels(fits, val, values["val"])
    return choice, {name: choice.classifier.probabilities(x) for name, x in (("val", val), ("queries", queries))}


def vote_labels(source: Source, options: KnnOptions, data: ScanData) -> LabelVotes:
    """The share of the nearest training scans' votes for each label.

    Raises:
        InputError: no label that can be learned, k out of range, or as ``load_backbone``.
    """
    index, names = data.index, list(data.index.multilabels)
    positions = {
        name: data.known(split, targets=False) for name, split in (("train", "train"), ("queries", options.split))
    }
    val = index.positions("val") if options.split != "val" else np.zeros(0, np.int64)
    val = val[index.is_labelled[val]]
    groupings = data.label_groupings(positions["queries"], val)
    if groupings and len(val):  # they choose how scans become units
        positions["val"] = val
    values = index.multilabel_matrix()
    train, patients = values[positions["train"]], index.patients
    extracted = _extract(source, options, data, positions)
    by_set = {
        row: {
            name: label_votes(
                of_row, train, extracted.by_set[name][row], options.k, options.temperature,
                (patients[positions["train"]], patients[positions[name]]) if options.exclude_same_patient else None,
            )
            for name in positions if name != "train"
        }
        for row, of_row in extracted.by_set["train"].items()
    }  # fmt: skip
    resampling = {"unfitted": unlearned(train, names), "bootstrap": options.bootstrap, "seed": options.seed}
    compared = compare_labels(
        {row: votes["queries"] for row, votes in by_set.items()},
        values[positions["queries"]], patients[positions["queries"]], names, **resampling,
    )  # fmt: skip
    by_k = {
        row: {k: {name: votes[k] for name, votes in of_row.items()} for k in options.k}
        for row, of_row in by_set.items()
    }
    return LabelVotes(
        model=of_source(source),
        weights=extracted.weights,
        data={**data.summary(**positions), "queries": options.split},
        settings={
            "k": options.k,
            "temperature": options.temperature,
            "exclude_same_patient": options.exclude_same_patient,
            **extracted.settings,
            "bootstrap": options.intervals,
        },
        labels=compared.labels,
        by_unit=compare_label_units(by_k, groupings, names, **resampling),
        rows=compared.rows,
        differences=compared.differences,
        verdicts=_verdicts(compared, lambda k: k),
        notes=_notes(data, positions, options) + compared.notes + extracted.notes,
    )


def _extract(
    source: Source, options: FeatureOptions, data: ScanData, positions: dict[str, np.ndarray], *kind
) -> FrozenFeatures:
    model = open_model(source, MODEL, image_size=options.image_size, heads=options.heads)
    return extract_features(model, options, data, positions, *kind)


def _notes(
    data: ScanData, positions: dict[str, np.ndarray], options: KnnOptions | LinearOptions, val: np.ndarray | None = None
) -> list[str]:
    queries, patients = positions["queries"], data.index.patients
    with_patients = not getattr(options, "exclude_same_patient", False)
    notes = data.training_notes(queries) + data.leak_notes(queries, options.split, with_patients=with_patients)
    if val is not None and options.split == "val":
        notes.append("chosen and judged on the same validation scans: too good; report --split test")
    elif val is not None:
        empty = np.zeros(0)
        notes += shared_with_validation(ScanSet(empty, patients[queries]), ScanSet(empty, patients[val]))
    return notes


def _verdicts(compared: ComparedLabels[Setting], called: Callable[[Setting], str | int]) -> list[str]:
    """Whether the model beats raw pixels and its starting weights by the mean AUROC over labels."""
    beside = [(other, compared.differences.get(f"{MODEL} − {other}", {})) for other in (PIXELS, START)]
    return [
        verdict(scores.macro.auroc, other, called(k), f"mean AUROC over {counted(len(scores.labels), 'label')}")
        for other, by_setting in beside
        for k, scores in by_setting.items()
        if scores.labels
    ]


def _heading(result: LabelEvaluation, title: str, fitted: str) -> list[str]:
    sets = result.data["sets"]
    counts = {name: scans_of(count) for name, count in sets.items()}
    return [
        *heading(title, result),
        f"data: {result.data['folder']} · {fitted}: train, {counts['train']}"
        + (f" · chosen: val, {counts['val']}" if "val" in counts else "")
        + f" · classified: {result.data['queries']}, {counts['queries']}",
        "",
    ]


def probe_text(result: LabelProbes) -> str:
    """The result as text: a table of labels, one of each metric, and the targets."""
    settings, resamples = result.settings, result.settings["bootstrap"]["resamples"]
    lines = _heading(result, f"linear probe ({settings['protocol']})", "fitted")
    if result.rows:
        what = "C" if settings["protocol"] == "fast" else "epoch"
        chosen = ", ".join(f"{name} {row.setting:.3g}" for name, row in result.rows.items())
        lines += label_lines(result.labels, result.rows, result.differences) + label_captions(resamples)
        lines.append(f"{what}, one for all labels, by mean average precision on the validation scans: {chosen}")
        lines += label_unit_lines(result.by_unit, result.notes)
    lines += on_target_lines(result.targets, resamples)
    return "\n".join([*lines, *closing(result, result.verdicts)])


def votes_text(result: LabelVotes) -> str:
    """The result as text: for each k a table of labels and one of each metric."""
    lines = _heading(result, "k-NN", "votes")
    for k in result.settings["k"]:
        rows, differences = ({name: by_k[k] for name, by_k in of.items()} for of in (result.rows, result.differences))
        lines += label_lines(result.labels, rows, differences, f"k={k}: ")
        of_k = {unit: of_unit.of(k) for unit, of_unit in result.by_unit.items()}
        lines += [*label_unit_lines(of_k, result.notes, f"k={k}: "), ""]
    lines += label_captions(result.settings["bootstrap"]["resamples"])
    return "\n".join([*lines, *closing(result, result.verdicts)])
