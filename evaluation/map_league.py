"""Maps of several models scored against lesion masks: heads and thresholds from validation, scores on the test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from dino_oct.bootstrap import PatientBootstrap, Scale, weighted_mean
from evaluation.class_target import Classifier
from evaluation.ensembles import rank_correlations, rank_normalise
from evaluation.lesion_scores import SIMPLE, layer_densities, lesion_over_retina
from evaluation.map_methods import candidates, enlarge
from evaluation.map_rows import ATTENTION, Case, MapModel, RawMaps, Row, list_rows, make_raw, scan_rows
from evaluation.map_scores import (
    FILLS,
    SCORES,
    deletion_insertion,
    holm,
    iou_at,
    iou_curve,
    score_map,
    tune_threshold,
)
from evaluation.randomisation import STAGES, randomised_correlations, verdict

ALL_SCORES = (*SCORES, "iou_tuned", "energy_retina", "lesion_over_retina")
SCALES = dict.fromkeys(ALL_SCORES, Scale.SCORE) | {
    "pointing": Scale.SHARE,
    "enrichment": Scale.RATIO,
    "lesion_over_retina": Scale.RATIO,
}
ALPHA = 0.05  # of p values after Holm's correction


@dataclass(frozen=True)
class Measured:
    """Scores of every row on some cases.

    Attributes:
        rows: R rows; scores: (N, R, S) float64, columns ``ALL_SCORES``; empty: (N, R) bool, maps that were 0.
        curves: (N, R, T) IoU at every threshold, of validation cases.
        layers: (N, R, L − 1) or None.
        correlations: (R, R), mean Spearman correlation between maps of the same scan, of the scans where both vary.
    """

    rows: list[Row]
    scores: np.ndarray
    empty: np.ndarray
    curves: np.ndarray
    layers: np.ndarray | None
    correlations: np.ndarray


def choose_heads(
    models: Sequence[MapModel], raw: RawMaps, cases: Sequence[Case], score: str
) -> dict[str, dict[str, Any]]:
    """For each model with attention the head of highest mean score on validation cases.

    Returns:
        model → ``position``, ``name`` and ``score`` of the chosen head, and ``scores`` of all by name.
    """
    chosen = {}
    for model in models:
        if ATTENTION not in model.methods:
            continue
        names = candidates(model.classifier, ATTENTION, model.settings)
        found = np.array(
            [
                [all_scores(one, case)[ALL_SCORES.index(score)] for one in enlarge(maps, case.mask.lesion.shape)]
                for maps, case in zip(raw.maps[model.name, ATTENTION], cases, strict=True)
            ]
        )
        means = found.mean(axis=0)
        best = int(means.argmax())
        chosen[model.name] = {
            "position": best,
            "name": names[best],
            "score": float(means[best]),
            "scores": dict(zip(names, means.tolist(), strict=True)),
        }
    return chosen


def all_scores(values: np.ndarray, case: Case, threshold: float | None = None) -> np.ndarray:
    """``ALL_SCORES`` of a map in the size of the case's mask; ``iou_tuned`` is NaN without a threshold."""
    lesion, retina = case.mask.lesion, case.mask.retina
    tuned = np.nan if threshold is None else iou_at(values, lesion, threshold)
    on_retina = float(values[retina].sum(dtype=np.float64) / max(values.sum(dtype=np.float64), 1e-30))
    return np.array([*score_map(values, lesion), tuned, on_retina, lesion_over_retina(values, lesion, retina)])


def measure(
    models: Sequence[MapModel],
    raw: RawMaps,
    chosen: dict[str, int],
    cases: Sequence[Case],
    thresholds: Sequence[float] | None = None,
) -> Measured:
    """Score every row on every case; without thresholds their curves are measured instead."""
    rows = list_rows(models)
    scores, curves, layers, empties, correlations = [], [], [], [], []
    for case, maps, empty in scan_rows(models, raw, chosen, cases):
        limits = thresholds if thresholds is not None else [None] * len(rows)
        scores.append([all_scores(one, case, limit) for one, limit in zip(maps, limits, strict=True)])
        empties.append(empty)
        if thresholds is None:
            curves.append([iou_curve(one, case.mask.lesion) for one in maps])
        else:
            correlations.append(rank_correlations([rank_normalise(one) for one in maps]))
            if case.boundaries is not None:
                layers.append([layer_densities(one, case.boundaries) for one in maps])
    return Measured(
        rows,
        np.array(scores),
        np.array(empties),
        np.array(curves),
        np.array(layers) if layers else None,
        _nanmean(np.array(correlations)) if correlations else np.empty((0, 0)),
    )


def _nanmean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)


