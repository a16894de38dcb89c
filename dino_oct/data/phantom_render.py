"""From layer boundaries to the grey picture an OCT device would show."""

import numpy as np

from dino_oct.data.phantom_anatomy import (
    BM,
    ELM,
    EZ,
    ILM,
    INL_OPL,
    IPL_INL,
    OPL_ONL,
    RNFL_GCL,
    RPE,
    RPE_BASE,
    Normals,
    Patient,
    Slice,
    texture,
    wave,
)
from dino_oct.data.phantom_lesions import Lesion

# Brightness of the bands, 0–255 above the noise floor, read off healthy OCT2017 scans:
# vitreous, RNFL, GCL+IPL, INL, OPL, ONL, inner segments, EZ, interdigitation, RPE, choroid, ELM (a line).
_LEVELS = np.array([2.0, 104.0, 70.0, 36.0, 62.0, 24.0, 36.0, 178.0, 100.0, 186.0, 74.0, 50.0])
# The picture in which speckle was measured: standard deviation and correlation length (px, axial and lateral).
_NATIVE = (496, 512)
_SPECKLE, _GRAIN = 17.0, (0.85, 0.55)
# Pixels of that picture that share one speckle (the sum of its autocorrelation).
_CELL = (2.9, 1.75)


def render(
    patient: Patient, scan: Slice, lesion: Lesion, height: int, rng: Normals, noise: np.random.Generator
) -> np.ndarray:
    """Draw one B-scan.

    Args:
        lesion: boundaries, (L, W) rows in px, with what the disease changes in them.
        rng: of the tissue's texture and the light. noise: of the speckle.

    Returns:
        (H, W) uint8.
    """
    width = lesion.rows.shape[1]
    light = _tissue(patient, lesion, height, rng)
    light += _choroid(patient, lesion, height, rng)
    for where, coverage, level in lesion.paints:
        part = level if np.isscalar(level) else level[where]
        light[where] += coverage * (part - light[where])
    light *= _shadows(scan, lesion.rows, height, width)
    if scan.hyaloid is not None:
        light += _hyaloid(scan, lesion.rows, height, width)
    return _expose(light, patient, scan, rng, noise)


def _below(row: np.ndarray, height: int, soft: float) -> np.ndarray:
    """Share of each pixel (H, W) below the row (W,), with an edge of `soft` px."""
    y = np.arange(height, dtype=np.float32)[:, None]
    return np.clip((y - row.astype(np.float32)) / np.float32(soft) + np.float32(0.5), 0.0, 1.0)


def _tissue(patient: Patient, lesion: Lesion, height: int, rng: Normals) -> np.ndarray:
    """Vitreous and retina, down to Bruch's membrane; 0 below it."""
    rows = lesion.rows
    width = rows.shape[1]
    soft = max(1.0, 3.0 * height / _NATIVE[0])
    # Bands are not evenly bright along the scan.
    level = (_LEVELS * patient.levels)[:, None] * (1.0 + 0.09 * wave(rng, len(_LEVELS), width, 14))
    level[1] *= 0.85 + 0.25 * np.clip((rows[RNFL_GCL] - rows[ILM]) / (0.02 * height), 0.0, 1.6)
    grain = 1.0 + 0.07 * wave(rng, 2, width, 150)
    level[7] *= lesion.ez * grain[0]
    level[9] *= lesion.rpe * grain[1]
    ellipsoid_end = rows[EZ] + 0.5 * (np.minimum(rows[RPE] - rows[EZ], 0.03 * height))
    elm = 0.0016 * height
    steps = (
        (rows[ILM], 0, 1),
        (rows[RNFL_GCL], 1, 2),
        (rows[IPL_INL], 2, 3),
        (rows[INL_OPL], 3, 4),
        (rows[OPL_ONL], 4, 5),
        (rows[ELM] - elm, 5, 11),
        (rows[ELM] + elm, 11, 6),
        (rows[EZ], 6, 7),
        (ellipsoid_end, 7, 8),
        (rows[RPE], 8, 9),
        (rows[RPE_BASE], 9, None),
    )
    light = np.broadcast_to(level[0].astype(np.float32), (height, width)).copy()
    for row, before, after in steps:
        change = (0.0 if after is None else level[after]) - level[before]
        light += change.astype(np.float32) * _below(row, height, soft)
    return light


