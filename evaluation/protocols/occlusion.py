"""What each class loses when a window is hidden, and the mask that helps it most (figure 6 of the paper)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from evaluation.config import OcclusionOptions
from evaluation.inputs.model import Answer
from evaluation.inputs.selection import Chosen
from evaluation.maps.occlude import Hider, Occlusion, masks_of, occlude
from evaluation.pages.tiles import Page, Tile, as_picture, signed_overlay, with_outline
from evaluation.protocols import explanations
from evaluation.protocols.explanations import Explainer, Subjects

FOOT = (
    "red: hiding it lowers the class's logit, blue: raises it; one scale a row, symmetric around 0; map: mean over the "
    "windows that cover a pixel; effects of windows do not add up, so a union can help less than its windows"
)
_OUTLINE = (255, 140, 0)  # of a hidden mask


@dataclass(frozen=True)
class Hidden:
    """A scan with a mask hidden: the mask and the image (H, W), and the logits (K,)."""

    mask: np.ndarray
    image: np.ndarray
    logits: np.ndarray


def run(options: OcclusionOptions) -> None:
    """Evaluate, print, and write.

    Arrays: ``MODEL`` (K, H, W) float32 in logits, ``MODEL_windows`` (M, 4) and ``MODEL_hidden`` (M, K), the logits with
    each window hidden.
    """

    def prepare(subjects: Subjects) -> Explainer:
        how = f"window {options.window:g} of the sides, stride {options.stride:g} of the window, fill {options.fill}"
        return Explainer(
            name="occlusion",
            title="occlusion",
            draw=lambda scan, answers: _draw(scan, answers, options),
            units="logits; D = logit of the scan − logit with the window hidden",
            settings={name: getattr(options, name) for name in ("window", "stride", "fill")},
            subtitle=f"occlusion, {how}",
            foot=FOOT,
        )

    explanations.run(options, prepare)


def _draw(scan: Chosen, answers: dict[str, Answer], options: OcclusionOptions) -> Page:
    rows, arrays, facts = [], {}, {}
    for name, answer in answers.items():
        window = tuple(max(round(options.window * side), 1) for side in answer.image.shape[-2:])
        stride = tuple(max(round(options.stride * length), 1) for length in window)
        sweep = occlude(answer.model.forward, answer.image, window, stride, options.fill, batch_size=options.batch_size)
        masks = _best_masks(answer, sweep, Hider(answer.image.float() / 255, window, options.fill))
        rows.append(_row(name, answer, sweep, masks))
        arrays |= {name: sweep.maps, f"{name}_windows": sweep.windows, f"{name}_hidden": sweep.hidden}
        facts[name] = {"best_masks": {what: _mask_facts(answer, hidden) for what, hidden in masks.items()}}
    return Page(scan, rows, arrays, facts)


def _best_masks(answer: Answer, sweep: Occlusion, hider: Hider) -> dict[str, Hidden]:
    """The single window and the union whose hiding raises the explained class's logit most; hidden together."""
    size = tuple(answer.image.shape[-2:])
    union = sweep.best_union(answer.target)
    if not union.any():
        return {}
    single = masks_of(sweep.windows[[sweep.best_window(answer.target)]], size)
    masks = torch.cat([single, masks_of(sweep.windows[union], size).any(dim=0, keepdim=True)])
    images = hider(masks)
    with torch.inference_mode():
        logits = answer.model.forward(images).double().cpu().numpy()
    return {
        what: Hidden(masks[i, 0].numpy(), images[i, 0].numpy(), logits[i])
        for i, what in enumerate(("best window", "union"))
    }


def _mask_facts(answer: Answer, hidden: Hidden) -> dict[str, Any]:
    names = answer.model.class_names
    rows, columns = np.flatnonzero(hidden.mask.any(axis=1)), np.flatnonzero(hidden.mask.any(axis=0))
    return {
        "box": [int(rows[0]), int(columns[0]), int(rows[-1] + 1), int(columns[-1] + 1)],
        "share_of_image": float(hidden.mask.mean()),
        "logits_before": dict(zip(names, answer.logits.tolist(), strict=True)),
        "logits_after": dict(zip(names, hidden.logits.tolist(), strict=True)),
    }


def _row(name: str, answer: Answer, sweep: Occlusion, masks: dict[str, Hidden]) -> tuple[str, list[Tile]]:
    scan, names = answer.scan.scan, answer.model.class_names
    limit = float(np.abs(sweep.maps).max())
    tiles = [Tile(as_picture(scan), f"scan {answer.scan.label or ''}\n{answer.verdict}")]
    for k, values in enumerate(sweep.maps):
        explained = " (explained)" if k == answer.target else ""
        caption = f"logit {answer.logits[k]:.1f}, D {values.min():.1f} to {values.max():+.1f}"
        tiles.append(Tile(signed_overlay(scan, values, limit), f"{names[k]}{explained}\n{caption}"))
    for what, hidden in masks.items():
        before, after = answer.logits[answer.target], hidden.logits[answer.target]
        p_before, p_after = (100 * values[answer.target] for values in (answer.probabilities, softmax(hidden.logits)))
        image = np.asarray(255 * hidden.image).round().astype(np.uint8)
        caption = f"{answer.explained} {before:.1f} → {after:.1f}, {p_before:.0f} → {p_after:.0f} %"
        picture = with_outline(as_picture(image, scan.shape), hidden.mask, _OUTLINE, width=5)
        tiles.append(Tile(picture, f"{what} hidden\n{caption}"))
    return f"{name}\n±{limit:.1f} logits", tiles
