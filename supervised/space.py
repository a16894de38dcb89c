"""What a search may vary: settings of a supervised run, each with a range or a list of choices, from YAML."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from dino_oct.cli import parse_options
from dino_oct.errors import InputError
from dino_oct.limits import all_settings
from supervised.architectures import find
from supervised.config import SupervisedConfig, read_space_file
from supervised.trials import Drawn

# Trials are compared by their validation, so none may choose its own; where and how they run is the search's affair.
_FIXED = ("config", "data", "out", "resume", "test", "dataset.", "phantom.", "run.")
_WITH_MOMENTUM = ("sgd", "rmsprop")
_RANGE = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class Space:
    """Settings and how each is drawn; ``model`` is the first.

    Attributes:
        given: the settings as YAML says them, for the record.
    """

    distributions: dict[str, BaseDistribution]
    given: dict[str, Any]

    def suggest(self, trial: Trial, base: SupervisedConfig) -> Drawn:
        """Draw the settings of a trial that mean something together; those drawn before stay as they are."""
        drawn: Drawn = {}
        for name, distribution in self.distributions.items():
            if not _applies(name, drawn, base):
                continue
            match distribution:
                case CategoricalDistribution(choices=choices):
                    drawn[name] = trial.suggest_categorical(name, choices)
                case IntDistribution(low=low, high=high, step=step, log=log):
                    drawn[name] = trial.suggest_int(name, low, high, step=step, log=log)
                case FloatDistribution(low=low, high=high, step=step, log=log):
                    drawn[name] = trial.suggest_float(name, low, high, step=step, log=log)
        return drawn

    @property
    def most_epochs(self) -> int | None:
        """The largest number of epochs of any trial, if it is searched."""
        match self.distributions.get("optim.epochs"):
            case CategoricalDistribution(choices=choices):
                return max(choices)
            case IntDistribution(high=high):
                return high
        return None


def read_space(file: str | Path, models: Sequence[str], base: SupervisedConfig) -> Space:
    """Read a space and put the architectures before it.

    Args:
        file: YAML, setting → ``{low, high}`` with ``log`` or ``step``, or a list of choices.
        models: as ``zoo.find`` takes them; empty: those that the file's ``model`` lists.
        base: the settings that trials share.

    Raises:
        InputError: no such file, an unknown setting (the nearest is named), a value that the setting does not take, a
            range that is none, a setting that no search may vary, or an unknown model.
    """
    given = read_space_file(file)
    listed = given.pop("model", None)
    models = list(models) or (listed if isinstance(listed, list) else [])
    if not models:
        raise InputError("no architectures; give --models NAME NAME … (dino-oct zoo lists the paper's)")
    given = {"model": models} | given
    _check_models(models)
    try:
        distributions = {str(name): _distribution(str(name), choices, base) for name, choices in given.items()}
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return Space(distributions, given)


def settings_of(base: SupervisedConfig, drawn: Drawn) -> SupervisedConfig:
    """The base with drawn settings in place, read and checked as on a command line.

    Raises:
        InputError: an unknown setting, or a value it does not take.
    """
    args = [word for name, value in drawn.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return parse_options(SupervisedConfig, args, default=base)


def is_source(model: str) -> bool:
    """Whether a model brings its own weights, so that ``init`` means nothing."""
    return find(model)[1] == model


def _applies(name: str, drawn: Drawn, base: SupervisedConfig) -> bool:
    if name == "init":
        return not is_source(drawn["model"])
    if name == "optim.momentum":
        return drawn.get("optim.optimizer", base.optim.optimizer) in _WITH_MOMENTUM
    return True


def _check_models(models: Sequence[str]) -> None:
    named: dict[str, str] = {}
    for model in models:
        source = find(str(model))[1]
        if source in named:
            raise InputError(f"models {named[source]} and {model} are the same; give it once")
        named[source] = model


def _distribution(name: str, given: Any, base: SupervisedConfig) -> BaseDistribution:
    """How a setting is drawn; its extreme values, or every choice, are tried on the base."""
    if name.startswith(_FIXED):
        raise InputError(f"{name} cannot be searched: all trials of a search share it; set it with --base.{name}")
    if isinstance(given, dict):
        distribution = _range(name, given, base)
        tried = [distribution.low, distribution.high]
    elif isinstance(given, list) and given:
        if any(isinstance(choice, (list, dict)) for choice in given):
            raise InputError(f"{name}: choices are words or numbers")
        distribution, tried = CategoricalDistribution(given), given
    else:
        raise InputError(f"{name}: give {{low, high}} or a list of choices, not {given!r}")
    for value in tried:
        settings_of(base, {name: value})
    return distribution


def _range(name: str, given: dict[str, Any], base: SupervisedConfig) -> IntDistribution | FloatDistribution:
    settings_of(base, {name: given.get("low", 0)})  # an unknown setting is told first
    kind = _type_of(name, base)
    if kind is None:
        raise InputError(f"{name}: not a number; give a list of choices")
    if unknown := set(map(str, given)) - _RANGE:
        raise InputError(f"{name}: unknown '{min(unknown)}'; a range has low, high, and log or step")
    try:
        low, high = kind(given["low"]), kind(given["high"])
        step = kind(given["step"]) if "step" in given else (1 if kind is int else None)
        make = IntDistribution if kind is int else FloatDistribution
        return make(low, high, log=bool(given.get("log", False)), step=step)
    except KeyError as error:
        raise InputError(f"{name}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: {' '.join(str(error).split())}") from None


def _type_of(name: str, base: SupervisedConfig) -> type[int] | type[float] | None:
    """int or float, if the setting is a number."""
    return next(setting.number for setting in all_settings(type(base)) if setting.name == name.replace("-", "_"))


def base_of(config: SupervisedConfig, models: Sequence[str]) -> SupervisedConfig:
    """The settings that trials share, without those that the search gives each trial."""
    return dataclasses.replace(config, config="", model=models[0], out="", resume="auto", test=False)
