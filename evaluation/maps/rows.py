"""The maps that are scored side by side: every method of every model, their ensembles, and maps without a network."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation.config import ATTENTION
from evaluation.inputs.masks import Mask
from evaluation.inputs.model import Model
from evaluation.inputs.steps import Arrays, StepCache, digest
from evaluation.maps.cost import peak_memory
from evaluation.maps.methods import MapSettings, candidates, enlarge, make_maps
from evaluation.scores.lesions import CONTROLS, control_maps
from evaluation.scores.ranks import ensemble, rank_normalise

MEAN_OF_HEADS, ENSEMBLE_OF_HEADS = "attention, mean of heads", "attention, ensemble of heads"
ENSEMBLE, EVERY_MODEL = "ensemble", "every model"
_PART = 16  # scans whose maps are kept as one step


@dataclass(frozen=True)
class MapMaker:
    """A model and the maps that are made of it.

    Attributes:
        methods: that can be used on it; gaps: of the others, why not.
        steps: keeps what is of this model alone.
    """

    model: Model
    settings: MapSettings
    methods: tuple[str, ...]
    gaps: dict[str, str] = field(default_factory=dict)
    steps: StepCache = field(default_factory=StepCache)

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
    raw = RawMaps({}, {}, {})
    tasks = [(maker, method) for maker in makers for method in maker.methods]
    with tqdm(total=len(tasks) * len(cases), desc="maps", unit="map", disable=None, leave=False) as bar:
        for maker, method in tasks:
            bar.set_postfix_str(f"{maker.name}, {method}")
            key = maker.name, method
            raw.maps[key], raw.ms[key] = _maps_and_ms(maker, method, cases, bar)
            if measure:
                raw.mb[key] = _megabytes(maker, method, cases[:1])
    return raw


def _maps_and_ms(maker: MapMaker, method: str, cases: Sequence[Case], bar: tqdm) -> tuple[list[np.ndarray], float]:
    """Signed maps of all cases, some of them from disk, and milliseconds a scan when they were made."""
    warm_up = cache(lambda: _make(maker, method, cases[:1]))  # what a first call sets up is not its cost

    def timed(part: Sequence[Case]) -> Arrays:
        warm_up()
        start = time.perf_counter()
        maps = _make(maker, method, part)
        seconds = np.array(time.perf_counter() - start)
        return {"seconds": seconds, **{f"map{i}": values for i, values in enumerate(maps)}}

    maps, seconds = [], 0.0
    for start in range(0, len(cases), _PART):
        part = cases[start : start + _PART]
        made = maker.steps.arrays(f"ranked maps {method}", partial(timed, part), **about_maps(maker, method, part))
        maps += [made[f"map{i}"] for i in range(len(part))]
        seconds += float(made["seconds"])
        bar.update(len(part))
    return maps, 1000 * seconds / len(cases)


def _megabytes(maker: MapMaker, method: str, cases: Sequence[Case]) -> float:
    """Peak memory of making the maps of some cases."""

    def measured() -> Arrays:
        return {"mb": np.array(peak_memory(lambda: _make(maker, method, cases), maker.model.device) / 1e6)}

    return float(maker.steps.arrays(f"memory of {method}", measured, **about_maps(maker, method, cases))["mb"])


def _make(maker: MapMaker, method: str, cases: Sequence[Case]) -> list[np.ndarray]:
    scans, targets = [case.scan for case in cases], [case.targets[maker.name] for case in cases]
    maps = make_maps(maker.model, method, scans, targets, maker.settings, signed=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return maps


def about_maps(maker: MapMaker, method: str, cases: Sequence[Case]) -> dict[str, Any]:
    """All that maps of some cases depend on, beside the model."""
    return {
        "scans": digest(*(case.scan for case in cases)),
        "targets": [case.targets[maker.name] for case in cases],
        "method": method,
        "settings": asdict(maker.settings),
    }


def list_rows(makers: Sequence[MapMaker]) -> list[Row]:
    """Every row in the order of ``maps_of_rows``."""
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


def maps_of_rows(
    makers: Sequence[MapMaker], raw: RawMaps, heads: dict[str, int], cases: Sequence[Case], i: int
) -> np.ndarray:
    """The maps of case ``i`` in the size of its mask, one a row of ``list_rows``: (R, h, w) float32 ≥ 0.

    Args:
        raw: of all cases; heads: model → its attention head, a position in ``candidates``.
    """
    case, rows, trained = cases[i], list_rows(makers), [maker.name for maker in _trained(makers)]
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
    return maps


def _trained(makers: Sequence[MapMaker]) -> list[MapMaker]:
    """Models that learnt something: the ensemble over makers is of these."""
    return [maker for maker in makers if not maker.is_control]
