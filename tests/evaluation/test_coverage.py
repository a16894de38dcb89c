"""How often the printed intervals contain the truth: every kind of number, at 5, 10, 20 and 50 patients.

Scans of a patient are alike (random effects), and patients have unequally many. 400 samples tell a coverage of 92 % to
± 2.7 points (95 %), so 89.3 % of them must contain the truth.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.stats import norm

from dino_oct.data.shortcut import _balanced_accuracy
from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale, weighted_mean
from dino_oct.scores.classification import METRICS, score_all
from dino_oct.scores.multilabel import compare_labels
from dino_oct.scores.paired import metric_supports
from dino_oct.scores.regression import compare_numbers, rank_correlation

DESIGNS, REPEATS, RESAMPLES = 8, 50, 200
RUNS = DESIGNS * REPEATS
LEAST = 0.92 - 1.96 * (0.92 * 0.08 / RUNS) ** 0.5
PATIENTS = (5, 10, 20, 50)
# Patients of each class: uneven, two of the rarest.
CLASSES = {5: (3, 2), 10: (5, 3, 2), 20: (10, 5, 3, 2), 50: (30, 13, 5, 2)}

Kind = Callable[[np.random.Generator, np.ndarray, PatientBootstrap], Iterator[tuple[float, Interval]]]


def scans_of(rng: np.random.Generator, n: int, heavy: bool) -> np.ndarray:
    """Patient of each scan; of 1 to 12 scans each, or a few of them with most of the scans."""
    return np.repeat(np.arange(n), np.ceil(rng.lognormal(1.2, 0.9, n)).astype(int) if heavy else rng.integers(1, 13, n))


def right(rng: np.random.Generator, patients: np.ndarray, chance: np.ndarray, alike: float = 0.3) -> np.ndarray:
    """Whether each scan is right, (N, REPEATS); beta-binomial with an intra-patient correlation of ``alike``.

    Args:
        chance: of each patient, or of all.
    """
    n, chance = patients.max() + 1, np.asarray(chance).reshape(-1, 1)
    of_patient = rng.beta(chance * (1 / alike - 1), (1 - chance) * (1 / alike - 1), size=(n, REPEATS))
    return rng.random((len(patients), REPEATS)) < of_patient[patients]


def normal(rng: np.random.Generator, patients: np.ndarray, alike: float = 0.5, columns: int = REPEATS) -> np.ndarray:
    """Standard normal (N, columns), of whose variance ``alike`` is the patient's."""
    of_patient = rng.normal(0, alike**0.5, (patients.max() + 1, columns))
    return of_patient[patients] + rng.normal(0, (1 - alike) ** 0.5, (len(patients), columns))


def means(truth: float, values: np.ndarray, bootstrap: PatientBootstrap, scale: Scale) -> Iterator:
    """Means over scans of ``values`` (N, REPEATS)."""
    resampled = bootstrap.values(lambda weights: weighted_mean(weights, values))
    return ((truth, bootstrap.interval(column, scale)) for column in resampled.T)


def accuracy(chance: float, alike: float = 0.3, scale: Scale = Scale.PERCENT) -> Kind:
    unit = scale.value[1]
    return lambda rng, patients, bootstrap: means(
        unit * chance, unit * right(rng, patients, chance, alike), bootstrap, scale
    )


def recall(chance: float) -> Kind:
    """Of one class among others: as many patients more are of other classes."""

    def samples(rng, patients, _):
        everyone = np.concatenate([patients, patients.max() + 1 + patients])
        bootstrap, members = PatientBootstrap(everyone, RESAMPLES), np.arange(len(everyone)) < len(patients)
        for hit in right(rng, everyone, chance).T:
            yield 100 * chance, bootstrap.mean(np.where(members, 100.0 * hit, np.nan), Scale.PERCENT)

    return samples


def accuracy_difference(a: float, b: float) -> Kind:
    """Of two models that find the same scans hard."""

    def samples(rng, patients, bootstrap):
        hard, limits = normal(rng, patients), 2**0.5 * norm.ppf([a, b])
        hit_a, hit_b = (hard + normal(rng, patients) < limit for limit in limits)
        return means(100 * (a - b), 100.0 * hit_a - 100.0 * hit_b, bootstrap, Scale.DIFFERENCE)

    return samples


def classes_of(patients: np.ndarray) -> np.ndarray:
    """Class of each patient."""
    sizes = CLASSES[patients.max() + 1]
    return np.repeat(np.arange(len(sizes)), sizes)


