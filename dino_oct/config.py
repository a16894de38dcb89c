"""Settings of a pretraining run: defaults here, then a YAML preset, then the command line.

Each section's settings live beside the code they steer; this file only puts them together.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
import yaml
from accelerate.utils import parse_flag_from_env

from dino_oct.augment import AugmentConfig
from dino_oct.cli import parse_options, read_settings
from dino_oct.data.index import DatasetConfig
from dino_oct.data.phantom import PhantomConfig
from dino_oct.errors import InputError
from dino_oct.files import is_same_path
from dino_oct.learner import OptimConfig
from dino_oct.limits import DropPath, Heads, Name, NewName, Range, Seed, Text
from dino_oct.loss import LossConfig
from dino_oct.monitor import MonitorConfig

REPOSITORY = Path(__file__).resolve().parents[1]
Settings = TypeVar("Settings", bound="RunSettings")
_MOST_BLOCKS, _WIDEST = 1000, 16384  # of a timm model


@dataclass
class ModelArgs:
    """What of a timm model a run may change."""

    section: ClassVar[str] = "model"

    args: list[str] = field(default_factory=list)
    """Further arguments of the timm model, as NAME=VALUE: embed_dim=96 depth=3 num_heads=3."""
    heads: Heads | None = None
    """Attention heads, for a file whose tensors do not tell; unset: 64 channels each, which is said."""

    def timm_args(self) -> dict[str, Any]:
        """``args`` as keyword arguments."""
        return {name: yaml.safe_load(value) for name, _, value in (entry.partition("=") for entry in self.args)}

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        names = [entry.partition("=")[0] for entry in self.args]
        for entry, name in zip(self.args, names, strict=True):
            if not name.isidentifier() or "=" not in entry:
                return "args", f"'{entry}': write NAME=VALUE, for example depth=3"
            if names.count(name) > 1:
                return "args", f"{name} is given twice"
            try:
                value = yaml.safe_load(entry.partition("=")[2])
            except Exception:  # PyYAML raises anything for a value that its tag does not fit
                return "args", f"{entry}: not a number, a word or a list of these"
            numbers = [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, (int, float))]
            most = _MOST_BLOCKS if name in ("depth", "depths") else _WIDEST
            if any(not -most <= x <= most for x in numbers):
                return "args", f"{entry}: must be at most {most:,}"
        return None


@dataclass
class ModelConfig(ModelArgs):
    """Backbone and head."""

    drop_path: DropPath = 0.1
    """Stochastic depth of the student, linear over depth; the teacher has none."""
    init: Literal["dino", "fan_in"] = "dino"
    """Weights of new linear layers: DINO's std .02, or by fan-in, for narrow networks from scratch."""
    out_dim: Annotated[int, Range(2, 2**20)] = 65536
    """K, prototypes of the head; 2048–16384 suit small data."""
    hidden_dim: Annotated[int, Range(1, 16384)] = 2048
    """Width of the head."""
    bottleneck_dim: Annotated[int, Range(1, 16384)] = 256
    """Width before the prototypes."""
    norm_last_layer: bool = True
    """Keep the prototypes' gain at 1."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    compile: bool = False
    """torch.compile the backbones (a minute or more at the start, then faster on GPUs)."""


Steps = Annotated[int, Range(1, 10**9)]


@dataclass
class RunConfig:
    """How the run is carried out; nothing here changes what is learned, except precision."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the networks; head normalisation, softmax, centre and loss are float32 either way. auto: bf16 where the device
    computes it fast."""
    workers: Annotated[int, Range(0, 256)] = 4
    """Loader processes per training process; 0 loads in the training process."""
    log_every: Steps = 10
    """Optimiser steps between lines of metrics.jsonl."""
    save_every: Steps = 500
    """Optimiser steps between checkpoints (checkpoints/last.pt)."""
    keep_every: Annotated[int, Range(0, 10**9)] = 0
    """Also keep a checkpoint every so many optimiser steps; 0 keeps only the last and the best."""
    timeout_minutes: Annotated[int, Range(1, 100_000)] = 60
    """Give up when another process has not answered for so long; the first decoding of a large data set counts."""


@dataclass
class RunSettings:
    """What a run of any trainer is told, and every run folder's ``config.yaml`` holds."""

    config: str = ""
    """Preset file."""
    data: Name = "phantom"
    """OCT2017-style folder, any folder of images, or 'phantom'."""
    out: NewName = ""
    """Run folder; unset: named after the preset or the model, under runs/."""
    init: Name = "timm:vit_base_patch8_224.dino"
    """Where to start: run, export, file of weights or its address, timm:NAME, timm:NAME@FILE or random:NAME."""
    resume: Name = "auto"
    """auto goes on from the run folder's last checkpoint, never starts anew (an old run is moved aside), or a PATH."""
    seed: Seed = 0
    """Of weights, order and views."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def starts_from_random(self) -> bool:
        """Whether the run's first weights were random."""
        return self.init.startswith("random")


