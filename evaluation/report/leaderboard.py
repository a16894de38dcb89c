"""The leaderboard of explanation maps against lesion masks, as ``evaluation/localization.py`` measures it."""

import os
from dataclasses import dataclass

import numpy as np

from dino_oct.scores.bootstrap import Interval
from dino_oct.words import counted
from evaluation.config import LocalizationOptions
from evaluation.inputs.masks import LesionMasks, layers_digest
from evaluation.inputs.sources import Source
from evaluation.inputs.steps import digest
from evaluation.protocols import localization
from evaluation.protocols.localization_text import PERCENT, TITLES, Localization
from evaluation.report.cases import CHOSEN_HEAD
from evaluation.report.models import STRIDE, WINDOW, Candidate
from evaluation.report.steps import Setting

_FAITHFUL = _SANITY = 8  # test scans, each of a new patient: these two cost the most
_FILL = "mean"  # what hides pixels in the deletion and insertion that the report shows
_HELP = {
    "auprc": "of the pixels, ranked by the map; the lesion's share of the scan by chance",
    "pointing": "how often the map's highest pixel lies on the lesion",
    "rank_accuracy": "share of the highest pixels, as many as the lesion has, that lie on it",
    "lesion_over_retina": "density on the lesion over that on the retina; 1: no preference, 0: nothing on the lesion",
    "energy": "share of the map's sum that lies on the lesion",
    "enrichment": "energy over the lesion's share of the scan; 1 for a uniform map",
    "iou_otsu": "overlap with the lesion above Otsu's threshold",
    "iou_tuned": "overlap with the lesion above a threshold chosen on validation patients",
}


@dataclass(frozen=True)
class ScoreColumn:
    """A score of the table: its key, title, what it says, digits, and whether it is a share shown in per cent."""

    key: str
    title: str
    help: str
    digits: int
    percent: bool


_TITLES = {
    "rollout": "attention rollout", "lrp": "relevance (LRP)", "gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++",
    "hirescam": "HiResCAM", "eigencam": "EigenCAM", CHOSEN_HEAD: "attention, one head",
}  # fmt: skip
COLUMNS = [
    ScoreColumn(key, TITLES[key].removesuffix(" %"), text, 1 if key in PERCENT else 2, key in PERCENT)
    for key, text in _HELP.items()
]
SCORE = COLUMNS[0]  # that ranks


@dataclass(frozen=True)
class Row:
    """A map of the leaderboard.

    Attributes:
        model, method, kind, candidate, ms, mb: as ``maps.leaderboard.Standing``.
        scores: of ``COLUMNS``; classes: class → the same.
        deletion, insertion: areas under the curves, where measured; sanity: verdict of the randomisation test.
        beats_simple_maps: whether it is shown to exceed every map without a network; None for these.
    """

    name: str
    model: str | None
    method: str
    kind: str
    candidate: str
    ms: float | None
    mb: float | None
    scores: dict[str, Interval]
    classes: dict[str, dict[str, Interval]]
    deletion: Interval | None
    insertion: Interval | None
    sanity: str | None
    beats_simple_maps: bool | None


def method_title(method: str) -> str:
    """A method of maps, or ``CHOSEN_HEAD``, as it is written."""
    return _TITLES.get(method, method)


def row_title(row: Row) -> str:
    """A row's name with its method as it is written."""
    is_of_method = row.model and row.name.endswith(row.method)
    return f"{row.name.removesuffix(row.method)}{method_title(row.method)}" if is_of_method else row.name


@dataclass(frozen=True)
class MapGap:
    """Why a model has no map of a method."""

    model: str
    method: str
    reason: str


@dataclass(frozen=True)
class MapLeaderboard:
    """What the report says about explanation maps.

    Attributes:
        score: that rows are ranked by, a key of ``scores``; rows: the best first, maps without a network last.
        heads: model → its chosen attention head.
        scans, patients: scored test scans with a lesion.
    """

    score: str
    scores: list[ScoreColumn]
    rows: list[Row]
    best: str
    equal_to_best: list[str]
    statements: list[str]
    notes: list[str]
    gaps: list[MapGap]
    heads: dict[str, str]
    patients: int
    scans: int


