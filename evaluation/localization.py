"""Share of CLS attention on lesions, beside its share on the whole retina and beside simple maps.

    python evaluation/localization.py                  the newest run, on the phantoms it was trained with
    python evaluation/localization.py --model SOURCE --data phantom

Attention on a lesion means little alone: the retina is bright and lesions lie in it. So each number stands beside the
retina's, beside maps that need no network, and beside the weights before training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.models.attention import check_transformer, cls_attention
from dino_oct.models.backbone import patch_size
from dino_oct.models.network import normalise
from dino_oct.monitor import fit_short_side
from evaluation.bootstrap import Interval, PatientBootstrap, weighted_mean
from evaluation.lesion_masks import mask_file, read_mask, scans_with_lesion
from evaluation.lesion_scores import CONTROLS, MEASURES, RATIO, control_maps, enlarge, localize, with_mean
from evaluation.map_scores import SCORES, score_map
from evaluation.overlays import Example, draw_examples
from evaluation.reports import heading, make_folder, show, table, write_json
from evaluation.runs import (
    EvaluationOptions,
    Frozen,
    Source,
    default_device,
    load_frozen,
    open_source,
    starting_weights,
)
from evaluation.scan_data import PHANTOM_NOTICE, ScanData, open_data

MODEL, START = "model", "start"
CHOSEN, MEAN = "chosen head", "mean of heads"
DIFFERENCES = "lesion_over_retina_of_model_chosen_head_minus"
_SIMPLE = ("centre", "brightness")  # maps without a network that a head's preference must exceed
_AGREEMENT = {
    "pointing": "peak on it",
    "rank_accuracy": "rank accuracy",
    "auprc": "average precision",
    "iou_otsu": "IoU (Otsu)",
    "iou_mass": "IoU (60 % of mass)",
}
_BATCH = 16  # scans per forward pass: attention scans are large


@dataclass
class Options(EvaluationOptions):
    """Share of CLS attention (last block) on lesions and on the retina, with patient-bootstrap intervals."""

    attention_size: int | None = None
    """Short side of the scans that attention is computed on; unset: the run's monitor.attention_size, or 128."""

    def __post_init__(self):
        super().__post_init__()
        if self.attention_size is not None and self.attention_size < 1:
            raise InputError(f"attention-size {self.attention_size}: must be at least 1")


def attention_maps(
    backbone: torch.nn.Module, scans: Sequence[np.ndarray], short_side: int, device: torch.device
) -> list[np.ndarray]:
    """CLS attention of the last block to the patches of each scan.

    Args:
        scans: grey uint8 (H, W), of any sizes.
        short_side: of the network's input, in pixels; see ``fit_short_side``.

    Returns:
        One (heads, rows, columns) float32 array a scan.
    """
    patch = patch_size(backbone)
    maps: list[np.ndarray] = []
    batch: list[torch.Tensor] = []

    def flush() -> None:
        if batch:
            images = torch.stack(batch).to(device)
            maps.extend(cls_attention(backbone, normalise(images, backbone)).cpu().numpy())
            batch.clear()

    for scan in tqdm(scans, desc="attention", unit="scan", disable=None, leave=False):
        image = fit_short_side(scan, short_side, patch)
        if len(batch) == _BATCH or (batch and batch[0].shape != image.shape):
            flush()
        batch.append(image)
    flush()
    return maps


def best_head(scores: np.ndarray) -> int:
    """The head of highest mean lesion over retina; scores (N, heads, measures)."""
    return int(np.nanargmax(weighted_mean(np.ones((1, len(scores))), scores[..., RATIO])[0]))


def summarise(
    scores: np.ndarray, names: Sequence[str], bootstrap: PatientBootstrap, measures: Sequence[str] = MEASURES
) -> dict[str, dict[str, Interval]]:
    """Means over scans, with intervals.

    Args:
        scores: (N, rows, measures) from ``localize`` or ``score_map``; names: of the rows.

    Returns:
        row → measure → ``Interval``.
    """
    values = bootstrap.values(lambda weights: weighted_mean(weights, scores))  # (1 + R, rows, measures)
    return {
        name: {measure: bootstrap.interval(values[:, i, j]) for j, measure in enumerate(measures)}
        for i, name in enumerate(names)
    }


