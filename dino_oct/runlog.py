"""The run folder's records: ``metrics.jsonl``, TensorBoard, trackers, and what the terminal says."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dino_oct import checkpoint
from dino_oct.config import RunSettings, flat
from dino_oct.files import naming, private_folder, replacing, short_name
from dino_oct.trackers import Trackers

if TYPE_CHECKING:
    from dino_oct.monitor import Judgement, Monitor

COLUMNS = 100  # of the line of an evaluation


class RunLog:
    """``metrics.jsonl``, TensorBoard and trackers of a run, cut back to ``step`` first (None: emptied); silent where
    not ``active``.

    TensorBoard's files are in ``tensorboard/NAME``, NAME that of the run's folder, as TensorBoard names runs so.

    Args:
        config: settings of the run, shown by all of them.
        judged_by: names of the evaluation's metrics that TensorBoard's table of runs shows.
        trackers: not started yet; the one who gives them closes them.
    """

    def __init__(
        self,
        run: Path,
        step: int | None,
        active: bool,
        config: RunSettings,
        judged_by: Sequence[str] = (),
        trackers: Trackers | None = None,
    ):
        self.file, self.folder, self.active = run / "metrics.jsonl", run, active
        self.trackers = trackers or Trackers()
        if active:
            if n_damaged := checkpoint.trim_metrics(self.file, -1 if step is None else step):
                print(f"warning: {self.file}: {n_damaged} damaged lines left out", file=sys.stderr, flush=True)
            folder = events_folder(run)
            private_folder(folder.parent)
            self.writer = SummaryWriter(str(private_folder(folder)), purge_step=None if step is None else step + 1)
            with naming(folder):
                self._show_settings(config, judged_by, step or 0)
            self.trackers.start(run, config, goes_on=step is not None)

    def _show_settings(self, config: RunSettings, judged_by: Sequence[str], step: int) -> None:
        """As text, and for the tab of hyper-parameters."""
        settings = flat(config)
        lines = [f"    {name}: {value}" for name, value in settings.items()]  # indented: code, not Markdown
        self.writer.add_text("settings", "\n".join(lines), step)
        values = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in settings.items()}
        experiment, started, self._ended = hparams(values, {f"evaluation/{name}": 0.0 for name in judged_by})
        for summary in (experiment, started):
            self.writer.file_writer.add_summary(summary)

    def write(self, step: int, epoch: float, metrics: dict[str, float], section: str = "training") -> None:
        """One line: step, epoch and the metrics; scalars under their section in TensorBoard."""
        if not self.active:
            return
        with naming(self.file), open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "epoch": round(epoch, 4), **metrics}) + "\n")
        with naming(self.folder / "tensorboard"):
            for name, value in metrics.items():
                self.writer.add_scalar(f"{section}/{name}", value, step)
        self.trackers.log({"epoch": epoch, **metrics}, step)

    def images(self, section: str, images: dict[str, np.ndarray], step: int) -> None:
        """Images (H, W) or (H, W, 3) uint8 for TensorBoard, and as PNG in the run's folder of that section."""
        if not self.active:
            return
        for name, image in images.items():
            with naming(self.folder / "tensorboard"):
                self.writer.add_image(f"{section}/{name}", image, step, dataformats="HWC" if image.ndim == 3 else "HW")
            stem = short_name(Path(name).stem.replace(" ", "_"))
            file = private_folder(self.folder / section) / f"{stem}_step_{step:07d}.png"
            with replacing(file) as partial:
                Image.fromarray(image).save(partial, "PNG")
            self.trackers.image(section, name, file, image, step)
        with naming(self.folder / "tensorboard"):
            self.writer.flush()

    def close(self) -> None:
        """End TensorBoard's file."""
        if self.active:
            with naming(self.folder / "tensorboard"):
                self.writer.file_writer.add_summary(self._ended)
                self.writer.close()


def events_folder(run: Path) -> Path:
    """Where TensorBoard's files of a run are."""
    return run / "tensorboard" / run.resolve().name


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
