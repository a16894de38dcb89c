"""DINO pretraining on OCT scans.

    accelerate launch dino_oct/train.py                                                 a small run on phantoms
    accelerate launch dino_oct/train.py --config configs/FILE.yaml --data DIR --out RUN

One loop for a CPU, a GPU or many nodes (``dino_oct/pretraining.py``). ``--help`` lists every setting; configs/ holds
the presets. The same command again goes on where the run stopped.
"""

import sys

from dino_oct.cli import one_line_errors
from dino_oct.config import load_config
from dino_oct.devices import on_device
from dino_oct.phases import phase


def main() -> None:
    """Read the settings, then train."""
    with one_line_errors():
        config = load_config(sys.argv[1:])
        with phase("loading"):
            from dino_oct import pretraining

        with on_device(config.device):
            pretraining.train(config)


if __name__ == "__main__":
    main()
