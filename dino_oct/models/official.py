"""Files in the format of the public DINO release: read without running code from them, and written.

A full file holds ``student`` (``module.backbone.*``, ``module.head.*``), ``teacher`` (without ``module.``),
``optimizer``, ``epoch``, ``args`` and ``dino_loss`` with ``center``; a backbone file, the backbone's tensors alone.
The trainer's own checkpoints are full files with further keys, so every tool that reads one reads the other.
"""

import argparse
import codecs
import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dino_oct.errors import InputError
from dino_oct.files import check_regular, replacing

Tensors = dict[str, torch.Tensor]
Checkpoint = dict[str, Any]  # of a file: tensors, numbers, words, and dicts and lists of these

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
_DIGEST = "sha256"  # entry of a safetensors file's metadata


def read_checkpoint(file: str | Path) -> Checkpoint:
    """Read a ``.pth``/``.pt`` or ``.safetensors`` file onto the CPU; only tensors and the release's plain types.

    Every record of a ``.pth``/``.pt`` file is checked against the CRC that ``torch.save`` wrote with it (files from
    before PyTorch 1.6 have none), and a ``.safetensors`` file against its digest, if ``write_weights`` wrote it.

    Raises:
        InputError: the file is missing, cut short, damaged, not a checkpoint, or asks for any other type.
    """
    file = check_regular(file)
    # The readers raise errors of many kinds on damaged headers.
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            if _DIGEST in metadata and metadata[_DIGEST] != digest(tensors):
                raise InputError(f"{file}: damaged: its tensors are not those written; give an earlier checkpoint")
            return tensors
        if zipfile.is_zipfile(file):
            _check_records(file)
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=None)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        cause = str(error).strip().splitlines()[-1][:200] if "Unsupported" not in str(error) else _unsupported(error)
        raise InputError(f"{file}: refused, it holds more than tensors and settings ({cause})") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{file}: not a readable checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{file}: not a checkpoint but a single {type(checkpoint).__name__}")
    for which in ("student", "teacher", "model") if is_full(checkpoint) or "hub_config" in checkpoint else ():
        network = checkpoint.get(which, {})
        for name, value in network.items() if isinstance(network, dict) else [("", network)]:
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise InputError(f"{file}: damaged: {which}.{name} is no tensor but a {type(value).__name__}")
    return checkpoint


def write_weights(tensors: Tensors, file: Path) -> None:
    """Write a ``.safetensors`` file, whole or not at all, with a digest that ``read_checkpoint`` checks."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(file) as partial:
        save_file(tensors, partial, metadata={"format": "pt", _DIGEST: digest(tensors)})


def digest(tensors: Tensors) -> str:
    """The sha256 of the names, dtypes, shapes and bytes of tensors on the CPU, in the order of the names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def _check_records(file: Path) -> None:
    """Compare every record of a zip file with its CRC, which torch's own reader does not."""
    try:
        with zipfile.ZipFile(file) as records:
            damaged = records.testzip()
    except Exception as error:  # as above
        raise InputError(f"{file}: damaged: {' '.join(str(error).split())[:200]}; give an earlier checkpoint") from None
    if damaged is not None:
        raise InputError(f"{file}: damaged: the checksum of {damaged} does not agree; give an earlier checkpoint")


def _unsupported(error: Exception) -> str:
    return next((line.strip()[:200] for line in str(error).splitlines() if "Unsupported" in line), "unsupported type")


def is_full(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has student and teacher with DINO's heads, not a backbone alone."""
    networks = (checkpoint.get(which) for which in ("student", "teacher"))
    return all(isinstance(n, dict) and any(str(k).endswith("head.last_layer.weight_v") for k in n) for n in networks)


def network_tensors(checkpoint: Checkpoint, which: str) -> Tensors:
    """``backbone.*`` and ``head.*`` of the ``student`` or ``teacher`` of a full file, wrappers' prefixes removed."""
    network = checkpoint[which]
    return {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in network.items()}


def backbone_tensors(checkpoint: Checkpoint, which: str = "teacher") -> Tensors:
    """The backbone's tensors of a full file under timm's names."""
    tensors = network_tensors(checkpoint, which)
    return {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}


def full_checkpoint(student: Tensors, teacher: Tensors, center: torch.Tensor, **rest: Any) -> Checkpoint:
    """Assemble a full file in the official key format from ``backbone.*``/``head.*`` tensors."""
    return {
        "student": {f"module.{name}": tensor for name, tensor in student.items()},
        "teacher": dict(teacher),
        "dino_loss": {"center": center},
        **rest,
    }
