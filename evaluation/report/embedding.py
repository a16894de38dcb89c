"""Maps of the test scans by every model's features, side by side, with the purity measured on the features."""

from dataclasses import dataclass

import numpy as np

from dino_oct.errors import InputError
from dino_oct.scores.bootstrap import Interval, Scale
from dino_oct.streams import generator
from evaluation.config import FEWEST
from evaluation.inputs.steps import Arrays
from evaluation.pages.embedding_figures import AXES_NOTE, Frame, Panel
from evaluation.pages.embedding_page import scaled_frames
from evaluation.protocols.embedding_map import comparable_scans
from evaluation.report.models import Candidate
from evaluation.report.steps import Setting
from evaluation.scores.embeddings import most_neighbours, nearest, purity, umap_map

MOST, K, UMAP_NEIGHBOURS = 1500, 10, 15


@dataclass(frozen=True)
class EmbeddingPanel:
    """The map of the N scans of an ``Embedding`` by one model.

    Attributes:
        title, caption: of the panel; the title names the model.
        x, y: (N,) from 0 to 10,000.
        near: (N, k) positions, in the N, of each scan's nearest scans of other patients; None without them.
        purity: share of these that are of the scan's class, per cent; None without them.
    """

    model: str
    title: str
    caption: str
    x: list[int]
    y: list[int]
    near: np.ndarray | None
    purity: Interval | None


@dataclass(frozen=True)
class Embedding:
    """Maps of the same scans by every model.

    Attributes:
        scans: (N,) positions in the report's scans.
        k: nearest scans of ``near``; 0 without them.
        note: how to read the maps.
    """

    scans: np.ndarray
    k: int
    panels: list[EmbeddingPanel]
    note: str


def embedding(models: dict[str, Candidate], shared: Setting) -> tuple[Embedding, dict[str, np.ndarray]]:
    """The maps for the report, and their points (N, 2) by model.

    Raises:
        InputError: too few test scans.
    """
    index, test, seed = shared.data.index, shared.positions["test"], shared.options.seed
    if len(test) < FEWEST:
        raise InputError(f"{len(test)} test scans are too few for a map")
    shown = np.arange(len(test))
    if len(shown) > MOST:
        shown = np.sort(generator("scans of a comparison's maps", seed).choice(shown, MOST, replace=False))
    patients, labels = index.patients[test[shown]], index.labels[test[shown]]
    known, notes = comparable_scans(labels, patients, index.class_names)
    k = min(K, most_neighbours(patients), most_neighbours(patients[known]) if known.any() else K)
    settings = {"seed": seed, "scans": len(shown), "neighbours": UMAP_NEIGHBOURS, "k": k}
    bootstrap = shared.bootstrap(patients[known]) if known.any() and k else None
    panels, maps = [], {}
    for key, model in models.items():
        try:
            arrays = model.steps.arrays(
                "embedding",
                lambda model=model: _map(model.features["test"][shown], labels, patients, known, k, seed),
                **settings,
            )
        except InputError as reason:
            model.gaps["embedding"] = str(reason)
            continue
        maps[key] = arrays["points"]
        (frame,) = scaled_frames(Panel(key, (Frame("", arrays["points"]),)))
        caption = f"{model.kind}, {model.model.timm_name}"
        of_features = bootstrap.mean(arrays["purity"], Scale.PERCENT) if bootstrap else None
        panels.append(EmbeddingPanel(key, key, caption, frame["x"], frame["y"], arrays.get("near"), of_features))
    drawn = f"{len(shown):,} of {len(test):,} test scans, drawn by seed" if len(shown) < len(test) else ""
    note = " ".join([AXES_NOTE, *(f"{text}." for text in (drawn, *notes) if text)])
    note += f" Purity: share of a scan's {k} nearest scans of other patients, by the features, that are of its class."
    return Embedding(shown, k, panels, note), maps


def _map(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, known: np.ndarray, k: int, seed: int
) -> Arrays:
    arrays = {"points": umap_map(features, seed, n_neighbours=min(UMAP_NEIGHBOURS, len(features) - 1))}
    if k:
        arrays["near"] = nearest(features, patients, k)
        if known.any():
            arrays["purity"] = 100 * purity(nearest(features[known], patients[known], k), labels[known])
    return arrays