def evaluate(source: Source, options: Options) -> tuple[dict[str, Any], list[Example]]:
    """Run the whole evaluation.

    Returns:
        What the JSON file holds (intervals as ``Interval``), and scans to draw.

    Raises:
        InputError: no run, no masks or no lesions in the validation or the test split, a backbone without CLS token, or
            as ``load_backbone``.
    """
    data = open_data(source.config, options.data, options.dataset, options.phantom, print)
    index = data.index
    val, test = (scans_with_lesion(index, split) for split in ("val", "test"))
    short_side = options.attention_size or (source.monitor.attention_size if source.monitor else 128)
    device = default_device()
    networks = {MODEL: load_frozen(source.name, device, heads=options.heads)}
    check_transformer(networks[MODEL].backbone)
    start = starting_weights(source, device)
    notes = [start] if isinstance(start, str) else []
    if isinstance(start, Frozen):
        networks[START] = start

    masks = [read_mask(mask_file(index, i)) for i in test]
    parts: list[np.ndarray] = []
    names: list[str] = []
    chosen: dict[str, int] = {}
    test_attention: dict[str, list[np.ndarray]] = {}
    shown: list[list[np.ndarray]] = [[] for _ in test]  # every row's map of each test scan
    for which, network in networks.items():
        val_attention, attention = (
            attention_maps(network.backbone, [data.scans[i] for i in positions], short_side, device)
            for positions in (val, test)
        )
        val_masks = (read_mask(mask_file(index, i)) for i in val)
        val_scores = [_score(maps, *mask) for maps, mask in zip(val_attention, val_masks, strict=True)]
        head = chosen[which] = best_head(np.stack(val_scores)[:, :-1])  # the last row is the mean of heads
        scores = np.stack([_score(maps, *mask) for maps, mask in zip(attention, masks, strict=True)])
        parts.append(scores[:, [head, -1]])
        names += [f"{which}: {CHOSEN}", f"{which}: {MEAN}"]
        test_attention[which] = [maps[head] for maps in attention]
        for rows_of_scan, maps, mask in zip(shown, attention, masks, strict=True):
            rows_of_scan += list(enlarge(with_mean(maps)[[head, -1]], mask[0].shape))
    controls = [control_maps(data.scans[i], *mask) for i, mask in zip(test, masks, strict=True)]
    parts.append(np.stack([localize(maps, *mask) for maps, mask in zip(controls, masks, strict=True)]))
    names += CONTROLS
    agreement = np.stack(
        [
            [score_map(values, lesion) for values in (*maps, *control)]
            for maps, control, (lesion, _) in zip(shown, controls, masks, strict=True)
        ]
    )
    scores = np.concatenate(parts, axis=1)

    bootstrap = PatientBootstrap(index.patients[test], options.bootstrap, options.seed)
    rows = summarise(scores, names, bootstrap)
    result = {
        "evaluation": "localization",
        "model": {"source": source.name, "run": source.run, "chosen": source.chosen},
        "weights": {name: network.weights for name, network in networks.items()},
        "data": {**data.describe(validation=val, test=test), "scans": "those with a lesion"},
        "settings": {
            "attention_size": short_side,
            "block": "last",
            "heads": networks[MODEL].backbone.blocks[-1].attn.num_heads,
            "heads_count_from": 0,
            "head_chosen_on": "val",
            "bootstrap": {"unit": "patient", "resamples": options.bootstrap, "seed": options.seed},
        },
        "units": "means over scans; energies: share of the map, 0 to 1; enrichments and their ratio: 1 if uniform; "
        "agreement with the lesion mask, 0 to 1 (see map_scores.score_map)",
        "area": {
            "lesion": bootstrap.mean(np.array([lesion.mean() for lesion, _ in masks])),
            "retina": bootstrap.mean(np.array([retina.mean() for _, retina in masks])),
        },
        "chosen_head": chosen,
        "rows": rows,
        "agreement": summarise(agreement, names, bootstrap, SCORES),
        "lesion_over_retina_of_single_scans": {
            name: {"median": float(np.nanmedian(column)), "share_above_1": float((column > 1).mean())}
            for name, column in zip(names, scores[..., RATIO].T, strict=True)
        },
        DIFFERENCES: _differences(scores, names, bootstrap),
        "classes": _by_class(data, test, scores, names, options),
        "notes": _notes(data, val, test, bootstrap) + notes,
    }
    result["statements"] = statements(result)
    return result, _examples(data, test, masks, scores, names, chosen, test_attention)


