"""The maps that are scored side by side: every method of every model, their ensembles, and maps without a network."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from evaluation.config import ATTENTION
from evaluation.inputs.masks import Mask
from evaluation.inputs.model import Model
from evaluation.maps.cost import peak_memory
from evaluation.maps.methods import MapSettings, candidates, enlarge, make_maps
from evaluation.scores.lesions import CONTROLS, control_maps
from evaluation.scores.ranks import ensemble, rank_normalise

MEAN_OF_HEADS, ENSEMBLE_OF_HEADS = "attention, mean of heads", "attention, ensemble of heads"
ENSEMBLE, EVERY_MODEL = "ensemble", "every model"


@dataclass(frozen=True)
class MapMaker:
    """A model and the maps that are made of it.

    Attributes:
        methods: that can be used on it; gaps: of the others, why not.
    """

    model: Model
    settings: MapSettings
    methods: tuple[str, ...]
    gaps: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model.name

    @property
    def kind(self) -> str:
        """Of the model."""
        return self.model.kind

    @property
    def is_control(self) -> bool:
        """Whether the model learnt nothing on OCT scans: the weights before training, or random ones."""
        return self.kind in ("starting weights", "random weights")


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


def make_raw(makers: Sequence[MapMaker], cases: Sequence[Case], measure: bool = False) -> RawMaps:
    """Maps of every usable method of every model.

    Args:
        measure: also the memory of one scan's map, by making it once more.
    """
    scans = [case.scan for case in cases]
    raw = RawMaps({}, {}, {})
    tasks = [(maker, method) for maker in makers for method in maker.methods]
    for maker, method in tqdm(tasks, desc="maps", unit="method", disable=None, leave=False):
        targets = [case.targets[maker.name] for case in cases]
        key, arguments = (maker.name, method), (maker.model, method)
        make_maps(*arguments, scans[:1], targets[:1], maker.settings)  # what a first call sets up is not its cost
        if measure:
            device = maker.model.device

            def one(arguments=arguments, target=targets[:1], settings=maker.settings):
                make_maps(*arguments, scans[:1], target, settings)

            raw.mb[key] = peak_memory(one, device) / 1e6
        start = time.perf_counter()
        raw.maps[key] = make_maps(*arguments, scans, targets, maker.settings, signed=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        raw.ms[key] = 1000 * (time.perf_counter() - start) / len(scans)
    return raw


def list_rows(makers: Sequence[MapMaker]) -> list[Row]:
    """Every row in the order of ``scan_rows``."""
    rows = []
    for maker in makers:
        rows += [Row(f"{maker.name}: {method}", "map", method, maker.name) for method in maker.methods]
        if ATTENTION in maker.methods and len(candidates(maker.model, ATTENTION, maker.settings)) > 1:
            rows.append(Row(f"{maker.name}: {MEAN_OF_HEADS}", "map", MEAN_OF_HEADS, maker.name))
            rows.append(Row(f"{maker.name}: {ENSEMBLE_OF_HEADS}", "ensemble", ENSEMBLE_OF_HEADS, maker.name))
        if len(maker.methods) > 1:
            rows.append(Row(f"{maker.name}: {ENSEMBLE}", "ensemble", ENSEMBLE, maker.name))
    if len(_trained(makers)) > 1:
        rows.append(Row(f"{EVERY_MODEL}: {ENSEMBLE}", "ensemble", ENSEMBLE))
    return rows + [Row(name, "reference", name) for name in CONTROLS]


def scan_rows(
    makers: Sequence[MapMaker], raw: RawMaps, heads: dict[str, int], cases: Sequence[Case]
) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
    """For each case its maps in the size of its mask, one a row of ``list_rows``.

    Args:
        heads: model → its attention head, a position in ``candidates``.

    Yields:
        The case, (R, h, w) float32 ≥ 0, and (R,) bool: the map is 0 everywhere, a miss.
    """
    trained = {maker.name for maker in _trained(makers)}
    for i, case in enumerate(tqdm(cases, desc="scores", unit="scan", disable=None, leave=False)):
        size, maps, empty, of_every_model = case.mask.lesion.shape, [], [], []

        def add(values: np.ndarray, maps=maps, empty=empty) -> np.ndarray:
            maps.append(values)
            empty.append(not values.max() > 0)
            return rank_normalise(values)

        for maker in makers:
            ranked = []
            for method in maker.methods:
                head = heads.get(maker.name, 0) if method == ATTENTION else 0
                candidates = raw.maps[maker.name, method][i].clip(0)
                ranked.append(add(enlarge(candidates[[head]], size)[0]))
            if ATTENTION in maker.methods and len(of_heads := raw.maps[maker.name, ATTENTION][i]) > 1:
                add(enlarge(of_heads.mean(axis=0, keepdims=True), size)[0])
                add(ensemble([rank_normalise(head_map) for head_map in enlarge(of_heads, size)]))
            if len(ranked) > 1:
                add(ensemble(ranked))
            if maker.name in trained:
                of_every_model += ranked
        if len(trained) > 1:
            add(ensemble(of_every_model))
        for control in control_maps(case.scan, case.mask.lesion, case.mask.retina):
            add(control.astype(np.float32))
        yield case, np.stack(maps), np.array(empty)


def _trained(makers: Sequence[MapMaker]) -> list[MapMaker]:
    """Models that learnt something: the ensemble over makers is of these."""
    return [maker for maker in makers if not maker.is_control]
