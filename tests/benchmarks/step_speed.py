"""Images per second and share of the machine's matrix peak of DINO steps, by variant, taking turns in one run.

    python tests/benchmarks/step_speed.py                                     ViT-S/16, 2×224 + 8×96 px
    python tests/benchmarks/step_speed.py --model vit_base_patch8_224.dino --batch-size 32 --variants public compiled
    python tests/benchmarks/step_speed.py --model vit_small_patch14_dinov2 --global-size 112 --local-size 56 \
        --n-local 4 --out-dim 1024 --variants eager plain

Views are given: nothing here waits for data. The share of the peak is that of ``dino_oct/speed.py``; the
peak is measured between the turns.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from accelerate import Accelerator
from public_step import PublicStep
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino_oct.cli import run_command
from dino_oct.config import AugmentConfig, LossConfig, OptimConfig
from dino_oct.learner import Learner, StepValues
from dino_oct.models.backbone import load_backbone
from dino_oct.models.head import DinoHead
from dino_oct.models.network import DinoNetwork
from dino_oct.models.packed import packed_block
from dino_oct.models.plain_attention import use_plain_attention
from dino_oct.precision import matrix_peak, use_bf16
from dino_oct.speed import operations_per_scan

VALUES = StepValues(lr=1e-6, weight_decay=0.04, teacher_momentum=0.996, teacher_temperature=0.04)
Variant = Literal[
    "public",
    "eager",
    "waits",
    "plain",
    "cudnn",
    "flash",
    "packed",
    "packed-plain",
    "compiled-plain",
    "compiled",
    "compiled-cudnn",
    "compiled-flash",
    "compiled-apart",
    "recompute",
]


@dataclass
class Options:
    """Time steps of a training."""

    model: str = "vit_small_patch16_224.dino"
    """timm name."""
    global_size: int = 224
    local_size: int = 96
    n_local: int = 8
    batch_size: int = 16
    out_dim: int = 65536
    drop_path: float = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    steps: int = 3
    """Of each, after two that warm up."""
    variants: list[Variant] = field(default_factory=lambda: ["public", "eager"])
    """public: the public code's order and kernels. eager: this package. waits: with a wait behind each step. plain:
    attention by matrix products. cudnn, flash: attention by one library. compiled: torch.compile by block. recompute:
    activation checkpointing."""
    profile: list[Variant] = field(default_factory=list)
    """Variants whose longest kernels are printed too."""


def make_network(options: Options) -> DinoNetwork:
    """A student of random weights."""
    backbone = load_backbone(f"random:{options.model}", model_args={"img_size": 224}, drop_path=options.drop_path)
    return DinoNetwork(backbone, DinoHead(backbone.num_features, options.out_dim))


def build(variant: Variant, options: Options, accelerator: Accelerator) -> Callable[[list[torch.Tensor]], object]:
    """A function that makes one step over groups of views."""
    network = make_network(options)
    if "recompute" in variant:
        network.backbone.set_grad_checkpointing(True)
    if variant == "public":
        return PublicStep(network, accelerator.device).step
    learner = Learner(network, LossConfig(), OptimConfig(clip_grad=0.3), accelerator)
    if "plain" in variant:
        use_plain_attention(learner.student)
        use_plain_attention(learner.teacher)
    if "compiled" in variant:
        learner.compile(pack="apart" not in variant)
    if "packed" in variant:
        learner.student.packs = learner.teacher.packs = packed_block
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    backend = next((b for name, b in backends.items() if name in variant), None)

    def step(views: list[torch.Tensor]) -> object:
        with sdpa_kernel(backend) if backend else contextlib.nullcontext():
            metrics = learner.step([views], VALUES)
            return dict(metrics) if variant == "waits" else metrics

    return step


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def peak_memory(device: torch.device, into: dict[str, float], name: str) -> Iterator[None]:
    """Keep the greatest GPU memory of what runs inside, GiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    if device.type == "cuda":
        into[name] = max(into.get(name, 0.0), torch.cuda.max_memory_allocated() / 2**30)


def main(options: Options) -> None:
    """Print a row for each variant."""
    bf16 = use_bf16(options.precision)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if bf16 else "no")
    device = accelerator.device
    sizes = [(2, options.global_size), (options.n_local, options.local_size)]
    views = [torch.randn(n, options.batch_size, 3, side, side, device=device) for n, side in sizes if n]
    network = make_network(options)
    crops = AugmentConfig(global_size=options.global_size, local_size=options.local_size, n_local=options.n_local)
    per_scan = operations_per_scan(network, crops)
    peaks, seconds, memory, first, steps = [], {}, {}, {}, {}
    for name in options.variants:
        start = time.perf_counter()
        steps[name] = build(name, options, accelerator)
        for _ in range(2):
            with peak_memory(device, memory, name):
                steps[name](views)
                wait(device)
        first[name], seconds[name] = time.perf_counter() - start, []
        print(f"{name}: ready after {first[name]:.0f} s", flush=True)
    rounds = 3
    for _ in range(rounds):
        peaks.append(matrix_peak(device, bf16))
        for name, step in steps.items():
            wait(device)
            start = time.perf_counter()
            for _ in range(options.steps):
                step(views)
            wait(device)
            seconds[name].append((time.perf_counter() - start) / options.steps)
    peak_rate, base = sorted(peaks)[rounds // 2], None
    print(
        f"{options.model} · {' + '.join(f'{n}×{side}' for n, side in sizes)} px · batch {options.batch_size} · K "
        f"{options.out_dim} · {device.type}, {'bf16' if bf16 else 'fp32'} · {per_scan / 1e12:.3f} TFLOP a scan · "
        f"matrix peak {peak_rate / 1e12:.2f} TFLOP/s"
    )
    print(f"{'variant':20} {'images/s':>9} {'of peak':>8} {'times':>6} {'GiB':>6}   slowest and fastest turn")
    for name, turns in seconds.items():
        turn = sorted(turns)[rounds // 2]
        base = base or turn
        rate = options.batch_size / turn
        print(
            f"{name:20} {rate:9.1f} {rate * per_scan / peak_rate:8.1%} {base / turn:6.2f} {memory.get(name, 0):6.1f}   "
            f"{options.batch_size / max(turns):.1f} … {options.batch_size / min(turns):.1f}",
            flush=True,
        )
    for name in options.profile:
        show_profile(name, functools.partial(steps[name], views), device)


def show_profile(name: str, step: Callable[[], object], device: torch.device) -> None:
    """Print where the time of a step goes."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        step()
        wait(device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [
        row for row in profiler.key_averages() if getattr(row, key) and (not on_gpu or row.device_type.name == "CUDA")
    ]
    total = sum(getattr(row, key) for row in rows)
    print(f"profile of {name}: {total / 1e3:.1f} ms")
    spans = {row.key: row for row in profiler.key_averages() if row.key.startswith("step: ")}
    whole = sum(spans[f"step: {part}"].cpu_time_total for part in ("teacher", "student", "update") if spans)
    for part in spans.values():
        print(f"  {part.cpu_time_total / whole:6.1%} {part.key}{' (of the student)' if 'backward' in part.key else ''}")
    for row in sorted(rows, key=lambda row: -getattr(row, key))[:14]:
        print(f"  {getattr(row, key) / total:6.1%} {getattr(row, key) / 1e3:9.2f} ms {row.count:6d} × {row.key[:70]}")


if __name__ == "__main__":
    run_command(main, Options)
