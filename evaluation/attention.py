"""Where CLS looks, head by head: pages of attention maps, masks that hold most of the mass, numbers of their spread.

    python evaluation/attention.py                         scans of the test split of the newest run
    python evaluation/attention.py SCAN.jpeg … --model RUN  image files, no labels needed

Beside a run's weights stand those before its first step. Attention maps show where a network looks, not why it decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dino_oct.bootstrap import Interval, PatientBootstrap, Scale, weighted_mean
from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.files import naming, replacing
from dino_oct.limits import Name, PositiveShare, Range, Scans, Side, check_settings
from dino_oct.models.attention import check_transformer, cls_attention
from dino_oct.models.backbone import patch_size
from dino_oct.models.network import normalise
from dino_oct.monitor import fit_short_side
from evaluation.attention_maps import MEASURES, draw_page, mass_mask, spread
from evaluation.chosen_scans import Chosen, from_files, from_split, page_name
from evaluation.lesion_scores import with_mean
from evaluation.reports import heading, make_folder, missing_intervals, show, table, write_json
from evaluation.runs import (
    EvaluationOptions,
    Frozen,
    Source,
    default_device,
    load_frozen,
    open_source,
    starting_weights,
)
from evaluation.scan_data import PHANTOM_NOTICE, open_data

MODEL, START = "model", "start"
MEAN = "mean of heads"


@dataclass
class Options(EvaluationOptions):
    """CLS attention per head of some scans: overlays, maps, masks, and how widely each head spreads."""

    scans: tyro.conf.Positional[tuple[Name, ...]] = ()
    """Image files; unset: scans of --split."""
    split: Literal["test", "val", "train"] = "test"
    """Where scans are taken from if no file is given."""
    n: Scans = 8
    """Scans to take from the split, in turns through the classes, each from a new patient as long as there are any."""
    block: Annotated[int, Range(-1000, 1000)] = -1
    """Transformer block, from 0, or negative from the last."""
    size: Side | None = None
    """Short side of the network's input, in pixels; unset: the run's monitor.attention_size, or 480."""
    mass: PositiveShare = 0.6
    """Share of the attention to patches that a mask holds, in (0, 1]."""

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        return ("data", "image files are given as well; give one of them") if self.scans and self.data else None


@dataclass(frozen=True)
class Maps:
    """Attention of one scan: network → (heads, rows, columns) float32, of the input image (H, W) uint8."""

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


def look(networks: dict[str, Frozen], chosen: Sequence[Chosen], size: int, block: int) -> list[Maps]:
    """Attention of every network on every scan, one scan at a time, which bounds the memory.

    Args:
        networks: of one architecture, which ``check_input`` accepts.
        size: short side of the input in pixels; see ``fit_short_side``.
    """
    patch = patch_size(networks[MODEL].backbone)
    found = []
    for one in tqdm(chosen, desc="attention", unit="scan", disable=None, leave=False):
        image = fit_short_side(one.scan, size, patch)
        maps = {}
        for which, network in networks.items():
            device = next(network.backbone.parameters()).device
            batch = normalise(image[None].to(device), network.backbone)
            maps[which] = cls_attention(network.backbone, batch, block)[0].cpu().numpy()
        found.append(Maps(one, image[0].numpy(), maps))
    return found


def evaluate(source: Source, options: Options) -> tuple[dict[str, Any], list[Maps]]:
    """Run the whole evaluation.

    Returns:
        What the JSON file holds (numbers as ``Interval``), and the maps of each scan.

    Raises:
        InputError: as ``check_input``, ``from_files``, ``open_data`` or ``load_backbone``.
    """
    check_settings(options)
    device = default_device()
    networks = {MODEL: load_frozen(source.name, device, heads=options.heads)}
    backbone = networks[MODEL].backbone
    size = options.size or (source.monitor.attention_size if source.monitor else 480)
    check_input(backbone, options.block, size)
    start = starting_weights(source, device)
    notes = [start] if isinstance(start, str) else []
    if backbone.load_report.matched == 0:
        notes.append("the model has random weights: these maps are a control, not a finding")
    if isinstance(start, Frozen):
        networks[START] = start
    chosen, about = _choose(source, options)
    found = look(networks, chosen, size, options.block)

    bootstrap = PatientBootstrap(np.array([one.patient for one in chosen]), options.bootstrap, options.seed)
    names = _names(found[0].maps[MODEL])
    scores = {
        which: np.stack([spread(with_mean(one.maps[which]), options.mass) for one in found]) for which in networks
    }
    depth = len(backbone.blocks)
    return {
        "evaluation": "attention",
        "model": {"source": source.name, "run": source.run, "chosen": source.chosen},
        "weights": {name: network.weights for name, network in networks.items()},
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
            "bootstrap": {"unit": "patient", "resamples": options.bootstrap, "seed": options.seed},
        },
        "units": "means over scans, 0 to 1; entropy: of the map over the patches, relative to ln N; mass_patches: "
        "share of the patches in the smallest set that holds the mass; prefix_share: of the attention on CLS and "
        "registers. 'mean of heads' is measured on the mean map.",
        "rows": {which: _summarise(values, names, bootstrap) for which, values in scores.items()},
        "scans": [
            {
                "key": f"scan{i}",
                "file": one.chosen.file,
                "class": one.chosen.label,
                "patient": one.chosen.patient,
                "input": one.image.shape,
                "patches": one.maps[MODEL].shape[1:],
                "spread": {which: _named(scores[which][i], names) for which in networks},
            }
            for i, one in enumerate(found)
        ],
        "notes": bootstrap.notes() + about["notes"] + notes,
    }, found


def _choose(source: Source, options: Options) -> tuple[list[Chosen], dict[str, Any]]:
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


def write_maps(result: dict[str, Any], found: Sequence[Maps], folder: Path) -> None:
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
    for i, one in enumerate(tqdm(found, desc="pages", unit="scan", disable=None, leave=False)):
        name = Path(page_name(i, one.chosen)).stem
        arrays[f"scan{i}_image"] = one.image
        for which, maps in one.maps.items():
            arrays[f"scan{i}_{which}"] = maps
            arrays[f"scan{i}_{which}_mask"] = mass_mask(with_mean(maps), settings["mass"])
        notice = f"{PHANTOM_NOTICE} · " if result["data"]["synthetic"] else ""
        title = (
            f"{notice}{one.chosen.file}{f' ({one.chosen.label})' if one.chosen.label else ''}\nCLS attention of "
            f"block {settings['block']} of 0…{settings['blocks'] - 1}, input "
            f"{one.image.shape[0]} × {one.image.shape[1]} px, patch {settings['patch']} px"
        )
        names = [MEAN, *_names(one.maps[MODEL])[:-1]]
        ordered = {which: np.roll(with_mean(maps), 1, axis=0) for which, maps in one.maps.items()}
        pages[name] = folder / f"{name}.png"
        draw_page(one.chosen.scan, ordered, names, settings["mass"], title, pages[name])
    with naming(folder / "tensorboard"), SummaryWriter(str(folder / "tensorboard")) as writer:
        for name, page in pages.items():
            with Image.open(page, formats=["PNG"]) as image:
                writer.add_image(f"attention/{name}", np.asarray(image.convert("RGB")), 0, dataformats="HWC")
    with replacing(folder / "attention.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)
    for scan, page in zip(result["scans"], pages.values(), strict=True):
        scan["page"] = page.name
    write_json(result, folder / "attention.json")


def main(options: Options) -> None:
    """Evaluate, print, and write pages, ``attention.npz``, ``attention.json`` and TensorBoard images."""
    source = open_source(options.model)
    result, found = evaluate(source, options)
    folder = make_folder(source.results_folder("attention", options.out))
    write_maps(result, found, folder)
    print(report(result))
    print(f"written: {_count(len(found), 'page')}, attention.npz, attention.json and tensorboard/ in {folder}")


if __name__ == "__main__":
    run_command(main, Options)
