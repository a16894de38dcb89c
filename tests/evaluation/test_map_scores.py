"""Scores of maps against masks where the answer is known by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from dino_oct.data.tissue import otsu
from evaluation.config import SCORES
from evaluation.scores.localization import (
    THRESHOLDS,
    deletion_insertion,
    fill_of,
    holm,
    iou_at,
    iou_curve,
    rank_accuracy,
    score_map,
    tune_threshold,
)
from evaluation.scores.ranks import rank_normalise

MASK = np.zeros((10, 10), dtype=bool)
MASK[2:4, 3:8] = True  # 10 of 100 pixels


def scores(values: np.ndarray, mask: np.ndarray = MASK) -> dict[str, float]:
    return dict(zip(SCORES, score_map(values, mask), strict=True))


def test_the_mask_itself_is_perfect():
    perfect = scores(MASK.astype(float))
    assert perfect["enrichment"] == pytest.approx(10)
    # The fewest pixels that hold 60 % of ten equal ones are six of them.
    assert perfect["iou_mass"] == pytest.approx(0.6)
    for name in set(SCORES) - {"enrichment", "iou_mass"}:
        assert perfect[name] == 1, name


def test_the_inverted_mask_is_all_wrong():
    wrong = scores((~MASK).astype(float))
    for name in set(SCORES) - {"auprc"}:
        assert wrong[name] == 0, name
    assert wrong["auprc"] == pytest.approx(0.1)  # the mask comes last, tied: precision 10 of 100


def test_a_constant_map_is_at_chance():
    constant = scores(np.full((10, 10), 0.3))
    chance = {"pointing": 0.1, "energy": 0.1, "enrichment": 1, "rank_accuracy": 0.1, "auprc": 0.1, "iou_otsu": 0}
    for name, value in chance.items():
        assert constant[name] == pytest.approx(value), name


def test_random_maps_are_at_chance_on_average():
    rng = np.random.default_rng(0)
    mean = np.mean([score_map(rng.random((40, 40)), np.kron(MASK, np.ones((4, 4))) > 0) for _ in range(60)], axis=0)
    mean = dict(zip(SCORES, mean, strict=True))
    assert mean["energy"] == pytest.approx(0.1, abs=0.005)
    assert mean["enrichment"] == pytest.approx(1, abs=0.05)
    assert mean["rank_accuracy"] == pytest.approx(0.1, abs=0.01)
    assert mean["auprc"] == pytest.approx(0.1, abs=0.01)
    assert mean["pointing"] == pytest.approx(0.1, abs=0.12)


def test_a_mask_of_one_pixel():
    mask = np.zeros((10, 10), dtype=bool)
    mask[5, 5] = True
    values = np.zeros((10, 10))
    values[5, 5], values[0, 0] = 3, 1
    of_pixel = scores(values, mask)
    assert of_pixel["pointing"] == of_pixel["rank_accuracy"] == of_pixel["auprc"] == 1
    assert of_pixel["energy"] == pytest.approx(0.75)
    assert of_pixel["enrichment"] == pytest.approx(75)
    assert of_pixel["iou_mass"] == 1


def test_an_empty_mask_has_no_score_and_an_empty_map_is_a_miss():
    assert np.isnan(score_map(MASK.astype(float), np.zeros_like(MASK))).all()
    assert np.isnan(score_map(np.zeros((10, 10)), np.zeros_like(MASK))).all()
    assert np.isnan(iou_at(MASK.astype(float), np.zeros_like(MASK), 0.5))
    assert (score_map(np.zeros((10, 10)), MASK) == 0).all()
    assert iou_at(np.zeros((10, 10)), MASK, 0.5) == 0
    assert (iou_curve(np.zeros((10, 10)), MASK) == 0).all()


def test_ties_are_averaged():
    values = np.zeros((10, 10))
    values[2, 3] = values[9, 9] = 1  # one of the two highest pixels is in the mask
    assert scores(values)["pointing"] == 0.5
    # The ten highest: two decided, one of them in; eight of 98 tied, of which nine are in the mask.
    assert rank_accuracy(values, MASK) == pytest.approx((1 + 8 * 9 / 98) / 10)


@pytest.mark.parametrize("kind", ["smooth", "tied", "sparse", "tiny"])
def test_one_sort_gives_what_the_definitions_give(kind):
    """Average precision as scikit-learn computes it, the others straight from their words."""
    rng = np.random.default_rng(0)
    values = {
        "smooth": rng.random((40, 60)), "tied": rng.integers(0, 4, (40, 60)) / 4.0,
        "sparse": rng.random((40, 60)) * (rng.random((40, 60)) < 0.05), "tiny": rng.random((40, 60)) * 1e-30,
    }[kind].astype(np.float32)  # fmt: skip
    mask = rng.random((40, 60)) < 0.1
    ours = scores(values, mask)
    assert ours["auprc"] == pytest.approx(average_precision_score(mask.ravel(), values.ravel()), abs=1e-12)
    order = np.argsort(-values.ravel(), kind="stable")
    held = values.ravel()[order].cumsum(dtype=np.float64)
    fewest = order[: np.searchsorted(held, 0.6 * held[-1]) + 1]
    most = np.zeros(values.size, bool)
    most[fewest] = True
    for name, chosen in (("iou_mass", most.reshape(values.shape)), ("iou_otsu", values > otsu(values.astype(float)))):
        assert ours[name] == pytest.approx((chosen & mask).sum() / (chosen | mask).sum(), abs=1e-12), name
    assert ours["pointing"] == pytest.approx(mask[values == values.max()].mean())
    for share in THRESHOLDS:
        chosen = values > share * values.max()
        assert iou_at(values, mask, share) == pytest.approx((chosen & mask).sum() / max((chosen | mask).sum(), 1))
    ranks = (rankdata(values) - 1) / (values.size - 1)
    np.testing.assert_allclose(rank_normalise(-values).ravel(), 1 - ranks.ravel(), atol=1e-6)


@pytest.mark.parametrize("values", [np.full((10, 10), np.nan), np.full((10, 10), -1.0), np.ones((9, 10))])
def test_what_is_no_map_is_refused(values):
    with pytest.raises(ValueError, match=r"finite|map of"):
        score_map(values, MASK)


def test_otsu_parts_two_groups():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1, 0.1, 900), rng.normal(3, 0.2, 100)]).clip(0)
    limit = otsu(values)
    assert 1.3 < limit < 2.6
    # No other edge of the 256 bins parts them with less variance inside the parts, as Otsu (1979) asks.
    edges = np.linspace(values.min(), values.max(), 257)[1:-1]
    inside = [sum(part.var() * len(part) for part in (values[values <= e], values[values > e])) for e in edges]
    assert inside[np.abs(edges - limit).argmin()] < 1.001 * min(inside)
    assert otsu(np.full(10, 2.0)) == 2


def test_a_threshold_is_tuned_on_the_scans_that_have_a_lesion():
    blurred = np.where(MASK, 0.8, 0.3) + 0.2 * np.eye(10)
    curves = np.stack([iou_curve(blurred, MASK), iou_curve(blurred, np.zeros_like(MASK))])
    share = tune_threshold(curves)
    assert iou_at(blurred, MASK, share) == 1
    with pytest.raises(ValueError, match="no map with a lesion"):
        tune_threshold(curves[1:])


def test_the_curve_of_overlaps_is_that_of_single_thresholds():
    values = np.random.default_rng(0).random((10, 10)).round(1)  # many ties, some on a threshold
    curve = iou_curve(values, MASK)
    np.testing.assert_allclose(curve, [iou_at(values, MASK, share) for share in THRESHOLDS])


def test_deletion_and_insertion_by_hand():
    """The probability is the share of the mask's brightness that is seen."""
    scan = np.zeros((10, 10), dtype=np.uint8)
    scan[MASK] = 250
    hidden = fill_of(scan, "mean")
    assert np.unique(hidden) == pytest.approx(25)

    def probability(images: torch.Tensor) -> np.ndarray:
        return (images.numpy()[:, 0][:, MASK].mean(axis=1) - 25) / 225

    deletion, insertion = deletion_insertion(probability, scan, MASK.astype(float), "mean", steps=10)
    # All of the mask goes in the first of ten steps: half a step at 1 … 0.
    assert deletion == pytest.approx(0.05)
    assert insertion == pytest.approx(0.95)
    worst = deletion_insertion(probability, scan, (~MASK).astype(float), "mean", steps=10)
    assert worst == (pytest.approx(0.95), pytest.approx(0.05))
    constant = deletion_insertion(probability, scan, np.ones((10, 10)), "mean", steps=10)
    assert constant == (pytest.approx(0.5, abs=0.15), pytest.approx(0.5, abs=0.15))
    with pytest.raises(ValueError, match="mean, blur"):
        fill_of(scan, "noise")


def test_the_blurred_fill_keeps_the_mean_and_loses_the_detail():
    rng = np.random.default_rng(0)
    scan = rng.integers(0, 255, (64, 80), dtype=np.uint8)
    blurred = fill_of(scan, "blur")
    assert blurred.mean() == pytest.approx(scan.mean(), rel=0.02)
    assert blurred.std() < 0.2 * scan.std()


def test_holm_by_hand_and_in_any_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(0)
    p = rng.random(20) ** 3
    assert (rankdata(holm(p), method="min") <= rankdata(p, method="max")).all()
    assert (holm(p) >= p).all()
    assert holm(p).max() <= 1
