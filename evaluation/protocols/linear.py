"""Linear probe on frozen features, beside the controls it must beat, and how it fares with fewer labels.

C (or the epoch) is chosen on the validation patients; the scans of the test are classified once, by the chosen probe.
With a share of the labels it is chosen within the labelled patients, by a cross-validation over them.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from dino_oct.errors import InputError
from dino_oct.files import replacing
from dino_oct.limits import check_settings
from dino_oct.runtime import default_device
from dino_oct.scan_data import ScanData
from dino_oct.scores.class_summary import never_recognised
from dino_oct.scores.classification import METRICS, score_all
from dino_oct.scores.paired import MODEL, PIXELS, RANDOM, START, ResultByClass, ScanSet, compare_scores, verdict
from dino_oct.scores.text import (
    ACCURACY_HEADER,
    PHANTOM_NOTICE,
    accuracy_cells,
    closing,
    difference_cells,
    heading,
    majority_row,
    recall_table,
    table,
    write_json,
)
from dino_oct.streams import generator
from evaluation.config import IMAGE_FEATURE, LinearOptions
from evaluation.inputs.features import extract_features
from evaluation.inputs.model import open_model
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import Source, open_sources
from evaluation.protocols.results import folders, of_bootstrap, of_source, shared_patients
from evaluation.scores.probes import (
    Choice,
    Fit,
    choose,
    choose_within,
    draw_patients,
    logistic_path,
    sgd_epochs,
    standardisation,
)

PROBE = "linear"
# At least one patient of each class makes small draws even between classes, whatever the test's shares: plain accuracy
# would rise with the fraction for that alone.
CURVE_METRIC = "balanced_accuracy"
SGD_BATCH = 256  # scans, of the dino protocol
FIXED_C = 1.0  # about; where too few patients are labelled to choose among them
_TITLES = ("accuracy %", "balanced accuracy %", "macro AUROC %")
# Okabe and Ito's colours, told apart by readers of any colour vision.
_COLOURS = {MODEL: "#0072B2", START: "#E69F00", RANDOM: "#CC79A7", PIXELS: "#666666"}
_MARKERS = {MODEL: "o", START: "s", RANDOM: "^", PIXELS: "D"}


@dataclass(frozen=True)
class Features:
    """Features (N, D) of the training, validation and classified scans."""

    train: np.ndarray
    val: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ProbeResult(ResultByClass):
    """A linear probe on the classified scans.

    Attributes:
        setting: its C or epoch; val_balanced_accuracy: of every candidate on the validation scans, in per cent.
        features: their width.
    """

    setting: float
    val_balanced_accuracy: dict[float, float]
    features: int


def probe(
    features: Features,
    train: ScanSet,
    val: ScanSet | None,
    labelled: np.ndarray,
    fit: Fit,
    n_classes: int,
    *,
    fallback: float | None = None,
    standardise: bool = True,
    device: torch.device | None = None,
) -> tuple[Choice, np.ndarray]:
    """Fit candidates on some training scans, choose one, classify with that one.

    Args:
        val: validation scans that choose; None: the chosen training scans choose among themselves, as
            ``choose_within`` says.
        labelled: positions of the training scans whose labels are used.
        fit: ``logistic_path`` or ``sgd_epochs`` with their settings; fallback: as in ``choose_within``.
        standardise: to mean 0 and standard deviation 1 over all training scans (this needs no label).

    Returns:
        The choice, and probabilities (M, C) of the queries.

    Raises:
        InputError: the chosen scans are of fewer than two classes.
    """
    mean, scale = standardisation(features.train) if standardise else (0.0, 1.0)

    def ready(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(((rows - mean) / scale).astype(np.float32)).to(device or "cpu")

    rows, labels = ready(features.train[labelled]), train.labels[labelled]
    if val is None:
        choice = choose_within(fit, rows, labels, train.patients[labelled], n_classes, fallback)
    else:
        choice = choose(fit(rows, labels, n_classes), ready(features.val), val.labels)
    return choice, choice.classifier.probabilities(ready(features.queries))


def fit_probe(
    features: Features,
    train: ScanSet,
    val: ScanSet | None,
    labelled: np.ndarray,
    options: LinearOptions,
    n_classes: int,
    standardise: bool = True,
) -> tuple[Choice, np.ndarray]:
    """``probe`` by the protocol of the options, on the device of evaluations."""
    fallback = min(_cs(options), key=lambda c: abs(np.log(c / FIXED_C))) if options.protocol == "fast" else None
    return probe(
        features, train, val, labelled, _fit(options), n_classes, fallback=fallback, standardise=standardise,
        device=default_device(),
    )  # fmt: skip


def label_curves(
    fit_row: Callable[[str, np.ndarray, bool], tuple[Choice, np.ndarray]],
    names: list[str],
    train: ScanSet,
    queries: ScanSet,
    fractions: tuple[float, ...],
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Metrics with the labels of some of the training patients; every row sees the same draws.

    Args:
        fit_row: from a row's name, the training positions used, and whether these must choose the setting among
            themselves, to its choice and the queries' probabilities.

    Returns:
        For each fraction, ascending: ``fraction``, ``patients`` and ``scans`` of each draw, ``setting_by`` (what chose
        the setting, by draw), and ``rows[name]``: the ``setting`` of each draw, and for each of ``METRICS`` ``mean``,
        ``low`` and ``high`` over the draws and ``draws``, in per cent.
    """
    weights, curve = np.ones((1, len(queries.labels))), []
    for fraction in sorted(set(fractions)):
        rng = generator("patients with labels", seed, round(fraction * 1e6))
        # All labels leave nothing to draw.
        drawn = [
            draw_patients(train.labels, train.patients, fraction, rng) for _ in range(draws if fraction < 1 else 1)
        ]
        rows = {}
        for name in names:
            fits = [fit_row(name, labelled, fraction < 1) for labelled in drawn]
            values = np.concatenate([score_all(weights, queries.labels, scores) for _, scores in fits])
            rows[name] = {"setting": [choice.setting for choice, _ in fits]} | {
                metric: {"mean": v.mean(), "low": v.min(), "high": v.max(), "draws": v}
                for metric, v in zip(METRICS, values.T, strict=True)
            }
        patients = [len(set(train.patients[labelled].tolist())) for labelled in drawn]
        scans = [len(labelled) for labelled in drawn]
        by = [choice.by for choice, _ in fits]  # of the last row: the draw decides, not the features
        curve.append({"fraction": fraction, "patients": patients, "scans": scans, "setting_by": by, "rows": rows})
    return curve


