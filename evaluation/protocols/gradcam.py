"""Grad-CAM of several classifiers side by side on the same scans (figure 5 of the paper)."""

import numpy as np
import torch

from evaluation.config import CamMethod, GradcamOptions
from evaluation.inputs.model import Answer
from evaluation.inputs.selection import Chosen
from evaluation.maps.cam import gradcam
from evaluation.pages.tiles import Tile, as_picture, overlay
from evaluation.protocols import explanations
from evaluation.protocols.explanations import Drawing, Explainer, Subjects

FOOT = "each map by its own maximum, positive part only; 'up to' gives it in units of the logit and the layer"


def run(options: GradcamOptions) -> None:
    """Evaluate, print, and write; arrays ``MODEL_METHOD`` (rows, columns) float32 are signed and not normalised."""

    def prepare(subjects: Subjects) -> Explainer:
        layers = {name: model.gradcam_layer.name for name, model in subjects.models.items()}
        return Explainer(
            name="gradcam",
            title="Grad-CAM",
            draw=lambda scan, answers: _draw(scan, answers, options.methods),
            units="maps: logit times the layer's unit, signed; published maps show the positive part",
            settings={"methods": options.methods, "layers": layers},
            subtitle="Grad-CAM at " + ", ".join(f"{name} {layer}" for name, layer in layers.items()),
            foot=FOOT,
        )

    explanations.run(options, prepare)


def _draw(scan: Chosen, answers: dict[str, Answer], methods: tuple[CamMethod, ...]) -> Drawing:
    rows, arrays = [], {}
    for method in methods:
        tiles = [Tile(as_picture(scan.scan), f"scan\n{scan.label or ''}")]
        for name, answer in answers.items():
            cam = arrays[f"{name}_{method}"] = _map(answer, method)
            tiles.append(Tile(overlay(scan.scan, cam), _caption(name, answer, cam)))
        rows.append((method, tiles))
    return Drawing(rows, arrays)


def _map(answer: Answer, method: CamMethod) -> np.ndarray:
    images = answer.model.prepare(answer.image[None].to(answer.model.device))
    return gradcam(answer.model, images, torch.tensor([answer.target]), method)[0][0]


def _caption(name: str, answer: Answer, cam: np.ndarray) -> str:
    peak = float(cam.max())
    height = f"up to {peak:.2g}" if peak > 0 else "nothing positive"
    return f"{name}: {answer.verdict}\nfor {answer.explained}, {cam.shape[0]} × {cam.shape[1]}, {height}"
