"""Healthy anatomy of a phantom: what a patient, a slice and its layer boundaries are.

Lengths are fractions of the image (of its height for depth, of its width along the scan) until `layer_rows` returns
pixels, so that every image size shows the same eye. Thicknesses, pit and tilt follow what OCT2017-like B-scans of about
6 mm x 1.9 mm show; they are plausible, not fitted.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

LAYERS = ("ILM", "RNFL/GCL", "IPL/INL", "INL/OPL", "OPL/ONL", "ELM", "EZ", "RPE", "RPE base", "BM")
ILM, RNFL_GCL, IPL_INL, INL_OPL, OPL_ONL, ELM, EZ, RPE, RPE_BASE, BM = range(len(LAYERS))

# Thickness of the band below each of the first eight boundaries at the edge of the fovea.
_THICKNESS = np.array([0.020, 0.047, 0.025, 0.017, 0.045, 0.010, 0.018, 0.017])
# What is left of each band in the deepest point of the pit; the outer nuclear layer thickens there.
_IN_PIT = np.array([0.0, 0.05, 0.12, 0.25, 1.35, 1.15, 1.15, 1.0])
# Room above the inner surface for the deepest swelling a lesion may cause, and below Bruch's membrane.
_TOP_MARGIN, _BOTTOM_MARGIN = 0.17, 0.10


class Normals(Protocol):
    """The part of a numpy generator that curves and textures are drawn with."""

    def standard_normal(self, size: tuple[int, ...]) -> np.ndarray:
        """Normal numbers of zero mean and unit deviation."""


@dataclass(frozen=True)
class Patient:
    """What all scans of one eye share: anatomy, habits of the photographer, and the device."""

    nasal: int
    field: float
    thickness: np.ndarray
    pit_depth: float
    pit_width: float
    rim: float
    curvature: float
    tilt: float
    position: float
    choroid_thickness: float
    choroid_vessel: float
    penetration: float
    levels: np.ndarray
    gain: float
    floor: float
    noise: float
    grain: float
    gamma: float


@dataclass(frozen=True)
class Slice:
    """What is particular to one B-scan of an eye."""

    fovea: float
    pit: float
    tilt: float
    position: float
    curvature: float
    gain: float
    vessels: tuple[tuple[float, float, float], ...]
    hyaloid: tuple[float, float] | None
    away: float = 0.0
    """Distance from a scan through the fovea, in image widths."""


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw an eye and a device."""
    uniform = rng.uniform
    return Patient(
        nasal=1 if rng.random() < 0.5 else -1,
        field=uniform(0.8, 1.3),
        thickness=_THICKNESS * np.exp(rng.normal(0.0, 0.10, len(_THICKNESS))) * np.exp(rng.normal(0.0, 0.08)),
        pit_depth=uniform(0.75, 1.0),
        pit_width=uniform(0.075, 0.125),
        rim=uniform(0.05, 0.28),
        curvature=rng.normal(0.02, 0.02),
        tilt=rng.normal(0.0, 0.04),
        position=uniform(0.52, 0.68),
        choroid_thickness=uniform(0.10, 0.24),
        choroid_vessel=uniform(0.7, 1.4),
        penetration=uniform(0.6, 1.3),
        levels=np.exp(rng.normal(0.0, 0.08, 12)),
        gain=uniform(0.75, 1.3),
        floor=uniform(8.0, 30.0),
        noise=uniform(0.5, 1.2),
        grain=uniform(0.8, 1.35),
        gamma=uniform(0.85, 1.3),
    )


