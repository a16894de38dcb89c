"""Relevance maps of transformers (figure 7 of the paper): the patches that a class's logit rests on.

    python evaluation/relevance.py --model RUN                       scans of RUN's test split
    python evaluation/relevance.py SCAN.jpeg … --model RUN           image files, no labels needed
    python evaluation/relevance.py --method gradient lrp rollout     one row of a page each; lrp is the paper's choice

A DINO backbone gets a linear probe of its features as classifier. For CNNs there is evaluation/gradcam.py.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from dino_oct.cli import run_command
from dino_oct.limits import Items, Range, check_settings
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
from evaluation.relevance_maps import PATENT_NOTICE, Method, check_model, relevance
from evaluation.reports import heading, make_folder
from evaluation.runs import Source, open_source

FOOT = "each map by its own maximum; 'up to' gives it, as does relevance.npz; rollout is the same for every class"


@dataclass
class Options(ExplanationOptions):
    """Which patches a class's logit rests on, followed through the attention of a vision transformer."""

    methods: Annotated[tuple[Method, ...], Items(1, distinct=True), tyro.conf.arg(aliases=["--method"])] = ("gradient",)
    """gradient: attention × its gradient (Chefer et al., ICCV 2021); lrp: with layer-wise relevance in place of
    attention (CVPR 2021, patented); rollout: attention alone."""
    start_layer: Annotated[int, Range(0, 1000)] = 0
    """Lowest transformer block that is followed, from 0."""


def evaluate(source: Source, options: Options) -> tuple[dict[str, Any], list[Page], str]:
    """Run the whole evaluation.

    Returns:
        What the JSON file holds, the pages (arrays ``MODEL_METHOD`` (rows, columns) float32 ≥ 0, not normalised), and
        the answers as text.

    Raises:
        InputError: as ``open_models``, ``ask`` and ``relevance``.
    """
    check_settings(options)
    models, chosen, about = open_models(source, options)
    for one in models.values():
        for method in options.methods:
            check_model(one.model, method)
    result = describe("relevance", models, source, about, options)
    result["settings"] |= {"methods": options.methods, "start_layer": options.start_layer}
    result["units"] = "maps: share of a row of attention times, except for rollout, the logit's gradient; ≥ 0"
    if "lrp" in options.methods:
        result["notes"].append(PATENT_NOTICE)
    pages, all_asked = [], []
    for scan in tqdm(chosen, desc="relevance", unit="scan", disable=None, leave=False):
        asked = {name: ask(one, scan, options.target) for name, one in models.items()}
        rows, arrays = [], {}
        for method in options.methods:
            tiles = [Tile(as_picture(scan.scan), f"scan\n{scan.label or ''}")]
            for name, one in asked.items():
                found = _map(one, method, options.start_layer)
                arrays[f"{name}_{method}"] = found
                tiles.append(Tile(overlay(scan.scan, found), _caption(name, one, found, method)))
            rows.append((method, tiles))
        pages.append(Page(scan, rows, arrays, {"models": {name: one.facts() for name, one in asked.items()}}))
        all_asked.append(asked)
    return result, pages, answers(models, all_asked)


def _map(asked: Asked, method: Method, start_layer: int) -> np.ndarray:
    model = asked.classifier.model
    images = asked.classifier.prepare(asked.image[None].to(next(model.parameters()).device))
    return relevance(model, images, [asked.target], method, start_layer)[0].cpu().numpy()


def _caption(name: str, asked: Asked, found: np.ndarray, method: Method) -> str:
    explained = "any class" if method == "rollout" else asked.classifier.class_names[asked.target]
    rows, columns = found.shape
    return f"{name}: {asked.verdict}\nfor {explained}, {rows} × {columns}, up to {found.max():.2g}"


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``relevance.npz``, ``relevance.json`` and TensorBoard images."""
    source = open_source(options.model)
    result, pages, text = evaluate(source, options)
    folder = make_folder(source.results_folder("relevance", options.out))
    write_pages(result, pages, f"relevance from block {options.start_layer} up", FOOT, folder)
    print("\n".join([*heading("relevance", result), text, "", *(f"note: {note}" for note in result["notes"])]))
    print(f"written: {len(pages)} pages, relevance.npz, relevance.json and tensorboard/ in {folder}")


if __name__ == "__main__":
    run_command(main, Options)