@dataclass
class TrainConfig(RunSettings):
    """DINO pretraining on OCT scans. Presets are in configs/; every option below overrides the preset."""

    config: str = "configs/quickstart.yaml"
    """Preset file."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


def load_config(args: Sequence[str]) -> TrainConfig:
    """Settings of a pretraining from its command line; see ``load_settings``."""
    config = load_settings(TrainConfig, args)
    return config if config.out else dataclasses.replace(config, out=f"runs/{Path(config.config).stem}")


def load_settings(settings_type: type[Settings], args: Sequence[str]) -> Settings:
    """Settings of a run from its command line: defaults, then ``--config``'s file, then the options.

    Raises:
        InputError: unknown setting or wrong type, in the file or on the command line.
    """
    preset, default = settings_type.config, settings_type()
    for i, arg in enumerate(args):
        if arg == "--config" and i + 1 < len(args):
            preset = args[i + 1]
        elif arg.startswith("--config="):
            preset = arg.partition("=")[2]
    if preset:
        if need := Text(1).need(preset):
            raise InputError(f"--config {preset[:60]}: {need}")
        file = Path(preset)
        if not file.is_file() and (REPOSITORY / preset).is_file():
            file = REPOSITORY / preset
        default = read_settings(settings_type, file)
    config = parse_options(settings_type, args, default=default, prog=Path(sys.argv[0]).name)
    if config.resume not in ("auto", "never") and not Path(config.resume).exists():
        raise InputError(f"--resume {config.resume}: no such checkpoint; give auto, never or a path")
    return config


def use_bf16(precision: str) -> bool:
    """Whether ``run.precision`` means bfloat16 on this machine."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")  # without the instruction, bf16 on a CPU is slower than float32
    return flags.is_file() and "avx512_bf16" in flags.read_text()


def _is_same(old: Any, new: Any) -> bool:
    """Whether two values of a setting mean the same; texts may be spellings of one path, if it is there."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_same, old, new))
    both_exist = isinstance(old, str) and isinstance(new, str) and all(one and Path(one).exists() for one in (old, new))
    return old == new or (both_exist and is_same_path(old, new))


def differences(old: RunSettings, new: RunSettings) -> list[str]:
    """Settings that differ, as 'section.key: old → new', those that cannot change training left out."""
    changed = []
    harmless = ("config", "out", "resume", "run.", "monitor.")

    def compare(a, b, prefix=""):
        for item in dataclasses.fields(a):
            x, y = getattr(a, item.name), getattr(b, item.name)
            if dataclasses.is_dataclass(x):
                compare(x, y, f"{prefix}{item.name}.")
            elif not _is_same(x, y) and (prefix or item.name) not in harmless:
                changed.append(f"{prefix}{item.name}: {x} → {y}")

    compare(old, new)
    return changed
