"""One page a scan: every method and every model side by side."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dino_oct.errors import InputError
from dino_oct.scan_data import ScanData
from evaluation.config import ATTENTION, SideBySideOptions
from evaluation.inputs.masks import LesionMasks, Mask, has_masks
from evaluation.inputs.model import Answer, Model
from evaluation.inputs.selection import Chosen
from evaluation.maps.chefer import PATENT_NOTICE
from evaluation.maps.methods import MapSettings, candidates, make_maps, usable
from evaluation.maps.rows import MapMaker
from evaluation.pages.maps import FOOT, draw_maps
from evaluation.protocols import explanations
from evaluation.protocols.explanations import Drawing, Explainer, Subjects


def run(options: SideBySideOptions) -> None:
    """Evaluate, print, and write; arrays ``MODEL_METHOD`` (M, rows, columns) float32 are signed and not normalised.

    Raises:
        InputError: a method that no model has, or as ``explanations.run``.
    """

    def prepare(subjects: Subjects) -> Explainer:
        makers = _makers(list(subjects.models.values()), options)
        masks = _masks(subjects.data, options)
        notes = [f"{maker.name} has no {method}: {why}" for maker in makers for method, why in maker.gaps.items()]
        notes += masks.notes() if masks else []
        notes += [PATENT_NOTICE] if "lrp" in options.methods else []

        def draw(scan: Chosen, answers: dict[str, Answer]) -> Drawing:
            mask = _mask_of(masks, scan)
            return _draw(scan, makers, answers, mask, every_head=options.figure == "9")

        return Explainer(
            name="side_by_side",
            title="maps side by side",
            draw=draw,
            units="maps: as evaluation/gradcam.py, occlusion.py, relevance.py and attention.py give them",
            settings={"methods": options.methods, "figure": options.figure},
            subtitle=", ".join(options.methods),
            foot=FOOT,
            notes=notes,
        )

    explanations.run(options, prepare)


def _draw(
    scan: Chosen, makers: Sequence[MapMaker], answers: dict[str, Answer], mask: Mask | None, every_head: bool
) -> Drawing:
    maps = {
        (maker.name, method): make_maps(
            maker.model, method, [scan.scan], [answers[maker.name].target], maker.settings, signed=True
        )[0]
        for maker in makers
        for method in maker.methods
    }
    if every_head:
        makers, maps = _each_head(makers, maps)
    return Drawing(*draw_maps(scan.scan, makers, maps, {}, mask))


def _makers(models: Sequence[Model], options: SideBySideOptions) -> list[MapMaker]:
    makers = []
    for model in models:
        methods, gaps = usable(model, options.methods)
        side = options.attention_size or model.source.attention_size
        makers.append(MapMaker(model, MapSettings(side), tuple(methods), gaps))
    if not any(maker.methods for maker in makers):
        raise InputError(next(iter(makers[0].gaps.values())))
    return makers


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


def _masks(data: ScanData | None, options: SideBySideOptions) -> LesionMasks | None:
    """The masks of the scans, where there are any; None for image files."""
    if data is None or not (options.masks or options.lesion_values or options.retina_values or has_masks(data)):
        return None
    return LesionMasks(data, options.masks, options.lesion_values, options.retina_values)


def _mask_of(masks: LesionMasks | None, scan: Chosen) -> Mask | None:
    if masks is None:
        return None
    position = masks.data.index.files.index(scan.file)
    mask = masks.read(position) if masks.file(position) else None
    return mask if mask is not None and mask.lesion.any() else None