def leaderboard(models: dict[str, Candidate], shared: Setting) -> MapLeaderboard:
    """Score the maps of all models.

    Raises:
        InputError: no masks or no lesions in validation or test, or a method that no model has.
    """
    options = shared.options
    # A missing folder opens no model.
    masks = LesionMasks(shared.data, options)
    given = ("masks", "lesion_values", "retina_values", "methods", "bootstrap", "seed")
    settings = LocalizationOptions(
        **{name: getattr(options, name) for name in given},
        score=SCORE.key,
        window=WINDOW,
        stride=STRIDE,
        pages=0,
        n=options.leaderboard,
        faithfulness=min(options.leaderboard, _FAITHFUL),
        sanity=min(options.leaderboard, _SANITY),
    )
    able = [model for model in models.values() if "cases" not in model.gaps]

    digests = [_start_digest(model.source) for model in able]
    steps = shared.steps.of(
        models=[[m.key, m.source.name, m.identity, d] for m, d in zip(able, digests, strict=True)],
        layers=layers_digest(shared.data),
        masks=masks.digest(),
        methods=list(options.methods),
    )
    kept = localization.Steps(
        {model.key: model.steps for model in able}, shared.steps.of("start", weights=digests[:1]), steps
    )

    def make() -> MapLeaderboard:
        sources, classifiers = [model.source for model in able], [model.classifier for model in able]
        return as_shown(localization.evaluate(sources, settings, shared.data, classifiers, kept)[0])

    return steps.json(
        "leaderboard",
        make,
        MapLeaderboard,
        n=[settings.n, settings.faithfulness, settings.sanity],
        bootstrap=[options.bootstrap, options.seed],
    )


def _start_digest(source: Source) -> str | None:
    """Of the weights before training, which are scored beside a run's; None where there are none."""
    start = source.run and source.run / "checkpoints" / "start"
    if start is None or not (start / "config.json").is_file():
        return None
    files = sorted(file for file in start.iterdir() if file.is_file())
    return digest(*(np.frombuffer(os.fsencode(file.name) + file.read_bytes(), np.uint8) for file in files))


def as_shown(localized: Localization) -> MapLeaderboard:
    """What ``evaluation/localization.py`` measured as the report takes it, the best row first."""
    sets, faithfulness, sanity = localized.data["sets"], localized.faithfulness, localized.sanity
    notes = [
        f"{sets['test']['scans']:,} test scans with a lesion; attention heads and thresholds were chosen on "
        f"{sets['validation']['scans']:,} validation scans.",
        "Every map is scored on the same scans; one with nothing positive is a miss and scores 0.",
        *localized.notes,
    ]
    if faithfulness:
        notes.append(
            f"deletion and insertion: {counted(faithfulness.scans, 'scan')} of "
            f"{counted(faithfulness.patients, 'patient')}, hidden by their "
            f"{_FILL} grey value"
        )
    if sanity:
        notes.append(f"randomised weights: {counted(sanity.scans, 'scan')} of {counted(sanity.patients, 'patient')}")
    rows = []
    for name, row in localized.rows.items():
        areas = faithfulness.models.get(row.model, {}).get(name, {}) if faithfulness else {}
        randomised = sanity.models.get(row.model, {}).get(row.method) if sanity else None
        rows.append(
            Row(
                name=name,
                **{part: getattr(row, part) for part in ("model", "method", "kind", "candidate", "ms", "mb")},
                scores=_shown(row.scores),
                classes={label: _shown(scores) for label, scores in row.classes.items()},
                deletion=areas.get(f"deletion_{_FILL}"),
                insertion=areas.get(f"insertion_{_FILL}"),
                sanity=randomised and randomised.verdict,
                beats_simple_maps=localized.beats_simple_maps.get(name),
            )
        )
    rows.sort(key=lambda row: (row.kind == "reference", -np.nan_to_num(row.scores[localized.score].point)))
    return MapLeaderboard(
        **{part: getattr(localized, part) for part in ("score", "best", "equal_to_best", "statements")},
        scores=COLUMNS,
        rows=rows,
        notes=notes,
        gaps=[
            MapGap(model, method, reason)
            for model, about in localized.models.items()
            for method, reason in about.gaps.items()
        ],
        heads={model: head.name for model, head in localized.heads.items()},
        patients=sets["test"]["patients"],
        scans=sets["test"]["scans"],
    )


def _shown(scores: dict[str, Interval]) -> dict[str, Interval]:
    return {column.key: scores[column.key] for column in COLUMNS}
