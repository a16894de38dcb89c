"""A DINO step with the order of operations and the kernels of the public code (Caron et al. 2021), to compare with.

Attention without a fused kernel, float16 with scaled gradients on a GPU (float32 on a CPU), one log-softmax for each
pair of views, and Python loops over parameters for clipping and for the teacher. Written anew, from the paper's
algorithm 1 and the behaviour of its code; the views are given.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from dino_oct.models.network import DinoNetwork


class PublicStep:
    """Student, teacher, centre and optimiser; ``step`` moves them.

    Args:
        student: a network of backbone and head; its attention is made plain.
    """

    def __init__(self, student: DinoNetwork, device: torch.device, clip: float = 0.3):
        for module in student.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        self.student = student.to(device).train()
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.device, self.clip = device, clip
        self.center = torch.zeros(1, len(student.head.last_layer.weight_v), device=device)
        learning = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        decayed = [p for name, p in learning if p.ndim > 1]
        others = [p for name, p in learning if p.ndim == 1]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
        self.scaler = torch.amp.GradScaler(enabled=device.type == "cuda")

    def loss(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Mean over pairs of different views; (views, B, K) logits."""
        student = student / 0.1
        targets = F.softmax((teacher - self.center) / 0.04, dim=-1).detach()
        total, terms = 0.0, 0
        for q, target in enumerate(targets):
            for v, view in enumerate(student):
                if v != q:
                    total = total + torch.sum(-target * F.log_softmax(view, dim=-1), dim=-1).mean()
                    terms += 1
        with torch.no_grad():
            self.center = self.center * 0.9 + teacher.flatten(0, 1).mean(dim=0, keepdim=True) * 0.1
        return total / terms

    def step(self, views: Sequence[torch.Tensor], lr: float = 0.0, momentum: float = 0.996) -> float:
        """One step over groups of normalised views (n, B, C, H, W), globals first; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            teacher = self.teacher(views[:1]).logits
            loss = self.loss(self.student(views).logits, teacher)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()}")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norms = []
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                norm = parameter.grad.norm(2)
                norms.append(norm.item())
                coefficient = self.clip / (norm + 1e-6)
                if coefficient < 1:
                    parameter.grad.mul_(coefficient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                ours.mul_(momentum).add_((1 - momentum) * theirs.detach())
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()
