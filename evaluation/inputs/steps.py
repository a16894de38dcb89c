"""Finished steps of an evaluation on disk, so that an interrupted one goes on."""

import copy
import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from dino_oct.files import check_regular, private_folder, remove, replacing
from dino_oct.phases import phase
from dino_oct.scores.text import plain

Arrays = dict[str, np.ndarray]
_IDENTITY, _DIGEST = "__identity__", "__digest__"
STEPS_VERSION = 5  # raise it when files, or a step's result, change: older entries are then not found


class StepCache:
    """Arrays of finished steps, one ``.npz`` each in a folder.

    An entry is found by what the step depends on, appears whole or not at all, and is made again if it is damaged. A
    folder that cannot be written costs the next evaluation its time, not this one its result.

    Args:
        folder: None: nothing is kept.

    Attributes:
        label, identity: what all steps are of, in words, and the plain values that they all depend on.
        made: steps that were computed, in their order; those read from disk are not among them.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder and Path(folder)
        self.label, self.identity = "", {"version": STEPS_VERSION}
        self.made: list[str] = []

    def of(self, label: str = "", **identity: Any) -> "StepCache":
        """The same cache for steps that depend on more."""
        narrower = copy.copy(self)
        narrower.label, narrower.identity = f"{self.label} {label}".strip(), {**self.identity, **identity}
        return narrower

    def arrays(self, step: str, make: Callable[[], Arrays], **identity: Any) -> Arrays:
        """The arrays of a step: read from disk, or made and kept.

        Args:
            step: its name, for people.
            identity: plain values; all else that the result depends on.
        """
        if self.folder is None:
            return make()
        step = f"{step} {self.label}".strip()
        text = json.dumps({**self.identity, "step": step, **identity}, sort_keys=True, default=str)
        label = "".join(c if c.isalnum() or c in "-_" else "_" for c in step)[:60]
        file = self.folder / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        arrays = _read(file, text)
        if arrays is None:
            with phase(step):
                arrays = make()
            self.made.append(step)
            self._write(file, {_IDENTITY: np.array(text), _DIGEST: np.array(_digest_of(arrays)), **arrays})
        return arrays

    def json(self, step: str, make: Callable[[], Any], kind: Any = Any, **identity: Any) -> Any:
        """As ``arrays``, for a result of plain values and dataclasses of them.

        Args:
            kind: of the result; unset: what JSON gives back, the first time too.
        """
        arrays = self.arrays(step, lambda: {"json": np.array(json.dumps(plain(make())))}, **identity)
        return typed(kind, json.loads(str(arrays["json"])))

    def _write(self, file: Path, arrays: Arrays) -> None:
        try:
            private_folder(self.folder)
            if file.is_dir():
                remove(file)
            with replacing(file) as partial, partial.open("wb") as stream:
                np.savez_compressed(stream, **arrays)
        except OSError as error:
            print(f"step not kept: {file}: {error.strerror or error}", file=sys.stderr, flush=True)


def digest(*arrays: np.ndarray) -> str:
    """The first 16 digits of the sha256 of some arrays' shapes and contents."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(f"{array.dtype} {array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()[:16]


def _digest_of(arrays: Arrays) -> str:
    return " ".join(f"{name} {digest(array)}" for name, array in sorted(arrays.items()))


def _read(file: Path, identity: str) -> Arrays | None:
    if not os.path.lexists(file):
        return None
    try:
        with np.load(check_regular(file), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        is_same, known = str(arrays.pop(_IDENTITY)) == identity, str(arrays.pop(_DIGEST))
        if is_same and known == _digest_of(arrays):
            return arrays
        reason = "its checksum does not agree" if is_same else "it describes another step"
    except Exception as error:  # damaged headers make numpy and zip raise almost anything
        reason = " ".join(str(error).split())
    print(f"kept step damaged, made again: {file}: {reason}", file=sys.stderr, flush=True)
    return None


def typed(kind: Any, value: Any) -> Any:
    """A value as ``plain`` gives it and JSON holds it, as what it was: of a dataclass or a simple type, or a list, a
    dict or an optional one of these. A float that JSON has no word for is NaN."""
    parts = get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: typed(hint, value[name.rstrip("_")]) for name, hint in hints.items()})
    if get_origin(kind) is list:
        return [typed(parts[0], item) for item in value]
    if get_origin(kind) is dict:
        return {key: typed(parts[1], item) for key, item in value.items()}
    if get_origin(kind) is UnionType:
        return None if value is None else typed(parts[0], value)
    return math.nan if kind is float and value is None else value
