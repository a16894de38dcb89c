"""A classifier that is ready for new scans: fitted once, calibrated on validation patients, and kept beside its run.

``classifier.safetensors`` and ``classifier.json`` hold the probe (where the model has no classifier of its own), the
temperature, what prediction sets and "unlike anything seen" are judged by, and the training scans that new scans are
compared with.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from dino_oct.data.index import UNLABELLED, cache_root
from dino_oct.errors import InputError
from dino_oct.features import predict_scans, unit
from dino_oct.files import private_folder, read_json, replacing
from dino_oct.knn import neighbours
from dino_oct.models.layers import classifier_layer
from dino_oct.scan_data import ScanCounts, ScanData
from dino_oct.scores.calibration import class_scores, conformal_limit, fit_temperature
from dino_oct.scores.classification import METRICS, calibration_error, score_all
from dino_oct.scores.probes import LinearClassifier
from dino_oct.scores.text import write_json
from dino_oct.streams import generator
from evaluation.config import Head
from evaluation.inputs.feature_cache import FeatureCache
from evaluation.inputs.model import Model, classifier_input, put_head

READ_AS = ("neutralise_borders", "max_side", "grey_range", "pixel_um", "anonymise")  # settings for new scans, too
SIMILAR = 5  # training scans that a scan is compared with
_TENSORS, _FACTS = "classifier.safetensors", "classifier.json"
_VERSION = 1
_MOST_REFERENCE = 20_000  # training scans that are kept for comparison
_CHECKED = 4  # scans whose logits are computed in two ways


@dataclass(frozen=True)
class Validation:
    """The fitted classifier on the validation scans, in per cent: metrics, and calibration errors before and after the
    temperature."""

    accuracy: float
    balanced_accuracy: float
    calibration_error: float
    calibration_error_before: float


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is kept of a classifier.

    Attributes:
        class_names: of the logits.
        head: whether they come from the model's own classifier or a probe; probe: that probe of the classifier's input.
        temperature: that logits are divided by.
        scores: (M,) ``class_scores`` of the validation scans, and patients: (M,) int64 whose scans they are.
        distances: (M,) ascending, ``distance_to`` the reference of the validation scans.
        reference: (N, D) float32, the classifier's input for training scans, at unit length; labels: (N,) int64; files:
            N names.
        weights: digest of the network's weights; image_size: rows and columns; preprocessing: settings of reading.
        table: digest of the scans that it was fitted and calibrated on.
        train, val: counts of these scans.
    """

    class_names: tuple[str, ...]
    head: Head
    probe: LinearClassifier | None
    temperature: float
    scores: np.ndarray
    patients: np.ndarray
    distances: np.ndarray
    reference: np.ndarray
    labels: np.ndarray
    files: tuple[str, ...]
    weights: str
    image_size: tuple[int, int]
    reading: dict[str, Any]
    table: str
    train: ScanCounts
    val: ScanCounts
    validation: Validation

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated, (N, C), of logits (N, C)."""
        scaled = logits / self.temperature
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def limit(self, coverage: float) -> float:
        """See ``conformal_limit``."""
        return conformal_limit(self.scores, self.patients, coverage)

    def similar(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarities and positions (N, ``SIMILAR``) of the most similar training scans."""
        return neighbours(self.reference, features, min(SIMILAR, len(self.reference)))

    def share_nearer(self, similarity: np.ndarray) -> np.ndarray:
        """Share of the validation scans that are nearer to the training scans, (N,) in [0, 1]."""
        return np.searchsorted(self.distances, distance_to(similarity), side="left") / len(self.distances)


def distance_to(similarity: np.ndarray) -> np.ndarray:
    """Mean cosine distance to the most similar training scans, (N,), of their similarities (N, k)."""
    return 1 - similarity.mean(axis=1)


def fit(model: Model, data: ScanData, seed: int = 0) -> Fitted:
    """Calibrate a model's classifier on the validation patients of its data.

    Args:
        model: with a classifier of named classes (``as_classifier``); data: that its probe was fitted on, or labelled
            scans of the classes that its own classifier knows.

    Raises:
        InputError: no labelled training or validation scan of its classes.
    """
    known = {name: i for i, name in enumerate(model.class_names)}
    of_index = np.array([known.get(name, UNLABELLED) for name in data.index.class_names])
    positions, labels = {}, {}
    for split in ("train", "val"):
        rows = data.labelled(split)
        classes = of_index[data.index.labels[rows]]
        positions[split], labels[split] = rows[classes != UNLABELLED], classes[classes != UNLABELLED]
        if not len(positions[split]):
            raise InputError(f"{data.index.root}: no {split} scan is of a class of {model.name} ({', '.join(known)})")
    if len(positions["train"]) > _MOST_REFERENCE:
        some = generator("training scans to compare with", seed).choice(
            len(positions["train"]), _MOST_REFERENCE, replace=False
        )
        positions["train"], labels["train"] = positions["train"][np.sort(some)], labels["train"][np.sort(some)]
    cache, extraction = FeatureCache(cache_root(data.dataset)), classifier_input(model)
    features = {
        split: np.array(cache.get(data.scans, rows, model.preprocessing(), {"": extraction})[""])
        for split, rows in positions.items()
    }
    logits = _logits(model, features["val"], data, positions["val"])
    temperature = fit_temperature(logits, labels["val"])
    reference = unit(features["train"]).astype(np.float16).astype(np.float32)  # as it is kept
    similarity, _ = neighbours(reference, features["val"], min(SIMILAR, len(reference)))
    _, patients = np.unique(data.index.patients[positions["val"]], return_inverse=True)
    layer = model.model.get_submodule(model.embedding_layer) if model.head == "probe" else None
    fitted = Fitted(
        class_names=tuple(model.class_names),
        head=model.head,
        probe=layer and LinearClassifier(layer.weight.flatten(1).cpu(), layer.bias.cpu()),
        temperature=temperature,
        scores=np.zeros(0),
        patients=patients.astype(np.int64),
        distances=np.sort(distance_to(similarity)),
        reference=reference,
        labels=labels["train"].astype(np.int64),
        files=tuple(data.index.files[i] for i in positions["train"]),
        weights=model.weights.sha256,
        image_size=model.input_size,
        reading={name: getattr(data.dataset, name) for name in READ_AS},
        table=_digest(data, positions),
        train=data.counts(positions["train"]),
        val=data.counts(positions["val"]),
        validation=Validation(0, 0, 0, 0),
    )
    after, ones = fitted.probabilities(logits), np.ones((1, len(labels["val"])))
    before = dataclasses.replace(fitted, temperature=1.0).probabilities(logits)
    metrics = dict(zip(METRICS, score_all(ones, labels["val"], after)[0].tolist(), strict=True))
    errors = [float(calibration_error(ones, labels["val"], probabilities)[0]) for probabilities in (after, before)]
    return dataclasses.replace(
        fitted,
        scores=class_scores(after, labels["val"]),
        validation=Validation(metrics["accuracy"], metrics["balanced_accuracy"], *errors),
    )


