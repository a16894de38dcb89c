"""Settings of a pretraining run: defaults here, then a YAML preset, then the command line.

Nothing here imports a network, so that ``--help`` and wrong options are answered at once.
"""

import dataclasses
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml

from dino_oct.cli import options_in, parse_options, read_settings, settings_in
from dino_oct.data.index import DatasetConfig
from dino_oct.data.phantom import PhantomConfig
from dino_oct.errors import InputError
from dino_oct.files import is_same_path
from dino_oct.limits import (
    BatchSize,
    Blocks,
    Device,
    DropPath,
    Epochs,
    Heads,
    Items,
    Name,
    Neighbours,
    NewName,
    Ordered,
    PartialEpochs,
    PositiveShare,
    Range,
    Rate,
    Scans,
    Seed,
    Share,
    Side,
    Text,
    all_settings,
)
from dino_oct.presets import find_preset

Settings = TypeVar("Settings", bound="RunSettings")
_MOST_BLOCKS, _WIDEST = 1000, 16384  # of a timm model


Strength = Annotated[float, Range(0, 10)]
Scale = Annotated[tuple[PositiveShare, PositiveShare], Ordered()]


@dataclass
class ViewConfig:
    """How a view of a scan varies. A strength or probability of 0 switches a change off."""

    preset: Literal["oct", "parity"] = "oct"
    """Intensity changes. oct: those below. parity: DINO's for natural images, on grey (brightness and contrast .4 with
    p .8; blur with p 1, .1, .5 on first global, second global, local views; solarisation .2 on the second global; hue,
    saturation and grey conversion do nothing to grey), without tilt; the strengths below are then ignored."""
    ratio: Annotated[tuple[float, float], Range(0.01, 100), Ordered()] = (3 / 4, 4 / 3)
    """Range of width / height of the boxes."""
    frame: Literal["square", "pixels"] = "square"
    """What area and ratio are measured on. square: the scan resized to a square, so that the number of A-scans, which
    differs between devices and classes, leaves no trace. pixels: the scan as stored (as torchvision does), where a wide
    scan is never seen whole."""
    min_tissue: Share = 0.2
    """Least share of a view that must be tissue (or the whole scan's share, if that is less): the first of 10 random
    boxes that has it is taken, else the one with the most. 0 accepts every box."""
    flip: Share = 0.5
    """Probability of swapping left and right (the other eye)."""
    tilt: Annotated[float, Range(0, 0.5)] = 0.1
    """Greatest slope of the tilt, in pixels per pixel of the resized scan: each A-scan is moved up or down."""
    tilt_p: Share = 0.5
    """Probability of a tilt."""
    tone_p: Share = 0.8
    """Probability of changing gain, gamma and contrast (together)."""
    gain: Strength = 0.25
    """Brightness is multiplied by up to 1 + this, or divided."""
    gamma: Strength = 0.25
    """Exponent of the display curve: up to 1 + this, or its inverse."""
    contrast: Strength = 0.25
    """Contrast around the view's mean is multiplied by up to 1 + this, or divided."""
    speckle: Strength = 0.2
    """Greatest standard deviation of the multiplicative speckle."""
    speckle_p: Share = 0.5
    """Probability of added speckle."""
    blur: Annotated[tuple[float, float], Range(0, 20), Ordered()] = (0.3, 1.2)
    """Range of the Gaussian blur's sigma in pixels of the view."""
    blur_p: Share = 0.2
    """Probability of blur."""
    shadow: Share = 0.6
    """Greatest share of light that an A-scan shadow takes in its centre."""
    shadow_p: Share = 0.3
    """Probability of 1 to 3 shadows."""


Pair = Literal["none", "slice", "visit", "eye", "patient"]


