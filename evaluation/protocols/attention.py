"""Where CLS looks, head by head: pages of attention maps, masks that hold most of the mass, numbers of their spread."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dino_oct.errors import InputError
from dino_oct.limits import check_settings
from dino_oct.models.attention import check_transformer, cls_attention
from dino_oct.models.backbone import patch_size
from dino_oct.pictures import fit_short_side
from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale, weighted_mean
from dino_oct.scores.text import Evaluation, closing, heading, show, table, written
from evaluation.config import AttentionOptions
from evaluation.inputs.model import Model, open_model
from evaluation.inputs.selection import Chosen
from evaluation.inputs.sources import Source, starting_weights
from evaluation.pages.attention import attention_rows, volume_rows
from evaluation.pages.tiles import Page, write_pages
from evaluation.protocols.results import choose_scans, of_source, with_folders
from evaluation.scores.attention import MEASURES, mass_mask, spread
from evaluation.scores.lesions import with_mean

MODEL, START = "model", "start"
MEAN = "mean of heads"
UNITS = (
    "means over scans, 0 to 1; entropy: of the map over the patches, relative to ln N; mass_patches: share of the "
    "patches in the smallest set that holds the mass; prefix_share: of the attention on CLS and registers. 'mean of "
    "heads' is measured on the mean map."
)


@dataclass(frozen=True, kw_only=True)
class Attention(Evaluation):
    """What ``attention.json`` holds beside its scans; rows: network → head → ``MEASURES``."""

    evaluation: str = "attention"
    units: str = UNITS
    rows: dict[str, dict[str, dict[str, Interval]]]

    @property
    def block(self) -> str:
        """In words."""
        return f"block {self.settings['block']} of 0…{self.settings['blocks'] - 1}"


@dataclass(frozen=True)
class ScanAttention:
    """Attention of one scan.

    Attributes:
        image: (H, W) uint8, the input.
        heads: network → (heads, rows, columns) float32; scores: network → (heads + 1, 3), the mean of heads last.
    """

    scan: Chosen
    image: np.ndarray
    heads: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]


def check_input(backbone: torch.nn.Module, block: int, size: int) -> None:
    """Raise InputError unless the backbone is a transformer with CLS, has this block, and two patches fit in size."""
    check_transformer(backbone)
    depth = len(backbone.blocks)
    if not -depth <= block < depth:
        raise InputError(f"block {block}: the model has {depth} blocks; give {-depth} to {depth - 1}")
    patch = patch_size(backbone)
    if size < 2 * patch:
        raise InputError(
            f"attention-size {size}: must hold two patches of {patch} px at least; give {2 * patch} or more"
        )


def attend(models: dict[str, Model], scan: Chosen, size: int, options: AttentionOptions) -> ScanAttention:
    """Attention of models of one architecture, which ``check_input`` accepts, on one scan.

    Args:
        size: short side of the input in pixels; see ``fit_short_side``.
    """
    image = fit_short_side(scan.scan, size, patch_size(models[MODEL].model))
    heads = {
        which: cls_attention(model.model, model.prepare(image[None].to(model.device)), options.block)[0].cpu().numpy()
        for which, model in models.items()
    }
    scores = {which: spread(with_mean(values), options.mass) for which, values in heads.items()}
    return ScanAttention(scan, image[0].numpy(), heads, scores)


def evaluate(source: Source, options: AttentionOptions) -> tuple[Attention, list[ScanAttention]]:
    """Run the whole evaluation.

    Returns:
        The result, and the maps of each scan.

    Raises:
        InputError: as ``check_input``, ``choose_scans`` or ``load_backbone``.
    """
    check_settings(options)
    models = {MODEL: open_model(source, MODEL, heads=options.heads)}
    backbone = models[MODEL].model
    size = options.attention_size or source.attention_size or 480
    try:
        check_input(backbone, options.block, size)
    except InputError as reason:
        raise InputError(f"{source.name}: {reason}") from None
    notes = []
    if isinstance(start := starting_weights(source), str):
        notes.append(start)
    else:
        models[START] = open_model(start, START)
    if models[MODEL].is_random:
        notes.append("the model has random weights: these maps are a control, not a finding")
    scans, about, _ = choose_scans([source], options)
    progress = tqdm(scans, desc="attention", unit="scan", disable=None, leave=False)
    maps = [attend(models, scan, size, options) for scan in progress]
    bootstrap = PatientBootstrap(np.array([scan.patient for scan in scans]), options.bootstrap, options.seed)
    names, depth = _names(maps[0]), len(backbone.blocks)
    scores = {which: np.stack([scan_maps.scores[which] for scan_maps in maps]) for which in models}
    result = Attention(
        model=of_source(source),
        weights={name: model.weights for name, model in models.items()},
        data=about,
        settings={
            "size": size,
            "patch": patch_size(backbone),
            "block": options.block % depth,
            "blocks": depth,
            "heads": len(names) - 1,
            "prefix_tokens": backbone.num_prefix_tokens,
            "blocks_and_heads_count_from": 0,
            "mass": options.mass,
            "bootstrap": options.intervals,
        },
        rows={which: _means(values, names, bootstrap) for which, values in scores.items()},
        notes=bootstrap.notes() + about["notes"] + notes,
    )
    return result, maps


def _facts(maps: ScanAttention) -> dict[str, Any]:
    """What the JSON file says of a scan."""
    names = _names(maps)
    return {
        "input": maps.image.shape,
        "patches": maps.heads[MODEL].shape[1:],
        "spread": {
            which: {name: dict(zip(MEASURES, row, strict=True)) for name, row in zip(names, scores, strict=True)}
            for which, scores in maps.scores.items()
        },
    }


def _names(maps: ScanAttention) -> list[str]:
    return [*(f"head {head}" for head in range(len(maps.heads[MODEL]))), MEAN]


def _means(scores: np.ndarray, names: Sequence[str], bootstrap: PatientBootstrap) -> dict[str, dict[str, Interval]]:
    """Means over scans of scores (N, rows, 3), with intervals: row → measure → ``Interval``."""
    values = bootstrap.values(lambda weights: weighted_mean(weights, scores))  # (1 + R, rows, 3)
    return {
        name: {measure: bootstrap.interval(values[:, i, j], Scale.SCORE) for j, measure in enumerate(MEASURES)}
        for i, name in enumerate(names)
    }


def report(result: Attention) -> str:
    """The result as text: what was used, and one table."""
    data, settings = result.data, result.settings
    where = f"{data['folder']}, {data['split']} split" if data["folder"] else "image files"
    classes = [f"{name} {count['scans']}" for name, count in data.get("classes", {}).items() if count["scans"]]
    details = f", {result.block}, short side {settings['size']} px, patch {settings['patch']} px"
    lines = [
        *heading("CLS attention", result, details),
        f"data: {where} · {_count(data['scans'], 'scan')} of {_count(data['patients'], 'patient')}"
        + (f" ({', '.join(classes)})" if classes else ""),
        "",
    ]
    prefix = "CLS" if settings["prefix_tokens"] == 1 else "CLS and registers"
    header = ["", "", "entropy / ln N", f"% of patches for {100 * settings['mass']:g} % of mass", f"% on {prefix}"]
    rows = [
        [which, name, show(row["entropy"], 3), *(show(row[measure].times(100)) for measure in MEASURES[1:])]
        for which, by_name in result.rows.items()
        for name, row in by_name.items()
    ]
    lines += [table(header, rows)]
    if data["patients"] > 1 and (resamples := settings["bootstrap"]["resamples"]):
        lines += [f"[95 % interval, {resamples} resamples of patients]"]
    return "\n".join([*lines, *closing(result)])


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def pages(maps: Sequence[ScanAttention], mass: float) -> Iterator[Page]:
    """A page a scan, drawn one at a time.

    Its arrays: ``image`` (H, W) uint8, and for each network ``NETWORK`` (heads, rows, columns) float32 and
    ``NETWORK_mask`` (heads + 1, rows, columns) bool, the mean of heads last.
    """
    for scan_maps in maps:
        names = _names(scan_maps)
        with_means = {which: with_mean(heads) for which, heads in scan_maps.heads.items()}
        arrays = {"image": scan_maps.image}
        for which, heads in scan_maps.heads.items():
            arrays |= {which: heads, f"{which}_mask": mass_mask(with_means[which], mass)}
        facts = _facts(scan_maps)
        ordered = {which: np.roll(heads, 1, axis=0) for which, heads in with_means.items()}
        rows, scale = attention_rows(scan_maps.scan.scan, ordered, [MEAN, *names[:-1]], mass)
        yield Page(scan_maps.scan, rows, arrays, facts, scale)


def volume_pages(maps: Sequence[ScanAttention]) -> Iterator[Page]:
    """A page a volume, of scans that lie volume by volume: the mean of heads of each slice.

    Its arrays: ``sliceS_image`` and ``sliceS_NETWORK`` as those of a scan's page.
    """
    for _, members in itertools.groupby(maps, lambda scan_maps: (scan_maps.scan.patient, scan_maps.scan.volume)):
        of_volume = list(members)
        scans = [scan_maps.scan for scan_maps in of_volume]
        means = {which: [m.heads[which].mean(axis=0) for m in of_volume] for which in of_volume[0].heads}
        rows, scale = volume_rows([scan.scan for scan in scans], [scan.slice for scan in scans], means)
        arrays, slices = {}, []
        for s, scan_maps in enumerate(of_volume):
            named = {"image": scan_maps.image, **scan_maps.heads}
            arrays |= {f"slice{s}_{name}": values for name, values in named.items()}
            slices.append({"file": scan_maps.scan.file, "slice": scan_maps.scan.slice, **_facts(scan_maps)})
        yield Page(dataclasses.replace(scans[0], slice=""), rows, arrays, {"slices": slices}, scale)


def run(options: AttentionOptions) -> None:
    """Evaluate each model, print, and write pages, ``attention.npz``, ``attention.json`` and TensorBoard images."""
    for source, folder in with_folders("attention", options):
        result, maps = evaluate(source, options)
        size, patch = result.settings["size"], result.settings["patch"]
        subtitle = f"CLS attention of {result.block}, short side {size} px, patch {patch} px"
        drawn = volume_pages(maps) if options.volumes else pages(maps, options.mass)
        subtitle += f", {MEAN}" if options.volumes else ""
        files = write_pages(result, drawn, subtitle, "", folder)
        print(report(result))
        print(written(*files))
