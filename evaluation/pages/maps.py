"""Pages of maps: one scan, a row of pictures for each method, a column for each model."""

from collections.abc import Sequence

import numpy as np

from evaluation.config import ATTENTION
from evaluation.inputs.masks import Mask
from evaluation.inputs.selection import Chosen
from evaluation.maps.leaderboard import Head
from evaluation.maps.methods import enlarge
from evaluation.maps.rows import ENSEMBLE, Case, MapMaker
from evaluation.pages.tiles import Page, Tile, as_picture, overlay, signed_overlay, with_outline
from evaluation.scores.lesions import lesion_over_retina
from evaluation.scores.ranks import disagreement, ensemble, rank_normalise

FOOT = (
    "each map by its own maximum; lesion outlined in cyan, retina in white; red for, blue against the class\n"
    "ensemble: mean rank over a model's maps (upper half); disagreement: standard deviation of these ranks"
)
DISAGREEMENT = "disagreement"
_LESION, _RETINA = (0, 229, 255), (255, 255, 255)
_NAMED = 34  # characters that a caption has room for


def page_of_case(
    case: Case, makers: Sequence[MapMaker], maps: dict[tuple[str, str], np.ndarray], heads: dict[str, Head]
) -> Page:
    """The page of a scan whose maps were scored; arguments as ``draw_maps``."""
    explained = {
        maker.name: maker.model.class_names[case.targets[maker.name]] for maker in makers if maker.model.class_names
    }
    facts = {"explained": explained, "heads": {name: head.name for name, head in heads.items()}}
    scan = Chosen(case.file, case.patient, case.label or None, case.scan)
    return Page(scan, *draw_maps(case.scan, makers, maps, heads, case.mask), facts)


def draw_maps(
    scan: np.ndarray,
    makers: Sequence[MapMaker],
    maps: dict[tuple[str, str], np.ndarray],
    heads: dict[str, Head],
    mask: Mask | None = None,
) -> tuple[list[tuple[str, list[Tile]]], dict[str, np.ndarray]]:
    """Rows of a page and its arrays.

    Args:
        scan: (H, W) uint8.
        maps: (model, method) → (M, rows, columns), signed where the method is.
        heads: model → the attention head to show; others show the mean of heads.

    Returns:
        The rows (methods, then ensemble and disagreement of each model's maps), and arrays: ``MODEL_METHOD``.
    """
    methods = list(dict.fromkeys(method for maker in makers for method in (*maker.methods, *maker.gaps)))
    first = Tile(_outlines(as_picture(scan), mask), "scan")
    rows, arrays = [], {}
    ranks: dict[str, list[np.ndarray]] = {maker.name: [] for maker in makers}
    for method in methods:
        rows.append((method, [first]))
        for maker in makers:
            candidates = maps.get((maker.name, method))
            if candidates is None:
                why = "no such map" if method in maker.gaps else "not asked for"
                rows[-1][1].append(_blank(scan, maker.name, why))
                continue
            arrays[f"{maker.name}_{method}"] = candidates
            values, head = candidates[0], ""
            if method == ATTENTION and len(candidates) > 1:
                choice = heads.get(maker.name)
                values = candidates[choice.position] if choice else candidates.mean(axis=0)
                head = choice.name if choice else "mean of heads"
            ranks[maker.name].append(rank_normalise(enlarge(values.clip(0)[None], scan.shape)[0]))
            signed = method == "occlusion" and bool((values < 0).any())
            picture = signed_overlay(scan, values, float(np.abs(values).max())) if signed else overlay(scan, values)
            caption = f"{maker.name[:_NAMED]}\n{_caption(values, mask, head)}"
            rows[-1][1].append(Tile(_outlines(picture, mask), caption))
    if all(len(of_model) < 2 for of_model in ranks.values()):
        return rows, arrays
    for what, combine in ((ENSEMBLE, ensemble), (DISAGREEMENT, disagreement)):
        rows.append((what, [first]))
        for name, of_model in ranks.items():
            if len(of_model) < 2:
                rows[-1][1].append(_blank(scan, name, "needs two maps"))
                continue
            values = arrays[f"{name}_{what}"] = combine(of_model)
            caption = _caption(values, mask) if what == ENSEMBLE else f"mean {values.mean():.2f} of 0.5"
            # Ranks spread over the whole scan: the upper half alone says where a method would point.
            strength = (2 * values - 1).clip(0) if what == ENSEMBLE else values
            picture = _outlines(overlay(scan, strength), mask)
            rows[-1][1].append(Tile(picture, f"{name[:_NAMED]}\n{caption}"))
    return rows, arrays


def _caption(values: np.ndarray, mask: Mask | None, what: str = "") -> str:
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
