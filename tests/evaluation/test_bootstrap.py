"""Intervals that readers can rely on: over patients, paired, reproducible."""

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from dino_oct.errors import InputError
from evaluation.bootstrap import Interval, PatientBootstrap
from evaluation.classification import confusion, score_all


def clustered(rng, patients: int, scans: int, within: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Patient names, and values that differ more between patients than within them."""
    names = np.repeat([f"p{i}" for i in range(patients)], scans)
    return names, np.repeat(rng.normal(size=patients), scans) + within * rng.normal(size=patients * scans)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_point_is_the_plain_mean_without_nan():
    names, values = clustered(np.random.default_rng(0), 7, 3)
    assert PatientBootstrap(names).mean(values).point == pytest.approx(values.mean(), rel=1e-12)
    values[4] = np.nan
    assert PatientBootstrap(names).mean(values).point == pytest.approx(np.nanmean(values), rel=1e-12)


def test_fewer_patients_widen_the_interval_and_fewer_scans_of_each_do_not():
    names, values = clustered(np.random.default_rng(1), 200, 8)
    all_of_them = width(PatientBootstrap(names).mean(values))
    few_patients = width(PatientBootstrap(names[: 20 * 8]).mean(values[: 20 * 8]))
    few_scans = width(PatientBootstrap(names[::4]).mean(values[::4]))
    assert few_patients > 1.5 * all_of_them
    assert few_scans == pytest.approx(all_of_them, rel=0.1)


def test_intervals_cover_the_truth_where_intervals_over_scans_do_not():
    rng = np.random.default_rng(2)
    covered = {"patients": 0, "scans": 0}
    for _ in range(200):
        names, values = clustered(rng, 40, 6)
        for unit, groups in (("patients", names), ("scans", np.arange(len(names)))):
            interval = PatientBootstrap(groups, 300).mean(values)
            covered[unit] += interval.low < 0 < interval.high
    assert 0.89 <= covered["patients"] / 200 <= 0.99
    assert covered["scans"] / 200 < 0.75


def test_same_seed_same_interval_in_any_order_of_scans():
    names, values = clustered(np.random.default_rng(3), 12, 4)
    order = np.random.default_rng(4).permutation(len(names))
    first, shuffled = PatientBootstrap(names).mean(values), PatientBootstrap(names[order]).mean(values[order])
    assert (first.low, first.high) == pytest.approx((shuffled.low, shuffled.high), rel=1e-9)
    assert PatientBootstrap(names, seed=1).mean(values).low != first.low


def test_differences_are_paired():
    names, values = clustered(np.random.default_rng(5), 30, 4)
    bootstrap = PatientBootstrap(names)
    better = bootstrap.mean((values + 0.01) - values)
    assert (better.low, better.high) == pytest.approx((0.01, 0.01))
    assert width(bootstrap.mean(values)) > 0.3


def test_no_interval_from_one_patient_or_without_resamples_and_few_patients_are_told():
    one = PatientBootstrap(np.array(["p", "p"]))
    assert one.mean(np.array([1.0, 3.0])) == Interval(2.0, None, None)
    assert "one patient" in one.notes()[0]
    assert PatientBootstrap(np.array(["p", "q"]), 0).mean(np.array([1.0, 3.0])) == Interval(2.0, None, None)
    assert "few" in PatientBootstrap(np.arange(5)).notes()[0]
    assert not PatientBootstrap(np.arange(50)).notes()
    for wrong in ((np.arange(3), -1, 0), (np.arange(3), 10, -1), (np.arange(0), 10, 0)):
        with pytest.raises(InputError):
            PatientBootstrap(*wrong)


def test_large_sets_in_blocks_give_the_same(monkeypatch):
    names, values = clustered(np.random.default_rng(6), 10, 3)
    whole = PatientBootstrap(names).mean(values)
    monkeypatch.setattr("evaluation.bootstrap._BLOCK", 100)
    blocks = PatientBootstrap(names).mean(values)
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
