"""Volumes that the cases of a report are slices of: the slices that are shown, and what models say of the whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dino_oct.data.index import UNLABELLED
from dino_oct.scores.units import MEAN, RULES, UNITS, ByUnit, aggregate
from evaluation.report.answers import Answers
from evaluation.report.cases import Case, CaseAnswer, Pictures
from evaluation.report.steps import Setting

PICTURE_BYTES = 12_000_000  # of all volumes of a page together, as base64


@dataclass(frozen=True)
class Slice:
    """A slice of a volume.

    Attributes:
        number: as the table of scans counts it, else its place in the volume, from 0.
        from_fovea_um: distance in µm; None where it is not known. label: class; None without one.
        models: what each says, as of a case.
    """

    file: str
    number: int
    from_fovea_um: float | None
    label: int | None
    models: dict[str, CaseAnswer] = field(default_factory=dict)


@dataclass(frozen=True)
class Pooled:
    """What one model says of a unit ("volume" or "eye"): the class that its pooled probabilities call, how probable
    that is, by which rule and of how many test scans."""

    unit: str
    rule: str
    scans: int
    called: int
    probability: float


@dataclass(frozen=True)
class ShownVolume:
    """A volume of the case viewer.

    Attributes:
        eye, visit, volume: as the table of scans names them, "" where not known.
        total: slices that it has; slices: those that are shown, in their order.
        cases: case → its place among these slices.
        pooled: model → what it says of the volume, where its eye has others, and of the eye.
    """

    eye: str
    visit: str
    volume: str
    total: int
    slices: list[Slice]
    cases: dict[int, int]
    pooled: dict[str, list[Pooled]] = field(default_factory=dict)


@dataclass(frozen=True)
class Volumes:
    """The volumes of the case viewer; notes: what was left out."""

    shown: list[ShownVolume]
    notes: list[str]


def choose_volumes(cases: Sequence[Case], shared: Setting) -> tuple[Volumes | None, list[list[int]]]:
    """The first volumes that the cases belong to, None where they are of none, and the positions in the data of their
    shown slices."""
    index, options = shared.data.index, shared.options
    keys = shared.data.unit_keys()["volume"]
    of_cases = [int(shared.positions["test"][case.scan]) for case in cases]
    members = {key: _in_order(np.flatnonzero(keys == key), index.fact("slice")) for key in keys[of_cases] if key}
    members = {key: positions for key, positions in members.items() if len(positions) > 1}
    if not members:
        return None, []
    shown, slices = [], []
    for key, positions in list(members.items())[: options.volumes]:
        inside = {case: positions.index(i) for case, i in enumerate(of_cases) if keys[i] == key}
        kept = _spread(len(positions), options.slices, set(inside.values()))
        slices.append([positions[place] for place in kept])
        about = {name: str(index.fact(name)[positions[0]]) for name in ("eye", "visit", "volume")}
        shown.append(
            ShownVolume(
                **about,
                total=len(positions),
                slices=[_slice(positions[place], place, shared) for place in kept],
                cases={case: kept.index(place) for case, place in inside.items()},
            )
        )
    notes = []
    if len(shown) < len(members):
        notes.append(f"{len(shown)} of {len(members)} volumes of these cases are shown whole; --volumes shows more")
    if any(len(volume.slices) < volume.total for volume in shown):
        notes.append("not every slice of a volume is shown, but slices evenly spread; --slices shows more")
    return Volumes(shown, notes), slices


def with_answers(
    volumes: Volumes,
    slices: Sequence[Sequence[int]],
    answered: dict[int, tuple[Pictures, dict[str, CaseAnswer]]],
    answers: dict[str, Answers],
    by_unit: dict[str, ByUnit],
    shared: Setting,
) -> tuple[Volumes, list[list[Pictures]]]:
    """The volumes with what models say, and their pictures; as many as ``PICTURE_BYTES`` has room for.

    Args:
        volumes, slices: as ``choose_volumes`` gives them; answered: position → pictures and answers.
        by_unit: whose rules pool the scans of a unit.
    """
    shown, pictures, taken = [], [], 0
    for volume, positions in zip(volumes.shown, slices, strict=True):
        of_volume = [answered[i][0] for i in positions]
        taken += sum(map(_bytes, of_volume))
        if taken > PICTURE_BYTES:
            break
        told = [replace(s, models=answered[i][1]) for s, i in zip(volume.slices, positions, strict=True)]
        shown.append(replace(volume, slices=told, pooled=_pool(positions[0], answers, by_unit, shared)))
        pictures.append(of_volume)
    notes = list(volumes.notes)
    if left := len(volumes.shown) - len(shown):
        room = f"{PICTURE_BYTES / 1e6:.0f} MB"
        notes.append(
            f"no room on the page ({room}) for {left} more volume{'s' if left > 1 else ''}; --slices shows less"
        )
    return Volumes(shown, notes), pictures


def _in_order(positions: np.ndarray, numbers: np.ndarray) -> list[int]:
    """Positions of a volume's scans by the number of their slice, where it is known."""
    return sorted(positions.tolist(), key=lambda i: int(numbers[i] or 0))


