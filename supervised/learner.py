"""One optimiser step of supervised training, whatever the number of processes and micro-batches."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import nn

from dino_oct import processes
from dino_oct.learner import NotFiniteError, check_finite
from dino_oct.models.trainable import parameter_groups
from dino_oct.schedules import warmup_cosine
from supervised.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of what learns in ``model``; its learning rates are set at every step."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0)
        case "adam":
            return torch.optim.Adam(groups, lr=0.0)
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=0.0, momentum=config.momentum)


class ClassifierLearner:
    """A classifier and its optimiser, and the step that moves them.

    Args:
        model: a timm model with a classifier, its frozen part set; wrapped for several processes here. Its BatchNorm
            statistics are then those of all GPUs together (of each process alone on CPUs, which torch cannot join).
        steps: of the whole run, over which the learning rate falls.
        known_share: of several labels a scan, the share that is known of the training scans; unset: one class a scan.
            It scales the loss, so that a step does not depend on how micro-batches share out the unknown ones.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        steps: int,
        steps_per_epoch: int,
        n_classes: int,
        accelerator: Accelerator,
        known_share: float | None = None,
    ):
        model = model.to(accelerator.device)
        if processes.count() > 1 and accelerator.device.type == "cuda":
            model = convert_sync_batchnorm(model)
        self.model, self.config, self.n_classes, self.accelerator = model, config, n_classes, accelerator
        self.known_share = known_share
        self.optimizer = make_optimizer(model, config)
        warmup = min(int(config.warmup_epochs * steps_per_epoch), steps)
        self.lr = warmup_cosine(config.lr, config.lr * config.min_lr_share, steps, warmup)
        self._model = accelerator.prepare_model(model)

    def step(
        self, micro_batches: Sequence[tuple[torch.Tensor, torch.Tensor]], rate: float, mixing: np.random.Generator
    ) -> dict[str, float]:
        """One optimiser step.

        Args:
            micro_batches: of this process; normalised images (B, C, H, W) and classes (B,), or several labels (B, L),
                1, 0, or negative where not known. Mixup mixes each scan with its neighbour in the batch (0 with 1, 2
                with 3 …), so that micro-batches of an even size, and any number of processes, mix the same.
            rate: learning rate.
            mixing: draws how strongly mixup mixes; the same on every process.

        Returns:
            loss (nats, over all processes), norm of the gradient before clipping, learning rate.

        Raises:
            NotFiniteError: on every process, before the weights have changed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        share = mixing.beta(self.config.mixup, self.config.mixup) if self.config.mixup else 1.0
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for i, (images, labels) in enumerate(micro_batches):
            known, target = self._target(labels)
            if share < 1:
                images, target = (share * batch + (1 - share) * _neighbours(batch) for batch in (images, target))
                known = known & _neighbours(known) if known is not None else None
            last = i == len(micro_batches) - 1
            with self.accelerator.no_sync(self._model) if not last else contextlib.nullcontext():
                with self.accelerator.autocast():
                    logits = self._model(images)
                loss = self._loss(logits.float(), target, known)
                mean = processes.total(loss.detach()) / processes.count()
                if not torch.isfinite(mean):
                    raise NotFiniteError(f"the loss is {mean.item()}")
                total += float(mean) / len(micro_batches)
                (loss / len(micro_batches)).backward()
        learning = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(learning, self.config.clip_grad or float("inf"))
        if not torch.isfinite(norm):
            raise NotFiniteError(f"the gradient's norm is {norm.item()}")
        self.optimizer.step()
        return {"loss": total, "grad_norm": float(norm), "lr": rate}

    def _target(self, labels: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What is known of several labels (B, L), None of classes, and probabilities (B, C or L) to learn."""
        if self.known_share is None:
            return None, F.one_hot(labels, self.n_classes).float()
        return labels >= 0, labels.clamp_min(0).float()

    def _loss(self, logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        """Cross-entropy of classes; of several labels, binary cross-entropy where they are ``known``."""
        smoothing = self.config.label_smoothing
        if known is None:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        target = target * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (losses * known).mean() / self.known_share

    def check_weights(self) -> None:
        """Raise NotFiniteError, on every process, unless all weights are finite."""
        check_finite(list(self.model.parameters()), "the weights")

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` saved."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def _neighbours(batch: torch.Tensor) -> torch.Tensor:
    """The rows of a batch (B, …) with each pair exchanged; of an odd number the last one stays."""
    order = torch.arange(len(batch), device=batch.device)
    paired = order[: len(batch) // 2 * 2].view(-1, 2).flip(1).flatten()
    return batch[torch.cat([paired, order[len(paired) :]])]
