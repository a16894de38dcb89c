"""The first screen of the report: the two models that matter, how often each is right, and what needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from dino_oct.data.index import cache_root
from dino_oct.knn import knn_votes
from dino_oct.scores.bootstrap import Interval, Scale
from dino_oct.scores.classification import METRICS, score_all
from evaluation.inputs.feature_cache import RAW_PIXELS, FeatureCache
from evaluation.inputs.steps import Arrays
from evaluation.report.answers import Answers
from evaluation.report.models import Candidate
from evaluation.report.steps import Setting
from evaluation.report.table import Intervals


@dataclass(frozen=True)
class Recognised:
    """Test scans of a class, their patients, those that a model names right, and their share in per cent."""

    scans: int
    patients: int
    right: int
    share: Interval


@dataclass(frozen=True)
class Judged:
    """A model by what it is judged by.

    Attributes:
        by: protocol, as in ``Answers.by_protocol``.
        right: test scans that it names right; accuracy: their share in per cent.
        classes: class with test scans → how many of them are recognised.
        lead: accuracy of the leader less this one's in points, paired; None for the leader.
    """

    by: str
    right: int
    accuracy: Interval
    classes: dict[str, Recognised]
    lead: Interval | None = None


@dataclass(frozen=True)
class Overview:
    """What the first screen shows beside the verdict.

    Attributes:
        leader, rival: the two models that it is about, the better on validation first: the best self-supervised and the
            best supervised one where both are there, else the best of a kind that is there and the next best; None
            where there is none.
        models: model → how it does; the leader and the rival first, then by accuracy.
        pixels: accuracy of raw pixels without a network, in per cent, by the ``k`` nearest training scans; None where
            it was not measured.
    """

    leader: str | None
    rival: str | None
    models: dict[str, Judged] = field(default_factory=dict)
    pixels: Interval | None = None
    k: int = 0

    @property
    def is_shown(self) -> bool:
        """Whether one of the two models is shown to be better than the other."""
        lead = self.models[self.rival].lead if self.rival else None
        return lead is not None and (lead.is_above(0) or lead.is_below(0))


def overview(
    answers: dict[str, Answers],
    pair: Sequence[str | None],
    pixels: np.ndarray | None,
    intervals: Intervals,
    shared: Setting,
) -> Overview:
    """The first screen's numbers.

    Args:
        pair: the best self-supervised and the best supervised model.
        pixels: as ``pixel_accuracy`` gives them.
    """
    judged = {key: of_model for key, of_model in answers.items() if of_model.judged_by in of_model.results}
    ranked = sorted(judged, key=lambda key: -(judged[key].validation or 0))
    first = [key for key in pair if key in judged] or ranked[:1]
    two = sorted([*first, *(key for key in ranked if key not in first)][:2], key=ranked.index)
    leader, rival = [*two, None, None][:2]
    values = {key: of_model.values[f"{of_model.judged_by}_accuracy"] for key, of_model in judged.items()}
    others = sorted((key for key in judged if key not in two), key=lambda key: -values[key][0])
    return Overview(
        leader,
        rival,
        {
            key: _judge(
                judged[key],
                intervals,
                shared,
                None if key == leader else intervals.of("accuracy", values[leader] - values[key], Scale.DIFFERENCE),
            )
            for key in (*two, *others)
        },
        None if pixels is None else intervals.of("accuracy", pixels),
        shared.options.k[0],
    )


def _judge(of_model: Answers, intervals: Intervals, shared: Setting, lead: Interval | None) -> Judged:
    queries, result = intervals.queries, of_model.results[of_model.judged_by]
    is_right = of_model.by_protocol[of_model.judged_by].argmax(axis=1) == queries.labels
    classes = {}
    for c, name in enumerate(shared.class_names):
        members = queries.labels == c
        if members.any():
            share = intervals.bootstrap.mean(np.where(members, 100.0 * is_right, np.nan), Scale.PERCENT)
            patients = intervals.bootstrap.patients_of(members)
            classes[name] = Recognised(int(members.sum()), patients, int(is_right[members].sum()), share)
    return Judged(of_model.judged_by, int(is_right.sum()), result.accuracy, classes, lead)


def pixel_accuracy(model: Candidate, k: int, intervals: Intervals, shared: Setting) -> np.ndarray:
    """Resampled k-NN accuracy (1 + resamples,) of raw pixels at the model's image size, in per cent, as
    ``evaluation/knn.py`` measures them."""
    temperature = shared.options.temperature

    def make() -> Arrays:
        preprocessing = model.model.preprocessing()
        cache, scans = FeatureCache(cache_root(shared.data.dataset)), shared.data.scans
        train, test = (
            cache.get(scans, shared.positions[split], preprocessing, {"": RAW_PIXELS})[""]
            for split in ("train", "test")
        )
        votes = knn_votes(train, shared.set_of("train").labels, test, [k], len(shared.class_names), temperature)
        return {"votes": votes[k]}

    votes = model.steps.arrays("pixels", make, k=k, temperature=temperature)["votes"]
    scores = intervals.bootstrap.values(partial(score_all, labels=intervals.queries.labels, scores=votes))
    return scores[:, METRICS.index("accuracy")]
