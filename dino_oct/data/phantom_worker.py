"""Draw and store the phantoms of many patients, on every core."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dino_oct.data.cores import usable_cores
from dino_oct.data.phantom_config import PhantomConfig
from dino_oct.data.phantom_draw import Phantom, draw_phantom
from dino_oct.data.phantom_volume import draw_volume, eye_plan
from dino_oct.data.workers import in_processes, work

JPEG_QUALITY = 95
RETINA_VALUE, LESION_VALUE = 128, 255
# Below this many pixels a further process takes longer to start than it saves.
_PIXELS_PER_WORKER = 400 * 128 * 128


@dataclass(frozen=True)
class PatientJob:
    """The scans of one patient, and the folder they go to.

    Attributes:
        scans: single scans; 0 where volumes are drawn.
    """

    folder: str
    split: str
    label: str
    patient: int
    scans: int
    size: tuple[int, int]
    seed: int
    depth: float
    slices: int
    eyes: int
    visits: int

    @classmethod
    def of(cls, config: PhantomConfig, folder: Path, patient: int, label: str, split: str) -> "PatientJob":
        """The job of one patient of a plan."""
        return cls(
            folder=str(folder),
            split=split,
            label=label,
            patient=patient,
            scans=0 if config.has_volumes else config.scans_per_patient,
            size=tuple(config.size),
            seed=config.seed,
            depth=config.depth,
            slices=config.slices,
            eyes=config.eyes,
            visits=config.visits,
        )

    @property
    def total(self) -> int:
        """Number of scans."""
        return self.scans or self.slices * self.eyes * self.visits

    @property
    def layers_file(self) -> Path:
        """Boundaries of this patient's scans, (scans, L, W) float32, until they are collected."""
        return Path(self.folder) / "layers" / f"{self.patient}.npy"

    def draw(self) -> Iterator[tuple[str, Phantom, dict]]:
        """Class, scan, and what a record says of its volume, in the order of the scans' numbers."""
        if self.scans:
            for scan in range(1, self.scans + 1):
                yield self.label, draw_phantom(self.label, self.patient, scan, self.size, self.seed, self.depth), {}
            return
        for eye, label in eye_plan(self.label, self.patient, self.eyes, self.seed):
            for visit in range(1, self.visits + 1):
                volume = draw_volume(label, self.patient, eye, visit, self.slices, self.seed)
                about = {"eye": eye, "visit": str(visit), "volume": f"{self.patient}-{eye}-{visit}"}
                for number in range(self.slices):
                    place = {**about, "slice": number, "eye_severity": round(volume.severity, 4)}
                    yield label, volume.draw(number, self.size, self.depth), place


def write_patient(job: PatientJob) -> list[dict]:
    """Draw a patient's scans; write images, masks and boundaries; return one record a scan."""
    job.layers_file.parent.mkdir(parents=True, exist_ok=True)
    records, layers = [], []
    for scan, (label, phantom, place) in enumerate(job.draw(), 1):
        name = f"{job.split}/{label}"
        images, masks = Path(job.folder) / name, Path(job.folder) / "masks" / name
        for folder in (images, masks):
            folder.mkdir(parents=True, exist_ok=True)
        stem = f"{label}-{job.patient}-{scan}"
        Image.fromarray(phantom.image).save(images / f"{stem}.jpeg", quality=JPEG_QUALITY)
        mask = np.where(phantom.lesion, LESION_VALUE, np.where(phantom.retina, RETINA_VALUE, 0)).astype(np.uint8)
        Image.fromarray(mask).save(masks / f"{stem}.png")
        layers.append(phantom.layers)
        records.append(
            {
                "file": f"{name}/{stem}.jpeg",
                "mask": f"masks/{name}/{stem}.png",
                "split": job.split,
                "label": label,
                "patient": job.patient,
                "scan": scan,
                "severity": round(phantom.severity, 4),
                **place,
            }
        )
    np.save(job.layers_file, np.stack(layers))
    return records


def write_patients(jobs: list[PatientJob], advance: Callable[[int], object]) -> list[dict]:
    """Do all jobs, in several processes where that pays; records come in the order of the jobs.

    Args:
        advance: called with the number of scans finished since the last call.
    """
    pixels = sum(job.total * job.size[0] * job.size[1] for job in jobs)
    workers = min(usable_cores(), len(jobs), pixels // _PIXELS_PER_WORKER)
    if workers < 2:
        done = []
        for job in jobs:
            done.append(write_patient(job))
            advance(job.total)
    else:
        share = [asdict(job) for job in jobs]
        done = in_processes(__name__, share, workers, lambda records: advance(len(records)))
    return [record for records in done for record in records]


if __name__ == "__main__":
    work(lambda settings: write_patient(PatientJob(**settings)))
