"""Settings of supervised runs and searches: defaults here, then a YAML preset, then the command line.

Nothing here imports a network, so that ``--help`` and wrong options are answered at once.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from dino_oct.cli import parse_options, read_mapping
from dino_oct.config import CropConfig, ModelArgs, RunSettings, load_settings
from dino_oct.errors import InputError
from dino_oct.limits import (
    BatchSize,
    Device,
    DropPath,
    Epochs,
    Name,
    NewName,
    PartialEpochs,
    PositiveShare,
    Range,
    Rate,
    Seed,
    Share,
    Side,
)
from dino_oct.presets import find_preset
from supervised.paper import PAPER

Method = Literal["random", "bayes"]


@dataclass
class NetworkConfig(ModelArgs):
    """Images, and what of the network learns."""

    section: ClassVar[str] = "network"

    image_size: Side | None = None
    """Side of the images that scans are resized to, in pixels; unset: that of the weights."""
    train: str = "full"
    """full; head: the classifier alone; or a number of last blocks, with the classifier."""
    drop_path: DropPath = 0.0
    """Stochastic depth, linear over depth, for architectures that have it."""

    def trained_part(self) -> Literal["full", "head"] | int:
        """``train`` as ``trainable.set_trainable`` takes it."""
        return self.train if self.train in ("full", "head") else int(self.train)

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        if self.train in ("full", "head") or self.train.isdecimal():
            return super().mismatch()
        return "train", "give full, head or a number of last blocks"


@dataclass
class OptimConfig:
    """Optimisation. Batch sizes count scans of all processes together."""

    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    epochs: Epochs = 30
    """Epochs at most; one epoch is as many scans as the training split has."""
    patience: Annotated[int, Range(0, 100_000)] = 8
    """Stop after so many epochs without better validation; 0 never stops early."""
    batch_size: BatchSize = 32
    """Scans per optimiser step, over all processes and micro-batches."""
    accumulate: BatchSize = 1
    """Micro-batches per optimiser step: raise it when memory is short."""
    lr: Rate = 1e-4
    """Peak learning rate, as it is (not scaled by the batch)."""
    min_lr_share: Share = 0.01
    """Learning rate at the end of the cosine, as a share of the peak; 1 keeps it constant."""
    warmup_epochs: PartialEpochs = 1.0
    """Epochs of linear warm-up from 0."""
    momentum: Annotated[float, Range(0, below=1)] = 0.9
    """Of sgd and rmsprop; not used by adam and adamw."""
    weight_decay: Rate = 0.05
    """Decoupled for adamw, an L2 penalty for the others; biases and other 1-D tensors have none."""
    layer_decay: PositiveShare = 1.0
    """Factor of the learning rate from a block to the one before it; 0.65–0.8 suit fine-tuned ViTs."""
    clip_grad: Annotated[float, Range(0)] = 0.0
    """Largest joint norm of the gradient; 0 does not clip."""
    label_smoothing: Share = 0.0
    """Share of the target spread evenly over the classes; of several labels, over yes and no."""
    mixup: Annotated[float, Range(0, 100)] = 0.0
    """Alpha of mixup's Beta distribution (Zhang et al. 2018); 0 mixes nothing."""
    balanced: bool = True
    """Show every class equally often, repeating scans of the rarer ones. Several labels a scan: as they are."""


