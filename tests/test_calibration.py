"""Temperature, conformal limits and prediction sets."""

import math

import numpy as np
import pytest
from scipy.special import softmax

from dino_oct.scores.calibration import class_scores, conformal_limit, fit_temperature, prediction_sets


def test_the_temperature_of_overconfident_logits_is_found():
    rng = np.random.default_rng(0)
    true = 2 * rng.standard_normal((20_000, 4))
    labels = np.array([rng.choice(4, p=row) for row in softmax(true, axis=1)])
    assert fit_temperature(3 * true, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(true / 2, labels) == pytest.approx(0.5, rel=0.05)


def test_the_limit_is_that_of_split_conformal_prediction_where_each_patient_has_one_scan():
    scores = np.arange(1, 20) / 20  # 19 patients: of 20 places, the 18th covers 90 %
    assert conformal_limit(scores, np.arange(19), 0.9) == scores[17]
    assert conformal_limit(scores, np.arange(19), 0.95) == scores[18]
    assert conformal_limit(scores, np.arange(19), 0.96) == math.inf
    assert conformal_limit(scores[:8], np.arange(8), 0.9) == math.inf  # 9 patients are needed


def test_a_patient_counts_once_whatever_the_number_of_scans():
    scores = np.concatenate([np.full(1000, 0.9), np.full(9, 0.1)])
    patients = np.concatenate([np.zeros(1000), np.arange(1, 10)])
    assert conformal_limit(scores, patients, 0.8) == 0.1
    assert conformal_limit(scores, np.arange(1009), 0.8) == 0.9


def cohort(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels and patients of scans that are alike within a patient, whose numbers of scans differ."""
    scans = rng.integers(1, 30, patients)
    who = np.arange(patients).repeat(scans)
    labels = rng.integers(3, size=patients)[who]
    trouble = rng.gamma(1.0, 1.5, patients)[who]
    logits = 2 * np.eye(3)[labels] + trouble[:, None] * rng.standard_normal((patients, 3))[who]
    logits += 0.3 * rng.standard_normal(logits.shape)
    return softmax(logits, axis=1), labels, who


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_hold_the_class_of_new_patients_as_often_as_stated(coverage):
    rng, covered, by_scan = np.random.default_rng(1), [], []
    for _ in range(300):
        probabilities, labels, who = cohort(rng, 30)
        limits = [
            conformal_limit(class_scores(probabilities, labels), of, coverage) for of in (who, np.arange(len(who)))
        ]
        new, truth, patients = cohort(rng, 30)
        for found, limit in zip((covered, by_scan), limits, strict=True):
            inside = prediction_sets(new, limit)[np.arange(len(truth)), truth]
            found.append((np.bincount(patients, inside) / np.bincount(patients)).mean())
    assert coverage - 0.01 <= np.mean(covered) <= coverage + 0.04
    assert np.mean(by_scan) < np.mean(covered)  # scans as if each were of another patient: too few patients look many


def test_a_set_holds_the_classes_up_to_the_limit_and_may_be_empty():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.5, 0.45, 0.05]])
    assert prediction_sets(probabilities, 0.56).tolist() == [[True, False, False], [False] * 3, [True, True, False]]
    assert prediction_sets(probabilities, math.inf).all()