def rate(
    models: Sequence[MapModel],
    val: Sequence[Case],
    test: Sequence[Case],
    score: str,
    *,
    layer_names: Sequence[str] = (),
    faithfulness: int = 0,
    sanity: int = 0,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], RawMaps, np.ndarray]:
    """The whole league.

    Args:
        val, test: cases with a lesion, so that every row has every score on every one of them (a miss scores 0). Heads,
            thresholds and the best row of each model are chosen on the first.
        score: of ``ALL_SCORES``, that heads are chosen and rows ranked by.
        layer_names: of the boundaries, where cases have them.
        faithfulness, sanity: number of test cases for deletion and insertion, and for weight randomisation; 0: none.

    Returns:
        Part of what the JSON file holds (intervals as ``Interval``), the maps of the test cases, and the ranking score
        (N, rows) of each of them.
    """
    val_raw = make_raw(models, val)
    heads = choose_heads(models, val_raw, val, score)
    chosen = {name: found["position"] for name, found in heads.items()}
    on_val = measure(models, val_raw, chosen, val)
    thresholds = [tune_threshold(on_val.curves[:, r]) for r in range(len(on_val.rows))]
    raw = make_raw(models, test, measure=True)
    found = measure(models, raw, chosen, test, thresholds)
    resampled = PatientBootstrap(np.array([case.patient for case in test]), bootstrap, seed)
    labels = np.array([case.label for case in test])
    column = ALL_SCORES.index(score)
    is_off = found.scores[..., ALL_SCORES.index("energy_retina")] == 0
    result = {
        "score": score,
        "heads": heads,
        "rows": {
            row.name: {
                "model": row.model,
                "kind": row.kind,
                "method": row.method,
                "candidate": heads[row.model]["name"] if row.method == ATTENTION else "",
                "validation": float(on_val.scores[:, r, column].mean()),
                "threshold": thresholds[r],
                "maps_of_zeros": int(found.empty[:, r].sum()),
                "off_the_retina": int((is_off[:, r] & ~found.empty[:, r]).sum()),
                "ms": raw.ms.get((row.model, row.method)),
                "mb": raw.mb.get((row.model, row.method)),
            }
            for r, row in enumerate(found.rows)
        },
        **_compare(found, resampled, column),
        "correlations": {"rows": [row.name for row in found.rows], "spearman": found.correlations},
    }
    _add_scores(result["rows"], found, resampled)
    for name in sorted(set(labels.tolist())):
        inside = labels == name
        of_class = PatientBootstrap(np.array([case.patient for case in test])[inside], bootstrap, seed)
        part = Measured(found.rows, found.scores[inside], found.empty[inside], *[np.empty(0)] * 3)
        _add_scores(result["rows"], part, of_class, name)
    if found.layers is not None:
        values = resampled.values(lambda weights: weighted_mean(weights, found.layers))
        bands = [f"{upper} to {lower}" for upper, lower in pairwise(layer_names)]
        for r, row in enumerate(found.rows):
            result["rows"][row.name]["layers"] = {
                band: resampled.interval(values[:, r, b], Scale.RATIO) for b, band in enumerate(bands)
            }
    spread = spread_over_patients(test)
    result["faithfulness"] = _faithfulness(models, raw, chosen, test, spread[:faithfulness], bootstrap, seed)
    result["sanity"] = _sanity(models, chosen, [test[i] for i in spread[:sanity]], bootstrap, seed)
    return result, raw, found.scores[..., column]


def spread_over_patients(cases: Sequence[Case]) -> list[int]:
    """Positions of the cases, a new patient each as long as there are any, in turns through the classes."""
    seen: dict[tuple[str, str], int] = {}
    keys = []
    for i, case in enumerate(cases):
        turn = seen.get((case.label, case.patient), 0)
        seen[case.label, case.patient] = turn + 1
        keys.append((turn, sum(1 for other in cases[:i] if other.label == case.label), case.label, i))
    return [key[-1] for key in sorted(keys)]


def _add_scores(rows: dict[str, Any], found: Measured, resampled: PatientBootstrap, label: str | None = None) -> None:
    values = resampled.values(lambda weights: weighted_mean(weights, found.scores))  # (1 + R, rows, scores)
    for r, row in enumerate(found.rows):
        scores = {name: resampled.interval(values[:, r, s], SCALES[name]) for s, name in enumerate(ALL_SCORES)}
        if label is None:
            ratio = found.scores[:, r, -1]
            rows[row.name]["scores"] = scores
            rows[row.name]["single_scans"] = {
                "median_lesion_over_retina": float(np.median(ratio)),
                "share_above_1": float((ratio > 1).mean()),
            }
        else:
            rows[row.name].setdefault("classes", {})[label] = scores