def draw_slice(patient: Patient, rng: np.random.Generator) -> Slice:
    """Draw one B-scan of an eye: where it cuts, how the eye was held, which vessels it meets."""
    eccentricity = rng.normal(0.0, 0.55)
    fovea = 0.5 + rng.uniform(-0.10, 0.10)
    return Slice(
        fovea=fovea,
        pit=float(np.exp(-(eccentricity**2))),
        tilt=patient.tilt + rng.normal(0.0, 0.02),
        position=patient.position + rng.normal(0.0, 0.02),
        curvature=patient.curvature + rng.normal(0.0, 0.01),
        gain=float(np.exp(rng.normal(0.0, 0.07))),
        vessels=tuple(_draw_vessel(patient, fovea, rng) for _ in range(rng.integers(1, 7))),
        hyaloid=(rng.uniform(0.02, 0.12), rng.normal(0.0, 0.15)) if rng.random() < 0.2 else None,
    )


def _draw_vessel(patient: Patient, fovea: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Position, half-width and darkness of the shadow; the centre of the fovea has no vessels."""
    away = rng.uniform(1.4, 5.0) * patient.pit_width * (1 if rng.random() < 0.5 else -1)
    return fovea + away, rng.uniform(0.003, 0.009), rng.uniform(0.2, 0.65)


def layer_rows(patient: Patient, scan: Slice, height: int, width: int, rng: Normals) -> np.ndarray:
    """Boundaries of a healthy retina.

    Returns:
        (L, W) float64 rows in pixels (a pixel's centre is at a whole number), each below the one before.
    """
    x = (np.arange(width) + 0.5) / width
    offset = (x - scan.fovea) * patient.field
    pit = scan.pit * patient.pit_depth * np.exp(-((offset / patient.pit_width) ** 2))
    distance = np.hypot(offset, scan.away * patient.field)
    rim = patient.rim * np.exp(-(((distance - 1.9 * patient.pit_width) / (1.3 * patient.pit_width)) ** 2))
    bands = patient.thickness[:, None] * (1.0 + (_IN_PIT[:, None] - 1.0) * pit)
    bands[1:3] *= 1.0 + rim - 0.5 * np.clip(distance - 0.2, 0.0, None)
    # Nerve fibres gather towards the disc.
    bands[0] *= np.clip(0.75 + 2.0 * patient.nasal * offset, 0.35, 2.2)
    bands *= 1.0 + 0.06 * wave(rng, len(bands), width, 9)

    bruch = scan.position + scan.tilt * (x - 0.5) - scan.curvature * (2.0 * x - 1.0) ** 2
    bruch = bruch + 0.004 * wave(rng, 1, width, 7)[0]
    depth = np.concatenate([-np.cumsum(bands[::-1], axis=0)[::-1], np.zeros((1, width))])
    rows = bruch + np.concatenate([depth, depth[-1:]])
    # A retina half outside the picture is moved in, as a photographer centres it.
    up, down = rows.max() - (1.0 - _BOTTOM_MARGIN), _TOP_MARGIN - rows.min()
    return (rows - max(up, 0.0) + max(down, 0.0)) * height - 0.5


def wave(rng: Normals, count: int, length: int, knots: int) -> np.ndarray:
    """(count, length) smooth random curves, about zero mean and unit deviation, with `knots` independent bends."""
    return curves(rng.standard_normal((count, knots)), length)


def curves(bends: np.ndarray, length: int) -> np.ndarray:
    """(count, length) smooth curves through `bends` (count, knots)."""
    return bends @ _interpolation(bends.shape[1], length).T


def texture(rng: Normals, shape: tuple[int, int], knots: tuple[int, int]) -> np.ndarray:
    """A smooth random field of `shape`, about zero mean and unit deviation, with `knots` blobs along each axis."""
    coarse = rng.standard_normal(knots).astype(np.float32)
    return _interpolation(knots[0], shape[0]) @ coarse @ _interpolation(knots[1], shape[1]).T


@lru_cache(maxsize=256)
def _interpolation(knots: int, length: int) -> np.ndarray:
    """(length, knots) Gaussian weights, each row of unit norm, so that white noise keeps its variance."""
    at = (np.arange(length) + 0.5) / length * knots - 0.5
    weights = np.exp(-(((at[:, None] - np.arange(knots)) / 0.8) ** 2))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
