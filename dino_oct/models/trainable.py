"""Which part of a model learns, and how fast: freezing, and parameter groups with layer-wise learning rates."""

from functools import partial
from typing import Any, Literal

from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from dino_oct.errors import InputError
from dino_oct.models.loading import classifier_tensors


def set_trainable(model: nn.Module, part: Literal["full", "head"] | int) -> None:
    """Let all of a model learn, its classifier alone, or its last blocks (and its classifier, if it has one).

    What is frozen also stays in evaluation mode whenever ``model.train()`` is called: its BatchNorm statistics do not
    move and it drops nothing. A later call replaces an earlier one.

    Args:
        part: "full", "head", or the number of last blocks: residual blocks of a CNN, transformer blocks of a ViT. The
            norms behind the last block learn with it.

    Raises:
        InputError: "head" of a model without classifier, or more blocks than the model has.
    """
    learning = _names(model, part)
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(name in learning)
    for module in model.modules():
        module.__dict__.pop("train", None)
    before = True  # layers without parameters, as dropout, are frozen where they come before all that learns
    for module in model.modules():
        tensors = list(module.parameters())
        if any(tensor.requires_grad for tensor in tensors):
            before &= not any(tensor.requires_grad for tensor in module.parameters(recurse=False))
        elif tensors or before:
            # On the instance, so that every way of switching the mode meets it; a partial survives deepcopy.
            module.train = partial(_stay_in_evaluation, module)
    model.train(model.training)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters that learn, in groups with ``weight_decay`` and ``lr_scale``; 1-D tensors are not decayed.

    Args:
        layer_decay: factor of the learning rate from one block to the one before it, in (0, 1]; ``lr_scale`` is
            ``layer_decay`` to the power of the distance from the classifier (Bao et al. 2021, BEiT).

    Raises:
        InputError: a layer decay out of range, or of a model whose layers timm does not order.
    """
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer_decay {layer_decay:g}: give a factor above 0 and at most 1 (1: one rate for all)")
    if layer_decay == 1:
        return [
            {**group, "lr_scale": 1.0} for group in param_groups_weight_decay(model, weight_decay) if group["params"]
        ]
    _check_ordered(model, "layer_decay", "1")
    return param_groups_layer_decay(model, weight_decay, layer_decay=layer_decay)


def layer_scales(backbone: nn.Module, layer_decay: float) -> dict[str, float]:
    """Factor of the learning rate of each parameter of a backbone without classifier, by name.

    Args:
        layer_decay: factor from one block to the one before it, in (0, 1] (Bao et al. 2021, BEiT). The last block, with
            what stands behind it, has 1, the patch embedding the least.

    Raises:
        InputError: a backbone whose layers timm does not order.
    """
    if layer_decay == 1:
        return {name: 1.0 for name, _ in backbone.named_parameters()}
    layers = _layers(backbone, "layer_decay", "1")
    last = max(layers.values())
    return {name: layer_decay ** (last - layer) for name, layer in layers.items()}


def _names(model: nn.Module, part: Literal["full", "head"] | int) -> set[str]:
    """Names of the parameters that shall learn."""
    if part == "full":
        return {name for name, _ in model.named_parameters()}
    classifier = classifier_tensors(model)
    if part == "head":
        if not classifier:
            raise InputError(f"{type(model).__name__} has no classifier to train; build it with a number of classes")
        return set(classifier)
    if isinstance(part, str):
        raise InputError(f"'{part}' is no part of a model; give full, head or a number of last blocks")
    alternative = "full or head" if classifier else "none"
    layers = _layers(model, "a number of last blocks", alternative)
    behind = max(layers.values()) + (not classifier)
    if not 1 <= part < behind:
        raise InputError(f"{part} last blocks: the model has {behind - 1}; give 1 to {behind - 1}, {alternative}")
    return {name for name, layer in layers.items() if layer >= behind - part}


def _layers(model: nn.Module, setting: str, alternative: str) -> dict[str, int]:
    """Parameter → 0 for the stem, 1 … for the blocks and the norm behind them, and one more for the classifier."""
    _check_ordered(model, setting, alternative)
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)


def _check_ordered(model: nn.Module, setting: str, alternative: str) -> None:
    if not hasattr(model, "group_matcher"):
        raise InputError(
            f"timm does not order the layers of {type(model).__name__}, which {setting} needs; give {alternative}"
        )


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)
