"""Figures of a comparison as PNG and SVG: accuracies, confusions, reliability, embedding maps, severity, and the league
of maps."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dino_oct.files import write_whole
from dino_oct.scores.classification import CALIBRATION_BINS, Reliability
from dino_oct.scores.text import show
from evaluation.pages.embedding_figures import Frame, Mark, Panel, draw_panels
from evaluation.report.embedding import Embedding
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
_LEAGUE_COLOURS = {"map": "#0072B2", "ensemble": "#009E73", "reference": "#999999"}
_MOST_BARS = 30
_ACROSS = 3  # panels beside each other
# Names are no formulas, text stays text that a reader can search for, and the same numbers give the same file.
_STYLE = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "dino-oct"}


def write_figures(
    results: Results, maps: dict[str, np.ndarray], marked: Sequence[Mark], folder: Path
) -> tuple[list[FigureFile], dict[str, str]]:
    """Write every figure that the results allow into ``folder``/figures.

    Args:
        maps: model → (N, 2) points of the embedding's scans.

    Returns:
        The files, and name → SVG of all but the embedding, which the page draws itself.
    """
    target = folder / "figures"
    notice = f"{results.notice} · " if results.notice else ""
    where = f"{notice}{results.verdict.scans:,} test scans of {results.verdict.patients:,} patients"
    files, drawn = [], {}
    target.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        for name, draw in (
            ("accuracy", _accuracy),
            ("reliability", _reliability),
            ("confusions", _confusions),
            ("severity", _severity),
            ("league", _league),
        ):
            if (made := draw(results, where)) is not None:
                figure, title = made
                write_whole(target / f"{name}.png", _saved(figure, "png"))
                svg = _saved(figure, "svg")
                write_whole(target / f"{name}.svg", svg)
                drawn[name] = svg.decode()
                files.append(FigureFile(f"figures/{name}.png", title))
    if results.embedding and maps:
        _embedding(results.embedding, results.scans.label, maps, marked, where, target)
        files.append(FigureFile("figures/embedding.png", "UMAP maps of the features of every model"))
    return files, drawn


def _saved(figure: Figure, kind: str) -> bytes:
    with io.BytesIO() as stream:
        undated = {"metadata": {"Date": None}} if kind == "svg" else {}
        figure.savefig(stream, dpi=_DPI, bbox_inches="tight", format=kind, **undated)
        return stream.getvalue()


def _panels(count: int, width: float, height: float, across: int = _ACROSS, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure of some panels of a size in inches, row by row."""
    columns = min(count, across)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _accuracy(results: Results, where: str) -> tuple[Figure, str]:
    """Accuracy of every model by each protocol, with intervals, beside balanced accuracy."""
    table = results.table
    balanced = {column.key for column in table.columns if column.key.endswith("_balanced_accuracy")}
    beside = {key.removesuffix("_balanced_accuracy"): key for key in balanced}
    beside |= {f"{protocol}_accuracy": key for protocol, key in beside.items()}
    columns = [column for column in table.columns if column.key in beside]
    models = list(results.models)
    figure, panels = _panels(len(columns), 4, 0.42 * len(models) + 1, across=2, sharey=True)
    for axes, column in zip(panels, columns, strict=True):
        for y, key in enumerate(models):
            value = table.rows[key][column.key]
            colour = KIND_COLOURS[results.models[key].kind]
            if value is None:
                axes.text(0.5, y, "–", transform=axes.get_yaxis_transform(), ha="center", va="center", color="0.5")
                continue
            best = table.best[column.key] == key
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [y, y], color=colour, linewidth=2.2)
            if mean_recall := table.rows[key][beside[column.key]]:
                axes.plot(mean_recall.point, y, "D", color=colour, markersize=7, markerfacecolor="none")
            axes.plot(value.point, y, "o", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8)
            axes.annotate(
                show(value), (value.point, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7,
                fontweight="bold" if best else "normal",
            )  # fmt: skip
        axes.set_title(f"{column.group}: {column.title}", fontsize=9)
        axes.set_xlabel("accuracy %", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.margins(x=0.22)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, high - 8), high)  # an axis of half a point would make noise look like a difference
        axes.set_xticks([tick for tick in axes.get_xticks() if min(low, high - 8) <= tick <= 100])
    panels[0].set_yticks(range(len(models)), [_wrapped(key) for key in models], fontsize=8)
    panels[0].set_ylim(len(models) - 0.5, -0.7)
    _title(
        figure,
        f"{where} · points: accuracy with 95 % intervals by patient, bold: shown to be the best; diamonds: balanced "
        f"accuracy; {results.verdict.majority.words}",
    )
    return figure, "Accuracy and balanced accuracy of every model by each protocol, with 95 % intervals of accuracy"


def _reliability(results: Results, where: str) -> tuple[Figure, str] | None:
    """Accuracy over stated probability of every classifier; on the diagonal it is calibrated."""
    diagrams = [
        (model, protocol, of_protocol)
        for model, by_protocol in results.reliability.items()
        for protocol, of_protocol in by_protocol.items()
    ]
    if not diagrams:
        return None
    figure, panels = _panels(len(diagrams), 3.5, 3.4)
    for axes, (model, protocol, of_protocol) in zip(panels, diagrams, strict=True):
        _reliability_panel(axes, of_protocol)
        error = results.table.rows[model][f"{protocol}_calibration_error"]
        axes.set_title(
            f"{_wrapped(f'{model}, {protocol_title(protocol)}', 34)}\ncalibration error {show(error)} %", fontsize=8.5
        )
    _title(
        figure,
        f"{where} · share of right calls over their mean stated probability, in {CALIBRATION_BINS} equal bins; "
        "numbers: scans of a bin; above the dashed line a classifier is too cautious, below it too sure",
    )
    return figure, "Reliability of every classifier: accuracy over stated probability"