@dataclass
class SupervisedConfig(RunSettings):
    """Supervised training on labelled OCT scans. Presets are in configs/supervised/; options override the preset."""

    model: Name = "resnet50"
    """Name in the paper or in timm (dino-oct zoo lists them), or SOURCE: a run or export to fine-tune, a
    file of weights, timm:NAME, timm:NAME@FILE or random:NAME."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Weights of a name: ImageNet's or random; a SOURCE brings its own."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: CropConfig = field(default_factory=CropConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    test: bool = True
    """Classify the test split once, when training is done, with the weights that validation chose."""

    def __post_init__(self):
        if self.model.startswith("random:"):
            self.init = "random"


@dataclass
class SearchOptions:
    """Hyper-parameter search over architectures (Optuna): random, then Bayesian (TPE), with Hyperband stopping."""

    models: list[Name] = field(default_factory=list)
    """Architectures: names in the paper or in timm, or SOURCEs (random:NAME, timm:NAME, timm:NAME@FILE, a run). Unset:
    the space's."""
    method: Method = "random"
    """random; or bayes: the TPE sampler, which starts from all finished trials of the study."""
    trials: Annotated[int, Range(1, 1_000_000)] = 20
    """Trials of this method in the study, over all workers and restarts; failed ones are replaced, up to as many."""
    storage: str = ""
    """Database URL (sqlite:///FILE, postgresql://…, mysql://…) or journal file; unset: OUT/study.journal."""
    study: NewName = ""
    """Name of the study in the storage; unset: the name of the --out folder."""
    data: str | None = None
    """OCT2017-style folder, a table of scans, or 'phantom'; unset: that of the base."""
    out: NewName = "runs/search"
    """Folder of the search, which all its workers share; each trial is a run folder OUT/trials/NNNN."""
    space: Name = "configs/search/paper.yaml"
    """What is searched, and where: YAML, setting → {low, high} with log or step, or a list of choices."""
    finish: bool | None = None
    """End the search: test the winner of each architecture. Unset: after the last trial of bayes, not of random."""
    keep_weights: bool = False
    """Keep the weights of all trials, not only of the best of each architecture."""
    seed: Seed = 0
    """Of the draws; trial n of a random search draws the same settings with any number of workers."""
    device: Device = "auto"
    """What networks compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps."""
    base: SupervisedConfig = field(default_factory=SupervisedConfig)


@dataclass
class ZooOptions:
    """The paper's architectures: names, sizes, and the layers that embeddings and Grad-CAM read. Downloads nothing."""

    filter: str = ""
    """Only names, the paper's or timm's, that contain this."""

    def names(self) -> dict[str, str]:
        """Those of ``PAPER`` that contain the filter."""
        return {paper: timm for paper, timm in PAPER.items() if self.filter.lower() in f"{paper} {timm}".lower()}

    def mismatch(self) -> tuple[str, str] | None:
        """See ``check_settings``."""
        return None if self.names() else ("filter", f"no such name among {', '.join(PAPER)}")


def load_config(args: Sequence[str]) -> SupervisedConfig:
    """Settings of a supervised run from its command line; see ``load_settings``."""
    config = load_settings(SupervisedConfig, args)
    if config.out:
        return config
    name = Path(config.config).stem or "supervised_" + re.sub(r"[^A-Za-z0-9.-]+", "_", config.model).strip("_")
    return dataclasses.replace(config, out=f"runs/{name}")


def load_options(args: Sequence[str]) -> SearchOptions:
    """Options of a search from its command line; ``--base.config FILE`` is a preset of the settings that trials share.

    Raises:
        InputError: as ``load_settings`` and ``read_space_file``, or an option of the base that the search gives itself.
    """
    preset = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == "--base.config"]
    preset += [arg.partition("=")[2] for arg in args if arg.startswith("--base.config=")]
    base = load_settings(SupervisedConfig, ["--config", preset[-1]] if preset else [])
    options = parse_options(SearchOptions, args, default=SearchOptions(base=base))
    own = ("model", "out", "device")
    given = [name for name in own if getattr(options.base, name) != getattr(base, name)]
    if given:
        raise InputError(f"--base.{given[0]}: the search has its own option for it: --models, --out or --device")
    read_space_file(options.space)  # refused here if it is missing, not after the search's libraries are loaded
    return options


def read_space_file(file: str | Path) -> dict[str, Any]:
    """What a file of a search space holds, unchecked: setting → range or choices.

    Raises:
        InputError: no such file, not YAML, or empty.
    """
    file = find_preset(file)
    given = read_mapping(file, "search space", "search")
    if not given:
        raise InputError(f"{file}: expected 'setting: {{low, high}}' or 'setting: [choices]', one a line")
    return given
