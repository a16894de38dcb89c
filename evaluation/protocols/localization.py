"""Does a map find the lesion? Every method of every model against lesion masks, beside maps without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dino_oct.errors import InputError
from dino_oct.files import private_folder
from dino_oct.limits import check_settings
from dino_oct.scan_data import ScanData
from dino_oct.scores.bootstrap import PatientBootstrap, Scale
from dino_oct.scores.text import missing_intervals, written
from dino_oct.scores.units import unit_means, units_to_report
from dino_oct.words import counted
from evaluation.config import ATTENTION, LocalizationOptions
from evaluation.inputs.masks import LesionMasks, read_boundaries
from evaluation.inputs.model import Model, open_classifiers, open_model
from evaluation.inputs.scans import open_data
from evaluation.inputs.selection import Chosen, chosen_scan, take_turns
from evaluation.inputs.sources import Source, open_sources, starting_weights
from evaluation.inputs.steps import StepCache
from evaluation.maps.leaderboard import SCALES, rate, resamples
from evaluation.maps.rows import Case, MapMaker
from evaluation.pages.maps import FOOT, page_of_case
from evaluation.pages.tiles import Page, write_pages
from evaluation.protocols.localization_text import Area, Localization, ModelFacts, UnitScores, report, statements
from evaluation.protocols.results import map_makers, map_notes, of_source

START = "start"
_MAP_SETTINGS = ("window", "stride", "fill", "attention_blocks")


@dataclass(frozen=True)
class Steps:
    """Where finished steps are kept, so that a stopped evaluation goes on.

    Attributes:
        of_models: name of a model → of what is its own; start: of the first one's starting weights; together: of what
            is of all models.
    """

    of_models: Mapping[str, StepCache] = field(default_factory=dict)
    start: StepCache = field(default_factory=StepCache)
    together: StepCache = field(default_factory=StepCache)


def with_start(makers: Sequence[MapMaker], steps: Steps) -> tuple[list[MapMaker], list[str]]:
    """With the first model's starting weights behind it for their attention, unless these are among the models; and
    why they are not there."""
    first, *others = makers = [replace(m, steps=steps.of_models.get(m.name, m.steps)) for m in makers]
    if not (ATTENTION in first.methods and first.model.kind == "self-supervised"):
        return makers, []
    start = starting_weights(first.model.source)
    if isinstance(start, str):
        return makers, [start]
    if start.name in {maker.model.source.name for maker in makers}:
        return makers, []
    name = START if START not in {maker.name for maker in makers} else start.short_name
    return [first, MapMaker(open_model(start, name), first.settings, (ATTENTION,), steps=steps.start), *others], []


def choose_cases(
    data: ScanData, masks: LesionMasks, positions: np.ndarray, n: int, makers: Sequence[MapMaker], target: str
) -> list[Case]:
    """``n`` of the scans at ``positions`` in turns through classes and patients (0: all), with the class to explain.

    Raises:
        InputError: a class that a model does not have.
    """
    if n:
        positions = np.array(take_turns(positions, data.index.labels, data.index.patients, n))
    _, boundaries = read_boundaries(data)
    cases = []
    for i in positions.tolist():
        scan, mask = chosen_scan(data, i), masks.read(i)
        targets = {maker.name: _target(maker.model, scan, target) for maker in makers}
        rows = boundaries.get(scan.file)
        if rows is not None and rows.shape[1] != mask.lesion.shape[1]:
            rows = None
        cases.append(Case(i, scan.file, scan.label or "", scan.patient, scan.scan, mask, rows, targets))
    return cases


def _target(model: Model, scan: Chosen, target: str) -> int:
    if not model.class_names:
        return 0  # its methods do not ask for a class
    if target == "predicted":
        return int(model.logits(scan.scan).argmax())
    if scan.label is None:
        raise InputError(f"{scan.file}: its class is not known; give --target predicted")
    return model.class_index(scan.label)


def evaluate(
    sources: Sequence[Source],
    options: LocalizationOptions,
    data: ScanData | None = None,
    models: Sequence[Model] = (),
    steps: Steps | None = None,
) -> tuple[Localization, list[Page]]:
    """Run the whole evaluation.

    Args:
        data, models: opened before, the models with a classifier; unset: as the options say.
        steps: unset: nothing is kept.

    Returns:
        The result, and pages to draw.

    Raises:
        InputError: no masks or no lesions in the validation or the test split, a method that no model has, a class that
            a model does not have, or as ``open_classifier``.
    """
    check_settings(options)
    if data is None:
        data = open_data(sources[0], options)
    masks = LesionMasks(data, options)
    # Before models are opened: a missing mask costs no time.
    with_lesion = {split: masks.with_lesion(split) for split in ("val", "test")}
    models = models or list(open_classifiers(sources, options, data).values())
    steps = steps or Steps()
    settings = {name: getattr(options, name) for name in _MAP_SETTINGS}
    makers, notes = with_start(map_makers(models, options, **settings), steps)
    test, val = (
        choose_cases(data, masks, with_lesion[split], n, makers, options.target)
        for split, n in (("test", options.n), ("val", -(-options.n // 2)))
    )
    names, _ = read_boundaries(data)
    leaderboard, raw, per_scan = rate(makers, val, test, options, names, steps.together)
    resampled = resamples(test, options)
    positions = {which: np.array([case.position for case in cases]) for which, cases in (("val", val), ("test", test))}
    if shared := len(np.intersect1d(*(data.index.patients[scans] for scans in positions.values()))):
        notes.insert(
            0, f"{counted(shared, 'patient')} with scans in validation and in test: the choice of heads saw them"
        )
    lesion, retina = np.array([(case.mask.lesion.mean(), case.mask.retina.mean()) for case in test]).T
    result = Localization(
        **vars(leaderboard),
        model=of_source(sources[0]),
        weights={maker.name: maker.model.weights for maker in makers},
        data={
            **data.summary(validation=positions["val"], test=positions["test"]),
            "scans": "those with a lesion",
            "masks": masks.folder,
            "retina": "estimated from the scan" if masks.estimates_retina else "from the mask",
        },
        models={
            maker.name: ModelFacts(
                kind=maker.model.kind,
                architecture=maker.model.timm_name,
                input_size=maker.model.input_size,
                attention_size=maker.settings.attention_size,
                target=maker.model.target,
                methods=maker.methods,
                gaps=maker.gaps,
            )
            for maker in makers
        },
        settings={
            **{name: getattr(options, name) for name in ("methods", "target", "score", "n", *_MAP_SETTINGS)},
            "chosen_on": "val",
            "bootstrap": options.intervals,
        },
        by_unit=by_units(
            {unit: keys[positions["test"]] for unit, keys in data.unit_keys().items()},
            data.index.patients[positions["test"]],
            dict(zip(leaderboard.rows, per_scan.T, strict=True)),
            options,
        ),
        area=Area(resampled.mean(lesion, Scale.SCORE), resampled.mean(retina, Scale.SCORE)),
        notes=[
            *resampled.notes(),
            *data.index.notes,
            *data.training_notes(positions["test"], [source.name for source in sources[1:]]),
            *notes,
            *map_notes(makers),
            *masks.notes(),
        ],
    )
    if masks.estimates_retina:
        result.notes.append("masks without retina values: the retina band is estimated from each scan's brightness")
    result.notes.extend(f"{maker.name}: {maker.model.kind}, a control" for maker in makers if maker.is_control)
    result.notes.extend(missing_intervals(result))
    result.statements.extend(statements(result))
    networks = [r for r, row in enumerate(result.rows.values()) if row.kind == "map"]
    median_first = order_by_median([case.label for case in test], per_scan[:, networks].mean(axis=1))
    pages = [
        page_of_case(test[i], makers, {key: maps[i] for key, maps in raw.maps.items()}, result.heads)
        for i in median_first[: options.pages]
    ]
    return result, pages


def by_units(
    keys: dict[str, np.ndarray], patients: np.ndarray, scores: dict[str, np.ndarray], options: LocalizationOptions
) -> dict[str, UnitScores]:
    """The ranking score of volumes, eyes and patients: means of those of their scans.

    Args:
        keys: as ``keys_of`` gives them, of the N test scans; patients: (N,); scores: row → (N,).
    """
    results = {}
    for unit in units_to_report(keys):
        first, means = unit_means(keys[unit], np.stack(list(scores.values()), axis=1))
        bootstrap = PatientBootstrap(patients[first], options.bootstrap, options.seed)
        rows = {row: bootstrap.mean(means[:, r], SCALES[options.score]) for r, row in enumerate(scores)}
        results[unit] = UnitScores(len(first), bootstrap.n_patients, rows)
    return results


def order_by_median(labels: Sequence[str], scores: np.ndarray) -> list[int]:
    """Positions of scans in turns through the classes, in each from the scan of median score (N,) outwards: neither the
    best nor the worst come first."""
    queues = []
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.array(labels) == label)
        ranks = np.argsort(np.argsort(scores[members], kind="stable"), kind="stable")
        queues.append(members[np.argsort(np.abs(ranks - (len(members) - 1) // 2), kind="stable")].tolist())
    return [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]


def run(options: LocalizationOptions) -> None:
    """Evaluate, print, and write ``localization.json``, pages, ``localization.npz`` and TensorBoard images."""
    sources = open_sources(options.sources)
    result, pages = evaluate(sources, options)
    folder = private_folder(sources[0].results_folder("localization", options.out))
    files = write_pages(result, pages, "test scan of median score of its class", FOOT, folder)
    print(report(result))
    print(written(*files))
