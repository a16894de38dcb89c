"""What each disease of a phantom is made of: bodies whose form and place are drawn once.

Sizes are shares of the largest that a severity allows, so the same bodies grow with it. In a single scan every body is
cut through its middle. In a volume it also has a place across the slices, and each slice cuts its own share of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from dino_oct.data.phantom_anatomy import Normals

_RIPPLES = 34


@dataclass(frozen=True)
class Place:
    """Where a body lies across the slices of a volume.

    Attributes:
        z: of its centre. radius: half its extent at severity 1. Both in mm.
        onset: severity from which it is there.
    """

    z: float = 0.0
    radius: float = np.inf
    onset: float = 0.0

    def share(self, z: float, severity: float) -> float:
        """Height of the cut at `z`, 0 to 1 of the height in the middle: a parabola, 0 outside."""
        if severity < self.onset:
            return 0.0
        return max(0.0, 1.0 - ((z - self.z) / (self.radius * (0.6 + 0.4 * severity))) ** 2)


@dataclass(frozen=True)
class Body:
    """A body, as a scan cuts it.

    Attributes:
        share: of the height in its middle, above 0 to 1; widths shrink with the root of it.
    """

    place: Place = field(default=Place(), kw_only=True)
    share: float = field(default=1.0, kw_only=True)

    @property
    def width_share(self) -> float:
        """Share of the width in its middle."""
        return self.share**0.5


_SomeBody = TypeVar("_SomeBody", bound=Body)
_Scattered = TypeVar("_Scattered", "Druse", "Cyst")


@dataclass(frozen=True)
class Druse(Body):
    """A mound on Bruch's membrane; `offset` from the fovea in image widths, `power` of its profile."""

    offset: float
    breadth: float
    tallness: float
    power: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Druse":
        """Draw a mound that is cut through its middle."""
        return cls(
            offset=rng.normal(0.0, 0.2),
            breadth=rng.uniform(0.1, 1.0),
            tallness=rng.uniform(0.1, 1.0),
            power=rng.uniform(2.0, 4.0),
        )


@dataclass(frozen=True)
class Drusen:
    """All drusen of a scan or of an eye; `content` is their brightness beside the usual."""

    drusen: tuple[Druse, ...]
    content: float

    @classmethod
    def draw(cls, severity: float, rng: np.random.Generator) -> "Drusen":
        """Draw those of a single scan."""
        count = 1 + rng.poisson(1.0 + 7.0 * severity)
        return cls(tuple(Druse.draw(rng) for _ in range(count)), content=rng.uniform(-8.0, 22.0))

    @classmethod
    def draw_in_eye(cls, slices_at: np.ndarray, rng: np.random.Generator) -> "Drusen":
        """Draw those of an eye; see `DISEASES`."""
        first = replace(Druse.draw(rng), place=Place(_nearest(slices_at, rng.normal(0.0, 0.6)), rng.uniform(0.6, 1.0)))
        # 2.5: a slice through the fovea cuts about 2 of 5.
        others = _scatter(Druse, rng.poisson(2.5 * 8.0), rng, z=0.0, spread=1.2, radii=(0.4, 1.0), onset=(1.0, 7.0))
        return cls((first, *others), content=rng.uniform(-8.0, 22.0))

    def cut(self, z: float, severity: float, surface: Normals) -> "Drusen":
        """Those that a slice at `z` mm meets."""
        return replace(self, drusen=_cut(self.drusen, z, severity))

    def load(self, z: float, severity: float) -> float:
        """How much of them a slice at `z` mm shows: in proportion to the area, without unit."""
        return sum(druse.breadth * druse.tallness * druse.place.share(z, severity) ** 1.5 for druse in self.drusen)

    @property
    def peak(self) -> float:
        """The largest share of a druse that is cut."""
        return max(druse.share for druse in self.drusen)


@dataclass(frozen=True)
class Exudate(Body):
    """A bright spot; `offset` from the oedema's centre in its spreads, `drop` from the OPL in image heights."""

    offset: float
    drop: float
    size: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Exudate":
        """Draw a spot that is cut through its middle."""
        return cls(offset=rng.normal(0.0, 1.0), drop=rng.normal(0.0, 0.010), size=rng.uniform(0.004, 0.009))


@dataclass(frozen=True)
class Cyst(Body):
    """A dark hole; `offset` from the oedema's centre in its spreads, `drop` in heights of the room for cysts."""

    offset: float
    tallness: float
    breadth: float
    drop: float
    power: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Cyst":
        """Draw a hole that is cut through its middle."""
        return cls(
            offset=rng.normal(0.0, 1.0),
            tallness=rng.uniform(0.2, 1.0),
            breadth=rng.uniform(0.6, 1.4),
            drop=rng.normal(0.0, 0.35),
            power=rng.uniform(1.7, 3.0),
        )


