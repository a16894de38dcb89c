"""What a comparison finds, as one whole of typed parts; ``results.json`` holds its fields."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dino_oct.scores.classification import Reliability
from dino_oct.scores.paired import Result
from dino_oct.scores.units import ByUnit
from evaluation.pages.embedding_figures import Mark
from evaluation.protocols.external import OnExternal
from evaluation.report.answers import Confusion
from evaluation.report.cases import Case, Pictures
from evaluation.report.certainty import Roc
from evaluation.report.embedding import Embedding
from evaluation.report.findings import Finding
from evaluation.report.label_errors import Suspects
from evaluation.report.leaderboard import MapLeaderboard
from evaluation.report.models import Facts
from evaluation.report.overview import Overview
from evaluation.report.scans import ScanColumns
from evaluation.report.severity import Severity
from evaluation.report.subgroups import Subgroups
from evaluation.report.table import Table
from evaluation.report.verdict import Verdict
from evaluation.report.volumes import Volumes


@dataclass(frozen=True)
class DataFacts:
    """The data of a comparison: name of the folder, whether it is synthetic, and split → ``scans``, ``patients`` and
    the same of each of its ``classes``, as ``ScanData.counts`` counts them."""

    folder: str
    synthetic: bool
    sets: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ClassFacts(Mark):
    """A class: how figures draw it, and whether it calls for urgent referral."""

    urgent: bool


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Facts):
    """What a model is.

    Attributes:
        source: as it was named; sha256: of its weights' file; loaded: what was loaded, in words.
        start_of: the model, among the others, whose weights before training these are.
        gaps: column, group or section of the report → why this model has none.
    """

    source: str
    kind: str
    architecture: str
    sha256: str
    loaded: str
    start_of: str | None
    gaps: dict[str, str]


@dataclass(frozen=True)
class Answered:
    """What a model's classifier calls some scans (positions in the report's scans), and how probable it finds it."""

    scans: np.ndarray
    called: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class FigureFile:
    """A figure beside the page, relative to the report's folder, and what it shows."""

    file: str
    title: str


@dataclass(frozen=True)
class Results:
    """Everything that a comparison says. A section that could not be made is None, its reason among the gaps.

    Attributes:
        command: that made it; commands: of the single evaluations, which print the same numbers.
        made: the day, as 2026-01-31; notice: that the scans are synthetic.
        models, confusions, answers: by model.
        reliability: model → protocol → its reliability diagram.
        roc: the two models of the overview → class, or "urgent" → its curve.
        subgroups: how these two do in parts of the test; None without them.
        gaps: "section: reason".
        evaluations: model → protocol → what the single evaluation says; by_unit: the same on volumes, eyes and
            patients, where these hold several scans; external: on scans from elsewhere, where they are given.
        leaderboard: of explanation maps; its key in ``results.json`` is an older word.
        volumes: that the cases are slices of; None where they are of none.
        limits, methods: sentences and paragraphs.
    """

    evaluation: str
    title: str
    command: str
    commands: list[str]
    made: str
    notice: str | None
    verdict: Verdict
    overview: Overview
    warnings: list[Finding]
    data: DataFacts
    classes: list[ClassFacts]
    models: dict[str, ModelFacts]
    table: Table
    confusions: dict[str, Confusion]
    reliability: dict[str, dict[str, Reliability]]
    roc: dict[str, dict[str, Roc]]
    subgroups: Subgroups | None
    answers: dict[str, Answered]
    suspects: Suspects | None
    embedding: Embedding | None
    leaderboard: MapLeaderboard | None = field(metadata={"key": "league"})
    severity: Severity | None
    cases: list[Case]
    volumes: Volumes | None = field(metadata={"may_be_empty": True})
    gaps: list[str]
    versions: dict[str, str]
    settings: dict[str, Any]
    intended_use: str
    evaluations: dict[str, dict[str, Result]]
    by_unit: dict[str, ByUnit] = field(metadata={"may_be_empty": True})
    external: OnExternal | None
    scans: ScanColumns
    limits: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    figures: list[FigureFile] = field(default_factory=list)


@dataclass(frozen=True)
class Media:
    """Pictures of the page: of each of ``Results.scans`` a small JPEG (base64), of each case, name → SVG figure, and of
    each volume's slices."""

    thumbnails: list[str]
    cases: list[Pictures]
    figures: dict[str, str]
    volumes: list[list[Pictures]] = field(default_factory=list)
