"""What each class loses when a window of the scan is hidden, and the mask that helps it most (figure 6 of the paper).

    python evaluation/occlusion.py --model RUN --beside RUN2       scans of RUN's test split
    python evaluation/occlusion.py SCAN.jpeg … --model RUN         image files, no labels needed
    python evaluation/occlusion.py --fill black --window 0.1       another question: see --fill

D = logit of the scan − logit with the window hidden. Red: hiding hurts the class. Blue: hiding helps it. One sweep
serves every class.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dino_oct.cli import run_command
from dino_oct.limits import BatchSize, PositiveShare, check_settings
from evaluation.explanations import (
    Asked,
    ExplanationOptions,
    Page,
    Tile,
    answers,
    as_picture,
    ask,
    describe,
    open_models,
    outlined,
    signed_overlay,
    softmax,
    write_pages,
)
from evaluation.occlusion_maps import Fill, Hider, Occlusion, masks_of, occlude
from evaluation.reports import heading, make_folder
from evaluation.runs import Source, open_source

FOOT = (
    "red: hiding it lowers the class's logit, blue: raises it; one scale a row, symmetric around 0; map: mean over the "
    "windows that cover a pixel; effects of windows do not add up, so a union can help less than its windows"
)


@dataclass
class Options(ExplanationOptions):
    """Signed occlusion maps of every class, and the masks whose hiding speaks most for the explained one."""

    window: PositiveShare = 0.2
    """Rows and columns of the window as a share of the image's."""
    stride: PositiveShare = 0.25
    """Step of the window as a share of the window."""
    fill: Fill = "neighbours"
    """What hides: neighbours continues each row from the pixels beside the window; blur; mean of the scan; black."""
    refine: PositiveShare = 1.0
    """Below 1: windows of twice the size first, then this share of the windows, where those mattered (approximate)."""
    union_share: PositiveShare = 0.5
    """The union mask takes windows whose D is at most this share of the least D."""
    batch_size: BatchSize = 64
    """Hidden scans per forward pass."""


@dataclass(frozen=True)
class Hidden:
    """A scan with a mask hidden: the mask and the image (H, W), and the logits (K,)."""

    mask: np.ndarray
    image: np.ndarray
    logits: np.ndarray


def evaluate(source: Source, options: Options) -> tuple[dict[str, Any], list[Page], str]:
    """Run the whole evaluation.

    Returns:
        What the JSON file holds, the pages (arrays ``MODEL`` (K, H, W) float32 in logits, ``MODEL_windows`` (M, 4) and
        ``MODEL_hidden`` (M, K), the logits with each window hidden), and the answers as text.

    Raises:
        InputError: as ``open_models`` and ``ask``.
    """
    check_settings(options)
    models, chosen, about = open_models(source, options)
    result = describe("occlusion", models, source, about, options)
    kept = ("window", "stride", "fill", "refine", "union_share")
    result["settings"] |= {name: getattr(options, name) for name in kept}
    result["units"] = "logits; D = logit of the scan − logit with the window hidden"
    if options.refine < 1:
        result["notes"].append("refine below 1: D of the windows left out is estimated from windows of twice the size")
    pages, all_asked = [], []
    for scan in tqdm(chosen, desc="occlusion", unit="scan", disable=None, leave=False):
        asked = {name: ask(one, scan, options.target) for name, one in models.items()}
        rows, arrays, facts = [], {}, {}
        for name, one in asked.items():
            found = _sweep(one, options)
            masks = _best_masks(one, found, options)
            rows.append(_row(name, one, found, masks))
            arrays |= {name: found.maps, f"{name}_windows": found.windows, f"{name}_hidden": found.hidden}
            facts[name] = {**one.facts(), "best_masks": {what: _mask_facts(one, m) for what, m in masks.items()}}
        pages.append(Page(scan, rows, arrays, {"models": facts}))
        all_asked.append(asked)
    return result, pages, answers(models, all_asked)


def _forward(asked: Asked, grey: torch.Tensor) -> torch.Tensor:
    model = asked.classifier.model
    return model(asked.classifier.prepare(grey.to(next(model.parameters()).device)))


