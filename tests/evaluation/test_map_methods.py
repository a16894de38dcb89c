"""Maps through one door: every method agrees with its own module, ensembles, randomised weights, cost."""

import numpy as np
import pytest
import torch

from dino_oct.errors import InputError
from dino_oct.features import resize, resize_all
from dino_oct.scores.bootstrap import Interval
from evaluation.inputs.model import Model
from evaluation.inputs.sources import Source
from evaluation.maps.cam import gradcam
from evaluation.maps.chefer import relevance
from evaluation.maps.cost import peak_memory
from evaluation.maps.methods import METHODS, MapSettings, candidates, enlarge, make_maps, usable
from evaluation.maps.occlude import occlude
from evaluation.maps.randomisation import (
    STAGES,
    fresh_weights,
    randomised_correlations,
    replaced,
    stage_tensors,
    verdict,
)
from evaluation.maps.rows import MapMaker
from evaluation.scores.ranks import disagreement, ensemble, rank_correlations, rank_normalise
from supervised.architectures import build

SCANS = [np.random.default_rng(i).integers(0, 255, (40, 56), dtype=np.uint8) for i in range(3)]
TARGETS = [0, 2, 1]


def classifier(name: str, size: int = 32, **model_args) -> Model:
    zoo = build(f"random:{name}", 3, image_size=(size, size), model_args=model_args)
    zoo.model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a fresh classifier may be zero, and then nothing is relevant
        for parameter in zoo.model.get_classifier().parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return Model(**{**vars(zoo), "class_names": ("a", "b", "c")}, source=Source(f"random:{name}"))


@pytest.fixture(scope="module")
def vit() -> Model:
    return classifier("vit_tiny_patch16_224", patch_size=8, img_size=32, embed_dim=48, depth=3, num_heads=3)


@pytest.fixture(scope="module")
def cnn() -> Model:
    return classifier("resnet10t", 96)


def test_every_method_gives_finite_maps_that_do_not_depend_on_the_batch(vit):
    able, reasons = usable(vit, METHODS)
    assert able == list(METHODS)
    assert reasons == {}
    for method in able:
        together = make_maps(vit, method, SCANS, TARGETS)
        alone = make_maps(vit, method, SCANS[1:2], TARGETS[1:2])[0]
        assert together[1].shape == (len(candidates(vit, method, MapSettings())), *together[1].shape[1:])
        assert np.isfinite(together[1]).all()
        assert together[1].min() >= 0
        np.testing.assert_allclose(together[1], alone, atol=1e-5 * max(alone.max(), 1e-6), err_msg=method)


def test_methods_are_those_of_their_modules(vit, cnn):
    images, large = (model.prepare(resize_all(SCANS, model.input_size)) for model in (vit, cnn))
    for name, kind in (("relevance", "gradient"), ("lrp", "lrp"), ("rollout", "rollout")):
        np.testing.assert_allclose(
            np.concatenate(make_maps(vit, name, SCANS, TARGETS)), relevance(vit.model, images, TARGETS, kind)
        )
    signed = np.concatenate(make_maps(cnn, "gradcam", SCANS, TARGETS, signed=True))
    expected, _ = gradcam(cnn, large, torch.tensor(TARGETS))
    np.testing.assert_allclose(signed, expected, rtol=1e-4)
    assert signed.min() < 0
    np.testing.assert_array_equal(np.concatenate(make_maps(cnn, "gradcam", SCANS, TARGETS)), signed.clip(0))
    settings = MapSettings(window=0.25, stride=1, fill="mean")
    swept = occlude(lambda grey: cnn.model(cnn.prepare(grey)), resize(SCANS[0], (96, 96)), (24, 24), (24, 24), "mean")
    occlusion_map = make_maps(cnn, "occlusion", SCANS[:1], [2], settings, signed=True)[0]
    np.testing.assert_allclose(occlusion_map[0], swept.maps[2], atol=1e-5)


