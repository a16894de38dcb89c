"""What a machine has and how fast it is, for ``dino-oct doctor``."""

import importlib.util
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import timm
import torch

from dino_oct import __version__
from dino_oct.cli import read_settings
from dino_oct.config import TrainConfig
from dino_oct.data.cores import usable_cores
from dino_oct.data.index import DatasetConfig, cache_root
from dino_oct.devices import default_device
from dino_oct.models.backbone import load_backbone
from dino_oct.networks import build_networks
from dino_oct.phases import phase
from dino_oct.precision import matrix_peak, use_bf16
from dino_oct.preflight import duration, machine_memory
from dino_oct.presets import find_preset
from dino_oct.speed import operations_per_pass, operations_per_scan

_EXTRAS = {
    "clinic": ("eyepy", "oct_converter", "pydicom", "openjpeg", "nibabel"),
    "lora": ("peft",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}
_HOSTS = {"weights of timm": "https://huggingface.co", "DINO's own weights": "https://dl.fbaipublicfiles.com"}
_SECONDS = 5  # that a host may take to answer
_MEASURED = "vit_small_patch16_224"
_PRETRAININGS = {  # preset → the network that it trains
    "quickstart": None,
    "small_cpu": "vit_small_patch14_dinov2.lvd142m",
    "vitb8_oct2017": "vit_base_patch8_224.dino",
}
_SCANS = 1000


def found(cache_dir: str) -> Iterator[tuple[str, str]]:
    """Name and text of each line; the slow ones come last.

    Raises:
        InputError: the chosen device is not there.
    """
    device = default_device()
    libraries = f"torch {torch.__version__} · timm {timm.__version__}"
    yield "dino-oct", f"{__version__} · Python {platform.python_version()} · {libraries}"
    yield "device", _device(device)
    yield "memory", f"{machine_memory() / 2**30:.0f} GB free"
    yield "caches", _caches(cache_root(DatasetConfig(cache_dir=cache_dir)))
    yield from (("extras", line) for line in _extras())
    with ThreadPoolExecutor() as threads:
        for name, reason in zip(_HOSTS, threads.map(_trouble, _HOSTS.values()), strict=True):
            yield "weights", f"{name}: " + (f"out of reach ({reason}); give a file instead" if reason else "reachable")
    kept = _kept_weights()
    names = ", ".join(kept[:5]) + ", …" * (len(kept) > 5)
    yield "weights", f"{len(kept)} in the hub's cache" + (f": {names}" if kept else "")
    yield from _speeds(device)


def _device(device: torch.device) -> str:
    bf16, cores = use_bf16("auto"), usable_cores()
    chosen = "bf16" if bf16 else "fp32"
    peak = f"{chosen} is taken, {matrix_peak(device, bf16) / 1e12:.2g} TFLOP/s of matrix products"
    if device.type != "cuda":
        return f"{'Apple GPU' if device.type == 'mps' else 'CPU'}, {cores} core{'s' * (cores > 1)}; {peak}"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    listed = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GB)" for gpu in gpus)
    return f"{listed}; {cores} cores; {device} and {peak}"


def _caches(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return f"{folder}: {size / 2**30:.1f} GB, {shutil.disk_usage(there).free / 2**30:.0f} GB free"


def _extras() -> Iterator[str]:
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        yield f"{extra}: " + (f'{", ".join(missing)} missing: pip install "dino-oct[{extra}]"' if missing else "there")


def _trouble(address: str) -> str:
    """Why a host cannot be reached; empty where it answers, if only to refuse."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except OSError as error:
        return " ".join(str(getattr(error, "reason", error)).split())[:60]
    return ""


def _kept_weights() -> list[str]:
    try:
        return sorted(repo.repo_id for repo in huggingface_hub.scan_cache_dir().repos)
    except huggingface_hub.errors.CacheNotFound:
        return []


# ---- speed -----------------------------------------------------------------------------------------------------------


def _speeds(device: torch.device) -> Iterator[tuple[str, str]]:
    bf16 = use_bf16("auto")
    network = load_backbone(f"random:{_MEASURED}").to(device)
    images = torch.randn(64 if device.type == "cuda" else 8, 3, 224, 224, device=device)

    def features() -> None:
        with torch.no_grad():
            network(images)

    def step() -> None:
        network(images).square().mean().backward()

    with phase("measuring the speed"), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        forward, both = (len(images) / _seconds(work, device) for work in (features, step))
    yield "speed", f"ViT-S/16 at 224 px: {forward:.3g} scans/s forward, {both:.3g} forward and backward"
    once = operations_per_pass(network, 224)
    larger = operations_per_pass(load_backbone("random:vit_base_patch8_224"), 224) / once
    small, base = (duration(_SCANS / forward * factor) for factor in (1, larger))
    yield "about", f"features of {_SCANS:,} scans: ViT-S/16 {small}, ViT-B/8 {base}"
    for preset, name in _PRETRAININGS.items():
        config = read_settings(TrainConfig, find_preset(preset))
        init = f"random:{name}" if name else config.init
        student = build_networks(init, config.model, config.loss, 0, None, say=lambda text: None).student
        seconds = _SCANS * operations_per_scan(student, config.augment) / (3 * once * both)
        yield "about", f"an epoch of {_SCANS:,} scans, --config {preset}: {duration(seconds)}"


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Of the faster of two goes, after a first."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
