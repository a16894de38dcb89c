"""One optimiser step of DINO: teacher, student, loss, clipping, AdamW, EMA, in the order of the public code."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import nn

from dino_oct import loss as dino_loss
from dino_oct import processes
from dino_oct.config import LossConfig, OptimConfig
from dino_oct.models.official import full_checkpoint, network_tensors
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
    norm = float(torch.stack(torch._foreach_norm(tensors)).square().sum().sqrt())
    if not math.isfinite(norm):
        raise NotFiniteError(f"the norm of {name} is {norm}")


def parameter_groups(student: nn.Module) -> list[dict]:
    """Two AdamW groups: decayed tensors, and biases and 1-D tensors without decay (their ``weight_decay`` stays 0)."""
    decayed, plain = [], []
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


@torch.no_grad()
def clip_each(parameters: Sequence[nn.Parameter], largest: float) -> float:
    """Scale each gradient to at most ``largest`` by largest / (norm + 1e-6); returns the joint norm from before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    if largest:
        torch._foreach_mul_(gradients, [(largest / (norm + 1e-6)).clamp_max(1.0) for norm in norms])
    return float(torch.stack(norms).square().sum().sqrt())


class Learner:
    """Student, teacher, targets and optimiser, and the step that moves them.

    Args:
        student: a ``DinoNetwork`` on any device; wrapped for several processes here. BatchNorm's statistics are then
            those of all GPUs together (of each process alone on CPUs, which torch cannot join).
        teacher: initial teacher (a copy of the student when None).
    """

    def __init__(
        self,
        student: nn.Module,
        loss: LossConfig,
        optim: OptimConfig,
        accelerator: Accelerator,
        teacher: nn.Module | None = None,
    ):
        self.config, self.optim_config, self.accelerator = loss, optim, accelerator
        self.student = student.to(accelerator.device).train()
        self.teacher = (teacher or make_teacher(student)).to(accelerator.device).eval().requires_grad_(False)
        if processes.count() > 1 and accelerator.device.type == "cuda":
            self.student, self.teacher = convert_sync_batchnorm(self.student), convert_sync_batchnorm(self.teacher)
        self.out_dim = student.head.last_layer.weight_v.shape[0]
        self.targets = dino_loss.TeacherTargets(self.out_dim, loss).to(accelerator.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(student), lr=0.0, foreach=True)
        self._student = accelerator.prepare_model(self.student)  # the same module, averaged over processes
        self._compiled: dict[nn.Module, Callable] = {}

    def compile(self, backend: str | Callable = "inductor") -> None:
        """Run the backbones of every later ``step`` through torch.compile, one graph per size of view.

        Only the steps: evaluations come in many sizes, would use up the compiler's graphs, and need hooks.
        """
        for network in (self.student, self.teacher):
            forward = torch.compile(network.backbone.forward_features, backend=backend, dynamic=False)
            self._compiled[network.backbone] = forward

    @contextlib.contextmanager
    def _compiled_forward(self) -> Iterator[None]:
        try:
            for backbone, forward in self._compiled.items():
                backbone.forward_features = forward
            yield
        finally:
            for backbone in self._compiled:
                del backbone.forward_features

    def step(self, micro_batches: Sequence[Sequence[torch.Tensor]], values: StepValues) -> dict[str, float]:
        """One optimiser step, whatever the number of processes and micro-batches.

        Args:
            micro_batches: of this process; each holds groups of normalised views (n, B, C, H, W), globals first.

        Returns:
            loss, its parts, teacher entropy and KL (nats), gradient and centre norms: means over all processes.

        Raises:
            NotFiniteError: on every process, before this step has changed anything.
        """
        with self._compiled_forward():
            return self._step(micro_batches, values)

    def _step(self, micro_batches: Sequence[Sequence[torch.Tensor]], values: StepValues) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = values.lr
        self.optimizer.param_groups[0]["weight_decay"] = values.weight_decay

        # The targets of the whole step come first: the centre moves once, and Sinkhorn sees the global batch.
        with torch.no_grad(), self.accelerator.autocast(), with_batch_statistics(self.teacher):
            logits = torch.cat([self.teacher(views[:1])[1].float() for views in micro_batches], dim=1)  # (2, B, K)
        share_statistics(self.teacher)
        targets = self.targets(logits, values.teacher_temperature)
        entropy = dino_loss.entropy(targets)
        batch_sizes = [views[0].shape[1] for views in micro_batches]

        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=entropy.device)
        for i, (views, target) in enumerate(zip(micro_batches, targets.split(batch_sizes, dim=1), strict=True)):
            last = i == len(micro_batches) - 1
            with self.accelerator.no_sync(self._student) if not last else contextlib.nullcontext():
                features, student_logits = self._student(views)
                cross_entropy = dino_loss.dino_cross_entropy(student_logits, target, self.config.student_temperature)
                spread = torch.zeros((), device=entropy.device)
                if self.config.koleo_weight:
                    spread = sum(dino_loss.koleo(view) for view in features[: len(target)])
                loss = cross_entropy + self.config.koleo_weight * spread
                logged = torch.stack([loss.detach(), cross_entropy.detach(), spread.detach()])
                logged = processes.total(logged) / processes.count()
                if not torch.isfinite(logged[0]):
                    raise NotFiniteError(f"the loss is {logged[0].item()}")
                sums += logged / len(micro_batches)
                (loss / len(micro_batches)).backward()

        named = [(n, p) for n, p in self.student.named_parameters() if p.requires_grad]
        grad_norm = clip_each([p for _, p in named], self.optim_config.clip_grad)
        if not math.isfinite(grad_norm):
            raise NotFiniteError(f"the gradient's norm is {grad_norm}")
        for name, parameter in named:
            # A dropped gradient keeps AdamW from touching the tensor at all, its moments and decay included.
            if (values.freeze_last_layer and "last_layer" in name) or (
                values.freeze_backbone and name.startswith("backbone.")
            ):
                parameter.grad = None
        self.targets.update(logits)
        self.optimizer.step()
        follow(self.teacher, self.student, values.teacher_momentum)

        entropy = float(processes.total(entropy) / processes.count())
        loss, cross_entropy, spread = sums.tolist()
        metrics = {
            "loss": loss,
            "teacher_entropy": entropy,
            "teacher_student_kl": cross_entropy - entropy,
            "center_norm": float(self.targets.center.norm()),
            "grad_norm": grad_norm,
        }
        if self.config.koleo_weight:
            metrics |= {"dino_loss": cross_entropy, "koleo": spread}
        return metrics

    @torch.no_grad()
    def teacher_statistics(self, views: Sequence[torch.Tensor], temperature: float) -> dict[str, float]:
        """Entropy of the teacher and KL to the student (nats) on given views, changing nothing.

        Every process must call it with the same number of views.
        """
        self.student.eval()  # without stochastic depth the same weights give the same numbers
        with self.accelerator.autocast():
            targets = self.targets(self.teacher(views[:1])[1], temperature)
            logits = self.student(views)[1]
        self.student.train()
        cross_entropy = dino_loss.dino_cross_entropy(logits, targets, self.config.student_temperature)
        entropy = dino_loss.entropy(targets)
        return {"teacher_entropy": entropy.item(), "teacher_student_kl": (cross_entropy - entropy).item()}

    def check_weights(self) -> None:
        """Raise NotFiniteError, on every process, unless student, teacher and centre are finite."""
        networks = (self.student, self.teacher)
        tensors = [tensor for network in networks for tensor in network.state_dict().values()]
        tensors = [tensor for tensor in tensors if tensor.is_floating_point()]  # BatchNorm counts its batches
        check_finite([*tensors, self.targets.center], "the weights")

    def state_dict(self) -> dict:
        """Student, teacher, centre and optimiser in the official key format."""
        return full_checkpoint(
            self.student.state_dict(),
            self.teacher.state_dict(),
            self.targets.center,
            optimizer=self.optimizer.state_dict(),
        )

    def load_state_dict(self, state: dict) -> None:
        """Restore what ``state_dict`` saved."""
        self.student.load_state_dict(network_tensors(state, "student"))
        self.teacher.load_state_dict(network_tensors(state, "teacher"))
        center = state["dino_loss"]["center"]
        if center.shape != self.targets.center.shape:  # copy_ would spread one number over all prototypes
            raise ValueError(f"a centre of {tuple(center.shape)} for {tuple(self.targets.center.shape)}")
        self.targets.center.copy_(center)
        self.optimizer.load_state_dict(state["optimizer"])

    @property
    def uniform_loss(self) -> float:
        """ln K."""
        return math.log(self.out_dim)
