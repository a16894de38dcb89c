"""Everything that is to be measured on a GPU, in one call of about ten minutes, and the table of it.

    python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --small True        tries every part on tiny networks, on a CPU too

Each part is a command that stands alone; a part that fails or takes too long is said and left behind. The compiler's
graphs stay in --out, so that a second call starts faster.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from dino_oct.cli import run_command

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = "tests/benchmarks"
_LINES = 45  # of what a part says, its last


@dataclass
class Options:
    """Measure on a GPU."""

    parts: list[str] = field(default_factory=list)
    """Names of parts; none: all."""
    small: bool = False
    """Tiny networks and few scans."""
    seconds: int = 150
    """Most of a part."""
    out: Path = Path("runs/gpu")
    """Folder of the logs, the run and the graphs."""


def parts(options: Options) -> dict[str, list[str]]:
    """Name → command."""
    small, out = options.small, options.out
    speed = [f"{BENCHMARKS}/step_speed.py"]
    tiny = ["--model", "vit_tiny_patch16_224", "--global-size", "64", "--local-size", "32", "--n-local", "2"]
    tiny += ["--out-dim", "256", "--batch-size", "2", "--steps", "1"]
    every = ["public", "eager", "waits", "packed", "cudnn", "flash", "compiled", "compiled-apart", "compiled-cudnn"]
    few = ["public", "eager", "packed", "compiled", "compiled-apart", "compiled-cudnn"]
    of_model = {
        "ViT-B/8": ["--model", "vit_base_patch8_224.dino", "--batch-size", "32"],
        "ViT-S/16": ["--model", "vit_small_patch16_224.dino", "--batch-size", "64"],
        "ViT-S/14": ["--model", "vit_small_patch14_dinov2", "--batch-size", "64", "--local-size", "98"],
    }
    steps = {
        name: speed + (tiny if small else of) + ["--variants", *(every if name == "ViT-B/8" else few)]
        for name, of in of_model.items()
    }
    if small:
        steps = {
            name: [word for word in command if word not in ("cudnn", "flash", "compiled-cudnn")]
            for name, command in steps.items()
        }
    steps["ViT-B/8"] += ["--profile", "eager", "compiled"]
    for batch in (16, 64):
        memory = ["--model", "vit_base_patch8_224.dino", "--batch-size", str(batch)]
        steps[f"ViT-B/8, batch {batch}"] = speed + (tiny if small else memory) + ["--variants", "compiled", "recompute"]
    network = ["--init", "random:vit_small_patch16_224.dino", "--model.args", "img_size=224", "--model.compile", "True"]
    network += ["--optim.batch-size", "64", "--augment.global-size", "224", "--augment.local-size", "96"]
    network += ["--augment.n-local", "8", "--phantom.patients", "400", "--phantom.size", "496", "512"]
    train = ["dino_oct/train.py", "--config", "configs/quickstart.yaml", "--optim.epochs", "6", "--run.log-every", "5"]
    train += ["--monitor.every-epochs", "3", "--run.workers", "8", "--resume", "never", "--out", str(out / "run")]
    scans = ["--scans", "500", "--queries", "50", "--dims", "32"] if small else []
    extraction = {
        "extraction, ViT-B/8": ["--architecture", "vit_base_patch8_224"],
        "extraction, ViT-S/16": ["--architecture", "vit_small_patch16_224", "--scans", "512", "--batch-size", "128"],
    }
    fewer = ["--architecture", "vit_tiny_patch16_224", "--scans", "4", "--repeats", "1"]
    return {
        "same as on a CPU": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"],
        **steps,
        "training": train if small else train + network,
        "k-NN": [f"{BENCHMARKS}/knn_speed.py", *scans],
        **{name: [f"{BENCHMARKS}/extraction_speed.py", *(fewer if small else of)] for name, of in extraction.items()},
        "UMAP": [f"{BENCHMARKS}/umap_speed.py", *(["--scans", "500", "--dims", "32"] if small else [])],
    }


def main(options: Options) -> None:
    """Run the parts, print the end of what each says."""
    options.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(options.out.resolve() / "graphs")
    for name, command in parts(options).items():
        if options.parts and name not in options.parts:
            continue
        start, log = (
            time.perf_counter(),
            options.out / f"{name.replace('/', '-').replace(' ', '_').replace(',', '')}.log",
        )
        with log.open("w") as stream:
            try:
                status = subprocess.run(
                    [sys.executable, *command], cwd=REPOSITORY, env=environment, stdout=stream,
                    stderr=subprocess.STDOUT, timeout=options.seconds,
                ).returncode  # fmt: skip
                ending = "" if status == 0 else f", FAILED with status {status}"
            except subprocess.TimeoutExpired:
                ending = ", TOOK TOO LONG"
        print(f"\n== {name}: {time.perf_counter() - start:.0f} s{ending}", flush=True)
        lines = [
            line for line in log.read_text(errors="replace").splitlines() if line.strip() and "ready after" not in line
        ]
        print("\n".join(line[:150] for line in lines[-45:]), flush=True)


if __name__ == "__main__":
    run_command(main, Options)
