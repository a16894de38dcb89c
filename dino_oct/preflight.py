"""Before a pretraining: settings that fit scans, weights and machine, and what the training will cost."""

import contextlib
import copy
import math
import operator
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from dino_oct import auto
from dino_oct.augment import MultiCrop
from dino_oct.cli import read_settings
from dino_oct.config import LossConfig, TrainConfig
from dino_oct.data.cores import usable_cores
from dino_oct.data.decode import BadScan, open_image
from dino_oct.data.index import UNLABELLED, DatasetConfig, ScanIndex, cache_root
from dino_oct.data.sampler import shares, steps_per_epoch
from dino_oct.errors import InputError
from dino_oct.learner import Learner, StepValues
from dino_oct.limits import all_settings, check_settings
from dino_oct.masking import block_masks
from dino_oct.models.backbone import load_backbone, patch_size
from dino_oct.models.layers import values_put_out
from dino_oct.models.network import cls_feature, normalise, normalise_views
from dino_oct.networks import Networks, open_start
from dino_oct.precision import use_bf16
from dino_oct.provenance import run_of
from dino_oct.runtime import main_first
from dino_oct.streams import generator

_HEADERS = 64  # files whose size is read
_SAMPLE = 8  # scans of a measured step on a CPU, whose time grows with their number
_CHOSEN = ("augment.", "model.", "loss.", "optim.", "monitor.", "run.", "init")  # what a resumed run keeps


def choose_settings(
    config: TrainConfig, index: ScanIndex, accelerator: Accelerator, resume: Path | None, say: Callable[[str], None]
) -> None:
    """Set what the user has not given (``config.given``), and say each choice with its reason.

    Args:
        index: not decoded yet.
        resume: checkpoint to go on from: its run's settings are kept and nothing is chosen; None: the run begins.

    Raises:
        InputError: as ``load_backbone``; no training scans, or no settings beside the checkpoint.
    """
    if resume is not None:
        _keep_settings(config, resume, say)
    else:
        _choose(config, index, accelerator, say)
    check_settings(config)


def facts_of(config: TrainConfig, index: ScanIndex) -> auto.Facts:
    """What settings are chosen by: names and headers of the files, and the source without its weights where it has a
    name.

    Raises:
        InputError: as ``load_backbone``, or no training scans.
    """
    train = index.positions("train")
    if not len(train):
        raise InputError(f"{index.root}: no scans to train on; lower --dataset.val-fraction or -test-fraction")
    kind, _, name = config.init.partition(":")
    full, loss, fixed_gain, out_dim = {}, None, True, None
    if kind in ("timm", "random"):
        with torch.device("meta"):
            backbone = load_backbone(f"random:{name.partition('@')[0]}", model_args=config.model.timm_args())
        source = "random" if kind == "random" else "backbone"
    else:
        file, full = open_start(config.init)
        backbone = load_backbone(file, model_args=config.model.timm_args(), heads=config.model.heads)
        source = "full" if full else "backbone" if backbone.load_report.matched else "random"
    if full:
        head = full["student"]
        weights = next((t for name, t in head.items() if name.endswith("head.last_layer.weight_v")), None)
        gains = next((t for name, t in head.items() if name.endswith("head.last_layer.weight_g")), None)
        out_dim = None if weights is None else len(weights)
        fixed_gain = gains is None or bool((gains == 1).all())
        loss = _loss_of(config.init)
    return auto.Facts(
        scans=len(train),
        labelled=int((index.labels[train] != UNLABELLED).sum()),
        size=_median_size(index, train),
        source=source,
        **_size_of(backbone),
        image_size=min(backbone.pretrained_cfg["input_size"][1:]),
        out_dim=out_dim or (config.model.out_dim if full else None),
        fixed_gain=fixed_gain,
        loss=loss,
    )


