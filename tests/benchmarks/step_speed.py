"""Images per second of a DINO step on this machine, with torch's fused attention and with plain matrix products.

    python tests/benchmarks/step_speed.py                                ViT-S/14, 2×168 + 4×84 px, batch 32
    python tests/benchmarks/step_speed.py --global-size 112 --local-size 56

The two take turns, so that a busy machine slows both.
"""

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from dino_oct.cli import run_command
from dino_oct.config import LossConfig, OptimConfig
from dino_oct.learner import Learner, StepValues
from dino_oct.models.attention import use_plain_attention
from dino_oct.models.backbone import load_backbone
from dino_oct.models.head import DinoHead
from dino_oct.models.network import DinoNetwork
from dino_oct.runtime import use_bf16


@dataclass
class Options:
    """Time steps of a training."""

    model: str = "vit_small_patch14_dinov2"
    """timm name."""
    global_size: int = 168
    local_size: int = 84
    n_local: int = 4
    batch_size: int = 32
    out_dim: int = 1024
    steps: int = 3
    """Of each, after one that warms up."""


def main(options: Options) -> None:
    """Print images per second of both, and their ratio."""
    precision = "bf16" if use_bf16("auto") else "no"
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    sizes = ((2, options.global_size), (options.n_local, options.local_size))
    views = [torch.randn(n, options.batch_size, 3, side, side, device=accelerator.device) for n, side in sizes]
    values = StepValues(lr=0.0, weight_decay=0.0, teacher_momentum=1.0, teacher_temperature=0.04)
    learners, seconds = {}, {}
    for name in ("fused", "plain"):
        backbone = load_backbone(f"random:{options.model}", model_args={"img_size": 224})
        network = DinoNetwork(backbone, DinoHead(backbone.num_features, options.out_dim))
        learners[name] = Learner(network, LossConfig(), OptimConfig(), accelerator)
        seconds[name] = 0.0
        if name == "plain":
            use_plain_attention(learners[name].student)
            use_plain_attention(learners[name].teacher)
    for step in range(1 + options.steps):
        for name, learner in learners.items():
            start = time.perf_counter()
            learner.step([views], values)
            seconds[name] += (time.perf_counter() - start) * (step > 0)
    fused, plain = (options.steps * options.batch_size / taken for taken in seconds.values())
    print(
        f"{options.model}, 2×{options.global_size} + {options.n_local}×{options.local_size} px, batch "
        f"{options.batch_size}, {accelerator.device.type} {precision}, {torch.get_num_threads()} threads: fused "
        f"{fused:.1f} images/s, plain {plain:.1f}: {plain / fused:.2f} times as fast"
    )


if __name__ == "__main__":
    run_command(main, Options)
