"""Peak memory of CLS attention: the CLS row alone, against keeping the last block's full matrix.

    python tests/benchmarks/attention_memory.py [--size 480] [--architecture vit_small_patch8_224]

Each way runs in a process of its own, on the CPU, with random weights. The number is the peak of resident memory
during the forward pass above what was resident just before it (Linux). The full way turns the fused attention of the
last block off and keeps the matrix that its softmax gives; all other blocks are the same. Both maps are compared.
"""

import multiprocessing
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dino_oct.cli import run_command
from dino_oct.errors import InputError
from dino_oct.models.attention import check_transformer, cls_attention
from dino_oct.models.backbone import load_backbone, patch_size

_STATUS = Path("/proc/self/status")
_MB = 1e6


@dataclass
class Options:
    """Peak memory of CLS attention: the CLS row alone, against the last block's full matrix."""

    architecture: str = "vit_small_patch8_224"
    """timm's name of a vision transformer."""
    size: int = 480
    """Rows and columns of the image, in pixels."""

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"size {self.size}: must be at least 1")


def memory(what: str) -> float:
    """Bytes of this process: VmRSS, resident now, or VmHWM, the peak."""
    line = re.search(rf"{what}:\s+(\d+) kB", _STATUS.read_text())
    return 1024.0 * int(line[1])


@torch.no_grad()
def full_matrix(backbone: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """CLS attention of the last block cut out of the whole matrix: (B, heads, rows, columns)."""
    attn, kept = backbone.blocks[-1].attn, []
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda module, args, output: kept.append(output))
    backbone.forward_features(images)
    rows = images.shape[-2] // patch_size(backbone)
    return kept[0][:, :, 0, backbone.num_prefix_tokens :].unflatten(-1, (rows, -1))


def measure(way: str, options: Options, connection) -> None:
    """Child process: send the bytes of one way above the loaded model, and its map."""
    torch.set_num_threads(1)
    backbone = load_backbone(f"random:{options.architecture}").eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, options.size, options.size, generator=generator)
    compute = {"row": cls_attention, "full": full_matrix}[way]
    with torch.no_grad():  # libraries allocate their workspaces at the first use; that is not the attention's memory
        backbone.forward_features(images[..., : 4 * patch_size(backbone), : 4 * patch_size(backbone)])
    before = memory("VmRSS")
    attention = compute(backbone, images)
    connection.send((memory("VmHWM") - before, attention.numpy()))


def main(options: Options) -> None:
    """Measure both ways and print their ratio."""
    if not _STATUS.exists():
        raise InputError("this measurement reads /proc and needs Linux")
    backbone = load_backbone(f"random:{options.architecture}")
    check_transformer(backbone)
    patch = patch_size(backbone)
    if options.size % patch:
        raise InputError(f"size {options.size}: must be a multiple of the patch ({patch} px)")
    peaks, maps = {}, {}
    context = multiprocessing.get_context("spawn")
    for way in ("row", "full"):
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
    tokens = (options.size // patch) ** 2 + backbone.num_prefix_tokens
    heads = maps["row"].shape[1]
    print(
        f"random {options.architecture}, {options.size} × {options.size} px: {tokens} tokens, {heads} heads, fp32, CPU"
    )
    print(f"CLS row alone:            {peaks['row'] / _MB:7.1f} MB above the loaded model")
    print(
        f"last block's full matrix: {peaks['full'] / _MB:7.1f} MB, of which {heads * tokens**2 * 4 / _MB:.1f} MB matrix"
    )
    print(f"ratio: {peaks['row'] / peaks['full']:.2f} (goal: below 0.5)")
    difference = np.abs(maps["row"] - maps["full"]).max() / maps["full"].max()
    print(f"largest difference of the maps: {difference:.1e} of the largest value")


if __name__ == "__main__":
    run_command(main, Options)