def _size_of(backbone: nn.Module) -> dict[str, Any]:
    """``patch``, ``width``, ``depth``, ``parameters`` and ``values_per_pixel`` of ``auto.Facts``."""
    patch, values = patch_size(backbone), None
    if patch == 1:
        side = 32 * max(min(backbone.pretrained_cfg["input_size"][1:]) // 32, 2)
        patch, values = 32, values_put_out(backbone, (side, side)) / side**2
    return {
        "patch": patch,
        "width": backbone.num_features,
        "depth": len(getattr(backbone, "blocks", ())) or 1,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "values_per_pixel": values,
    }


def machine_of(accelerator: Accelerator) -> auto.Machine:
    """What this process computes on."""
    device, processes = accelerator.device, accelerator.num_processes
    if device.type == "cuda":
        return auto.Machine("cuda", torch.cuda.mem_get_info(device)[0], usable_cores(), use_bf16("auto"), processes)
    return auto.Machine("cpu", machine_memory() // processes, usable_cores(), use_bf16("auto"), processes)


def say_cost(
    config: TrainConfig, networks: Networks, index: ScanIndex, accelerator: Accelerator, say: Callable[[str], None]
) -> None:
    """Measure a step and an evaluation on random images, and say what the whole training takes. Nothing is changed.

    Every process must call it.

    Raises:
        InputError: a batch that cannot be divided, or fewer scans than a batch.
    """
    train, val = (index.positions(split) for split in ("train", "val"))
    steps = config.optim.epochs * steps_per_epoch(len(train), config.optim.batch_size)
    share = shares(config.optim.batch_size, config.optim.accumulate)
    sample = share if accelerator.device.type == "cuda" else min(share, _SAMPLE)
    size = _median_size(index, train, config.dataset.max_side)
    step, judging, memory = _measured(config, networks, accelerator, size, sample)
    step *= share / sample * config.optim.accumulate
    labelled = int((index.labels[train] != UNLABELLED).sum())
    judged = min(labelled, config.monitor.max_train) + min(len(val) or len(train), config.monitor.max_val)
    evaluation = judging * judged / accelerator.num_processes
    every = max(round(config.monitor.every_epochs * steps / config.optim.epochs), 1)
    evaluations = 1 + math.ceil(steps / every)
    say(
        f"estimate: {steps:,} steps of {duration(step)} and {evaluations} evaluations of {duration(evaluation)}: "
        f"{duration(steps * step + evaluations * evaluation)}"
    )
    machine = machine_of(accelerator)
    if memory is None:
        memory = _memory(config, networks, accelerator, share)
    say(
        f"estimate: {memory / 2**30:.1f} GB of memory at the peak, {machine.memory / 2**30:.0f} GB are free"
        + (" on each GPU" if machine.device == "cuda" else "")
    )


def warn_of_disk(index: ScanIndex, dataset: DatasetConfig, say: Callable[[str], None]) -> None:
    """Say if the decoded scans may not fit the disk of their cache; those that are there already are counted, too."""
    rows, columns = _median_size(index, np.arange(len(index)), dataset.max_side)
    root = cache_root(dataset).absolute()
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.is_dir())).free
    if (needed := len(index) * rows * columns) > free:
        say(
            f"warning: {len(index):,} decoded scans take about {needed / 2**30:.0f} GB, {free / 2**30:.0f} GB are free "
            f"in {root}; --dataset.cache-dir names another place, a lower --dataset.max-side makes them smaller"
        )


# ---- choosing --------------------------------------------------------------------------------------------------------


def _choose(config: TrainConfig, index: ScanIndex, accelerator: Accelerator, say: Callable[[str], None]) -> None:
    machine, choices = machine_of(accelerator), []
    if "init" not in config.given:
        choices.append(auto.choose_start(machine.device))
        config.init = choices[0].value
    facts = main_first(accelerator, lambda: facts_of(config, index))
    known = {setting.name for setting in all_settings(TrainConfig)}
    given = {name: operator.attrgetter(name)(config) for name in config.given & known}
    choices += auto.choose(facts, machine, given)
    (choices,) = broadcast_object_list([choices])  # machines may differ, settings not
    kind = {"full": "full checkpoint", "backbone": "backbone only", "random": "random weights"}[facts.source]
    labels = f"{facts.labelled:,} with a class" if facts.labelled else "no labels"
    say(f"scans: {facts.scans:,} for training ({labels}), {facts.size[0]} × {facts.size[1]} px")
    size = f"{facts.cell} {facts.patch}, made for {facts.image_size} px"
    say(f"start: {kind}, {facts.parameters / 1e6:.1f} M parameters, {size}")
    where = "GPU" if machine.device == "cuda" else "CPU"
    several = f"{machine.processes} processes on " if machine.processes > 1 else ""
    say(f"machine: {several}{where}, {machine.memory / 2**30:.0f} GB free, {machine.cores} cores")
    say("settings chosen for these (--SETTING VALUE sets another, --preset none chooses nothing):")
    for choice in choices:
        _set(config, choice.setting, choice.value)
        say(f"  {choice}")
    settings = sorted(name for name in given if name.startswith(_CHOSEN))
    if settings:
        say("given: " + ", ".join(f"{name} {_shown(given[name])}" for name in settings))


