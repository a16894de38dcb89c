"""Supervised training on labelled OCT scans.

    accelerate launch supervised/train.py --model resnet50 --data DIR --out RUN

One loop for a CPU, a GPU or many nodes (``supervised/training.py``). ``--help`` lists every setting;
configs/supervised/ holds the presets. The same command again goes on where the run stopped.
"""

import sys

from dino_oct.cli import one_line_errors
from dino_oct.devices import on_device
from dino_oct.phases import phase
from supervised.config import load_config


def main() -> None:
    """Read the settings, then train."""
    with one_line_errors():
        config = load_config(sys.argv[1:])
        with phase("loading"):
            from supervised import training

        with on_device(config.device):
            training.train(config)


if __name__ == "__main__":
    main()
