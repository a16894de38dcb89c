"""Balanced sampling, calibration and the views of the supervised trainer."""

import numpy as np
import pytest
import torch

from dino_oct.augment import AugmentConfig, CropConfig, MultiCrop, SingleCrop
from dino_oct.scores.classification import calibration_error
from supervised.data import balanced_order


def test_classes_come_equally_often_and_every_scan_before_any_comes_again():
    labels = np.array([0] * 50 + [1] * 10 + [3] * 3)
    order = balanced_order(labels, seed=0, epoch=4)
    assert len(order) == 63
    assert np.bincount(labels[order]).tolist() == [21, 21, 0, 21]
    times = np.bincount(order, minlength=63)
    assert times[:50].max() == 1
    assert set(times[50:60]) == {2, 3}
    assert set(times[60:]) == {7}


def test_the_order_is_keyed_by_seed_and_epoch():
    labels = np.arange(40) % 3
    orders = {key: tuple(balanced_order(labels, *key)) for key in ((0, 0), (0, 1), (1, 0))}
    assert len(set(orders.values())) == 3
    assert tuple(balanced_order(labels, 0, 1)) == orders[0, 1]


def test_calibration_error_by_hand():
    # Confidence .8 and right 3 of 4 times, confidence .6 and never right.
    scores = np.array([[0.8, 0.2]] * 4 + [[0.6, 0.4]] * 4)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    weights = np.array([[1] * 8, [1] * 4 + [0] * 4])
    np.testing.assert_allclose(calibration_error(weights, labels, scores), [100 * (0.05 + 0.6) / 2, 5])


def test_a_calibrated_classifier_has_little_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 20_000)
    labels = (rng.uniform(size=20_000) < p).astype(int)
    (error,) = calibration_error(np.ones((1, 20_000)), labels, np.stack([1 - p, p], axis=1))
    assert error < 1.5


@pytest.mark.parametrize("method", ["native", "matmul"])
def test_a_single_crop_is_the_first_global_view(method):
    rng = np.random.default_rng(0)
    scans = [rng.integers(0, 255, (64, 80), dtype=np.uint8) for _ in range(3)]
    dino = MultiCrop(AugmentConfig(global_size=32, local_size=32, n_local=0, global_scale=(0.5, 1.0)), 7, method=method)
    single = SingleCrop(CropConfig(scale=(0.5, 1.0)), 32, 7, method=method)
    views, view = dino(scans, None, [4, 5, 6], 2), single(scans, None, [4, 5, 6], 2)
    assert view.shape == (3, 1, 32, 32)
    torch.testing.assert_close(view, views.globals[0])
