"""Every map of every model behind one door: scores, pages and reports ask here and know no method.

A map is an array (M, rows, columns) ≥ 0 of one scan: M candidates (the heads of attention), else 1. Its corners are the
scan's corners, whatever the size: ``enlarge`` brings it to any other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_oct.errors import InputError
from dino_oct.features import resize, resize_all
from dino_oct.models.attention import check_transformer, cls_attentions
from dino_oct.models.backbone import check_size, patch_size
from dino_oct.pictures import fit_short_side
from evaluation.config import CamMethod, Fill, RelevanceMethod
from evaluation.inputs.model import Model
from evaluation.maps.cam import check_classifier, check_gradcam, gradcam
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


Make = Callable[[Model, Sequence[np.ndarray], Sequence[int], MapSettings], list[np.ndarray]]


class Method(NamedTuple):
    """A way to a map.

    Attributes:
        of_class: whether the map depends on the class that is asked about.
        check: raises InputError unless the method can be used on a model.
        make: from the model, scans of any sizes, their classes and settings to one array (M, rows, columns) a scan,
            signed where the method has a sign.
    """

    of_class: bool
    check: Callable[[Model], object]
    make: Make


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


def _in_batches(make: Callable[[Model, Tensor, Sequence[int]], np.ndarray]) -> Make:
    """A method from maps (B, rows, columns) of the images that the classifier sees (B, C, H, W) and their classes."""

    def in_batches(model: Model, scans: Sequence[np.ndarray], targets: Sequence[int], settings: MapSettings):
        maps: list[np.ndarray] = []
        for start in range(0, len(scans), _BATCH):
            part = slice(start, start + _BATCH)
            images = resize_all(scans[part], model.input_size).to(model.device)
            maps.extend(make(model, model.prepare(images), targets[part])[:, None])
        return maps

    return in_batches


def _cam(formula: CamMethod, of_class: bool = True) -> Method:
    def make(model: Model, images: Tensor, targets: Sequence[int]) -> np.ndarray:
        return gradcam(model, images, torch.as_tensor(targets), formula)[0]

    return Method(of_class, check_gradcam, _in_batches(make))


def _relevance(kind: RelevanceMethod, of_class: bool = True) -> Method:
    def check(model: Model) -> None:
        check_model(model.model, kind)
        check_size(model.input_size, model.model, "image size")

    def make(model: Model, images: Tensor, targets: Sequence[int]) -> np.ndarray:
        return relevance(model.model, images, targets, kind).cpu().numpy()

    return Method(of_class, check, _in_batches(make))


def _attention(
    model: Model, scans: Sequence[np.ndarray], targets: Sequence[int], settings: MapSettings
) -> list[np.ndarray]:
    """CLS attention of each candidate head, at the scan's own aspect where ``attention_size`` is given."""
    patch = patch_size(model.model)
    side = settings.attention_size
    images = [resize(s, model.input_size) if side is None else fit_short_side(s, side, patch) for s in scans]
    maps: list[np.ndarray] = []
    for _, alike in groupby(images, key=lambda image: image.shape):
        for batch in torch.stack(list(alike)).split(_BATCH):
            batch = model.prepare(batch.to(model.device))
            heads = cls_attentions(model.model, batch, _blocks(model, settings))
            maps.extend(torch.cat(heads, dim=1).cpu().numpy())
    return maps


def _occlusion(
    model: Model, scans: Sequence[np.ndarray], targets: Sequence[int], settings: MapSettings
) -> list[np.ndarray]:
    window = tuple(max(round(settings.window * side), 1) for side in model.input_size)
    stride = tuple(max(round(settings.stride * length), 1) for length in window)
    sweeps = (occlude(model.forward, resize(s, model.input_size), window, stride, settings.fill) for s in scans)
    return [sweep.maps[[target]] for sweep, target in zip(sweeps, targets, strict=True)]


METHODS: dict[str, Method] = {
    "attention": Method(False, lambda model: check_transformer(model.model), _attention),
    "rollout": _relevance("rollout", of_class=False),
    "relevance": _relevance("gradient"),
    "lrp": _relevance("lrp"),
    "gradcam": _cam("gradcam"),
    "gradcam++": _cam("gradcam++"),
    "hirescam": _cam("hirescam"),
    "eigencam": _cam("eigencam", of_class=False),
    "occlusion": Method(True, check_classifier, _occlusion),
}
