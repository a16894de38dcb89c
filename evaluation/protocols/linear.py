"""Linear probe on frozen features, beside the controls it must beat, and how it fares with fewer labels."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from dino_oct.devices import default_device
from dino_oct.errors import InputError
from dino_oct.files import replacing
from dino_oct.limits import check_settings
from dino_oct.scores import pooling, probes
from dino_oct.scores.classification import METRICS, score_all
from dino_oct.scores.paired import MODEL, PIXELS, RANDOM, START, Metrics, ResultByClass, ScanSet, compare_scores
from dino_oct.scores.probes import Choice
from dino_oct.scores.text import (
    accuracy_cells,
    closing,
    difference_cells,
    heading,
    table,
    unit_lines,
    write_json,
    written,
)
from dino_oct.scores.units import Grouping, compare_units
from dino_oct.streams import generator
from dino_oct.words import scans_of
from evaluation.config import IMAGE_FEATURE, LinearOptions
from evaluation.inputs.features import extract_features
from evaluation.inputs.model import open_model
from evaluation.inputs.scans import open_data, open_external
from evaluation.inputs.sources import Source
from evaluation.protocols.external import OnExternal, external_lines, judge_external
from evaluation.protocols.labels import LabelProbes, probe_labels, probe_text
from evaluation.protocols.results import (
    Classification,
    Features,
    of_source,
    shared_with_validation,
    tables,
    verdicts,
    why_mean,
    with_folders,
)
from evaluation.protocols.targets import OnTarget, judge_targets, on_target_lines

PROBE = "linear probe"
# At least one patient of each class makes small draws even between classes, whatever the test's shares: plain accuracy
# would rise with the fraction for that alone.
CURVE_METRIC = "balanced_accuracy"
FIXED_C = 1.0  # about; where too few patients are labelled to choose among them
_TITLES = ("accuracy %", "balanced accuracy %", "macro AUROC %")
# Okabe and Ito's colours, told apart by readers of any colour vision.
_COLOURS = {MODEL: "#0072B2", START: "#E69F00", RANDOM: "#CC79A7", PIXELS: "#666666"}
_MARKERS = {MODEL: "o", START: "s", RANDOM: "^", PIXELS: "D"}


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


@dataclass(frozen=True)
class OverDraws:
    """A metric over draws of labelled patients, in per cent: mean, lowest and highest, and of each draw."""

    mean: float
    low: float
    high: float
    draws: np.ndarray


@dataclass(frozen=True)
class CurveRow:
    """A row with some of the labels: the setting of each draw, and ``METRICS``."""

    setting: list[float]
    accuracy: OverDraws
    balanced_accuracy: OverDraws
    macro_auroc: OverDraws


@dataclass(frozen=True)
class CurvePoint:
    """Every row with the labels of a share of the training patients.

    Attributes:
        patients, scans: labelled, in each draw; setting_by: what chose the setting, by draw.
    """

    fraction: float
    patients: list[int]
    scans: list[int]
    setting_by: list[str]
    rows: dict[str, CurveRow]


@dataclass(frozen=True, kw_only=True)
class Linear(Classification):
    """What ``linear_PROTOCOL_SPLIT.json`` holds; label_fractions: ascending; external: on ``--external``; targets: the
    numbers of a table, where it has any."""

    evaluation: str = "linear"
    units: str = f"{Classification.units}; label curves with mean, lowest and highest of the draws"
    rows: dict[str, ProbeResult]
    differences: dict[str, Metrics]
    label_fractions: list[CurvePoint]
    external: OnExternal | None = None
    targets: dict[str, OnTarget] = field(default_factory=dict, metadata={"may_be_empty": True})


def fit_probe(
    features: Features,
    train: ScanSet,
    val: ScanSet | None,
    labelled: np.ndarray,
    options: LinearOptions,
    n_classes: int,
    standardise: bool = True,
) -> tuple[Choice, np.ndarray]:
    """Fit candidates on some training scans by the protocol of the options, choose one, classify with that one.

    Args:
        val: validation scans that choose; None: the labelled scans choose among themselves, as ``choose_within`` says,
            with a C of about ``FIXED_C`` or the last epoch where they cannot.
        labelled: positions of the training scans whose labels are used.
        standardise: to mean 0 and standard deviation 1 over all training scans (this needs no label).

    Returns:
        The choice, and probabilities (M, C) of the queries.

    Raises:
        InputError: the labelled scans are of fewer than two classes.
    """
    mean, scale = probes.standardisation(features.train) if standardise else (0.0, 1.0)
    if options.protocol == "fast":
        cs = options.cs
        fit, fallback = partial(probes.logistic_path, cs=cs), min(cs, key=lambda c: abs(np.log(c / FIXED_C)))
    else:
        fit = partial(probes.sgd_epochs, epochs=options.epochs, batch_size=probes.SGD_BATCH, seed=options.seed)
        fallback = None

    def ready(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(((rows - mean) / scale).astype(np.float32)).to(default_device())

    rows, labels = ready(features.train[labelled]), train.labels[labelled]
    if val is None:
        choice = probes.choose_within(fit, rows, labels, train.patients[labelled], n_classes, fallback)
    else:
        choice = probes.choose(fit(rows, labels, n_classes), ready(features.val), val.labels)
    return choice, choice.classifier.probabilities(ready(features.queries))


def pool_features(
    features: Features, of_unit: dict[str, Grouping], n_classes: int, seed: int
) -> dict[str, np.ndarray] | None:
    """Class probabilities of units by attention pooling, fitted on the training units: of the validation units, which
    end the training early, and of those to classify; None where the training units are of fewer than two classes.

    Args:
        of_unit: "train", "val" and "queries" → their scans grouped.
    """
    train, val = of_unit["train"].units.labels, of_unit["val"].units.labels
    if len(np.unique(train)) < 2:
        return None
    mean, scale = probes.standardisation(features.train)
    bags = {
        name: pooling.Bags(
            torch.from_numpy((getattr(features, name) - mean) / scale).to(default_device()), grouped.unit_of_scan
        )
        for name, grouped in of_unit.items()
    }
    model = pooling.fit(bags["train"], train, bags["val"], val, n_classes, seed)
    return {name: pooling.probabilities(model, bags[name]) for name in ("val", "queries")}


def _count_fits(rows: Collection[str], options: LinearOptions) -> int:
    return len(rows) * (1 + sum(options.draws if fraction < 1 else 1 for fraction in set(options.fractions)))


def label_curves(
    fit_row: Callable[[str, np.ndarray, bool], tuple[Choice, np.ndarray]],
    names: list[str],
    train: ScanSet,
    queries: ScanSet,
    options: LinearOptions,
) -> list[CurvePoint]:
    """Metrics with the labels of some of the training patients, for each fraction; every row sees the same draws.

    Args:
        fit_row: from a row's name, the training positions used, and whether these must choose the setting among
            themselves, to its choice and the queries' probabilities.
    """
    weights, curve = np.ones((1, len(queries.labels))), []
    for fraction in sorted(set(options.fractions)):
        rng = generator("patients with labels", options.seed, round(fraction * 1e6))
        # All labels leave nothing to draw.
        draws = options.draws if fraction < 1 else 1
        drawn = [probes.draw_patients(train.labels, train.patients, fraction, rng) for _ in range(draws)]
        rows = {}
        for name in names:
            fits = [fit_row(name, labelled, fraction < 1) for labelled in drawn]
            values = np.concatenate([score_all(weights, queries.labels, scores) for _, scores in fits])
            over_draws = [OverDraws(v.mean(), v.min(), v.max(), v) for v in values.T]
            rows[name] = CurveRow([choice.setting for choice, _ in fits], **dict(zip(METRICS, over_draws, strict=True)))
        patients = [len(set(train.patients[labelled].tolist())) for labelled in drawn]
        setting_by = [choice.by for choice, _ in fits]  # of the last row: the draw decides, not the features
        curve.append(CurvePoint(fraction, patients, list(map(len, drawn)), setting_by, rows))
    return curve


def evaluate(source: Source, options: LinearOptions) -> Linear | LabelProbes:
    """Run the whole evaluation, of several labels a scan or of numbers alone where the scans have no classes.

    Raises:
        InputError: no run, one class only, no validation scans, an image size that does not fit, or as
            ``load_backbone``.
    """
    check_settings(options)
    data = open_data(source, options)
    if data.index.multilabels or (data.index.targets and not data.index.class_names):
        return probe_labels(source, options, data)
    names = data.index.class_names
    positions = {"train": data.labelled("train"), "val": data.labelled("val"), "queries": data.labelled(options.split)}
    groupings = data.groupings(options.split)
    train, val, queries = (ScanSet(data.index.labels[p], data.index.patients[p]) for p in positions.values())
    if len(set(train.labels.tolist())) < 2:
        raise InputError(
            f"{data.index.root}: training scans of one class only; give two or more, or another --dataset.split"
        )
    default_kind = None if options.protocol == "dino" else IMAGE_FEATURE
    model = open_model(source, MODEL, image_size=options.image_size, heads=options.heads)
    extracted = extract_features(model, options, data, positions, default_kind)
    features = {
        name: Features(*(of_set[name] for of_set in extracted.by_set.values())) for name in extracted.by_set["train"]
    }

    external = open_external(source, options, data)
    elsewhere = {name: np.empty((0, of_row.train.shape[1]), np.float32) for name, of_row in features.items()}
    if external:
        found = extract_features(model, options, external.data, {"external": external.positions}, default_kind)
        elsewhere = found.by_set["external"]

    def fit_row(name: str, labelled: np.ndarray, within: bool = False) -> tuple[Choice, np.ndarray]:
        choice, probabilities = fit_to(name, labelled, within)
        return choice, probabilities[: len(queries.labels)]

    def fit_to(name: str, labelled: np.ndarray, within: bool = False) -> tuple[Choice, np.ndarray]:
        # SGD's learning rate is made for a backbone's features as they are; grey values need scaling.
        standardise = options.protocol == "fast" or name == PIXELS
        # Validation labels beside a few training labels would make the few many.
        of_row = replace(features[name], queries=np.concatenate([features[name].queries, elsewhere[name]]))
        return fit_probe(of_row, train, None if within else val, labelled, options, len(names), standardise)

    with tqdm(total=_count_fits(features, options), desc="probes", unit="fit", disable=None, leave=False) as bar:

        def counted(fit: Callable[..., tuple[Choice, np.ndarray]]) -> Callable[..., tuple[Choice, np.ndarray]]:
            def run(*args: Any) -> tuple[Choice, np.ndarray]:
                result = fit(*args)
                bar.update()
                return result

            return run

        everywhere = {name: counted(fit_to)(name, np.arange(len(train.labels))) for name in features}
        curves = label_curves(counted(fit_row), list(features), train, queries, options)
    fitted = {name: (choice, scores[: len(queries.labels)]) for name, (choice, scores) in everywhere.items()}
    resampling = {"bootstrap": options.bootstrap, "seed": options.seed}
    scores = {name: {PROBE: probabilities} for name, (_, probabilities) in fitted.items()}
    compared = compare_scores(scores, train, queries, names, **resampling)

    def pool(name: str, of_unit: dict[str, Grouping]) -> dict[str, np.ndarray] | None:
        return pool_features(features[name], of_unit, len(names), options.seed)

    by_set = {
        name: {PROBE: {"queries": probabilities, "val": choice.probabilities}}
        for name, (choice, probabilities) in fitted.items()
    }
    by_unit = compare_units(by_set, groupings, train, names, why_mean=why_mean(options.split), pool=pool, **resampling)
    rows = {
        name: ProbeResult(
            **vars(compared.rows[name][PROBE]),
            setting=choice.setting,
            val_balanced_accuracy=choice.accuracies,
            features=features[name].train.shape[1],
        )
        for name, (choice, _) in fitted.items()
    }
    notes = data.training_notes(positions["queries"]) + data.leak_notes(positions["queries"], options.split)
    if options.split == "val":
        notes.append("chosen and judged on the same validation scans: too good; report --split test")
    else:
        notes += shared_with_validation(queries, val)
    by_sgd = {"epochs": options.epochs, "batch_size": probes.SGD_BATCH}
    by_sgd = {"epochs": options.epochs, "batch_size": probes.SGD_BATCH}
    tried = {"c": options.cs} if options.protocol == "fast" else by_sgd
    return Linear(
        model=of_source(source),
        weights=extracted.weights,
        data={
            **data.summary(**positions),
            "queries": options.split,
            "shortcut": data.shortcuts(np.concatenate(list(positions.values()))),
        },
        settings={
            "protocol": options.protocol,
            "chosen_on": "val: balanced accuracy, ties by log-loss; with some of the labels: see label_fractions",
            **tried,
            **extracted.settings,
            "draws": options.draws,
            "bootstrap": options.intervals,
        },
        rows=rows,
        differences={name: row[PROBE] for name, row in compared.differences.items()},
        by_unit={unit: of_unit.of(PROBE) for unit, of_unit in by_unit.items()},
        majority=compared.majority,
        label_fractions=curves,
        external=external
        and judge_external(
            {name: scores[len(queries.labels) :] for name, (_, scores) in everywhere.items()},
            external, data, train, options,
        ),
        verdicts=verdicts(compared, lambda name, _: name),
        targets=judge_targets(features, data, list(positions.values()), options),
        notes=notes + compared.notes + extracted.notes,
    )  # fmt: skip


def report(result: Linear) -> str:
    """The result as text: what was used, one table, and what it lets one say."""
    settings, curve = result.settings, result.label_fractions
    sets = result.data["sets"]
    counts = {name: scans_of(count) for name, count in sets.items()}
    what = "C" if settings["protocol"] == "fast" else "epoch"
    lines = [
        *heading(f"linear probe ({settings['protocol']})", result),
        f"data: {result.data['folder']} · fitted: train, {counts['train']} · {what} chosen: val, {counts['val']} · "
        f"classified: {result.data['queries']}, {counts['queries']}",
        "",
    ]
    rows = [[name, f"{row.setting:.3g}", *accuracy_cells(row)] for name, row in result.rows.items()]
    rows += [[name, "", *difference_cells(row)] for name, row in result.differences.items()]
    shares = [f"{100 * point.fraction:g} % labels ({_span(point.patients)} p.)" for point in curve]
    drawn = [[name, *(_spread(getattr(point.rows[name], CURVE_METRIC)) for point in curve)] for name in result.rows]
    lines += [
        *tables(result, ["", what], rows, result.rows),
        *unit_lines(result.by_unit, settings["bootstrap"]["resamples"], result.notes),
        *(external_lines(result.external) if result.external else ()),
        "",
        table(["balanced accuracy %", *shares], drawn),
        f"mean (lowest–highest) of {settings['draws']} draws of p. training patients; {what} chosen by: "
        + "; ".join(f"{100 * point.fraction:g} %: {_settings_by(point.setting_by)}" for point in curve),
        *on_target_lines(result.targets, settings["bootstrap"]["resamples"]),
    ]
    return "\n".join([*lines, *closing(result, result.verdicts)])


def _settings_by(reasons: list[str]) -> str:
    counts = Counter(reasons)
    if len(counts) == 1:
        return reasons[0]
    return ", ".join(f"{reason} ({count} of {len(reasons)} draws)" for reason, count in counts.items())


def _span(counts: list[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}"


def _spread(values: OverDraws) -> str:
    spread = f" ({values.low:.1f}–{values.high:.1f})" if len(values.draws) > 1 else ""
    return f"{values.mean:.1f}{spread}"


def draw_curves(result: Linear, file: Path) -> None:
    """Write each metric over the share of labelled training patients as PNG: mean, and range of the draws."""
    curve, queries, settings = result.label_fractions, result.data["sets"]["queries"], result.settings
    figure = Figure(figsize=(12, 4.4), dpi=150, layout="constrained")
    shares = [100 * point.fraction for point in curve]
    ticks = [f"{share:g} %\n{_span(point.patients)}" for share, point in zip(shares, curve, strict=True)]
    panels = figure.subplots(1, len(METRICS))
    for axes, metric, title in zip(panels, METRICS, _TITLES, strict=True):
        for name in result.rows:
            points = [getattr(point.rows[name], metric) for point in curve]
            low, mean, high = ([getattr(values, part) for values in points] for part in ("low", "mean", "high"))
            axes.plot(shares, mean, label=name, color=_COLOURS[name], marker=_MARKERS[name], markersize=5)
            axes.fill_between(shares, low, high, color=_COLOURS[name], alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(shares, ticks)
        axes.minorticks_off()
        axes.set_ylabel(title)
        axes.grid(alpha=0.25)
    panels[0].legend(frameon=False)
    figure.supxlabel("share of training patients whose labels are used, and their number", fontsize=10)
    figure.suptitle(
        f"{result.notice}linear probe ({settings['protocol']}) on "
        f"{scans_of(queries, result.data['queries'])} · line: mean of up to {settings['draws']} draws, band: "
        "their range",
        fontsize=10,
    )
    with replacing(file) as partial_file:
        figure.savefig(partial_file, format="png")


def run(options: LinearOptions) -> None:
    """Evaluate each model, print, and write ``linear_PROTOCOL_SPLIT.json`` and the label-fraction curves beside it."""
    for source, folder in with_folders("linear", options):
        result = evaluate(source, options)
        name = f"linear_{options.protocol}_{options.split}"
        write_json(result, folder / f"{name}.json")
        if isinstance(result, LabelProbes):
            print(probe_text(result))
            print(written(folder / f"{name}.json"))
            continue
        draw_curves(result, folder / f"{name}.png")
        print(report(result))
        print(written(folder / f"{name}.json", folder / f"{name}.png"))
