"""Figures of a search: the paper's figure 3, and which settings mattered."""

import io
import textwrap
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from supervised.trials import Row

# Okabe & Ito's colours, which differ for every kind of colour vision; each line also ends at its architecture's name.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}  # keeps numbers readable over lines
_AXES = (0.0, 1.0, 2.0)


def draw_figure3(rows: Sequence[Row], title: str) -> bytes:
    """Parallel coordinates (Lutsker & Ravid 2022, figure 3): architecture, validation, test accuracy; PNG.

    Every trial with a result is a line from its architecture to its validation; the architecture's winner goes on to
    the test, with its 95 % patient interval. Both accuracies have one scale, so that a falling line is a lower test.
    """
    rows = [row for row in rows if row.rank is not None]
    names = list(dict.fromkeys(row.paper for row in rows))  # best architecture first
    places = dict(zip(names, np.linspace(1, 0, len(names) + 2)[1:-1], strict=True))
    tested = [row for row in rows if row.test_accuracy]
    low, high = _range([r.val_accuracy for r in rows] + [v for r in tested for v in _ends(r)])
    has_test = bool(tested)

    def height(value: float) -> float:
        return (value - low) / (high - low)

    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure, axis = plt.subplots(figsize=(7.2, max(4.0, 0.34 * len(names) + 2.2)), layout="constrained")
        half = 0.02 * min(len(tested) - 1, 4)  # tests stand side by side, so that none hides another
        test_x = dict(zip((row.trial for row in tested), _AXES[2] + np.linspace(-half, half, len(tested)), strict=True))
        for row in reversed(rows):  # the best on top
            colour = _COLOURS[names.index(row.paper) % len(_COLOURS)]
            interval = row.test_accuracy
            x, y = [_AXES[0], _AXES[1]], [places[row.paper], height(row.val_accuracy)]
            if interval:
                x.append(test_x[row.trial])
                y.append(height(interval.point))
                axis.plot(x[2], y[2], "D", color=colour, markersize=6, markeredgecolor="white", zorder=5)
                if interval.low is not None:
                    ends = [height(interval.low), height(interval.high)]
                    axis.plot([x[2]] * 2, ends, color=colour, linewidth=2.4, alpha=0.6, zorder=3)
            axis.plot(
                x,
                y,
                color=colour,
                linewidth=2.4 if interval else 1.1,
                linestyle=(0, (4, 2)) if row.state == "stopped early" else "-",
                alpha=1.0 if interval else 0.55,
                zorder=3 if interval else 2,
            )
            axis.plot(x[1], y[1], "o", color=colour, markersize=6 if interval else 4, zorder=4)
        ticks = _ticks(low, high)
        for place in _AXES[: 3 if has_test else 2]:
            axis.axvline(place, color="0.25", linewidth=1, zorder=1)
            if place != _AXES[0]:
                for tick in ticks:
                    axis.plot([place - 0.012, place + 0.012], [height(tick)] * 2, color="0.25", linewidth=1, zorder=1)
                    axis.text(
                        place + (0.03 if place == _AXES[1] else half + 0.04),
                        height(tick),
                        f"{tick:g}",
                        va="center",
                        fontsize=8,
                        color="0.3",
                        bbox=_BEHIND,
                        zorder=6,
                    )
        for name, y in places.items():
            count = sum(row.paper == name for row in rows)
            axis.text(-0.03, y, f"{name} ({count})", ha="right", va="center", fontsize=8.5)
        axis.set(xlim=(-0.05, 2.25 if has_test else 1.25), ylim=(-0.04, 1.04), yticks=[])
        labels = ["architecture\n(trials)", "validation\naccuracy, %", "test accuracy, %\n(winners, 95 % interval)"]
        axis.set_xticks(_AXES[: 3 if has_test else 2], labels[: 3 if has_test else 2])
        axis.tick_params(axis="x", length=0)
        axis.spines[:].set_visible(False)
        early = any(row.state == "stopped early" for row in rows)
        lines = f"{len(rows)} trials" + ("; dashed: stopped early" if early else "")
        lines += "; thick: winners by balanced validation accuracy" if has_test else ""
        axis.set_title(f"{title}\n{lines}", fontsize=9)
        return _png(figure)


def _ends(row: Row) -> list[float]:
    interval = row.test_accuracy
    return [interval.point] if interval.low is None else [interval.point, interval.low, interval.high]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A round range of per cent around the values."""
    low, high = 5 * np.floor(min(values) / 5), 5 * np.ceil(max(values) / 5)
    return (max(low - 5, 0.0), min(high + 5, 100.0)) if low == high else (float(low), float(high))


def _ticks(low: float, high: float) -> np.ndarray:
    step = next(step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 10)
    return np.arange(np.ceil(low / step) * step, high + 1e-9, step)


def draw_importance(shares: dict[str, float], title: str) -> bytes:
    """Bars of the share of variance that each setting explains; PNG."""
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure, axis = plt.subplots(figsize=(6.4, 0.36 * len(shares) + 1.5), layout="constrained")
        names, values = list(shares), [100 * value for value in shares.values()]
        axis.barh(names[::-1], values[::-1], color="#0072B2", height=0.65)
        for y, value in enumerate(values[::-1]):
            axis.text(value + 1, y, f"{value:.0f}", va="center", fontsize=8.5)
        axis.set(
            xlim=(0, max(values) * 1.1 + 3), xlabel="share of the variance of balanced validation accuracy, % (fANOVA)"
        )
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title("\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, 80)), fontsize=9)
        return _png(figure)


def _png(figure: plt.Figure) -> bytes:
    with io.BytesIO() as stream:
        figure.savefig(stream, dpi=150, format="png", bbox_inches="tight", pad_inches=0.1)
        plt.close(figure)
        return stream.getvalue()
