"""What an export says about its network: an architecture of timm, plain arguments, and how images are made ready.

Nothing of it is followed elsewhere: no path, no address, no code.
"""

import functools
import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import timm
from timm.models import model_entrypoint
from torch import nn

from dino_oct.errors import InputError

ModelArgs = dict[str, Any]  # arguments of a timm architecture: numbers, words, lists of these


class ImageDescription(TypedDict, total=False):
    """How images are made ready, timm's ``pretrained_cfg``: ``mean`` and ``std`` of each channel, ``input_size``
    (channels, rows, columns), and what else timm's loader reads. Only the first two are always there."""

    mean: list[float]
    std: list[float]
    input_size: list[int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    num_classes: int
    classifier: str | Sequence[str]


class ModelDescription(TypedDict, total=False):
    """What rebuilds a network, in timm's hub format: an export's ``config.json``, a checkpoint's ``hub_config``.

    ``num_classes`` is the classifier's, 0 without. Not always there are ``num_features``, ``label_names`` (the
    classes), and what timm does not know: ``multilabel`` (the names are labels that a scan may have together, each
    logit a yes or no), ``scans`` (what was done to scans before they became images) and ``norm_eps`` (of all layer
    norms, in ConvNeXt of the last one; where it is not timm's).
    """

    architecture: str
    num_classes: int
    num_features: int
    model_args: ModelArgs
    pretrained_cfg: ImageDescription
    label_names: list[str]
    multilabel: bool
    scans: dict[str, Any]
    norm_eps: float


# How timm makes a scan ready, in its own terms: the whole scan, resized to the input size.
IMAGES = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"}
_MAX_SIDE = 16384
_LARGEST = 1 << 17  # of a model's numbers: larger ones would take all memory, or for ever, to build


def check_architecture(name: Any, source: str) -> str:
    """Return timm's plain name of an architecture; raise InputError for a name that leads elsewhere or nowhere."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.]+", name) or not timm.is_model(name):
        raise InputError(f"{source}: architecture {name!r} is not the name of a timm model")
    return name


def check_arguments(architecture: str, args: Any, source: str) -> ModelArgs:
    """Return arguments of an architecture.

    Raises:
        InputError: one that its constructor does not have (as ``checkpoint_path``, ``pretrained_cfg``), or a value that
            is no number, word, or list of these.
    """
    if not isinstance(args, dict):
        raise InputError(f"{source}: model arguments {args!r} are not names with values")
    known = _constructor_arguments(architecture.split(".")[0])
    for name, value in args.items():
        if name not in known:
            raise InputError(f"{source}: '{name}' is no argument of {architecture}; it has {', '.join(sorted(known))}")
        if not _is_plain(value):
            raise InputError(f"{source}: {name} = {value!r} is neither a number, a word, nor a list of these")
    return args


_NOT_PLAIN = {
    *("self", "args", "kwargs", "model_kwargs", "variant", "pretrained", "num_classes", "cfg", "block_args"),
    *("device", "dtype"),
}


@functools.cache
def _constructor_arguments(architecture: str) -> frozenset[str]:
    """Arguments of the classes that an architecture is built from, and of the functions that scale a family of them.
    Those of timm's factory, which reads files and addresses, are not among them."""
    module = sys.modules[model_entrypoint(architecture).__module__]
    known: set[str] = set()
    for key, item in vars(module).items():
        if key.startswith("_gen_") and inspect.isfunction(item):
            known |= set(inspect.signature(item).parameters)
        if isinstance(item, type) and issubclass(item, nn.Module):
            bases = [base for base in item.__mro__ if issubclass(base, nn.Module) and base is not nn.Module]
            names = {name for base in bases for name in inspect.signature(base.__init__).parameters}
            known |= names if "num_classes" in names else set()
    return frozenset(known - _NOT_PLAIN)


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple)):
        return depth < 3 and all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, str):
        return bool(re.fullmatch(r"[\w+-]*", value))
    return value is None or isinstance(value, bool) or (isinstance(value, (int, float)) and abs(value) <= _LARGEST)


