"""The run folder's records: settings, ``metrics.jsonl``, TensorBoard, and what the terminal says."""

import json
import shutil
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dino_oct import checkpoint, processes
from dino_oct.cli import read_settings, write_settings
from dino_oct.errors import InputError

if TYPE_CHECKING:
    from dino_oct.config import RunSettings
    from dino_oct.monitor import Monitor


class StopSignal:
    """Remembers a request to stop until the loop asks: SIGTERM, SIGUSR1 (SLURM's warning before a time limit), Ctrl-C.

    Ctrl-C interrupts at once while there is nothing to save (``can_save`` is not set yet), and when it comes again.
    """

    def __init__(self):
        self.received = self.can_save = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT and (self.received or not self.can_save):
            raise KeyboardInterrupt
        self.received = True

    def asked(self, device: torch.device) -> bool:
        """Whether any process got a signal; the same answer on all."""
        self.can_save = True
        if processes.count() == 1:
            return self.received
        return bool(processes.total(torch.tensor(float(self.received), device=device)) > 0)


class RunLog:
    """``metrics.jsonl`` and TensorBoard of a run, cut back to ``step`` first; silent where not ``active``."""

    def __init__(self, run: Path, step: int, active: bool):
        self.file, self.folder, self.active = run / "metrics.jsonl", run, active
        if active:
            checkpoint.trim_metrics(self.file, step if step else -1)
            self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, epoch: float, metrics: dict[str, float], section: str = "training") -> None:
        """One line: step, epoch and the metrics; scalars under their section in TensorBoard."""
        if not self.active:
            return
        with open(self.file, "a") as stream:
            stream.write(json.dumps({"step": step, "epoch": round(epoch, 4), **metrics}) + "\n")
        for name, value in metrics.items():
            self.writer.add_scalar(f"{section}/{name}", value, step)

    def images(self, section: str, images: dict[str, np.ndarray], step: int) -> None:
        """Images (H, W) or (H, W, 3) uint8 for TensorBoard, and as PNG in the run's folder of that section."""
        if not self.active:
            return
        for name, image in images.items():
            self.writer.add_image(f"{section}/{name}", image, step, dataformats="HWC" if image.ndim == 3 else "HW")
            file = self.folder / section / f"{Path(name).stem.replace(' ', '_')}_step_{step:07d}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(file)
        self.writer.flush()

    def first_evaluation(self) -> dict[str, float] | None:
        """The evaluation of step 0, for a run that goes on."""
        if not self.file.exists():
            return None
        lines = (json.loads(line) for line in self.file.read_text().splitlines())
        return next((line for line in lines if line["step"] == 0 and "rankme" in line), None)

    def close(self) -> None:
        if self.active:
            self.writer.close()


def check_run_folder(run: Path) -> None:
    """Raise InputError if a folder exists that is no run's: nothing of somebody else's is ever overwritten."""
    if run.exists() and (not run.is_dir() or (any(run.iterdir()) and not (run / "config.yaml").exists())):
        raise InputError(f"{run} exists and is not a run folder; choose another --out")


def prepare_run_folder(run: Path, config: "RunSettings", resume: Path | None, say: Callable[[str], None]) -> None:
    """Make the run folder and write ``config.yaml``; say what is resumed, or move an old run aside.

    Raises:
        InputError: the folder cannot be written.
    """
    settings = run / "config.yaml"
    if resume is None and run.exists() and any(run.iterdir()):
        if (run / "checkpoints" / "last.pt").exists():
            aside = run.with_name(f"{run.name}-{datetime.now():%Y%m%d-%H%M%S}")
            run.rename(aside)
            say(f"the earlier run is kept in {aside}")
        else:
            say(f"{run}: an earlier try stopped before its first checkpoint; starting anew")
            shutil.rmtree(run / "tensorboard", ignore_errors=True)
    if resume is not None:
        say(f"resuming from {resume} (--resume never starts anew)")
        if settings.exists() and (changed := differences_to(settings, config)):
            say(f"warning: settings differ from the run's: {'; '.join(changed)}")
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / "stopped").unlink(missing_ok=True)
        write_settings(config, settings)
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({error.strerror})") from None


def differences_to(settings: Path, config: "RunSettings") -> list[str]:
    """What differs between a run's ``config.yaml`` and the present settings."""
    from dino_oct.config import differences

    try:
        return differences(read_settings(type(config), settings), config)
    except InputError as error:
        return [f"{error}"]


def describe(step: int, steps: int, metrics: dict[str, float], start: dict[str, float], monitor: "Monitor") -> str:
    """One line of evaluation, every number beside what it must be compared with."""
    parts = [f"evaluation at step {step}/{steps}"]
    for key in (key for key in metrics if key.startswith("knn_")):
        k = int(key.removeprefix("knn_"))
        before = f"start {start[key]:.1f}, " if key in start else ""  # a resumed run may ask for another k
        controls = f"{before}pixels {monitor.pixel_knn[k]:.1f}, {monitor.majority.words}"
        parts.append(f"k-NN (k={k}) {metrics[key]:.1f} % ({controls}), {monitor.recall(metrics, k).words}")
    parts += [
        f"RankMe {metrics['rankme']:.1f} (start {start['rankme']:.1f})",
        f"spread {metrics['feature_spread']:.2f} (start {start['feature_spread']:.2f})",
        f"teacher entropy {metrics['teacher_entropy']:.2f} of ln K {metrics['ln_k']:.2f}",
        f"KL {metrics['teacher_student_kl']:.2f}",
        f"centre {metrics['center_norm']:.2f}",
    ]
    return " · ".join(parts)
