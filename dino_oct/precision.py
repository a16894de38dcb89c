"""Which precision a machine computes fast, and how fast."""

import sys
import time
from functools import lru_cache
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env

from dino_oct.devices import default_device

_MUCH = 1.5  # times slower from which it is said
_SMALL, _LONG = 128, 0.2  # side of the first matrices that are tried; seconds of a product that are too many


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


@lru_cache
def warn_of_slow_bf16(device: torch.device) -> None:
    """Say on stderr, once, that the device is a processor that takes much longer in the bfloat16 that was asked for."""
    if device.type != "cpu":
        return
    fp32, bf16 = (matrix_peak(device, bf16, side=512) for bf16 in (False, True))
    if fp32 > _MUCH * bf16:
        slower = f"warning: this processor multiplies matrices {fp32 / bf16:.0f} times slower in bf16 than in fp32"
        print(f"{slower}, and bf16 was asked for", file=sys.stderr, flush=True)


def matrix_peak(device: torch.device, bf16: bool, side: int | None = None) -> float:
    """Operations per second of a matrix product of random numbers, the median of several; within some seconds.

    Args:
        side: of the square matrices, at most; None: so large that it reaches the device's peak. On a processor it is
            smaller where a product would take long: one of side 2048 takes half a minute without instructions for bf16.
    """
    largest = side or (8192 if device.type == "cuda" else 2048)
    side = largest if device.type == "cuda" else min(_SMALL, largest)
    while (seconds := _product(device, bf16, side, times=2)[-1]) * 8 < _LONG and side < largest:
        side *= 2
    if seconds < _LONG:
        seconds = sorted(_product(device, bf16, side, times=7)[2:])[2]
    return 2 * side**3 / seconds


def _product(device: torch.device, bf16: bool, side: int, times: int) -> list[float]:
    """Seconds of each of some products of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds
