"""The leaderboard of explanation maps against lesion masks, as ``evaluation/localization.py`` measures it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.text import plain
from evaluation.config import ComparisonOptions, LocalizationOptions
from evaluation.inputs.masks import LesionMasks, layers_digest
from evaluation.protocols import localization
from evaluation.report.answers import Setting
from evaluation.report.models import STRIDE, WINDOW, Candidate

SCORE = "auprc"
SHOWN = {
    "auprc": ("average precision", "of the pixels, ranked by the map; the lesion's share of the scan by chance"),
    "pointing": ("pointing game", "how often the map's highest pixel lies on the lesion"),
    "rank_accuracy": ("rank accuracy", "share of the highest pixels, as many as the lesion has, that lie on it"),
    "lesion_over_retina": (
        "lesion / retina",
        "density on the lesion over that on the retina; 1: no preference, 0: nothing on the lesion",
    ),
    "energy": ("energy on lesion", "share of the map's sum that lies on the lesion"),
    "enrichment": ("enrichment", "energy over the lesion's share of the scan; 1 for a uniform map"),
    "iou_otsu": ("IoU (Otsu)", "overlap with the lesion above Otsu's threshold"),
    "iou_tuned": ("IoU (tuned)", "overlap with the lesion above a threshold chosen on validation patients"),
}
_RATIOS = ("lesion_over_retina", "enrichment")  # the others are shares, shown in per cent
_FAITHFUL = _SANITY = 8  # test scans, each of a new patient: these two cost the most
_FILL = "mean"  # what hides pixels in the deletion and insertion that the report shows


@dataclass(frozen=True)
class ScoreColumn:
    """A score of the table: its key, title, what it says, digits, and whether it is a share shown in per cent."""

    key: str
    title: str
    help: str
    digits: int
    percent: bool


@dataclass(frozen=True)
class Row:
    """A map of the leaderboard.

    Attributes:
        model, method, kind, candidate, ms, mb: as ``maps.leaderboard.Standing``.
        scores: of ``SHOWN``; classes: class → the same.
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


@dataclass(frozen=True)
class MapGap:
    """Why a model has no map of a method."""

    model: str
    method: str
    reason: str


@dataclass(frozen=True)
class League:
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


def league(models: dict[str, Candidate], shared: Setting, options: ComparisonOptions) -> League:
    """Score the maps of all models.

    Raises:
        InputError: no masks or no lesions in validation or test, or a method that no model has.
    """
    # A missing folder opens no model.
    masks = LesionMasks(shared.data, options.masks, options.lesion_values, options.retina_values)
    settings = LocalizationOptions(
        masks=options.masks,
        lesion_values=options.lesion_values,
        retina_values=options.retina_values,
        methods=options.methods,
        score=SCORE,
        window=WINDOW,
        stride=STRIDE,
        bootstrap=shared.bootstrap,
        seed=shared.seed,
        pages=0,
        n=options.league,
        faithfulness=min(options.league, _FAITHFUL),
        sanity=min(options.league, _SANITY),
    )
    able = {key: model for key, model in models.items() if "cases" not in model.gaps}

    def make() -> dict[str, Any]:
        sources, classifiers = ([getattr(model, part) for model in able.values()] for part in ("source", "classifier"))
        return plain(localization.evaluate(sources, settings, shared.data, classifiers)[0])

    identity = {
        "models": [[key, model.source.name, model.identity, model.start_digest] for key, model in able.items()],
        "layers": layers_digest(shared.data),
        "masks": masks.digest(),
        "methods": list(options.methods),
        "n": [settings.n, settings.faithfulness, settings.sanity],
        "bootstrap": [shared.bootstrap, shared.seed],
    }
    return as_league(shared.cache.json("league", shared.identity(**identity), make))


def as_league(localized: dict[str, Any]) -> League:
    """What ``localization.json`` holds as the report takes it, the best row first."""
    score, sets = localized["score"], localized["data"]["sets"]
    rows = [_row(name, row, localized) for name, row in localized["rows"].items()]
    rows.sort(key=lambda row: (row.kind == "reference", -np.nan_to_num(row.scores[score].point)))
    notes = [
        f"{sets['test']['scans']:,} test scans with a lesion; attention heads and thresholds were chosen on "
        f"{sets['validation']['scans']:,} validation scans.",
        "Every map is scored on the same scans; one with nothing positive is a miss and scores 0.",
        *localized["notes"],
    ]
    if measured := localized["faithfulness"]:
        notes.append(
            f"deletion and insertion: {measured['scans']} scans of {measured['patients']} patients, hidden by their "
            f"{_FILL} grey value"
        )
    if measured := localized["sanity"]:
        notes.append(f"randomised weights: {measured['scans']} scans of {measured['patients']} patients")
    return League(
        score=score,
        scores=[
            ScoreColumn(key, title, text, 2 if key in _RATIOS else 1, key not in _RATIOS)
            for key, (title, text) in SHOWN.items()
        ],
        rows=rows,
        best=localized["best"],
        equal_to_best=localized["equal_to_best"],
        statements=localized["statements"],
        notes=notes,
        gaps=[
            MapGap(name, method, reason)
            for name, model in localized["models"].items()
            for method, reason in model["gaps"].items()
        ],
        heads={name: head["name"] for name, head in localized["heads"].items()},
        patients=sets["test"]["patients"],
        scans=sets["test"]["scans"],
    )


def _row(name: str, row: dict[str, Any], localized: dict[str, Any]) -> Row:
    model, method = row["model"], row["method"]
    faithful = (localized["faithfulness"] or {"models": {}})["models"].get(model, {}).get(name, {})
    sanity = (localized["sanity"] or {"models": {}})["models"].get(model, {}).get(method, {})
    return Row(
        name=name,
        **{key: row[key] for key in ("model", "method", "kind", "candidate", "ms", "mb")},
        scores={key: _interval(row["scores"][key]) for key in SHOWN},
        classes={label: {key: _interval(of_class[key]) for key in SHOWN} for label, of_class in row["classes"].items()},
        deletion=_interval(faithful.get(f"deletion_{_FILL}")),
        insertion=_interval(faithful.get(f"insertion_{_FILL}")),
        sanity=sanity.get("verdict"),
        beats_simple_maps=localized["beats_simple_maps"].get(name),
    )


def _interval(value: dict[str, Any] | None) -> Interval | None:
    """An interval as JSON holds it; its point is NaN where JSON has none."""
    return value and Interval(**{**value, "point": np.nan if value["point"] is None else value["point"]})
