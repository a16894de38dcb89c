"""Images per second of a whole DINO training, beside lightly-train's, from the same files, in turns.

    python tests/benchmarks/against_lightly.py                       ViT-T/16 and ViT-S/16, 2×224 + 6×96 px, K = 1024

lightly-train (AGPL) is no dependency: the first call makes an environment for it in --env and installs it there with
pip, with its own PyTorch unless --share-packages is given. Both train on the same grey JPEGs with the same views,
model, prototypes, batch and precision; lightly-train gets the number of loader processes that suits it best. A step's
time is the median after the first three.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dino_oct.cli import run_command

REPOSITORY = Path(__file__).resolve().parents[2]
PINNED = ("lightly-train==0.18.0", "albucore<0.1")

THEIRS = """
import json, sys, time
import lightly_train
from lightly_train._methods.dino.dino import DINO

given, times = json.loads(sys.argv[1]), []
DINO.on_train_batch_end = lambda self, *rest, **named: times.append(time.perf_counter())
lightly_train.pretrain(
    out=given["out"], data=given["data"], model=given["model"], method="dino", epochs=given["epochs"],
    batch_size=given["batch"], num_workers=given["workers"], precision=given["precision"], devices=1, overwrite=True,
    method_args={"output_dim": given["prototypes"]},
    transform_args={"image_size": (224, 224), "local_view": {"num_views": 6, "view_size": (96, 96)}},
    model_args={"drop_path_rate": 0.1}, trainer_args={"max_steps": given["steps"]},
)
print("TIMES", json.dumps(times))
"""


@dataclass
class Options:
    """Time whole trainings."""

    models: list[str] = field(default_factory=lambda: ["vit_tiny_patch16_224", "vit_small_patch16_224"])
    """timm names."""
    batch_size: int = 16
    out_dim: int = 1024
    steps: int = 12
    """Of each turn."""
    turns: int = 2
    workers: list[int] = field(default_factory=lambda: [0, 2])
    """Loader processes that lightly-train is tried with."""
    env: Path = Path(".lightly")
    """Folder of lightly-train's environment."""
    share_packages: bool = False
    """Let that environment use this one's PyTorch."""


def environment(options: Options) -> Path:
    """The Python of lightly-train's environment, which is made where there is none."""
    python = options.env / "bin" / "python"
    if not (options.env / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(options.env)], check=True)
        if options.share_packages:
            (packages,) = options.env.glob("lib/python*/site-packages")
            (packages / "shared.pth").write_text(str(Path(np.__file__).parents[1]))
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PINNED], check=True)
        (options.env / "ready").touch()
    return python


def write_scans(folder: Path, count: int) -> None:
    """Smooth noise of the size of OCT scans, as JPEGs."""
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (62, 64), dtype=np.uint8)
        scan = Image.fromarray(noise).resize((512, 496), Image.Resampling.BICUBIC)
        scan.save(folder / f"NORMAL-{i}-1.jpeg", quality=90)


def ours(model: str, scans: Path, out: Path, options: Options) -> float:
    """Images per second of dino_oct/train.py."""
    settings = {
        "init": f"random:{model}", "data": str(scans), "out": str(out), "resume": "never",
        "model.out_dim": options.out_dim, "model.drop_path": 0.1, "augment.n_local": 6,
        "optim.batch_size": options.batch_size, "optim.epochs": 1, "monitor.every_epochs": 1000,
        "monitor.attention_scans": 0,
        "run.log_every": 1, "run.workers": 0, "optim.freeze_last_layer_epochs": 0, "optim.warmup_epochs": 0,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    preset = REPOSITORY / "configs" / "vits16_scratch.yaml"
    command = [sys.executable, "dino_oct/train.py", "--config", str(preset), *words]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return float(np.median([line["images_per_s"] for line in lines if "images_per_s" in line][3:]))


def theirs(python: Path, model: str, scans: Path, out: Path, workers: int, options: Options) -> float:
    """Images per second of lightly-train."""
    from dino_oct.precision import use_bf16

    given = {"out": str(out), "data": str(scans), "model": f"timm/{model}", "batch": options.batch_size, "epochs": 1}
    given |= {"workers": workers, "prototypes": options.out_dim, "steps": options.steps}
    given["precision"] = "bf16-mixed" if use_bf16("auto") else "32-true"
    done = subprocess.run(
        [str(python), "-c", THEIRS, json.dumps(given)], capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith("TIMES ")]
    if not said:
        sys.exit(f"lightly-train ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return float(options.batch_size / np.median(np.diff(json.loads(said[0][6:]))[2:]))


def main(options: Options) -> None:
    """Print both and their ratio for each model."""
    python = environment(options)
    with tempfile.TemporaryDirectory() as work:
        scans = Path(work) / "scans"
        scans.mkdir()
        write_scans(scans, options.batch_size * options.steps)
        os.environ["DINO_OCT_CACHE"] = str(Path(work) / "cache")
        for model in options.models:
            rates: dict[str, list[float]] = {"toolkit": []}
            for turn in range(options.turns):
                rates["toolkit"].append(ours(model, scans, Path(work) / f"ours-{model}-{turn}", options))
                for workers in options.workers:
                    out = Path(work) / f"theirs-{model}-{turn}-{workers}"
                    rates.setdefault(f"lightly-train, {workers} workers", []).append(
                        theirs(python, model, scans, out, workers, options)
                    )
            best = {name: max(values) for name, values in rates.items()}
            other = max(value for name, value in best.items() if name != "toolkit")
            print(f"{model}, batch {options.batch_size}: {best['toolkit'] / other:.2f} × lightly-train")
            for name, values in rates.items():
                print(f"  {name:26} {' '.join(f'{value:6.1f}' for value in values)} images/s", flush=True)


if __name__ == "__main__":
    run_command(main, Options)
