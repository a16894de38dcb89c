"""The maps that are scored side by side: every method of every model, their ensembles, and maps without a network."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

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
    def is_control(self) -> bool:
        """Whether the model learnt nothing on OCT scans: the weights before training, or random ones."""
        return self.model.kind in ("starting weights", "random weights")


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

    def of(self, positions: Sequence[int]) -> "RawMaps":
        """The maps of some cases."""
        some = {key: [maps[i] for i in positions] for key, maps in self.maps.items()}
        return RawMaps(some, self.ms, self.mb)


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
        key, make = (maker.name, method), partial(make_maps, maker.model, method, settings=maker.settings)
        make(scans[:1], targets[:1])  # what a first call sets up is not its cost
        if measure:
            raw.mb[key] = peak_memory(partial(make, scans[:1], targets[:1]), maker.model.device) / 1e6
        start = time.perf_counter()
        raw.maps[key] = make(scans, targets, signed=True)
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
    rows, trained = list_rows(makers), [maker.name for maker in _trained(makers)]
    for i, case in enumerate(tqdm(cases, desc="scores", unit="scan", disable=None, leave=False)):
        size, controls = case.mask.lesion.shape, control_maps(case.scan, case.mask.lesion, case.mask.retina)
        ranked: dict[str, list[np.ndarray]] = {maker.name: [] for maker in makers}
        maps = np.empty((len(rows), *size), np.float32)
        for r, row in enumerate(rows):
            if row.kind == "reference":
                maps[r] = controls[CONTROLS.index(row.method)]
            elif row.method == ENSEMBLE:
                names = [row.model] if row.model else trained
                maps[r] = ensemble([values for name in names for values in ranked[name]])
            elif row.method == MEAN_OF_HEADS:
                maps[r] = enlarge(raw.maps[row.model, ATTENTION][i].mean(axis=0, keepdims=True), size)[0]
            elif row.method == ENSEMBLE_OF_HEADS:
                maps[r] = ensemble(list(map(rank_normalise, enlarge(raw.maps[row.model, ATTENTION][i], size))))
            else:
                head = heads.get(row.model, 0) if row.method == ATTENTION else 0
                maps[r] = enlarge(raw.maps[row.model, row.method][i][[head]].clip(0), size)[0]
                ranked[row.model].append(rank_normalise(maps[r]))
        yield case, maps, ~(maps.max(axis=(1, 2)) > 0)


def _trained(makers: Sequence[MapMaker]) -> list[MapMaker]:
    """Models that learnt something: the ensemble over makers is of these."""
    return [maker for maker in makers if not maker.is_control]
