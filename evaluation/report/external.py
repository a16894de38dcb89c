"""The models of a comparison on labelled scans from elsewhere (``--external``)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dino_oct.errors import InputError
from dino_oct.features import predict_scans
from evaluation.config import FeatureOptions, LinearOptions
from evaluation.inputs.features import features_of as features_on
from evaluation.inputs.scans import External
from evaluation.inputs.steps import Arrays
from evaluation.protocols import linear
from evaluation.protocols.external import OnExternal, judge_external
from evaluation.report.answers import Answers, features_of
from evaluation.report.models import Candidate
from evaluation.report.steps import Setting, data_digest
from evaluation.report.table import protocol_title


def judge_elsewhere(answers: dict[str, Answers], shared: Setting, external: External) -> OnExternal:
    """Every model by its own classifier, or by a linear probe on its features where it has none for these classes.

    Raises:
        InputError: no model answers.
    """
    known, scores, by = data_digest(external.data), {}, {}
    for key, of_model in answers.items():
        model = of_model.model
        protocol = "classifier" if model.has_own else "linear"

        def make(model: Candidate = model, ask: Callable = _classify if model.has_own else _probe) -> Arrays:
            return {"scores": ask(model, shared, external)}

        try:
            kept = model.steps.arrays("elsewhere", make, scans=known, classes=external.classes, by=protocol)
        except InputError as reason:
            model.gaps["external"] = str(reason)
            continue
        scores[key], by[key] = kept["scores"], protocol_title(protocol)
    if not scores:
        raise InputError("no model answers")
    return replace(judge_external(scores, external, shared.data, shared.set_of("train"), shared.options), by=by)


def _probe(model: Candidate, shared: Setting, external: External) -> np.ndarray:
    """Probabilities (M, C) of the linear probe that the report fits to the training scans."""
    there = features_on(model.model, FeatureOptions(controls=False), external.data, external.positions)
    own, train, val = features_of(model), shared.set_of("train"), shared.set_of("val")
    features = linear.Features(own.train, own.val, there)
    every = np.arange(len(train.labels))
    return linear.fit_probe(features, train, val, every, LinearOptions(), len(shared.class_names))[1]


def _classify(model: Candidate, shared: Setting, external: External) -> np.ndarray:
    """Probabilities (M, C) of the model's own classifier."""
    classifier, scans = model.classifier, external.data.scans
    found = predict_scans(classifier.model, scans, external.positions, classifier.input_size, classifier.device)
    scores = np.zeros((len(found), len(shared.class_names)))
    scores[:, [shared.class_names.index(name) for name in classifier.class_names]] = found
    return scores
