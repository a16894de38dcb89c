"""Which precision a machine computes fast, and how fast."""

import time
from functools import lru_cache
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env

from dino_oct.devices import default_device


def use_bf16(precision: str) -> bool:
    """Whether ``run.precision`` means bfloat16 on this machine.

    auto: a GPU that computes it; a processor that has the instruction and multiplies matrices faster by it, in a trial
    of some milliseconds. Not every such processor does: on some without matrix units (AMX) float32 is faster.
    """
    if precision != "auto":
        return precision == "bf16"
    device = default_device()
    if device.type == "cuda" and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and "avx512_bf16" in flags.read_text() and _is_faster_in_bf16()


@lru_cache
def _is_faster_in_bf16() -> bool:
    cpu = torch.device("cpu")
    return matrix_peak(cpu, bf16=True, side=1024) > matrix_peak(cpu, bf16=False, side=1024)


def matrix_peak(device: torch.device, bf16: bool, side: int | None = None) -> float:
    """Operations per second of a matrix product of random numbers, the median of several.

    Args:
        side: of the square matrices; None: so large that it reaches the device's peak.
    """
    side = side or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / sorted(seconds[2:])[2]
