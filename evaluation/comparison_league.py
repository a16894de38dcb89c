"""The league of explanation maps against lesion masks, as ``evaluation/localization.py`` measures it."""

from typing import Any

from evaluation import localization
from evaluation.comparison_measures import Setting
from evaluation.comparison_models import STRIDE, WINDOW, Model
from evaluation.lesion_masks import LesionMasks, layers_digest
from evaluation.reports import plain

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


def league(models: dict[str, Model], shared: Setting, options: Any) -> dict[str, Any]:
    """``results["league"]``, with intervals as plain values, and ``heads``: model → its chosen attention head.

    Args:
        options: of ``compare``.

    Raises:
        InputError: no masks or no lesions in validation or test, or a method that no model has.
    """
    # A missing folder opens no model.
    masks = LesionMasks(shared.data, options.masks, options.lesion_values, options.retina_values)
    asked = localization.Options(
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
        classifiers = {key: model.classifier for key, model in able.items()}
        found, _ = localization.evaluate([model.source for model in able.values()], asked, shared.data, classifiers)
        return plain(found)

    identity = {
        "models": [[key, model.source.name, model.identity, model.start_digest] for key, model in able.items()],
        "layers": layers_digest(shared.data),
        "masks": masks.digest(),
        "methods": list(options.methods),
        "n": [asked.n, asked.faithfulness, asked.sanity],
        "bootstrap": [shared.bootstrap, shared.seed],
    }
    return as_league(shared.cache.json("league", shared.identity(**identity), make))


def as_league(found: dict[str, Any]) -> dict[str, Any]:
    """A result of ``localization.evaluate`` (plain values) as the report takes it, the best row first."""
    score = found["score"]
    rows = [_row(name, row, found) for name, row in found["rows"].items()]
    rows.sort(key=lambda row: (row["kind"] == "reference", -(row["scores"][score]["point"] or 0)))
    gaps = [
        {"model": name, "method": method, "reason": reason}
        for name, model in found["models"].items()
        for method, reason in model["gaps"].items()
    ]
    tested = found["data"]["sets"]["test"]
    notes = [
        f"{tested['scans']:,} test scans with a lesion; attention heads and thresholds were chosen on "
        f"{found['data']['sets']['validation']['scans']:,} validation scans.",
        "Every map is scored on the same scans; one with nothing positive is a miss and scores 0.",
        *found["notes"],
    ]
    if found["faithfulness"]:
        about = found["faithfulness"]
        notes.append(
            f"deletion and insertion: {about['scans']} scans of {about['patients']} patients, hidden by their {_FILL} "
            "grey value"
        )
    if found["sanity"]:
        about = found["sanity"]
        notes.append(f"randomised weights: {about['scans']} scans of {about['patients']} patients")
    return {
        "score": score,
        "scores": [
            {
                "key": key,
                "title": title,
                "help": text,
                "digits": 2 if key in _RATIOS else 1,
                "percent": key not in _RATIOS,
            }
            for key, (title, text) in SHOWN.items()
        ],
        "rows": rows,
        "best": found["best"],
        "equal_to_best": found["equal_to_best"],
        "statements": found["statements"],
        "notes": notes,
        "gaps": gaps,
        "heads": {name: head["name"] for name, head in found["heads"].items()},
        "patients": tested["patients"],
        "scans": tested["scans"],
    }


def _row(name: str, row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    model, method = row["model"], row["method"]
    faithful = found["faithfulness"].get("models", {}).get(model, {}).get(name, {})
    sane = found["sanity"].get("models", {}).get(model, {}).get(method, {})
    return {
        "name": name,
        **{key: row[key] for key in ("model", "method", "kind", "candidate", "ms", "mb")},
        "scores": {key: row["scores"][key] for key in SHOWN},
        "classes": {label: {key: of_class[key] for key in SHOWN} for label, of_class in row["classes"].items()},
        "deletion": faithful.get(f"deletion_{_FILL}"),
        "insertion": faithful.get(f"insertion_{_FILL}"),
        "sanity": sane.get("verdict"),
        "beats_simple_maps": found["beats_simple_maps"].get(name),
    }
