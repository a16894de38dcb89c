"""Where CLS looks, head by head: pages of attention maps, masks that hold most of the mass, numbers of their spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dino_oct.errors import InputError
from dino_oct.files import naming, replacing
from dino_oct.limits import check_settings
from dino_oct.models.attention import check_transformer, cls_attention
from dino_oct.models.backbone import patch_size
from dino_oct.monitor import fit_short_side
from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale, weighted_mean
from dino_oct.scores.text import PHANTOM_NOTICE, heading, missing_intervals, show, table, write_json
from evaluation.config import AttentionOptions
from evaluation.inputs.model import Model, open_model
from evaluation.inputs.scans import open_data
from evaluation.inputs.selection import Chosen, from_files, from_split, page_name
from evaluation.inputs.sources import Source, open_sources, starting_weights
from evaluation.pages.attention import draw_page
from evaluation.protocols.results import folders, of_bootstrap, of_source
from evaluation.scores.attention import MEASURES, mass_mask, spread
from evaluation.scores.lesions import with_mean

MODEL, START = "model", "start"
MEAN = "mean of heads"


@dataclass(frozen=True)
class Maps:
    """Attention of one scan: model → (heads, rows, columns) float32, of the input image (H, W) uint8."""

    chosen: Chosen
    image: np.ndarray
    maps: dict[str, np.ndarray]


def check_input(backbone: torch.nn.Module, block: int, size: int) -> None:
    """Raise InputError unless the backbone is a transformer with CLS, has this block, and two patches fit in size."""
    check_transformer(backbone)
    depth = len(backbone.blocks)
    if not -depth <= block < depth:
        raise InputError(f"block {block}: the model has {depth} blocks; give {-depth} to {depth - 1}")
    patch = patch_size(backbone)
    if size < 2 * patch:
        raise InputError(f"size {size}: must hold two patches of {patch} px at least; give {2 * patch} or more")


def look(models: dict[str, Model], scans: Sequence[Chosen], size: int, block: int) -> list[Maps]:
    """Attention of every model on every scan, one scan at a time, which bounds the memory.

    Args:
        models: of one architecture, which ``check_input`` accepts.
        size: short side of the input in pixels; see ``fit_short_side``.
    """
    patch = patch_size(models[MODEL].model)
    looks = []
    for scan in tqdm(scans, desc="attention", unit="scan", disable=None, leave=False):
        image = fit_short_side(scan.scan, size, patch)
        maps = {}
        for which, model in models.items():
            batch = model.prepare(image[None].to(model.device))
            maps[which] = cls_attention(model.model, batch, block)[0].cpu().numpy()
        looks.append(Maps(scan, image[0].numpy(), maps))
    return looks


def evaluate(source: Source, options: AttentionOptions) -> tuple[dict[str, Any], list[Maps]]:
    """Run the whole evaluation.

    Returns:
        What the JSON file holds (numbers as ``Interval``), and the maps of each scan.

    Raises:
        InputError: as ``check_input``, ``from_files``, ``open_data`` or ``load_backbone``.
    """
    check_settings(options)
    models = {MODEL: open_model(source, MODEL, heads=options.heads)}
    backbone = models[MODEL].model
    size = options.attention_size or source.attention_size or 480
    try:
        check_input(backbone, options.block, size)
    except InputError as reason:
        raise InputError(f"{source.name}: {reason}") from None
    start = starting_weights(source)
    notes = [start] if isinstance(start, str) else []
    if models[MODEL].is_random:
        notes.append("the model has random weights: these maps are a control, not a finding")
    if not isinstance(start, str):
        models[START] = open_model(start, START)
    scans, about = _choose(source, options)
    looks = look(models, scans, size, options.block)

    bootstrap = PatientBootstrap(np.array([scan.patient for scan in scans]), options.bootstrap, options.seed)
    names = _names(looks[0].maps[MODEL])
    scores = {
        which: np.stack([spread(with_mean(look.maps[which]), options.mass) for look in looks]) for which in models
    }
    depth = len(backbone.blocks)
    return {
        "evaluation": "attention",
        "model": of_source(source),
        "weights": {name: model.weights for name, model in models.items()},
        "data": about,
        "settings": {
            "size": size,
            "patch": patch_size(backbone),
            "block": options.block % depth,
            "blocks": depth,
            "heads": len(names) - 1,
            "prefix_tokens": backbone.num_prefix_tokens,
            "blocks_and_heads_count_from": 0,
            "mass": options.mass,
            "bootstrap": of_bootstrap(options),
        },
        "units": "means over scans, 0 to 1; entropy: of the map over the patches, relative to ln N; mass_patches: "
        "share of the patches in the smallest set that holds the mass; prefix_share: of the attention on CLS and "
        "registers. 'mean of heads' is measured on the mean map.",
        "rows": {which: _summarise(values, names, bootstrap) for which, values in scores.items()},
        "scans": [
            {
                "key": f"scan{i}",
                "file": look.chosen.file,
                "class": look.chosen.label,
                "patient": look.chosen.patient,
                "input": look.image.shape,
                "patches": look.maps[MODEL].shape[1:],
                "spread": {which: _named(scores[which][i], names) for which in models},
            }
            for i, look in enumerate(looks)
        ],
        "notes": bootstrap.notes() + about["notes"] + notes,
    }, looks


def _choose(source: Source, options: AttentionOptions) -> tuple[list[Chosen], dict[str, Any]]:
    """The scans, and what the JSON file says about them."""
    if options.scans:
        return from_files(options.scans, source, options.dataset)
    data = open_data(source, options.data, options.dataset, options.phantom, print)
    return from_split(data, options.split, options.n)


def _names(maps: np.ndarray) -> list[str]:
    return [*(f"head {head}" for head in range(len(maps))), MEAN]


def _summarise(scores: np.ndarray, names: Sequence[str], bootstrap: PatientBootstrap) -> dict[str, dict[str, Interval]]:
    """Means over scans of scores (N, rows, 3), with intervals: row → measure → ``Interval``."""
    values = bootstrap.values(lambda weights: weighted_mean(weights, scores))  # (1 + R, rows, 3)
    return {
        name: {measure: bootstrap.interval(values[:, i, j], Scale.SCORE) for j, measure in enumerate(MEASURES)}
        for i, name in enumerate(names)
    }


def _named(scores: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    return {name: dict(zip(MEASURES, row, strict=True)) for name, row in zip(names, scores.tolist(), strict=True)}


def report(result: dict[str, Any]) -> str:
    """The result as text: what was used, and one table."""
    data, settings = result["data"], result["settings"]
    where = f"{data['folder']}, {data['split']} split" if data["folder"] else "image files"
    classes = {name: count["scans"] for name, count in data.get("classes", {}).items() if count["scans"]}
    details = (
        f", block {settings['block']} of 0…{settings['blocks'] - 1}, short side {settings['size']} px, "
        f"patch {settings['patch']} px"
    )
    lines = [
        *heading("CLS attention", result, details),
        f"data: {where} · {_count(data['scans'], 'scan')} of {_count(data['patients'], 'patient')}"
        + (f" ({', '.join(f'{name} {count}' for name, count in classes.items())})" if classes else ""),
        "",
    ]
    prefix = "CLS" if settings["prefix_tokens"] == 1 else "CLS and registers"
    header = ["", "", "entropy / ln N", f"% of patches for {100 * settings['mass']:g} % of mass", f"% on {prefix}"]
    rows = [
        [which, name, show(row["entropy"], 3), *(show(_percent(row[measure])) for measure in MEASURES[1:])]
        for which, by_name in result["rows"].items()
        for name, row in by_name.items()
    ]
    lines += [table(header, rows)]
    if data["patients"] > 1 and (resamples := settings["bootstrap"]["resamples"]):
        lines += [f"[95 % interval, {resamples} resamples of patients]"]
    lines += [""]
    return "\n".join([*lines, *(f"note: {note}" for note in [*result["notes"], *missing_intervals(result)])])


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _percent(share: Interval) -> Interval:
    return Interval(*(value if value is None else 100 * value for value in (share.point, share.low, share.high)))


def write_maps(result: dict[str, Any], looks: Sequence[Maps], folder: Path) -> None:
    """Write one page a scan, ``attention.npz``, TensorBoard images and ``attention.json`` into a folder.

    ``attention.npz`` holds for scan i, in the order of the JSON file's ``scans``: ``scan{i}_image`` (H, W) uint8, and
    for each network ``scan{i}_NETWORK`` (heads, rows, columns) float32 and ``scan{i}_NETWORK_mask`` (heads + 1, rows,
    columns) bool, the mean of heads last.

    Raises:
        InputError: a file cannot be written.
    """
    settings = result["settings"]
    arrays: dict[str, np.ndarray] = {}
    pages: dict[str, Path] = {}
    for old in (folder / "tensorboard").glob("events.out.tfevents.*"):
        old.unlink()  # else TensorBoard would show an earlier evaluation's images as well
    for i, look in enumerate(tqdm(looks, desc="pages", unit="scan", disable=None, leave=False)):
        name = Path(page_name(i, look.chosen)).stem
        arrays[f"scan{i}_image"] = look.image
        for which, maps in look.maps.items():
            arrays[f"scan{i}_{which}"] = maps
            arrays[f"scan{i}_{which}_mask"] = mass_mask(with_mean(maps), settings["mass"])
        notice = f"{PHANTOM_NOTICE} · " if result["data"]["synthetic"] else ""
        title = (
            f"{notice}{look.chosen.file}{f' ({look.chosen.label})' if look.chosen.label else ''}\nCLS attention of "
            f"block {settings['block']} of 0…{settings['blocks'] - 1}, input "
            f"{look.image.shape[0]} × {look.image.shape[1]} px, patch {settings['patch']} px"
        )
        names = [MEAN, *_names(look.maps[MODEL])[:-1]]
        ordered = {which: np.roll(with_mean(maps), 1, axis=0) for which, maps in look.maps.items()}
        pages[name] = folder / f"{name}.png"
        draw_page(look.chosen.scan, ordered, names, settings["mass"], title, pages[name])
    with naming(folder / "tensorboard"), SummaryWriter(str(folder / "tensorboard")) as writer:
        for name, page in pages.items():
            with Image.open(page, formats=["PNG"]) as image:
                writer.add_image(f"attention/{name}", np.asarray(image.convert("RGB")), 0, dataformats="HWC")
    with replacing(folder / "attention.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)
    for scan, page in zip(result["scans"], pages.values(), strict=True):
        scan["page"] = page.name
    write_json(result, folder / "attention.json")


def run(options: AttentionOptions) -> None:
    """Evaluate each model, print, and write pages, ``attention.npz``, ``attention.json`` and TensorBoard images."""
    sources = open_sources(options.sources)
    for source, folder in zip(sources, folders(sources, "attention", options.out), strict=True):
        result, maps = evaluate(source, options)
        write_maps(result, maps, folder)
        print(report(result))
        print(f"written: {_count(len(maps), 'page')}, attention.npz, attention.json and tensorboard/ in {folder}")
