"""Grad-CAM and its relatives for every family of the zoo, in the units of the logit.

The formulas are those of the grad-cam library. It would run the backward pass through the whole network and scale each
map to [0, 1]; here only the layers behind the map's layer are differentiated, and maps keep their size, sign and unit.

In a transformer the sign is less certain than the place: its final norm can leave a sure logit without a gradient along
the evidence, and a map then shows everything but it.
"""

import numpy as np
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM
from torch import Tensor, nn

from dino_oct.errors import InputError
from dino_oct.models.classifier import Classifier
from dino_oct.models.layers import GradcamLayer, classifier_layer
from dino_oct.models.network import evaluating
from evaluation.config import CamMethod

_FORMULAS = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "hirescam": HiResCAM, "eigencam": EigenCAM}


def gradcam(
    classifier: Classifier, images: Tensor, targets: Tensor | None = None, method: CamMethod = "gradcam"
) -> tuple[np.ndarray, np.ndarray]:
    """One map for one class of each image. The map of an image does not depend on its batch.

    Args:
        classifier: in whatever mode it is; it runs in evaluation mode.
        images: (B, C, H, W) from ``classifier.prepare``.
        targets: (B,) the logits to explain; unset: the largest of each image.
        method: ``gradcam`` (Selvaraju et al. 2017), ``gradcam++`` (Chattopadhay et al. 2018), ``hirescam`` (Draelos &
            Carin 2020), ``eigencam`` (Muhammad & Yeasin 2020; the same for every class).

    Returns:
        maps (B, rows, columns) float32, positive where the layer speaks for the class, negative where against it
        (published maps show the positive part), and logits (B, K) float32. The first component that ``eigencam`` shows
        has no sign of its own: its larger extreme is made positive.

    Raises:
        InputError: a model without a classifier or without a layer for Grad-CAM, or a class that it does not have.
    """
    layer = check_gradcam(classifier)
    size = tuple(images.shape[-2:])
    activations, logits = _run_from(classifier.model, layer.name, images)
    if targets is None:
        targets = logits.argmax(dim=1)
    if int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]:
        raise InputError(f"class {targets.tolist()}: {classifier.name} has {logits.shape[1]} classes, from 0")
    if method == "eigencam":
        gradients = torch.zeros_like(activations)
    else:
        score = logits.gather(1, targets.to(logits.device)[:, None]).sum()
        (gradients,) = torch.autograd.grad(score, activations)
    output, slope = (layer.to_maps(tensor, size).detach().float().cpu().numpy() for tensor in (activations, gradients))
    # Without layers the library hooks nothing, and its formula reads no model: it gets what was recorded here.
    formula = _FORMULAS[method](nn.Linear(1, 1), [])
    maps = formula.get_cam_image(images, None, None, output, slope, eigen_smooth=False)
    if method == "eigencam":
        low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
        maps = np.where(-low > high, -maps, maps)
    return maps.astype(np.float32), logits.detach().float().cpu().numpy()


def check_classifier(classifier: Classifier) -> None:
    """Raise InputError unless there is a class to explain."""
    if not classifier_layer(classifier.model):
        raise InputError(f"{classifier.name} has no classifier, so no class to explain; --classifier probe fits one")


def check_gradcam(classifier: Classifier) -> GradcamLayer:
    """The layer for Grad-CAM; InputError where there is none, or no class to explain."""
    check_classifier(classifier)
    return classifier.gradcam_layer


def _run_from(model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output as the root of a graph that ends in the logits; nothing before it is recorded."""
    recorded: list[Tensor] = []

    def start_here(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        recorded.append(output.detach().requires_grad_())
        return recorded[0].clone()  # a layer that works in place may follow

    hook = model.get_submodule(name).register_forward_hook(start_here)
    try:
        with evaluating(model), torch.no_grad():  # which also takes back the hook's change
            logits = model(images)
    finally:
        hook.remove()
    return recorded[0], logits