def _window(asked: Asked, options: Options) -> tuple[int, int]:
    return tuple(max(round(options.window * side), 1) for side in asked.image.shape[-2:])


def _sweep(asked: Asked, options: Options) -> Occlusion:
    window = _window(asked, options)
    stride = tuple(max(round(options.stride * length), 1) for length in window)
    return occlude(
        lambda grey: _forward(asked, grey),
        asked.image,
        window,
        stride,
        options.fill,
        refine=options.refine,
        batch_size=options.batch_size,
    )


def _best_masks(asked: Asked, found: Occlusion, options: Options) -> dict[str, Hidden]:
    """The single window and the union whose hiding raises the explained class's logit most; hidden together."""
    size = tuple(asked.image.shape[-2:])
    union = found.best_union(asked.target, options.union_share)
    if not union.any():
        return {}
    single = masks_of(found.windows[[found.best_window(asked.target)]], size)
    masks = torch.cat([single, masks_of(found.windows[union], size).any(dim=0, keepdim=True)])
    images = Hider(asked.image.float() / 255, _window(asked, options), options.fill)(masks)
    with torch.inference_mode():
        logits = _forward(asked, images).double().cpu().numpy()
    return {
        what: Hidden(masks[i, 0].numpy(), images[i, 0].numpy(), logits[i])
        for i, what in enumerate(("best window", "union"))
    }


def _mask_facts(asked: Asked, hidden: Hidden) -> dict[str, Any]:
    names = asked.classifier.class_names
    rows, columns = np.flatnonzero(hidden.mask.any(axis=1)), np.flatnonzero(hidden.mask.any(axis=0))
    return {
        "box": [int(rows[0]), int(columns[0]), int(rows[-1] + 1), int(columns[-1] + 1)],
        "share_of_image": float(hidden.mask.mean()),
        "logits_before": dict(zip(names, asked.logits.tolist(), strict=True)),
        "logits_after": dict(zip(names, hidden.logits.tolist(), strict=True)),
    }


def _row(name: str, asked: Asked, found: Occlusion, masks: dict[str, Hidden]) -> tuple[str, list[Tile]]:
    scan, names = asked.chosen.scan, asked.classifier.class_names
    limit = float(np.abs(found.maps).max())
    tiles = [Tile(as_picture(scan), f"scan {asked.chosen.label or ''}\n{asked.verdict}")]
    for k, values in enumerate(found.maps):
        explained = " (explained)" if k == asked.target else ""
        tiles.append(
            Tile(
                signed_overlay(scan, values, limit),
                f"{names[k]}{explained}\nlogit {asked.logits[k]:.1f}, D {values.min():.1f} to {values.max():+.1f}",
            )
        )
    for what, hidden in masks.items():
        before, after = asked.logits[asked.target], hidden.logits[asked.target]
        p = 100 * softmax(hidden.logits)[asked.target]
        shown = np.asarray(255 * hidden.image).round().astype(np.uint8)
        tiles.append(
            Tile(
                outlined(scan.shape, shown, hidden.mask),
                f"{what} hidden\n{names[asked.target]} {before:.1f} → {after:.1f}, "
                f"{100 * asked.probabilities[asked.target]:.0f} → {p:.0f} %",
            )
        )
    return f"{name}\n±{limit:.1f} logits", tiles


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``occlusion.npz``, ``occlusion.json`` and TensorBoard images."""
    source = open_source(options.model)
    result, pages, text = evaluate(source, options)
    folder = make_folder(source.results_folder("occlusion", options.out))
    how = f"window {options.window:g} of the sides, stride {options.stride:g} of the window, fill {options.fill}"
    write_pages(result, pages, f"occlusion, {how}", FOOT, folder)
    print("\n".join([*heading("occlusion", result), text, "", *(f"note: {note}" for note in result["notes"])]))
    count = f"{len(pages)} page{'' if len(pages) == 1 else 's'}"
    print(f"written: {count}, occlusion.npz, occlusion.json and tensorboard/ in {folder}")


if __name__ == "__main__":
    run_command(main, Options)
