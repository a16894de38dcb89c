"""Finished steps of a long evaluation on disk, so that an interrupted one goes on where it stopped."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dino_oct.files import check_regular, private_folder, remove, replacing

Arrays = dict[str, np.ndarray]
_IDENTITY, _DIGEST = "__identity__", "__digest__"
STEPS_VERSION = 2  # of the files: older ones are then not found


class StepCache:
    """Arrays of finished steps, one ``.npz`` each in a folder.

    An entry is found by what the step depends on, appears whole or not at all, and is made again if it is damaged. A
    folder that cannot be written costs the next evaluation its time, not this one its result.

    Attributes:
        made: steps that were computed, in their order; those read from disk are not among them.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.made: list[str] = []

    def arrays(self, step: str, identity: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a step: read from disk, or made and kept.

        Args:
            step: its name, for people.
            identity: plain values; everything that the result depends on.
        """
        text = json.dumps({"version": STEPS_VERSION, "step": step, **identity}, sort_keys=True, default=str)
        label = "".join(c if c.isalnum() or c in "-_" else "_" for c in step)[:60]
        file = self.folder / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        arrays = _read(file, text)
        if arrays is None:
            arrays = make()
            self.made.append(step)
            self._write(file, {_IDENTITY: np.array(text), _DIGEST: np.array(_digest_of(arrays)), **arrays})
        return arrays

    def json(self, step: str, identity: dict[str, Any], make: Callable[[], Any]) -> Any:
        """As ``arrays``, for a result of plain values; it comes back as JSON gives it, the first time too."""

        def as_array() -> Arrays:
            return {"json": np.array(json.dumps(make(), default=_plain))}

        return json.loads(str(self.arrays(step, identity, as_array)["json"]))

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


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return str(value)
