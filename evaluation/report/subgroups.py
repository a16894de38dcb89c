"""How often the report's two models are right in parts of the test: by class, eye, visit, device, group and age."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dino_oct.scores.bootstrap import FEW_PATIENTS, Interval, Scale
from evaluation.report.answers import Answers
from evaluation.report.steps import Setting
from evaluation.report.table import Intervals

MOST = 12  # parts of one kind; names of more say little
_FACTS = ("eye", "visit", "device", "group")
_AGES = (50, 65, 80)
_EYES = {"R": "right", "L": "left"}


@dataclass(frozen=True)
class Subgroup:
    """Some test scans.

    Attributes:
        is_small: few patients, so that chance has a large part.
        accuracy: model → share that it names right, in per cent.
    """

    name: str
    scans: int
    patients: int
    is_small: bool
    accuracy: dict[str, Interval]


@dataclass(frozen=True)
class Subgroups:
    """Kind ("class", "eye", …) → its parts; notes: what was left out."""

    kinds: dict[str, list[Subgroup]]
    notes: list[str]


def subgroups(answers: dict[str, Answers], models: Sequence[str], intervals: Intervals, shared: Setting) -> Subgroups:
    """Of the given models, by what they are judged by. Scans of which a fact is not known are left out of its parts."""
    labels, bootstrap = intervals.queries.labels, intervals.bootstrap
    is_right = {key: answers[key].by_protocol[answers[key].judged_by].argmax(axis=1) == labels for key in models}
    kinds: dict[str, list[Subgroup]] = {}
    notes = []
    for kind, values in _kinds(shared):
        names = [name for name in dict.fromkeys(np.sort(values).tolist()) if name]
        if len(names) > MOST:
            notes.append(f"{kind}: {len(names)} different ones, too many to show")
        elif len(names) > 1:
            kinds[kind] = [
                Subgroup(
                    name=_EYES.get(name, name) if kind == "eye" else name,
                    scans=int(members.sum()),
                    patients=(patients := bootstrap.patients_of(members)),
                    is_small=patients < FEW_PATIENTS,
                    accuracy={
                        key: bootstrap.mean(np.where(members, 100.0 * right, np.nan), Scale.PERCENT)
                        for key, right in is_right.items()
                    },
                )
                for name in names
                for members in [values == name]
            ]
    return Subgroups(kinds, notes)


def _kinds(shared: Setting) -> Iterator[tuple[str, np.ndarray]]:
    """Kind → (M,) part of each test scan, "" where it is not known."""
    index, tests = shared.data.index, shared.positions["test"]
    yield "class", np.array(shared.class_names)[index.labels[tests]]
    for name in _FACTS:
        yield name, index.fact(name)[tests]
    if (ages := index.targets.get("age")) is not None:
        ends = (0, *_AGES)
        words = [f"{low} to {high - 1}" for low, high in zip(ends, _AGES, strict=False)] + [f"from {_AGES[-1]}"]
        known = np.isfinite(ages[tests])
        places = np.searchsorted(_AGES, np.where(known, ages[tests], 0), side="right")
        yield "age", np.where(known, np.array(words)[places], "")