def metric(name: str, quality: float, other: float | None = None) -> Kind:
    """One of ``METRICS`` for score margins of ``quality`` standard deviations, or its paired difference to another."""

    def samples(rng, patients, bootstrap):
        of_patient = classes_of(patients)
        labels, column = of_patient[patients], METRICS.index(name)
        support, n_classes = metric_supports(bootstrap, labels)[name], of_patient.max() + 1
        qualities = [quality] if other is None else [quality, other]
        truths = [truth_of(name, margin, n_classes) for margin in qualities]
        for _ in range(REPEATS // 2):  # these cost the most
            shared, columns = normal(rng, patients, columns=n_classes), []
            for margin in qualities:
                noise = (shared + normal(rng, patients, columns=n_classes)) / 2**0.5
                scores = noise + margin * np.eye(n_classes)[labels]
                columns.append(bootstrap.values(lambda weights, s=scores: score_all(weights, labels, s))[:, column])
            if other is None:
                yield truths[0], bootstrap.interval(columns[0], Scale.PERCENT, support)
            else:
                yield truths[0] - truths[1], bootstrap.interval(columns[0] - columns[1], Scale.DIFFERENCE, support)

    return samples


def truth_of(name: str, quality: float, n_classes: int) -> float:
    """Exact for independent normal scores: all classes alike."""
    if name == "macro_auroc":
        return 100 * norm.cdf(quality / 2**0.5)
    x = np.linspace(-8, 8, 4001)
    return 100 * np.trapezoid(norm.pdf(x) * norm.cdf(x + quality) ** (n_classes - 1), x)


def shortcut(rng, patients, _):
    of_patient = classes_of(patients)
    chances = np.linspace(0.9, 0.6, of_patient.max() + 1)
    labels = of_patient[patients]
    for hit in right(rng, patients, chances[of_patient]).T:
        yield chances.mean(), _balanced_accuracy(labels, np.where(hit, labels, 1 + labels), patients, 0)


def map_score(mean: float, sharpness: float = 8) -> Kind:
    """Shares of a map on the lesion: skewed, differing between patients."""

    def samples(rng, patients, bootstrap):
        of_patient = rng.beta(sharpness * mean, sharpness * (1 - mean), (patients.max() + 1, REPEATS))[patients]
        return means(mean, rng.beta(10 * of_patient, 10 * (1 - of_patient)), bootstrap, Scale.SCORE)

    return samples


def map_score_difference(rng, patients, bootstrap):
    scores = 0.1 * normal(rng, patients) - 0.1 * normal(rng, patients)
    return means(0.05, scores + 0.05, bootstrap, Scale.DIFFERENCE)


def ratio(spread: float, missed: float = 0.0) -> Kind:
    """Density on the lesion over that on the retina; a share of the maps misses the lesion and scores 0."""

    def samples(rng, patients, bootstrap):
        values = np.exp(spread * normal(rng, patients)) * (rng.random((len(patients), REPEATS)) >= missed)
        return means((1 - missed) * np.exp(spread**2 / 2), values, bootstrap, Scale.RATIO)

    return samples


def map_correlation(rng, patients, bootstrap):
    """Mean over scans of correlations, as of the randomisation test, or of silhouettes."""
    values = np.tanh(0.35 + 0.4 * normal(rng, patients))
    truth = np.tanh(0.35 + 0.4 * np.random.default_rng(0).normal(size=400_000)).mean()
    return means(float(truth), values, bootstrap, Scale.CORRELATION)


def purity(rng, patients, bootstrap):
    """Share of ten neighbours of the own class."""
    of_scan = rng.beta(4, 1, (patients.max() + 1, REPEATS))[patients]
    return means(80.0, 10.0 * rng.binomial(10, of_scan), bootstrap, Scale.PERCENT)


def label_share(patients: np.ndarray) -> np.ndarray:
    """Chance of each patient's scans to have a label: most have none or few, a third of them many."""
    return np.where(np.arange(patients.max() + 1) % 3 == 0, 0.8, 0.05)


def label(
    metric: str, quality: float, other: float | None = None, several: bool = False, of_patients: bool = False
) -> Kind:
    """AUROC or average precision of a label that comes and goes within a patient, a difference, or a mean of three.

    Args:
        of_patients: all scans of three patients have it, and none of any other.
    """

    def samples(rng, patients, _):
        share, names = label_share(patients), ["one", "two", "three"] if several else ["one"]
        share = (np.arange(len(share)) < 3).astype(float) if of_patients else share
        for repeat in range(REPEATS // 2):  # these cost the most
            shared = normal(rng, patients, columns=len(names))
            values = (rng.random(shared.shape) < share[patients][:, None]).astype(np.int8)
            values[rng.random(shared.shape) < 0.1] = -1  # not known
            scores = {
                row: {0: (shared + normal(rng, patients, columns=len(names))) / 2**0.5 + margin * (values == 1)}
                for row, margin in (("a", quality), ("b", quality if other is None else other))
            }
            compared = compare_labels(scores, values, patients, names, bootstrap=RESAMPLES, seed=repeat)
            if len(compared.rows["a"][0].labels) < len(names):  # by chance none has it
                continue
            truth, less = (np.mean([truth_of_label(metric, q, v) for v in values.T]) for q in (quality, other or 0))
            if other is None:
                yield truth, getattr(compared.rows["a"][0].macro, metric)
            else:
                yield truth - less, getattr(compared.differences["a − b"][0].macro, metric)

    return samples


def truth_of_label(metric: str, quality: float, values: np.ndarray) -> float:
    """Of endlessly many scans, as many of them with the label as here."""
    if metric == "auroc":
        return 100 * norm.cdf(quality / 2**0.5)
    share, x = (values == 1).sum() / max((values >= 0).sum(), 1), np.linspace(-7, 10, 2001)
    found = share * norm.sf(x - quality)
    precision = found / np.maximum(found + (1 - share) * norm.sf(x), 1e-300)
    return 100 * np.trapezoid(norm.pdf(x - quality) * precision, x)


def number(metric: str, correlation: float) -> Kind:
    """R² or mean absolute error of predictions that know a part of the truth."""

    def samples(rng, patients, _):
        known, rest = normal(rng, patients), normal(rng, patients)
        truth = correlation * known + (1 - correlation**2) ** 0.5 * rest
        exact = {"r2": correlation**2, "error": (1 - correlation**2) ** 0.5 * (2 / np.pi) ** 0.5}
        for y, x in zip(truth.T, correlation * known.T, strict=True):
            yield exact[metric], getattr(compare_numbers({"a": x}, y, patients, RESAMPLES)[0]["a"], metric)

    return samples


def severity(correlation: float) -> Kind:
    def samples(rng, patients, bootstrap):
        a, b = normal(rng, patients), normal(rng, patients)
        b = correlation * a + (1 - correlation**2) ** 0.5 * b
        for x, y in zip(a.T, b.T, strict=True):
            values = bootstrap.values(lambda weights, x=x, y=y: rank_correlation(weights, x, y))
            yield 6 / np.pi * np.arcsin(correlation / 2), bootstrap.interval(values, Scale.CORRELATION)

    return samples


KINDS: dict[str, Kind] = {
    "accuracy 75": accuracy(0.75),
    "accuracy 90": accuracy(0.9),
    "accuracy 97": accuracy(0.97),
    "accuracy 95, patients alike": accuracy(0.95, 0.5),
    "recall 85": recall(0.85),
    "balanced accuracy": metric("balanced_accuracy", 2.0),
    "macro AUROC": metric("macro_auroc", 1.8),
    "accuracy difference 0": accuracy_difference(0.9, 0.9),
    "accuracy difference 5": accuracy_difference(0.85, 0.8),
    "balanced accuracy difference": metric("balanced_accuracy", 2.0, 1.6),
    "AUROC difference 0": metric("macro_auroc", 1.8, 1.8),
    "shortcut": shortcut,
    "map score": map_score(0.3),
    "map score, small": map_score(0.1, 20),
    "map score difference": map_score_difference,
    "pointing game": accuracy(0.6, scale=Scale.SHARE),
    "ratio": ratio(0.5),
    "ratio with misses": ratio(0.5, 0.3),
    "map correlation": map_correlation,
    "purity": purity,
    "severity": severity(0.6),
    "label AUROC": label("auroc", 1.5),
    "label AUROC, high": label("auroc", 2.5),
    "label AUROC, three patients have it": label("auroc", 1.5, of_patients=True),
    "label average precision, three patients have it": label("average_precision", 1.5, of_patients=True),
    "label AUROC difference": label("auroc", 1.5, 1.0),
    "label average precision": label("average_precision", 1.5),
    "label average precision difference": label("average_precision", 1.5, 1.0),
    "mean AUROC of labels": label("auroc", 1.5, several=True),
    "mean average precision of labels": label("average_precision", 1.5, several=True),
    "R²": number("r2", 0.7),
    "mean absolute error": number("error", 0.7),
}


def measure(kind: str, n: int, heavy: bool = False) -> tuple[float, int]:
    """Share of the intervals that contain the truth, and their number."""
    rng = np.random.default_rng([n, *kind.encode()])
    covered = []
    for design in range(DESIGNS):
        patients = scans_of(rng, n, heavy)
        for truth, interval in KINDS[kind](rng, patients, PatientBootstrap(patients, RESAMPLES, design)):
            if interval.low is not None:
                assert interval.low <= interval.point <= interval.high
                covered.append(interval.low <= truth <= interval.high)
    return float(np.mean(covered)), len(covered)


@pytest.mark.parametrize("n", PATIENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_contain_the_truth(kind, n):
    coverage, given = measure(kind, n)
    assert coverage >= LEAST, f"{100 * coverage:.1f} % of {given} intervals"
    assert given >= RUNS / 4  # not by giving none


@pytest.mark.parametrize("n", PATIENTS)
@pytest.mark.parametrize("kind", ["accuracy 90", "accuracy difference 0", "recall 85", "balanced accuracy"])
def test_also_where_few_patients_have_most_of_the_scans(kind, n):
    coverage, given = measure(kind, n, heavy=True)
    assert coverage >= LEAST, f"{100 * coverage:.1f} % of {given} intervals"