def _score(attention: np.ndarray, lesion: np.ndarray, retina: np.ndarray) -> np.ndarray:
    """Scores (heads + 1, 5) of each head and of their mean."""
    return localize(enlarge(with_mean(attention), lesion.shape), lesion, retina)


def _by_class(
    data: ScanData, test: np.ndarray, scores: np.ndarray, names: Sequence[str], options: Options
) -> dict[str, Any]:
    by_class = {}
    for c, name in enumerate(data.index.class_names):
        inside = data.index.labels[test] == c
        if inside.any():
            bootstrap = PatientBootstrap(data.index.patients[test[inside]], options.bootstrap, options.seed)
            counts = {"scans": int(inside.sum()), "patients": bootstrap.n_patients}
            rows = summarise(scores[inside], names, bootstrap)
            by_class[name] = {**counts, "rows": rows, DIFFERENCES: _differences(scores[inside], names, bootstrap)}
    return by_class


def _differences(scores: np.ndarray, names: Sequence[str], bootstrap: PatientBootstrap) -> dict[str, Interval]:
    """Lesion over retina of the first row less that of each other row, paired."""
    return {
        name: bootstrap.mean(scores[:, 0, RATIO] - scores[:, i, RATIO])
        for i, name in enumerate(names)
        if i and name != CONTROLS[-1]
    }


def _notes(data: ScanData, val: np.ndarray, test: np.ndarray, bootstrap: PatientBootstrap) -> list[str]:
    notes = bootstrap.notes()
    patients = data.index.patients
    shared = len(set(patients[val].tolist()) & set(patients[test].tolist()))
    if shared:
        notes.append(f"{shared} patients have scans in validation and in test: the choice of the head saw them")
    if data.seen_among(test):
        notes.append(f"{data.seen_among(test)} test patients were seen in pretraining")
    return notes


def statements(result: dict[str, Any]) -> list[str]:
    """What the numbers of ``evaluate`` let one say about the chosen head, in plain words."""
    chosen, differences = f"{MODEL}: {CHOSEN}", result[DIFFERENCES]
    row, ratio = result["rows"][chosen], result["rows"][chosen]["lesion_over_retina"]
    scans = "these phantoms" if result["data"]["synthetic"] else "these scans"
    single = result["lesion_over_retina_of_single_scans"][chosen]
    spread = f"(median {single['median']:.2f}; above 1 in {100 * single['share_above_1']:.0f} % of the scans)"
    number = f"Lesion over retina of the chosen head ({result['chosen_head'][MODEL]}) is {show(ratio, 2)} {spread}"
    if ratio.low is None:
        said = [f"{number}; without an interval nothing is shown about a preference for lesions."]
    elif ratio.is_above(1):
        said = [
            f"{number}: above 1, and the interval excludes 1. On average over {scans}, this head attends to lesions "
            "more than to the rest of the retina."
        ]
    elif ratio.is_below(1):
        said = [
            f"{number}: BELOW 1, and the interval excludes 1. This head attends to lesions less than to the rest of "
            "the retina."
        ]
    else:
        said = [f"{number}: the interval includes 1. No preference for lesions over the rest of the retina is shown."]
    by_class = {name: found["rows"][chosen]["lesion_over_retina"] for name, found in result["classes"].items()}
    if len(by_class) > 1:
        said.append("By class: " + ", ".join(f"{name} {show(value, 2)}" for name, value in by_class.items()) + ".")
        if doubtful := [name for name, found in result["classes"].items() if not _beats_simple_maps(found)]:
            said[-1] += f" For {', '.join(doubtful)} alone, a preference beyond {' and '.join(_SIMPLE)} is NOT shown."
    if change := differences.get(f"{START}: {CHOSEN}"):
        verb = "is not shown to have changed it"
        if change.is_above(0) or change.is_below(0):
            verb = "raised it" if change.is_above(0) else "LOWERED it"
        said.append(f"Against the best head of the starting weights, training {verb} ({show(change, 2, signed=True)}).")
    equal = [name for name in _SIMPLE if not differences[name].is_above(0)]
    if equal:
        reached = " and ".join(f"{name} ({show(result['rows'][name]['lesion_over_retina'], 2)})" for name in equal)
        said.append(f"The head is NOT shown to prefer lesions more than a map without a network does: {reached}.")
    energy, area = row["energy_lesion"].point, result["area"]["lesion"].point
    said.append(
        f"{100 * energy:.1f} % of its attention lies on lesions, which cover {100 * area:.1f} % of the pixels: where "
        "it looks more is a tendency, not a segmentation."
    )
    return said