def _choroid(patient: Patient, lesion: Lesion, height: int, rng: Normals) -> np.ndarray:
    """Choroid with vessels, fading with depth, drawn flat under Bruch's membrane and then bent to it."""
    bruch = lesion.rows[BM]
    width = len(bruch)
    depth = np.arange(height, dtype=np.float32)[:, None] / height
    thickness = patient.choroid_thickness * (1.0 + 0.15 * wave(rng, 1, width, 5)[0])
    small = texture(rng, (height, width), (70, int(60 * patient.choroid_vessel)))
    large = texture(rng, (height, width), (26, int(22 * patient.choroid_vessel)))
    # Small vessels lie close to the membrane, large ones deep.
    inward = np.clip(depth / (0.6 * patient.choroid_thickness), 0.0, 1.0)
    vessels = np.tanh(2.0 * ((1.0 - inward) * small + inward * large))
    fade = np.exp(-depth / (0.07 * patient.penetration + 0.3 * thickness))
    sclera = 1.0 / (1.0 + np.exp((depth - thickness) / (0.12 * thickness)))
    flat = fade * (sclera * (1.0 + 0.42 * vessels) + 0.45 * (1.0 - sclera) * (1.0 + 0.06 * large))
    flat *= 1.0 + 0.3 * np.exp(-((depth / 0.010) ** 2))
    y = np.arange(height)[:, None]
    index = np.clip(np.rint(y - bruch).astype(np.intp), 0, height - 1)
    level = _LEVELS[10] * patient.levels[10] * (1.0 + 0.12 * wave(rng, 1, width, 10)[0]) * lesion.below
    inside = _below(bruch, height, max(1.0, 3.0 * height / _NATIVE[0]))
    return (np.take_along_axis(flat, index, axis=0) * level * inside).astype(np.float32)


def _shadows(scan: Slice, rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Factor (H, W): retinal vessels are bright in the nerve fibres and dark all the way below."""
    x = (np.arange(width) + 0.5) / width
    y = np.arange(height, dtype=np.float32)[:, None]
    factor = np.ones((height, width), np.float32)
    for centre, half_width, darkness in scan.vessels:
        left, right = np.searchsorted(x, (centre - 3.0 * half_width, centre + 3.0 * half_width))
        if left == right:
            continue
        profile = np.exp(-(((x[left:right] - centre) / half_width) ** 2))
        wall = rows[RNFL_GCL, left:right] + 0.01 * height
        blood = np.exp(-(((y - wall) / (0.012 * height)) ** 2))
        under = np.clip((y - wall) / (0.02 * height), 0.0, 1.0)
        factor[:, left:right] *= 1.0 + profile * (0.5 * darkness * blood - darkness * under)
    return factor


def _hyaloid(scan: Slice, rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """The detached vitreous face: a faint line above the retina."""
    distance, slope = scan.hyaloid
    x = (np.arange(width) + 0.5) / width - 0.5
    retina = np.linspace(rows[ILM, 0], rows[ILM, -1], width)
    line = retina - (distance + slope * x + 0.4 * abs(slope) * x**2) * height
    y = np.arange(height, dtype=np.float32)[:, None]
    faint = np.clip((rows[ILM] - line) / (0.02 * height), 0.0, 1.0)  # gone where it still lies on the retina
    return 26.0 * faint * np.exp(-(((y - line) / max(0.004 * height, 0.6)) ** 2))


def _expose(light: np.ndarray, patient: Patient, scan: Slice, rng: Normals, noise: np.random.Generator) -> np.ndarray:
    """Device: gain, contrast curve, noise floor, speckle, 8 bits."""
    height, width = light.shape
    x = np.linspace(-1.0, 1.0, width)
    falloff = 1.0 + 0.07 * wave(rng, 1, width, 4)[0] - 0.12 * x**2
    light = np.clip(light * falloff, 0.0, 255.0) / 255.0
    signal = patient.gain * scan.gain * 255.0 * light**patient.gamma + patient.floor
    speckle = _speckle(noise, height, width, patient.grain)
    signal = signal + speckle * patient.noise * (_SPECKLE * (0.35 + patient.floor / 36.0) * 0.8 + 0.07 * signal)
    return np.clip(np.rint(signal), 0, 255).astype(np.uint8)


def _speckle(rng: np.random.Generator, height: int, width: int, grain: float) -> np.ndarray:
    """(H, W) correlated noise; a picture smaller than the native one averages it, as resizing would."""
    field = rng.standard_normal((height, width), dtype=np.float32)
    weakness = 1.0
    for axis, (length, native) in enumerate(zip((height, width), _NATIVE, strict=True)):
        scale = length / native
        field = _blur(field, _GRAIN[axis] * grain * scale, axis)
        weakness *= min(1.0, np.sqrt(_CELL[axis] * grain * scale))
    return field * np.float32(weakness)


def _blur(field: np.ndarray, sigma: float, axis: int) -> np.ndarray:
    """Gaussian blur along one axis that keeps the variance of white noise; wraps around."""
    reach = int(np.ceil(2.5 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    weights = (weights / np.linalg.norm(weights)).astype(np.float32)
    if weights[reach] > 0.995:  # narrower than a pixel
        return field
    return sum(w * np.roll(field, k - reach, axis) for k, w in enumerate(weights))
