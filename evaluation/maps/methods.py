"""Every map of every model behind one door: scores, pages and reports ask here and know no method.

A map is an array (M, rows, columns) ≥ 0 of one scan: M candidates (the heads of attention), else 1. Its corners are the
scan's corners, whatever the size: ``enlarge`` brings it to any other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_oct.errors import InputError
from dino_oct.features import resize
from dino_oct.models.attention import check_transformer, cls_attention
from dino_oct.models.backbone import check_size, patch_size
from dino_oct.models.layers import classifier_layer
from dino_oct.models.network import normalise
from dino_oct.monitor import fit_short_side
from evaluation.config import Fill
from evaluation.inputs.model import Model
from evaluation.maps.cam import gradcam
from evaluation.maps.chefer import check_model, relevance
from evaluation.maps.occlude import occlude

_BATCH = 16  # scans per pass: bounds what relevance and attention keep


@dataclass(frozen=True)
class MapSettings:
    """How maps are made.

    Attributes:
        attention_size: short side in pixels of the scans that attention is computed on; None: the image that the
            classifier sees.
        attention_blocks: whose heads are candidates.
        window, stride: of occlusion, as shares of the image and of the window; fill: what hides.
    """

    attention_size: int | None = None
    attention_blocks: Literal["last", "all"] = "last"
    window: float = 0.2
    stride: float = 0.25
    fill: Fill = "neighbours"


class Method(NamedTuple):
    """A way to a map.

    Attributes:
        of_class: whether the map depends on the class that is asked about.
        check: raises InputError unless the method can be used on a model.
        make: from the model, scans of any sizes, their classes and settings to one array (M, rows, columns) a scan,
            signed where the method has a sign.
    """

    of_class: bool
    check: Callable[[Model], None]
    make: Callable[[Model, Sequence[np.ndarray], Sequence[int], MapSettings], list[np.ndarray]]


def usable(model: Model, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The methods that can be used on a model, and for each other one why not."""
    able, reasons = [], {}
    for name in names:
        try:
            METHODS[name].check(model)
            able.append(name)
        except InputError as reason:
            reasons[name] = str(reason)
    return able, reasons


def make_maps(
    model: Model,
    method: str,
    scans: Sequence[np.ndarray],
    targets: Sequence[int],
    settings: MapSettings | None = None,
    signed: bool = False,
) -> list[np.ndarray]:
    """Maps of some scans. A scan's map does not depend on the others.

    Args:
        method: of ``METHODS``.
        scans: grey uint8 (H, W), of any sizes.
        targets: class of each, an index of the model's logits; methods that are not ``of_class`` do not read it.
        signed: keep the part that speaks against the class, which Grad-CAM and occlusion have.

    Returns:
        One (M, rows, columns) float32 ≥ 0 a scan, not normalised: the positive part, unless ``signed``.

    Raises:
        InputError: the method cannot be used on this model.
    """
    METHODS[method].check(model)
    maps = METHODS[method].make(model, scans, targets, settings or MapSettings())
    return maps if signed else [values.clip(0) for values in maps]


