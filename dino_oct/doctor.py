"""What this machine has, which weights it can reach, and how fast the networks would be. Nothing is changed.

    dino-oct doctor

Speeds are measured on random images within seconds. Times of whole tasks are estimated from them.
"""

from dataclasses import dataclass

from dino_oct.cli import run_command
from dino_oct.limits import Device


@dataclass
class Options:
    """Look at the machine: device, memory, caches, weights, extras, speed."""

    device: Device = "auto"
    """What networks compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps."""
    cache_dir: str = ""
    """Folder of the caches; empty: $DINO_OCT_CACHE, else $XDG_CACHE_HOME/dino_oct or ~/.cache/dino_oct."""


def main(options: Options) -> None:
    """Print what was found, a line each."""
    from dino_oct import machine

    for name, line in machine.found(options.cache_dir):
        print(f"{name:11}{line}", flush=True)


if __name__ == "__main__":
    run_command(main, Options)
