"""Settings of a supervised run: defaults here, then a YAML preset, then the command line."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from dino_oct.augment import CropConfig
from dino_oct.config import ModelArgs, RunSettings, load_settings
from dino_oct.errors import InputError
from dino_oct.limits import DropPath, Name, Side
from supervised.learner import OptimConfig


@dataclass
class NetworkConfig(ModelArgs):
    """Images, and what of the network learns."""

    section: ClassVar[str] = "network"

    image_size: Side | None = None
    """Side of the images that scans are squashed to, in pixels; unset: that of the weights."""
    train: str = "full"
    """full; head: the classifier alone; or a number of last blocks, with the classifier."""
    drop_path: DropPath = 0.0
    """Stochastic depth, linear over depth, for architectures that have it."""

    def trained_part(self) -> Literal["full", "head"] | int:
        """``train`` as ``finetune.set_trainable`` takes it.

        Raises:
            InputError: neither of the words nor a number.
        """
        if self.train in ("full", "head"):
            return self.train
        if not self.train.isdecimal():
            raise InputError(f"network.train '{self.train}': give full, head or a number of last blocks")
        return int(self.train)


@dataclass
class SupervisedConfig(RunSettings):
    """Supervised training on labelled OCT scans. Presets are in configs/supervised/; options override the preset."""

    model: Name = "resnet50"
    """Name in the paper or in timm (python supervised/zoo.py lists them), or SOURCE: a run or export to fine-tune, a
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


def load_config(args: Sequence[str]) -> SupervisedConfig:
    """Settings of a supervised run from its command line; see ``load_settings``."""
    config = load_settings(SupervisedConfig, args)
    if config.out:
        return config
    name = Path(config.config).stem or "supervised_" + re.sub(r"[^A-Za-z0-9.-]+", "_", config.model).strip("_")
    return dataclasses.replace(config, out=f"runs/{name}")