def candidates(model: Model, method: str, settings: MapSettings) -> list[str]:
    """Names of the M maps of ``make_maps``; one empty name where there is nothing to choose."""
    if method != "attention":
        return [""]
    return [
        f"block {block} head {head}"
        for block in _blocks(model, settings)
        for head in range(model.model.blocks[block].attn.num_heads)
    ]


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (M, rows, columns) to ``size``, bilinearly between the centres of their cells, float32.

    A map that is finer than ``size`` is averaged.
    """
    if maps.shape[-2:] == tuple(size):
        return maps.astype(np.float32)
    values = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None]
    return F.interpolate(values, size=tuple(size), mode="bilinear", antialias=True)[0].numpy()


def _blocks(model: Model, settings: MapSettings) -> list[int]:
    depth = len(model.model.blocks)
    return list(range(depth)) if settings.attention_blocks == "all" else [depth - 1]


def _inputs(model: Model, scans: Sequence[np.ndarray]) -> Iterator[tuple[slice, Tensor]]:
    """Batches of the images that the classifier sees."""
    for start in range(0, len(scans), _BATCH):
        part = slice(start, start + _BATCH)
        images = torch.stack([resize(scan, model.input_size) for scan in scans[part]])
        yield part, model.prepare(images.to(model.device))


def _attention(
    model: Model, scans: Sequence[np.ndarray], targets: Sequence[int], settings: MapSettings
) -> list[np.ndarray]:
    """CLS attention of each candidate head, at the scan's own aspect where ``attention_size`` is given."""
    patch = patch_size(model.model)
    side = settings.attention_size
    images = [resize(s, model.input_size) if side is None else fit_short_side(s, side, patch) for s in scans]
    maps: list[np.ndarray] = []
    start = 0
    while start < len(images):
        alike = start
        while alike < len(images) and alike - start < _BATCH and images[alike].shape == images[start].shape:
            alike += 1
        batch = normalise(torch.stack(images[start:alike]).to(model.device), model.model)
        heads = [cls_attention(model.model, batch, block) for block in _blocks(model, settings)]
        maps.extend(torch.cat(heads, dim=1).cpu().numpy())
        start = alike
    return maps


def _cam(formula: str) -> Callable[..., list[np.ndarray]]:
    def make(model: Model, scans: Sequence[np.ndarray], targets: Sequence[int], settings: MapSettings):
        cams: list[np.ndarray] = []
        for part, images in _inputs(model, scans):
            maps, _ = gradcam(model, images, torch.as_tensor(targets[part]), formula)
            cams.extend(maps[:, None])
        return cams

    return make


def _relevance(kind: str) -> Callable[..., list[np.ndarray]]:
    def make(model: Model, scans: Sequence[np.ndarray], targets: Sequence[int], settings: MapSettings):
        maps: list[np.ndarray] = []
        for part, images in _inputs(model, scans):
            maps.extend(relevance(model.model, images, targets[part], kind).cpu().numpy()[:, None])
        return maps

    return make


def _occlusion(
    model: Model, scans: Sequence[np.ndarray], targets: Sequence[int], settings: MapSettings
) -> list[np.ndarray]:
    window = tuple(max(round(settings.window * side), 1) for side in model.input_size)
    stride = tuple(max(round(settings.stride * length), 1) for length in window)

    def forward(grey: Tensor) -> Tensor:
        return model.model(model.prepare(grey.to(model.device)))

    maps = []
    for scan, target in zip(scans, targets, strict=True):
        swept = occlude(forward, resize(scan, model.input_size), window, stride, settings.fill)
        maps.append(swept.maps[target][None])
    return maps


def _check_attention(model: Model) -> None:
    check_transformer(model.model)


def _check_class(model: Model) -> None:
    if not classifier_layer(model.model):
        raise InputError(f"{model.name} has no classifier, so no class to explain; --classifier probe fits one")


def _check_cam(model: Model) -> None:
    _check_class(model)
    _ = model.gradcam_layer


def _check_relevance(kind: str) -> Callable[[Model], None]:
    def check(model: Model) -> None:
        check_model(model.model, kind)
        check_size(model.input_size, model.model, "image size")

    return check


METHODS: dict[str, Method] = {
    "attention": Method(False, _check_attention, _attention),
    "rollout": Method(False, _check_relevance("rollout"), _relevance("rollout")),
    "relevance": Method(True, _check_relevance("gradient"), _relevance("gradient")),
    "lrp": Method(True, _check_relevance("lrp"), _relevance("lrp")),
    "gradcam": Method(True, _check_cam, _cam("gradcam")),
    "gradcam++": Method(True, _check_cam, _cam("gradcam++")),
    "hirescam": Method(True, _check_cam, _cam("hirescam")),
    "eigencam": Method(False, _check_cam, _cam("eigencam")),
    "occlusion": Method(True, _check_class, _occlusion),
}
