"""What stands beside an accuracy: balanced accuracy, the most frequent class, the class that is recognised least."""

import numpy as np
import pytest

from dino_oct.scores.class_summary import majority, never_recognised, summarise
from dino_oct.scores.paired import ScanSet, compare_scores
from dino_oct.scores.text import ACCURACY_HEADER, accuracy_cells, majority_row

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
# 1,000 scans of 100 patients, 90 % NORMAL; DME and DRUSEN are called NORMAL, and 48 of 50 CNV scans are found.
LABELS = np.repeat([0, 1, 2, 3], [50, 20, 30, 900])
CALLED = np.where(LABELS == 0, 0, 3)
CALLED[:2] = 3
PATIENTS = np.arange(1000) // 10


def test_a_high_accuracy_shows_what_it_hides():
    summary = summarise(LABELS, CALLED, CLASSES)
    assert (CALLED == LABELS).mean() == 0.948
    assert summary.balanced_accuracy == pytest.approx((96 + 0 + 0 + 100) / 4)
    assert summary.lowest == "DME"
    assert summary.never_recognised == ["DME", "DRUSEN"]
    assert summary.words == "balanced 49.0 %, lowest recall DME 0.0 %, never recognised: DME, DRUSEN"
    assert majority(LABELS, CLASSES).words == "always NORMAL 90.0 %"
    without = summarise(LABELS[LABELS > 1], CALLED[LABELS > 1], CLASSES)
    assert set(without.recall) == {"DRUSEN", "NORMAL"}  # a class without scans is not one that is never recognised


def test_every_classifier_of_a_comparison_has_it():
    compared = compare_scores(
        {"model": {5: np.eye(4)[CALLED]}, "raw pixels": {5: np.eye(4)[LABELS]}},
        ScanSet(LABELS, PATIENTS), ScanSet(LABELS, PATIENTS), CLASSES, bootstrap=50,
    )  # fmt: skip
    bad, good = compared.rows["model"][5], compared.rows["raw pixels"][5]
    assert (bad.lowest_recall.class_, bad.lowest_recall.recall) == ("DME", bad.recall["DME"])
    assert bad.never_recognised == ["DME", "DRUSEN"]
    assert good.never_recognised == []
    assert (compared.majority.name, compared.majority.share) == ("NORMAL", 90)
    cells = dict(zip(ACCURACY_HEADER, accuracy_cells(bad), strict=True))
    assert cells["accuracy %"].startswith("94.8 [")
    assert cells["balanced %"].startswith("49.0 [")
    assert cells["lowest recall %"] == "0.0 DME"
    counts = {name: {"scans": int((c == LABELS).sum())} for c, name in enumerate(CLASSES)}
    assert majority_row(compared.majority, counts) == ["always NORMAL", "90.0", "25.0", "50.0", "0.0"]


def test_classifiers_that_miss_the_same_classes_share_a_sentence():
    sentences = never_recognised(
        [("model, k=5", ["DME"]), ("pixels", []), ("model, k=10", ["DME"]), ("start", ["CNV"])]
    )
    assert sentences == ["Never recognised: DME (by model, k=5; model, k=10).", "Never recognised: CNV (by start)."]
