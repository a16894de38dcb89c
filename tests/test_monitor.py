"""Health measures, warnings and figures of the monitor."""

import re

import numpy as np
import pytest
import torch

from dino_oct.errors import InputError
from dino_oct.features import feature_spread, pixel_features, rankme, squash
from dino_oct.knn import class_votes, knn_votes
from dino_oct.monitor import draw_attention, draw_views, fit_short_side, warnings_of

LN_K = np.log(256)
HEALTHY = {
    "knn_5": 80.0, "rankme": 20.0, "feature_spread": 0.8, "teacher_entropy": 3.0, "teacher_student_kl": 0.5,
}  # fmt: skip


def test_rankme_counts_dimensions_in_use():
    rng = np.random.default_rng(0)
    assert rankme(rng.normal(size=(500, 8))) == pytest.approx(8, abs=0.1)
    assert rankme(rng.normal(size=(500, 2)) @ rng.normal(size=(2, 8))) < 2.05
    assert rankme(np.ones((500, 8))) == pytest.approx(1, abs=1e-3)


def test_feature_spread_is_1_when_isotropic_and_0_when_collapsed():
    rng = np.random.default_rng(0)
    assert feature_spread(rng.normal(size=(1000, 32))) == pytest.approx(1, abs=0.02)
    assert feature_spread(5 + 0.01 * rng.normal(size=(1000, 32))) < 0.01


@pytest.mark.parametrize(
    ("change", "loss", "words"),
    [
        ({}, 3.5, None),
        ({"teacher_entropy": LN_K}, LN_K, r"loss .* at ln K.*teacher_temperature"),
        ({"feature_spread": 0.05}, 3.5, r"collapsing.*koleo"),
        ({"rankme": 2.0}, 3.5, r"few dimensions"),
        ({"teacher_entropy": 0.01, "teacher_student_kl": 0.01}, 0.02, r"one answer"),
        ({"knn_5": 60.0}, 3.5, r"20\.0 points under the start.*optim\.lr"),
    ],
)
def test_each_failure_has_its_warning_and_remedy(change, loss, words):
    found = warnings_of({**HEALTHY, **change}, HEALTHY, LN_K, loss, progress=0.5, n_val=500)
    if words is None:
        assert not found
    else:
        assert len(found) == 1
        assert re.search(words, found[0])


def test_a_run_from_scratch_may_start_at_ln_k_and_few_scans_prove_no_drop():
    assert not warnings_of(HEALTHY, HEALTHY, LN_K, LN_K, progress=0.01, n_val=500)
    assert not warnings_of({**HEALTHY, "knn_5": 68.0}, HEALTHY, LN_K, 3.5, progress=0.5, n_val=24)


def test_votes_weigh_by_similarity_and_ties_are_deterministic():
    similarity, labels = np.array([[0.9, 0.5, 0.5]]), np.array([[0, 1, 1]])
    assert class_votes(similarity, labels, 2).argmax(1) == [0]  # one near neighbour against two far ones
    assert class_votes(similarity, labels, 2, temperature=100.0).argmax(1) == [1]
    assert class_votes(np.array([[0.5, 0.5]]), np.array([[1, 0]]), 2).argmax(1) == [0]
    assert np.isfinite(class_votes(np.array([[1.0, -1.0]]), np.array([[0, 1]]), 2, temperature=1e-3)).all()


def test_knn_takes_four_classes_and_a_single_query():
    train, labels = np.eye(4).repeat(3, 0), np.arange(4).repeat(3)
    votes = knn_votes(train, labels, np.eye(4)[2:3] + 0.1, [3, 12], 4)
    assert votes[3].argmax(1) == [2]
    assert votes[12].shape == (1, 4)
    with pytest.raises(InputError, match=r"k = 13: must be from 1 to 12"):
        knn_votes(train, labels, train, [5, 13], 4)


def test_pixel_features_ignore_brightness_but_not_structure():
    image = torch.arange(64 * 64, dtype=torch.float32).view(1, 1, 64, 64) % 100
    a, b = pixel_features(image.byte()), pixel_features((image + 50).byte())
    np.testing.assert_allclose(a, b, atol=0.5)
    assert np.abs(a - pixel_features(image.flip(-1).byte())).max() > 5


def test_attention_figure_shows_scan_then_heads():
    image = np.full((32, 48), 100, np.uint8)
    attention = np.zeros((2, 4, 6), np.float32)
    attention[0, 0, 0], attention[1, 3, 5] = 1, 0.5
    panel = draw_attention(image, attention, gap=4)
    assert panel.shape == (32, 3 * 48 + 2 * 4, 3)
    assert (panel[:, :48] == 100).all()
    first, second = panel[:, 52:100].astype(int), panel[:, 104:].astype(int)
    assert first[:8, :8].mean() > first[8:].mean() + 30  # the attended patch stands out, at its place, in its head
    assert second[-8:, -8:].mean() > second[:8].mean() + 30


def test_sizes():
    scan = np.zeros((496, 1000), np.uint8)
    assert squash(scan, (48, 64)).shape == (1, 48, 64)
    assert fit_short_side(scan, 480, 8).shape == (1, 480, 968)
    views = draw_views([torch.zeros(2, 5, 1, 48, 48), torch.ones(3, 5, 1, 24, 24)], samples=2, gap=3)
    assert views.shape == (2 * 51, 2 * 51 + 3 * 27)
    assert views.dtype == np.uint8
