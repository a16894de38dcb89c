"""Grad-CAM of several classifiers side by side on the same scans (figure 5 of the paper).

    python evaluation/gradcam.py --model RUN --beside RUN2 RUN3    scans of RUN's test split
    python evaluation/gradcam.py SCAN.jpeg … --model RUN           image files, no labels needed
    python evaluation/gradcam.py --methods gradcam hirescam --target CNV

A model without a classifier gets a linear probe of its features, or class prototypes (``--classifier prototype``).
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from tqdm import tqdm

from dino_oct.cli import run_command
from dino_oct.limits import Items, check_settings
from evaluation.explanations import (
    Asked,
    ExplanationOptions,
    Page,
    Tile,
    answers,
    as_picture,
    ask,
    describe,
    open_models,
    overlay,
    write_pages,
)
from evaluation.gradcam_maps import Method, gradcam
from evaluation.reports import heading, make_folder
from evaluation.runs import Source, open_source

FOOT = "each map by its own maximum, positive part only; 'up to' gives it in units of the logit and the layer"


@dataclass
class Options(ExplanationOptions):
    """Where a class's logit comes from, by the last feature map that has positions."""

    methods: Annotated[tuple[Method, ...], Items(1, distinct=True)] = ("gradcam",)
    """One row of a page each; eigencam is the same for every class."""


def evaluate(source: Source, options: Options) -> tuple[dict[str, Any], list[Page], str]:
    """Run the whole evaluation.

    Returns:
        What the JSON file holds, the pages (arrays ``MODEL_METHOD`` (rows, columns) float32, signed and not
        normalised), and the answers as text.

    Raises:
        InputError: as ``open_models``, ``ask`` and ``gradcam``.
    """
    check_settings(options)
    models, chosen, about = open_models(source, options)
    result = describe("gradcam", models, source, about, options)
    result["settings"] |= {
        "methods": options.methods,
        "layers": {name: one.gradcam_layer.name for name, one in models.items()},
    }
    result["units"] = "maps: logit times the layer's unit, signed; published maps show the positive part"
    pages, all_asked = [], []
    for scan in tqdm(chosen, desc="gradcam", unit="scan", disable=None, leave=False):
        asked = {name: ask(one, scan, options.target) for name, one in models.items()}
        maps = {method: {name: _map(one, method) for name, one in asked.items()} for method in options.methods}
        rows = [
            (
                method,
                [
                    Tile(as_picture(scan.scan), f"scan\n{scan.label or ''}"),
                    *(
                        Tile(overlay(scan.scan, found), _caption(name, asked[name], found))
                        for name, found in row.items()
                    ),
                ],
            )
            for method, row in maps.items()
        ]
        arrays = {f"{name}_{method}": found for method, row in maps.items() for name, found in row.items()}
        pages.append(Page(scan, rows, arrays, {"models": {name: one.facts() for name, one in asked.items()}}))
        all_asked.append(asked)
    return result, pages, answers(models, all_asked)


def _map(asked: Asked, method: Method) -> np.ndarray:
    device = next(asked.classifier.model.parameters()).device
    images = asked.classifier.prepare(asked.image[None].to(device))
    return gradcam(asked.classifier, images, torch.tensor([asked.target]), method)[0][0]


def _caption(name: str, asked: Asked, found: np.ndarray) -> str:
    target = asked.classifier.class_names[asked.target]
    peak = float(found.max())
    said = f"up to {peak:.2g}" if peak > 0 else "nothing positive"
    return f"{name}: {asked.verdict}\nfor {target}, {found.shape[0]} × {found.shape[1]}, {said}"


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``gradcam.npz``, ``gradcam.json`` and TensorBoard images."""
    source = open_source(options.model)
    result, pages, text = evaluate(source, options)
    layers = ", ".join(f"{name} {layer}" for name, layer in result["settings"]["layers"].items())
    folder = make_folder(source.results_folder("gradcam", options.out))
    write_pages(result, pages, f"Grad-CAM at {layers}", FOOT, folder)
    print("\n".join([*heading("Grad-CAM", result), text, "", *(f"note: {note}" for note in result["notes"])]))
    count = f"{len(pages)} page{'' if len(pages) == 1 else 's'}"
    print(f"written: {count}, gradcam.npz, gradcam.json and tensorboard/ in {folder}")


if __name__ == "__main__":
    run_command(main, Options)
