"""Intervals that readers can rely on: over patients, paired, reproducible."""

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from dino_oct.errors import InputError
from dino_oct.scores.bootstrap import NO_SPREAD, Interval, PatientBootstrap, Scale, weighted_mean
from dino_oct.scores.classification import confusion, score_all
from dino_oct.scores.paired import verdict
from dino_oct.scores.text import missing_intervals


def clustered(rng, patients: int, scans: int, within: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Patient names, and values that differ more between patients than within them."""
    names = np.repeat([f"p{i}" for i in range(patients)], scans)
    return names, np.repeat(rng.normal(size=patients), scans) + within * rng.normal(size=patients * scans)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_point_is_the_plain_mean_without_nan():
    names, values = clustered(np.random.default_rng(0), 7, 3)
    assert PatientBootstrap(names).mean(values, Scale.DIFFERENCE).point == pytest.approx(values.mean(), rel=1e-12)
    values[4] = np.nan
    assert PatientBootstrap(names).mean(values, Scale.DIFFERENCE).point == pytest.approx(np.nanmean(values), rel=1e-12)


def test_fewer_patients_widen_the_interval_and_fewer_scans_of_each_do_not():
    names, values = clustered(np.random.default_rng(1), 200, 8)
    all_of_them = width(PatientBootstrap(names).mean(values, Scale.DIFFERENCE))
    few_patients = width(PatientBootstrap(names[: 20 * 8]).mean(values[: 20 * 8], Scale.DIFFERENCE))
    few_scans = width(PatientBootstrap(names[::4]).mean(values[::4], Scale.DIFFERENCE))
    assert few_patients > 1.5 * all_of_them
    assert few_scans == pytest.approx(all_of_them, rel=0.1)


def test_intervals_cover_the_truth_where_intervals_over_scans_do_not():
    rng = np.random.default_rng(2)
    covered = {"patients": 0, "scans": 0}
    for _ in range(200):
        names, values = clustered(rng, 40, 6)
        for unit, groups in (("patients", names), ("scans", np.arange(len(names)))):
            interval = PatientBootstrap(groups, 300).mean(values, Scale.DIFFERENCE)
            covered[unit] += interval.low < 0 < interval.high
    assert 0.89 <= covered["patients"] / 200 <= 0.99
    assert covered["scans"] / 200 < 0.75


def test_same_seed_same_interval_in_any_order_of_scans():
    names, values = clustered(np.random.default_rng(3), 12, 4)
    order = np.random.default_rng(4).permutation(len(names))
    first, shuffled = (
        PatientBootstrap(names).mean(values, Scale.DIFFERENCE),
        PatientBootstrap(names[order]).mean(values[order], Scale.DIFFERENCE),
    )
    assert (first.low, first.high) == pytest.approx((shuffled.low, shuffled.high), rel=1e-9)
    assert PatientBootstrap(names, seed=1).mean(values, Scale.DIFFERENCE).low != first.low


def test_differences_are_paired():
    names, values = clustered(np.random.default_rng(5), 30, 4)
    bootstrap = PatientBootstrap(names)
    better = bootstrap.mean(
        (values + 0.01 + 1e-3 * np.random.default_rng(6).normal(size=len(values))) - values, Scale.DIFFERENCE
    )
    assert better.is_above(0)
    assert width(better) < 0.001
    assert width(bootstrap.mean(values, Scale.DIFFERENCE)) > 0.3


def test_no_interval_from_one_patient_or_without_resamples_and_few_patients_are_told():
    single = PatientBootstrap(np.array(["p", "p"]))
    assert single.mean(np.array([1.0, 3.0]), Scale.RATIO) == Interval(2.0, None, None)
    assert "one patient" in single.notes()[0]
    assert PatientBootstrap(np.array(["p", "q"]), 0).mean(np.array([1.0, 3.0]), Scale.RATIO) == Interval(
        2.0, None, None
    )
    assert "few" in PatientBootstrap(np.arange(5)).notes()[0]
    assert not PatientBootstrap(np.arange(50)).notes()
    for wrong in ((np.arange(3), -1, 0), (np.arange(3), 10, -1), (np.arange(0), 10, 0)):
        with pytest.raises(InputError):
            PatientBootstrap(*wrong)


@pytest.mark.parametrize("n", [5, 20])
def test_where_all_patients_agree_the_bound_is_exact_or_there_is_none(n):
    bootstrap, same = PatientBootstrap(np.repeat(np.arange(n), 3)), np.ones(3 * n)
    all_right, all_wrong = (bootstrap.mean(value * same, Scale.PERCENT) for value in (100, 0))
    # Clopper and Pearson: the share of which n right patients in a row have a probability of 2.5 %.
    assert (all_right.low, all_right.high) == pytest.approx((100 * 0.025 ** (1 / n), 100))
    assert (all_wrong.low, all_wrong.high) == pytest.approx((0, 100 - 100 * 0.025 ** (1 / n)))
    correlation = bootstrap.mean(same, Scale.CORRELATION)
    assert (correlation.low, correlation.high) == pytest.approx((2 * 0.025 ** (1 / n) - 1, 1))
    for value, scale in ((80, Scale.PERCENT), (0, Scale.DIFFERENCE), (3, Scale.DIFFERENCE), (0, Scale.RATIO)):
        unknown = bootstrap.mean(value * same, scale)
        assert (unknown, unknown.reason) == (Interval(value), NO_SPREAD)


def test_no_interval_where_one_patient_has_nearly_all_scans_or_a_class_has_one_patient():
    rng = np.random.default_rng(7)
    most = np.concatenate([np.zeros(200, int), np.arange(1, 6)])
    interval = PatientBootstrap(most).mean(rng.normal(size=205), Scale.DIFFERENCE)
    assert interval.low is None
    assert "nearly all scans" in interval.reason
    patients = np.repeat(np.arange(10), 4)
    bootstrap, alone = PatientBootstrap(patients), (patients == 0).astype(int)
    values = bootstrap.values(lambda weights: weights @ rng.random(40) / 40)
    assert bootstrap.interval(values, Scale.SHARE).low is not None
    interval = bootstrap.interval(values, Scale.SHARE, bootstrap.support(alone))
    assert interval.low is None
    assert "a class" in interval.reason


def test_support_counts_patients_of_equal_weight():
    patients = np.repeat(np.arange(6), [4, 4, 4, 4, 4, 40])
    bootstrap = PatientBootstrap(patients)
    everyone = bootstrap.support(np.zeros(60, int))
    assert (everyone.counted, everyone.patients) == (6, pytest.approx(60**2 / (5 * 16 + 1600)))
    even = bootstrap.support(np.where(patients < 5, patients // 2, -1))  # two, two and one patients
    assert (even.counted, even.fewest, even.df) == (5, 1, 0)
    two = bootstrap.support(np.where(patients < 4, patients // 2, -1))
    assert (two.fewest, two.df) == (2, pytest.approx(2))  # Welch: n − 1 of each class


def test_p_values_say_what_the_interval_of_the_difference_says():
    rng = np.random.default_rng(8)
    decided = set()
    for _ in range(60):
        names, values = clustered(rng, 6, 3)
        bootstrap = PatientBootstrap(names, 200)
        resampled = bootstrap.values(lambda weights, v=values + 0.8: weighted_mean(weights, v))
        interval, p = bootstrap.interval(resampled, Scale.DIFFERENCE), bootstrap.p_value(resampled)
        assert (p < 0.05) == (interval.is_above(0) or interval.is_below(0))
        decided.add(p < 0.05)
    assert decided == {True, False}
    assert np.isnan(bootstrap.p_value(np.zeros(201)))


def test_an_interval_in_another_unit_or_turned_around():
    assert Interval(0.2, 0.1, 0.4).times(100) == Interval(20, 10, 40)
    assert Interval(2, 1, 4).times(-1) == Interval(-2, -4, -1)
    assert Interval(2, reason="why").times(-1).reason == "why"


def test_large_sets_in_blocks_give_the_same(monkeypatch):
    names, values = clustered(np.random.default_rng(6), 10, 3)
    whole = PatientBootstrap(names).mean(values, Scale.DIFFERENCE)
    monkeypatch.setattr("dino_oct.scores.bootstrap._BLOCK", 100)
    blocks = PatientBootstrap(names).mean(values, Scale.DIFFERENCE)
    assert (blocks.point, blocks.low, blocks.high) == pytest.approx((whole.point, whole.low, whole.high), rel=1e-12)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_weighted_metrics_equal_scikit_learn(n_classes):
    rng = np.random.default_rng(n_classes)
    labels = rng.integers(0, n_classes, 120)
    scores = rng.integers(1, 6, (120, n_classes)).astype(float)  # many ties
    scores /= scores.sum(axis=1, keepdims=True)
    weights = rng.integers(0, 4, (5, 120)).astype(float)
    for row, (accuracy, balanced, auroc) in zip(weights, score_all(weights, labels, scores), strict=True):
        predicted = scores.argmax(axis=1)
        assert accuracy == pytest.approx(100 * accuracy_score(labels, predicted, sample_weight=row))
        assert balanced == pytest.approx(100 * balanced_accuracy_score(labels, predicted, sample_weight=row))
        areas = [roc_auc_score(labels == c, scores[:, c], sample_weight=row) for c in range(n_classes)]
        assert auroc == pytest.approx(100 * np.mean(areas))


def test_a_class_without_scans_is_left_out_and_one_class_has_no_auroc():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
    accuracy, balanced, auroc = score_all(np.ones((1, 4)), labels, scores)[0]
    assert (accuracy, balanced) == (75, 75)
    assert auroc == pytest.approx(100 * np.mean([roc_auc_score(labels == c, scores[:, c]) for c in (0, 1)]))
    resampled = score_all(np.array([[2.0, 2, 0, 0]]), labels, scores)[0]
    assert resampled[0] == 50
    assert np.isnan(resampled[1:]).all()  # a mean over class 0 alone would be another quantity
    only = PatientBootstrap(np.arange(2), 50)
    assert np.isnan(only.values(partial(score_all, labels=labels[:2], scores=scores[:2]))[0, 2])
    np.testing.assert_array_equal(confusion(labels, scores.argmax(1), 3), [[1, 1, 0], [0, 2, 0], [0, 0, 0]])


def test_a_missing_interval_has_its_reason_in_the_report():
    alike = PatientBootstrap(np.arange(6)).mean(np.zeros(6), Scale.DIFFERENCE)
    assert missing_intervals({"rows": {"a": {"x": alike, "y": [alike, Interval(1, 0, 2)]}}}) == [
        f"a number without an interval: {NO_SPREAD}"
    ]
    assert NO_SPREAD in verdict(alike, "raw pixels", 5)


def test_a_share_and_its_per_cent_have_the_same_interval():
    names, values = clustered(np.random.default_rng(3), 15, 4)
    right, bootstrap = (values > -0.5).astype(float), PatientBootstrap(names)
    share, per_cent = bootstrap.mean(right, Scale.SHARE), bootstrap.mean(100 * right, Scale.PERCENT)
    assert (per_cent.low, per_cent.high) == pytest.approx((100 * share.low, 100 * share.high), rel=1e-9)
    score = bootstrap.mean(right, Scale.SCORE)  # which takes no patient's larger variance
    assert 1 < width(share) / width(score) < 1.1
