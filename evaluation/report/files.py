"""What a comparison leaves on disk beside its figures: results.json, results.csv and the page."""

import csv
import io
from pathlib import Path

import numpy as np

from dino_oct.files import write_whole
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.text import write_json
from evaluation.report.page import render
from evaluation.report.results import Media, Results


def write_report(results: Results, media: Media, folder: Path) -> list[str]:
    """Write ``results.json``, ``results.csv`` and ``report.html``, each whole or not at all.

    Returns:
        the names of what was written.
    """
    write_json(results, folder / "results.json")
    write_whole(folder / "results.csv", as_csv(results))
    write_whole(folder / "report.html", render(results, media))
    return ["report.html", "results.json", "results.csv"]


def as_csv(results: Results) -> str:
    """The table of models: one row a model; point, low and high of every column."""
    keys = [column.key for column in results.table.columns]
    with io.StringIO() as stream:
        writer = csv.writer(stream)
        facts = ("kind", "architecture", "source", "sha256")
        columns = [f"{key}{end}" for key in keys for end in ("", "_low", "_high")]
        writer.writerow(["model", *facts, "test_scans", "test_patients", *columns])
        for model, row in results.table.rows.items():
            about = [getattr(results.models[model], name) for name in facts]
            cells = [cell for key in keys for cell in _cells(row[key])]
            writer.writerow([model, *about, results.verdict.scans, results.verdict.patients, *cells])
        return stream.getvalue()


def _cells(value: Interval | None) -> list[str]:
    ends = (value.point, value.low, value.high) if value else (None, None, None)
    return ["" if end is None or not np.isfinite(end) else repr(end) for end in ends]
