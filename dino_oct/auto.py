"""Settings chosen from scans, weights and machine (``--preset auto``), each with its reason. Nothing here computes.

For a pretrained backbone and hundreds to thousands of scans they are the gentle recipe that was measured on OCT scans
(docs/pretraining.md): few small steps of a low rate, a slow new head, no stochastic depth. For random weights they are
those of the quickstart (Sinkhorn–Knopp, KoLeo, a sharp teacher), for many scans those of the published recipes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dino_oct.config import AugmentConfig, LossConfig, MonitorConfig, TrainConfig

MANY = 20_000  # training scans from which the published recipes' batches and epochs are meant
LONG = 5_000  # optimiser steps from which their stochastic depth, weight decay and warm-ups are
_GENTLE_LR = 2e-5  # of a step, for pretrained weights
_GENTLE_STEPS, _SCRATCH_STEPS = 200, 1_600  # that a training of few scans is given at least
_OWN_HALF = 4.4  # teacher momentum 1 - 4.4 / steps: the teacher's memory is a share of the training, .98 at 220 steps
_LAYER_DECAY = 1.0  # none: the measured recipe had none
_NARROW = 256  # channels under which a network is initialised and headed as the quickstart's

# Bytes that a training takes for each channel of each token and block: how the peak of ViT-S grew with the scans of a
# step, on a CPU. (Tensors that the backward pass needs are 40 and 73 of them.)
_KEPT = {"bf16": 64, "fp32": 92}
_VALUES = 20  # that the layers of a transformer's block put out for each of its channels
_KEPT_RECOMPUTING = 4  # with checkpointing: a block's input alone
_PER_PARAMETER = 20  # bytes: student, gradient, two moments of AdamW, teacher
_GATHERED = 16  # bytes a parameter of what is whole at a time where all else is sharded: two blocks, gradients of two
_ROUNDED = 2  # bytes a parameter of the student's bf16 copies, which autocast keeps whole for the backward pass
_BASE = 800 << 20  # bytes of PyTorch itself

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Facts:
    """What is known of scans and weights before a pixel is decoded.

    Attributes:
        scans: for training. labelled: those of them with a class.
        size: median rows and columns of the files, in pixels.
        source: a full checkpoint (student, teacher, head, centre), a backbone alone, or random weights.
        patch: pixels per side of a token, or of the smallest map of a network without tokens. width: channels. depth:
            blocks. parameters: of the backbone.
        image_size: shorter side of the images that the backbone was made for, in pixels.
        out_dim: K of a full checkpoint. fixed_gain: whether its prototypes' gain is 1 (``norm_last_layer``).
        loss: settings of the run that a full checkpoint is of; None where they are not known.
        values_per_pixel: that the layers of a network without tokens put out, for each pixel of an image; None: tokens.
    """

    scans: int
    labelled: int
    size: tuple[int, int]
    source: Literal["full", "backbone", "random"]
    patch: int
    width: int
    depth: int
    parameters: int
    image_size: int
    out_dim: int | None = None
    fixed_gain: bool = True
    loss: LossConfig | None = None
    values_per_pixel: float | None = None

    @property
    def cell(self) -> str:
        """What ``patch`` is."""
        return "patch" if self.values_per_pixel is None else "stride"


@dataclass(frozen=True)
class Machine:
    """What a process computes on.

    Attributes:
        memory: bytes that a process may use: of its GPU, or its part of the machine's.
        cores: of the machine for this process. bf16: whether bfloat16 is fast. processes: that train together.
    """

    device: Device
    memory: int
    cores: int
    bf16: bool
    processes: int = 1


@dataclass(frozen=True)
class Choice:
    """One setting's value and why."""

    setting: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = " ".join(map(str, self.value)) if isinstance(self.value, tuple) else f"{self.value}"
        return f"{self.setting} {value}: {self.reason}"


def choose_start(device: Device) -> Choice:
    """The weights to start from, where none are given."""
    if device == "cpu":
        return Choice("init", "timm:vit_small_patch14_dinov2.lvd142m", "22 M parameters, what a CPU can train")
    return Choice("init", "timm:vit_base_patch8_224.dino", "the paper's network")


def choose(facts: Facts, machine: Machine, given: Mapping[str, Any] | None = None) -> list[Choice]:
    """Choose all settings that are not given.

    Args:
        given: settings that the user set, by name as ``optim.lr``; the others are chosen to fit them.
    """
    chooser = _Chooser(facts, machine, dict(given or {}))
    views = chooser.choose_views()
    plan = chooser.choose_plan()
    chooser.choose_targets(plan)
    head = chooser.choose_head(plan)
    chooser.choose_optimiser(plan)
    chooser.choose_machine(views, plan, head)
    chooser.choose_monitor(plan)
    return chooser.choices