@dataclass(frozen=True)
class Edema(Body):
    """A swelling with cysts and exudates; `offset` from the fovea and `spread` in image widths."""

    offset: float
    spread: float
    tallness: float
    exudates: tuple[Exudate, ...]
    cysts: tuple[Cyst, ...]

    @classmethod
    def draw(cls, severity: float, rng: np.random.Generator) -> "Edema":
        """Draw that of a single scan."""
        return cls(
            offset=rng.normal(0.0, 0.13),
            spread=rng.uniform(0.04, 0.07),
            tallness=rng.uniform(0.5, 1.0),
            exudates=tuple(Exudate.draw(rng) for _ in range(rng.poisson(0.5 + 4.0 * severity))),
            cysts=tuple(Cyst.draw(rng) for _ in range(2 + rng.poisson(1.0 + 9.0 * severity))),
        )

    @classmethod
    def draw_in_eye(cls, slices_at: np.ndarray, rng: np.random.Generator) -> "Edema":
        """Draw that of an eye; see `DISEASES`."""
        place = Place(_nearest(slices_at, rng.normal(0.0, 0.5)), rng.uniform(1.5, 2.5))
        exudates = [
            replace(
                Exudate.draw(rng),
                place=Place(place.z + rng.normal(0.0, 0.8), rng.uniform(0.15, 0.35), _onset(rng, 0.5, 4.0)),
            )
            for _ in range(rng.poisson(3.0 * 4.5))
        ]
        first = replace(Cyst.draw(rng), place=replace(place, radius=rng.uniform(0.8, 1.2)))
        # 1.5: a slice through the centre cuts about 2 of 3.
        count = 1 + rng.poisson(1.5 * 10.0)
        others = _scatter(Cyst, count, rng, z=place.z, spread=0.6, radii=(0.4, 0.9), onset=(1.0, 9.0))
        return cls(
            offset=rng.normal(0.0, 0.13),
            spread=rng.uniform(0.04, 0.07),
            tallness=rng.uniform(0.5, 1.0),
            exudates=tuple(exudates),
            cysts=(first, *others),
            place=place,
        )

    def cut(self, z: float, severity: float, surface: Normals) -> "Edema":
        """What a slice at `z` mm meets of it."""
        return replace(
            self,
            exudates=_cut(self.exudates, z, severity),
            cysts=_cut(self.cysts, z, severity),
            share=self.place.share(z, severity),
        )

    def load(self, z: float, severity: float) -> float:
        """As of drusen, of the cysts."""
        return sum(cyst.breadth * cyst.tallness**2 * cyst.place.share(z, severity) for cyst in self.cysts)


@dataclass(frozen=True)
class Mound(Body):
    """A neovascular membrane with fluid over it; `offset` from the fovea in image widths.

    Attributes:
        ripple: (1, 34) bends of its surface.
        deep: share of its height under the pigment epithelium.
        fluid_offset: from the mound's centre, fluid_breadth: both in the mound's half-widths.
    """

    offset: float
    breadth: float
    tallness: float
    power: float
    ripple: np.ndarray
    deep: float
    fluid_offset: float
    fluid_breadth: float
    fluid_tallness: float

    @classmethod
    def draw(cls, severity: float, rng: np.random.Generator) -> "Mound":
        """Draw that of a single scan, whatever the severity."""
        return cls(
            offset=rng.normal(0.0, 0.12),
            breadth=rng.uniform(0.5, 1.0),
            tallness=rng.uniform(0.5, 1.0),
            power=rng.uniform(2.0, 3.0),
            ripple=rng.standard_normal((1, _RIPPLES)),
            deep=rng.uniform(0.3, 0.7),
            fluid_offset=rng.uniform(-1.2, 1.2),
            fluid_breadth=rng.uniform(1.1, 1.9),
            fluid_tallness=rng.uniform(0.4, 1.0),
        )

    @classmethod
    def draw_in_eye(cls, slices_at: np.ndarray, rng: np.random.Generator) -> "Mound":
        """Draw that of an eye; see `DISEASES`."""
        place = Place(_nearest(slices_at, rng.normal(0.0, 0.6)), rng.uniform(1.0, 2.2))
        return replace(cls.draw(1.0, rng), place=place)

    def cut(self, z: float, severity: float, surface: Normals) -> "Mound":
        """What a slice at `z` mm meets of it, with the ripple of that place."""
        return replace(self, share=self.place.share(z, severity), ripple=surface.standard_normal((1, _RIPPLES)))

    def load(self, z: float, severity: float) -> float:
        """As of drusen."""
        return self.place.share(z, severity) ** 1.5


Disease = Drusen | Edema | Mound

DISEASES: dict[str, type[Disease]] = {"CNV": Mound, "DME": Edema, "DRUSEN": Drusen}
"""``draw`` gives what one scan shows, ``draw_in_eye`` what an eye has: ``cut`` is what a slice shows of it,
``load`` how much that is.

``draw_in_eye`` takes the positions of the slices in mm. The middle of one body lies on a slice, so that every diseased
eye shows its disease at any severity."""


def _cut(bodies: Iterable[_SomeBody], z: float, severity: float) -> tuple[_SomeBody, ...]:
    shares = ((body, body.place.share(z, severity)) for body in bodies)
    return tuple(replace(body, share=share) for body, share in shares if share > 0.0)


def _scatter(
    kind: type[_Scattered],
    count: int,
    rng: np.random.Generator,
    *,
    z: float,
    spread: float,
    radii: tuple[float, float],
    onset: tuple[float, float],
) -> list[_Scattered]:
    """Bodies around `z` mm, normal with `spread` mm, each from a severity of its own on (`_onset`)."""
    bodies = []
    for _ in range(count):
        place = Place(z + rng.normal(0.0, spread), rng.uniform(*radii), _onset(rng, *onset))
        bodies.append(replace(kind.draw(rng), place=place))
    return bodies


def _nearest(slices_at: np.ndarray, z: float) -> float:
    return float(slices_at[np.abs(slices_at - z).argmin()])


def _onset(rng: np.random.Generator, base: float, slope: float) -> float:
    """Severity from which a body is there, so that their number grows as `base` + `slope` × severity."""
    return (rng.random() * (base + slope) - base) / slope
