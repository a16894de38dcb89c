"""What a comparison leaves on disk: results.json, results.csv, figures and the page."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.bootstrap import Interval
from dino_oct.files import write_whole
from evaluation.comparison_measures import Setting
from evaluation.embedding_page import thumbnails
from evaluation.reports import plain, write_json


class ShownScans:
    """The scans of a report, each once, in the order of their first mention; the test scans come first.

    Args:
        shared: positions and data.
    """

    def __init__(self, shared: Setting):
        self._shared = shared
        self._place = {int(position): i for i, position in enumerate(shared.positions["test"])}

    def of(self, positions: Iterable[int]) -> list[int]:
        """Where scans (positions in the data) stand in ``results["scans"]``."""
        return [self._place.setdefault(int(position), len(self._place)) for position in positions]

    def describe(self) -> dict[str, list[Any]]:
        """``results["scans"]``."""
        index, shown = self._shared.data.index, list(self._place)
        return {
            "file": [index.files[i] for i in shown],
            "label": index.labels[shown].tolist(),
            "patient": [str(patient) for patient in index.patients[shown]],
            "split": [str(split) for split in index.splits[shown]],
        }

    def thumbnails(self) -> list[str]:
        """Small pictures, base64 JPEG."""
        return thumbnails([np.asarray(self._shared.data.scans[i]) for i in self._place])


def write_report(results: dict[str, Any], media: dict[str, Any], folder: Path) -> list[str]:
    """Write ``results.json``, ``results.csv`` and ``report.html``, each whole or not at all.

    Returns:
        the names of what was written.
    """
    from evaluation.report_page import render

    write_json(results, folder / "results.json")
    write_whole(folder / "results.csv", as_csv(results))
    write_whole(folder / "report.html", render(plain(results), media))
    return ["report.html", "results.json", "results.csv"]


def as_csv(results: dict[str, Any]) -> str:
    """The table of models: one row a model; point, low and high of every column."""
    wanted = results["table"]["columns"]
    with io.StringIO() as stream:
        writer = csv.writer(stream)
        facts = ("kind", "architecture", "source", "sha256")
        columns = [f"{one['key']}{end}" for one in wanted for end in ("", "_low", "_high")]
        writer.writerow(["model", *facts, "test_scans", "test_patients", *columns])
        counts = [results["verdict"]["scans"], results["verdict"]["patients"]]
        for key, row in results["table"]["rows"].items():
            about = results["models"][key]
            cells = [cell for one in wanted for cell in _cells(row[one["key"]])]
            writer.writerow([key, *(about[name] for name in facts), *counts, *cells])
        return stream.getvalue()


def _cells(value: Interval | None) -> list[str]:
    if value is None:
        return ["", "", ""]
    return [
        "" if part is None or not np.isfinite(part) else repr(part) for part in (value.point, value.low, value.high)
    ]