def test_methods_that_a_model_cannot_have_say_why(cnn, vit):
    able, reasons = usable(cnn, ("attention", "relevance", "gradcam", "occlusion"))
    assert able == ["gradcam", "occlusion"]
    assert "no CLS token" in reasons["attention"]
    assert "use dino-oct gradcam" in reasons["relevance"]
    bare = classifier("vit_tiny_patch16_224", patch_size=8, img_size=32, embed_dim=48, depth=1, num_heads=3)
    bare.model.reset_classifier(0)
    able, reasons = usable(bare, ("attention", "rollout", "gradcam", "occlusion", "relevance"))
    assert able == ["attention", "rollout"]
    assert all("no classifier" in reason for reason in reasons.values())
    with pytest.raises(InputError, match="no classifier"):
        make_maps(bare, "gradcam", SCANS, TARGETS)


def test_heads_of_the_last_block_or_of_all(vit):
    every = MapSettings(attention_blocks="all")
    names = candidates(vit, "attention", every)
    assert len(names) == 9
    assert names[-1] == "block 2 head 2"
    of_all = make_maps(vit, "attention", SCANS, TARGETS, every)[0]
    np.testing.assert_allclose(of_all[6:], make_maps(vit, "attention", SCANS, TARGETS)[0], rtol=1e-5)


def test_attention_keeps_the_aspect_of_scans_of_mixed_sizes(vit):
    rng = np.random.default_rng(1)
    scans = [rng.integers(0, 255, shape, dtype=np.uint8) for shape in [(48, 48), (48, 96), (48, 48), (96, 96)]]
    settings = MapSettings(attention_size=48)
    maps = make_maps(vit, "attention", scans, [0] * 4, settings)
    assert [heads.shape for heads in maps] == [(3, 6, 6), (3, 6, 12), (3, 6, 6), (3, 6, 6)]
    for scan, heads in zip(scans, maps, strict=True):
        np.testing.assert_allclose(heads, make_maps(vit, "attention", [scan], [0], settings)[0], rtol=1e-4, atol=1e-7)


def test_enlarging_does_not_move_a_map():
    maps = np.zeros((1, 4, 5), np.float32)
    maps[0, 1, 3] = 1
    large = enlarge(maps, (40, 60))[0]
    rows, columns = np.indices(large.shape) + 0.5
    assert (rows * large).sum() / large.sum() == pytest.approx(40 * 1.5 / 4)
    assert (columns * large).sum() / large.sum() == pytest.approx(60 * 3.5 / 5)
    small = enlarge(np.kron(maps, np.ones((8, 8), np.float32)), (4, 5))
    np.testing.assert_allclose(small.sum(), maps.sum(), atol=0.3)
    assert small[0].argmax() == maps[0].argmax()


def test_ranks_ensembles_and_disagreement_by_hand():
    a = np.array([[0.0, 1.0], [2.0, 3.0]])
    np.testing.assert_allclose(rank_normalise(1000 * a**3), [[0, 1 / 3], [2 / 3, 1]], rtol=1e-6)
    np.testing.assert_allclose(rank_normalise(np.full((2, 2), 7.0)), 0.5)
    tied = rank_normalise(np.array([[0.0, 0.0], [0.0, 9.0]]))
    np.testing.assert_allclose(tied, [[1 / 3, 1 / 3], [1 / 3, 1]], rtol=1e-6)
    up, down = rank_normalise(a), rank_normalise(-a)
    np.testing.assert_allclose(ensemble([up, down]), 0.5)
    np.testing.assert_allclose(ensemble([up, up]), up)
    np.testing.assert_allclose(disagreement([up, up]), 0)
    assert disagreement([up, down]).max() == pytest.approx(0.5)
    np.testing.assert_allclose(rank_correlations([up, down, up])[0], [1, -1, 1])
    assert np.isnan(rank_correlations([up, np.full((2, 2), 0.5)])[0, 1])
    with pytest.raises(ValueError, match="at least one array"):
        ensemble([])


