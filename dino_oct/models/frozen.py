"""Networks for evaluation, and what identifies their weights."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino_oct.models.backbone import load_backbone, local_file
from dino_oct.models.folders import weights_file


@dataclass(frozen=True)
class Weights:
    """What identifies the weights of a network.

    Attributes:
        source: SOURCE of ``load_backbone``.
        file: of the weights; None where there is none (timm's own, random).
        sha256: first 16 digits, of the file, or of the tensors' bytes where there is no file.
        loaded: in words, what was loaded.
    """

    source: str
    file: str | None
    sha256: str
    loaded: str


@dataclass(frozen=True)
class RandomWeights(Weights):
    """Of a control: drawn by ``seed``."""

    seed: int


def load_frozen(source: str, device: torch.device, **load_options: Any) -> nn.Module:
    """Load a network in evaluation mode, without gradients; further arguments as ``load_backbone``.

    Returns:
        as ``load_backbone``, with its ``Weights`` as ``network.weights``.

    Raises:
        InputError: weights that are not finite; or as ``load_backbone``.
    """
    return freeze(load_backbone(source, **load_options), source, device)


def freeze(network: nn.Module, source: str, device: torch.device) -> nn.Module:
    """A network of ``load_backbone`` as ``load_frozen`` gives it, in place."""
    network = network.eval().requires_grad_(False).to(device)
    file = _weights_file(source)
    digest = hashlib.sha256()
    if file is not None:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    else:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    network.weights = Weights(source, file and str(file), digest.hexdigest()[:16], network.load_report.counts)
    return network


def _weights_file(source: str) -> Path | None:
    if source.startswith("timm:"):
        _, _, file = source.partition("@")
        return local_file(file) if file else None
    path = local_file(source)
    if path.is_dir():
        return weights_file(path)
    return path if path.is_file() else None
