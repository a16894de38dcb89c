"""Relevance maps of transformers (figure 7 of the paper): the patches that a class's logit rests on."""

import numpy as np

from evaluation.config import RelevanceMethod, RelevanceOptions
from evaluation.inputs.model import Answer
from evaluation.maps.chefer import PATENT_NOTICE, check_model, relevance
from evaluation.protocols import explanations
from evaluation.protocols.explanations import Explainer, Subjects, draw_methods

FOOT = "each map by its own maximum; 'up to' gives it, as does relevance.npz; rollout is the same for every class"


def run(options: RelevanceOptions) -> None:
    """Evaluate, print, and write; arrays ``MODEL_METHOD`` (rows, columns) float32 ≥ 0 are not normalised.

    Raises:
        InputError: a model that is no transformer with CLS, or as ``explanations.run``.
    """

    def make(answer: Answer, method: RelevanceMethod) -> np.ndarray:
        images = answer.model.prepare(answer.image[None].to(answer.model.device))
        return relevance(answer.model.model, images, [answer.target], method, options.start_layer)[0].cpu().numpy()

    def prepare(subjects: Subjects) -> Explainer:
        for model in subjects.models.values():
            for method in options.methods:
                check_model(model.model, method)
        return Explainer(
            name="relevance",
            title="relevance",
            draw=lambda scan, answers: draw_methods(scan, answers, options.methods, make),
            units="maps: share of a row of attention times, except for rollout, the logit's gradient; ≥ 0",
            settings={"methods": options.methods, "start_layer": options.start_layer},
            subtitle=f"relevance from block {options.start_layer} up",
            foot=FOOT,
            notes=[PATENT_NOTICE] if "lrp" in options.methods else [],
        )

    explanations.run(options, prepare)
