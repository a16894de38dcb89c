"""Relevance maps of transformers (figure 7 of the paper): the patches that a class's logit rests on."""

import numpy as np

from evaluation.config import RelevanceMethod, RelevanceOptions
from evaluation.inputs.model import Answer
from evaluation.inputs.selection import Chosen
from evaluation.maps.chefer import PATENT_NOTICE, check_model, relevance
from evaluation.pages.tiles import Tile, as_picture, overlay
from evaluation.protocols import explanations
from evaluation.protocols.explanations import Drawing, Explainer, Subjects

FOOT = "each map by its own maximum; 'up to' gives it, as does relevance.npz; rollout is the same for every class"


def run(options: RelevanceOptions) -> None:
    """Evaluate, print, and write; arrays ``MODEL_METHOD`` (rows, columns) float32 ≥ 0 are not normalised.

    Raises:
        InputError: a model that is no transformer with CLS, or as ``explanations.run``.
    """

    def prepare(subjects: Subjects) -> Explainer:
        for model in subjects.models.values():
            for method in options.methods:
                check_model(model.model, method)
        return Explainer(
            name="relevance",
            title="relevance",
            draw=lambda scan, answers: _draw(scan, answers, options),
            units="maps: share of a row of attention times, except for rollout, the logit's gradient; ≥ 0",
            settings={"methods": options.methods, "start_layer": options.start_layer},
            subtitle=f"relevance from block {options.start_layer} up",
            foot=FOOT,
            notes=[PATENT_NOTICE] if "lrp" in options.methods else [],
        )

    explanations.run(options, prepare)


def _draw(scan: Chosen, answers: dict[str, Answer], options: RelevanceOptions) -> Drawing:
    rows, arrays = [], {}
    for method in options.methods:
        tiles = [Tile(as_picture(scan.scan), f"scan\n{scan.label or ''}")]
        for name, answer in answers.items():
            values = arrays[f"{name}_{method}"] = _map(answer, method, options.start_layer)
            tiles.append(Tile(overlay(scan.scan, values), _caption(name, answer, values, method)))
        rows.append((method, tiles))
    return Drawing(rows, arrays)


def _map(answer: Answer, method: RelevanceMethod, start_layer: int) -> np.ndarray:
    images = answer.model.prepare(answer.image[None].to(answer.model.device))
    return relevance(answer.model.model, images, [answer.target], method, start_layer)[0].cpu().numpy()


def _caption(name: str, answer: Answer, values: np.ndarray, method: RelevanceMethod) -> str:
    explained = "any class" if method == "rollout" else answer.explained
    rows, columns = values.shape
    return f"{name}: {answer.verdict}\nfor {explained}, {rows} × {columns}, up to {values.max():.2g}"