def _reliability_panel(axes: Axes, diagram: Reliability) -> None:
    width, used = 1 / len(diagram.counts), diagram.counts > 0
    left = np.arange(len(diagram.counts))[used] * width
    axes.bar(left, diagram.accuracy[used], width, align="edge", color="#56B4E9", alpha=0.55, edgecolor="white")
    axes.plot([0, 1], [0, 1], color="0.35", linestyle="--", linewidth=1)
    axes.plot(diagram.confidence[used], diagram.accuracy[used], "o", color="#0072B2", markersize=3.5)
    for x, count in zip(left, diagram.counts[used].tolist(), strict=True):
        axes.text(x + width / 2, 0.015, f"{count:,}", rotation=90, ha="center", va="bottom", fontsize=6.5)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), aspect="equal")
    axes.set_xlabel("stated probability", fontsize=8)
    axes.set_ylabel("accuracy", fontsize=8)
    axes.tick_params(labelsize=7)


def _confusions(results: Results, where: str) -> tuple[Figure, str] | None:
    if not results.confusions:
        return None
    names = [of_class.name for of_class in results.classes]
    figure, panels = _panels(len(results.confusions), 3.4, 3.3)
    for axes, (key, confusion) in zip(panels, results.confusions.items(), strict=True):
        counts = confusion.counts
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (true, called), count in np.ndenumerate(counts):
            dark = shares[true, called] > 0.5
            axes.text(
                called, true, f"{count:,}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
        axes.set_title(_wrapped(f"{key} ({results.models[key].classifier})", 34), fontsize=9)
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=30 if len(names) > 3 else 0)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set(xlabel="called", ylabel="true class")
    _title(figure, f"{where} · counts, shade: share of the true class")
    return figure, "Confusions of every model's classifier"


def _severity(results: Results, where: str) -> tuple[Figure, str] | None:
    severity = results.severity
    if not severity or not severity.scatter:
        return None
    label = np.asarray(results.scans.label)
    figure, panels = _panels(len(severity.scatter), 3.5, 3.1)
    for axes, (key, scatter) in zip(panels, severity.scatter.items(), strict=True):
        labels = label[scatter.scans]
        for c, mark in enumerate(results.classes):
            inside = labels == c
            if inside.any():
                x, y = scatter.severity[inside], scatter.from_normal[inside]
                axes.scatter(x, y, s=9, color=mark.colour, alpha=0.6, linewidths=0, label=mark.name)
        correlation = severity.rows[key].all.from_normal
        axes.set_title(f"{_wrapped(key, 34)}\nrank correlation {show(correlation, 2)}", fontsize=8.5)
        axes.set_xlabel(severity.measure, fontsize=8)
        axes.set_ylabel("1 − cosine to normal", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
    panels[0].legend(fontsize=7, frameon=False)
    _title(figure, f"{where} · those with a lesion")
    return figure, "Distance of the features from normal scans over the lesion load"


def _league(results: Results, where: str) -> tuple[Figure, str] | None:
    league = results.league
    if not league or not league.rows:
        return None
    key = league.score
    score = next(score for score in league.scores if score.key == key)
    factor = 100 if score.percent else 1
    ranked = [row for row in league.rows if np.isfinite(row.scores[key].point)]
    # The maps without a network are what the others are read against, so they are never cut; nor is the axis stretched
    # by the mask itself.
    controls = [row for row in ranked if row.kind == "reference" and row.name != "the mask itself"]
    rows = [row for row in ranked if row.kind != "reference"][: _MOST_BARS - len(controls)] + controls
    figure = Figure(figsize=(8, 0.26 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        value = row.scores[key]
        axes.barh(y, factor * value.point, color=_LEAGUE_COLOURS[row.kind], height=0.7)
        if value.low is not None and value.high is not None:
            axes.plot([factor * value.low, factor * value.high], [y, y], color="black", linewidth=1.2)
    axes.set_yticks(range(len(rows)), [_wrapped(row.name, 60) for row in rows], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlabel(f"{score.title}{' %' if score.percent else ''}")
    axes.grid(axis="x", alpha=0.25)
    names = {"map": "one map", "ensemble": "ensemble", "reference": "no network"}
    handles = [Patch(color=_LEAGUE_COLOURS[kind], label=name) for kind, name in names.items()]
    axes.legend(handles=handles, loc="lower right", fontsize=8)
    notice = f"{results.notice} · " if results.notice else ""
    _title(figure, f"{notice}{league.scans:,} scans with a lesion of {league.patients:,} patients, 95 % intervals")
    return figure, f"League of explanation maps by {score.title}"


def _embedding(
    embedding: Embedding,
    label: Sequence[int],
    maps: dict[str, np.ndarray],
    marked: Sequence[Mark],
    where: str,
    target: Path,
) -> None:
    labels = np.asarray(label)[embedding.scans]
    labels = np.where(labels < 0, len(marked) - 1, labels)
    panels = []
    for panel in embedding.panels:
        purity = f"{embedding.k}-NN purity of the features {show(panel.purity)} %" if panel.purity else ""
        panels.append(Panel(panel.title, (Frame(purity, maps[panel.model]),)))
    for suffix in ("png", "svg"):
        draw_panels(panels, marked, labels, where, target / f"embedding.{suffix}")


def _title(figure: Figure, text: str) -> None:
    """Over all panels, in as many lines as the figure's width asks for."""
    figure.suptitle(_wrapped(text, math.floor(15 * figure.get_figwidth())), fontsize=9, x=0.01, ha="left")


def _wrapped(name: str, width: int = 26) -> str:
    return "\n".join(textwrap.wrap(name, width))