@dataclass
class AugmentConfig(ViewConfig):
    """Views of a scan for DINO and how they vary. A strength or probability of 0 switches a change off."""

    global_size: Side = 224
    """Side of the 2 global views in pixels."""
    local_size: Side = 96
    """Side of the local views in pixels."""
    n_local: Annotated[int, Range(0, 100)] = 8
    """Number of local views; 0 for none."""
    global_scale: Scale = (0.4, 1.0)
    """Range of a global view's area as a fraction of the scan."""
    local_scale: Scale = (0.05, 0.4)
    """Range of a local view's area as a fraction of the scan."""
    pair: Pair = "none"
    """Scan of the second global view: none: the same scan; slice: a neighbouring slice of the volume; visit: the fellow
    slice of another visit of the eye; eye, patient: another scan of the same eye or patient."""
    pair_distance: Annotated[int, Range(0, 1000)] = 1
    """Slices that a partner may be away (slice, visit)."""


@dataclass
class CropConfig(ViewConfig):
    """One view of a scan, for training with labels, and how it varies. A strength of 0 switches a change off."""

    scale: Scale = (0.5, 1.0)
    """Range of the view's area as a fraction of the scan."""


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

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if self.lora_rank and self.train_blocks is not None:
            return "lora_rank", "give it or train_blocks, not both"
        return super().mismatch()

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
    train_blocks: Blocks | None = None
    """Only so many last blocks of the backbone learn, with the norm behind them; unset: all."""
    lora_rank: Annotated[int, Range(0, 1024)] = 0
    """Rank of LoRA adapters on the attention (needs PEFT); the rest of the backbone stays. 0: none."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    compile: bool = False
    """torch.compile the backbones (a minute or more at the start, then faster on GPUs)."""


Temperature = Annotated[float, Range(0.001, 100)]
Weight = Annotated[float, Range(0, 100)]


@dataclass
class LossConfig:
    """Loss and targets."""

    centering: Literal["center", "sinkhorn"] = "center"
    """What keeps the teacher from one answer for all: DINO's running centre, or Sinkhorn–Knopp on the global batch."""
    student_temperature: Temperature = 0.1
    """Divides the student's logits."""
    teacher_temperature: Temperature = 0.07
    """Divides the teacher's logits after the warm-up. Loss stuck at ln K: lower it (to .02, or .01 on small data)."""
    warmup_teacher_temperature: Temperature = 0.04
    """Teacher temperature of the first epoch."""
    warmup_teacher_temperature_epochs: Annotated[int, Range(0, 100_000)] = 30
    """Epochs over which the temperature goes linearly from its first to its final value."""
    center_momentum: Share = 0.9
    """Share of the old centre kept at each step."""
    koleo_weight: Weight = 0.0
    """Weight of the KoLeo regulariser on the student's CLS of the global views; .1 keeps small data from collapsing."""
    anchor_weight: Weight = 0.0
    """Weight of the anchor: 1 − cosine between CLS of the student and of the starting teacher, on the global views."""
    gram_weight: Weight = 0.0
    """Weight of the Gram anchor (DINOv3): squared difference of the patches' cosine similarities between the student
    and the starting teacher, on the global views."""
    ibot_weight: Weight = 0.0
    """Weight of the iBOT term: the teacher's answer for patches that the student does not see; 1 is DINOv2's."""
    ibot_head: Literal["shared", "own"] = "shared"
    """Head of the patches: that of CLS (iBOT), or their own (DINOv2)."""
    mask_share: Share = 0.5
    """Share of the global views in which patches are hidden, for the iBOT term."""
    mask_ratio: Annotated[tuple[float, float], Range(0, 1), Ordered()] = (0.1, 0.5)
    """Range of the share of patches that is hidden in such a view."""


