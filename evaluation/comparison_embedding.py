"""Maps of the test scans by every model's features, side by side, with the purity measured on the features."""

from typing import Any

import numpy as np

from dino_oct.bootstrap import PatientBootstrap, Scale
from dino_oct.errors import InputError
from dino_oct.streams import generator
from evaluation.comparison_measures import Setting
from evaluation.comparison_models import Model
from evaluation.embedding_figures import AXES_NOTE, Frame, Panel
from evaluation.embedding_map import comparable_scans
from evaluation.embedding_page import scaled_frames
from evaluation.embeddings import FEWEST, most_neighbours, nearest, purity, umap_map

MOST, K, UMAP_NEIGHBOURS = 1500, 10, 15


def embedding(models: dict[str, Model], shared: Setting) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """``results["embedding"]`` (``scans``: positions in the test), and the maps (N, 2) by model.

    Raises:
        InputError: too few test scans.
    """
    index = shared.data.index
    test = shared.positions["test"]
    if len(test) < FEWEST:
        raise InputError(f"{len(test)} test scans are too few for a map")
    chosen = np.arange(len(test))
    if len(chosen) > MOST:
        rng = generator("scans of a comparison's maps", shared.seed)
        chosen = np.sort(rng.choice(chosen, MOST, replace=False))
    patients, labels = index.patients[test[chosen]], index.labels[test[chosen]]
    known, notes = comparable_scans(labels, patients, index.class_names)
    k = min(K, most_neighbours(patients), most_neighbours(patients[known]) if known.any() else K)
    settings = {"seed": shared.seed, "scans": len(chosen), "neighbours": UMAP_NEIGHBOURS, "k": k}
    bootstrap = PatientBootstrap(patients[known], shared.bootstrap, shared.seed) if known.any() and k else None
    panels, maps = [], {}
    for key, model in models.items():
        try:
            found = shared.cache.arrays(
                f"embedding {key}",
                shared.identity(model, **settings),
                lambda model=model: _map(model.features["test"][chosen], labels, patients, known, k, shared.seed),
            )
        except InputError as reason:
            model.gaps["embedding"] = str(reason)
            continue
        maps[key] = found["points"]
        near = found["near"] if k else None
        (frame,) = scaled_frames(Panel(key, (Frame("", found["points"]),)))
        panels.append(
            {
                "model": key,
                "title": key,
                "caption": f"{model.kind}, {model.architecture}",
                "x": frame["x"],
                "y": frame["y"],
                "near": near,
                "purity": bootstrap.mean(found["purity"], Scale.PERCENT) if bootstrap else None,
            }
        )
    drawn = f"{len(chosen):,} of {len(test):,} test scans, drawn by seed" if len(chosen) < len(test) else ""
    note = " ".join([AXES_NOTE, *(f"{text}." for text in (drawn, *notes) if text)])
    note += f" Purity: share of a scan's {k} nearest scans of other patients, by the features, that are of its class."
    return {"scans": chosen, "k": k, "panels": panels, "note": note}, maps


def _map(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, known: np.ndarray, k: int, seed: int
) -> dict[str, np.ndarray]:
    found = {"points": umap_map(features, seed, n_neighbours=min(UMAP_NEIGHBOURS, len(features) - 1))}
    if k:
        found["near"] = nearest(features, patients, k)
        if known.any():
            found["purity"] = 100 * purity(nearest(features[known], patients[known], k), labels[known])
    return found