def test_an_ensemble_of_noisy_maps_finds_what_each_of_them_hardly_shows():
    rng = np.random.default_rng(0)
    truth = np.zeros((20, 20))
    truth[5:9, 5:9] = 1
    noisy = [rank_normalise(truth * scale + rng.random(truth.shape) * 3 * scale) for scale in (1, 10, 100, 0.1, 5)]
    single = [rank_correlations([rank_normalise(truth), values])[0, 1] for values in noisy]
    assert rank_correlations([rank_normalise(truth), ensemble(noisy)])[0, 1] > max(single)


# weight randomisation


def test_stages_randomise_more_and_more_and_the_model_comes_back(vit):
    stages = stage_tensors(vit.model)
    assert len(stages) == len(STAGES)
    assert set(stages[0]) == {"head.weight", "head.bias"}
    assert set(stages[0]) < set(stages[1]) < set(stages[2]) == set(vit.model.state_dict())
    assert "patch_embed.proj.weight" not in stages[1]
    before = {name: tensor.clone() for name, tensor in vit.model.state_dict().items()}
    fresh = fresh_weights(vit.model, seed=0)
    with replaced(vit.model, fresh):
        assert not torch.equal(vit.model.state_dict()["head.weight"], before["head.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.model.state_dict().items())


def test_a_map_that_ignores_the_weights_fails_and_one_that_reads_them_passes(cnn, monkeypatch):
    def edges(model, scans, targets, settings):
        """An edge detector: what Adebayo et al. warn of."""
        return [np.abs(np.gradient(scan.astype(np.float32))[0])[None] for scan in scans]

    monkeypatch.setitem(METHODS, "eigencam", METHODS["eigencam"]._replace(make=edges))
    correlations = randomised_correlations(MapMaker(cnn, MapSettings(), ("gradcam", "eigencam")), 0, SCANS, TARGETS)
    assert correlations["gradcam"].shape == (3, len(STAGES))
    np.testing.assert_allclose(correlations["eigencam"], 1)
    assert np.nanmean(np.abs(correlations["gradcam"][:, -1])) < 0.9


def test_a_map_that_vanishes_has_changed(cnn, monkeypatch):
    first = []

    def vanishes(model, scans, targets, settings):
        first.append(1)
        return [np.zeros((1, *scan.shape)) if len(first) > 1 else scan[None].astype(np.float32) for scan in scans]

    monkeypatch.setitem(METHODS, "eigencam", METHODS["eigencam"]._replace(make=vanishes))
    eigencam = MapMaker(cnn, MapSettings(), ("eigencam",))
    assert (randomised_correlations(eigencam, 0, SCANS, TARGETS)["eigencam"] == 0).all()


def test_a_map_that_says_nothing_before_and_after_has_not_changed(cnn, monkeypatch):
    calls = []

    def nothing(model, scans, targets, settings):
        """Only the first scan has a map, and only with the trained weights."""
        calls.append(1)
        return [(scan[None] * (len(calls) == 1 and i == 0)).astype(np.float32) for i, scan in enumerate(scans)]

    monkeypatch.setitem(METHODS, "eigencam", METHODS["eigencam"]._replace(make=nothing))
    eigencam = MapMaker(cnn, MapSettings(), ("eigencam",))
    correlations = randomised_correlations(eigencam, 0, SCANS, TARGETS)["eigencam"]
    np.testing.assert_array_equal(correlations, [[0] * len(STAGES)] + [[1] * len(STAGES)] * 2)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.1, -0.1, 0.3), "passed"),
        ((0.4, 0.2, 0.6), "not shown"),
        ((0.1, None, None), "not shown"),
        ((0.6, 0.5, 0.7), "FAILED"),
        ((np.nan, None, None), "not shown"),
    ],
)
def test_verdicts_of_the_randomisation_test(interval, expected):
    assert verdict(Interval(*interval)) == expected


def test_peak_memory_counts_what_is_held_at_once(capfd):
    def two_at_most():
        first = torch.empty(1_000_000)
        second = torch.empty(2_000_000)
        del first
        third = torch.empty(500_000)
        del second, third

    assert peak_memory(two_at_most, torch.device("cpu")) == pytest.approx(12e6, rel=0.01)
    assert capfd.readouterr().err == ""