def _beats_simple_maps(found: dict[str, Any]) -> bool:
    """Whether a class's chosen head is above 1 and above every simple map, each with its whole interval."""
    ratio = found["rows"][f"{MODEL}: {CHOSEN}"]["lesion_over_retina"]
    return ratio.is_above(1) and all(found[DIFFERENCES][name].is_above(0) for name in _SIMPLE)


def _examples(
    data: ScanData,
    test: np.ndarray,
    masks: list[tuple[np.ndarray, np.ndarray]],
    scores: np.ndarray,
    names: Sequence[str],
    chosen: dict[str, int],
    attention: dict[str, list[np.ndarray]],
) -> list[Example]:
    """For each lesion class the test scan of median lesion over retina: neither the best nor the worst."""
    examples = []
    ratio, labels = scores[:, 0, RATIO], data.index.labels[test]
    column = {which: names.index(f"{which}: {CHOSEN}") for which in attention}
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        i = members[np.argsort(ratio[members], kind="stable")[(len(members) - 1) // 2]]
        lesion, retina = masks[i]
        overlays = {
            f"{which}: head {chosen[which]}\nlesion over retina {scores[i, column[which], RATIO]:.2f}": maps[i]
            for which, maps in attention.items()
        }
        title = data.index.files[test[i]].rsplit("/", 1)[-1]
        examples.append(Example(title, np.asarray(data.scans[test[i]]), lesion, retina, overlays))
    return examples


def report(result: dict[str, Any]) -> str:
    """The result as text: what was used, one table, and what it lets one say."""
    sets, area = result["data"]["sets"], result["area"]
    lines = [
        *heading("CLS attention", result, ", last block"),
        f"data: {result['data']['folder']} · head chosen on {sets['validation']['scans']} scans with lesions of "
        f"{sets['validation']['patients']} validation patients · reported on {sets['test']['scans']} of "
        f"{sets['test']['patients']} test patients ("
        + ", ".join(f"{name} {n['scans']}" for name, n in sets["test"]["classes"].items() if n["scans"])
        + ")",
        f"area: lesion {100 * area['lesion'].point:.1f} %, retina {100 * area['retina'].point:.1f} % of the pixels",
        "",
    ]
    header = ["", "% on lesion", "% on retina", "lesion enrichment", "retina enrichment", "lesion over retina"]
    rows = []
    for name, row in result["rows"].items():
        shares = [show(_percent(row[measure])) for measure in MEASURES[:2]]
        which = name.removesuffix(f": {CHOSEN}")
        label = f"{name} ({result['chosen_head'][which]})" if which != name else name
        rows.append([label, *shares, *(show(row[measure], 2) for measure in MEASURES[2:])])
    resamples = result["settings"]["bootstrap"]["resamples"]
    scores = [
        [name, *(show(_percent(row[score])) for score in _AGREEMENT)] for name, row in result["agreement"].items()
    ]
    lines += [
        table(header, rows),
        "",
        table(["agreement with the lesion, %", *_AGREEMENT.values()], scores),
        f"[95 % interval, {resamples} resamples of patients]",
        "",
    ]
    return "\n".join([*lines, *result["statements"], *(f"note: {note}" for note in result["notes"])])


def _percent(share: Interval) -> Interval:
    return Interval(*(value if value is None else 100 * value for value in (share.point, share.low, share.high)))


def main(options: Options) -> None:
    """Evaluate, print, and write ``localization.json`` and ``localization.png``."""
    source = open_source(options.model)
    result, examples = evaluate(source, options)
    print(report(result))
    folder = make_folder(source.results_folder("localization", options.out))
    write_json(result, folder / "localization.json")
    notice = f"{PHANTOM_NOTICE} · " if result["data"]["synthetic"] else ""
    counts = result["data"]["sets"]["test"]
    draw_examples(
        examples,
        f"{notice}test scan of median lesion over retina of each class ({counts['scans']} scans, {counts['patients']} "
        "patients)",
        folder / "localization.png",
    )
    print(f"written: {folder / 'localization.json'}, {folder / 'localization.png'}")


if __name__ == "__main__":
    run_command(main, Options)
