"""Features of frozen extractors, computed once for a set of scans and read back from disk by every evaluation.

An entry is a folder of one memory-mapped ``.npy`` and a description of what it holds. It is found by the weights, the
pixels of the scans in their order, and the preprocessing; it is trusted only if its checksum agrees.
"""

import contextlib
import copy
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dino_oct.data.cache import ScanCache
from dino_oct.features import extract, pixel_features
from dino_oct.files import check_regular, private_folder, read_json, remove, scratch_folder, share_as
from dino_oct.models.attention import linear_probe_features
from dino_oct.models.backbone import patch_size
from dino_oct.models.network import cls_feature
from dino_oct.models.plain_attention import use_plain_attention
from dino_oct.precision import warn_of_slow_bf16
from evaluation.config import IMAGE_FEATURE, Kind, Precision
from evaluation.inputs.preprocessing import Preprocessing

Identity = dict[str, Any]  # plain values, as JSON has them: everything that an entry depends on
Extractor = Callable[[torch.Tensor], np.ndarray]
_CHUNK = 256
FEATURES_VERSION = 4  # raise it when resizing or extraction change: older entries are then not found
_ATTENTION_NUMBERS = 1 << 27  # 256 MB in bfloat16


def extract_all(
    scans: Sequence[np.ndarray], positions: np.ndarray, preprocessing: Preprocessing, extractors: dict[str, Extractor]
) -> dict[str, np.ndarray]:
    """Features of the scans at ``positions`` from each extractor.

    Args:
        scans: grey uint8 scans (H, W).
        extractors: name → function from images (n, 1, rows, columns) uint8 to features (n, D).

    Returns:
        name → (N, D) float32, in the order of ``positions``.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    with tqdm(total=len(positions), desc="features", unit="scan", disable=None, leave=False) as bar:
        for start in range(0, len(positions), _CHUNK):
            chunk = positions[start : start + _CHUNK]
            images = preprocessing(scans[i] for i in chunk)  # once for all extractors
            for name, extract in extractors.items():
                parts[name].append(extract(images))
            bar.update(len(chunk))
    return {name: np.concatenate(features) for name, features in parts.items()}


@dataclass(frozen=True)
class Extraction:
    """A function from images to features, and what identifies it (plain values: weights, kind, precision)."""

    extract: Extractor
    identity: Identity


def of_network(
    network: nn.Module,
    device: torch.device,
    batch_size: int = 64,
    kind: Kind = IMAGE_FEATURE,
    precision: Precision = "fp32",
) -> Extraction:
    """Features of a network of ``load_frozen``.

    The architecture belongs to its identity beside the weights' hash: one file opened with other heads gives others.
    """
    if precision == "bf16":
        warn_of_slow_bf16(device)
    backbone = network if precision == "fp32" else _in_bf16(network, device)

    forward = cls_feature if kind == IMAGE_FEATURE else lambda *args: linear_probe_features(*args, *kind)

    def run(images: torch.Tensor) -> np.ndarray:
        at_once = _bounded(batch_size, backbone, images.shape[-2:]) if precision == "bf16" else batch_size
        return extract(backbone, images, device, at_once, forward=forward)

    config = backbone.pretrained_cfg
    identity = {
        "weights": network.weights.sha256,
        "architecture": [
            network.hub_config[key] for key in ("architecture", "model_args", "norm_eps") if key in network.hub_config
        ],
        "normalisation": [list(config["mean"]), list(config["std"])],
        "kind": kind._asdict(),
        "precision": precision,
    }
    return Extraction(run, identity)


def _in_bf16(backbone: nn.Module, device: torch.device) -> nn.Module:
    """A copy with bfloat16 weights: faster than autocast, which casts weights and activations again and again."""
    copied = copy.deepcopy(backbone).bfloat16()
    if device.type == "cpu":  # the fused kernel is made for float32 there: plain products are a tenth faster over all
        use_plain_attention(copied)
    return copied


def _bounded(batch_size: int, backbone: nn.Module, size: Sequence[int]) -> int:
    """As many images as keep the attention matrices of one block in ``_ATTENTION_NUMBERS``."""
    if not hasattr(backbone, "blocks") or not hasattr(backbone.blocks[0], "attn"):
        return batch_size
    tokens = size[0] * size[1] // patch_size(backbone) ** 2
    return max(min(batch_size, _ATTENTION_NUMBERS // (backbone.blocks[0].attn.num_heads * tokens**2)), 1)


RAW_PIXELS = Extraction(pixel_features, {"pixels": 1})  # the control without a network


class FeatureCache:
    """Features on disk below ``root`` / features.

    A folder that cannot be written costs the next evaluation its time, not this one its result.
    """

    def __init__(self, root: Path):
        self.folder = Path(root) / "features"

    def get(
        self,
        scans: ScanCache,
        positions: np.ndarray,
        preprocessing: Preprocessing,
        extractions: dict[str, Extraction],
    ) -> dict[str, np.ndarray]:
        """Features of the scans at ``positions``.

        Scans are brought to size once for all extractions without a sound entry, and not read if every one has.

        Returns:
            name → (N, D) float32, read-only where it is mapped from disk, in the order of ``positions``.
        """
        data = hashlib.sha256(np.ascontiguousarray(scans.digests[positions]).tobytes()).hexdigest()
        common = {"version": FEATURES_VERSION, "scans": len(positions), "data": data, **asdict(preprocessing)}
        identities = {name: {**common, **extraction.identity} for name, extraction in extractions.items()}
        features_of = {name: self._read(identity) for name, identity in identities.items()}
        missing = {name: extractions[name].extract for name, features in features_of.items() if features is None}
        if missing:
            for name, features in extract_all(scans, positions, preprocessing, missing).items():
                features_of[name] = features
                self._write(identities[name], features)
        return features_of

    def entry(self, identity: Identity) -> Path:
        """Folder of an entry."""
        return self.folder / hashlib.sha256(_canonical(identity).encode()).hexdigest()[:24]

    def _read(self, identity: Identity) -> np.ndarray | None:
        """An entry, mapped; None where there is none, and, with a line, where it is not whole."""
        folder = self.entry(identity)
        if not os.path.lexists(folder):
            return None
        try:
            features = np.load(check_regular(folder / "features.npy"), mmap_mode="r", allow_pickle=False)
            if features.dtype == np.float32 and read_json(folder / "about.json") == _about(identity, features):
                return features
            reason = "its description or its checksum does not agree"
        except Exception as error:  # damaged headers make numpy raise almost anything
            reason = " ".join(str(error).split())
        print(f"feature cache damaged, extracting again: {folder}: {reason}", file=sys.stderr, flush=True)
        return None

    def _write(self, identity: Identity, features: np.ndarray) -> None:
        folder = self.entry(identity)
        try:
            private_folder(self.folder.parent)
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(mode=0o700)
                share_as(self.folder, self.folder.parent, write=True)
            with scratch_folder(folder) as building:
                np.save(building / "features.npy", features)
                (building / "about.json").write_text(json.dumps(_about(identity, features), indent=1), encoding="utf-8")
                share_as(building, self.folder)
                remove(folder)  # a damaged one; or another process's, which holds the same
                with contextlib.suppress(FileExistsError):
                    building.rename(folder)
        except OSError as error:
            if not folder.exists():
                reason = f"{error.strerror or error}; name another folder with --dataset.cache-dir"
                print(f"features not kept: {self.folder}: {reason}", file=sys.stderr, flush=True)


def _about(identity: Identity, features: np.ndarray) -> dict[str, Any]:
    """What an entry says of itself, as JSON gives it back."""
    # Of the whole content, at more than 1 GB/s: a probe of some rows would let a damaged one pass.
    crc32 = zlib.crc32(memoryview(np.ascontiguousarray(features)).cast("B"))
    return {"identity": json.loads(_canonical(identity)), "shape": list(features.shape), "crc32": crc32}


def _canonical(identity: Identity) -> str:
    return json.dumps(identity, sort_keys=True, default=str)
