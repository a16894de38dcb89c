"""One page a scan: every method and every model side by side."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from evaluation.config import ATTENTION, SideBySideOptions
from evaluation.inputs.masks import LesionMasks, Mask, has_masks
from evaluation.inputs.model import Answer
from evaluation.inputs.selection import Chosen
from evaluation.maps.methods import candidates, make_maps
from evaluation.maps.rows import MapMaker
from evaluation.pages.maps import FOOT, draw_maps
from evaluation.pages.tiles import Page
from evaluation.protocols import explanations
from evaluation.protocols.explanations import Explainer, Subjects
from evaluation.protocols.results import map_makers, map_notes


def run(options: SideBySideOptions) -> None:
    """Evaluate, print, and write; arrays ``MODEL_METHOD`` (M, rows, columns) float32 are signed and not normalised.

    Raises:
        InputError: a method that no model has, or as ``explanations.run``.
    """

    def prepare(subjects: Subjects) -> Explainer:
        makers = map_makers(list(subjects.models.values()), options)
        data = subjects.data
        are_there = data is not None and (options.are_masks_given or has_masks(data))
        masks = LesionMasks(data, options) if are_there else None
        return Explainer(
            name="side_by_side",
            title="maps side by side",
            draw=lambda scan, answers: _draw(scan, makers, answers, _mask_of(masks, scan), options.figure == "9"),
            units="maps: as evaluation/gradcam.py, occlusion.py, relevance.py and attention.py give them",
            settings={"methods": options.methods, "figure": options.figure},
            subtitle=", ".join(options.methods),
            foot=FOOT,
            notes=map_notes(makers) + (masks.notes() if masks else []),
        )

    explanations.run(options, prepare)


def _draw(
    scan: Chosen, makers: Sequence[MapMaker], answers: dict[str, Answer], mask: Mask | None, every_head: bool
) -> Page:
    maps = {
        (maker.name, method): make_maps(
            maker.model, method, [scan.scan], [answers[maker.name].target], maker.settings, signed=True
        )[0]
        for maker in makers
        for method in maker.methods
    }
    if every_head:
        makers, maps = _each_head(makers, maps)
    return Page(scan, *draw_maps(scan.scan, makers, maps, {}, mask))


def _each_head(
    makers: Sequence[MapMaker], maps: dict[tuple[str, str], np.ndarray]
) -> tuple[list[MapMaker], dict[tuple[str, str], np.ndarray]]:
    """Attention taken apart: a column for each head."""
    columns, of_heads = [], {}
    for maker in makers:
        if ATTENTION not in maker.methods:
            columns.append(maker)
            continue
        for i, head in enumerate(candidates(maker.model, ATTENTION, maker.settings)):
            model = dataclasses.replace(maker.model, name=f"{maker.name} {head}")
            columns.append(MapMaker(model, maker.settings, (ATTENTION,)))
            of_heads[model.name, ATTENTION] = maps[maker.name, ATTENTION][[i]]
    return columns, of_heads


def _mask_of(masks: LesionMasks | None, scan: Chosen) -> Mask | None:
    if masks is None:
        return None
    position = masks.data.index.files.index(scan.file)
    mask = masks.read(position) if masks.file(position) else None
    return mask if mask is not None and mask.lesion.any() else None
