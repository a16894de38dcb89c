"""Time and memory of relevance maps: a batch against one by one, the carried row against whole matrices.

    python tests/benchmarks/relevance_speed.py [--model random:vit_small_patch16_224] [--batch 16] [--threads 1]

On noise, fp32, on the CPU or, with --device cuda, on a GPU. Times are medians of rounds in which the ways take
turns. Memory is measured on the CPU (Linux), one image, each way in a process of its own: the peak of resident memory
above what was resident just before. The other way is the usual one: fused attention off, every block's matrix and its
gradient kept, whole matrices multiplied. The maps of both are compared.
"""

import multiprocessing
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from attention_memory import memory

from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.models.backbone import patch_size
from dino_oct.models.network import in_channels
from evaluation.config import RelevanceMethod as Method
from evaluation.maps.chefer import check_model, relevance
from supervised.architectures import build

_MB = 1e6
_CLASSES = 4


@dataclass
class Options:
    """Time of relevance maps in a batch and one by one; peak memory of a carried row and of whole matrices."""

    model: str = "random:vit_small_patch16_224"
    """SOURCE of a vision transformer to be timed: timm's name, a run, …"""
    size: int = 224
    """Rows and columns of its images, in pixels."""
    batch: int = 16
    """Images in the batch."""
    method: Method = "gradient"
    """Method to be timed."""
    rounds: int = 3
    """Rounds, in each of which every way takes its turn."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """cpu or cuda, where times are measured."""
    memory_model: str = "random:vit_small_patch8_224"
    """SOURCE of a vision transformer whose memory is measured."""
    memory_size: int = 320
    """Rows and columns of its image, in pixels."""

    def __post_init__(self):
        for name in ("size", "batch", "rounds", "threads", "memory_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise InputError(f"device {self.device}: give cpu, or cuda where there is a GPU")


def example(model: str, size: int, batch: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A classifier whose weights need no gradient, and images of noise."""
    network = build(model, _CLASSES, image_size=(size, size)).model.eval().requires_grad_(False)
    images = torch.randn(batch, in_channels(network), size, size, generator=torch.Generator().manual_seed(0))
    return network, images


def time_ways(options: Options) -> dict[str, float]:
    """Seconds for all images of the batch: way → median over the rounds."""
    model, images = example(options.model, options.size, options.batch)
    device = torch.device(options.device)
    model, images = model.to(device), images.to(device)
    targets = [i % _CLASSES for i in range(options.batch)]
    maps: dict[str, torch.Tensor] = {}

    def forward():
        with torch.no_grad():
            model(images)

    def one_by_one():
        each = zip(images.split(1), targets, strict=True)
        maps["one by one"] = torch.cat([relevance(model, image, [target], options.method) for image, target in each])

    def matrices_one_by_one():
        for image in images.split(1):
            whole_matrices(model, image)

    def in_a_batch():
        maps["in a batch"] = relevance(model, images, targets, options.method)

    ways = {"one by one": one_by_one, "in a batch": in_a_batch, "forward pass of the batch": forward}
    if options.method == "gradient":
        ways["whole matrices, one by one"] = matrices_one_by_one
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    torch.testing.assert_close(maps["in a batch"], maps["one by one"], rtol=1e-3, atol=1e-6)
    return {name: statistics.median(times) for name, times in seconds.items()}