@dataclass(frozen=True)
class Views:
    """Sides in pixels of the two global views and of the local ones, and the number of these."""

    global_size: int
    local_size: int
    n_local: int

    def tokens(self, patch: int) -> int:
        """Tokens of all views of a scan, each view's CLS included."""
        return sum((side // patch) ** 2 + 1 for side in self._sides())

    def pixels(self) -> int:
        """Pixels of all views of a scan."""
        return sum(side**2 for side in self._sides())

    def _sides(self) -> list[int]:
        return [self.global_size] * 2 + [self.local_size] * self.n_local


@dataclass(frozen=True)
class Head:
    """Sizes of the head."""

    out_dim: int
    hidden_dim: int
    bottleneck_dim: int


@dataclass(frozen=True)
class _Plan:
    batch_size: int
    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def is_long(self) -> bool:
        return self.steps >= LONG

    @property
    def length(self) -> str:
        return f"a {'long' if self.is_long else 'short'} training of {self.steps:,} steps"

    def in_epochs(self, share: float, most: int) -> float:
        """A share of the training, at most so many steps, in epochs."""
        return round(min(share * self.steps, most) / self.steps_per_epoch, 2)


def memory_of_step(
    facts: Facts,
    views: Views,
    head: Head,
    scans: int,
    precision: Literal["fp32", "bf16"],
    recompute: bool = False,
    shards: int = 1,
) -> int:
    """Bytes that a process of a training takes at its peak, estimated.

    Args:
        scans: of a micro-batch, of one process.
        precision: of the networks. recompute: ``model.grad_checkpointing``.
        shards: processes that share out the networks (``run.shard``).
    """
    depth = facts.depth
    if facts.values_per_pixel is None:
        channels = views.tokens(facts.patch) * facts.width  # of each block
    else:
        channels, depth = views.pixels() * facts.values_per_pixel / _VALUES, 1
    kept = channels * _KEPT[precision] * depth
    if recompute:
        kept = channels * (_KEPT_RECOMPUTING * depth + _KEPT[precision])
    n_views = 2 + views.n_local
    logits = n_views * head.out_dim * 4 * 4  # logits, their softmax, its logarithm and a gradient
    in_head = head.hidden_dim * (facts.width + head.hidden_dim + head.bottleneck_dim)
    in_head += head.bottleneck_dim * head.out_dim
    held = _PER_PARAMETER * (facts.parameters + in_head) // shards
    if shards > 1:
        held += _GATHERED * (facts.parameters // facts.depth + in_head)
        held += _ROUNDED * (facts.parameters + in_head) * (precision == "bf16")
    return _BASE + held + scans * (int(kept) + logits)


class _Chooser:
    """Collects choices; a given setting is taken as it is, and what follows fits it."""

    def __init__(self, facts: Facts, machine: Machine, given: dict[str, Any]):
        self.facts, self.machine, self.given = facts, machine, given
        self.choices: list[Choice] = []

    def pick(self, setting: str, value: Any, reason: str) -> Any:
        """The given value of a setting, else this one."""
        if setting in self.given:
            return self.given[setting]
        self.choices.append(Choice(setting, value, reason))
        return value

    @property
    def is_random(self) -> bool:
        return self.facts.source == "random"

    @property
    def is_narrow(self) -> bool:
        """Whether the network is of the quickstart's kind."""
        return self.is_random and self.facts.width < _NARROW

    def side(self, pixels: float) -> int:
        """The nearest multiple of the patch, one at least."""
        return max(round(pixels / self.facts.patch), 1) * self.facts.patch

    # ---- what is learned from ----------------------------------------------------------------------------------------

    def choose_views(self) -> Views:
        facts, is_gpu = self.facts, self.machine.device == "cuda"
        usual, why = (224, "as on a GPU") if is_gpu else (168, "three quarters of 224: a CPU")
        most = min(facts.image_size, max(facts.size))
        if most < usual:
            why = "the scans' size" if max(facts.size) < facts.image_size else "the size the network was made for"
        global_size = self.pick(
            "augment.global_size", self.side(min(usual, most)), f"{why}, a multiple of the {facts.cell} ({facts.patch})"
        )
        share = 96 / 224 if is_gpu else 1 / 2
        is_small = global_size < 100
        views = Views(
            global_size,
            self.pick("augment.local_size", self.side(global_size * share), "about half of it"),
            self.pick("augment.n_local", 8 if is_gpu else 4, "DINO's number" if is_gpu else "fewer views: a CPU"),
        )
        why = "small views show enough only of large parts" if is_small else "DINO's area"
        default = AugmentConfig()
        self.pick("augment.global_scale", (0.6, 1.0) if is_small else default.global_scale, why)
        self.pick("augment.local_scale", (0.2, 0.6) if is_small else default.local_scale, why)
        return views

    def choose_plan(self) -> _Plan:
        n, is_gpu, processes = self.facts.scans, self.machine.device == "cuda", self.machine.processes
        if n >= MANY and not self.is_random:
            batch, why = 64, "many scans"
        elif n >= MANY and is_gpu:
            batch, why = 256, "many scans, random weights"
        else:
            batch, why = 32, "many small steps beat few large ones"
        fitting = 2 ** int(math.log2(max(n // 3, 1)))
        if fitting < batch:
            batch, why = fitting, f"{n} scans are few"
        if batch % processes:
            batch, why = -(-batch // processes) * processes, f"a multiple of {processes} processes"
        batch = self.pick("optim.batch_size", batch, why)
        per_epoch = max(n // batch, 1)
        least = _SCRATCH_STEPS if self.is_random else _GENTLE_STEPS
        once = 20 if self.is_random else 4
        if n >= MANY:
            epochs = (100 if self.is_random else 10) if is_gpu else (20 if self.is_random else 2)
            why = "as published" if is_gpu else f"a CPU; on a GPU {100 if self.is_random else 10}"
        else:
            epochs = max(once, math.ceil(least / per_epoch))
            why = f"{epochs * per_epoch:,} steps" + ("" if epochs == once else f", {least:,} are needed")
        return _Plan(batch, self.pick("optim.epochs", epochs, why), per_epoch)

    # ---- loss and head -----------------------------------------------------------------------------------------------

    def choose_targets(self, plan: _Plan) -> None:
        source, loss = self.facts.source, self.facts.loss
        warmup = 0
        if source == "full" and loss is not None:
            why = "as the run that it goes on from"
            centering, koleo = loss.centering, loss.koleo_weight
            start = end = loss.teacher_temperature
        elif source == "full":
            why = "head and centre come from the file"
            centering, koleo, start, end = "center", 0.0, 0.07, 0.07
        elif self.is_random:
            why = "random weights collapse without"
            centering, koleo, start, end = "sinkhorn", 0.1, 0.02, 0.02
        else:
            why = "a new head's logits hardly differ"
            centering, koleo, start, end = "center", 0.0, 0.02, 0.02
        if source != "full" and plan.is_long:
            warmup, end = max(round(plan.epochs * (0.1 if self.is_random else 0.3)), 1), 0.04
        why_centre = "the gentle recipe" if source == "backbone" else why
        self.pick("loss.centering", centering, why_centre)
        self.pick("loss.koleo_weight", koleo, why_centre)
        sharp = f"sharp: {why}" if source != "full" else why
        self.pick("loss.warmup_teacher_temperature", start, sharp)
        self.pick("loss.teacher_temperature", end, plan.length if end != start else sharp)
        why = "as the teacher gets better" if warmup else "one temperature throughout"
        self.pick("loss.warmup_teacher_temperature_epochs", warmup, why)

    def choose_head(self, plan: _Plan) -> Head:
        facts, default = self.facts, TrainConfig().model
        if self.is_random:
            init, why = ("fan_in", "a narrow network") if self.is_narrow else ("dino", "a wide network")
            self.pick("model.init", init, why)
        if facts.source == "full":
            out_dim = self.pick("model.out_dim", facts.out_dim, "of the file")
            self.pick("model.norm_last_layer", facts.fixed_gain, "of the file")
        else:
            sizes = {5_000: 1024, MANY: 4096, 50_000: 16384}
            out_dim = next((size for most, size in sizes.items() if facts.scans < most), 65536)
            out_dim = 256 if facts.scans < 5_000 and (self.is_narrow or facts.scans < 100) else out_dim
            out_dim = self.pick("model.out_dim", out_dim, f"prototypes for {facts.scans:,} scans")
        if self.is_narrow:
            hidden_dim = self.pick("model.hidden_dim", 256, "a narrow network")
            bottleneck_dim = self.pick("model.bottleneck_dim", 32, "a narrow network")
        else:
            hidden_dim = self.given.get("model.hidden_dim", default.hidden_dim)
            bottleneck_dim = self.given.get("model.bottleneck_dim", default.bottleneck_dim)
        is_deep = plan.is_long and not self.is_narrow
        self.pick("model.drop_path", 0.1 if is_deep else 0.0, plan.length)
        return Head(out_dim, hidden_dim, bottleneck_dim)

    # ---- how fast ----------------------------------------------------------------------------------------------------

    def choose_optimiser(self, plan: _Plan) -> None:
        batch = plan.batch_size
        if self.is_random:
            peak = (1e-3 if self.is_narrow else 5e-4) * min(batch / 32, 1)
        else:
            peak = _GENTLE_LR * min(batch / 32, 1)
        why = "random weights" if self.is_random else "gentle: keeps what the weights know"
        lr = float(f"{peak * 256 / batch:.4g}")
        self.pick("optim.lr", lr, f"{peak:.2g} for {batch} scans; {why}")
        if self.is_narrow:
            self.pick("optim.min_lr", 1e-5, "a narrow network")
        self.pick("optim.layer_decay", _LAYER_DECAY, "all blocks at one rate, as it was measured")
        share = 0.1 if self.is_random else 0.075
        warmup = plan.in_epochs(share, 10_000 if self.is_random else 500)
        self.pick("optim.warmup_epochs", warmup, f"{warmup * plan.steps_per_epoch:,.0f} of {plan.steps:,} steps")
        decay, why = (0.4, "as published") if plan.is_long and not self.is_narrow else (0.04, plan.length)
        self.pick("optim.weight_decay_end", decay, why)
        clip, why = (3.0, "random weights") if self.is_random else (0.3, "pretrained weights: small steps only")
        self.pick("optim.clip_grad", clip, why)
        momentum = min(max(1 - _OWN_HALF / plan.steps, 0.98), 0.9995)
        if self.is_random:
            momentum = 0.996 if plan.is_long else 0.98
        self.pick("optim.teacher_momentum", round(momentum, 4), plan.length)
        end = 0.999 if self.is_random and not plan.is_long else 1.0
        self.pick(
            "optim.teacher_momentum_end",
            end,
            "the teacher follows to the end" if end < 1 else "the teacher comes to rest",
        )
        last_layer, why = (1.0, "as published") if self.is_random and plan.is_long else (0.0, plan.length)
        self.pick("optim.freeze_last_layer_epochs", last_layer, why if self.is_random else "the head may learn at once")
        if self.facts.source == "backbone":
            frozen = plan.in_epochs(0.125, 500)
            why = f"the new head learns alone for {frozen * plan.steps_per_epoch:.0f} steps"
        else:
            frozen, why = 0.0, "the head is as old as the backbone"
        self.pick("optim.freeze_backbone_epochs", frozen, why)

    # ---- where it runs -----------------------------------------------------------------------------------------------

    def choose_machine(self, views: Views, plan: _Plan, head: Head) -> None:
        facts, machine = self.facts, self.machine
        is_gpu = machine.device == "cuda"
        if self.is_narrow and not is_gpu:
            precision, why = "fp32", "a narrow network on a CPU"
        else:
            precision = "bf16" if machine.bf16 else "fp32"
            why = "this device computes it fast" if machine.bf16 else "bf16 is slow on this device"
        precision = self.pick("run.precision", precision, why)
        if precision == "auto":
            precision = "bf16" if machine.bf16 else "fp32"
        budget = int(machine.memory * (0.8 if is_gpu else 0.5))
        share = max(plan.batch_size // machine.processes, 1)
        tries = [(part, recompute) for recompute in (False, True) for part in _divisors(share) if share // part >= 4]
        tries = tries or [(1, False)]
        tries += [(part, True) for part in _divisors(share)]
        if "model.grad_checkpointing" in self.given:
            tries = [(part, self.given["model.grad_checkpointing"]) for part in _divisors(share)]
        if "optim.accumulate" in self.given:
            part = self.given["optim.accumulate"]
            tries = [(part, recompute) for recompute in sorted({recompute for _, recompute in tries})]

        shards = machine.processes if self.given.get("run.shard") else 1

        def needed(part: int, recompute: bool) -> int:
            return memory_of_step(facts, views, head, -(-share // part), precision, recompute, shards)

        parts, recompute = next((one for one in tries if needed(*one) <= budget), tries[-1])
        why = f"a micro-batch takes {needed(parts, recompute) / 2**30:.1f} of {machine.memory / 2**30:.1f} GB"
        self.pick("optim.accumulate", parts, why)
        why = "the activations of a micro-batch do not fit" if recompute else "memory suffices without"
        self.pick("model.grad_checkpointing", recompute, why)
        if is_gpu:
            cores = max(machine.cores // machine.processes - 1, 0)
            self.pick("run.workers", min(cores, 8), f"{machine.cores} cores for {machine.processes} processes")
        else:
            self.pick("run.workers", 0, "the cores are busy with training")

    def choose_monitor(self, plan: _Plan) -> None:
        default = MonitorConfig()
        side = self.side(min(default.image_size[0], self.facts.image_size, max(self.facts.size)))
        near = "near 224" if side > 200 else "of scans or network"
        self.pick(
            "monitor.image_size", (side, side), f"{near}, a multiple of the {self.facts.cell} ({self.facts.patch})"
        )
        every = 1 if self.facts.scans >= MANY else max(round(plan.epochs / 5), 1)
        what = "k-NN" if self.facts.labelled else "features"
        self.pick("monitor.every_epochs", float(every), f"judges the {what} {math.ceil(plan.epochs / every) + 1} times")


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
