"""Health measures, warnings and figures of the monitor."""

import re

import numpy as np
import pytest
import torch

from dino_oct.data.index import DatasetConfig
from dino_oct.data.load import load_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.errors import InputError
from dino_oct.features import feature_spread, pixel_features, rankme, resize
from dino_oct.knn import class_votes, knn_votes
from dino_oct.models.attention import attention_concentration
from dino_oct.monitor import (
    BestCheckpoint,
    Judgement,
    Monitor,
    MonitorConfig,
    draw_attention,
    draw_views,
    fit_short_side,
    warnings_of,
)
from dino_oct.scores.bootstrap import Interval

LN_K = np.log(256)
HEALTHY = {
    "knn_5": 80.0, "rankme": 20.0, "feature_spread": 0.8, "teacher_entropy": 3.0, "teacher_student_kl": 0.5,
    "attention_entropy": 0.86, "attention_area": 0.125,
}  # fmt: skip
SAME = Interval(0.0, -3.0, 3.0)


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
    ("metrics", "loss", "change", "words"),
    [
        ({}, 3.5, SAME, None),
        ({"teacher_entropy": LN_K}, LN_K, SAME, r"loss .* at ln K.*teacher_temperature"),
        ({"teacher_entropy": LN_K}, LN_K, None, r"loss .* at ln K.*teacher_temperature"),
        ({"teacher_entropy": LN_K, "feature_spread": 0.85}, LN_K, Interval(2.0, -2.0, 6.0), r"loss .* at ln K"),
        ({"feature_spread": 0.05}, 3.5, SAME, r"collapsing.*koleo"),
        ({"rankme": 2.0}, 3.5, SAME, r"few dimensions"),
        ({"teacher_entropy": 0.01, "teacher_student_kl": 0.01}, 0.02, SAME, r"one answer"),
        # as it was measured where every head looked beside the lesions and all other numbers rose
        ({"attention_area": 0.018, "attention_entropy": 0.52, "knn_5": 100.0, "rankme": 30.0}, 3.5,
         Interval(12.5, 0.0, 25.0), r"60 % of it is on 1\.8% .* 12\.5% .*images"),
        ({"knn_5": 71.5}, 3.5, Interval(-8.0, -13.5, -2.5), r"fell by 8\.0 \[2\.5, 13\.5\] points.*optim\.lr"),
    ],
)  # fmt: skip
def test_each_failure_has_its_warning_and_remedy(metrics, loss, change, words):
    warnings = warnings_of({**HEALTHY, **metrics}, HEALTHY, LN_K, loss, progress=0.5, change=change)
    if words is None:
        assert not warnings
    else:
        assert len(warnings) == 1
        assert re.search(words, warnings[0])


def test_a_run_from_scratch_may_start_at_ln_k_and_concentrates_its_attention():
    assert not warnings_of(HEALTHY, HEALTHY, LN_K, LN_K, progress=0.01, change=SAME)
    uniform = {**HEALTHY, "attention_area": 0.59, "attention_entropy": 0.99}
    assert not warnings_of(HEALTHY, uniform, LN_K, 3.5, progress=0.5, change=SAME)


def test_a_loss_at_ln_k_is_no_failure_where_features_get_better():
    """A new head starts there, while k-NN rises already."""
    better = Interval(12.5, 0.0, 25.0)
    assert not warnings_of({**HEALTHY, "knn_5": 100.0}, HEALTHY, LN_K, LN_K, progress=0.5, change=better)
    assert not warnings_of({**HEALTHY, "feature_spread": 0.95}, HEALTHY, LN_K, LN_K, progress=0.5, change=None)


@pytest.fixture(scope="module")
def phantoms(cache_root):
    config = DatasetConfig(cache_dir=str(cache_root))
    return load_scans("phantom", config, PhantomConfig(patients=120, scans_per_patient=4, size=(32, 32)), str)


def judged(monitor, right):
    """A judgement in which k-NN knows the given validation scans."""
    return Judgement({"knn_5": 100 * float(np.mean(right))}, {5: np.array(right)}, monitor._scans)


def test_the_change_of_knn_is_judged_on_the_same_scans_by_patient(phantoms):
    index, scans = phantoms
    monitor = Monitor(MonitorConfig(image_size=(32, 32), k=(5,)), index, scans, seed=0)
    patients = index.patients[index.positions("val")]
    rng = np.random.default_rng(0)
    before = rng.random(len(patients)) < 0.8
    lost = before & (rng.random(len(patients)) < 0.15)
    start, now = judged(monitor, before), judged(monitor, before & ~lost)
    change = monitor.change(now, start, 5)
    assert change.point == pytest.approx(-100 * lost.mean())
    assert change.is_below(0)
    # Each number alone has an interval that holds the other: only the pairs show the loss.
    assert monitor.accuracy(now, 5).high > start.metrics["knn_5"]
    assert len(set(patients[lost].tolist())) > 1
    elsewhere = Monitor(MonitorConfig(image_size=(32, 32), k=(5,), max_val=40), index, scans, seed=0)
    assert monitor.change(now, judged(elsewhere, before[:40]), 5) is None
    assert monitor.change(start, start, 5).point == 0
    restored = Judgement.from_state(start.state_dict())
    assert monitor.change(now, restored, 5) == change


def test_no_best_checkpoint_from_few_scans_or_without_room():
    enough, few = BestCheckpoint("knn_5", ""), BestCheckpoint("knn_5", "too few")
    takes = [[best.take({"knn_5": value}) for value in (80.0, 79.0, 85.0, 99.5, 100.0)] for best in (enough, few)]
    assert takes == [[True, False, True, True, False], [True, False, False, False, False]]
    assert enough.is_saturated
    assert (enough.value, few.value) == (99.5, 80.0)
    unlabelled = BestCheckpoint("knn_5", "the scans have no classes")
    assert [unlabelled.take({}), unlabelled.take({})] == [True, False]


def test_few_scans_choose_nothing(phantoms):
    index, scans = phantoms
    for most, words in ((1000, ""), (24, "24 validation scans of .* are too few")):
        monitor = Monitor(MonitorConfig(image_size=(32, 32), k=(5,), max_val=most), index, scans, seed=0)
        assert re.match(words, monitor.no_choice_because)
        assert bool(monitor.no_choice_because) == bool(words)


def test_concentration_of_attention():
    uniform, single = torch.ones(1, 2, 4, 5) / 20, torch.zeros(1, 2, 4, 5)
    single[:, :, 2, 2] = 0.7
    torch.testing.assert_close(attention_concentration(uniform), torch.tensor([[1.0, 12 / 20]]))
    torch.testing.assert_close(attention_concentration(single), torch.tensor([[0.0, 1 / 20]]))
    both = attention_concentration(torch.cat([uniform[:, :1], single[:, :1]], dim=1))
    torch.testing.assert_close(both, torch.tensor([[0.5, 13 / 40]]))


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
    assert resize(scan, (48, 64)).shape == (1, 48, 64)
    assert fit_short_side(scan, 480, 8).shape == (1, 480, 968)
    views = draw_views([torch.zeros(2, 5, 1, 48, 48), torch.ones(3, 5, 1, 24, 24)], samples=2, gap=3)
    assert views.shape == (2 * 51, 2 * 51 + 3 * 27)
    assert views.dtype == np.uint8
