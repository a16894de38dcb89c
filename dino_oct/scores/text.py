"""How evaluations tell their results: one table on the terminal, one JSON file, figures beside it."""

import dataclasses
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.files import write_whole
from dino_oct.models.frozen import Weights
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.class_summary import Majority
from dino_oct.scores.classification import METRICS
from dino_oct.scores.paired import Metrics, Result
from dino_oct.scores.units import ByUnit
from dino_oct.words import counted

PHANTOM_NOTICE = "PHANTOMS: synthetic scans"
# The order of a JSON file: what was evaluated, its numbers, what they say.
_FIRST = ("evaluation", "model", "weights", "data", "models", "settings", "units")
_LAST = ("verdicts", "notes", "statements")


def written(*files: str | Path) -> str:
    """The end of what a command prints: what it wrote, a path a line."""
    return "\n".join(["written:", *(f"  {file}" for file in files)])


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What every evaluation says beside its own numbers.

    Attributes:
        evaluation: its name; model: ``source`` and how it was ``chosen``, with its ``run``.
        weights: row → what identifies its weights.
        data: as ``ScanData.summary``, and what else belongs to the scans.
        units: of the numbers; notes: what limits them, one line each.
    """

    evaluation: str
    model: dict[str, str | Path | None]
    weights: dict[str, Weights]
    data: dict[str, Any]
    settings: dict[str, Any]
    units: str
    notes: list[str]

    @property
    def notice(self) -> str:
        """What titles of figures begin with: nothing, or that the scans are phantoms."""
        return f"{PHANTOM_NOTICE} · " if self.data["synthetic"] else ""

    def as_json(self) -> dict[str, Any]:
        """As ``plain``, in the order of reading."""
        values = plain(self)
        numbers = [name for name in values if name not in _FIRST + _LAST]
        return {name: values[name] for name in (*_FIRST, *numbers, *_LAST) if name in values}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns under a header and a rule.

    On a terminal that is too narrow the columns are in several tables, each with the cells that name its rows.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n\n".join(_aligned(lines, widths, columns) for columns in _that_fit(lines[1:], widths))


def _that_fit(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[list[int]]:
    """Which columns are side by side; those that name a row, as none has the same there, are in each."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
    n_names = next((n for n in (1, 2) if len({tuple(row[:n]) for row in rows}) == len(rows)), 1)
    names = list(range(n_names))
    columns = [*names]
    for i in range(n_names, len(widths)):
        if len(columns) > n_names and sum(widths[j] + 2 for j in (*columns, i)) - 2 > room:
            yield columns
            columns = [*names]
        columns.append(i)
    yield columns


def _aligned(lines: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int]) -> str:
    printed = ["  ".join(line[i].ljust(widths[i]) for i in columns) for line in lines]
    printed.insert(1, "─" * (sum(widths[i] for i in columns) + 2 * (len(columns) - 1)))
    return "\n".join(line.rstrip() for line in printed)


def show(value: Interval | None, digits: int = 1, signed: bool = False) -> str:
    """``Interval.words`` for a cell of a table, which is empty for None."""
    return value.words(digits, signed) if value else ""


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


def unit_lines(by_unit: dict[str, ByUnit], resamples: int, said: Sequence[str] = (), setting: str = "") -> list[str]:
    """Tables of each unit, in 80 columns: the rule and the metrics of each row, then the differences; and notes.

    Args:
        said: notes that are not said again.
        setting: title of the column of settings where there are several.
    """
    lines = []
    for unit, of_unit in by_unit.items():
        notes = [f"note: by {unit}: {note}" for note in of_unit.notes if note not in said]
        lines += ["", *_unit_tables(unit, of_unit, setting), *notes]
    if any(of_unit.rows for of_unit in by_unit.values()) and resamples:
        lines += [f"[95 % interval, ends rounded outwards, {resamples} resamples of patients]"]
    return lines


