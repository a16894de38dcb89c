"""What the steps of a comparison share."""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dino_oct.data.rows import FACTS
from dino_oct.scan_data import ScanData
from dino_oct.scores.bootstrap import PatientBootstrap
from dino_oct.scores.paired import ScanSet
from evaluation.config import ComparisonOptions
from evaluation.inputs.steps import StepCache, digest

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Setting:
    """What all steps of a comparison share."""

    data: ScanData
    cache: StepCache
    options: ComparisonOptions

    @cached_property
    def positions(self) -> dict[str, np.ndarray]:
        """Split → positions of its labelled scans in ``data``."""
        return {split: self.data.labelled(split) for split in SPLITS}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the data."""
        return self.data.index.class_names

    def set_of(self, split: str) -> ScanSet:
        """Classes and patients of a split's labelled scans."""
        positions = self.positions[split]
        return ScanSet(self.data.index.labels[positions], self.data.index.patients[positions])

    def bootstrap(self, patients: np.ndarray) -> PatientBootstrap:
        """The comparison's resamples of the patients (N,) of some scans."""
        return PatientBootstrap(patients, self.options.bootstrap, self.options.seed)

    @cached_property
    def steps(self) -> StepCache:
        """Of what depends on the data."""
        return self.cache.of(data=data_digest(self.data))


def data_digest(data: ScanData) -> str:
    """Of all that a step may take from the data: pixels and tables of the scans, classes, patients, splits, and what is
    said about them."""
    index, scans = data.index, data.scans
    tables = (scans.digests, scans.sizes, scans.original_sizes, scans.border, scans.brightness, scans.tissue)
    columns = (index.labels, index.patients, index.splits, index.folder_splits, *map(index.fact, FACTS))
    known = data.provenance
    provenance = known and (sorted(known.patients), known.is_home, known.unknown)
    layout = (index.files, index.class_names, index.mislabelled, index.left_out, index.split_rule, index.notes)
    return digest(
        *map(np.asarray, (*tables, *columns)), np.array(json.dumps((layout, scans.skipped, data.notes, provenance)))
    )
