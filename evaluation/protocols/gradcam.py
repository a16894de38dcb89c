"""Grad-CAM of several classifiers side by side on the same scans (figure 5 of the paper)."""

import numpy as np
import torch

from evaluation.config import CamMethod, GradcamOptions
from evaluation.inputs.model import Answer
from evaluation.maps.cam import gradcam
from evaluation.protocols import explanations
from evaluation.protocols.explanations import Explainer, Subjects, draw_methods

FOOT = "each map by its own maximum, positive part only; 'up to' gives it in units of the logit and the layer"


def run(options: GradcamOptions) -> None:
    """Evaluate, print, and write; arrays ``MODEL_METHOD`` (rows, columns) float32 are signed and not normalised."""

    def make(answer: Answer, method: CamMethod) -> np.ndarray:
        images = answer.model.prepare(answer.image[None].to(answer.model.device))
        return gradcam(answer.model, images, torch.tensor([answer.target]), method)[0][0]

    def prepare(subjects: Subjects) -> Explainer:
        layers = {name: model.gradcam_layer.name for name, model in subjects.models.items()}
        return Explainer(
            name="gradcam",
            title="Grad-CAM",
            draw=lambda scan, answers: draw_methods(scan, answers, options.methods, make),
            units="maps: logit times the layer's unit, signed; published maps show the positive part",
            settings={"methods": options.methods, "layers": layers},
            subtitle="Grad-CAM at " + ", ".join(f"{name} {layer}" for name, layer in layers.items()),
            foot=FOOT,
        )

    explanations.run(options, prepare)
