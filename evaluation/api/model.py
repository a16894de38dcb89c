"""A network that was opened from Python: features, predictions and maps of scans in any form."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
import torch

from dino_oct.data.index import DatasetConfig
from dino_oct.data.phantom import PhantomConfig
from dino_oct.devices import on_device
from dino_oct.errors import InputError
from dino_oct.models.frozen import Weights
from dino_oct.models.network import input_statistics
from evaluation.api.transform import Transform, as_scan
from evaluation.config import IMAGE_FEATURE, DatasetOptions, Kind, PredictOptions
from evaluation.inputs.feature_cache import of_network
from evaluation.inputs.fitted import Fitted
from evaluation.inputs.model import Model, open_model
from evaluation.inputs.scans import find_given
from evaluation.inputs.selection import grey_range_of
from evaluation.inputs.sources import Source, open_source
from evaluation.inputs.stream import Arrays, Reading, prepared
from evaluation.maps.methods import METHODS, MapSettings, enlarge, make_maps
from evaluation.protocols import predict as predicting

Scans = str | PathLike | np.ndarray | Sequence[str | PathLike | np.ndarray]


def load(source: str | PathLike, *, device: str = "auto", image_size: Sequence[int] | None = None) -> "OctModel":
    """Open a network.

    Args:
        source: a run, its export, a file of weights, ``timm:NAME``, ``timm:NAME@FILE`` or ``random:NAME``.
        device: auto (a GPU where there is one), cpu, cuda, cuda:N or mps.
        image_size: rows and columns that scans are resized to; None: what the network was trained or judged at.

    Raises:
        InputError: no such source, weights that do not fit, or a device that is not there.
    """
    with on_device(device):
        opened = open_source(str(source))
        return OctModel(opened, open_model(opened, image_size=image_size, with_classifier=True), device)


class OctModel:
    """A frozen network for scans; made by ``load``.

    Scans are given as files (image or volume), a folder or table, one array (H, W), or several: a list of arrays, or an
    array (N, H, W). Arrays are grey, uint8 or floats in [0, 1]. Results are in the order of what was given; a volume
    gives a row for each B-scan, and a folder is in the order of its index.
    """

    def __init__(self, source: Source, model: Model, device: str = "auto"):
        self._source, self._model, self._device = source, model, device
        self._fitted: Fitted | None = None
        self._judging = model  # with the classifier, once there is one; at the size that it was fitted for
        self._settings = source.config.dataset if source.config else DatasetConfig()

    def __repr__(self) -> str:
        classes = f", classes {', '.join(self.class_names)}" if self.class_names else ""
        return f"<OctModel {self._source.name}: {self._model.timm_name}, {self._model.device}{classes}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classifier; empty before there is one."""
        return self._judging.class_names

    @property
    def network(self) -> torch.nn.Module:
        """The timm model, in evaluation mode. It takes what ``transform`` gives."""
        return self._model.model

    @property
    def weights(self) -> Weights:
        """What identifies the weights."""
        return self._model.weights

    @property
    def transform(self) -> Transform:
        """From a scan to the network's input (C, rows, columns), for a Dataset of torch."""
        mean, std = (tuple(values.tolist()) for values in input_statistics(self._model.model))
        return Transform(self._model.input_size, mean, std, self._settings.neutralise_borders)

    def embed(
        self,
        scans: Scans,
        *,
        batch_size: int = 32,
        precision: str = "fp32",
        blocks: int = 0,
        mean_patch: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Features of scans, as evaluations take them.

        Args:
            precision: fp32 or bf16.
            blocks, mean_patch: CLS of the last blocks, and the mean of the patches; neither: the image feature.

        Returns:
            Of arrays (N, D) float32; of files a table with the file's name as index and the columns 0 … D − 1.

        Raises:
            InputError: a scan that cannot be read.
        """
        kind = Kind(blocks, mean_patch) if blocks or mean_patch else IMAGE_FEATURE
        reading = self._reading(scans)
        extract = of_network(self._model.model, self._model.device, batch_size, kind, precision).extract
        rows, files = [], []
        for batch in prepared(reading, batch_size):
            if bad := [item for item in batch if item.image is None]:
                raise InputError(f"{reading.index.files[bad[0].position]}: {bad[0].reason}")
            rows.append(extract(torch.stack([item.image for item in batch])))
            files += [reading.index.files[item.position] for item in batch]
        features = np.concatenate(rows)
        return features if isinstance(reading, Arrays) else pd.DataFrame(features, index=pd.Index(files, name="file"))

    def fit(
        self, data: str | PathLike | None = None, *, classifier: str | None = None, refit: bool = False
    ) -> "OctModel":
        """Give the network a calibrated classifier; ``predict`` does it by itself for a run.

        Args:
            data: labelled scans; None: the run's own, whose classifier is kept beside it.
            classifier: own or probe; None: the network's own where it has one.
            refit: though one is kept.

        Raises:
            InputError: no labelled scans.
        """
        options = PredictOptions(
            model=self._source.name, scans=(".",), data=None if data is None else str(data), classifier=classifier,
            refit=refit,
        )  # fmt: skip
        with on_device(self._device):
            self._judging, self._fitted, _ = predicting.ready(self._source, options, keep=data is None)
        return self

    def predict(
        self, scans: Scans, *, coverage: float = 0.9, batch_size: int = 32, precision: str = "fp32"
    ) -> pd.DataFrame:
        """Classes, calibrated probabilities, prediction sets and similar training scans: a row a scan, with the columns
        of ``predictions.csv``.

        Raises:
            InputError: no classifier and no labelled scans to fit one to, or no scan that can be read.
        """
        if self._fitted is None:
            self.fit()
        reading = self._reading(scans, self._judging)
        found = predicting.predict(self._judging, self._fitted, reading, coverage, batch_size, precision == "bf16")
        if found.left_out:
            file, reason = found.left_out[0]
            raise InputError(f"{file}: {reason}")
        table = predicting.table_of_scans(found)
        return table.drop(columns="file") if isinstance(reading, Arrays) else table

    def attention(self, scan: str | PathLike | np.ndarray, *, block: int = -1) -> np.ndarray:
        """Attention of CLS to the patches, (heads, H, W) float32 at the scan's size, each head's share of a cell as it
        is.

        Raises:
            InputError: a network without attention, or a scan that cannot be read.
        """
        depth = len(getattr(self._model.model, "blocks", ())) or 1
        if not -depth <= block < depth:
            raise InputError(f"block {block}: the network has {depth}")
        grey = self._one(scan)
        settings = MapSettings(self._source.attention_size, attention_blocks="all")
        (maps,) = make_maps(self._model, "attention", [grey], [0], settings)
        heads = len(maps) // depth
        return enlarge(maps[block % depth * heads :][:heads], grey.shape)

    def explain(
        self, scan: str | PathLike | np.ndarray, method: str = "relevance", target: str = "predicted"
    ) -> np.ndarray:
        """A map (H, W) float32 ≥ 0 at the scan's size of where a class is seen.

        Args:
            method: attention, rollout, relevance, lrp, gradcam, gradcam++, hirescam, eigencam or occlusion; of
                attention, the mean of the heads.
            target: predicted, or a class name.

        Raises:
            InputError: a method that this network cannot have, no such class, or a scan that cannot be read.
        """
        if method not in METHODS:
            raise InputError(f"{method}: no such method; choose one of {', '.join(METHODS)}")
        if not self._judging.class_names:
            self.fit()
        grey = self._one(scan)
        index = int(self._judging.logits(grey).argmax()) if target == "predicted" else self._judging.class_index(target)
        (maps,) = make_maps(self._judging, method, [grey], [index], MapSettings(self._source.attention_size))
        return enlarge(maps, grey.shape).mean(axis=0)

    def _one(self, scan: str | PathLike | np.ndarray) -> np.ndarray:
        """A scan (H, W) uint8 as the network's images are made of."""
        reading = self._reading(scan)
        if len(reading.index) != 1:
            raise InputError(f"{scan if isinstance(scan, str | PathLike) else 'scans'}: give one scan")
        return reading.scan(0)[0]

    def _reading(self, scans: Scans, model: Model | None = None) -> Reading | Arrays:
        size = (model or self._model).preprocessing()
        if isinstance(scans, np.ndarray):
            return Arrays([as_scan(scan) for scan in (scans if scans.ndim == 3 else [scans])], self._settings, size)
        given = [scans] if isinstance(scans, str | PathLike) else list(scans)
        if not given:
            raise InputError("no scan is given")
        if all(isinstance(scan, np.ndarray) for scan in given):
            return Arrays([as_scan(scan) for scan in given], self._settings, size)
        index = find_given([str(scan) for scan in given], self._settings, PhantomConfig())
        files = [str(index.path(i)) for i in range(len(index))]
        grey_range, _ = grey_range_of(files, self._source, DatasetOptions())
        return Reading(index, self._settings, grey_range, size)