@dataclass
class OptimConfig:
    """Optimisation. Batch sizes count scans of all processes together, so a run does not depend on their number."""

    epochs: Epochs = 100
    """Passes over the training scans."""
    batch_size: BatchSize = 64
    """Scans per optimiser step, over all processes and micro-batches."""
    accumulate: BatchSize = 1
    """Micro-batches per optimiser step: raise it when memory is short. Teacher and centre still move once per step."""
    lr: Rate = 5e-4
    """Peak learning rate for 256 scans per step; the rate used is lr · batch_size / 256."""
    min_lr: Rate = 1e-6
    """Learning rate at the end (not scaled)."""
    layer_decay: PositiveShare = 1.0
    """Factor of the learning rate from a block of the backbone to the one before it; .75 keeps early blocks closer."""
    warmup_epochs: PartialEpochs = 10.0
    """Epochs of linear warm-up from 0."""
    weight_decay: Rate = 0.04
    """Weight decay at the start; biases and other 1-D tensors have none."""
    weight_decay_end: Rate = 0.4
    """Weight decay at the end of its cosine."""
    clip_grad: Annotated[float, Range(0)] = 3.0
    """Largest gradient norm of each parameter tensor; 0 does not clip."""
    teacher_momentum: Share = 0.996
    """Share of the old teacher kept per step, at the start; towards .9995 for batches far under 256."""
    teacher_momentum_end: Share = 1.0
    """Teacher momentum at the end of its cosine."""
    freeze_last_layer_epochs: PartialEpochs = 1.0
    """Epochs during which the head's last layer stays as it is."""
    freeze_backbone_epochs: PartialEpochs | None = None
    """Epochs during which only the head learns. Unset: 1 when a new head meets pretrained weights, else 0."""


@dataclass
class MonitorConfig:
    """Online evaluation."""

    every_epochs: Annotated[float, Range(above=0, most=100_000)] = 1.0
    """Epochs between evaluations; there is always one before the first step and one after the last."""
    image_size: tuple[Side, Side] = (224, 224)
    """Rows and columns that whole scans are resized to for features."""
    k: Neighbours = (5, 10)
    """Neighbours of the k-NN; the first one picks the best checkpoint."""
    max_train: Scans = 5000
    """Labelled training scans searched at most (drawn once, by seed)."""
    max_val: Scans = 1000
    """Validation scans at most."""
    attention_scans: Annotated[int, Range(0, 1000)] = 4
    """Validation scans whose attention is drawn, the same ones over the whole run."""
    attention_size: Side = 480
    """Short side of the scans that attention is drawn on, in pixels."""
    batch_size: BatchSize = 64
    """Scans per forward pass."""


Steps = Annotated[int, Range(1, 10**9)]
Tracker = Literal["wandb", "mlflow", "trackio", "comet"]


@dataclass
class RunConfig:
    """How the run is carried out; nothing here changes what is learned, except precision and reduce."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the networks; head normalisation, softmax, centre and loss are float32 either way. auto: bf16 where the device
    computes it fast."""
    reduce: Literal["fp32", "bf16"] = "fp32"
    """Precision in which several processes sum their gradients; bf16 sends half the bytes and rounds."""
    workers: Annotated[int, Range(0, 256)] = 4
    """Loader processes per training process, as many as there are cores at most; 0 loads in the training process."""
    log_every: Steps = 10
    """Optimiser steps between lines of metrics.jsonl."""
    save_every: Steps = 500
    """Optimiser steps between checkpoints (checkpoints/last.pt)."""
    keep_every: Annotated[int, Range(0, 10**9)] = 0
    """Also keep a checkpoint every so many optimiser steps; 0 keeps only the last and the best."""
    trackers: Annotated[list[Tracker], Items(distinct=True)] = field(default_factory=list)
    """Experiment trackers that get the numbers, too, beside TensorBoard; each must be installed."""
    tracker_images: bool = False
    """Send the images as well (attention, views). They show scans of patients: mind where the tracker keeps them."""
    timeout_minutes: Annotated[int, Range(1, 100_000)] = 60
    """Give up when another process has not answered for so long; the first decoding of a large data set counts."""


@dataclass
class PretrainingRunConfig(RunConfig):
    """As ``RunConfig``, of a pretraining."""

    shard: bool = False
    """Share out student, teacher, gradients and optimiser over the GPUs (FSDP), for networks too large for each."""


