"""Files in the format of the public DINO release: read without running code from them, and written.

A full file holds ``student`` (``module.backbone.*``, ``module.head.*``), ``teacher`` (without ``module.``),
``optimizer``, ``epoch``, ``args`` and ``dino_loss`` with ``center``; a backbone file, the backbone's tensors alone.
The trainer's own checkpoints are full files with further keys, so every tool that reads one reads the other.
"""

import argparse
import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dino_oct.errors import InputError

Tensors = dict[str, torch.Tensor]

# What the public files hold beside tensors: the run's arguments and numpy scalars (in the optimizer's groups), under
# numpy's module names before and after 2.0. Nothing else may be named by a file.
_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype("float64")),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (codecs.encode, "_codecs.encode"),
]


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Read a ``.pth``/``.pt`` or ``.safetensors`` file onto the CPU; only tensors and the release's plain types.

    Raises:
        InputError: the file is missing, cut short, not a checkpoint, or asks for any other type.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=None)
    except pickle.UnpicklingError as error:
        cause = str(error).strip().splitlines()[-1][:200] if "Unsupported" not in str(error) else _unsupported(error)
        raise InputError(f"{file}: refused, it holds more than tensors and settings ({cause})") from None
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{file}: not a readable checkpoint ({' '.join(str(error).split())[:200]})") from None


def _unsupported(error: Exception) -> str:
    return next((line.strip()[:200] for line in str(error).splitlines() if "Unsupported" in line), "unsupported type")


def is_full(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint has student and teacher, not a backbone alone."""
    return "student" in checkpoint and "teacher" in checkpoint


def network_tensors(checkpoint: dict[str, Any], which: str) -> Tensors:
    """``backbone.*`` and ``head.*`` of the ``student`` or ``teacher`` of a full file, wrappers' prefixes removed."""
    tensors = {}
    for name, tensor in checkpoint[which].items():
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
        tensors[name] = tensor
    return tensors


def backbone_tensors(checkpoint: dict[str, Any], which: str = "teacher") -> Tensors:
    """The backbone's tensors of a full or backbone-only file under timm's names."""
    if is_full(checkpoint):
        tensors = network_tensors(checkpoint, which)
        return {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    wrapped = (checkpoint[key] for key in ("state_dict", "model", "teacher") if isinstance(checkpoint.get(key), dict))
    tensors = {}
    for name, tensor in next(wrapped, checkpoint).items():
        name = name.removeprefix("module.").removeprefix("backbone.")
        if isinstance(tensor, torch.Tensor) and not name.startswith("head."):
            tensors[name] = tensor
    return tensors


def full_checkpoint(student: Tensors, teacher: Tensors, center: torch.Tensor, **rest: Any) -> dict[str, Any]:
    """Assemble a full file in the official key format from ``backbone.*``/``head.*`` tensors."""
    return {
        "student": {f"module.{name}": tensor for name, tensor in student.items()},
        "teacher": dict(teacher),
        "dino_loss": {"center": center},
        **rest,
    }
