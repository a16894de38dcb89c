"""Volumes of phantoms: the two eyes of a patient, the visits of an eye, and B-scans side by side through it.

Every number comes from a generator keyed by its purpose and by what it belongs to (seed, patient, eye, visit, slice):
any slice can be drawn alone. Nothing but the lesion depends on the class.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dino_oct.data.phantom_anatomy import Patient, Slice, draw_patient, layer_rows
from dino_oct.data.phantom_bodies import DISEASES, Body, Disease, Place
from dino_oct.data.phantom_draw import Phantom, check_depth, check_label, check_size, show
from dino_oct.data.phantom_lesions import LESIONS, no_lesion
from dino_oct.errors import InputError
from dino_oct.streams import generator

EYES = ("R", "L")
FIELD_MM, DEPTH_MM = 6.0, 1.9
"""Width of a scan, and of a volume across its slices; depth of a scan that shows the whole axial range."""

_SAME_CLASS = 0.7
# Distance in mm over which borders, tissue, lesions and light change from one set of random bends to the next.
_BORDERS_MM, _TISSUE_MM, _LESION_MM, _LIGHT_MM = 1.2, 0.6, 0.8, 2.0


@dataclass(frozen=True)
class Vessel(Body):
    """A retinal vessel through the slices; `offset` from the fovea, `slope` and `bend` in image widths."""

    offset: float
    slope: float
    bend: float
    half_width: float
    darkness: float

    def shadow(self, fovea: float, z: float) -> tuple[float, float, float]:
        """Position, half-width and darkness in a slice at `z` mm; darkness 0 where the vessel does not reach."""
        across = z / FIELD_MM
        fade = self.place.share(z, 1.0) ** 0.5
        column = fovea + self.offset + self.slope * across + self.bend * across**2
        return column, self.half_width, self.darkness * fade


@dataclass(frozen=True)
class Pose:
    """How an eye was held at a visit: position of the fovea, of the retina, its tilts, and the light.

    Attributes:
        cross_tilt: rise of the retina over all slices, twist: change of its tilt over them.
    """

    fovea: float
    position: float
    tilt: float
    cross_tilt: float
    twist: float
    gain: float


class SmoothNormals:
    """Normal numbers that change smoothly with the position across the slices.

    They are a mix of those of the two nearest knots, whose weights keep their deviation at 1.

    Args:
        z: position in mm. spacing: of the knots in mm. generator_of: gives the generator of a knot by its number.
    """

    def __init__(self, z: float, spacing: float, generator_of: Callable[[int], np.random.Generator]) -> None:
        knot, part = divmod(z / spacing, 1.0)
        angle = 0.5 * np.pi * part
        self._mix = ((np.cos(angle), generator_of(int(knot))), (np.sin(angle), generator_of(int(knot) + 1)))

    def standard_normal(self, size: tuple[int, ...] = ()) -> np.ndarray:
        """As of a numpy generator."""
        return sum(weight * rng.standard_normal(size) for weight, rng in self._mix)


@dataclass(frozen=True)
class Volume:
    """One volume, of which any slice can be drawn.

    Attributes:
        key: seed, patient and eye as a number, which with the visit, from 0, are what its generators are keyed by.
        slices_at: (S,) positions in mm, 0 through the fovea, ascending.
        severity: of the eye at this visit, 0 for NORMAL; disease: None for NORMAL.
        visible_severity: (S,) that of the eye in the slice that shows most of the disease, less by the root of the
            lesion's area in the others.
    """

    key: tuple[int, int, int]
    visit: int
    label: str
    slices_at: np.ndarray
    eye: Patient
    pose: Pose
    vessels: tuple[Vessel, ...]
    hyaloid: tuple[float, float] | None
    severity: float
    disease: Disease | None
    visible_severity: np.ndarray

    def draw(self, number: int, size: tuple[int, int], depth: float = 1.0) -> Phantom:
        """Draw slice `number`, from 0; size, depth and errors as `draw_phantom`."""
        if not 0 <= number < len(self.slices_at):
            raise InputError(f"slice {number}: the volume has slices 0 to {len(self.slices_at) - 1}")
        check_size(size)
        check_depth(depth)
        shown, width = size
        height, z = round(shown / depth), float(self.slices_at[number])
        cut = self._cut(number, z)
        borders = SmoothNormals(z, _BORDERS_MM, lambda knot: generator("phantom borders", *self.key, knot))
        rows = layer_rows(self.eye, cut, height, width, borders)
        lesion = no_lesion(rows, height)
        if self.disease is not None:
            surface = SmoothNormals(z, _LESION_MM, lambda knot: generator("phantom surface", *self.key, knot))
            bodies = self.disease.cut(z, self.severity, surface)
            lesion = LESIONS[self.label](rows, height, cut.fovea, self.severity, bodies, surface)
        top = self._window(shown, height)
        tissue = SmoothNormals(z, _TISSUE_MM, lambda knot: generator("phantom tissue", *self.key, knot))
        noise = generator("phantom speckle", *self.key, self.visit, number)
        visible = float(self.visible_severity[number])
        phantom = show(self.eye, cut, lesion, height, slice(top, top + shown), visible, tissue, noise)
        return phantom if phantom.lesion.any() else replace(phantom, severity=0.0)

    def _cut(self, number: int, z: float) -> Slice:
        """The B-scan at `z` mm: smooth changes across the slices, and a little motion of the eye between them."""
        eye, pose, across = self.eye, self.pose, z / FIELD_MM
        motion = generator("phantom motion", *self.key, self.visit, number)
        light = SmoothNormals(z, _LIGHT_MM, lambda knot: generator("phantom light", *self.key, self.visit, knot))
        fovea = pose.fovea + motion.normal(0.0, 0.004)
        shadows = (vessel.shadow(fovea, z) for vessel in self.vessels)
        bowl = eye.curvature * (2.0 * across) ** 2
        return Slice(
            fovea=fovea,
            pit=float(np.exp(-((across * eye.field / eye.pit_width) ** 2))),
            tilt=pose.tilt + pose.twist * across + motion.normal(0.0, 0.003),
            position=pose.position + pose.cross_tilt * across - bowl + motion.normal(0.0, 0.003),
            curvature=eye.curvature,
            gain=pose.gain * float(np.exp(0.04 * light.standard_normal())),
            vessels=tuple(shadow for shadow in shadows if shadow[-1] > 0.0),
            hyaloid=None if self.hyaloid is None else (self.hyaloid[0] * (1.0 + 0.5 * across), self.hyaloid[1]),
            away=across,
        )

    def _window(self, shown: int, height: int) -> int:
        """First row shown, one for all slices: the retina stands where it would without tilt and pit."""
        rng = generator("phantom shown range", *self.key, self.visit)
        centre = self.pose.position - self.eye.curvature / 3.0 - 0.5 * self.eye.thickness.sum()
        top = centre * height + rng.uniform(-0.08, 0.08) * shown - 0.5 * shown
        return int(np.clip(round(top), 0, height - shown))


def draw_volume(label: str, patient: int, eye: str, visit: int, slices: int, seed: int = 0) -> Volume:
    """Draw all that the slices of a volume share.

    The eyes of a patient resemble each other and are each other's mirror image; their device is one. An eye keeps its
    anatomy and its lesions from visit to visit; severity grows, and with it number and size of the lesions.

    Args:
        label: the eye's class. patient: any number from 0. eye: "R" or "L". visit: from 1.
        slices: B-scans, evenly over 6 mm; of an odd number, the middle one cuts the fovea.

    Raises:
        InputError: unknown label or eye, or a number out of range.
    """
    check_label(label)
    if eye not in EYES:
        raise InputError(f"phantom eye '{eye}' is unknown; choose R or L")
    if min(patient, seed) < 0 or min(visit, slices) < 1:
        raise InputError(
            f"patient {patient}, seed {seed}, visit {visit}, {slices} slices: phantoms need patient and seed from 0, "
            "visit and slices from 1"
        )
    key = (seed, patient, EYES.index(eye))
    slices_at = (np.arange(slices) - 0.5 * (slices - 1)) * FIELD_MM / slices
    anatomy = _draw_eye(draw_patient(generator("phantom person", seed, patient)), eye, generator("phantom eye", *key))
    vessels, hyaloid = _draw_vessels(anatomy, generator("phantom vessels", *key))
    severity, disease, visible = 0.0, None, np.zeros(slices)
    if label in DISEASES:
        severity = _severity(key, visit)
        disease = DISEASES[label].draw_in_eye(slices_at, generator("phantom bodies", *key))
        loads = np.array([disease.load(z, severity) for z in slices_at.tolist()])
        visible = severity * np.sqrt(loads / loads.max())
    return Volume(
        key=key,
        visit=visit - 1,
        label=label,
        slices_at=slices_at,
        eye=anatomy,
        pose=_draw_pose(anatomy, generator("phantom posture", *key), generator("phantom pose", *key, visit - 1)),
        vessels=vessels,
        hyaloid=hyaloid,
        severity=severity,
        disease=disease,
        visible_severity=visible,
    )


def eye_plan(label: str, patient: int, eyes: int, seed: int) -> list[tuple[str, str]]:
    """(eye, class) of a patient's eyes, R before L.

    One eye, R or L by chance, has the patient's class. With two, the fellow eye has it too in 70 % of patients and is
    NORMAL in the others.
    """
    rng = generator("phantom eyes", seed, patient)
    first = int(rng.random() < 0.5)
    labels = {EYES[first]: label}
    if eyes == 2:
        labels[EYES[1 - first]] = label if rng.random() < _SAME_CLASS else "NORMAL"
    return [(eye, labels[eye]) for eye in EYES if eye in labels]


def _draw_eye(person: Patient, side: str, rng: np.random.Generator) -> Patient:
    """One eye of a person: a little other than the fellow eye, its nasal side right in right eyes, left in left."""

    def about(value: float | np.ndarray, deviation: float) -> float | np.ndarray:
        return value * np.exp(rng.normal(0.0, deviation, np.shape(value)))

    return replace(
        person,
        nasal=1 if side == "R" else -1,
        thickness=about(person.thickness, 0.025),
        pit_depth=min(about(person.pit_depth, 0.03), 1.0),
        pit_width=about(person.pit_width, 0.05),
        rim=about(person.rim, 0.10),
        curvature=person.curvature + rng.normal(0.0, 0.006),
        choroid_thickness=about(person.choroid_thickness, 0.06),
        choroid_vessel=about(person.choroid_vessel, 0.06),
    )


def _draw_vessels(eye: Patient, rng: np.random.Generator) -> tuple[tuple[Vessel, ...], tuple[float, float] | None]:
    """Vessels, none through the centre of the fovea, and height and slope of a detached vitreous face, if it is one."""
    vessels = tuple(
        Vessel(
            offset=rng.uniform(1.4, 5.0) * eye.pit_width * (1 if rng.random() < 0.5 else -1),
            slope=rng.normal(0.0, 0.2),
            bend=rng.normal(0.0, 0.2),
            half_width=rng.uniform(0.003, 0.009),
            darkness=rng.uniform(0.2, 0.65),
            place=Place(rng.uniform(-3.0, 3.0), rng.uniform(1.5, 4.0)),
        )
        for _ in range(rng.integers(3, 10))
    )
    return vessels, (rng.uniform(0.02, 0.12), rng.normal(0.0, 0.15)) if rng.random() < 0.2 else None


def _draw_pose(eye: Patient, rng: np.random.Generator, of_visit: np.random.Generator) -> Pose:
    """Pose of an eye at a visit: a little other than its usual one, drawn by `rng`."""
    return Pose(
        fovea=0.5 + rng.uniform(-0.06, 0.06) + of_visit.normal(0.0, 0.01),
        position=eye.position + rng.normal(0.0, 0.015) + of_visit.normal(0.0, 0.01),
        tilt=eye.tilt + rng.normal(0.0, 0.015) + of_visit.normal(0.0, 0.01),
        cross_tilt=rng.normal(0.0, 0.02) + of_visit.normal(0.0, 0.01),
        twist=rng.normal(0.0, 0.02),
        gain=float(np.exp(of_visit.normal(0.0, 0.06))),
    )


def _severity(key: tuple[int, int, int], visit: int) -> float:
    """Severity of an eye, were it diseased: alike in both eyes, and growing by a varying part of what is left to 1."""
    seed, patient, _ = key
    of_person = generator("phantom person's severity", seed, patient).uniform(0.15, 0.9)
    rng = generator("phantom severity", *key)
    severity = float(np.clip(of_person + rng.normal(0.0, 0.1), 0.1, 0.9))
    for _ in range(visit - 1):
        severity += (1.0 - severity) * rng.uniform(0.05, 0.3)
    return severity
