"""Does a map change when the weights do? Cascading weight randomisation (Adebayo et al. 2018, section 3.1).

A map that stays the same when the network forgets what it learnt shows the scan, not the network. From the classifier
down, more and more layers get the weights of a freshly initialised network; each time the maps are compared with those
of the trained one by Spearman's correlation over the pixels.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from dino_oct.models.backbone import random_twin
from dino_oct.models.loading import classifier_tensors
from dino_oct.scores.bootstrap import Interval
from dino_oct.streams import seed_of
from evaluation.config import ATTENTION
from evaluation.maps.methods import make_maps
from evaluation.maps.rows import MapMaker
from evaluation.scores.ranks import rank_correlations, rank_normalise

STAGES = ("classifier", "upper half", "all")
LIMIT = 0.5  # mean correlation with every layer randomised above which a map is said to show the scan


def randomised_correlations(
    maker: MapMaker, head: int, scans: Sequence[np.ndarray], targets: Sequence[int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Correlation of each map with the one after each of ``STAGES``.

    Args:
        head: candidate that is taken of attention.
        seed: of the fresh weights.

    Returns:
        method → (N scans, 3 stages) float64. Where one of the two maps is constant: 0, nothing of it is left or was
        there; where both are: 1, it did not change. A method that does not ask for a class does not read the
        classifier: 1 there.
    """

    def maps() -> dict[str, list[np.ndarray]]:
        return {
            name: [
                rank_normalise(candidates[head if name == ATTENTION else 0])
                for candidates in make_maps(maker.model, name, scans, targets, maker.settings)
            ]
            for name in maker.methods
        }

    network, trained = maker.model.model, maps()
    correlations = {name: np.empty((len(scans), len(STAGES))) for name in maker.methods}
    fresh = fresh_weights(network, seed)
    for stage, names in enumerate(stage_tensors(network)):
        with replaced(network, {name: fresh[name] for name in names}):
            now = maps()
        for name, of_stages in correlations.items():
            of_stages[:, stage] = list(map(_correlation, trained[name], now[name]))
    return correlations


def _correlation(before: np.ndarray, after: np.ndarray) -> float:
    """Of two rank-normalised maps."""
    constant = [np.ptp(ranks) == 0 for ranks in (before, after)]
    if any(constant):
        return float(all(constant))
    return float(rank_correlations([before, after])[0, 1])


def verdict(correlation: Interval) -> str:
    """``passed`` where the interval of the mean correlation lies below the limit, ``FAILED`` where the mean does not
    and ``not shown`` between; also ``not shown`` without an interval."""
    if correlation.point >= LIMIT:
        return "FAILED"
    return "passed" if correlation.is_below(LIMIT) else "not shown"


def fresh_weights(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state of the same architecture as timm initialises it, running statistics included, with LayerScale 1; no run
    starts from it."""
    classes = model.num_classes if classifier_tensors(model) else 0
    fresh = random_twin(model, seed_of("randomised weights", seed), classes).state_dict()
    like = model.state_dict()
    return {name: fresh[name].to(tensor.device, tensor.dtype) for name, tensor in like.items()}


def stage_tensors(model: nn.Module) -> list[list[str]]:
    """Names of the state's tensors that each of ``STAGES`` randomises, each more than the one before.

    The order is that in which timm registers layers: from the input to the classifier.
    """
    names, classifier = list(model.state_dict()), set(classifier_tensors(model))
    below = [name for name in names if name not in classifier]
    return [list(classifier), [*below[len(below) // 2 :], *classifier], names]


@contextlib.contextmanager
def replaced(model: nn.Module, tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """The model with some tensors of its state replaced; they come back at the end."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in tensors}
    try:
        model.load_state_dict(tensors, strict=False)
        yield
    finally:
        model.load_state_dict(kept, strict=False)
