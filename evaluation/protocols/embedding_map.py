"""UMAP maps of frozen features, before and after training and beside other models, with numbers from the features."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_samples
from tqdm import tqdm

from dino_oct.data.index import UNLABELLED
from dino_oct.errors import InputError
from dino_oct.files import private_folder
from dino_oct.limits import check_settings
from dino_oct.models import official
from dino_oct.scan_data import ScanData
from dino_oct.scores.bootstrap import PatientBootstrap, Scale
from dino_oct.scores.paired import MODEL, PIXELS, RANDOM, START
from dino_oct.scores.text import written
from dino_oct.streams import generator
from dino_oct.words import counted
from evaluation.config import FEWEST, EmbeddingMapOptions
from evaluation.inputs.features import extract_features, features_of, same_for_all
from evaluation.inputs.model import open_model
from evaluation.inputs.scans import open_data
from evaluation.inputs.sources import Source, open_source, open_sources
from evaluation.pages import embedding_results
from evaluation.pages.embedding_figures import AXES_NOTE
from evaluation.pages.embedding_results import EmbeddingMap, FeatureDifference, MapRow, Maps, Points, TrainingState
from evaluation.protocols.results import of_source
from evaluation.scores.embeddings import agreement, aligned, chance_purity, most_neighbours, nearest, purity, umap_map

SCALES = {"silhouette": Scale.CORRELATION, "purity": Scale.PERCENT, "map_purity": Scale.PERCENT}
MOST_RANKED = 5000  # scans that trustworthiness ranks all distances of: its memory grows with their square
UNITS = (
    "purity, map_purity, chance: per cent; silhouette: −1 to 1, cosine; trustworthiness, overlap: 0 to 1; procrustes: "
    "0 (the same) to 1; silhouette and purity are of the features; map_purity, trustworthiness, overlap, procrustes of "
    "the maps; intervals: 95 % over patients, each scan's neighbours kept; overlap and procrustes: [mean, lowest, "
    "highest] over pairs of seeds; differences in the units of their rows, paired"
)


def evaluate(sources: Sequence[Source], options: EmbeddingMapOptions) -> tuple[EmbeddingMap, Maps]:
    """Run the whole evaluation, of the first source beside the others.

    Returns:
        The result, and the maps.

    Raises:
        InputError: too few scans, an animation without a run, a SOURCE given twice, or as ``load_backbone``.
    """
    check_settings(options)
    source, *others = sources
    if options.animate and source.run is None:
        raise InputError(f"{source.name}: not a run, so there are no checkpoints to animate; give a run with --model")
    if reserved := {MODEL, START, RANDOM, PIXELS} & {other.name for other in others}:
        raise InputError(f"{reserved.pop()}: the name of a row of this evaluation; give the model's path as ./NAME")
    data = open_data(source, options)
    points, notes = _choose(data, options)
    patients = data.index.patients[points.chosen]
    comparable, label_notes = comparable_scans(data.index.labels[points.chosen], patients, data.index.class_names)
    k, k_notes = _usable_k(options.k, patients, comparable, options.unit)
    n_neighbours = min(options.neighbours, len(points) - 1)
    if n_neighbours < options.neighbours:
        notes.append(f"neighbours {options.neighbours}: {n_neighbours} here, for {len(points)} {options.unit}s")
    # Opened before anything is computed, so that a wrong name costs no time.
    opening = {"image_size": options.image_size, "heads": options.heads}
    beside = [open_model(other, other.name, **opening) for other in others]
    extracted = extract_features(open_model(source, MODEL, **opening), options, data, {"scans": points.scans})
    features = {name: points.means(rows) for name, rows in extracted.by_set["scans"].items()}
    pixels = {PIXELS: features.pop(PIXELS)} if PIXELS in features else {}
    for model in beside:
        features[model.name] = points.means(features_of(model, options, data, points.scans))
        notes += [note] if (note := same_for_all(model.name, [features[model.name]])) else []
    features |= pixels
    place = partial(umap_map, n_neighbours=n_neighbours, min_dist=options.min_dist, metric=options.metric)
    seeds = range(options.seed, options.seed + options.seeds)
    by_row = {
        name: np.stack([place(of_model, seed) for seed in tqdm(seeds, desc=f"UMAP: {name}", disable=None, leave=False)])
        for name, of_model in features.items()
    }
    near = {name: nearest(of_model, patients, k) for name, of_model in features.items()} if k else {}
    bootstrap = PatientBootstrap(patients[comparable], options.bootstrap, options.seed) if comparable.any() else None
    maps = Maps(data, points, comparable, features, by_row, k, near, bootstrap)
    training: dict[str, TrainingState] = {}
    if options.animate:
        frames, training, frame_notes = _over_training(source, options, maps, place)
        maps = dataclasses.replace(maps, frames=frames)
        notes += frame_notes
    notes += k_notes + label_notes
    if len(points) > MOST_RANKED:
        notes.append(f"trustworthiness is of {MOST_RANKED:,} {options.unit}s drawn by seed")
    rows, differences = _measure(maps, options)
    notes += bootstrap.notes() if bootstrap else []
    notes += data.training_notes(points.scans, [other.name for other in others])
    result = EmbeddingMap(
        model=of_source(source),
        weights={**extracted.weights, **{model.name: model.weights for model in beside}},
        data={
            **data.summary(scans=points.scans, **({"points": points.chosen} if options.unit != "scan" else {})),
            "split": options.split,
            "shortcut": data.shortcuts(points.chosen[comparable]) if bootstrap else None,
        },
        settings={
            "unit": options.unit,
            "umap": {"n_neighbors": n_neighbours, "min_dist": options.min_dist, "metric": options.metric},
            "seeds": list(seeds),
            "k": k,
            **extracted.settings,
            "bootstrap": options.intervals,
        },
        units=UNITS,
        rows=rows,
        differences=differences,
        chance=100 * float(chance_purity(maps.labels[comparable], patients[comparable]).mean()) if bootstrap else None,
        training=training,
        verdicts=[AXES_NOTE + " Compare models by silhouette and purity, which are measured on the features."],
        notes=notes + extracted.notes,
    )
    return result, maps


def comparable_scans(
    labels: np.ndarray, patients: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Scans that silhouette and purity can be measured on, and why others are left out.

    A class needs two patients: a neighbour of the own class and of another patient cannot be found otherwise. No scan
    is left where fewer than two classes are.

    Args:
        labels: (N,) positions in ``class_names``, or ``UNLABELLED``; patients: (N,).

    Returns:
        (N,) bool, and notes.
    """
    usable = labels != UNLABELLED
    without = int((~usable).sum())
    if without == len(labels):
        return usable, ["no labels: no silhouette and no purity"]
    notes = []
    if without:
        notes.append(f"{counted(without, 'scan')} without a class: in the maps, not in silhouette and purity")
    alone = [c for c in np.unique(labels[usable]).tolist() if len(set(patients[labels == c].tolist())) == 1]
    if alone:
        names = ", ".join(class_names[c] for c in alone)
        notes.append(f"one patient only of {names}: in the maps, not in silhouette and purity")
        usable &= ~np.isin(labels, alone)
    if len(np.unique(labels[usable])) < 2:
        return np.zeros_like(usable), [*notes, "fewer than two classes to compare: no silhouette and no purity"]
    return usable, notes


