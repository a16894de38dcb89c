"""Figures of a comparison, PNG and SVG: accuracy, confusions, reliability, embedding maps, severity, leaderboard."""

import io
import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dino_oct.files import write_whole
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.classification import CALIBRATION_BINS
from dino_oct.scores.text import show
from dino_oct.words import counted
from evaluation.pages.embedding_figures import Frame, Panel, draw_panels
from evaluation.report.leaderboard import SCORE, row_title
from evaluation.report.results import FigureFile, Results
from evaluation.report.table import protocol_title

KIND_COLOURS = {
    "self-supervised": "#0072B2",
    "supervised": "#D55E00",
    "starting weights": "#E69F00",
    "random weights": "#CC79A7",
    "other": "#009E73",
}
_DPI = 150
# Kind of a row of the leaderboard → its name and colour.
_ROWS = {"map": ("one map", "#0072B2"), "ensemble": ("ensemble", "#009E73"), "reference": ("no network", "#999999")}
_MOST_BARS = 30
_STYLE = {
    # Names are no formulas, text stays text that a reader can search for, and the same numbers give the same file.
    **{"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "dino-oct"},
    **{"axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "grid.alpha": 0.25},
    **{"legend.fontsize": 7.5, "figure.titlesize": 9},
}


def write_figures(
    results: Results, maps: dict[str, np.ndarray], folder: Path
) -> tuple[list[FigureFile], dict[str, str]]:
    """Write every figure that the results allow into ``folder``/figures.

    Args:
        maps: model → (N, 2) points of the embedding's scans.

    Returns:
        The files, and name → SVG of all but the embedding, which the page draws itself.
    """
    target = folder / "figures"
    notice = f"{results.notice} · " if results.notice else ""
    where = f"{notice}{counted(results.verdict.scans, 'test scan')} of {counted(results.verdict.patients, 'patient')}"
    files, drawn = [], {}
    target.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        for name, (draw, title) in _DRAWN.items():
            if (figure := draw(results, where)) is not None:
                write_whole(target / f"{name}.png", _saved(figure, "png"))
                svg = _saved(figure, "svg", metadata={"Date": None})
                write_whole(target / f"{name}.svg", svg)
                drawn[name] = svg.decode()
                files.append(FigureFile(f"figures/{name}.png", title))
    if results.embedding and maps:
        labels = np.asarray(results.scans.label)[results.embedding.scans]
        panels = []
        for panel in results.embedding.panels:
            purity = f"{results.embedding.k}-NN purity of the features {show(panel.purity)} %" if panel.purity else ""
            panels.append(Panel(panel.title, (Frame(purity, maps[panel.model]),)))
        for suffix in ("png", "svg"):
            draw_panels(panels, results.classes, labels, where, target / f"embedding.{suffix}")
        files.append(FigureFile("figures/embedding.png", "UMAP maps of the features of every model"))
    return files, drawn


def _saved(figure: Figure, kind: str, **settings: Any) -> bytes:
    with io.BytesIO() as stream:
        figure.savefig(stream, dpi=_DPI, bbox_inches="tight", format=kind, **settings)
        return stream.getvalue()


def _panels(count: int, width: float, height: float, title: str, across: int = 3, **share: Any) -> list[Axes]:
    """Panels of a new figure, of a size in inches, row by row, under a title in as many lines as the width asks for."""
    columns = min(count, across)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    figure.suptitle(_wrapped(title, math.floor(15 * width * columns)), x=0.01, ha="left")
    panels = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return panels[:count]


def _accuracy(results: Results, where: str) -> Figure:
    """Accuracy of every model by each protocol, with intervals, beside balanced accuracy."""
    table = results.table
    balanced = {column.key for column in table.columns if column.key.endswith("_balanced_accuracy")}
    beside = {key.removesuffix("_balanced_accuracy"): key for key in balanced}
    beside |= {f"{protocol}_accuracy": key for protocol, key in beside.items()}
    columns = [c for c in table.columns if c.key in beside and any(row[c.key] for row in table.rows.values())]
    models = list(results.models)
    title = (
        f"{where} · points: accuracy with 95 % intervals by patient, bold: shown to be the best; diamonds: balanced "
        f"accuracy; {results.verdict.majority.words}"
    )
    panels = _panels(len(columns), 4, 0.42 * len(models) + 1, title, across=2, sharey=True)
    for axes, column in zip(panels, columns, strict=True):
        for y, key in enumerate(models):
            value = table.rows[key][column.key]
            colour = KIND_COLOURS[results.models[key].kind]
            if value is None:
                axes.text(0.5, y, "–", transform=axes.get_yaxis_transform(), ha="center", va="center", color="0.5")
                continue
            _interval(axes, value, y, color=colour, linewidth=2.2)
            if mean_recall := table.rows[key][beside[column.key]]:
                axes.plot(mean_recall.point, y, "D", color=colour, markersize=7, markerfacecolor="none")
            axes.plot(value.point, y, "o", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8)
            axes.annotate(
                show(value), (value.point, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7,
                fontweight="bold" if table.best[column.key] == key else "normal",
            )  # fmt: skip
        axes.set(title=f"{column.group}: {column.title}", xlabel="accuracy %")
        axes.grid(axis="x")
        axes.margins(x=0.22)
        low, high = axes.get_xlim()
        low = min(low, high - 8)  # an axis of half a point would make noise look like a difference
        axes.set(xlim=(low, high), xticks=[tick for tick in axes.get_xticks() if max(low, 0) <= tick <= 100])
    panels[0].set_yticks(range(len(models)), [_wrapped(key) for key in models])
    panels[0].set_ylim(len(models) - 0.5, -0.7)
    return panels[0].figure


def _interval(axes: Axes, value: Interval, y: float, scale: float = 1, **style: Any) -> None:
    if value.low is not None and value.high is not None:
        axes.plot([scale * value.low, scale * value.high], [y, y], **style)


def _reliability(results: Results, where: str) -> Figure | None:
    """Accuracy over stated probability of the first screen's two models; on the diagonal they are calibrated."""
    two = [key for key in (results.overview.leader, results.overview.rival) if key]
    diagrams = {(key, by): results.reliability[key][by] for key in two if (by := results.overview.models[key].by)}
    if not diagrams:
        return None
    title = (
        f"{where} · share of right calls over their mean stated probability, in {CALIBRATION_BINS} equal bins; "
        "numbers: scans of a bin; above the dashed line a classifier is too cautious, below it too sure"
    )
    panels = _panels(len(diagrams), 3.5, 3.4, title)
    for axes, ((model, protocol), diagram) in zip(panels, diagrams.items(), strict=True):
        width, used = 1 / len(diagram.counts), diagram.counts > 0
        left, accuracy = np.arange(len(diagram.counts))[used] * width, diagram.accuracy[used]
        axes.bar(left, accuracy, width, align="edge", color="#56B4E9", alpha=0.55, edgecolor="white")
        axes.plot([0, 1], [0, 1], color="0.35", linestyle="--", linewidth=1)
        axes.plot(diagram.confidence[used], accuracy, "o", color="#0072B2", markersize=3.5)
        for x, count in zip(left, diagram.counts[used].tolist(), strict=True):
            axes.text(x + width / 2, 0.015, f"{count:,}", rotation=90, ha="center", va="bottom", fontsize=6.5)
        axes.set(xlim=(0, 1), ylim=(0, 1.03), aspect="equal", xlabel="stated probability", ylabel="accuracy")
        error = show(results.table.rows[model][f"{protocol}_calibration_error"])
        axes.set_title(f"{_wrapped(f'{model}, {protocol_title(protocol)}', 34)}\ncalibration error {error} %")
    return panels[0].figure


def _roc(results: Results, where: str) -> Figure | None:
    """Sensitivity over false alarms of the first screen's two models, with the point of their own answers."""
    if not results.roc:
        return None
    colours = {mark.name: mark.colour for mark in results.classes}
    title = f"{where} · curves: the area under each, %; dots: the model's own answers"
    panels = _panels(len(results.roc), 4, 3.9, title, across=2)
    for axes, (model, curves) in zip(panels, results.roc.items(), strict=True):
        for name, curve in curves.items():
            colour, width = (colours[name], 1.4) if name in colours else ("black", 2.2)
            label = f"{_wrapped(name)} {show(curve.area)}"
            axes.plot(curve.false_alarms, curve.sensitivity, color=colour, linewidth=width, label=label)
            at = 1 - curve.at_specificity.point / 100, curve.at_sensitivity.point / 100
            axes.plot(*at, "o", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8)
        axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1)
        axes.set(xlim=(-0.02, 1), ylim=(0, 1.03), aspect="equal", title=_wrapped(model, 40))
        axes.set(xlabel="false alarms (1 − specificity)", ylabel="sensitivity")
        axes.grid()
        axes.legend(loc="lower right", frameon=False).set_in_layout(False)
    return panels[0].figure


def _confusions(results: Results, where: str) -> Figure | None:
    if not results.confusions:
        return None
    names = [of_class.name for of_class in results.classes]
    panels = _panels(len(results.confusions), 3.4, 3.3, f"{where} · counts, shade: share of the true class")
    for axes, (key, confusion) in zip(panels, results.confusions.items(), strict=True):
        shares = confusion.counts / np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (true, called), count in np.ndenumerate(confusion.counts):
            colour = "white" if shares[true, called] > 0.5 else "black"
            axes.text(called, true, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
        title = _wrapped(f"{key} ({results.models[key].classifier})", 34)
        axes.set(title=title, xlabel="called", ylabel="true class")
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0)
        axes.set_yticks(range(len(names)), names)
    return panels[0].figure


def _severity(results: Results, where: str) -> Figure | None:
    severity = results.severity
    if not severity or not severity.scatter:
        return None
    label = np.asarray(results.scans.label)
    panels = _panels(len(severity.scatter), 3.5, 3.1, f"{where} · those with a lesion")
    for axes, (key, scatter) in zip(panels, severity.scatter.items(), strict=True):
        for c, mark in enumerate(results.classes):
            inside = label[scatter.scans] == c
            if inside.any():
                x, y = scatter.severity[inside], scatter.from_normal[inside]
                axes.scatter(x, y, s=9, color=mark.colour, alpha=0.6, linewidths=0, label=mark.name)
        correlation = show(severity.rows[key].all.from_normal, 2)
        axes.set(title=f"{_wrapped(key, 34)}\nrank correlation {correlation}", xlabel=severity.measure)
        axes.set_ylabel("distance from normal")
        axes.grid()
    panels[0].legend(frameon=False)
    return panels[0].figure


def _leaderboard(results: Results, where: str) -> Figure | None:
    board = results.leaderboard
    if not board or not board.rows:
        return None
    score = next(score for score in board.scores if score.key == board.score)
    factor, unit = (100, " %") if score.percent else (1, "")
    ranked = [row for row in board.rows if np.isfinite(row.scores[score.key].point)]
    # The maps without a network are what the others are read against, so they are never cut; nor is the axis stretched
    # by the mask itself.
    controls = [row for row in ranked if row.kind == "reference" and row.name != "the mask itself"]
    rows = [row for row in ranked if row.kind != "reference"][: _MOST_BARS - len(controls)] + controls
    notice = f"{results.notice} · " if results.notice else ""
    title = (
        f"{notice}{counted(board.scans, 'scan')} with a lesion of {counted(board.patients, 'patient')}, 95 % intervals"
    )
    (axes,) = _panels(1, 8, 0.26 * len(rows) + 0.9, title)
    for y, row in enumerate(rows):
        value = row.scores[score.key]
        axes.barh(y, factor * value.point, color=_ROWS[row.kind][1], height=0.7)
        _interval(axes, value, y, factor, color="black", linewidth=1.2)
    axes.set_yticks(range(len(rows)), [_wrapped(row_title(row), 60) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(score.title + unit)
    axes.grid(axis="x")
    axes.legend(handles=[Patch(color=colour, label=name) for name, colour in _ROWS.values()], loc="lower right")
    return axes.figure


def _wrapped(name: str, width: int = 26) -> str:
    return "\n".join(textwrap.wrap(name, width))


# Name → what draws it, and what it shows.
_DRAWN = {
    "accuracy": (
        _accuracy, "Accuracy and balanced accuracy of every model by each classifier, with 95 % intervals of accuracy",
    ),
    "reliability": (_reliability, "Reliability: share of right answers over the stated probability"),
    "roc": (_roc, "Sensitivity over false alarms of each class, and the model's own answers"),
    "confusions": (_confusions, "Confusions of every model's classifier"),
    "severity": (_severity, "Distance from normal scans over the amount of lesion"),
    "leaderboard": (_leaderboard, f"Leaderboard of explanation maps by {SCORE.title}"),
}  # fmt: skip