def _keep_settings(config: TrainConfig, resume: Path, say: Callable[[str], None]) -> None:
    """Take over the settings of the run that is gone on with, the given ones left out."""
    run = run_of(str(resume))
    if run is None:
        raise InputError(f"{resume}: no config.yaml of its run, whose settings would be kept; give --config FILE")
    stored = read_settings(TrainConfig, run / "config.yaml")
    for setting in all_settings(TrainConfig):
        if setting.name.startswith(_CHOSEN) and setting.name not in config.given:
            _set(config, setting.name, operator.attrgetter(setting.name)(stored))
    say(f"settings: those of {run}/config.yaml, and what is given")


def _set(config: TrainConfig, setting: str, value: Any) -> None:
    section, _, name = setting.rpartition(".")
    setattr(operator.attrgetter(section)(config) if section else config, name, value)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else f"{value}"


def _loss_of(init: str) -> LossConfig | None:
    """The loss of the run that a source is of; None where it is of none."""
    run = run_of(init)
    if run is None:
        return None
    with contextlib.suppress(InputError):
        return read_settings(TrainConfig, run / "config.yaml", others=True).loss
    return None


def _median_size(index: ScanIndex, positions: np.ndarray, max_side: int = 65535) -> tuple[int, int]:
    """Median rows and columns of some files, by their headers, as they are cached."""
    sizes = []
    for i in np.unique(np.linspace(0, len(positions) - 1, _HEADERS).astype(int)).tolist():
        with contextlib.suppress(BadScan), open_image(index.path(positions[i])) as image:
            shrink = min(1.0, max_side / max(image.size))
            sizes.append([side * shrink for side in image.size[::-1]])
    rows, columns = np.median(sizes, axis=0) if sizes else (224, 224)  # decoding will say that none can be read
    return max(int(rows), 1), max(int(columns), 1)


def machine_memory() -> int:
    """Bytes of memory that are free on this machine, or that the group of this process may have."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    return min(limits) if limits else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---- measuring -------------------------------------------------------------------------------------------------------


def _measured(
    config: TrainConfig, networks: Networks, accelerator: Accelerator, size: tuple[int, int], sample: int
) -> tuple[float, float, int | None]:
    """Seconds of a step of ``sample`` scans and of judging one scan, and a GPU's peak memory in bytes (None: a CPU)."""
    device, bf16 = accelerator.device, accelerator.mixed_precision == "bf16"
    student, teacher = copy.deepcopy((networks.student, networks.teacher))
    pixels = generator("images to measure by", config.seed).integers(0, 256, (sample, *size), dtype=np.uint8)
    tissue = np.ones((sample, 16, 16), dtype=np.float32)
    augment = MultiCrop(config.augment, config.seed, device)
    values = StepValues(lr=0.0, weight_decay=0.0, teacher_momentum=1.0, teacher_temperature=1.0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        learner = Learner(student, config.loss, config.optim, accelerator, teacher, config.model, run=config.run)
        side, loss = config.augment.global_size // patch_size(student.backbone), config.loss
        masks = block_masks((side, side), range(sample), 0, config.seed, loss.mask_share, loss.mask_ratio)
        masks = [torch.from_numpy(masks).to(device)] if learner.masks_patches else None

        def step() -> None:
            groups = augment(list(pixels), tissue, range(sample), 0)
            learner.step([[normalise_views(group, student.backbone) for group in groups if len(group)]], values, masks)

        @torch.no_grad()
        def judge(backbone: nn.Module) -> None:
            images = torch.zeros((min(_SAMPLE, sample), 1, *config.monitor.image_size), dtype=torch.uint8)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                cls_feature(backbone, normalise(images.to(device), backbone))

        step_time = _time(step, device)
        backbone = learner.whole_teacher().backbone
        times = step_time, _time(lambda: judge(backbone), device) / min(_SAMPLE, sample)
    memory = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    accelerator.free_memory()  # it knows the copy of the student
    return *times, memory


def _time(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of a second go."""
    work()
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(config: TrainConfig, networks: Networks, accelerator: Accelerator, scans: int) -> int:
    """Peak memory of a training on a CPU in bytes, counted and not measured."""
    backbone, head = networks.student.backbone, networks.student.head
    facts = auto.Facts(
        scans=1,
        labelled=0,
        size=(1, 1),
        source="backbone",
        **_size_of(backbone),
        image_size=1,
    )
    augment, layer = config.augment, head.last_layer.weight_v
    return auto.memory_of_step(
        facts,
        auto.Views(augment.global_size, augment.local_size, augment.n_local),
        auto.Head(layer.shape[0], head.mlp[0].out_features, layer.shape[1]),
        scans,
        "bf16" if accelerator.mixed_precision == "bf16" else "fp32",
        config.model.grad_checkpointing,
        accelerator.num_processes if config.run.shard else 1,
    )


def duration(seconds: float) -> str:
    """A short text: 4.9 s, 12 min, 3.5 h."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds / 86400:.2g} days"