def _unit_tables(unit: str, of_unit: ByUnit, setting: str) -> Iterator[str]:
    if not of_unit.rows:
        return
    of_patients = "" if unit == "patient" else f" of {counted(of_unit.patients, 'patient')}"
    yield f"by {unit}: {counted(of_unit.units, unit)}{of_patients}"
    if of_unit.val_units:
        yield f"rule: chosen by balanced accuracy on {counted(of_unit.val_units, f'validation {unit}')}"
    else:
        yield f"rule: mean, not chosen: {of_unit.why_mean}"
    columns = [setting] if setting else []
    metrics = ACCURACY_HEADER[: len(METRICS)]
    always, *cells = majority_row(of_unit.majority, {name: {"scans": n} for name, n in of_unit.classes.items()})
    rows = [
        [*key, name, row.rule, *(narrow(getattr(row, metric)) for metric in METRICS)]
        for key, name, row in _by_setting(of_unit.rows, setting)
    ]
    yield table([*columns, "", "rule", *metrics], [*rows, [*("" for _ in columns), always, "", *cells[: len(METRICS)]]])
    differences = [
        [*key, name.split(" − ", 1)[1], *(narrow(getattr(row, metric), signed=True) for metric in METRICS)]
        for key, name, row in _by_setting(of_unit.differences, setting)
    ]
    if differences:
        first = next(iter(of_unit.rows))
        yield ""
        yield table([*columns, f"{first} minus", *metrics], differences)


def _by_setting(rows: dict[str, Any], setting: str) -> list[tuple[list[str], str, Metrics]]:
    """(cells of the setting, row, numbers), setting by setting."""
    if not setting:
        return [([], name, row) for name, row in rows.items()]
    settings = dict.fromkeys(k for by_k in rows.values() for k in by_k)
    return [([str(k)], name, by_k[k]) for k in settings for name, by_k in rows.items() if k in by_k]


def narrow(value: Interval, signed: bool = False) -> str:
    """As ``show``, the ends as whole numbers, rounded outwards: units are few, and tables stay narrow."""
    if value.low is None or value.high is None or not math.isfinite(value.point):
        return show(value, signed=signed)
    sign = "+" if signed else ""
    low, high = math.floor(value.low + 1e-9), math.ceil(value.high - 1e-9)
    return f"{value.point:{sign}.1f} [{low:{sign}d}, {high:{sign}d}]"


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


def slice_words(number: int | str, from_fovea_um: float | None) -> str:
    """A slice of a volume: its number and, where it is known, how far from the fovea it is."""
    away = "" if from_fovea_um is None else f" · {abs(from_fovea_um) / 1000:.2f} mm from the fovea"
    return f"slice {number}{away}"


def plain(value: Any) -> Any:
    """A value as JSON takes it: arrays and tuples to lists, dataclasses to objects (``class_`` as "class", a field with
    a ``key`` in its metadata as that, one with ``may_be_empty`` left out if it is), NaN and infinity to null."""
    if dataclasses.is_dataclass(value):
        fields = [f for f in dataclasses.fields(value) if not f.metadata.get("may_be_empty") or getattr(value, f.name)]
        return {f.metadata.get("key", f.name.rstrip("_")): plain(getattr(value, f.name)) for f in fields}
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
    values = result.as_json() if isinstance(result, Evaluation) else plain(result)
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(file, text.encode(errors="backslashreplace"))  # bytes of a path that are no text, as JSON escapes them


def closing(result: Evaluation, verdicts: Sequence[str] = ()) -> list[str]:
    """Last lines of a report: verdicts, notes, and how well the classes are told without the retina."""
    notes = dict.fromkeys([*result.notes, *missing_intervals(result)])
    lines = ["", *verdicts, *(f"note: {note}" for note in notes)]
    if shortcuts := result.data.get("shortcut"):
        features = ", ".join(f"{cut['features']} {show(cut['balanced_accuracy'])} %" for cut in shortcuts)
        done = "are neutralised here" if result.data["dataset"]["neutralise_borders"] else "are NOT neutralised here"
        chances = sorted({f"{cut['chance']:.1f}" for cut in shortcuts}, key=float)  # fewer classes may have a device
        lines.append(
            f"shortcut check: balanced accuracy without the shape of the retina, from {features} "
            f"(chance {' to '.join(chances)} %); white borders {done}"
        )
    return lines


def heading(title: str, result: Evaluation, details: str = "") -> list[str]:
    """First lines of a report: which evaluation of which source, whether on phantoms, and which weights by sha256, with
    what was loaded of them."""
    notice = f" · {PHANTOM_NOTICE}" if result.data["synthetic"] else ""
    lines = [f"{title} of {result.model['source']} ({result.model['chosen']}){details}{notice}"]
    for name, weights in result.weights.items():
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
        lines[-1:] = textwrap.wrap(lines[-1], width - 1, subsequent_indent="  ")  # a semicolon may follow
    return lines
