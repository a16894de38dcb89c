"""Health measures, warnings and figures of the monitor."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from dino_oct.data.index import DatasetConfig
from dino_oct.data.load import load_scans
from dino_oct.data.phantom import PhantomConfig
from dino_oct.errors import InputError
from dino_oct.features import extract, feature_spread, linear_cka, pixel_features, rankme, resize
from dino_oct.knn import class_votes, knn_votes
from dino_oct.models.attention import attention_on, head_concentration
from dino_oct.models.backbone import load_backbone
from dino_oct.monitor import (
    PROBE,
    PROBE_C,
    BestCheckpoint,
    Judgement,
    Monitor,
    MonitorConfig,
    collapses,
    warnings_of,
    weight_drift,
)
from dino_oct.pictures import Maps, draw_attention, draw_panel, draw_views, fit_short_side
from dino_oct.runlog import COLUMNS, evaluation_line
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


@pytest.mark.parametrize(
    ("sick", "what"),
    [
        ({"feature_spread": 0.05}, "features"),
        ({"rankme": 4.0}, "dimensions"),
        ({"attention_area": 0.02}, "attention"),
    ],
)
def test_a_collapsed_checkpoint_is_never_the_best(sick, what):
    """Though its k-NN is the highest; the same condition warns."""
    now = {**HEALTHY, **sick, "knn_5": 95.0}
    assert collapses(now, HEALTHY) == [what]
    assert len(warnings_of(now, HEALTHY, LN_K, 3.5, progress=0.5, change=SAME)) == 1
    best = BestCheckpoint("knn_5", "")
    assert not best.take(now, collapses(now, HEALTHY))  # a resumed run may meet it first
    assert best.take(HEALTHY, collapses(HEALTHY, HEALTHY))
    assert best.is_better(now)
    assert not best.take(now, collapses(now, HEALTHY))
    assert best.take({**HEALTHY, "knn_5": 85.0})
    assert best.value == 85.0


def test_convolutional_networks_have_no_attention_to_collapse():
    now = {key: value for key, value in HEALTHY.items() if not key.startswith("attention")}
    assert not warnings_of(now, now, LN_K, 3.5, progress=0.5, change=SAME)
    assert collapses({**now, "rankme": 4.0}, now) == ["dimensions"]


@pytest.fixture(scope="module")
def monitor_and_backbone(phantoms):
    index, scans = phantoms
    monitor = Monitor(MonitorConfig(image_size=(32, 32), k=(5,), attention_size=32), index, scans, seed=0)
    args = {"patch_size": 8, "img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return monitor, load_backbone("random:vit_tiny_patch16_224", model_args=args).eval()


def test_an_evaluation_measures_what_the_log_names(monitor_and_backbone):
    monitor, backbone = monitor_and_backbone
    judgement = monitor.evaluate(backbone, torch.device("cpu"), bf16=False)
    metrics = judgement.metrics
    assert {"knn_5", "probe", "attention_tissue", "tissue_area", "pixel_knn_5"} <= metrics.keys()
    assert not {"cka_start", "weight_drift"} & metrics.keys()  # nothing to compare with yet
    heads = [metrics[f"attention_entropy_head_{head}"] for head in range(3)]
    assert np.mean(heads) == pytest.approx(metrics["attention_entropy"])
    assert metrics["probe_low"] <= metrics["probe"] <= metrics["probe_high"]
    assert 0.1 < metrics["tissue_area"] < 0.9
    restored = Judgement.from_state(judgement.state_dict())
    assert monitor.changes(judgement, restored) == {"knn_5_change": 0.0, "probe_change": 0.0}


def test_the_probe_is_scikit_learns(monitor_and_backbone):
    monitor, backbone = monitor_and_backbone
    judgement = monitor.evaluate(backbone, torch.device("cpu"), bf16=False)
    features = extract(backbone, monitor.images, torch.device("cpu")).astype(np.float64)
    n = len(monitor.train_labels)
    scaler = StandardScaler().fit(features[:n])
    theirs = LogisticRegression(C=PROBE_C, max_iter=5000, tol=1e-8).fit(
        scaler.transform(features[:n]), monitor.train_labels
    )
    right = theirs.predict(scaler.transform(features[n:])) == monitor.val_labels
    assert (right == judgement.right[PROBE]).mean() > 0.98  # two classes may be as probable to rounding
    assert judgement.metrics["probe"] == pytest.approx(100 * right.mean(), abs=1.5)
    assert judgement.metrics["probe"] > 30  # of four classes


def test_the_start_is_what_later_weights_are_compared_with(monitor_and_backbone):
    monitor, backbone = monitor_and_backbone
    monitor.keep_start(backbone, torch.device("cpu"), bf16=False)
    same = monitor.evaluate(backbone, torch.device("cpu"), bf16=False).metrics
    assert same["cka_start"] == pytest.approx(1)
    assert same["weight_drift"] == 0
    moved = load_backbone("random:vit_tiny_patch16_224", model_args=backbone.hub_config["model_args"], seed=1).eval()
    metrics = monitor.evaluate(moved, torch.device("cpu"), bf16=False).metrics
    assert metrics["cka_start"] < 0.999
    tensors = dict(moved.named_parameters())
    a, b = (nn.utils.parameters_to_vector([p[name] for name in tensors]) for p in (tensors, monitor.start.weights))
    assert metrics["weight_drift"] == pytest.approx(((a - b).norm() / b.norm()).item(), rel=1e-5)
    now = monitor.panels(moved, torch.device("cpu"), step=7)
    before = monitor.panels(backbone, torch.device("cpu"), step=7)
    assert list(now) == monitor.drawn_names
    for name, panel in now.items():
        half = 44 + (len(panel) - 44) // 2  # below two lines of text, start above now
        assert np.array_equal(panel[44:half], before[name][44:half])
        assert not np.array_equal(panel[half:], before[name][half:])
    assert monitor.panels(moved, torch.device("cpu"), 7, is_stopped=lambda: True) == {}
    monitor.start = None


NUMBERS = {"knn_5": 91.7, "probe": 93.2, "rankme": 20.0, "feature_spread": 0.8, "attention_area": 0.21}
LARGE = {"knn_5": 100.0, "knn_5_low": 59.9, "knn_5_high": 100.0, "probe": 100.0, "probe_low": 59.9, "probe_high": 100.0,
         "rankme": 12345.6, "feature_spread": 10.25, "attention_area": 1.0}  # fmt: skip


def line_of(monitor, step, steps, now, start):
    return evaluation_line(step, steps, Judgement(now, {}, ""), Judgement(start, {}, ""), monitor)


class Labelled:
    ks, pixel_knn = (5, 10), {5: 75.0, 10: 74.0}


class Unlabelled:
    ks = ()


def test_the_line_of_an_evaluation_holds_what_decides():
    now = {**NUMBERS, "knn_5_low": 88.7, "knn_5_high": 94.0, "probe_low": 92.8, "probe_high": 93.5}
    start = {**NUMBERS, "knn_5": 75.0, "probe": 91.0}
    line = line_of(Labelled, 5, 11, now, start)
    assert line == "step 5/11 · k-NN 91.7 ±3 (start 75.0, pixels 75.0) · probe 93.2 ±0.4 (start 91.0) · attention 21 %"
    assert line_of(Labelled, 0, 11, now, now) == (
        "step 0/11 · k-NN 91.7 ±3 (pixels 75.0) · probe 93.2 ±0.4 · attention 21 % of patches"
    )
    later = line_of(Labelled, 4321, 98765, now, start)
    assert later == "step 4321/98765 · k-NN 91.7 ±3 (start 75.0) · probe 93.2 ±0.4 (start 91.0) · attention 21 %"
    unlabelled = {key: NUMBERS[key] for key in ("rankme", "feature_spread", "attention_area")}
    assert line_of(Unlabelled, 5, 11, unlabelled, {**unlabelled, "rankme": 31.5}) == (
        "step 5/11 · RankMe 20.0 (start 31.5) · spread 0.80 (start 0.80) · attention 21 % of patches"
    )


@pytest.mark.parametrize("monitor", [Labelled, Unlabelled])
@pytest.mark.parametrize("steps", [8, 110, 98_765, 10**9])
@pytest.mark.parametrize("absent", [(), ("attention_area",), ("probe",), ("knn_5_low",)])
@pytest.mark.parametrize("numbers", [NUMBERS, LARGE])
def test_the_line_of_an_evaluation_fits(monitor, steps, absent, numbers):
    now = {key: value for key, value in numbers.items() if key not in absent}
    for step in (0, steps // 2, steps):
        for start in (now, LARGE, {"rankme": 1.0, "feature_spread": 0.5}):
            line = line_of(monitor, step, steps, now, start)
            assert len(line) <= COLUMNS, line
            assert "\n" not in line
            assert f"{now['rankme' if monitor is Unlabelled else 'knn_5']:.1f}" in line


def test_few_scans_choose_nothing(phantoms):
    index, scans = phantoms
    for most, words in ((1000, ""), (24, "24 validation scans of .* are too few")):
        monitor = Monitor(MonitorConfig(image_size=(32, 32), k=(5,), max_val=most), index, scans, seed=0)
        assert re.match(words, monitor.no_choice_because)
        assert bool(monitor.no_choice_because) == bool(words)


def test_concentration_of_attention_by_head():
    uniform, single = torch.ones(1, 1, 4, 5) / 20, torch.zeros(1, 1, 4, 5)
    single[:, :, 2, 2] = 0.7
    entropy, area = head_concentration(torch.cat([uniform, single], dim=1))
    torch.testing.assert_close(entropy, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(area, torch.tensor([[12 / 20, 1 / 20]]))


def test_attention_on_tissue_stands_beside_the_area_of_tissue():
    attention = torch.zeros(2, 2, 4, 4)
    attention[0, 0, :2], attention[0, 1, 3, 3] = 3.0, 0.5  # one head on the upper half, one in a corner
    attention[1] = 1.0
    tissue = torch.zeros(2, 16, 16)
    tissue[:, :8] = 1  # the upper half
    tissue[1, 8:12] = 0.5  # and half of the third quarter
    expected = torch.tensor([[0.5, 0.5], [0.625, 0.625]])  # attention that ignores tissue has it as the area has
    torch.testing.assert_close(attention_on(attention, tissue), expected)
    torch.testing.assert_close(attention_on(100 * attention, tissue), expected)


def test_cka_is_1_for_a_turned_copy_and_low_for_noise():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 16)) * np.arange(1, 17)
    turn, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    assert linear_cka(features, 3 * features @ turn + 7) == pytest.approx(1)
    assert linear_cka(features, rng.normal(size=(2000, 24))) < 0.03
    assert linear_cka(features, features**2) < 0.03
    a, b = features[:50], features[:50] + 9 * rng.normal(size=(50, 16))
    centring = np.eye(50) - 1 / 50
    k, m = (centring @ x @ x.T @ centring for x in (a, b))  # the kernels' form of the paper
    assert linear_cka(a, b) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    assert linear_cka(features, np.ones((2000, 3))) == 0


def test_drift_of_a_known_change():
    start = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert weight_drift(start, start) == 0
    assert weight_drift({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[4.0]])}, start) == pytest.approx(1 / 5)
    assert weight_drift({"a": -start["a"], "b": -start["b"]}, start) == pytest.approx(2)


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


def test_a_panel_puts_start_above_now_with_names():
    scan = np.full((32, 48), 100, np.uint8)
    start, now = np.zeros((2, 2, 4, 6), np.float32)
    start[:, 0, 0], now[:, 3, 5] = 1, 1
    names = ["head 0", "head 1"]
    panel = draw_panel(scan, [Maps("start", start), Maps("step 12", now)], names, "CNV · block 11")
    one = draw_panel(scan, [Maps("start", start)], names, "CNV · block 11")
    side = 224 // 32 * 32
    assert panel.shape == (44 + 2 * (side + 4), panel.shape[1], 3)
    assert one.shape[0] == 44 + side + 4
    left = panel.shape[1] - 3 * (side * 48 // 32) - 2 * 4
    assert (panel[44 : 44 + side, left : left + 48] == 100).all()  # the scan
    head = panel[44:, left + side * 48 // 32 + 4 :].astype(int)
    patch = side // 4
    assert head[:patch, :patch].mean() > head[2 * patch : 3 * patch, :patch].mean() + 30  # at the start: upper left
    below = head[side + 4 :]
    assert below[:patch, :patch].mean() < head[:patch, :patch].mean() - 30  # now no longer
    for where in (panel[:22], panel[22:44, left:], panel[44 : 44 + side, :left], panel[48 + side :, :left]):
        assert (where < 100).any()  # text: title, heads, and both rows' names
    other = draw_panel(scan, [Maps("start", start), Maps("step 13", now)], names, "CNV · block 11")
    assert np.array_equal(panel[: 44 + side], other[: 44 + side])
    assert not np.array_equal(panel, other)


def test_a_panel_of_a_large_scan_is_drawn_smaller():
    scan = np.zeros((480, 960), np.uint8)
    panel = draw_panel(scan, [Maps("now", np.ones((1, 30, 60), np.float32))], ["head 0"], "NORMAL")
    assert panel.shape[0] == 44 + 224 + 4
    assert Image.fromarray(panel).size[0] < 2 * 448 + 100


def test_sizes():
    scan = np.zeros((496, 1000), np.uint8)
    assert resize(scan, (48, 64)).shape == (1, 48, 64)
    assert fit_short_side(scan, 480, 8).shape == (1, 480, 968)
    views = draw_views([torch.zeros(2, 5, 1, 48, 48), torch.ones(3, 5, 1, 24, 24)], samples=2, gap=3)
    assert views.shape == (2 * 51, 2 * 51 + 3 * 27)
    assert views.dtype == np.uint8
