"""One phantom: a synthetic B-scan with its lesion mask, layer boundaries and severity."""

from dataclasses import dataclass

import numpy as np

from dino_oct.data.phantom_anatomy import BM, ILM, Normals, Patient, Slice, draw_patient, draw_slice, layer_rows
from dino_oct.data.phantom_bodies import DISEASES
from dino_oct.data.phantom_lesions import LESIONS, Lesion, no_lesion
from dino_oct.data.phantom_render import render
from dino_oct.errors import InputError

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
SMALLEST_SIDE, LARGEST_SIDE = 32, 4096
LEAST_DEPTH = 0.4

_STREAMS = ("patient", "severity", "slice", "lesion", "picture", "window")


@dataclass(frozen=True)
class Phantom:
    """A synthetic scan and everything that is known about it.

    Attributes:
        image: (H, W) uint8.
        lesion: (H, W) bool, inside `retina`; empty for NORMAL, and for no other single scan. A slice of a volume of a
            diseased eye may miss the lesion.
        retina: (H, W) bool, from the inner limiting membrane to Bruch's membrane.
        layers: (L, W) float32, row of each boundary in `LAYERS` in px (pixel centres at whole numbers), top to bottom;
            "RPE base" and "BM" coincide where nothing lies between them.
        severity: 0 for NORMAL, else 0.05–1; it drives number, size and contrast of the lesions. Of a slice of a volume:
            what it shows of the eye's severity, 0 where it misses the lesion.
    """

    image: np.ndarray
    lesion: np.ndarray
    retina: np.ndarray
    layers: np.ndarray
    severity: float


def draw_phantom(
    label: str, patient: int, scan: int, size: tuple[int, int] = (496, 512), seed: int = 0, depth: float = 1.0
) -> Phantom:
    """Draw one scan, independent of every other: the same arguments always give the same scan.

    Eye, slice, speckle and device do not depend on the label, so two labels of one scan differ in the lesion alone.
    The scans of a patient share eye, device and, up to a variation, severity.

    Args:
        label: one of `CLASSES`.
        patient, scan: any numbers from 0.
        size: height and width in px. The whole field of view is always shown, so a wide picture is a stretched one.
        seed: another seed, other eyes.
        depth: share of the axial range that is shown, around the retina: .5 shows about 0.95 mm, twice as large.

    Raises:
        InputError: unknown label, negative number, a side outside 32–4096 px, or a depth outside .4–1.
    """
    check_label(label)
    if min(patient, scan, seed) < 0:
        raise InputError(f"patient {patient}, scan {scan}, seed {seed}: phantoms need numbers from 0")
    check_size(size)
    check_depth(depth)
    shown, width = size
    height = round(shown / depth)
    eye = draw_patient(_generator(seed, "patient", patient))
    geometry = _generator(seed, "slice", patient, scan)
    cut = draw_slice(eye, geometry)
    rows = layer_rows(eye, cut, height, width, geometry)
    top = _window(rows, shown, height, _generator(seed, "window", patient, scan))
    if label == "NORMAL":
        severity = 0.0
        lesion = no_lesion(rows, height)
    else:
        disease = _generator(seed, "lesion", patient, scan)
        of_patient = _generator(seed, "severity", patient).uniform(0.15, 1.0)
        severity = float(np.clip(of_patient + disease.normal(0.0, 0.12), 0.05, 1.0))
        bodies = DISEASES[label].draw(severity, disease)
        lesion = LESIONS[label](rows, height, cut.fovea, severity, bodies, disease)
    picture = _generator(seed, "picture", patient, scan)
    return show(eye, cut, lesion, height, slice(top, top + shown), severity, picture, picture)


def show(
    eye: Patient,
    cut: Slice,
    lesion: Lesion,
    height: int,
    shown: slice,
    severity: float,
    texture: Normals,
    noise: np.random.Generator,
) -> Phantom:
    """The picture of a scan with its masks.

    Args:
        height: of the whole drawing, and shown: rows of it that the picture shows.
        texture, noise: see `render`.
    """
    image = render(eye, cut, lesion, height, texture, noise)[shown]
    layers = np.clip(lesion.rows - shown.start, 0.0, len(image) - 1.0).astype(np.float32)
    y = np.arange(len(image))[:, None]
    retina = (y >= layers[ILM]) & (y < layers[BM])
    image, mask = (np.ascontiguousarray(part) for part in (image, lesion.mask[shown]))
    return Phantom(image=image, lesion=mask & retina, retina=retina, layers=layers, severity=severity)


def _window(healthy_rows: np.ndarray, shown: int, height: int, rng: np.random.Generator) -> int:
    """First row shown of a picture ``height`` rows deep; placed by the healthy retina, it does not tell the class."""
    centre = healthy_rows.mean() + rng.uniform(-0.08, 0.08) * shown
    return int(np.clip(round(centre - 0.5 * shown), 0, height - shown))


def check_label(label: str) -> None:
    """Raise InputError for a class that there is not."""
    if label not in CLASSES:
        raise InputError(f"phantom class '{label}' is unknown; choose one of {', '.join(CLASSES)}")


def check_depth(depth: float) -> None:
    """Raise InputError for an axial range too small to hold a swollen retina, or larger than the drawing."""
    if not LEAST_DEPTH <= depth <= 1:
        raise InputError(f"phantom depth {depth}: need a share of the axial range between .4 and 1")


def check_size(size: tuple[int, int]) -> None:
    """Raise InputError for a picture too small to hold the layers, or absurdly large."""
    if len(size) != 2 or not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in size):
        raise InputError(
            f"phantom size {tuple(size)}: need height and width between {SMALLEST_SIDE} and {LARGEST_SIDE} px"
        )


def _generator(seed: int, stream: str, *key: int) -> np.random.Generator:
    # A spawn key, not a list of numbers: numpy's seeds ignore trailing zeros of a list.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAMS.index(stream), *key)))
