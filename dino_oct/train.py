"""DINO pretraining on OCT scans.

    accelerate launch dino_oct/train.py                                                 a small run on phantoms
    accelerate launch dino_oct/train.py --config configs/FILE.yaml --data DIR --out RUN

One loop for a CPU, a GPU or many nodes (``dino_oct/pretraining.py``). ``--help`` lists every setting; configs/ holds
the presets. The same command again goes on where the run stopped.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

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


class _Callable(ModuleType):
    """``dino_oct.train(…)`` trains, though importing this module puts it in the place of the function."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return importlib.import_module("evaluation.api.commands").train(*args, **settings)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    main()
