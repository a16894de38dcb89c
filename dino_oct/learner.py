"""One optimiser step of DINO: teacher, student, loss, clipping, AdamW, EMA, in the order of the public code."""

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.profiler import record_function

from dino_oct import loss as dino_loss
from dino_oct import processes, sharding
from dino_oct.config import LossConfig, ModelConfig, OptimConfig, PretrainingRunConfig
from dino_oct.models.lora import adapter_state, add_adapters, merged_state
from dino_oct.models.network import image_feature
from dino_oct.models.official import full_checkpoint, network_tensors
from dino_oct.models.packed import can_pack, open_rates, packed_block
from dino_oct.models.trainable import layer_scales, set_trainable
from dino_oct.schedules import linear_then_constant, warmup_cosine
from dino_oct.teacher import follow, make_teacher, share_statistics, with_batch_statistics


@dataclass(frozen=True)
class StepValues:
    """The scheduled values of one optimiser step."""

    lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    freeze_last_layer: bool = False
    freeze_backbone: bool = False


class Schedules:
    """All schedules of a plan; ``schedules[position]`` gives the values of its optimiser step."""

    def __init__(self, optim: OptimConfig, loss: LossConfig, steps_per_epoch: int):
        self.steps_per_epoch = steps_per_epoch
        self.steps = optim.epochs * steps_per_epoch
        warmup_steps = int(optim.warmup_epochs * steps_per_epoch)
        self.lr = warmup_cosine(optim.lr * optim.batch_size / 256, optim.min_lr, self.steps, warmup_steps)
        self.weight_decay = warmup_cosine(optim.weight_decay, optim.weight_decay_end, self.steps)
        self.momentum = warmup_cosine(optim.teacher_momentum, optim.teacher_momentum_end, self.steps)
        self.temperature = linear_then_constant(
            loss.warmup_teacher_temperature,
            loss.teacher_temperature,
            loss.warmup_teacher_temperature_epochs,
            optim.epochs,
        )
        self.freeze_last_layer_steps = optim.freeze_last_layer_epochs * steps_per_epoch
        self.freeze_backbone_steps = (optim.freeze_backbone_epochs or 0) * steps_per_epoch

    def __getitem__(self, step: int) -> StepValues:
        return StepValues(
            lr=float(self.lr[step]),
            weight_decay=float(self.weight_decay[step]),
            teacher_momentum=float(self.momentum[step]),
            teacher_temperature=float(self.temperature[step // self.steps_per_epoch]),
            freeze_last_layer=step < self.freeze_last_layer_steps,
            freeze_backbone=step < self.freeze_backbone_steps,
        )


class NotFiniteError(RuntimeError):
    """The loss, a gradient or a weight became NaN or infinite."""


@torch.no_grad()
def check_finite(tensors: Sequence[torch.Tensor], name: str) -> None:
    """Raise NotFiniteError unless the joint norm of the tensors is finite."""
    norm = float(sharding.norms(tensors).square().sum().sqrt())
    if not math.isfinite(norm):
        raise NotFiniteError(f"the norm of {name} is {norm}")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate (a factor of the schedule's) that are decayed or not."""

    lr_scale: float
    is_decayed: bool
    parameters: list[nn.Parameter]


def parameter_groups(student: nn.Module, layer_decay: float = 1.0) -> list[ParameterGroup]:
    """The parameters that learn; biases and other 1-D tensors are not decayed.

    Args:
        student: a ``DinoNetwork``. layer_decay: as of ``layer_scales``; heads have the full rate.
    """
    scales = {f"backbone.{_base(name)}": scale for name, scale in layer_scales(student.backbone, layer_decay).items()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            is_decayed = not (name.endswith(".bias") or parameter.ndim == 1)
            groups.setdefault((scales.get(_base(name), 1.0), is_decayed), []).append(parameter)
    ordered = sorted(groups, key=lambda key: (-key[0], not key[1]))
    return [ParameterGroup(*key, groups[key]) for key in ordered]


def _base(name: str) -> str:
    """The name that a parameter has without adapters."""
    return re.sub(r"\.(base_layer|lora_[AB]\.default)\.", ".", name)


@torch.no_grad()
def clip_each(parameters: Sequence[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale each gradient to at most ``largest`` by largest / (norm + 1e-6); returns the joint norm from before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = sharding.norms(gradients)
    if largest:
        factors = (largest / (norms + 1e-6)).clamp_max(1.0)
        torch._foreach_mul_([sharding.local(gradient) for gradient in gradients], factors.unbind())
    return norms.square().sum().sqrt()


def _check_step(loss: float, grad_norm: float) -> None:
    for name, value in (("the loss", loss), ("the gradient's norm", grad_norm)):
        if not math.isfinite(value):
            raise NotFiniteError(f"{name} is {value}")


class StepMetrics(Mapping[str, float]):
    """Numbers of a step by name. A GPU may still be computing them: the first look waits for it.

    Args:
        names: loss, its terms, and what else is logged. values: (names,) on the device.

    Raises:
        NotFiniteError: at the first look, where loss or gradient are not finite and the weights no longer of use.
    """

    def __init__(self, names: tuple[str, ...], values: torch.Tensor):
        self._names, self._values = names, values

    @cached_property
    def _read(self) -> dict[str, float]:
        metrics = dict(zip(self._names, self._values.tolist(), strict=True))
        _check_step(metrics["loss"], metrics["grad_norm"])
        metrics["teacher_student_kl"] = metrics["dino_loss"] - metrics["teacher_entropy"]
        if len(self._names) == 5:  # the loss has one term
            del metrics["dino_loss"]
        return metrics

    def __getitem__(self, name: str) -> float:
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


class _Asked(NamedTuple):
    """The teacher's logits (2, B, K) of all micro-batches, targets of each, and the targets' mean entropy; the same of
    hidden patches, (1, M, K), where there are some."""

    logits: torch.Tensor
    targets: Sequence[torch.Tensor]
    entropy: torch.Tensor
    patch_logits: torch.Tensor | None = None
    patch_targets: Sequence[torch.Tensor] | None = None


class Learner:
    """Student, teacher, targets and optimiser, and the step that moves them.

    Args:
        student: a ``DinoNetwork`` on any device; wrapped for several processes here. BatchNorm's statistics are then
            those of all GPUs together (of each process alone on CPUs, which torch cannot join).
        teacher: initial teacher (a copy of the student when None).
        start: backbone that the anchors hold to; None: a copy of the initial teacher's.
        run: whether several processes shard the networks, and the precision of their gradients then.

    Attributes:
        masks_patches: whether ``step`` needs masks.
    """

    def __init__(
        self,
        student: nn.Module,
        loss: LossConfig,
        optim: OptimConfig,
        accelerator: Accelerator,
        teacher: nn.Module | None = None,
        model: ModelConfig | None = None,
        start: nn.Module | None = None,
        run: PretrainingRunConfig | None = None,
    ):
        self.config, self.optim_config, self.accelerator = loss, optim, accelerator
        is_sharded = run is not None and run.shard and processes.count() > 1
        device = torch.device("cpu") if is_sharded else accelerator.device  # no GPU holds the whole of what is sharded
        self.student = student.to(device).train()
        self.teacher = (teacher or make_teacher(student)).to(device).eval().requires_grad_(False)
        if processes.count() > 1 and accelerator.device.type == "cuda":
            self.student, self.teacher = convert_sync_batchnorm(self.student), convert_sync_batchnorm(self.teacher)
        self.start: nn.Module | None = None
        if loss.anchor_weight or loss.gram_weight:
            start = copy.deepcopy(self.teacher.backbone) if start is None else start
            self.start = start.to(device).eval().requires_grad_(False)
        if model is not None and model.train_blocks is not None:
            set_trainable(self.student.backbone, model.train_blocks)
        if model is not None and model.lora_rank:
            add_adapters(self.student.backbone, model.lora_rank)
            self.student.to(device)
        self._shell = sharding.shell_of(self.teacher) if is_sharded else None
        if is_sharded:
            reduce = torch.bfloat16 if run.reduce == "bf16" else None
            for network in filter(None, (self.student, self.teacher, self.start)):
                sharding.shard(network, accelerator.device, reduce)
        self.out_dim = student.head.last_layer.weight_v.shape[0]
        self.targets = dino_loss.TeacherTargets(self.out_dim, loss).to(accelerator.device)
        self.masks_patches = bool(loss.ibot_weight)
        self.patch_targets: dino_loss.TeacherTargets | None = None
        if self.masks_patches:
            head = student.patch_head or student.head
            self.patch_targets = dino_loss.TeacherTargets(len(head.last_layer.weight_v), loss).to(accelerator.device)
        self._groups = parameter_groups(student, optim.layer_decay)
        groups = [{"params": g.parameters, **({} if g.is_decayed else {"weight_decay": 0.0})} for g in self._groups]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
        # The same module, averaged over processes: by accelerate, or by the sharding.
        self._student = accelerator.prepare_model(self.student, evaluation_mode=is_sharded)
        self._in_steps: list[tuple[nn.Module, str, Callable]] = []  # what replaces an attribute of a module in steps

    def compile(self, backend: str | Callable = "inductor", pack: bool = True) -> None:
        """Run every later ``step`` through torch.compile: a transformer block by block, where all blocks share a graph
        for each size of view; other backbones whole; and the loss on a GPU.

        Only the steps: evaluations come in many sizes, would use up the compiler's graphs, and need hooks.
        """
        for network in (self.student, self.teacher):
            open_rates(network.backbone)
            blocks = list(getattr(network.backbone, "blocks", ()))
            if pack and self._shell is None and can_pack(network.backbone):  # sharded blocks are gathered one by one
                self._in_steps.append((network, "packs", packed_block))
            elif blocks:
                self._in_steps += [(block, "forward", block.forward) for block in blocks]
            else:
                self._in_steps.append((network.backbone, "forward_features", network.backbone.forward_features))
        self._in_steps = [
            (module, name, torch.compile(function, backend=backend, dynamic=False))
            for module, name, function in self._in_steps
        ]
        self.student.to(self.accelerator.device)

    @contextlib.contextmanager
    def _compiled(self) -> Iterator[None]:
        before = [module.__dict__.get(name) for module, name, _ in self._in_steps]
        try:
            for module, name, function in self._in_steps:
                module.__dict__[name] = function
            yield
        finally:
            for (module, name, _), function in zip(self._in_steps, before, strict=True):
                if function is None and name != "packs":
                    del module.__dict__[name]
                else:
                    module.__dict__[name] = function

    def step(
        self,
        micro_batches: Sequence[Sequence[torch.Tensor]],
        values: StepValues,
        masks: Sequence[torch.Tensor] | None = None,
    ) -> StepMetrics:
        """One optimiser step, whatever the number of processes and micro-batches; a GPU is not waited for.

        Args:
            micro_batches: of this process; each holds groups of normalised views (n, B, C, H, W), globals first.
            masks: for each, the patches of the global views that the student does not see, (2, B, rows, columns) bool;
                needed for the iBOT term.

        Returns:
            loss, its terms by name where there are several, teacher entropy and KL (nats), gradient and centre norms:
            means over all processes.

        Raises:
            NotFiniteError: on every process; on CPUs here, before this step has changed anything, else where the
                returned numbers are first looked at.
        """
        with self._compiled():
            return self._step(micro_batches, values, masks or [None] * len(micro_batches))

    def _step(
        self,
        micro_batches: Sequence[Sequence[torch.Tensor]],
        values: StepValues,
        masks: Sequence[torch.Tensor | None],
    ) -> StepMetrics:
        for group, kind in zip(self.optimizer.param_groups, self._groups, strict=True):
            group["lr"] = values.lr * kind.lr_scale
            group["weight_decay"] = values.weight_decay if kind.is_decayed else 0.0
        # The targets of the whole step come first: the centre moves once, and Sinkhorn sees the global batch.
        asked = self._ask_teacher(micro_batches, values.teacher_temperature, masks)
        means = self._learn(micro_batches, masks, asked)
        grad_norm = self._update(values, asked, means["loss"])
        logged = {**means, "center_norm": self.targets.center.norm(), "grad_norm": grad_norm}
        return StepMetrics(tuple(logged), torch.stack(list(logged.values())))

    @record_function("step: teacher")
    def _ask_teacher(
        self,
        micro_batches: Sequence[Sequence[torch.Tensor]],
        temperature: float,
        masks: Sequence[torch.Tensor | None],
    ) -> "_Asked":
        """What the teacher says to the global views, and the targets of each micro-batch."""
        with torch.no_grad(), self.accelerator.autocast(), with_batch_statistics(self.teacher):
            answers = [
                self.teacher(views[:1], mask, hide=False) for views, mask in zip(micro_batches, masks, strict=True)
            ]
        share_statistics(self.teacher)
        logits = torch.cat([answer.logits.float() for answer in answers], dim=1)  # (2, B, K)
        targets = self.targets(logits, temperature)
        batch_sizes = [views[0].shape[1] for views in micro_batches]
        asked = _Asked(logits, targets.split(batch_sizes, dim=1), dino_loss.entropy(targets))
        if self.patch_targets is None:
            return asked
        patch_logits = torch.cat([answer.patch_logits.float() for answer in answers])[None]  # (1, M, K)
        patch_targets = self.patch_targets(patch_logits, temperature)[0]
        return asked._replace(
            patch_logits=patch_logits,
            patch_targets=patch_targets.split([len(answer.patch_logits) for answer in answers]),
        )

    @record_function("step: student")
    def _learn(
        self,
        micro_batches: Sequence[Sequence[torch.Tensor]],
        masks: Sequence[torch.Tensor | None],
        asked: "_Asked",
    ) -> dict[str, torch.Tensor]:
        """Gradients of the student; the loss, its terms and the teacher's entropy, over all processes."""
        self.optimizer.zero_grad(set_to_none=True)
        n, names, sums = len(micro_batches), (), 0
        patch_targets = asked.patch_targets or [None] * n
        of_batches = zip(micro_batches, asked.targets, masks, patch_targets, strict=True)
        for i, (views, target, mask, patch_target) in enumerate(of_batches):
            with self.accelerator.no_sync(self._student) if i < n - 1 else contextlib.nullcontext():
                terms = self._terms(views, target, mask, patch_target)
                loss = sum(weight * term for weight, term in terms.values())
                names = ("loss", *terms)
                sums += torch.stack([loss, *(term for _, term in terms.values())]).detach() / n
                with record_function("step: backward"):
                    (loss / n).backward()
        means = processes.total(torch.cat([sums, asked.entropy[None]])) / processes.count()
        return dict(zip((*names, "teacher_entropy"), means, strict=True))

    @record_function("step: update")
    def _update(self, values: StepValues, asked: "_Asked", loss: torch.Tensor) -> torch.Tensor:
        """Clip, move student, centres and teacher; the joint norm of the gradients from before."""
        named = [(n, p) for n, p in self.student.named_parameters() if p.requires_grad]
        grad_norm = clip_each([p for _, p in named], self.optim_config.clip_grad)
        if self.accelerator.device.type == "cpu":
            _check_step(float(loss), float(grad_norm))
        for name, parameter in named:
            # A dropped gradient keeps AdamW from touching the tensor at all, its moments and decay included.
            if (values.freeze_last_layer and "last_layer" in name) or (
                values.freeze_backbone and name.startswith("backbone.")
            ):
                parameter.grad = None
        self.targets.update(asked.logits)
        if self.patch_targets is not None:
            self.patch_targets.update(asked.patch_logits)
        self.optimizer.step()
        follow(self.teacher, self.student, values.teacher_momentum)
        return grad_norm

    def _terms(
        self,
        views: Sequence[torch.Tensor],
        target: torch.Tensor,
        mask: torch.Tensor | None,
        patch_target: torch.Tensor | None,
    ) -> dict[str, tuple[float, torch.Tensor]]:
        """Name → weight and value of each term of the loss of one micro-batch."""
        config = self.config
        output = self._student(views, mask, keep_patches=bool(config.gram_weight))
        terms = {"dino_loss": (1.0, dino_loss.dino_cross_entropy(output.logits, target, config.student_temperature))}
        if config.koleo_weight:
            spread = sum(dino_loss.koleo(view) for view in output.features[: len(target)])
            terms["koleo"] = (config.koleo_weight, spread)
        if patch_target is not None:
            of_patches = dino_loss.ibot_cross_entropy(
                output.patch_logits, patch_target, mask, config.student_temperature
            )
            terms["ibot_loss"] = (config.ibot_weight, of_patches)
        if self.start is not None:
            with torch.no_grad(), self.accelerator.autocast():
                tokens = self.start.forward_features(views[0].flatten(0, 1))
            if config.anchor_weight:
                features = output.features[: len(target)].flatten(0, 1)
                distance = dino_loss.anchor(features, image_feature(self.start, tokens))
                terms["anchor"] = (config.anchor_weight, distance)
            if config.gram_weight:
                distance = dino_loss.gram_anchor(output.patches, tokens[:, self.start.num_prefix_tokens :])
                terms["gram"] = (config.gram_weight, distance)
        return terms

    @torch.no_grad()
    def teacher_statistics(self, views: Sequence[torch.Tensor], temperature: float) -> dict[str, float]:
        """Entropy of the teacher and KL to the student (nats) on given views, changing nothing.

        Every process must call it with the same number of views.
        """
        self.student.eval()  # without stochastic depth the same weights give the same numbers
        with self.accelerator.autocast():
            targets = self.targets(self.teacher(views[:1]).logits, temperature)
            logits = self.student(views).logits
        self.student.train()
        cross_entropy = dino_loss.dino_cross_entropy(logits, targets, self.config.student_temperature)
        entropy = dino_loss.entropy(targets)
        return {"teacher_entropy": entropy.item(), "teacher_student_kl": (cross_entropy - entropy).item()}

    def check_weights(self) -> None:
        """Raise NotFiniteError, on every process, unless student, teacher and centres are finite."""
        centers = [targets.center for targets in self._all_targets().values()]
        tensors = [tensor for network in (self.student, self.teacher) for tensor in network.state_dict().values()]
        tensors = [tensor for tensor in tensors if tensor.is_floating_point()]  # BatchNorm counts its batches
        check_finite([*tensors, *centers], "the weights")

    def _all_targets(self) -> dict[str, dino_loss.TeacherTargets]:
        """By the name that a checkpoint gives their centre."""
        return {"center": self.targets, **({"patch_center": self.patch_targets} if self.patch_targets else {})}

    def whole_teacher(self) -> nn.Module:
        """The teacher for what is no step; a plain copy where it is sharded, which every process must ask for."""
        if self._shell is None:
            return self.teacher
        return sharding.filled(self._shell, self.teacher, self.accelerator.device)

    def state_dict(self) -> dict:
        """Student (adapters summed up), teacher, centre and optimiser in the official key format; ``lora`` holds the
        adapters, where there are some.

        Where they are sharded, every process must call it, and the main one alone gets the tensors.
        """
        state = full_checkpoint(
            merged_state(self.student),
            self.teacher.state_dict(),
            self.targets.center,
            optimizer=self.optimizer.state_dict(),
        )
        state["dino_loss"] = {name: targets.center for name, targets in self._all_targets().items()}
        return sharding.gathered(state | ({"lora": adapters} if (adapters := adapter_state(self.student)) else {}))

    def load_state_dict(self, state: dict) -> None:
        """Restore what ``state_dict`` saved."""
        student = network_tensors(state, "student")
        if adapters := state.get("lora"):
            summed = {name.replace(".base_layer.", ".") for name in adapters if ".base_layer." in name}
            student = {name: tensor for name, tensor in student.items() if name not in summed} | adapters
        for network, tensors in ((self.student, student), (self.teacher, network_tensors(state, "teacher"))):
            network.load_state_dict(sharding.sharded_state(tensors, network))
        for name, targets in self._all_targets().items():
            center = state["dino_loss"][name]
            if center.shape != targets.center.shape:  # copy_ would spread one number over all prototypes
                raise ValueError(f"a {name} of {tuple(center.shape)} for {tuple(targets.center.shape)}")
            targets.center.copy_(center)
        self.optimizer.load_state_dict(sharding.sharded_moments(state["optimizer"], self.optimizer))

    @property
    def uniform_loss(self) -> float:
        """ln K."""
        return math.log(self.out_dim)