def _spread(total: int, most: int, always: set[int]) -> list[int]:
    """Places of at most so many slices, evenly spread; each of ``always`` stands for the nearest other one."""
    kept = set(np.linspace(0, total - 1, min(most, total)).round().astype(int).tolist())
    for place in sorted(always - kept):
        if others := kept - always:
            kept.remove(min(others, key=lambda other: (abs(other - place), other)))
        kept.add(place)
    return sorted(kept)


def _slice(position: int, place: int, shared: Setting) -> Slice:
    index = shared.data.index
    label, number, away = (
        int(index.labels[position]),
        index.fact("slice")[position],
        index.fact("position_um")[position],
    )
    return Slice(
        file=index.files[position],
        number=int(number or place),
        from_fovea_um=abs(float(away)) if away else None,
        label=None if label == UNLABELLED else label,
    )


def _pool(
    position: int, answers: dict[str, Answers], by_unit: dict[str, ByUnit], shared: Setting
) -> dict[str, list[Pooled]]:
    """What every model says of the volume and the eye of a scan, by its classifier that the cases show.

    The rule is that of its table by unit; the mean where there is none, or where it is attention pooling, which reads
    features.
    """
    tests = shared.positions["test"]
    rows = {
        unit: np.flatnonzero(keys[tests] == keys[position])
        for unit, keys in shared.data.unit_keys().items()
        if unit != "patient" and keys[position]
    }
    if "eye" in rows and len(rows["eye"]) == len(rows["volume"]):
        del rows["volume"]
    return {
        key: [
            _pool_unit(unit, of_model.classifier[of_unit], _rule(of_model, unit, by_unit))
            for unit, of_unit in rows.items()
        ]
        for key, of_model in answers.items()
        if of_model.classifier is not None
    }


def _pool_unit(unit: str, probabilities: np.ndarray, rule: str) -> Pooled:
    (pooled,) = aggregate(probabilities, np.zeros(len(probabilities), dtype=int), RULES[rule])
    return Pooled(unit, rule, len(probabilities), int(pooled.argmax()), float(pooled.max()))


def _rule(answers: Answers, unit: str, by_unit: dict[str, ByUnit]) -> str:
    """Of the unit's table, or of the larger unit's that groups the scans alike."""
    protocol = "classifier" if answers.model.has_own else "linear"
    rows = (by_unit[name].rows for name in UNITS[UNITS.index(unit) :] if name in by_unit)
    row = next((of_unit[answers.model.key] for of_unit in rows if answers.model.key in of_unit), {})
    return row[protocol].rule if protocol in row and row[protocol].rule in RULES else MEAN


def _bytes(pictures: Pictures) -> int:
    maps = (png for of_model in pictures.maps.values() for png in of_model.values())
    return len(pictures.scan) + len(pictures.outline or "") + sum(map(len, maps))