def whole_matrices(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The gradient map of class 0 by R ← R + Ā·R from R = I: (B, rows, columns)."""
    kept = []

    def keep(module, args, output):
        output.retain_grad()
        kept.append(output)

    with ExitStack() as hooks:
        for block in model.blocks:
            block.attn.fused_attn = False
            hooks.callback(setattr, block.attn, "fused_attn", True)
            hooks.callback(block.attn.attn_drop.register_forward_hook(keep).remove)
        model(images.detach().requires_grad_())[:, 0].sum().backward()
    product = torch.eye(kept[0].shape[-1]).expand(len(images), -1, -1)
    for weights in kept:
        product = product + (weights.grad * weights).clamp(min=0).mean(dim=1) @ product
    rows = images.shape[-2] // patch_size(model)
    return product[:, 0, model.num_prefix_tokens :].detach().unflatten(-1, (rows, -1))


def backward_only(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What any gradient needs: the pass forward and, down to the first block's attention, back."""
    outputs = []
    with ExitStack() as hooks:
        for block in model.blocks:
            hooks.callback(block.attn.norm.register_forward_pre_hook(lambda _, args: outputs.append(args[0])).remove)
        torch.autograd.grad(model(images.detach().requires_grad_())[:, 0].sum(), outputs)
    return torch.zeros(())


def measure(way: str, options: Options, connection) -> None:
    """Child process: send the bytes of one way above the loaded model, and its map."""
    torch.set_num_threads(1)
    model, images = example(options.memory_model, options.memory_size, 1)
    compute = {
        "row": lambda model, images: relevance(model, images, [0]),
        "matrices": whole_matrices,
        "backward": backward_only,
    }[way]
    small = 4 * patch_size(model)
    relevance(model, images[..., :small, :small], [0])  # libraries allocate their workspaces at the first use
    before = memory("VmRSS")
    maps = compute(model, images)
    connection.send((memory("VmHWM") - before, maps.numpy()))


def measure_ways(options: Options) -> None:
    """Print the peaks of memory."""
    model, _ = example(options.memory_model, options.memory_size, 1)
    tokens = (options.memory_size // patch_size(model)) ** 2 + model.num_prefix_tokens
    heads = model.blocks[0].attn.num_heads
    layer = heads * tokens**2 * 4
    peaks, maps = {}, {}
    context = multiprocessing.get_context("spawn")
    for way in ("backward", "row", "matrices"):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(way, options, there))
        process.start()
        there.close()
        try:
            peaks[way], maps[way] = here.recv()
        except EOFError:
            process.join()
            raise InputError(f"measuring '{way}' ended with status {process.exitcode}: not enough memory?") from None
        process.join()
    print(
        f"memory: {options.memory_model}, 1 image of {options.memory_size} px, {tokens} tokens, "
        f"{len(model.blocks)} blocks, {heads} heads, CPU"
    )
    print(f"one block's attention:           {layer / _MB:7.1f} MB")
    print(f"forward and backward pass alone: {peaks['backward'] / _MB:7.1f} MB above the loaded model")
    added = max(peaks["row"] - peaks["backward"], 0)
    print(f"relevance, a carried row:        {peaks['row'] / _MB:7.1f} MB, {added / layer:.2f} blocks' attention more")
    print(f"relevance by whole matrices:     {peaks['matrices'] / _MB:7.1f} MB")
    print(f"ratio of the two: {peaks['row'] / peaks['matrices']:.2f}")
    difference = abs(maps["row"] - maps["matrices"]).max() / maps["matrices"].max()
    print(f"largest difference of their maps: {difference:.1e} of the largest value")


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(options.threads)
    for model, size in ((options.model, options.size), (options.memory_model, options.memory_size)):
        check_model(example(model, size, 1)[0], options.method)
    seconds = time_ways(options)
    print(
        f"time: {options.model}, {options.batch} images of {options.size} px, method {options.method}, fp32, "
        f"{options.device}, {options.threads} thread(s), median of {options.rounds} rounds"
    )
    for name, took in seconds.items():
        print(f"{name + ':':30}{1000 * took / options.batch:8.1f} ms/image")
    print(f"the batch is {seconds['one by one'] / seconds['in a batch']:.2f} × as fast as one by one (goal: 3)")
    if options.method == "gradient":
        usual = seconds["whole matrices, one by one"] / seconds["in a batch"]
        print(f"and {usual:.2f} × as fast as whole matrices one by one, the usual way")
    print(f"it costs {seconds['in a batch'] / seconds['forward pass of the batch']:.1f} forward passes\n")
    measure_ways(options)


if __name__ == "__main__":
    run_command(main, Options)
