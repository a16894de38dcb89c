"""The run folder's records: ``metrics.jsonl``, TensorBoard, and what the terminal says."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dino_oct import checkpoint
from dino_oct.files import naming, private_folder, replacing, short_name

if TYPE_CHECKING:
    from dino_oct.monitor import Judgement, Monitor


class RunLog:
    """``metrics.jsonl`` and TensorBoard of a run, cut back to ``step`` first; silent where not ``active``."""

    def __init__(self, run: Path, step: int, active: bool):
        self.file, self.folder, self.active = run / "metrics.jsonl", run, active
        if active:
            if n_damaged := checkpoint.trim_metrics(self.file, step if step else -1):
                print(f"warning: {self.file}: {n_damaged} damaged lines left out", file=sys.stderr, flush=True)
            folder = private_folder(run / "tensorboard")
            self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

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
    """One line of evaluation, every number beside what it must be compared with."""
    metrics, before = now.metrics, start.metrics
    parts = [f"evaluation at step {step}/{steps}"]
    for k in monitor.ks:
        key = f"knn_{k}"
        controls = [f"start {before[key]:.1f}"] if key in before else []  # a resumed run may ask for another k
        if (change := monitor.change(now, start, k)) and step:
            controls[0] += f", change {change.words(signed=True)}"
        controls += [f"pixels {monitor.pixel_knn[k]:.1f}", monitor.majority.words]
        accuracy, recall = monitor.accuracy(now, k).words(unit=" %"), monitor.recall(metrics, k).words
        parts.append(f"k-NN (k={k}) {accuracy} ({', '.join(controls)}), {recall}")
    parts += [
        f"RankMe {metrics['rankme']:.1f} (start {before['rankme']:.1f})",
        f"spread {metrics['feature_spread']:.2f} (start {before['feature_spread']:.2f})",
        f"attention entropy {metrics['attention_entropy']:.2f} (start {before['attention_entropy']:.2f})",
        f"teacher entropy {metrics['teacher_entropy']:.2f} of ln K {metrics['ln_k']:.2f}",
        f"KL {metrics['teacher_student_kl']:.2f}",
        f"centre {metrics['center_norm']:.2f}",
    ]
    return " · ".join(parts)
