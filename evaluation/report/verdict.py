"""What a comparison lets one say: who wins, by how much, on how many patients, and what is not shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dino_oct.scores.bootstrap import Interval, Scale
from dino_oct.scores.class_summary import Majority, majority, never_recognised, summary_of_counts
from dino_oct.scores.text import show
from dino_oct.words import counted
from evaluation.report.answers import Answers
from evaluation.report.models import Candidate
from evaluation.report.steps import Setting
from evaluation.report.table import Intervals, protocol_title

SELF, SUPERVISED, START = "self-supervised", "supervised", "starting weights"


@dataclass(frozen=True)
class Verdict:
    """Who wins, in words and as the number that the words rest on.

    Attributes:
        headline, sentences: plain English, the headline first.
        patients, scans: of the test.
        majority: the most frequent class, and what always naming it scores.
        difference: accuracy of a − accuracy of b in points, paired; None where a or b is missing.
        a, b: best self-supervised and best supervised model on validation patients; None where there is none.
    """

    headline: str
    sentences: list[str]
    patients: int
    scans: int
    majority: Majority
    difference: Interval | None
    a: str | None
    b: str | None


def best_on_validation(scores: dict[str, float | None]) -> str | None:
    """The model of highest score on validation scans, None where no score is known; ties: the first named."""
    known = {key: score for key, score in scores.items() if score is not None}
    return max(known, key=known.__getitem__) if known else None


def best_of_kinds(answers: dict[str, Answers]) -> tuple[str | None, str | None]:
    """The best self-supervised and the best supervised model on validation patients; None where there is none."""
    return tuple(
        best_on_validation({key: of.validation for key, of in answers.items() if of.model.kind == kind})
        for kind in (SELF, SUPERVISED)
    )


def verdict(
    answers: dict[str, Answers],
    pair: Sequence[str | None],
    pixels: np.ndarray | None,
    intervals: Intervals,
    shared: Setting,
) -> Verdict:
    """The best self-supervised model against the best supervised one.

    Args:
        pair: as ``best_of_kinds`` gives it.
        pixels: as ``pixel_accuracy`` gives them, at the image size of the first of the two that is there.
    """
    queries = intervals.queries
    patients, scans = len(set(queries.patients.tolist())), len(queries.labels)
    where = f"{counted(scans, 'test scan')} of {counted(patients, 'patient')}"
    models = {key: of_model.model for key, of_model in answers.items()}
    a, b = pair
    difference, sentences, accuracy, in_words = None, [], {}, {}
    for key in filter(None, (a, b)):
        judged_by = answers[key].judged_by
        accuracy[key] = answers[key].values[f"{judged_by}_accuracy"]
        result = answers[key].results[judged_by]
        by_class = summary_of_counts(result.confusion, shared.class_names)
        in_words[key] = f"{show(result.accuracy)} % ({by_class.words})"
    most = majority(queries.labels, shared.class_names)
    chosen_by = "chosen by balanced accuracy on validation patients, never on the test"
    if a and b:
        difference = intervals.of("accuracy", accuracy[a] - accuracy[b], Scale.DIFFERENCE)
        rates = {key: answers[key].results[answers[key].judged_by].accuracy for key in (a, b)}
        headline = _headline(a, b, rates, difference, where)
        sentences += [
            f"{a} with {_protocol(models[a])}: {in_words[a]} of the test scans right; {b} with "
            f"{_protocol(models[b])}: {in_words[b]} (95 % intervals by patient).",
            f"{a} − {b}: {show(difference, signed=True)} points, paired on the same scans of {patients:,} patients. "
            f"Each is the best of its kind, {chosen_by}.",
        ]
        counts = {kind: sum(model.kind == kind for model in models.values()) for kind in (SELF, SUPERVISED)}
        sentences.append(
            f"Compared were {counts[SELF]} self-supervised and {counts[SUPERVISED]} supervised, one training each: "
            "another seed of the training may change the order."
        )
    elif a or b:
        alone, missing = (a, SUPERVISED) if a else (b, SELF)
        rate = answers[alone].results[answers[alone].judged_by].accuracy
        headline = (
            f"{alone} names the right class of {rate.point:.1f} % of {where}{_span(rate)}; there is no {missing} model "
            "to compare with."
        )
        sentences.append(f"{alone} with {_protocol(models[alone])}: {in_words[alone]} of the test scans right.")
        sentences.append(f"Self-supervised against supervised is NOT shown: no {missing} model was given.")
    else:
        headline = (
            f"No self-supervised and no supervised model is among the {len(models)} compared: no verdict on {where}."
        )
    if a:
        sentences += _knn_sentences(a, answers, pixels, intervals, shared)
    for key in accuracy:
        provenance = models[key].provenance
        if both := len(provenance.patients & set(queries.patients.tolist())) if provenance else 0:
            sentences.insert(0, f"NOT a fair test: {key} was trained on scans of {both} of these patients.")
    sentences.append(
        f"Always naming {most.name}, the most frequent class, would be right in {most.share:.1f} % of the test scans."
    )
    sentences += never_recognised(
        (f"{key}, {protocol_title(protocol)}", result.never_recognised)
        for key, of_model in answers.items()
        for protocol, result in of_model.results.items()
    )
    sentences += [f"Note: {note}." for note in intervals.bootstrap.notes()]
    if shared.data.is_phantom:
        headline = f"On phantoms (synthetic scans): {headline}"
        sentences.append("These are synthetic scans: nothing here says how the models do on patients.")
    if headline.startswith("the "):
        headline = headline[0].upper() + headline[1:]
    return Verdict(headline, sentences, patients, scans, most, difference, a, b)


def _protocol(model: Candidate) -> str:
    return "its own classifier" if model.is_judged_by_own else "a linear probe on frozen features"


def _headline(a: str, b: str, rates: dict[str, Interval], difference: Interval, where: str) -> str:
    kinds, lead = {a: f"self-supervised {a}", b: f"supervised {b}"}, difference
    if not (difference.is_above(0) or difference.is_below(0)):
        return (
            f"It is NOT shown that the {kinds[a]} or the {kinds[b]} is better: they name the right class of "
            f"{rates[a].point:.1f} % and {rates[b].point:.1f} % of {where}, a difference of "
            f"{abs(difference.point):.1f} points, which chance may explain{_span(difference, '+')}."
        )
    better, worse = a, b
    if difference.is_below(0):
        better, worse, lead = b, a, difference.times(-1)
    return (
        f"the {kinds[better]} is better than the {kinds[worse]}: they name the right class of "
        f"{rates[better].point:.1f} % and {rates[worse].point:.1f} % of {where}, a difference of {lead.point:.1f} "
        f"points{_span(lead)}."
    )


def _span(value: Interval, sign: str = "") -> str:
    if value.low is None:
        return ""
    return f" (95 % interval {value.low:{sign}.1f} to {value.high:{sign}.1f})".replace("-", "−")


def _knn_sentences(
    a: str, answers: dict[str, Answers], pixels: np.ndarray | None, intervals: Intervals, shared: Setting
) -> list[str]:
    """k-NN of the self-supervised model against raw pixels and its own starting weights."""
    k, model = shared.options.k[0], answers[a].model
    if not answers[a].knn or pixels is None:
        return []
    others = {"raw pixels": pixels}
    for key, other in answers.items():
        if other.model.kind == START and other.model.source.run == model.source.run and other.knn:
            others[f"its starting weights ({key})"] = other.values[f"knn_{k}"]
    sentences = []
    for name, resamples in others.items():
        difference = intervals.of("accuracy", answers[a].values[f"knn_{k}"] - resamples, Scale.DIFFERENCE)
        numbers = f"{show(difference, signed=True)} points of k-NN accuracy, k = {k}"
        verb = "beats" if difference.is_above(0) else "is WORSE than" if difference.is_below(0) else ""
        claim = f"{a} {verb} {name}" if verb else f"That {a} beats {name} is NOT shown"
        sentences.append(f"{claim}: {numbers}.")
    return sentences
