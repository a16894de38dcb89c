"""Which phantoms are drawn: their settings, and the class and split of each patient."""

from dataclasses import dataclass
from typing import Annotated, Any

from dino_oct.data.phantom_draw import CLASSES, LARGEST_SIDE, LEAST_DEPTH, SMALLEST_SIDE
from dino_oct.errors import InputError
from dino_oct.limits import Range, Seed

_VAL_SHARE, _TEST_SHARE = 0.12, 0.24
_MOST_SCANS = 1_000_000

Patients = Annotated[int, Range(len(CLASSES), 100_000)]
ScansPerPatient = Annotated[int, Range(1, 10_000)]
PictureSide = Annotated[int, Range(SMALLEST_SIDE, LARGEST_SIDE)]
Depth = Annotated[float, Range(LEAST_DEPTH, 1)]
Slices = Annotated[int, Range(1, 1000)]
Eyes = Annotated[int, Range(1, 2)]
Visits = Annotated[int, Range(1, 10)]


@dataclass(frozen=True)
class PhantomConfig:
    """Synthetic scans drawn by the built-in generator."""

    patients: Patients = 400
    """Number of patients, at least 4; each has one class, in turn CNV, DME, DRUSEN, NORMAL."""
    scans_per_patient: ScansPerPatient = 12
    """Scans of each patient; not used for volumes, where slices, eyes and visits say how many there are."""
    size: tuple[PictureSide, PictureSide] = (128, 128)
    """Height and width of a scan, in pixels."""
    seed: Seed = 0
    """Seed; another one gives other eyes."""
    depth: Depth = 1.0
    """Share of the axial range shown, .4 to 1: smaller shows the retina larger, as on devices with a short range."""
    slices: Slices = 1
    """Scans of a volume, side by side over 6 mm. More than one slice, eye or visit draws volumes instead of single
    scans."""
    eyes: Eyes = 1
    """Eyes of each patient, 1 or 2; the second has the patient's class in 70 % of patients, else it is NORMAL."""
    visits: Visits = 1
    """Visits of each eye, one volume each, 1 to 10; severity grows from visit to visit."""

    @property
    def has_volumes(self) -> bool:
        """Whether volumes are drawn, not single scans."""
        return max(self.slices, self.eyes, self.visits) > 1

    @property
    def total_scans(self) -> int:
        """Scans of all patients."""
        of_patient = self.slices * self.eyes * self.visits if self.has_volumes else self.scans_per_patient
        return self.patients * of_patient

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if self.total_scans <= _MOST_SCANS:
            return None
        if not self.has_volumes:
            return "scans_per_patient", f"of {self.patients:,} patients are more than {_MOST_SCANS:,} scans in all"
        volumes = f"{self.eyes} x {self.visits} volumes (eyes x visits) of {self.patients:,} patients"
        return "slices", f"in {volumes} are more than {_MOST_SCANS:,} scans in all"


def drawn_by(config: PhantomConfig) -> dict[str, Any]:
    """The settings that the pictures depend on, as plain values."""
    # Named one by one: the command line's options are a PhantomConfig with more fields.
    common = {"size": list(config.size), "seed": config.seed, "depth": config.depth}
    if not config.has_volumes:
        return {"patients": config.patients, "scans_per_patient": config.scans_per_patient, **common}
    counts = {"slices": config.slices, "eyes": config.eyes, "visits": config.visits}
    return {"patients": config.patients, **common, **counts}


def patient_plan(patients: int) -> list[tuple[int, str, str]]:
    """(patient number from 1, class, split) of each patient.

    About 64 % of each class train, 12 % validate, 24 % test. Validation and test hold the same number of patients of
    every class. Where patients are few, train comes first, then test, then validation: fewer than 8 patients give no
    test split, fewer than 12 no validation split.

    Raises:
        InputError: fewer than 4 patients.
    """
    if patients < len(CLASSES):
        raise InputError(f"{patients} phantom patients are too few for {len(CLASSES)} classes; ask for at least 4")
    per_class = patients // len(CLASSES)
    test = max(1, round(_TEST_SHARE * per_class)) if per_class > 1 else 0
    val = max(1, round(_VAL_SHARE * per_class)) if per_class > 2 else 0
    plan = []
    for i in range(patients):
        turn = i // len(CLASSES)
        split = "val" if turn < val else "test" if turn < val + test else "train"
        plan.append((i + 1, CLASSES[i % len(CLASSES)], split))
    return plan
