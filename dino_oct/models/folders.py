"""Folders that hold a network: a run, its export, timm's hub layout, Hugging Face's."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_oct.errors import InputError
from dino_oct.files import read_json
from dino_oct.models import official

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FORMS = (
    "a run folder, an export, a folder of timm or Hugging Face (config.json with model.safetensors), a file of "
    "weights, timm:NAME, timm:NAME@FILE or random:NAME"
)


@dataclass(frozen=True)
class ModelFolder:
    """What a folder holds.

    Attributes:
        path: where ``config.json`` is.
        kind: "export" (this package's, in timm's layout), "timm", "huggingface", or "weights": its configuration is
            not one that is known, so the weights must tell everything.
        config: of ``config.json``.
        files: of the weights, several if they are sharded.
    """

    path: Path
    kind: Literal["export", "timm", "huggingface", "weights"]
    config: dict[str, Any]
    files: tuple[Path, ...]

    def read(self) -> official.Checkpoint:
        """All the weights; InputError as ``read_checkpoint``, or a tensor that two shards hold."""
        if len(self.files) == 1:
            return official.read_checkpoint(self.files[0])
        tensors: official.Checkpoint = {}
        for file in self.files:
            shard = official.read_checkpoint(file)
            if twice := [name for name in shard if name in tensors]:
                raise InputError(f"{file}: {twice[0]} is in another shard, too")
            tensors |= shard
        return tensors


def open_folder(folder: Path) -> ModelFolder:
    """Read what a folder says that it holds; its weights are not opened.

    Raises:
        InputError: no configuration, no weights, or one that cannot be read.
    """
    path = next((f for f in (folder, folder / "export") if (f / "config.json").is_file()), None)
    if path is None:
        if files := _files(folder):
            return ModelFolder(folder, "weights", {}, files)
        raise InputError(
            f"{folder}: neither a run folder nor an export (no export/config.json in it), and no folder of timm or "
            "Hugging Face (no config.json)"
        )
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{path / 'config.json'}: not a model description")
    export = path / "backbone.safetensors"
    files = () if export.is_file() else _files(path)
    if not files and "model_type" not in config:  # an export's weights may be missing: its reader says so
        return ModelFolder(path, "export", config, (export,))
    if not files:
        raise InputError(f"{path}: has neither {' nor '.join(_WEIGHTS)}")
    kind = "timm" if "architecture" in config else "huggingface" if "model_type" in config else "weights"
    return ModelFolder(path, kind, config, files)


def weights_file(folder: Path) -> Path | None:
    """The file of a folder's weights; None where there is none, or several."""
    for path in (folder, folder / "export"):
        files = (path / name for name in ("backbone.safetensors", *_WEIGHTS))
        if file := next((file for file in files if file.is_file()), None):
            return file
    return None


def _files(folder: Path) -> tuple[Path, ...]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            content = read_json(index)
            shards = content.get("weight_map") if isinstance(content, dict) else None
            shards = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
            if not shards or not all(re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", shard) for shard in shards):
                raise InputError(f"{index}: its weight_map does not name files of this folder")
            return tuple(folder / shard for shard in shards)
    return ()
