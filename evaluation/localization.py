"""Does a map find the lesion? Every method of every model scored against lesion masks, beside maps without a network.

    python evaluation/localization.py                                     the newest run, on its phantoms
    python evaluation/localization.py --model RUN --beside RUN2 RUN3      several models on the same scans
    python evaluation/localization.py --model RUN --data DIR --masks DIR  scans with masks of their own
    python evaluation/localization.py --methods attention relevance lrp   other methods; see --help

A map on a lesion means little alone: the retina is bright and lesions lie in it. So each number stands beside maps that
need no network and beside the weights before training. Attention heads and thresholds are chosen on validation
patients; scores are of test patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from dino_oct.bootstrap import PatientBootstrap, Scale
from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.limits import Items, MaskValues, Name, PositiveShare, Range, Side, check_settings
from evaluation.chosen_scans import Chosen, take_turns
from evaluation.class_target import Classifier, ClassTargetOptions
from evaluation.explanations import Page, open_each, write_pages
from evaluation.lesion_masks import LesionMasks, read_boundaries
from evaluation.localization_report import report, statements
from evaluation.map_league import ALL_SCORES, rate
from evaluation.map_methods import MapSettings, MethodName, usable
from evaluation.map_pages import FOOT, page_of_case
from evaluation.map_rows import ATTENTION, Case, MapModel
from evaluation.occlusion_maps import Fill
from evaluation.relevance_maps import PATENT_NOTICE
from evaluation.reports import make_folder, missing_intervals
from evaluation.runs import Frozen, Source, default_device, open_source, starting_weights
from evaluation.scan_data import ScanData, open_data
from supervised.zoo import describe

START = "start"
METHODS_BY_DEFAULT = ("attention", "relevance", "gradcam", "occlusion")
UNITS = (
    "means over the same scans with a lesion for every map; a map with nothing positive is a miss and scores 0, one "
    "with nothing on the retina scores 0 in lesion_over_retina; shares and IoU 0 to 1; enrichment and "
    "lesion_over_retina 1 if uniform; deletion: "
    "low is good, insertion: high is good, probability of the class 0 to 1; ms: a scan; mb: peak memory of one scan"
)


SomeScans = Annotated[int, Range(0, 100_000)]


@dataclass
class Options(ClassTargetOptions):
    """Maps of every method and model scored against lesion masks, with patient-bootstrap intervals."""

    beside: tuple[Name, ...] = ()
    """Further SOURCEs on the same scans."""
    methods: Annotated[tuple[MethodName, ...], Items(1, distinct=True)] = METHODS_BY_DEFAULT
    """Methods to score; those that a model cannot have leave a gap with the reason. lrp is patented."""
    masks: Name | None = None
    """Folder of masks, DIR/SPLIT/CLASS/NAME.png in the size of the scans; unset: masks/ beside the splits, as phantoms
    have it."""
    lesion_values: MaskValues = ()
    """Values of the lesion in a mask, any of several labels; unset: 255 for phantoms, else all but 0 and
    --retina-values."""
    retina_values: MaskValues = ()
    """Values of the retina outside lesions; unset: 128 for phantoms, else the retina is estimated from the scan."""
    target: Literal["true", "predicted"] = "true"
    """The class to explain."""
    score: Literal[ALL_SCORES] = "auprc"
    """Ranks the rows and chooses attention heads (on validation patients)."""
    n: SomeScans = 144
    """Test scans with a lesion, in turns through classes and patients, and half as many validation scans; 0: all."""
    attention_size: Side | None = None
    """Short side in pixels of the scans that attention is computed on; unset: a pretraining's monitor.attention_size,
    else what the classifier sees."""
    attention_blocks: Literal["last", "all"] = "last"
    """Whose heads may be chosen."""
    window: PositiveShare = 0.2
    """Occlusion: rows and columns of the window as a share of the image's."""
    stride: PositiveShare = 0.5
    """Occlusion: step of the window as a share of the window."""
    fill: Fill = "neighbours"
    """Occlusion: what hides, as in evaluation/occlusion.py."""
    faithfulness: SomeScans = 16
    """Test scans for deletion and insertion; 0: none."""
    sanity: SomeScans = 12
    """Test scans for the weight randomisation test; 0: none."""
    pages: SomeScans = 3
    """Pages of maps to draw: scans of median score, one for each class in turn; 0: none."""


