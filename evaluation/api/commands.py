"""Trainings and evaluations as functions: the settings of the commands as arguments."""

import importlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from dino_oct import config as pretraining_config
from dino_oct.cli import parse_options
from dino_oct.devices import on_device
from dino_oct.errors import InputError
from dino_oct.scores.text import plain
from evaluation import config
from evaluation.inputs.sources import open_sources
from supervised import config as supervised_config


def train(data: str | PathLike, **settings: Any) -> Path:
    """Pretrain without labels, as ``dino_oct/train.py``; the same call again goes on where it stopped.

    Args:
        data: a folder, a table, a volume, or ``phantom``.
        settings: of the command; a setting in a section with two underscores: ``optim__lr=1e-4``.

    Returns:
        The run folder.

    Raises:
        InputError: an unknown or impossible setting, or scans that cannot be read.
    """
    chosen = pretraining_config.load_config(words({"data": data, **settings}))
    from dino_oct import pretraining

    with on_device(chosen.device):
        pretraining.train(chosen)
    return Path(chosen.out)


def finetune(data: str | PathLike, **settings: Any) -> Path:
    """Train with labels, as ``supervised/train.py``: a network by name, or a run to fine-tune as ``model``.

    Arguments, result and errors as ``train``.
    """
    chosen = supervised_config.load_config(words({"data": data, **settings}))
    from supervised import training

    with on_device(chosen.device):
        training.train(chosen)
    return Path(chosen.out)


def _evaluation(name: str, options_type: type) -> Callable[..., dict[str, Any]]:
    def run(model: str | PathLike | None = None, data: str | PathLike | None = None, **settings: Any) -> dict[str, Any]:
        given = {name: value for name, value in (("model", model), ("data", data)) if value is not None}
        options = parse_options(options_type, words({**given, **settings}))
        protocol = importlib.import_module(f"evaluation.protocols.{name}")
        sources = open_sources(options.sources)
        if len(sources) > 1:
            raise InputError(f"{name}: give one model")
        with on_device(options.device):
            return plain(protocol.evaluate(sources[0], options))

    run.__name__ = run.__qualname__ = name
    run.__doc__ = f"""{options_type.__doc__}

    Args:
        model: a run or any other SOURCE; None: the newest run.
        data: a folder, a table, a volume or ``phantom``; None: the run's own scans.
        settings: as those of ``train``; options of the command ``evaluation/{name}.py``.

    Returns:
        What the command writes as JSON.

    Raises:
        InputError: as the command.
    """
    return run


knn = _evaluation("knn", config.KnnOptions)
linear = _evaluation("linear", config.LinearOptions)


def words(settings: dict[str, Any]) -> list[str]:
    """Settings as words of a command line: ``optim__lr=1e-4`` is ``--optim.lr 0.0001``."""
    line = []
    for name, value in settings.items():
        if value is None:
            continue
        option = "--" + name.replace("__", ".").replace("_", "-")
        values = value if isinstance(value, (list, tuple)) else [value]
        line += [f"{option}={values[0]}"] if len(values) == 1 else [option, *map(str, values)]
    return line
