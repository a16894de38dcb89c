"""Occlusion: windows, fills and maps by hand and against captum, and the command as a user runs it."""

import json

import numpy as np
import pytest
import torch
from conftest import FEW_PHANTOMS
from PIL import Image

from dino_oct.cli import parse_options
from dino_oct.errors import InputError
from evaluation import occlusion
from evaluation.maps.occlude import Hider, masks_of, occlude, pixel_means, windows_of

SIZE = (24, 30)


@pytest.fixture
def grey():
    return torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier():
    """Three classes of a fixed nonlinear function of all pixels."""
    weights = torch.randn(SIZE[0] * SIZE[1], 3, generator=torch.Generator().manual_seed(1))
    return lambda images: torch.tanh(images.flatten(1) @ weights / 10)


def region(images):
    """Two classes: the sum over rows 8 to 15, columns 10 to 19, and its opposite."""
    total = images[:, 0, 8:16, 10:20].sum(dim=(1, 2))
    return torch.stack([total, -total], dim=1)


@pytest.mark.parametrize(("window", "stride"), [((6, 6), (3, 3)), ((8, 10), (4, 5)), (SIZE, SIZE)])
def test_maps_of_all_classes_equal_captums(window, stride, grey, classifier):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed (a test extra)")
    sweep = occlude(classifier, grey, window, stride, "black", batch_size=7)
    for k, ours in enumerate(sweep.maps):
        theirs = attr.Occlusion(classifier).attribute(
            grey[None], sliding_window_shapes=(1, *window), strides=(1, *stride), target=k, baselines=0
        )
        np.testing.assert_allclose(ours, theirs[0, 0], atol=1e-6)


def test_a_logit_that_sums_over_a_region_has_the_map_computed_by_hand():
    sweep = occlude(region, torch.ones(1, *SIZE), (4, 5), (4, 5), "black")
    expected = np.zeros(SIZE)
    expected[8:16, 10:20] = 20  # windows tile the image: each inside the region takes its 20 ones away
    np.testing.assert_allclose(sweep.maps, np.stack([expected, -expected]), atol=1e-5)
    assert sweep.logits.tolist() == [80, -80]
    # Hiding any of the four windows helps the second class by 20, and all of them together are its union.
    assert sweep.drops[sweep.best_window(1), 1] == pytest.approx(-20)
    assert masks_of(sweep.windows[sweep.best_union(1)], SIZE).any(dim=0)[0].nonzero().min(dim=0).values.tolist() == [
        8,
        10,
    ]
    assert sweep.best_union(1).sum() == 4
    assert not sweep.best_union(0).any()  # nothing helps the first


def test_every_pixel_is_covered_and_has_the_mean_of_its_windows(grey, classifier):
    sweep = occlude(classifier, grey, (7, 7), (5, 5), batch_size=4)
    assert sweep.windows[-1].tolist() == [SIZE[0] - 7, SIZE[1] - 7, 7, 7]
    masks = masks_of(sweep.windows, SIZE)[:, 0].numpy().astype(float)
    assert masks.sum(axis=0).min() >= 1
    expected = np.einsum("mhw,mk->khw", masks, sweep.drops) / masks.sum(axis=0)
    np.testing.assert_allclose(sweep.maps, expected, atol=1e-6)
    for i in (0, 11, len(masks) - 1):  # batching changes nothing
        hidden = Hider(grey, (7, 7), "neighbours")(torch.from_numpy(masks[i] > 0)[None, None])
        np.testing.assert_allclose(sweep.hidden[i], classifier(hidden)[0], atol=1e-6)


def test_fills_change_the_window_alone_and_neighbours_continue_layers():
    layers = torch.linspace(0, 1, SIZE[0])[:, None].expand(SIZE).clone()[None]
    lesion = layers.clone()
    lesion[:, 8:16, 10:20] = 1
    mask = masks_of(np.array([[8, 10, 8, 10]]), SIZE)
    filled = {fill: Hider(lesion, (8, 10), fill)(mask)[0] for fill in ("black", "mean", "blur", "neighbours")}
    for image in filled.values():
        assert torch.equal(image[~mask[0]], lesion[~mask[0]])
    assert filled["black"][mask[0]].max() == 0
    assert torch.allclose(filled["mean"][mask[0]], lesion.mean())
    assert filled["blur"][mask[0]].std() < lesion[:, 4:20, 5:25].std()
    assert torch.allclose(filled["neighbours"], layers, atol=1e-5)
    whole_rows = masks_of(np.array([[4, 0, 3, SIZE[1]]]), SIZE)
    assert Hider(lesion, (3, SIZE[1]), "neighbours")(whole_rows).isfinite().all()


def test_uint8_scans_are_hidden_before_normalisation():
    seen = []
    grey = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    occlude(lambda images: (seen.append(images), images.flatten(1)[:, :2])[1], grey, (4, 4), (4, 4), "black")
    assert seen[0].max() == 1
    assert seen[1].max() == 0


def test_pixel_means_by_hand():
    windows = np.array([[0, 0, 2, 2], [0, 1, 2, 2]])
    assert pixel_means(windows, np.array([[1.0], [3.0]]), (2, 3)).tolist() == [[[1, 2, 3], [1, 2, 3]]]


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [((0, 4), (1, 1), "window 0 4"), ((25, 4), (1, 1), "window 25 4"), ((4, 4), (5, 4), "stride 5 4")],
)
def test_windows_that_do_not_fit_are_one_line(window, stride, message):
    with pytest.raises(InputError, match=message):
        windows_of(SIZE, window, stride)


def test_a_supervised_run_and_a_dino_run_side_by_side(fitted, trained, cache_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    args = ["--model", str(fitted), "--beside", str(trained), "--n", "3", "--window", "0.25", "--stride", "0.5",
            "--out", str(tmp_path)]  # fmt: skip
    occlusion.main(parse_options(occlusion.Options, args))
    printed = capsys.readouterr().out
    for words in ("PHANTOMS: synthetic scans", "own classifier", "linear probe (C ", "validation balanced accuracy"):
        assert words in printed, printed
    result = json.loads((tmp_path / "occlusion.json").read_text())
    arrays = np.load(tmp_path / "occlusion.npz")
    assert len(result["scans"]) == 3
    for scan in result["scans"]:
        for name, facts in scan["models"].items():
            maps = arrays[f"{scan['key']}_{name}"]
            assert maps.shape == (4, 32, 32)
            assert np.isfinite(maps).all()
            assert np.abs(maps).max() > 0
            for mask in facts["best_masks"].values():
                assert mask["logits_before"] == facts["logits"]
            if facts["best_masks"]:  # hiding the best window helps the class it was chosen for
                after = facts["best_masks"]["best window"]["logits_after"]
                assert after[facts["explained"]] > facts["logits"][facts["explained"]]
        with Image.open(tmp_path / scan["page"]) as page:
            assert min(page.size) > 500


def test_wrong_settings_are_one_line(fitted, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    for args, message in (
        (["--window", "0"], "--window 0.0: must be above 0"),
        (["--stride", "2"], "--stride 2.0: must be above 0 and at most 1"),
        (["--fill", "white"], "fill"),
        (["--target", "AMD"], "class AMD: .* has CNV, DME, DRUSEN, NORMAL"),
    ):
        with pytest.raises(InputError, match=message) as error:
            occlusion.main(parse_options(occlusion.Options, ["--model", str(fitted), *FEW_PHANTOMS, *args]))
        assert len(str(error.value).splitlines()) == 1