def evaluate(source: Source, options: LinearOptions) -> dict[str, Any]:
    """Run the whole evaluation; returns what the JSON file holds (intervals as ``Interval``).

    Raises:
        InputError: no run, one class only, no validation scans, an image size that does not fit, or as
            ``load_backbone``.
    """
    check_settings(options)
    data = open_data(source, options.data, options.dataset, options.phantom, print)
    positions = {"train": data.labelled("train"), "val": data.labelled("val"), "queries": data.labelled(options.split)}
    sets = {name: ScanSet(data.index.labels[p], data.index.patients[p]) for name, p in positions.items()}
    train, val, queries = sets.values()
    if len(set(train.labels.tolist())) < 2:
        raise InputError(
            f"{data.index.root}: training scans of one class only; give two or more, or another --dataset.split"
        )
    default_kind = None if options.protocol == "dino" else IMAGE_FEATURE
    model = open_model(source, MODEL, image_size=options.image_size, heads=options.heads)
    extracted = extract_features(model, options, data, positions, default_kind)
    features = {
        name: Features(*(rows[name] for rows in extracted.by_set.values())) for name in extracted.by_set["train"]
    }
    names = data.index.class_names

    def fit_row(name: str, labelled: np.ndarray, within: bool = False) -> tuple[Choice, np.ndarray]:
        # SGD's learning rate is made for a backbone's features as they are; grey values need scaling.
        standardise = options.protocol == "fast" or name == PIXELS
        # Validation labels beside a few training labels would make the few many.
        return fit_probe(features[name], train, None if within else val, labelled, options, len(names), standardise)

    fitted = {name: fit_row(name, np.arange(len(train.labels))) for name in features}
    compared = compare_scores(
        {name: {PROBE: scores} for name, (_, scores) in fitted.items()},
        train,
        queries,
        names,
        bootstrap=options.bootstrap,
        seed=options.seed,
    )
    rows = {
        name: ProbeResult(
            **vars(compared.rows[name][PROBE]),
            setting=choice.setting,
            val_balanced_accuracy=choice.accuracies,
            features=features[name].train.shape[1],
        )
        for name, (choice, _) in fitted.items()
    }
    differences = {name: row[PROBE] for name, row in compared.differences.items()}
    curve = label_curves(fit_row, list(features), train, queries, options.fractions, options.draws, options.seed)
    return {
        "evaluation": "linear",
        "model": of_source(source),
        "weights": extracted.weights,
        "data": {
            **data.summary(**positions),
            "queries": options.split,
            "shortcut": data.shortcuts(np.concatenate(list(positions.values()))),
        },
        "settings": {
            "protocol": options.protocol,
            "chosen_on": "val: balanced accuracy, ties by log-loss; with some of the labels: see label_fractions",
            **(
                {"c": _cs(options)}
                if options.protocol == "fast"
                else {"epochs": options.epochs, "batch_size": SGD_BATCH}
            ),
            **extracted.settings,
            "draws": options.draws,
            "bootstrap": of_bootstrap(options),
        },
        "units": "per cent; differences in points; each number with its 95 % interval by patient, "
        "or the reason why it has none; label curves "
        "with mean, lowest and highest of the draws",
        "rows": rows,
        "differences": differences,
        "majority": compared.majority,
        "label_fractions": curve,
        "verdicts": [
            *(
                verdict(differences[f"{MODEL} − {other}"].accuracy, other, "linear probe")
                for other in (PIXELS, START)
                if other in features
            ),
            *never_recognised((name, row.never_recognised) for name, row in rows.items()),
        ],
        "notes": _patient_notes(data, positions, options) + compared.notes + extracted.notes,
    }


