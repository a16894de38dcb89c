"""The maps that are scored side by side: every method of every model, their ensembles, and maps without a network."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from evaluation.class_target import Classifier
from evaluation.ensembles import ensemble, rank_normalise
from evaluation.lesion_masks import Mask
from evaluation.lesion_scores import CONTROLS, control_maps
from evaluation.map_cost import peak_memory
from evaluation.map_methods import MapSettings, candidates, enlarge, make_maps

ATTENTION = "attention"
MEAN_OF_HEADS, ENSEMBLE_OF_HEADS = "attention, mean of heads", "attention, ensemble of heads"
ENSEMBLE, EVERY_MODEL = "ensemble", "every model"


@dataclass(frozen=True)
class MapModel:
    """A model whose maps are scored.

    Attributes:
        name: short and unique; kind: as ``Source.kind``.
        methods: that can be used on it; gaps: of the others, why not.
    """

    name: str
    kind: str
    classifier: Classifier
    settings: MapSettings
    methods: tuple[str, ...]
    gaps: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One map of each scan: a model's method (``map``), a mean of others (``ensemble``), or no network
    (``reference``)."""

    name: str
    kind: str
    method: str
    model: str | None = None


@dataclass(frozen=True)
class Case:
    """A scan (H, W) uint8 with its mask (h, w), layer boundaries (L, w) or None, and the target of each model."""

    position: int
    file: str
    label: str
    patient: str
    scan: np.ndarray
    mask: Mask
    boundaries: np.ndarray | None
    targets: dict[str, int]


@dataclass(frozen=True)
class RawMaps:
    """Maps as the methods give them, and what they cost.

    Attributes:
        maps: (model, method) → one (M, rows, columns) array a case, signed where the method is.
        ms: (model, method) → milliseconds a scan; mb: peak memory in megabytes of one scan.
    """

    maps: dict[tuple[str, str], list[np.ndarray]]
    ms: dict[tuple[str, str], float]
    mb: dict[tuple[str, str], float]


def make_raw(models: Sequence[MapModel], cases: Sequence[Case], measure: bool = False) -> RawMaps:
    """Maps of every usable method of every model.

    Args:
        measure: also the memory of one scan's map, by making it once more.
    """
    scans = [case.scan for case in cases]
    raw = RawMaps({}, {}, {})
    tasks = [(model, method) for model in models for method in model.methods]
    for model, method in tqdm(tasks, desc="maps", unit="method", disable=None, leave=False):
        targets = [case.targets[model.name] for case in cases]
        key, arguments = (model.name, method), (model.classifier, method)
        make_maps(*arguments, scans[:1], targets[:1], model.settings)  # what a first call sets up is not its cost
        if measure:
            device = next(model.classifier.model.parameters()).device

            def one(arguments=arguments, target=targets[:1], settings=model.settings):
                make_maps(*arguments, scans[:1], target, settings)

            raw.mb[key] = peak_memory(one, device) / 1e6
        start = time.perf_counter()
        raw.maps[key] = make_maps(*arguments, scans, targets, model.settings, signed=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        raw.ms[key] = 1000 * (time.perf_counter() - start) / len(scans)
    return raw


def list_rows(models: Sequence[MapModel]) -> list[Row]:
    """Every row in the order of ``scan_rows``."""
    rows = []
    for model in models:
        rows += [Row(f"{model.name}: {method}", "map", method, model.name) for method in model.methods]
        if ATTENTION in model.methods and len(candidates(model.classifier, ATTENTION, model.settings)) > 1:
            rows.append(Row(f"{model.name}: {MEAN_OF_HEADS}", "map", MEAN_OF_HEADS, model.name))
            rows.append(Row(f"{model.name}: {ENSEMBLE_OF_HEADS}", "ensemble", ENSEMBLE_OF_HEADS, model.name))
        if len(model.methods) > 1:
            rows.append(Row(f"{model.name}: {ENSEMBLE}", "ensemble", ENSEMBLE, model.name))
    if len(_trained(models)) > 1:
        rows.append(Row(f"{EVERY_MODEL}: {ENSEMBLE}", "ensemble", ENSEMBLE))
    return rows + [Row(name, "reference", name) for name in CONTROLS]


def scan_rows(
    models: Sequence[MapModel], raw: RawMaps, chosen: dict[str, int], cases: Sequence[Case]
) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
    """For each case its maps in the size of its mask, one a row of ``list_rows``.

    Args:
        chosen: model → its attention head, a position in ``candidates``.

    Yields:
        The case, (R, h, w) float32 ≥ 0, and (R,) bool: the map is 0 everywhere, a miss.
    """
    trained = {model.name for model in _trained(models)}
    for i, case in enumerate(tqdm(cases, desc="scores", unit="scan", disable=None, leave=False)):
        size, maps, empty, of_every_model = case.mask.lesion.shape, [], [], []

        def add(values: np.ndarray, maps=maps, empty=empty) -> np.ndarray:
            maps.append(values)
            empty.append(not values.max() > 0)
            return rank_normalise(values)

        for model in models:
            ranked = []
            for method in model.methods:
                head = chosen.get(model.name, 0) if method == ATTENTION else 0
                found = raw.maps[model.name, method][i].clip(0)
                ranked.append(add(enlarge(found[[head]], size)[0]))
            if ATTENTION in model.methods and len(heads := raw.maps[model.name, ATTENTION][i]) > 1:
                add(enlarge(heads.mean(axis=0, keepdims=True), size)[0])
                add(ensemble([rank_normalise(one) for one in enlarge(heads, size)]))
            if len(ranked) > 1:
                add(ensemble(ranked))
            if model.name in trained:
                of_every_model += ranked
        if len(trained) > 1:
            add(ensemble(of_every_model))
        for control in control_maps(case.scan, case.mask.lesion, case.mask.retina):
            add(control.astype(np.float32))
        yield case, np.stack(maps), np.array(empty)


def _trained(models: Sequence[MapModel]) -> list[MapModel]:
    """Models that learnt something: the ensemble over models is of these."""
    return [model for model in models if model.kind not in ("starting weights", "random weights")]
