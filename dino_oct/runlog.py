"""The run folder's records: ``metrics.jsonl``, TensorBoard, and what the terminal says."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dino_oct import checkpoint
from dino_oct.files import naming, private_folder, replacing, short_name

if TYPE_CHECKING:
    from dino_oct.monitor import Judgement, Monitor

COLUMNS = 100  # of the line of an evaluation


class RunLog:
    """``metrics.jsonl`` and TensorBoard of a run, cut back to ``step`` first (None: emptied); silent where not
    ``active``."""

    def __init__(self, run: Path, step: int | None, active: bool):
        self.file, self.folder, self.active = run / "metrics.jsonl", run, active
        if active:
            if n_damaged := checkpoint.trim_metrics(self.file, -1 if step is None else step):
                print(f"warning: {self.file}: {n_damaged} damaged lines left out", file=sys.stderr, flush=True)
            folder = private_folder(run / "tensorboard")
            self.writer = SummaryWriter(str(folder), purge_step=None if step is None else step + 1)

    def write(self, step: int, epoch: float, metrics: dict[str, float], section: str = "training") -> None:
        """One line: step, epoch and the metrics; scalars under their section in TensorBoard."""
        if not self.active:
            return
        with naming(self.file), open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "epoch": round(epoch, 4), **metrics}) + "\n")
        with naming(self.folder / "tensorboard"):
            for name, value in metrics.items():
                self.writer.add_scalar(f"{section}/{name}", value, step)

    def images(self, section: str, images: dict[str, np.ndarray], step: int) -> None:
        """Images (H, W) or (H, W, 3) uint8 for TensorBoard, and as PNG in the run's folder of that section."""
        if not self.active:
            return
        for name, image in images.items():
            with naming(self.folder / "tensorboard"):
                self.writer.add_image(f"{section}/{name}", image, step, dataformats="HWC" if image.ndim == 3 else "HW")
            stem = short_name(Path(name).stem.replace(" ", "_"))
            with replacing(private_folder(self.folder / section) / f"{stem}_step_{step:07d}.png") as partial:
                Image.fromarray(image).save(partial, "PNG")
        with naming(self.folder / "tensorboard"):
            self.writer.flush()

    def close(self) -> None:
        if self.active:
            with naming(self.folder / "tensorboard"):
                self.writer.close()


def evaluation_line(step: int, steps: int, now: "Judgement", start: "Judgement", monitor: "Monitor") -> str:
    """One line of evaluation, at most ``COLUMNS`` wide; every number beside what it must be compared with.

    What does not fit is left out: the raw pixels first (the line of step 0 has them, and they stay the same); all
    numbers are in ``metrics.jsonl``. ± is the longer side of the 95 % interval by patient. Without labels: RankMe and
    spread of the features.
    """
    metrics, before = now.metrics, start.metrics if step else {}

    def compared(name: str, key: str, digits: int = 1, controls: Sequence[str] = ()) -> str:
        # A resumed run may ask for another k, and older runs had no probe.
        controls = [*([f"start {before[key]:.{digits}f}"] if key in before else []), *controls]
        reach = max(abs(metrics.get(f"{key}_{end}", metrics[key]) - metrics[key]) for end in ("low", "high"))
        interval = f" ±{reach:.{0 if reach >= 1 else 1}f}" if f"{key}_low" in metrics else ""
        return f"{name} {metrics[key]:.{digits}f}{interval}" + (f" ({', '.join(controls)})" if controls else "")

    progress, rest = f"step {step}/{steps}", []
    if monitor.ks:
        k = monitor.ks[0]
        firsts = [compared("k-NN", f"knn_{k}", controls=c) for c in ([f"pixels {monitor.pixel_knn[k]:.1f}"], [])]
        rest += [compared("probe", "probe")] if "probe" in metrics else []
    else:
        firsts = [compared("RankMe", "rankme")]
        rest += [compared("spread", "feature_spread", digits=2)]
    attention = [""]
    if "attention_area" in metrics:
        attention = [f"attention {100 * metrics['attention_area']:.0f} %{words}" for words in (" of patches", "")]
    choices = [[progress, first, *rest, last] for first in firsts for last in attention]
    lines = [" · ".join(filter(None, parts)) for parts in [*choices, [progress, firsts[-1], *rest]]]
    return next((line for line in lines if len(line) <= COLUMNS), lines[-1])
