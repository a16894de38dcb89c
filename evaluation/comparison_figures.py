"""Figures of a comparison as PNG and SVG: accuracies, confusions, embedding maps, severity, and the league of maps."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dino_oct.bootstrap import Interval
from dino_oct.files import replacing
from evaluation.embedding_figures import Frame, Mark, Panel, draw_panels
from evaluation.reports import show

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


def write_figures(
    results: dict[str, Any], maps: dict[str, np.ndarray], marked: Sequence[Mark], folder: Path
) -> list[dict[str, str]]:
    """Write every figure that the results allow into ``folder``/figures.

    Args:
        results: as ``results.json``, numbers as ``Interval``, scans as positions in ``results["scans"]``.
        maps: model → (N, 2) points of the embedding's scans.

    Returns:
        ``results["figures"]``.
    """
    target = folder / "figures"
    notice = f"{results['notice']} · " if results["notice"] else ""
    verdict = results["verdict"]
    where = f"{notice}{verdict['scans']:,} test scans of {verdict['patients']:,} patients"
    done = []
    target.mkdir(parents=True, exist_ok=True)
    for name, draw in (
        ("accuracy", _forest),
        ("confusions", _confusions),
        ("severity", _severity),
        ("league", _league),
    ):
        made = draw(results, where)
        if made is not None:
            figure, title = made
            for suffix in ("png", "svg"):
                with replacing(target / f"{name}.{suffix}") as partial:
                    figure.savefig(partial, dpi=_DPI, bbox_inches="tight", format=suffix)
            done.append({"file": f"figures/{name}.png", "title": title})
    if maps:
        done.append(_embedding(results, maps, marked, where, target))
    return done


def _forest(results: dict[str, Any], where: str) -> tuple[Figure, str] | None:
    """Accuracy of every model by each protocol, with intervals, beside balanced accuracy."""
    balanced = {column["key"] for column in results["table"]["columns"] if column["key"].endswith("_balanced_accuracy")}
    beside = {key.removesuffix("_balanced_accuracy"): key for key in balanced}
    beside |= {f"{protocol}_accuracy": key for protocol, key in beside.items()}
    wanted = [column for column in results["table"]["columns"] if column["key"] in beside]
    models = list(results["models"])
    figure = Figure(figsize=(3.1 * len(wanted) + 1.8, 0.42 * len(models) + 1.7), layout="constrained")
    panels = figure.subplots(1, len(wanted), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, wanted, strict=True):
        for y, key in enumerate(models):
            value: Interval | None = results["table"]["rows"][key][column["key"]]
            colour = KIND_COLOURS[results["models"][key]["kind"]]
            if value is None:
                axes.text(0.5, y, "–", transform=axes.get_yaxis_transform(), ha="center", va="center", color="0.5")
                continue
            best = results["table"]["best"][column["key"]] == key
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [y, y], color=colour, linewidth=2.2)
            if mean_recall := results["table"]["rows"][key][beside[column["key"]]]:
                axes.plot(mean_recall.point, y, "D", color=colour, markersize=7, markerfacecolor="none")
            axes.plot(value.point, y, "o", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.8)
            axes.annotate(
                show(value), (value.point, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7,
                fontweight="bold" if best else "normal",
            )  # fmt: skip
        group = "" if column["group"] == column["title"] else f"{column['group']}: "
        axes.set_title(f"{group}{column['title']}", fontsize=9)
        axes.set_xlabel("accuracy %" if column["group"] == "k-NN" else "%", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.margins(x=0.22)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, high - 8), high)  # an axis of half a point would make noise look like a difference
        axes.set_xticks([tick for tick in axes.get_xticks() if min(low, high - 8) <= tick <= 100])
    panels[0].set_yticks(range(len(models)), [_wrapped(key) for key in models], fontsize=8)
    panels[0].set_ylim(len(models) - 0.5, -0.7)
    always = results["verdict"]["majority"]
    figure.suptitle(
        f"{where} · points: accuracy with 95 % intervals by patient, bold: shown to be the best; diamonds: balanced "
        f"accuracy; {always.words}",
        fontsize=9,
    )
    return figure, "Accuracy and balanced accuracy of every model by each protocol, with 95 % intervals of accuracy"


def _confusions(results: dict[str, Any], where: str) -> tuple[Figure, str] | None:
    found = results["confusions"]
    if not found:
        return None
    names = [one["name"] for one in results["classes"]]
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.3 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(found) :]:
        axes.set_axis_off()
    for axes, (key, one) in zip(panels.flat, found.items(), strict=False):
        counts = np.asarray(one["counts"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (true, called), count in np.ndenumerate(counts):
            dark = shares[true, called] > 0.5
            axes.text(
                called, true, f"{count:,}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
        axes.set_title(_wrapped(f"{key} ({results['models'][key].get('classifier', '')})", 34), fontsize=9)
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=30 if len(names) > 3 else 0)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set(xlabel="called", ylabel="true class")
    figure.suptitle(f"{where} · counts, shade: share of the true class", fontsize=9)
    return figure, "Confusions of every model's classifier"


def _severity(results: dict[str, Any], where: str) -> tuple[Figure, str] | None:
    found = results["severity"]
    if not found or not found["scatter"]:
        return None
    marks, label = results["classes"], np.asarray(results["scans"]["label"])
    columns = min(len(found["scatter"]), 3)
    rows = -(-len(found["scatter"]) // columns)
    figure = Figure(figsize=(3.5 * columns, 3.1 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(found["scatter"]) :]:
        axes.set_axis_off()
    for axes, (key, one) in zip(panels.flat, found["scatter"].items(), strict=False):
        labels = label[np.asarray(one["scans"])]
        for c, mark in enumerate(marks):
            inside = labels == c
            if inside.any():
                x, y = np.asarray(one["severity"])[inside], np.asarray(one["from_normal"])[inside]
                axes.scatter(x, y, s=9, color=mark["colour"], alpha=0.6, linewidths=0, label=mark["name"])
        correlation = found["rows"][key]["all"]["from_normal"]
        axes.set_title(f"{_wrapped(key, 34)}\nrank correlation {show(correlation, 2)}", fontsize=8.5)
        axes.set_xlabel(found["measure"], fontsize=8)
        axes.set_ylabel("1 − cosine to normal", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
    panels.flat[0].legend(fontsize=7, frameon=False)
    figure.suptitle(f"{where} · those with a lesion", fontsize=9)
    return figure, "Distance of the features from normal scans over the lesion load"


def _league(results: dict[str, Any], where: str) -> tuple[Figure, str] | None:
    found = results["league"]
    if not found or not found["rows"]:
        return None
    score = found["score"]
    about = next(one for one in found["scores"] if one["key"] == score)
    factor = 100 if about.get("percent") else 1
    ranked = [row for row in found["rows"] if row["scores"].get(score) is not None]
    # The maps without a network are what the others are read against, so they are never cut; nor is the axis stretched
    # by the mask itself.
    controls = [row for row in ranked if row["kind"] == "reference" and row["name"] != "the mask itself"]
    rows = [row for row in ranked if row["kind"] != "reference"][: _MOST_BARS - len(controls)] + controls
    figure = Figure(figsize=(8, 0.26 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        value = row["scores"][score]
        point, low, high = (None if v is None else factor * v for v in _parts(value))
        if point is None:
            continue
        axes.barh(y, point, color=_LEAGUE_COLOURS[row["kind"]], height=0.7)
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color="black", linewidth=1.2)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlabel(f"{about['title']}{' %' if about.get('percent') else ''}")
    axes.grid(axis="x", alpha=0.25)
    names = {"map": "one map", "ensemble": "ensemble", "reference": "no network"}
    handles = [Patch(color=_LEAGUE_COLOURS[kind], label=name) for kind, name in names.items()]
    axes.legend(handles=handles, loc="lower right", fontsize=8)
    notice = f"{results['notice']} · " if results["notice"] else ""
    figure.suptitle(
        f"{notice}{found['scans']:,} scans with a lesion of {found['patients']:,} patients, 95 % intervals", fontsize=9
    )
    return figure, f"League of explanation maps by {about['title']}"


def _parts(value: Any) -> tuple[float | None, float | None, float | None]:
    if isinstance(value, Interval):
        return (value.point if np.isfinite(value.point) else None), value.low, value.high
    return value["point"], value["low"], value["high"]


def _embedding(
    results: dict[str, Any], maps: dict[str, np.ndarray], marked: Sequence[Mark], where: str, target: Path
) -> dict[str, str]:
    found = results["embedding"]
    labels = np.asarray(results["scans"]["label"])[np.asarray(found["scans"])]
    labels = np.where(labels < 0, len(marked) - 1, labels)
    panels = []
    for panel in found["panels"]:
        purity = panel["purity"]
        caption = f"{found['k']}-NN purity of the features {show(purity)} %" if purity else ""
        panels.append(Panel(panel["title"], (Frame(caption, maps[panel["model"]]),)))
    for suffix in ("png", "svg"):
        draw_panels(panels, marked, labels, where, target / f"embedding.{suffix}")
    return {"file": "figures/embedding.png", "title": "UMAP maps of the features of every model"}


def _wrapped(name: str, width: int = 26) -> str:
    return "\n".join(textwrap.wrap(name, width))