def _logits(model: Model, features: np.ndarray, data: ScanData, positions: np.ndarray) -> np.ndarray:
    """Logits (N, C) float64 up to a shift for each scan, from the classifier's input where that is all it takes."""
    layer, size = model.model.get_submodule(model.embedding_layer), model.input_size
    rows = torch.from_numpy(features).to(model.device)
    with torch.no_grad():
        logits = F.linear(rows, layer.weight.flatten(1), layer.bias).double().cpu()
    some = predict_scans(model.model, data.scans, positions[:_CHECKED], size, model.device)
    if np.allclose(logits[: len(some)].softmax(dim=1).numpy(), some, atol=1e-3):
        return logits.numpy()
    return np.log(np.maximum(predict_scans(model.model, data.scans, positions, size, model.device), 1e-30))


def _digest(data: ScanData, positions: dict[str, np.ndarray]) -> str:
    """Of the files, classes and patients of the scans."""
    digest = hashlib.sha256()
    for split, rows in positions.items():
        for i in rows.tolist():
            name = data.index.class_names[data.index.labels[i]]
            digest.update(f"{split}\t{data.index.files[i]}\t{name}\t{data.index.patients[i]}\n".encode())
    return digest.hexdigest()[:16]


# ---- files -----------------------------------------------------------------------------------------------------------


def save(fitted: Fitted, folder: Path) -> None:
    """Write the two files."""
    private_folder(folder)
    tensors = {name: torch.from_numpy(getattr(fitted, name)) for name in ("scores", "patients", "distances", "labels")}
    tensors["reference"] = torch.from_numpy(fitted.reference).half()
    if fitted.probe is not None:
        tensors |= {"weight": fitted.probe.weight.contiguous(), "bias": fitted.probe.bias.contiguous()}
    with replacing(folder / _TENSORS) as file:
        safetensors.torch.save_file(tensors, file)
    kept = ("class_names", "head", "temperature", "files", "weights", "image_size", "reading", "table", "train", "val")
    facts = {name: getattr(fitted, name) for name in kept}
    write_json({"version": _VERSION, **facts, "validation": dataclasses.asdict(fitted.validation)}, folder / _FACTS)


def read(folder: Path) -> Fitted:
    """What ``save`` wrote.

    Raises:
        InputError: a file is missing or damaged, or of another version.
    """
    try:
        facts = read_json(folder / _FACTS)
        if facts["version"] != _VERSION:
            raise InputError(f"{folder / _FACTS}: of version {facts['version']}, not {_VERSION}; give --refit True")
        tensors = safetensors.torch.load_file(folder / _TENSORS)
        probe = LinearClassifier(tensors.pop("weight"), tensors.pop("bias")) if "weight" in tensors else None
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        arrays["reference"] = arrays["reference"].astype(np.float32)
        return Fitted(
            **arrays,
            probe=probe,
            class_names=tuple(facts["class_names"]),
            files=tuple(facts["files"]),
            image_size=tuple(facts["image_size"]),
            validation=Validation(**facts["validation"]),
            **{name: facts[name] for name in ("head", "temperature", "weights", "reading", "table", "train", "val")},
        )
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise InputError(f"{folder}: the kept classifier cannot be read ({error}); give --refit True") from None


def exists(folder: Path) -> bool:
    """Whether a classifier is kept in a folder."""
    return (folder / _FACTS).is_file()


def attach(model: Model, fitted: Fitted) -> Model:
    """The model with the kept classifier.

    Raises:
        InputError: other weights than it was fitted for.
    """
    if model.weights.sha256 != fitted.weights:
        raise InputError(f"{model.name}: the kept classifier is of other weights")
    if fitted.probe is None:
        return dataclasses.replace(model, class_names=fitted.class_names)
    put_head(model.model, fitted.probe)
    return dataclasses.replace(
        model, head=fitted.head, class_names=fitted.class_names, embedding_layer=classifier_layer(model.model)
    )