def _compare(found: Measured, resampled: PatientBootstrap, column: int) -> dict[str, Any]:
    """Paired differences of the ranking score: of maps to the simple maps, and between maps; Holm within each."""
    values = resampled.values(lambda weights: weighted_mean(weights, found.scores[..., column]))  # (1 + R, rows)
    names = [row.name for row in found.rows]
    ours = [r for r, row in enumerate(found.rows) if row.kind != "reference"]
    simple = [names.index(name) for name in SIMPLE]
    families = {
        "to_simple_maps": [(a, b) for a in ours for b in simple],
        "between_maps": list(combinations(ours, 2)),
    }
    result: dict[str, Any] = {}
    for family, pairs in families.items():
        p_values = [resampled.p_value(values[:, a] - values[:, b]) for a, b in pairs]
        # What is undefined (one patient, or no spread) is no evidence.
        adjusted = holm(np.nan_to_num(p_values, nan=1.0)) if pairs else []
        result[family] = [
            {
                "a": names[a],
                "b": names[b],
                "difference": resampled.interval(values[:, a] - values[:, b], Scale.DIFFERENCE),
                "p": p,
                "p_holm": float(q),
            }
            for (a, b), p, q in zip(pairs, p_values, adjusted, strict=True)
        ]
    best = max(ours, key=lambda r: values[0, r])
    separated = {
        one["b"] if one["a"] == names[best] else one["a"]
        for one in result["between_maps"]
        if names[best] in (one["a"], one["b"]) and one["p_holm"] < ALPHA
    }
    beaten = {
        names[r]: all(
            one["p_holm"] < ALPHA and one["difference"].point > 0
            for one in result["to_simple_maps"]
            if one["a"] == names[r]
        )
        for r in ours
    }
    return {
        "best": names[best],
        "equal_to_best": [names[r] for r in ours if r != best and names[r] not in separated],
        "beats_simple_maps": beaten,
        **result,
    }


def class_probability(classifier: Classifier, target: int) -> Callable[[torch.Tensor], np.ndarray]:
    """From grey scans (n, 1, H, W) float32 in 0 … 255, of any size, to a class's probability (n,)."""
    device = next(classifier.model.parameters()).device

    @torch.inference_mode()
    def probability(scans: torch.Tensor) -> np.ndarray:
        images = F.interpolate(scans.to(device), size=tuple(classifier.input_size), mode="bicubic", antialias=True)
        logits = classifier.model(classifier.prepare(images.clamp(0, 255) / 255))
        return logits.double().softmax(dim=1)[:, target].cpu().numpy()

    return probability


def _faithfulness(
    models: Sequence[MapModel],
    raw: RawMaps,
    chosen: dict[str, int],
    cases: Sequence[Case],
    taken: Sequence[int],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Deletion and insertion AUC for each model, of its own maps and of the maps without a network."""
    asked = [model for model in models if model.classifier.class_names]
    if not taken or not asked:
        return {}
    rows = list_rows(models)
    some = [cases[i] for i in taken]
    part = RawMaps({key: [maps[i] for i in taken] for key, maps in raw.maps.items()}, {}, {})
    resampled = PatientBootstrap(np.array([case.patient for case in some]), bootstrap, seed)
    found: dict[str, dict[str, list]] = {
        model.name: {row.name: [] for row in rows if row.model in (model.name, None)} for model in asked
    }
    for case, maps, _ in scan_rows(models, part, chosen, some):
        for model in asked:
            probability = class_probability(model.classifier, case.targets[model.name])
            for row, values in zip(rows, maps, strict=True):
                if row.model in (model.name, None):
                    at_scan = enlarge(values[None], case.scan.shape)[0]
                    areas = [deletion_insertion(probability, case.scan, at_scan, fill) for fill in FILLS]
                    found[model.name][row.name].append(areas)
    names = [f"{what}_{fill}" for fill in FILLS for what in ("deletion", "insertion")]
    return {
        "scans": len(some),
        "patients": resampled.n_patients,
        "models": {
            model: {
                row: {
                    name: resampled.mean(np.array([np.ravel(areas)[k] for areas in values]), Scale.SCORE)
                    for k, name in enumerate(names)
                }
                for row, values in by_row.items()
            }
            for model, by_row in found.items()
        },
    }


def _sanity(
    models: Sequence[MapModel], chosen: dict[str, int], cases: Sequence[Case], bootstrap: int, seed: int
) -> dict[str, Any]:
    """The randomisation test of every method of every model that learnt something."""
    if not cases:
        return {}
    resampled = PatientBootstrap(np.array([case.patient for case in cases]), bootstrap, seed)
    scans = [case.scan for case in cases]
    tested = [model for model in models if model.kind not in ("starting weights", "random weights")]
    result: dict[str, Any] = {"scans": len(cases), "patients": resampled.n_patients, "models": {}}
    for model in tqdm(tested, desc="randomised weights", unit="model", disable=None, leave=False):
        found = randomised_correlations(
            model.classifier,
            model.methods,
            {ATTENTION: chosen.get(model.name, 0)},
            scans,
            [case.targets[model.name] for case in cases],
            model.settings,
            seed,
        )
        result["models"][model.name] = {}
        for method, values in found.items():
            stages = {stage: resampled.mean(values[:, s], Scale.CORRELATION) for s, stage in enumerate(STAGES)}
            result["models"][model.name][method] = {
                "correlation": stages,
                "verdict": verdict(stages[STAGES[-1]]),
            }
    return result
