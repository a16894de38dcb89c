"""What is evaluated: the newest run or a SOURCE, with its settings."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_oct.cli import read_settings
from dino_oct.config import RunSettings, TrainConfig
from dino_oct.errors import InputError
from dino_oct.files import is_same_path, read_yaml
from dino_oct.models.backbone import check_source
from dino_oct.monitor import MonitorConfig
from dino_oct.provenance import run_of

RUNS = Path("runs")
# Settings of a run that evaluations go by, and those of a pretraining besides.
_RELIED_ON = (
    *("data", "init", "dataset.split", "dataset.split_seed", "dataset.val_fraction", "dataset.test_fraction"),
    *("dataset.unlabelled", "dataset.neutralise_borders", "dataset.max_side", "dataset.grey_range"),
    *("phantom.patients", "phantom.scans_per_patient", "phantom.size", "phantom.seed", "phantom.depth"),
)
_JUDGED_BY = ("monitor.image_size", "monitor.attention_size")


@dataclass(frozen=True)
class Source:
    """What is evaluated.

    Attributes:
        name: SOURCE, as ``load_backbone`` takes it.
        run: the run it belongs to, and config: that run's settings (``TrainConfig`` of a pretraining, those that all
            trainers share of any other); None for weights from elsewhere.
        chosen: how it was chosen, for the reader.
    """

    name: str
    run: Path | None = None
    config: RunSettings | None = None
    chosen: str = "given"

    @property
    def monitor(self) -> MonitorConfig | None:
        """How a pretraining judged its features; None for other sources."""
        return self.config.monitor if isinstance(self.config, TrainConfig) else None

    @property
    def attention_size(self) -> int | None:
        """Short side in pixels that a pretraining looked at attention with; None for other sources."""
        return self.monitor.attention_size if self.monitor else None

    @property
    def is_final(self) -> bool:
        """Whether these are a run's final weights rather than one of its checkpoints."""
        return self.run is not None and any(is_same_path(self.name, at) for at in (self.run, self.run / "export"))

    @property
    def kind(self) -> str:
        """What the weights are: self-supervised, supervised, starting weights, random weights or other weights."""
        if self.name.startswith("random:"):
            return "random weights"
        if self.run is None:
            return "other weights"
        if is_same_path(self.name, self.run / "checkpoints" / "start"):
            return "starting weights"
        return "self-supervised" if self.monitor else "supervised"

    @property
    def short_name(self) -> str:
        """A name that a table has room for: the run's, or the file's."""
        if self.run is None:
            return Path(self.name).name
        run = self.run.resolve().name
        return run if self.is_final else f"{run}/{Path(self.name).stem}"

    def results_folder(self, name: str, out: str | None) -> Path:
        """Where results of evaluation ``name`` go; a run's checkpoints do not overwrite its final results."""
        if out:
            return Path(out)
        label = re.sub(r"[^\w.-]+", "_", Path(self.name).stem if self.run else self.name).strip("_.")
        if self.run is None:
            return RUNS / label / "evaluation" / name
        return self.run / "evaluation" / (name if self.is_final else f"{name}_{label}")


def newest_run(folder: Path = RUNS) -> Path:
    """The run under ``folder`` whose ``metrics.jsonl`` was written last; InputError where there is none."""
    logs = [file for file in folder.rglob("metrics.jsonl") if run_of(str(file.parent)) == file.parent]
    if not logs:
        raise InputError(
            f"no run under {folder}/; train one (accelerate launch dino_oct/train.py) or give --model SOURCE"
        )
    return max(logs, key=lambda file: (file.lstat().st_mtime, str(file))).parent


def newest_beside_start() -> tuple[str, ...]:
    """The newest run, and its weights before training where it has kept them; InputError where there is no run."""
    run = newest_run()
    start = run / "checkpoints" / "start"
    return (str(run), str(start)) if (start / "config.json").is_file() else (str(run),)


def open_source(model: str | None) -> Source:
    """The source of an evaluation; a run's exports and checkpoints bring the run's settings with them.

    Raises:
        InputError: no run to fall back on, a source that is not there, or settings that cannot be read. Weights are
            not opened here.
    """
    if model is None:
        run = newest_run()
        return Source(str(run), run, read_run(run), f"newest under {RUNS}/")
    check_source(model)
    run = run_of(model)
    return Source(model) if run is None else Source(model, run, read_run(run))


def read_run(run: Path) -> RunSettings:
    """The settings of a run: all of a pretraining's, the shared ones of any other trainer's.

    Raises:
        InputError: a damaged file, or one without a setting that says what the run was trained on or judged by: a
            default in its place would be another run's.
    """
    file = run / "config.yaml"
    settings = read_yaml(file)
    given = settings if isinstance(settings, dict) else {}
    # Every pretraining has these sections, and no other trainer may read them as its own.
    is_pretraining = not given.keys().isdisjoint(("monitor", "loss"))
    config = read_settings(TrainConfig, file) if is_pretraining else read_settings(RunSettings, file, others=True)
    for name in (*_RELIED_ON, *_JUDGED_BY) if is_pretraining else _RELIED_ON:
        section = given
        for part in name.split("."):
            section = section.get(part) if isinstance(section, dict) else None
        if section in (None, ""):
            raise InputError(f"{file}: damaged: '{name}' is missing; put in what the run was started with")
    return config


def open_sources(names: Sequence[str]) -> list[Source]:
    """The sources of an evaluation, the model that is evaluated first; without a name the newest run. Raises as
    ``open_source`` and ``short_names``."""
    sources = [open_source(name) for name in names] or [open_source(None)]
    short_names(sources)
    return sources


def starting_weights(source: Source) -> Source | str:
    """The weights before the run's first step, or why there are none to compare with."""
    if source.run is None:
        return "no row for starting weights: the model is not from a run"
    start = source.run / "checkpoints" / "start"
    if is_same_path(source.name, start):
        return "no row for starting weights: they are the model itself"
    if not (start / "config.json").is_file():
        return f"no row for starting weights: {start} is missing"
    return Source(str(start), source.run, source.config)


def short_names(sources: Sequence[Source]) -> list[str]:
    """A name for each source that a table has room for, the run's where these are unique; InputError for a source that
    is given twice."""
    given = [source.name for source in sources]
    if len(set(given)) < len(given):
        raise InputError(f"{' '.join(given)}: a source is given twice")
    short = [source.short_name for source in sources]
    return short if len(set(short)) == len(short) else given
