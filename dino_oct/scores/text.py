"""How evaluations tell their results: one table on the terminal, one JSON file, figures beside it."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.files import write_whole
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.class_summary import Majority
from dino_oct.scores.classification import METRICS
from dino_oct.scores.paired import Metrics, Result, ResultByClass


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns under a header and a rule."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    printed = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    printed.insert(1, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(line.rstrip() for line in printed)


def show(value: Interval, digits: int = 1, signed: bool = False) -> str:
    """``Interval.words`` as a function, for the cells of tables."""
    return value.words(digits, signed)


ACCURACY_HEADER = ("accuracy %", "balanced %", "AUROC %", "lowest recall %")


def accuracy_cells(row: Result) -> list[str]:
    """Cells under ``ACCURACY_HEADER``."""
    lowest = row.lowest_recall
    return [*(show(getattr(row, metric)) for metric in METRICS), f"{lowest.recall.point:.1f} {lowest.class_}"]


def difference_cells(row: Metrics) -> list[str]:
    """Cells under the same header of a difference of two results, in points."""
    return [*(show(getattr(row, metric), signed=True) for metric in METRICS), ""]


def majority_row(always: Majority, counts: dict[str, dict[str, int]]) -> list[str]:
    """A name, and the cells of naming always the most frequent class.

    Args:
        counts: class → ``scans``, as ``ScanData.counts`` gives them.
    """
    classes = sum(count["scans"] > 0 for count in counts.values())
    rest = ["50.0", "0.0"] if classes > 1 else ["–", f"100.0 {always.name}"]
    return [f"always {always.name}", f"{always.share:.1f}", f"{100 / classes:.1f}", *rest]


def missing_intervals(result: Any) -> list[str]:
    """Why numbers of a result have no interval, each reason once, as notes."""

    def reasons(value: Any) -> Iterator[str]:
        if isinstance(value, Interval):
            yield value.reason
        elif dataclasses.is_dataclass(value):
            yield from reasons(vars(value))
        elif isinstance(value, (dict, list, tuple)):
            for item in value.values() if isinstance(value, dict) else value:
                yield from reasons(item)

    return [f"a number without an interval: {reason}" for reason in dict.fromkeys(filter(None, reasons(result)))]


def plain(value: Any) -> Any:
    """A value as JSON takes it: arrays and tuples to lists, dataclasses to objects (``class_`` as "class", a field with
    a ``key`` in its metadata as that), NaN and infinity to null."""
    if dataclasses.is_dataclass(value):
        fields = {field.metadata.get("key", field.name.rstrip("_")): field.name for field in dataclasses.fields(value)}
        return {key: plain(getattr(value, name)) for key, name in fields.items()}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(result: Any, file: Path) -> None:
    """Write a result whole or not at all."""
    write_whole(file, json.dumps(plain(result), indent=1, ensure_ascii=False, allow_nan=False))


def recall_table(rows: dict[str, ResultByClass], scans: dict[str, int]) -> str:
    """Recall of each class by row.

    Args:
        scans: class → number of classified scans.
    """
    header = ["recall %", *(f"{name} ({count})" for name, count in scans.items())]
    return table(header, [[name, *(show(row.recall[label]) for label in scans)] for name, row in rows.items()])


def closing(result: dict[str, Any]) -> list[str]:
    """Last lines of a report: verdicts, notes, and how well the classes are told without the retina."""
    data = result["data"]
    notes = [*result["notes"], *missing_intervals(result)]
    lines = ["", *result["verdicts"], *(f"note: {note}" for note in notes)]
    if shortcuts := data["shortcut"]:
        found = ", ".join(f"{one['features']} {show(one['balanced_accuracy'])} %" for one in shortcuts)
        done = "are neutralised here" if data["dataset"]["neutralise_borders"] else "are NOT neutralised here"
        lines.append(
            f"shortcut check: balanced accuracy without the shape of the retina, from {found} "
            f"(chance {shortcuts[0]['chance']:.1f} %); white borders {done}"
        )
    return lines


def heading(title: str, result: dict[str, Any], details: str = "") -> list[str]:
    """First lines of a report: which evaluation of which source, whether on phantoms, and which weights by sha256, with
    what was loaded of them."""
    model, notice = result["model"], f" · {PHANTOM_NOTICE}" if result["data"]["synthetic"] else ""
    lines = [f"{title} of {model['source']} ({model['chosen']}){details}{notice}"]
    for name, weights in result["weights"].items():
        lines.append(f"{name}: {weights.file or weights.source} (sha256 {weights.sha256}…)")
        if weights.file:
            lines += _in_lines(weights.loaded)
    return lines


def _in_lines(text: str, width: int = 80) -> list[str]:
    """Clauses of a text in indented lines, as many in each as fit."""
    lines = [""]
    for clause in text.split("; "):
        if lines[-1] and len(lines[-1]) + len(clause) + 4 > width:
            lines[-1] += ";"
            lines.append("")
        lines[-1] += f"; {clause}" if lines[-1] else f"  {clause}"
    return lines


PHANTOM_NOTICE = "PHANTOMS: synthetic scans"
