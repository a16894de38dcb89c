"""The k-NN comparison on constructed features whose answer is known."""

import numpy as np
import pytest

from dino_oct.errors import InputError
from dino_oct.knn import knn_votes
from dino_oct.scores.paired import ScanSet, compare_scores, verdict
from evaluation.config import KnnOptions
from evaluation.protocols.knn import vote

CLASSES = ("CNV", "DME", "NORMAL")


def scan_set(patients: int, scans: int, first: int = 0) -> ScanSet:
    labels = np.repeat(np.arange(patients) % 3, scans)
    return ScanSet(labels, np.repeat([str(first + i) for i in range(patients)], scans))


def separable(rng, labels: np.ndarray) -> np.ndarray:
    return np.eye(8)[labels] + 0.1 * rng.normal(size=(len(labels), 8))


def noise(rng, labels: np.ndarray) -> np.ndarray:
    return rng.normal(size=(len(labels), 8))


def compare_features(features, reference, queries, class_names, options):
    votes = vote(features, reference, queries, len(class_names), options)
    return compare_scores(votes, reference, queries, class_names, bootstrap=options.bootstrap, seed=options.seed)


def compare(model, pixels, reference=None, queries=None, ks=(1, 5), **settings):
    rng = np.random.default_rng(0)
    reference, queries = reference or scan_set(30, 4), queries or scan_set(18, 4, first=100)
    features = {
        name: (kind(rng, reference.labels), kind(rng, queries.labels))
        for name, kind in (("model", model), ("raw pixels", pixels))
    }
    return compare_features(features, reference, queries, CLASSES, KnnOptions(k=ks, **settings))


def test_features_that_separate_the_classes_beat_features_that_do_not():
    result = compare(separable, noise)
    for k in (1, 5):
        good, bad = result.rows["model"][k], result.rows["raw pixels"][k]
        assert good.accuracy.point == good.balanced_accuracy.point == good.macro_auroc.point == 100
        assert abs(bad.accuracy.point - 100 / 3) < 18  # 72 scans: three standard errors are 17
        assert abs(bad.macro_auroc.point - 50) < 18
        np.testing.assert_array_equal(good.confusion, 24 * np.eye(3))
        for recall in good.recall.values():  # of six patients each
            assert (recall.point, recall.low, recall.high) == pytest.approx((100, 100 * 0.025 ** (1 / 6), 100))
        assert bad.recall["DME"].low < bad.recall["DME"].point < bad.recall["DME"].high
        difference = result.differences["model − raw pixels"][k].accuracy
        assert difference.point == pytest.approx(100 - bad.accuracy.point)
        assert difference.is_above(0)
        assert "above raw pixels" in verdict(difference, "raw pixels", k)


def test_a_model_no_better_than_pixels_is_told_so():
    sentence = verdict(compare(noise, noise).differences["model − raw pixels"][5].accuracy, "raw pixels", 5)
    assert "does NOT beat raw pixels" in sentence
    assert "includes 0" in sentence
    worse = compare(noise, separable).differences["model − raw pixels"][5].accuracy
    assert "WORSE than raw pixels" in verdict(worse, "raw pixels", 5)
    alone = compare(separable, noise, queries=ScanSet(np.array([1]), np.array(["x"])))
    assert "nothing is shown" in verdict(alone.differences["model − raw pixels"][1].accuracy, "raw pixels", 1)


def duplicates(rng):
    """Each patient has two near copies of one scan, and scans say nothing about the class beyond the patient."""
    scans = scan_set(40, 2)
    return scans, np.repeat(rng.normal(size=(40, 16)), 2, axis=0) + 1e-3 * rng.normal(size=(80, 16))


def test_leaving_out_the_own_patient_unmasks_near_duplicates():
    scans, features = duplicates(np.random.default_rng(1))
    reference, queries = (
        ScanSet(scans.labels[::2], scans.patients[::2]),
        ScanSet(scans.labels[1::2], scans.patients[1::2]),
    )
    rows = {"model": (features[::2], features[1::2])}
    with_own = compare_features(rows, reference, queries, CLASSES, KnnOptions(k=(1,))).rows["model"][1]
    options = KnnOptions(k=(1,), exclude_same_patient=True)
    without = compare_features(rows, reference, queries, CLASSES, options).rows["model"][1]
    assert with_own.accuracy.point == 100
    assert without.accuracy.point < 60


def test_leaving_out_the_own_patient_equals_a_search_without_his_scans():
    rng = np.random.default_rng(2)
    train, test, labels = rng.normal(size=(60, 6)), rng.normal(size=(20, 6)), rng.integers(0, 3, 60)
    train_patients = rng.choice(list("abcde"), 60, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    test_patients = rng.choice(list("abxy"), 20)
    together = knn_votes(train, labels, test, [3, 9], 3, patients=(train_patients, test_patients))
    for i, patient in enumerate(test_patients):
        others = train_patients != patient
        alone = knn_votes(train[others], labels[others], test[i : i + 1], [3, 9], 3)
        for k in (3, 9):
            np.testing.assert_allclose(together[k][i], alone[k][0], rtol=1e-5)
    untouched = knn_votes(train, labels, test, [3], 3, patients=(train_patients, np.full(20, "new")))
    np.testing.assert_array_equal(untouched[3], knn_votes(train, labels, test, [3], 3)[3])


def test_odd_splits_are_scored_and_explained():
    queries = scan_set(18, 2, first=100)
    keep = queries.labels != 1
    result = compare(separable, noise, queries=ScanSet(queries.labels[keep], queries.patients[keep]))
    assert result.rows["model"][5].macro_auroc.point == 100
    assert np.isnan(result.rows["model"][5].recall["DME"].point)
    assert any("DME" in note and "AUROC" in note for note in result.notes)
    keep = (queries.labels != 1) | (queries.patients == "101")
    result = compare(separable, noise, queries=ScanSet(queries.labels[keep], queries.patients[keep]))
    row = result.rows["raw pixels"][5]
    assert row.accuracy.low < row.accuracy.high
    assert row.balanced_accuracy.low is row.macro_auroc.low is None
    assert any("one patient only of DME" in note for note in result.notes)
    single = compare(separable, noise, queries=ScanSet(np.array([2]), np.array(["x"])))
    row = single.rows["model"][1]
    assert (row.accuracy.point, row.accuracy.low) == (100, None)
    assert np.isnan(row.macro_auroc.point)
    assert any("one class" in note for note in single.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": (121,)}, r"k = 121: must be from 1 to 120, the number of training scans$"),
        ({"ks": (0, 5)}, r"k = 0: must be from 1"),
        ({"ks": ()}, r"no k given"),
        ({"temperature": 0.0}, r"temperature"),
        (
            {"ks": (117,), "queries": scan_set(3, 2), "exclude_same_patient": True},
            r"k = 117: must be from 1 to 116, the number of training scans of other patients \(of 120 in all\)",
        ),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        compare(noise, noise, **settings)
