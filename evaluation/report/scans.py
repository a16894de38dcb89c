"""The scans that a report shows, each once."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from evaluation.pages.embedding_page import thumbnails
from evaluation.report.steps import Setting


@dataclass(frozen=True)
class ScanColumns:
    """The scans that a report shows, all labelled, as columns; the test scans come first."""

    file: list[str]
    label: list[int]
    patient: list[str]
    split: list[str]


class ShownScans:
    """The scans of a report, each once, in the order of their first mention; the test scans come first."""

    def __init__(self, shared: Setting):
        self._shared = shared
        self._place = {int(position): i for i, position in enumerate(shared.positions["test"])}

    def of(self, positions: Iterable[int]) -> list[int]:
        """Where scans (positions in the data) stand in ``results["scans"]``."""
        return [self._place.setdefault(int(position), len(self._place)) for position in positions]

    def columns(self) -> ScanColumns:
        """What the report says of them."""
        index, shown = self._shared.data.index, list(self._place)
        return ScanColumns(
            file=[index.files[i] for i in shown],
            label=index.labels[shown].tolist(),
            patient=[str(patient) for patient in index.patients[shown]],
            split=[str(split) for split in index.splits[shown]],
        )

    def thumbnails(self) -> list[str]:
        """Small pictures, base64 JPEG."""
        return thumbnails([np.asarray(self._shared.data.scans[i]) for i in self._place])
