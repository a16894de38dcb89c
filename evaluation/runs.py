"""What is evaluated: the newest run or a SOURCE, with its settings and its weights."""

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino_oct.cli import read_settings
from dino_oct.config import RunSettings, TrainConfig
from dino_oct.errors import InputError
from dino_oct.files import is_same_path, read_yaml
from dino_oct.limits import Heads, Name, NewName, Resamples, Seed
from dino_oct.models.backbone import check_source, load_backbone, local_file, open_layer_scales
from dino_oct.monitor import MonitorConfig
from dino_oct.provenance import run_of
from dino_oct.streams import seed_of
from evaluation.scan_data import DatasetOptions, PhantomOptions

RUNS = Path("runs")
# Settings of a run that evaluations go by, and those of a pretraining besides.
_RELIED_ON = (
    *("data", "init", "dataset.split", "dataset.split_seed", "dataset.val_fraction", "dataset.test_fraction"),
    *("dataset.unlabelled", "dataset.neutralise_borders", "dataset.max_side", "dataset.grey_range"),
    *("phantom.patients", "phantom.scans_per_patient", "phantom.size", "phantom.seed", "phantom.depth"),
)
_JUDGED_BY = ("monitor.image_size", "monitor.attention_size")


@dataclass
class EvaluationOptions:
    """What every evaluation is asked for. Unset options are those that the run was trained with."""

    model: Name | None = None
    """Run, export, file of weights, timm:NAME, timm:NAME@FILE or random:NAME; unset: the newest run under runs/."""
    data: Name | None = None
    """OCT2017-style folder, or 'phantom'; unset: the run's own."""
    out: NewName | None = None
    """Folder for the results; unset: RUN/evaluation/NAME, or runs/SOURCE/evaluation/NAME where there is no run."""
    heads: Heads | None = None
    """Attention heads, for a file whose tensors do not tell; unset: 64 channels each, which is said."""
    bootstrap: Resamples = 1000
    """Resamples of patients behind each 95 % interval; 0 gives none."""
    seed: Seed = 0
    """Of the resamples, and of the network with random weights."""
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    phantom: PhantomOptions = field(default_factory=PhantomOptions)


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

    def results_folder(self, name: str, out: str | None) -> Path:
        """Where results of evaluation ``name`` go; a run's checkpoints do not overwrite its final results."""
        if out:
            return Path(out)
        label = re.sub(r"[^\w.-]+", "_", Path(self.name).stem if self.run else self.name).strip("_.")
        if self.run is None:
            return RUNS / label / "evaluation" / name
        return self.run / "evaluation" / (name if self.is_final else f"{name}_{label}")


def newest_run(folder: Path = RUNS) -> Path:
    """The run under ``folder`` whose ``metrics.jsonl`` was written last.

    Raises:
        InputError: there is none.
    """
    found = [file for file in folder.rglob("metrics.jsonl") if run_of(str(file.parent)) == file.parent]
    if not found:
        raise InputError(
            f"no run under {folder}/; train one (accelerate launch dino_oct/train.py) or give --model SOURCE"
        )
    return max(found, key=lambda file: (file.lstat().st_mtime, str(file))).parent


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
    found = read_settings(TrainConfig, file) if is_pretraining else read_settings(RunSettings, file, others=True)
    for name in (*_RELIED_ON, *_JUDGED_BY) if is_pretraining else _RELIED_ON:
        section = given
        for part in name.split("."):
            section = section.get(part) if isinstance(section, dict) else None
        if section in (None, ""):
            raise InputError(f"{file}: damaged: '{name}' is missing; put in what the run was started with")
    return found


@dataclass(frozen=True)
class Frozen:
    """A backbone in evaluation mode on its device, and what identifies its weights."""

    backbone: nn.Module
    weights: dict[str, Any]


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_frozen(source: str, device: torch.device, **load_options: Any) -> Frozen:
    """Load a backbone for evaluation; further arguments as ``load_backbone``.

    ``weights`` holds source, file (None for weights without one, e.g. random), the first 16 digits of the sha256 of
    the file, or of the tensors' bytes where there is no file, and in words what was loaded.

    Raises:
        InputError: weights that are not finite; or as ``load_backbone``.
    """
    return _freeze(load_backbone(source, **load_options), source, device)


def _freeze(backbone: nn.Module, source: str, device: torch.device) -> Frozen:
    backbone = backbone.eval().requires_grad_(False).to(device)
    file = _weights_file(source)
    digest = hashlib.sha256()
    if file is not None:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    else:
        for name, tensor in backbone.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    about = {"source": source, "file": file and str(file), "sha256": digest.hexdigest()[:16]}
    return Frozen(backbone, {**about, "loaded": backbone.load_report.counts})


def starting_weights(source: Source, device: torch.device) -> Frozen | str:
    """The weights before the run's first step, or why there are none to compare with."""
    if source.run is None:
        return "no row for starting weights: the model is not from a run"
    start = source.run / "checkpoints" / "start"
    if is_same_path(source.name, start):
        return "no row for starting weights: they are the model itself"
    if not (start / "config.json").is_file():
        return f"no row for starting weights: {start} is missing"
    return load_frozen(str(start), device)


def random_weights(source: Source, model: Frozen, seed: int, device: torch.device) -> Frozen | str:
    """The model's architecture with random weights, or why that would say nothing new.

    LayerScale is 1 in it: at timm's 1e-5 all scans would have the same features.
    """
    if source.config is not None and source.config.starts_from_random:
        return "no row for random weights: the run started from random weights, so the starting weights are that row"
    if model.backbone.load_report.matched == 0:
        return "no row for random weights: the model itself has random weights"
    hub = model.backbone.hub_config
    source_name = f"random:{hub['architecture']}"
    backbone = load_backbone(source_name, model_args=hub["model_args"], seed=seed_of("random control", seed))
    open_layer_scales(backbone)
    backbone.pretrained_cfg = {**backbone.pretrained_cfg, **hub["pretrained_cfg"]}  # the same mean and std
    frozen = _freeze(backbone, source_name, device)
    return dataclasses.replace(frozen, weights={**frozen.weights, "seed": seed})


def _weights_file(source: str) -> Path | None:
    if source.startswith("timm:"):
        _, _, file = source.partition("@")
        return local_file(file) if file else None
    path = local_file(source)
    if path.is_dir():
        files = (folder / "backbone.safetensors" for folder in (path, path / "export"))
        return next((file for file in files if file.is_file()), None)
    return path if path.is_file() else None