def check_description(hub_config: Any, source: str) -> ModelDescription:
    """Return an export's description (``config.json``, or a checkpoint's ``hub_config``) with what is read of it.

    Raises:
        InputError: an architecture or argument that is not allowed, or a normalisation or size that cannot be.
    """
    if not isinstance(hub_config, dict) or "architecture" not in hub_config:
        raise InputError(f"{source}: not a model description (it names no architecture)")
    architecture = check_architecture(hub_config["architecture"], source)
    described: ModelDescription = {
        "architecture": architecture,
        "num_classes": _count(hub_config.get("num_classes", 0), "num_classes", source),
        "model_args": check_arguments(architecture, hub_config.get("model_args") or {}, source),
        "pretrained_cfg": check_images(hub_config.get("pretrained_cfg"), source),
    }
    names = hub_config.get("label_names")
    if names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{source}: label_names {names!r} is not a list of names")
        if len(names) != described["num_classes"]:
            raise InputError(f"{source}: {len(names)} label_names for {described['num_classes']} classes")
        described["label_names"] = list(names)
        if hub_config.get("multilabel") is True:
            described["multilabel"] = True
    scans = hub_config.get("scans")
    if isinstance(scans, dict):
        described["scans"] = {str(name): value for name, value in scans.items() if _is_plain(value)}
    eps = hub_config.get("norm_eps")
    if eps is not None:
        if not isinstance(eps, float) or not 0 < eps < 1:
            raise InputError(f"{source}: norm_eps {eps!r} is not between 0 and 1")
        described["norm_eps"] = eps
    return described


def check_images(config: Any, source: str) -> ImageDescription:
    """mean, std, and input size of ``pretrained_cfg``; what else timm has there is not read from a file."""
    if not isinstance(config, dict):
        raise InputError(f"{source}: it has no pretrained_cfg, so its mean and std are not known; export it again")
    mean, std = (_numbers(config.get(name), name, source) for name in ("mean", "std"))
    size = config.get("input_size")
    sides = size if isinstance(size, (list, tuple)) else ()
    if size is not None and not (len(sides) == 3 and all(type(n) is int and 0 < n <= _MAX_SIDE for n in sides)):
        raise InputError(f"{source}: input_size {size!r} is not [channels, rows, columns]")
    channels = sides[0] if sides else 3
    if len(mean) != len(std) or len(mean) not in (channels, 3 if channels == 1 else channels):
        raise InputError(f"{source}: mean {mean} and std {std} are not for images of {channels} channels")
    # 0 and 1, as some of timm's models have them, leave pixels as they are.
    is_identity = not any(mean) and all(value == 1 for value in std)
    if not is_identity and not all(0 < value < 1 for value in mean):
        raise InputError(f"{source}: mean {mean} is not between 0 and 1, the range of pixels; export it again")
    if not all(0 < value <= 1 for value in std):
        raise InputError(f"{source}: std {std} is not above 0 and at most 1; export it again")
    return {"mean": mean, "std": std, **({"input_size": list(sides)} if sides else {})}


def _numbers(values: Any, name: str, source: str) -> list[float]:
    if not isinstance(values, (list, tuple)) or not values:
        raise InputError(f"{source}: it has no {name}, without which its images are wrong; export it again")
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise InputError(f"{source}: {name} {list(values)} holds what is not a number; export it again")
    return [float(value) for value in values]


def _count(value: Any, name: str, source: str) -> int:
    if type(value) is not int or value < 0:
        raise InputError(f"{source}: {name} {value!r} is not a number of classes")
    return value


def describe_images(
    config: Mapping[str, Any], channels: int, num_classes: int, classifier: Sequence[str] | str | None
) -> ImageDescription:
    """timm's ``pretrained_cfg`` of a network: everything that ``timm.data.create_transform`` and its loader read.

    A network of one channel gets the mean over the channels of ``mean`` and ``std``.
    """
    mean, std = list(config["mean"]), list(config["std"])
    if channels == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    size = list(config.get("input_size", (channels, 224, 224)))
    return {
        "mean": mean,
        "std": std,
        "input_size": [channels, *size[-2:]],
        **IMAGES,
        "num_classes": num_classes,
        **({"classifier": classifier} if classifier else {}),
    }
