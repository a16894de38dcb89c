"""A network in the forms of other programs: timm's folder, ONNX, torch.export. Each is read back and compared."""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from torch import nn

from dino_oct.errors import InputError
from dino_oct.files import write_whole
from dino_oct.models import official
from dino_oct.models.attention import attention_watched, check_transformer
from dino_oct.models.network import image_feature, in_channels
from dino_oct.models.vit import DinoVisionTransformer, set_native_size
from dino_oct.streams import seed_of

Output = Literal["features", "logits"]
Tensors = Sequence[torch.Tensor]
TOLERANCE = 1e-4  # of the largest value, or of 1 where that is less
_BATCHES = (1, 3)  # on which a file is compared
_ONNX = ("onnx", "onnxruntime", "onnxscript")
_ONE_FILE = 1 << 30  # bytes of weights that an .onnx file holds itself: protobuf ends at 2 GB


class Portable(nn.Module):
    """A network as others run it: normalised images (B, C, H, W) of one size to its outputs.

    Args:
        network: of ``load_backbone``, in evaluation mode on the CPU; at the size it becomes native, in place.
        output: features: the image feature (B, D), as ``cls_feature``; logits: (B, K) of its classifier.
        size: rows and columns of the images.
        attention: also give the attention from CLS to the patches in the last block, (B, heads, rows, columns).

    Raises:
        InputError: attention of a network without CLS, or logits of one without a classifier.
    """

    def __init__(self, network: nn.Module, output: Output, size: tuple[int, int], attention: bool = False):
        super().__init__()
        if attention:
            check_transformer(network)
        if output == "logits" and not network.num_classes:
            raise InputError(f"{type(network).__name__} has no classifier, so there are no logits; export its features")
        if isinstance(network, DinoVisionTransformer):  # plain timm resamples positions in its own way
            set_native_size(network, size)
            network.hub_config["model_args"]["img_size"] = list(size)
        self.network, self.output, self.size, self.attention = network, output, size, attention

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs."""
        return (self.output, "attention") if self.attention else (self.output,)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of an image."""
        return in_channels(self.network), *self.size

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, C, H, W) normalised float32 → the outputs."""
        if not self.attention:
            return (self._answer(self.network.forward_features(images)),)
        with attention_watched(self.network, [-1]) as attentions:
            tokens = self.network.forward_features(images)
        return self._answer(tokens), attentions(self.size[0])[0]

    def _answer(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.output == "features":
            return image_feature(self.network, tokens)
        return self.network.forward_head(tokens)


@torch.no_grad()
def largest_difference(network: Portable, read: Callable[[torch.Tensor], Tensors], file: Path) -> float:
    """How much a written file differs from the network on random images, in batches of 1 and 3.

    Args:
        read: what the file gives for images (B, C, H, W).

    Returns:
        The largest difference, as a share of the largest value of that output where this is above 1.

    Raises:
        InputError: it is above ``TOLERANCE``.
    """
    random, worst = torch.Generator().manual_seed(seed_of("images to compare exports on")), 0.0
    for batch in _BATCHES:
        images = torch.randn(batch, *network.image_shape, generator=random)
        for name, ours, theirs in zip(network.names, network(images), read(images), strict=True):
            if ours.shape != theirs.shape:
                raise InputError(f"{file}: {name} is {tuple(theirs.shape)}, of the network {tuple(ours.shape)}")
            difference = (ours - theirs).abs().max() / ours.abs().max().clamp_min(1)
            worst = max(worst, float(difference))
            if not difference <= TOLERANCE:
                raise InputError(
                    f"{file}: {name} differs from the network's by {float(difference):.1e}, {TOLERANCE:g} is allowed: "
                    "not kept"
                )
    return worst


# ---- timm ------------------------------------------------------------------------------------------------------------


def write_timm(network: Portable, folder: Path, label_names: Sequence[str] = ()) -> float:
    """``model.safetensors`` and ``config.json`` in timm's hub layout, as ``timm.create_model("local-dir:FOLDER",
    pretrained=True)`` and Hugging Face's transformers read them; returns and raises as ``largest_difference``."""
    model = network.network
    classes = model.num_classes if network.output == "logits" else 0
    images = {**model.hub_config["pretrained_cfg"], "input_size": list(network.image_shape), "num_classes": classes}
    config = {**model.hub_config, "num_classes": classes, "pretrained_cfg": images}
    config.pop("label_names", None)
    if classes and label_names:
        config["label_names"] = list(label_names)
    official.write_weights(model.state_dict(), folder / "model.safetensors")
    write_whole(folder / "config.json", json.dumps(config, indent=1))
    read = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return largest_difference(network, lambda images: (read(images),), folder)


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def check_onnx() -> None:
    """Raise InputError unless what ONNX needs is installed."""
    missing = [module for module in _ONNX if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f'ONNX needs {", ".join(missing)}: pip install "dino-oct[onnx]"')


def write_onnx(network: Portable, file: Path, facts: dict[str, Any]) -> float:
    """An ``.onnx`` file of any batch, with ``facts`` in its metadata, each as JSON; returns and raises as
    ``largest_difference``. Weights of more than 1 GB lie beside it, in ``FILE.data``."""
    import onnxruntime

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, *network.image_shape),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=list(network.names),
            verbose=False,
        )
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    program.save(str(file), external_data=size > _ONE_FILE)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def read(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(np.asarray(values)) for values in session.run(None, {"images": images.numpy()})]

    return largest_difference(network, read, file)


# ---- torch.export ----------------------------------------------------------------------------------------------------


def write_torch_export(network: Portable, file: Path, facts: dict[str, Any]) -> float:
    """A ``.pt2`` file of any batch for ``torch.export.load``, with ``facts`` as its extra file ``preprocessing.json``;
    returns and raises as ``largest_difference``."""
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            network,
            (torch.zeros(2, *network.image_shape),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            strict=False,
        )
        torch.export.save(program, str(file), extra_files={"preprocessing.json": json.dumps(facts)})
        read = torch.export.load(str(file)).module()
    return largest_difference(network, read, file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
