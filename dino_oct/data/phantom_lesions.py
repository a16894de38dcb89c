"""Lesions of a phantom: how each disease moves the layers, and what it paints into them.

A lesion starts from the healthy rows and the bodies that the scan cuts, and returns the diseased rows, its mask, and
instructions for the renderer; it touches nothing else, so two labels of the same scan differ in the lesion alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

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
    curves,
    texture,
    wave,
)
from dino_oct.data.phantom_bodies import Drusen, Edema, Mound


@dataclass
class Lesion:
    """What a disease does to one scan.

    Attributes:
        rows: (L, W) boundaries after the lesion, px.
        mask: (H, W) bool, the lesion itself.
        paints: (where, coverage 0–1, brightness on the renderer's scale), later ones over earlier ones.
        ez, rpe: (W,) factors on the brightness of the ellipsoid zone and the pigment epithelium.
        below: (W,) factor on the light that reaches the choroid.
    """

    rows: np.ndarray
    mask: np.ndarray
    paints: list[tuple[tuple[slice, slice], np.ndarray, float | np.ndarray]] = field(default_factory=list)
    ez: np.ndarray | float = 1.0
    rpe: np.ndarray | float = 1.0
    below: np.ndarray | float = 1.0


_ALL = (slice(None), slice(None))


def no_lesion(rows: np.ndarray, height: int) -> Lesion:
    """A healthy scan."""
    return Lesion(rows=rows, mask=np.zeros((height, rows.shape[1]), bool))


def drusen(rows: np.ndarray, height: int, fovea: float, severity: float, disease: Drusen, rng: Normals) -> Lesion:
    """Mounds on Bruch's membrane under a lifted pigment epithelium; the mask is what lies between the two."""
    if not disease.drusen:
        return no_lesion(rows, height)
    width = rows.shape[1]
    x = np.arange(width)
    mound = np.zeros(width)
    for druse in disease.drusen:
        centre = np.clip(fovea + druse.offset, 0.06, 0.94) * width
        half_width = max((0.013 + 0.045 * severity * druse.breadth) * width, 1.6) * druse.width_share
        tallness = max((0.016 + 0.060 * severity * druse.tallness) * height, 1.4) * druse.share
        shape = np.exp(-(np.abs((x - centre) / half_width) ** druse.power))
        mound = np.maximum(mound, tallness * shape)
    rows = _lift(rows, {RPE_BASE: 1.0, RPE: 1.0, EZ: 0.97, ELM: 0.9, OPL_ONL: 0.35, INL_OPL: 0.2, IPL_INL: 0.1}, mound)
    mask = _between(rows[RPE_BASE], rows[BM], height) & (mound > 0.6)
    content = 62.0 + disease.content + 8.0 * texture(rng, (height, width), (24, 24))
    over = disease.peak * mound / (mound.max() + 1e-9)
    lesion = Lesion(rows=rows, mask=mask, ez=1.0 - 0.45 * over, rpe=1.0 - 0.15 * over)
    lesion.paints.append((_ALL, _cover(rows[RPE_BASE], rows[BM], height), content))
    # The membrane itself shows as a fine line once the epithelium has left it.
    line = _cover(rows[BM] - 0.004 * height, rows[BM], height) * np.clip(mound - 1.0, 0.0, 1.0)
    lesion.paints.append((_ALL, 0.6 * line, 130.0))
    return lesion


def macular_edema(rows: np.ndarray, height: int, fovea: float, severity: float, disease: Edema, rng: Normals) -> Lesion:
    """Dark cysts between the plexiform layers and the photoreceptors, swelling, hard exudates; mask: the cysts."""
    width = rows.shape[1]
    x = np.arange(width)
    centre = np.clip(fovea + disease.offset, 0.12, 0.88)
    spread = disease.spread + 0.08 * severity
    swelling = (0.012 + 0.120 * severity * disease.tallness) * height * disease.share
    swelling = swelling * np.exp(-(((x / width - centre) / (1.6 * spread)) ** 2))
    rows = _lift(rows, {OPL_ONL: 0.45, INL_OPL: 0.6, IPL_INL: 1.0, RNFL_GCL: 1.0, ILM: 1.0}, swelling)
    lesion = no_lesion(rows, height)
    lesion.ez = 1.0 - 0.25 * severity * disease.share * swelling / (swelling.max() + 1e-9)

    for exudate in disease.exudates:
        column = np.clip(centre + 1.4 * spread * exudate.offset, 0.05, 0.95) * width
        middle = rows[OPL_ONL][int(column)] + exudate.drop * height
        size = max(exudate.size * height, 0.7) * exudate.width_share
        where, coverage = _blob(rows[BM], height, column, middle, 1.3 * size / height * width, size, 2.0)
        lesion.paints.append((where, 0.85 * coverage, 190.0))

    darkness = 0.72 + 0.28 * severity
    for cyst in disease.cysts:
        column = np.clip(centre + spread * cyst.offset, 0.05, 0.95) * width
        top, bottom = rows[IPL_INL][int(column)], rows[ELM][int(column)]
        tall = max((0.010 + 0.055 * severity * cyst.tallness) * height, 1.3) * cyst.width_share
        tall = min(tall, 0.45 * (bottom - top))
        wide = max(tall / height * width * cyst.breadth, 1.2)
        middle = rows[INL_OPL][int(column)] + cyst.drop * (bottom - top)
        middle = np.clip(middle, top + tall, bottom - tall)
        where, coverage = _blob(rows[BM], height, column, middle, wide, tall, cyst.power)
        lesion.mask[where] |= coverage > 0.5
        lesion.paints.append((where, darkness * coverage, 2.0))
    lesion.mask &= _between(rows[IPL_INL] - 1.0, rows[ELM], height)
    return lesion


def neovascular(rows: np.ndarray, height: int, fovea: float, severity: float, disease: Mound, rng: Normals) -> Lesion:
    """A bright mound under and through a broken pigment epithelium, dark fluid over it; mask: mound and fluid."""
    if not disease.share:
        return no_lesion(rows, height)
    width = rows.shape[1]
    x = (np.arange(width) + 0.5) / width
    centre = np.clip(fovea + disease.offset, 0.12, 0.88)
    half_width = (0.040 + 0.130 * severity * disease.breadth) * disease.width_share
    tallness = max((0.024 + 0.080 * severity * disease.tallness) * height, 2.4) * disease.share
    dome = np.exp(-(np.abs((x - centre) / half_width) ** disease.power))
    mound = tallness * dome * np.clip(1.0 + 0.25 * curves(disease.ripple, width)[0], 0.4, 1.4)
    under, through = disease.deep * mound, (1.0 - disease.deep) * mound
    fluid_centre = centre + disease.fluid_offset * half_width
    fluid_width = half_width * disease.fluid_breadth
    fluid = max((0.012 + 0.055 * severity * disease.fluid_tallness) * height, 1.4) * disease.share
    fluid = fluid * np.exp(-(np.abs((x - fluid_centre) / fluid_width) ** 2.6))

    gap = rows[RPE] - rows[EZ]
    rows = _lift(rows, {RPE_BASE: 1.0, RPE: 1.0}, under)
    rows = _lift(
        rows, {EZ: 1.0, ELM: 1.0, OPL_ONL: 0.85, INL_OPL: 0.7, IPL_INL: 0.6, RNFL_GCL: 0.5, ILM: 0.5}, mound + fluid
    )
    roof = np.minimum(rows[EZ] + gap, rows[RPE])
    crest = np.clip(rows[RPE] - through, roof, rows[RPE])

    # Where the membrane has grown through, the epithelium is thinned and torn.
    over = disease.share * dome
    tear = np.clip(over * (0.75 + 0.35 * wave(rng, 1, width, 36)[0]), 0.0, 0.95)
    fluid_area = _between(roof, crest, height) & (fluid > 0.6)
    deep_area = _between(rows[RPE_BASE], rows[BM], height) & (under > 0.6)
    grown_area = _between(crest, rows[RPE_BASE], height) & (mound > 0.8)
    lesion = Lesion(rows=rows, mask=fluid_area | deep_area | grown_area)
    lesion.ez = 1.0 - (0.35 + 0.35 * severity) * over
    lesion.rpe = 1.0 - tear
    lesion.below = 1.0 - (0.25 + 0.3 * severity) * over
    material = 110.0 + 50.0 * severity + 26.0 * texture(rng, (height, width), (56, 56))
    lesion.paints.append((_ALL, _cover(rows[RPE_BASE], rows[BM], height), 0.8 * material))
    lesion.paints.append((_ALL, _cover(crest, rows[RPE], height), material))
    lesion.paints.append((_ALL, (0.7 + 0.3 * severity) * _cover(roof, crest, height), 3.0))
    return lesion


LESIONS: dict[str, Callable[..., Lesion]] = {
    "CNV": neovascular,
    "DME": macular_edema,
    "DRUSEN": drusen,
}


def _lift(rows: np.ndarray, share: dict[int, float], amount: np.ndarray) -> np.ndarray:
    """Raise some boundaries by their share of `amount` (W,) px; those above give way rather than cross."""
    rows = rows.copy()
    for layer, part in share.items():
        rows[layer] -= part * amount
    return np.minimum.accumulate(rows[::-1], axis=0)[::-1]


def _between(top: np.ndarray, bottom: np.ndarray, height: int) -> np.ndarray:
    y = np.arange(height)[:, None]
    return (y >= top) & (y < bottom)


def _cover(top: np.ndarray, bottom: np.ndarray, height: int) -> np.ndarray:
    """Share of each pixel (H, W) that lies between two rows (W,)."""
    y = np.arange(height, dtype=np.float32)[:, None]
    return np.clip(np.minimum(y + 0.5, bottom) - np.maximum(y - 0.5, top), 0.0, 1.0)


def _blob(
    along: np.ndarray, height: int, column: float, row: float, wide: float, tall: float, power: float
) -> tuple[tuple[slice, slice], np.ndarray]:
    """A rounded patch that lies along the curve `along` (W,): its window, and the coverage inside it."""
    width = len(along)
    left, right = max(int(column - wide - 2), 0), min(int(column + wide + 3), width)
    slope = along[left:right] - along[min(int(column), width - 1)]
    reach = tall + 2 + np.abs(slope).max()
    top, bottom = max(int(row - reach), 0), min(int(row + reach + 2), height)
    dx = np.abs(np.arange(left, right) - column) / wide
    dy = np.abs(np.arange(top, bottom)[:, None] - row - slope) / tall
    distance = (dx**power + dy**power) ** (1.0 / power)
    return (slice(top, bottom), slice(left, right)), np.clip((1.0 - distance) * min(wide, tall) + 0.5, 0.0, 1.0)