def _cs(options: LinearOptions) -> list[float]:
    return np.logspace(*np.log10(options.c_range), options.n_c).tolist()


def _fit(options: LinearOptions) -> Fit:
    if options.protocol == "fast":
        cs = _cs(options)
        return lambda features, labels, n_classes: logistic_path(features, labels, n_classes, cs)
    return lambda features, labels, n_classes: sgd_epochs(
        features, labels, n_classes, options.epochs, SGD_BATCH, options.seed
    )


def _patient_notes(data: ScanData, positions: dict[str, np.ndarray], options: LinearOptions) -> list[str]:
    """Whether the classified patients are new: to the probe, to its choice, and to pretraining."""
    patients = {name: set(data.index.patients[p].tolist()) for name, p in positions.items()}
    tested, notes = patients["queries"], data.training_notes(positions["queries"])
    notes += shared_patients(tested, patients["train"])
    if options.split == "val":
        notes.append("chosen and judged on the same validation scans: too good; report --split test")
    elif shared := len(tested & patients["val"]):
        notes.append(f"{shared} of {len(tested)} classified patients also have validation scans")
    return notes


def report(result: dict[str, Any]) -> str:
    """The result as text: what was used, one table, and what it lets one say."""
    sets, settings = result["data"]["sets"], result["settings"]
    counts = {name: f"{count['scans']} scans of {count['patients']} patients" for name, count in sets.items()}
    what = "C" if settings["protocol"] == "fast" else "epoch"
    lines = [
        *heading(f"linear probe ({settings['protocol']})", result),
        f"data: {result['data']['folder']} · fitted: train, {counts['train']} · {what} chosen: val, {counts['val']} · "
        f"classified: {result['data']['queries']}, {counts['queries']}",
        "",
    ]
    classes = sets["queries"]["classes"]
    rows = [[name, f"{row.setting:.3g}", *accuracy_cells(row)] for name, row in result["rows"].items()]
    rows += [[name, "", *difference_cells(row)] for name, row in result["differences"].items()]
    always, *cells = majority_row(result["majority"], classes)
    curve = result["label_fractions"]
    shares = [f"{100 * point['fraction']:g} % labels ({_span(point['patients'])} p.)" for point in curve]
    drawn = [[name, *(_over_draws(point["rows"][name][CURVE_METRIC]) for point in curve)] for name in result["rows"]]
    lines += [
        table(["", what, *ACCURACY_HEADER], [*rows, [always, "", *cells]]),
        "",
        recall_table(result["rows"], {name: count["scans"] for name, count in classes.items()}),
        f"[95 % interval, {settings['bootstrap']['resamples']} resamples of patients]",
        "",
        table(["balanced accuracy %", *shares], drawn),
        f"mean (lowest–highest) of {settings['draws']} draws of p. training patients; {what} chosen by: "
        + "; ".join(f"{100 * point['fraction']:g} %: {_settings_by(point['setting_by'])}" for point in curve),
    ]
    return "\n".join([*lines, *closing(result)])


