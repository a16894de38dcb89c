"""How much of a machine's matrix rate a training uses."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dino_oct import processes
from dino_oct.ahead import Ahead
from dino_oct.config import AugmentConfig
from dino_oct.models.network import evaluating, in_channels
from dino_oct.models.plain_attention import use_plain_attention
from dino_oct.precision import matrix_peak

PACE = ("images_per_s", "utilisation", "waiting")
"""What ``Pace.read`` gives: the values of a run that differ from one time to the next."""


def operations_per_scan(network: nn.Module, augment: AugmentConfig) -> float:
    """Floating-point operations of a step for one scan, two for each multiplication with an addition: the student's
    forward pass three times and the teacher's once, without what is recomputed. Nothing is computed.

    Args:
        network: a ``DinoNetwork``.
    """
    sizes = [(2, augment.global_size), (augment.n_local, augment.local_size)]
    shapes = [(n, 1, in_channels(network.backbone), side, side) for n, side in sizes if n]
    student, teacher = (_operations(network, lambda views: network(views), part) for part in (shapes, shapes[:1]))
    return 3 * student + teacher


def operations_per_pass(backbone: nn.Module, side: int) -> float:
    """Floating-point operations of a forward pass of one square image."""
    return _operations(backbone, lambda images: backbone(images[0]), [(1, in_channels(backbone), side, side)])


def _operations(network: nn.Module, run: Callable[[list[torch.Tensor]], object], shapes: list[tuple]) -> float:
    device = next(network.parameters()).device
    with evaluating(network), _plain_attention(network), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        inputs = [torch.empty(shape, device=device) for shape in shapes]
        with FlopCounterMode(display=False) as counter:
            run(inputs)
    return float(counter.get_total_flops())


@contextlib.contextmanager
def _plain_attention(network: nn.Module) -> Iterator[None]:
    """torch counts the products of plain attention on every device, those of its fused kernels on some."""
    before = {module: module.fused_attn for module in network.modules() if hasattr(module, "fused_attn")}
    use_plain_attention(network)
    try:
        yield
    finally:
        for module, fused in before.items():
            module.fused_attn = fused


class Pace:
    """Images per second of a training, its share of the matrix peak, and the share of time that it waits for data.

    Args:
        network: the student. bf16: whether it computes in bfloat16.
    """

    def __init__(self, network: nn.Module, augment: AugmentConfig, device: torch.device, bf16: bool):
        try:
            self._operations = operations_per_scan(network, augment)
        except Exception:  # torch cannot follow every architecture without computing; the training can do without
            self._operations = math.nan
        self._peak = matrix_peak(device, bf16)
        self._scans, self._start, self._waited = 0, time.perf_counter(), 0.0

    def count(self, scans: int) -> None:
        """Scans of a step, of all processes."""
        self._scans += scans

    def read(self, views: Ahead) -> dict[str, float]:
        """Since the last reading: images per second, shares in [0, 1] of the peak (where it is known) and of time."""
        now = time.perf_counter()
        seconds, speed = now - self._start, self._scans / (now - self._start)
        waited, self._waited = views.waited - self._waited, views.waited
        self._scans, self._start = 0, now
        utilisation = speed * self._operations / (self._peak * processes.count())
        paces = dict(zip(PACE, (speed, utilisation, waited / seconds), strict=True))
        return {name: value for name, value in paces.items() if not math.isnan(value)}

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What runs inside does not count."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start
