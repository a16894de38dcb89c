"""Pages of maps: one scan, a row of pictures for each method, a column for each model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.chosen_scans import Chosen
from evaluation.ensembles import disagreement, ensemble, rank_normalise
from evaluation.explanations import Page, Tile, as_picture, overlay, signed_overlay, with_outline
from evaluation.lesion_masks import Mask
from evaluation.lesion_scores import lesion_over_retina
from evaluation.map_methods import enlarge
from evaluation.map_rows import ATTENTION, ENSEMBLE, Case, MapModel

FOOT = (
    "each map by its own maximum; lesion outlined in cyan, retina in white; red for, blue against the class\n"
    "ensemble: mean rank over a model's maps (upper half); disagreement: standard deviation of these ranks"
)
DISAGREEMENT = "disagreement"
_LESION, _RETINA = (0, 229, 255), (255, 255, 255)
_NAMED = 34  # characters that a caption has room for


def page_of_case(
    case: Case, models: Sequence[MapModel], maps: dict[tuple[str, str], np.ndarray], result: dict[str, Any]
) -> Page:
    """The page of a scan whose maps were scored.

    Args:
        maps: (model, method) → (M, rows, columns).
        result: of ``evaluation/localization.py``, for the chosen heads.
    """
    heads = {name: (found["position"], found["name"]) for name, found in result["heads"].items()}
    explained = {
        model.name: model.classifier.class_names[case.targets[model.name]]
        for model in models
        if model.classifier.class_names
    }
    rows, arrays = draw_maps(case.scan, models, maps, heads, case.mask)
    chosen = Chosen(case.file, case.patient, case.label or None, case.scan)
    return Page(
        chosen, rows, arrays, {"explained": explained, "heads": {name: head for name, (_, head) in heads.items()}}
    )


def draw_maps(
    scan: np.ndarray,
    models: Sequence[MapModel],
    maps: dict[tuple[str, str], np.ndarray],
    heads: dict[str, tuple[int, str]],
    mask: Mask | None = None,
) -> tuple[list[tuple[str, list[Tile]]], dict[str, np.ndarray]]:
    """Rows of a page and its arrays.

    Args:
        scan: (H, W) uint8.
        maps: (model, method) → (M, rows, columns), signed where the method is.
        heads: model → position and name of the attention head to show; others show the mean of heads.

    Returns:
        The rows (methods, then ensemble and disagreement of each model's maps), and arrays: ``MODEL_METHOD``.
    """
    methods = list(dict.fromkeys(method for model in models for method in (*model.methods, *model.gaps)))
    first = Tile(_outlines(as_picture(scan), mask), "scan")
    rows, arrays = [], {}
    shown: dict[str, list[np.ndarray]] = {model.name: [] for model in models}
    for method in methods:
        tiles = [first]
        for model in models:
            found = maps.get((model.name, method))
            if found is None:
                tiles.append(_blank(scan, model.name, "no such map" if method in model.gaps else "not asked for"))
                continue
            arrays[f"{model.name}_{method}"] = found
            if method == ATTENTION and len(found) > 1:
                position, head = heads.get(model.name, (None, "mean of heads"))
                one = found.mean(axis=0) if position is None else found[position]
            else:
                one, head = found[0], ""
            shown[model.name].append(one.clip(0))
            signed = method == "occlusion" and bool((one < 0).any())
            picture = signed_overlay(scan, one, float(np.abs(one).max())) if signed else overlay(scan, one)
            tiles.append(Tile(_outlines(picture, mask), f"{model.name[:_NAMED]}\n{_said(one, mask, head)}"))
        rows.append((method, tiles))
    combined = {
        name: [rank_normalise(enlarge(one[None], scan.shape)[0]) for one in ones] for name, ones in shown.items()
    }
    if any(len(ones) > 1 for ones in combined.values()):
        for what, combine in ((ENSEMBLE, ensemble), (DISAGREEMENT, disagreement)):
            tiles = [first]
            for name, ones in combined.items():
                if len(ones) < 2:
                    tiles.append(_blank(scan, name, "needs two maps"))
                    continue
                one = combine(ones)
                arrays[f"{name}_{what}"] = one
                said = _said(one, mask) if what == ENSEMBLE else f"mean {one.mean():.2f} of 0.5"
                # Ranks spread over the whole scan: the upper half alone says where a method would point.
                strength = (2 * one - 1).clip(0) if what == ENSEMBLE else one
                tiles.append(Tile(_outlines(overlay(scan, strength), mask), f"{name[:_NAMED]}\n{said}"))
            rows.append((what, tiles))
    return rows, arrays


def _said(values: np.ndarray, mask: Mask | None, what: str = "") -> str:
    if mask is None:
        return what or f"up to {values.max():.2g}"
    ratio = lesion_over_retina(enlarge(values.clip(0)[None], mask.lesion.shape)[0], mask.lesion, mask.retina)
    number = f"lesion / retina {ratio:.1f}"
    return f"{what}, {number}" if what else number


def _outlines(picture: np.ndarray, mask: Mask | None) -> np.ndarray:
    if mask is None:
        return picture
    return with_outline(with_outline(picture, mask.retina, _RETINA), mask.lesion, _LESION)


def _blank(scan: np.ndarray, name: str, reason: str) -> Tile:
    return Tile((0.25 * as_picture(scan) + 180).clip(0, 255).astype(np.uint8), f"{name[:_NAMED]}\n{reason}")