def _settings_by(reasons: list[str]) -> str:
    counts = Counter(reasons)
    if len(counts) == 1:
        return reasons[0]
    return ", ".join(f"{reason} ({count} of {len(reasons)} draws)" for reason, count in counts.items())


def _span(counts: list[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}"


def _over_draws(over_draws: dict[str, Any]) -> str:
    spread = f" ({over_draws['low']:.1f}–{over_draws['high']:.1f})" if len(over_draws["draws"]) > 1 else ""
    return f"{over_draws['mean']:.1f}{spread}"


def draw_curves(result: dict[str, Any], file: Path) -> None:
    """Write each metric over the share of labelled training patients as PNG: mean, and range of the draws."""
    curve, sets, settings = result["label_fractions"], result["data"]["sets"], result["settings"]
    figure = Figure(figsize=(12, 4.4), dpi=150, layout="constrained")
    shares = [100 * point["fraction"] for point in curve]
    ticks = [f"{share:g} %\n{_span(point['patients'])}" for share, point in zip(shares, curve, strict=True)]
    panels = figure.subplots(1, len(METRICS))
    for axes, metric, title in zip(panels, METRICS, _TITLES, strict=True):
        for name in result["rows"]:
            points = [point["rows"][name][metric] for point in curve]
            low, mean, high = ([values[key] for values in points] for key in ("low", "mean", "high"))
            axes.plot(shares, mean, label=name, color=_COLOURS[name], marker=_MARKERS[name], markersize=5)
            axes.fill_between(shares, low, high, color=_COLOURS[name], alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(shares, ticks)
        axes.minorticks_off()
        axes.set_ylabel(title)
        axes.grid(alpha=0.25)
    panels[0].legend(frameon=False)
    figure.supxlabel("share of training patients whose labels are used, and their number", fontsize=10)
    notice = f"{PHANTOM_NOTICE} · " if result["data"]["synthetic"] else ""
    figure.suptitle(
        f"{notice}linear probe ({settings['protocol']}) on {sets['queries']['scans']} {result['data']['queries']} "
        f"scans of {sets['queries']['patients']} patients · line: mean of up to {settings['draws']} draws, band: "
        "their range",
        fontsize=10,
    )
    with replacing(file) as partial:
        figure.savefig(partial, format="png")


def run(options: LinearOptions) -> None:
    """Evaluate each model, print, and write ``linear_PROTOCOL_SPLIT.json`` and the label-fraction curves beside it."""
    sources = open_sources(options.sources)
    for source, folder in zip(sources, folders(sources, "linear", options.out), strict=True):
        result = evaluate(source, options)
        name = f"linear_{options.protocol}_{options.split}"
        write_json(result, folder / f"{name}.json")
        draw_curves(result, folder / f"{name}.png")
        print(report(result))
        print(f"written: {folder / name}.json, {folder / name}.png")
