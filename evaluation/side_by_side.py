"""One page a scan: every method and every model side by side.

    python evaluation/side_by_side.py --model RUN --beside RUN2 RUN3     scans of RUN's test split, all usual methods
    python evaluation/side_by_side.py SCAN.jpeg … --model RUN            image files, no labels needed
    python evaluation/side_by_side.py --figure 5 --model RUN --beside …  as the paper's 5 Grad-CAM, 6 occlusion,
                                                                         7 relevance (LRP), 9 attention of every head

Where lesion masks are at hand they are outlined, and each map tells how it prefers the lesion to the retina.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from tqdm import tqdm

from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.limits import Items, MaskValues, Name, Side, check_settings
from evaluation.chosen_scans import Chosen, from_files, from_split
from evaluation.class_target import Classifier
from evaluation.explanations import (
    ExplanationOptions,
    Page,
    answers,
    ask,
    describe,
    open_each,
    short_names,
    write_pages,
)
from evaluation.lesion_masks import LesionMasks, Mask, has_masks
from evaluation.localization import METHODS_BY_DEFAULT
from evaluation.map_methods import MapSettings, MethodName, candidates, make_maps, usable
from evaluation.map_pages import FOOT, draw_maps
from evaluation.map_rows import ATTENTION, MapModel
from evaluation.relevance_maps import PATENT_NOTICE
from evaluation.reports import heading, make_folder
from evaluation.runs import Source, open_source
from evaluation.scan_data import ScanData, open_data

Figure = Literal["5", "6", "7", "9"]
FIGURES: dict[str, tuple[MethodName, ...]] = {
    "5": ("gradcam",),
    "6": ("occlusion",),
    "7": ("lrp",),
    "9": ("attention",),
}


@dataclass
class Options(ExplanationOptions):
    """Pages of maps: one scan each, a row for each method, a column for each model."""

    methods: Annotated[tuple[MethodName, ...], Items(1, distinct=True)] = METHODS_BY_DEFAULT
    """One row of a page each; those that a model cannot have leave a gap with the reason. lrp is patented."""
    figure: Figure | None = None
    """A figure of the paper instead of --methods."""
    every_head: bool | None = None
    """Show every attention head and not their mean; unset: for figure 9."""
    attention_size: Side | None = None
    """Short side in pixels of the scans that attention is computed on; unset: a pretraining's monitor.attention_size,
    else what the classifier sees."""
    masks: Name | None = None
    """Folder of lesion masks to outline; unset: masks/ beside the splits, if there is one."""
    lesion_values: MaskValues = ()
    """Values of the lesion in a mask; unset: 255 for phantoms, else all but 0 and --retina-values."""
    retina_values: MaskValues = ()
    """Values of the retina outside lesions; unset: 128 for phantoms, else the retina is estimated from the scan."""

    def __post_init__(self):
        if self.figure:
            self.methods = FIGURES[self.figure]
        if self.every_head is None:
            self.every_head = self.figure == "9"

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if self.every_head and self.methods != (ATTENTION,):
            return "every_head", "it takes attention apart and shows nothing else; give --methods attention"
        if self.masks and self.scans:
            return "masks", "image files are given as well; masks belong to scans of a data folder"
        return None


def evaluate(source: Source, options: Options) -> tuple[dict[str, Any], list[Page], str]:
    """Run the whole evaluation.

    Returns:
        What the JSON file holds, the pages (arrays ``MODEL_METHOD`` (M, rows, columns) float32, signed and not
        normalised), and the answers as text.

    Raises:
        InputError: a method that no model has, or as ``open_each``, ``from_files``, ``from_split`` and ``ask``.
    """
    check_settings(options)
    sources = [source, *(open_source(name) for name in options.beside)]
    short_names(sources)
    data, masks = None, None
    if options.scans:
        chosen, about = from_files(options.scans, source, options.dataset)
    else:
        data = open_data(source, options.data, options.dataset, options.phantom, print)
        masks = _masks(data, options)
        chosen, about = from_split(data, options.split, options.n, options.beside)
    classifiers = open_each(sources, options, data)
    models = _models(sources, classifiers, options)
    result = describe("side_by_side", classifiers, source, about, options)
    result["settings"] |= {"methods": options.methods, "figure": options.figure, "every_head": options.every_head}
    result["units"] = "maps: as evaluation/gradcam.py, occlusion.py, relevance.py and attention.py give them"
    result["notes"] += [f"{one.name} has no {method}: {why}" for one in models for method, why in one.gaps.items()]
    if masks is not None:
        result["notes"] += masks.notes()
    if "lrp" in options.methods:
        result["notes"].append(PATENT_NOTICE)
    pages, all_asked = [], []
    for scan in tqdm(chosen, desc="maps", unit="scan", disable=None, leave=False):
        asked = {name: ask(one, scan, options.target) for name, one in classifiers.items()}
        maps = {
            (one.name, method): make_maps(
                one.classifier, method, [scan.scan], [asked[one.name].target], one.settings, signed=True
            )[0]
            for one in models
            for method in one.methods
        }
        page_models, page_maps = _each_head(models, maps) if options.every_head else (models, maps)
        rows, arrays = draw_maps(scan.scan, page_models, page_maps, {}, _mask_of(masks, data, scan))
        pages.append(Page(scan, rows, arrays, {"models": {name: one.facts() for name, one in asked.items()}}))
        all_asked.append(asked)
    return result, pages, answers(classifiers, all_asked)


def _models(sources: Sequence[Source], classifiers: dict[str, Classifier], options: Options) -> list[MapModel]:
    models = []
    for source, (name, classifier) in zip(sources, classifiers.items(), strict=True):
        side = options.attention_size or source.attention_size
        able, gaps = usable(classifier, options.methods)
        models.append(MapModel(name, source.kind, classifier, MapSettings(side), tuple(able), gaps))
    if not any(model.methods for model in models):
        raise InputError(next(iter(models[0].gaps.values())))
    return models


def _each_head(
    models: Sequence[MapModel], maps: dict[tuple[str, str], np.ndarray]
) -> tuple[list[MapModel], dict[tuple[str, str], np.ndarray]]:
    """Attention of one model taken apart: a column for each head."""
    columns, apart = [], {}
    for model in models:
        if ATTENTION not in model.methods:
            columns.append(model)
            apart |= {key: found for key, found in maps.items() if key[0] == model.name}
            continue
        for i, head in enumerate(candidates(model.classifier, ATTENTION, model.settings)):
            name = f"{model.name} {head}"
            columns.append(MapModel(name, model.kind, model.classifier, model.settings, (ATTENTION,), {}))
            apart[name, ATTENTION] = maps[model.name, ATTENTION][[i]]
    return columns, apart


def _masks(data: ScanData, options: Options) -> LesionMasks | None:
    if not (options.masks or options.lesion_values or options.retina_values) and not has_masks(data):
        return None
    return LesionMasks(data, options.masks, options.lesion_values, options.retina_values)


def _mask_of(masks: LesionMasks | None, data: ScanData | None, scan: Chosen) -> Mask | None:
    if masks is None or data is None:
        return None
    position = data.index.files.index(scan.file)
    mask = masks.read(position) if masks.file(position) else None
    return mask if mask is not None and mask.lesion.any() else None


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``side_by_side.npz``, ``side_by_side.json`` and TensorBoard images."""
    source = open_source(options.model)
    result, pages, text = evaluate(source, options)
    folder = make_folder(source.results_folder("side_by_side", options.out))
    write_pages(result, pages, ", ".join(options.methods), FOOT, folder)
    print("\n".join([*heading("maps side by side", result), text, "", *(f"note: {note}" for note in result["notes"])]))
    print(f"written: {len(pages)} pages, side_by_side.npz, side_by_side.json and tensorboard/ in {folder}")


if __name__ == "__main__":
    run_command(main, Options)