def map_models(
    sources: Sequence[Source], classifiers: dict[str, Classifier], options: Options
) -> tuple[list[MapModel], list[str]]:
    """The models whose maps are scored, and notes.

    The first source's starting weights come along for their attention, unless they are among the sources.

    Raises:
        InputError: a method is asked for that no model has.
    """
    models, notes = [], []
    for source, (name, classifier) in zip(sources, classifiers.items(), strict=True):
        able, gaps = usable(classifier, options.methods)
        models.append(MapModel(name, source.kind, classifier, _settings(source, options), tuple(able), gaps))
    if not any(model.methods for model in models):
        raise InputError(next(iter(models[0].gaps.values())))
    first = sources[0]
    given = {source.name for source in sources}
    if ATTENTION in models[0].methods and first.kind == "self-supervised":
        start = starting_weights(first, default_device())
        if isinstance(start, str):
            notes.append(start)
        elif start.weights["source"] not in given:
            alone = _without_classifier(start)
            models.insert(1, MapModel(START, "starting weights", alone, _settings(first, options), (ATTENTION,)))
    return models, notes


def _without_classifier(network: Frozen) -> Classifier:
    zoo = describe(network.backbone, network.weights["source"])
    zoo.model.eval()
    return Classifier(**vars(zoo), weights=network.weights)


def _settings(source: Source, options: Options) -> MapSettings:
    side = options.attention_size or source.attention_size
    return MapSettings(side, options.attention_blocks, options.window, options.stride, options.fill)


def choose_cases(
    data: ScanData, masks: LesionMasks, positions: np.ndarray, n: int, models: Sequence[MapModel], target: str
) -> list[Case]:
    """``n`` of the scans at ``positions`` in turns through classes and patients (0: all), with the class to explain.

    Raises:
        InputError: a class that a model does not have.
    """
    index = data.index
    if n:
        positions = np.array(take_turns(positions, index.labels, index.patients, n))
    names, boundaries = read_boundaries(data)
    cases = []
    for i in positions.tolist():
        label = index.class_names[index.labels[i]] if index.labels[i] >= 0 else ""
        chosen = Chosen(index.files[i], str(index.patients[i]), label or None, np.asarray(data.scans[i]))
        targets = {model.name: _target(model.classifier, chosen, target) for model in models}
        mask = masks.read(i)
        rows = boundaries.get(index.files[i]) if names else None
        if rows is not None and rows.shape[1] != mask.lesion.shape[1]:
            rows = None
        cases.append(Case(i, index.files[i], label, str(index.patients[i]), chosen.scan, mask, rows, targets))
    return cases


def _target(model: Classifier, chosen: Chosen, target: str) -> int:
    if not model.class_names:
        return 0  # its methods do not ask for a class
    if target == "predicted":
        return int(model.logits(chosen.scan).argmax())
    if chosen.label is None:
        raise InputError(f"{chosen.file}: its class is not known; give --target predicted")
    return model.class_index(chosen.label)