@dataclass
class RunSettings:
    """What a run of any trainer is told, and every run folder's ``config.yaml`` holds."""

    config: str = ""
    """Preset file."""
    data: Name = "phantom"
    """OCT2017-style folder, any folder of images or volumes, a table of scans, one volume, or 'phantom'."""
    out: NewName = ""
    """Run folder; unset: named after the preset or the model, under runs/."""
    init: Name = "timm:vit_base_patch8_224.dino"
    """Where to start: run, export, file of weights or its address, timm:NAME, timm:NAME@FILE or random:NAME."""
    resume: Name = "auto"
    """auto goes on from the run folder's last checkpoint, never starts anew (an old run is moved aside), or a PATH."""
    seed: Seed = 0
    """Of weights, order and views."""
    device: Device = "auto"
    """What networks compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps."""
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

    given: ClassVar[frozenset[str]] = frozenset()
    """Of one that ``load_config`` read: names of the settings that the user gave, in the file or on the command
    line."""

    config: str = "configs/quickstart.yaml"
    """Preset file."""
    preset: Literal["auto", "none"] | None = None
    """auto chooses each setting that is not given, from scans, weights and machine, and says why. Unset: auto for
    --data other than phantom without --config, else none."""
    run: PretrainingRunConfig = field(default_factory=PretrainingRunConfig)
    dry_run: bool = False
    """Stop before scans are decoded: only say the settings and what they cost (time and memory, estimated)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


def load_config(args: Sequence[str]) -> TrainConfig:
    """Settings of a pretraining from its command line; see ``load_settings``."""
    given = options_in(args)
    is_auto = given.get("preset", "auto") == "auto" and given.get("data", "phantom") != "phantom"
    if "config" not in given and (is_auto or given.get("preset") == "auto"):
        config = load_settings(TrainConfig, args, preset="")
        config.preset = "auto"
    else:
        config = load_settings(TrainConfig, args)
        config.preset = config.preset or "none"
        if config.config:
            given |= dict.fromkeys(settings_in(find_preset(config.config), TrainConfig))
    if not config.out:
        name = Path(config.config).stem or Path(config.data).resolve().name
        config.out = f"runs/{name or 'auto'}"
    config.given = frozenset(given)
    return config


def load_settings(settings_type: type[Settings], args: Sequence[str], preset: str | None = None) -> Settings:
    """Settings of a run from its command line: defaults, then ``--config``'s file, then the options.

    Args:
        preset: the file where ``args`` name none; unset: the type's own, empty: no file.

    Raises:
        InputError: unknown setting or wrong type, in the file or on the command line.
    """
    preset = options_in(args).get("config", settings_type.config if preset is None else preset)
    default = dataclasses.replace(settings_type(), config=preset)
    if preset:
        if need := Text(1).need(preset):
            raise InputError(f"--config {preset[:60]}: {need}")
        default = read_settings(settings_type, find_preset(preset))
    config = parse_options(settings_type, args, default=default, prog=Path(sys.argv[0]).name)
    if config.resume not in ("auto", "never") and not Path(config.resume).exists():
        raise InputError(f"--resume {config.resume}: no such checkpoint; give auto, never or a path")
    return config


def flat(settings: RunSettings) -> dict[str, Any]:
    """All settings by their whole names, as ``optim.lr``; lists as one text, for trackers and tables."""
    values = {setting.name: operator.attrgetter(setting.name)(settings) for setting in all_settings(type(settings))}
    return {name: " ".join(map(str, v)) if isinstance(v, (list, tuple)) else v for name, v in values.items()}


def _is_same(old: Any, new: Any) -> bool:
    """Whether two values of a setting mean the same; texts may be spellings of one path, if it is there."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_same, old, new))
    both_exist = (
        isinstance(old, str) and isinstance(new, str) and all(text and Path(text).exists() for text in (old, new))
    )
    return old == new or (both_exist and is_same_path(old, new))


def differences(old: RunSettings, new: RunSettings) -> list[str]:
    """Settings that differ, as 'section.key: old → new', those that cannot change training left out."""
    changed = []
    harmless = ("config", "preset", "dry_run", "out", "resume", "device", "run.", "monitor.")

    def compare(a, b, prefix=""):
        for item in dataclasses.fields(a):
            x, y = getattr(a, item.name), getattr(b, item.name)
            if dataclasses.is_dataclass(x):
                compare(x, y, f"{prefix}{item.name}.")
            elif not _is_same(x, y) and (prefix or item.name) not in harmless:
                changed.append(f"{prefix}{item.name}: {x} → {y}")

    compare(old, new)
    return changed