def _choose(data: ScanData, options: EmbeddingMapOptions) -> tuple[Points, list[str]]:
    index, is_all, unit = data.index, options.split == "all", options.unit
    positions = np.arange(len(index)) if is_all else index.positions(options.split)
    points, notes = Points.of_scans(positions), []
    if unit != "scan":
        points, notes = Points.of_units(data, positions, unit)
    if len(points) < FEWEST:
        where = "in all" if is_all else f"the {options.split} split has"
        more = "--phantom.patients or --phantom.scans-per-patient" if data.is_phantom else "more scans"
        more = more if unit == "scan" else f"more, --unit scan where {unit}s are not known"
        raise InputError(
            f"{index.root}: {where} {len(points)} {unit}s; a map needs at least {FEWEST}: give {more}, or another "
            "--split"
        )
    if len(points) <= options.max_scans:
        return points, notes
    rng = generator("scans of an embedding map", options.seed)
    drawn = points.subset(np.sort(rng.choice(len(points), options.max_scans, replace=False)))
    note = f"{options.max_scans:,} of {len(points):,} {unit}s drawn by seed; --max-scans takes more"
    return drawn, [*notes, note]


def _usable_k(k: int, patients: np.ndarray, comparable: np.ndarray, unit: str) -> tuple[int, list[str]]:
    """k as asked for, or what so many scans and patients allow; 0 with one patient only."""
    others = min(most_neighbours(groups) for groups in (patients, patients[comparable]) if len(groups))
    if not others:
        return 0, []
    # Trustworthiness is defined for k below half the scans.
    usable = min(k, others, (len(patients) - 1) // 2)
    return usable, [f"k {k}: {usable} here, for {len(patients)} {unit}s"] if usable < k else []


def checkpoints(run: Path, most: int) -> tuple[dict[str, str], list[str]]:
    """States of a run in the order of training: name → SOURCE, at most so many; and notes."""
    folder = run / "checkpoints"
    steps = {f"step {int(file.stem[5:]):,}": str(file) for file in sorted(folder.glob("step_*.pt"))}
    notes = []
    if not steps:
        notes.append("the run kept no checkpoints on its way (train with --run.keep-every N for more frames)")
        best = folder / "best_knn.pt"
        if best.is_file():
            steps = {f"step {official.read_checkpoint(best)['step']:,}, best k-NN": str(best)}
    if len(steps) > most - 2:
        names = list(steps)
        kept = np.unique(np.linspace(0, len(names) - 1, most - 2).round().astype(int)) if most > 2 else []
        steps = {names[i]: steps[names[i]] for i in kept}
    start = {"start": str(folder / "start")} if (folder / "start" / "config.json").is_file() else {}
    return {**start, **steps, "final": str(run)}, notes


def _over_training(
    source: Source, options: EmbeddingMapOptions, maps: Maps, place: Callable[..., np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, TrainingState], list[str]]:
    """Aligned maps of the run's checkpoints, the purity of the features of each, and notes.

    Each map starts from the one before and is then turned onto it. The order is that of training, so that no early map
    can inherit groups that the features form only later; AlignedUMAP, which pulls every map towards those before and
    after it, would let it.
    """
    states, notes = checkpoints(source.run, options.frames)
    frames, training, before, features_before = {}, {}, None, None
    for name, path in tqdm(states.items(), desc="checkpoints", disable=None, leave=False):
        model = open_model(open_source(path), name, image_size=options.image_size, heads=options.heads)
        features = maps.points.means(features_of(model, options, maps.data, maps.points.scans))
        if features_before is not None and np.array_equal(features, features_before):
            continue  # the last step is the final state
        points = place(features, options.seed, start=before)
        frames[name] = before = points if before is None else aligned(points, before)
        features_before = features
        pure = maps.bootstrap.mean(_purity(features, maps), Scale.PERCENT) if maps.bootstrap else None
        training[name] = TrainingState(model.weights, pure)
    return frames, training, notes


def _purity(points: np.ndarray, maps: Maps, metric: str = "cosine") -> np.ndarray:
    """Purity of the comparable scans, in per cent."""
    known = maps.comparable
    near = nearest(points[known], maps.patients[known], maps.k, metric)
    return 100 * purity(near, maps.labels[known])


def _measure(maps: Maps, options: EmbeddingMapOptions) -> tuple[dict[str, MapRow], dict[str, FeatureDifference]]:
    """Every row, and its paired difference to the model."""
    known, bootstrap = maps.comparable, maps.bootstrap
    rng = generator("scans ranked for trustworthiness", options.seed)
    ranked = np.sort(rng.permutation(len(known))[:MOST_RANKED])
    k_ranked = min(maps.k or options.k, (len(ranked) - 1) // 2)
    rows, differences, of_model = {}, {}, {}
    for name, features in tqdm(maps.features.items(), desc="measures", disable=None, leave=False):
        drawn, intervals = maps.by_row[name], dict.fromkeys(SCALES)
        if bootstrap:
            per_scan = {
                # Distances of all pairs in blocks of at most 1 GiB: 200 MB for 5,000 scans.
                "silhouette": silhouette_samples(features[known].astype(float), maps.labels[known], metric="cosine"),
                "purity": _purity(features, maps),
                "map_purity": _purity(drawn[0], maps, "euclidean"),
            }
            intervals = {measure: bootstrap.mean(values, SCALES[measure]) for measure, values in per_scan.items()}
            of_model = of_model or per_scan
            if name != MODEL:
                differences[f"{MODEL} − {name}"] = FeatureDifference(
                    bootstrap.mean(of_model["silhouette"] - per_scan["silhouette"], Scale.DIFFERENCE),
                    bootstrap.mean(of_model["purity"] - per_scan["purity"], Scale.DIFFERENCE),
                )
        trust = trustworthiness(features[ranked], drawn[0][ranked], n_neighbors=k_ranked, metric=options.metric)
        stability = agreement(drawn, k_ranked) if len(drawn) > 1 else None
        rows[name] = MapRow(**intervals, trustworthiness=float(trust), stability=stability)
    return rows, differences


def run(options: EmbeddingMapOptions) -> None:
    """Evaluate, print, and write figure, page, coordinates, projector export and JSON."""
    sources = open_sources(options.sources)
    result, maps = evaluate(sources, options)
    folder = private_folder(sources[0].results_folder("embedding_map", options.out))
    projector = projector_folder(sources[0], folder, options) if options.projector else None
    names = embedding_results.write_results(result, maps, folder, projector)
    print(embedding_results.report(result))
    print(written(*(folder / name for name in names), *([projector] if projector else [])))
    if projector:
        print(f"look at the projector with: tensorboard --logdir {projector.parent}")


def projector_folder(source: Source, folder: Path, options: EmbeddingMapOptions) -> Path:
    """Where the export for the projector goes: among the run's files of TensorBoard, which shows both then; into the
    folder of the results where there is no run, or the folder was given."""
    if source.run is None or options.out:
        return folder / "projector"
    return private_folder(source.run / "tensorboard") / folder.name.replace("embedding_map", "projector")