def evaluate(
    sources: Sequence[Source],
    options: Options,
    data: ScanData | None = None,
    classifiers: dict[str, Classifier] | None = None,
) -> tuple[dict[str, Any], list[Page]]:
    """Run the whole evaluation.

    Args:
        data, classifiers: opened before, by name; unset: as the options say.

    Returns:
        What the JSON file holds (intervals as ``Interval``), and pages to draw.

    Raises:
        InputError: no masks or no lesions in the validation or the test split, a method that no model has, a class that
            a model does not have, or as ``open_classifier``.
    """
    check_settings(options)
    if data is None:
        data = open_data(sources[0], options.data, options.dataset, options.phantom, print)
    masks = LesionMasks(data, options.masks, options.lesion_values, options.retina_values)
    # Before models are opened: a missing mask costs no time.
    with_lesion = {split: masks.with_lesion(split) for split in ("val", "test")}
    if classifiers is None:
        classifiers = open_each(sources, options, data)
    models, notes = map_models(sources, classifiers, options)
    test, val = (
        choose_cases(data, masks, with_lesion[split], n, models, options.target)
        for split, n in (("test", options.n), ("val", -(-options.n // 2)))
    )
    names, _ = read_boundaries(data)
    rated, raw, per_scan = rate(
        models,
        val,
        test,
        options.score,
        layer_names=names,
        faithfulness=options.faithfulness,
        sanity=options.sanity,
        bootstrap=options.bootstrap,
        seed=options.seed,
    )
    resampled = PatientBootstrap(np.array([case.patient for case in test]), options.bootstrap, options.seed)
    positions = {which: np.array([case.position for case in cases]) for which, cases in (("val", val), ("test", test))}
    first = sources[0]
    result = {
        "evaluation": "localization",
        "model": {"source": first.name, "run": first.run, "chosen": first.chosen},
        "weights": {model.name: model.classifier.weights for model in models},
        "data": {
            **data.describe(validation=positions["val"], test=positions["test"]),
            "scans": "those with a lesion",
            "masks": masks.folder,
            "retina": "estimated from the scan" if masks.estimates_retina else "from the mask",
        },
        "models": {
            model.name: {
                "kind": model.kind,
                "architecture": model.classifier.timm_name,
                "input_size": model.classifier.input_size,
                "attention_size": model.settings.attention_size,
                "target": model.classifier.target if model.classifier.class_names else None,
                "methods": model.methods,
                "gaps": model.gaps,
            }
            for model in models
        },
        "settings": {
            **{
                name: getattr(options, name)
                for name in ("methods", "target", "score", "n", "window", "stride", "fill", "attention_blocks")
            },
            "chosen_on": "val",
            "bootstrap": {"unit": "patient", "resamples": options.bootstrap, "seed": options.seed},
        },
        "units": UNITS,
        "area": {
            "lesion": resampled.mean(np.array([case.mask.lesion.mean() for case in test]), Scale.SCORE),
            "retina": resampled.mean(np.array([case.mask.retina.mean() for case in test]), Scale.SCORE),
        },
        **rated,
        "notes": [*resampled.notes(), *_patient_notes(data, positions, sources), *notes, *_method_notes(models, masks)],
    }
    result["notes"] += missing_intervals(result)
    result["statements"] = statements(result)
    ours = [r for r, row in enumerate(result["rows"].values()) if row["kind"] == "map"]
    median_first = order_by_median([case.label for case in test], per_scan[:, ours].mean(axis=1))
    pages = [
        page_of_case(test[i], models, {key: maps[i] for key, maps in raw.maps.items()}, result)
        for i in median_first[: options.pages]
    ]
    return result, pages


def _patient_notes(data: ScanData, positions: dict[str, np.ndarray], sources: Sequence[Source]) -> list[str]:
    notes = [*data.index.notes, *data.training_notes(positions["test"], [source.name for source in sources[1:]])]
    patients = {which: set(data.index.patients[found].tolist()) for which, found in positions.items()}
    if shared := len(patients["val"] & patients["test"]):
        notes.append(f"{shared} patients have scans in validation and in test: the choice of heads saw them")
    return notes


def _method_notes(models: Sequence[MapModel], masks: LesionMasks) -> list[str]:
    notes = [f"{model.name} has no {method}: {reason}" for model in models for method, reason in model.gaps.items()]
    if any("lrp" in model.methods for model in models):
        notes.append(PATENT_NOTICE)
    notes += masks.notes()
    if masks.estimates_retina:
        notes.append("masks without retina values: the retina band is estimated from each scan's brightness")
    notes += [
        f"{model.name}: {model.kind}, a control"
        for model in models
        if model.kind in ("starting weights", "random weights")
    ]
    return notes


def order_by_median(labels: Sequence[str], scores: np.ndarray) -> list[int]:
    """Positions of scans in turns through the classes, in each from the scan of median score (N,) outwards: neither the
    best nor the worst come first."""
    queues = []
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.array(labels) == label)
        ranks = np.argsort(np.argsort(scores[members], kind="stable"), kind="stable")
        queues.append(members[np.argsort(np.abs(ranks - (len(members) - 1) // 2), kind="stable")].tolist())
    return [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]


def main(options: Options) -> None:
    """Evaluate, print, and write ``localization.json``, pages, ``localization.npz`` and TensorBoard images."""
    sources = [open_source(options.model), *(open_source(name) for name in options.beside)]
    result, pages = evaluate(sources, options)
    folder = make_folder(sources[0].results_folder("localization", options.out))
    write_pages(result, pages, "test scan of median score of its class", FOOT, folder)
    print(report(result))
    count = f"{len(pages)} page{'' if len(pages) == 1 else 's'}"
    print(f"written: {count}, localization.npz, localization.json and tensorboard/ in {folder}")


if __name__ == "__main__":
    run_command(main, Options)
