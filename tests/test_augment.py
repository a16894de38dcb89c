"""Views: what they show, what they depend on, and that both ways of making them agree."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_oct.augment import AugmentConfig, MultiCrop, draw_crops, draw_parity_photometrics, draw_uniform
from dino_oct.cli import parse_options, read_settings, write_settings
from dino_oct.errors import InputError
from dino_oct.limits import check_settings
from dino_oct.photometrics import noise_bank
from dino_oct.views import Crops, choose_boxes, resize_matmul, resize_native, tissue_share

SMALL = AugmentConfig(global_size=48, local_size=24, n_local=3)
PLAIN = replace(SMALL, flip=0, tilt=0, tone_p=0, speckle=0, blur_p=0, shadow_p=0)
WHOLE = replace(PLAIN, n_local=0, global_scale=(1, 1), ratio=(1, 1), min_tissue=0)
"""Every view is the whole scan, unchanged."""
REAL_SCANS = Path(__file__).resolve().parents[2] / "shared" / "data" / "oct2017-sample"


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random texture in mid greys, unlike its mirror image and shifted self."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(height // 6, 2), max(width // 6, 2))).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) // 2 + 64


def scans_of(count: int) -> list[np.ndarray]:
    return [textured(60 + 3 * i, 80 + 5 * i, seed=i) for i in range(count)]


def band(height: int = 96, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A scan with tissue in the lower third only, and its tissue map."""
    scan = np.zeros((height, width), np.uint8)
    scan[2 * height // 3 :] = 200
    tissue = np.zeros((1, 16, 16), np.float32)
    tissue[:, 11:] = 1
    tissue[:, 10] = 1 / 3
    return scan, tissue


def one_crop(top: int, left: int, height: int, width: int, slope: float = 0.0, flip: bool = False) -> Crops:
    return Crops(*(np.array([value]) for value in (0, top, left, height, width, slope, flip)))


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- what views are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["oct", "parity"])
@pytest.mark.parametrize("method", ["native", "matmul"])
def test_shapes_types_and_range(preset, method):
    views = MultiCrop(replace(SMALL, preset=preset), 0, method=method)(scans_of(5), None, range(5), 0)
    assert views.globals.shape == (2, 5, 1, 48, 48)
    assert views.locals.shape == (3, 5, 1, 24, 24)
    for group in views:
        assert group.dtype == torch.float32
        assert group.min() >= 0
        assert group.max() <= 1


def test_no_local_views():
    views = MultiCrop(replace(SMALL, n_local=0), 0)(scans_of(2), None, range(2), 0)
    assert views.globals.shape == (2, 2, 1, 48, 48)
    assert views.locals.shape == (0, 2, 1, 24, 24)


@pytest.mark.parametrize("shape", [(40, 40), (1536, 496), (496, 1536), (40, 900), (33, 35)])
@pytest.mark.parametrize("frame", ["square", "pixels"])
def test_scans_of_any_shape(shape, frame):
    scan = textured(*shape)
    for epoch in range(3):
        for group in MultiCrop(replace(SMALL, frame=frame, tilt=0.4, tilt_p=1), 0)([scan], None, [0], epoch):
            assert torch.isfinite(group).all()
            assert group.std() > 0


def test_without_changes_a_view_is_the_resized_box():
    scan = textured(90, 130)
    expected = np.asarray(Image.fromarray(scan).resize((48, 48), Image.Resampling.BICUBIC), np.float32)
    for method in ("native", "matmul"):
        views = MultiCrop(WHOLE, 0, method=method)([scan], None, [0], 0).globals[:, 0, 0].numpy() * 255
        assert np.abs(views - expected).max() <= 1.5


def test_boxes_follow_scale_and_ratio():
    config = replace(SMALL, min_tissue=0)
    sizes = np.tile([[400, 900]], (300, 1))
    draws = draw_uniform(0, 0, range(300), 2)
    crops = draw_crops(config, draws, sizes, None, (0.2, 0.4))
    area = crops.height * crops.width / (400 * 900)
    squashed_ratio = (crops.width / 900) / (crops.height / 400)
    assert area.min() > 0.195
    assert area.max() < 0.405
    assert area.mean() == pytest.approx(0.3, abs=0.01)
    assert squashed_ratio.min() > 0.74
    assert squashed_ratio.max() < 1.35
    crops = draw_crops(replace(config, frame="pixels"), draws, sizes, None, (0.2, 0.4))
    ratio = crops.width / crops.height
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    for crop in (crops.top + crops.height - 400, crops.left + crops.width - 900):
        assert crop.max() <= 0


def test_real_scans_stay_as_sharp_as_the_file():
    files = sorted(REAL_SCANS.glob("train/*/*.jpeg"))[:4]
    if not files:
        pytest.skip(f"no development scans at {REAL_SCANS}")
    for file in files:
        scan = np.asarray(Image.open(file).convert("L"))
        view = resize_native([scan], one_crop(100, 60, 300, 350), 224)[0].astype(float)
        expected = Image.open(file).convert("L").resize((224, 224), Image.Resampling.BICUBIC, box=(60, 100, 410, 400))
        assert np.abs(view - np.asarray(expected, float)).mean() < 0.5


# ---- what views depend on ------------------------------------------------------------------------------------------


def test_two_samples_of_a_batch_get_different_draws():
    scan = textured(80, 100)
    for preset in ("oct", "parity"):
        for group in MultiCrop(replace(SMALL, preset=preset), 0)([scan] * 4, None, range(4), 0):
            flat = group.flatten(2)
            for a in range(4):
                for b in range(a):
                    assert (flat[:, a] != flat[:, b]).any(1).all()


def test_the_views_of_one_sample_differ():
    views = MultiCrop(SMALL, 0)([textured(80, 100)], None, [7], 0)
    assert len(views.locals.flatten(1).unique(dim=0)) == 3
    assert not torch.equal(views.globals[0], views.globals[1])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"sample": 1}])
def test_seed_epoch_and_sample_each_change_the_views(change):
    scan = textured(80, 100)
    key = {"seed": 0, "epoch": 0, "sample": 0}

    def views(seed: int, epoch: int, sample: int):
        return MultiCrop(SMALL, seed)([scan], None, [sample], epoch)

    assert equal(views(**key), views(**key))
    for a, b in zip(views(**key), views(**(key | change)), strict=True):
        assert (a != b).flatten(1).any(1).all()


@pytest.mark.parametrize("method", ["native", "matmul"])
def test_batch_composition_and_order_change_nothing(method):
    scans, samples = scans_of(6), [11, 5, 8, 2, 900, 3]
    tissue = np.random.default_rng(0).random((6, 16, 16)).astype(np.float32)
    augment = MultiCrop(SMALL, 3, method=method)
    together = augment(scans, tissue, samples, 4)
    np.random.seed(9)  # global states play no part
    torch.manual_seed(9)
    order = [4, 0, 5, 2, 1, 3]
    shuffled = augment([scans[i] for i in order], tissue[order], [samples[i] for i in order], 4)
    parts = [augment(scans[a:b], tissue[a:b], samples[a:b], 4) for a, b in ((0, 1), (1, 4), (4, 6))]
    # Matrix products may sum in another order for another batch size: one grey level at most.
    tolerance = 0 if method == "native" else 1.1 * 2 / 255
    for group, other, *split in zip(together, shuffled, *parts, strict=True):
        assert (group[:, order] - other).abs().max() <= tolerance
        assert (group - torch.cat(split, dim=1)).abs().max() <= tolerance


def _views_of(samples: list[int]) -> np.ndarray:
    scans = scans_of(6)
    return MultiCrop(SMALL, 0)([scans[i] for i in samples], None, samples, 1).globals.numpy()


def test_process_count_changes_nothing():
    alone = _views_of([0, 1, 2, 3, 4, 5])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        halves = pool.map(_views_of, [[0, 2, 4], [1, 3, 5]])
    assert np.array_equal(halves[0], alone[:, 0::2])
    assert np.array_equal(halves[1], alone[:, 1::2])


def test_changing_one_setting_leaves_other_draws_alone():
    scans = scans_of(3)
    few, many = (MultiCrop(replace(SMALL, n_local=n), 0)(scans, None, range(3), 0) for n in (1, 3))
    assert torch.equal(few.globals, many.globals)
    assert torch.equal(few.locals[0], many.locals[0])


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, preset="parity"), replace(SMALL, tilt=0.3, tilt_p=1, blur_p=1)]
)
def test_both_methods_agree(config):
    scans = [*scans_of(4), textured(200, 37), textured(30, 150)]
    tissue = np.random.default_rng(0).random((6, 16, 16)).astype(np.float32)
    config = replace(config, global_size=50)  # no multiple of 4
    native, matmul = (MultiCrop(config, 0, method=m)(scans, tissue, range(6), 0) for m in ("native", "matmul"))
    for a, b in zip(native, matmul, strict=True):
        difference = (a - b).abs() * 255
        assert difference.mean() < 0.1
        # One level of rounding, which gain and contrast may stretch; solarisation folds around mid grey.
        assert difference.quantile(0.9999) <= 2.6


def test_resizing_agrees_to_rounding():
    scan = textured(150, 170)
    for crops in (
        one_crop(0, 0, 150, 170), one_crop(20, 31, 97, 55), one_crop(3, 5, 20, 17), one_crop(149, 169, 1, 1),
        one_crop(5, 0, 140, 170, 0.21, True), one_crop(60, 9, 30, 101, -0.5),
    ):  # fmt: skip
        for size in (48, 30):
            native, matmul = resize_native([scan], crops, size), resize_matmul([scan], crops, size, torch.device("cpu"))
            difference = np.abs(native.astype(int) - matmul.numpy().astype(int))
            assert difference.max() <= 2  # each axis is rounded
            assert difference.mean() < 0.03


def test_chunks_change_nothing(monkeypatch):
    scans = scans_of(4)
    draws = draw_uniform(0, 0, range(4), 5)
    crops = draw_crops(SMALL, draws, np.array([scan.shape for scan in scans]), None, (0.1, 0.9))
    whole = resize_matmul(scans, crops, 32, torch.device("cpu"))
    monkeypatch.setattr("dino_oct.views.CHUNK_BYTES", 1)
    chunked = resize_matmul(scans, crops, 32, torch.device("cpu"))
    assert (whole.int() - chunked.int()).abs().max() <= 1


# ---- geometry ------------------------------------------------------------------------------------------------------


def test_views_keep_tissue_in_sight():
    scan, tissue = band()
    config = replace(PLAIN, n_local=8)

    def empty_views(config: AugmentConfig, tissue: np.ndarray | None) -> int:
        views = [MultiCrop(config, 0)([scan], tissue, [0], epoch) for epoch in range(40)]
        return sum(int((group.flatten(2).mean(2) < 0.05).sum()) for pair in views for group in pair)

    assert empty_views(config, tissue) == 0
    assert empty_views(config, None) > 20
    assert empty_views(replace(config, min_tissue=0), tissue) > 20


@pytest.mark.parametrize(
    ("min_tissue", "tops", "top"),
    [
        (0.3, (0.0, 0.5, 0.9, 0.99), 44),  # shares 0, 1/6, 7/12, 2/3: the first that suffices
        (0.3, (0.0, 0.5, 0.4, 0.1), 24),  # none suffices: the one with the most
        (1.0, (0.0, 0.9, 0.99, 0.1), 44),  # more than the scan's own third is never asked
        (0.0, (0.2, 0.9, 0.99, 0.1), 9),  # nothing asked: the first
    ],
)
def test_first_box_with_enough_tissue_is_taken(min_tissue, tops, top):
    scan, tissue = band()  # boxes of half its height
    draws = {
        "area": np.zeros((1, 1, 4)),
        "ratio": np.zeros((1, 1, 4)),
        "top": np.array([[tops]]),
        "left": np.zeros((1, 1, 4)),
    }
    boxes = choose_boxes(draws, np.array([scan.shape]), tissue, (0.25, 0.25), (1, 1), min_tissue, on_square=True)
    assert [int(side[0, 0]) for side in boxes] == [top, 0, 48, 64]


def test_boxes_that_do_not_fit_are_passed_over_or_cut():
    draws = {name: np.zeros((1, 1, 3)) for name in ("area", "top", "left")} | {"ratio": np.array([[[1.0, 1.0, 0.0]]])}
    sizes = np.array([[50, 200]])
    fitting = choose_boxes(draws, sizes, None, (0.2, 0.2), (0.8, 1.25), 0, on_square=False)
    assert [int(side[0, 0]) for side in fitting] == [0, 0, 40, 50]
    cut = choose_boxes(draws, sizes, None, (0.9, 0.9), (0.8, 1.25), 0, on_square=False)
    assert [int(side[0, 0]) for side in cut][:3] == [0, 0, 50]


def test_tissue_share_counts_cut_cells_by_area():
    tissue = np.zeros((1, 16, 16), np.float32)
    tissue[0, 4, 4] = 1
    edges = [np.array([[value / 16]]) for value in (4.5, 6.5, 4.0, 8.0)]
    assert tissue_share(*edges, tissue)[0, 0] == pytest.approx(0.5 / 8)
    whole = [np.array([[value]]) for value in (0.0, 1.0, 0.0, 1.0)]
    assert tissue_share(*whole, tissue)[0, 0] == pytest.approx(1 / 256)


def test_flip_mirrors_left_and_right():
    scan = textured(60, 90)
    straight = resize_native([scan], one_crop(5, 7, 50, 61), 32)
    flipped = resize_native([scan], one_crop(5, 7, 50, 61, flip=True), 32)
    assert np.array_equal(flipped, straight[:, :, ::-1])
    config = replace(WHOLE, flip=0.5)
    views = MultiCrop(config, 0)([scan] * 100, None, range(100), 0).globals[:, :, 0]
    plain = MultiCrop(WHOLE, 0)([scan], None, [0], 0).globals[0, 0, 0]
    mirrored = (views - plain.flip(1)).abs().flatten(2).amax(2) == 0
    assert 0.4 < mirrored.float().mean() < 0.6
    assert ((views - plain).abs().flatten(2).amax(2) == 0)[~mirrored].all()


@pytest.mark.parametrize("slope", [0.1, -0.25, 0.5])
def test_tilt_moves_a_horizontal_line_by_the_slope(slope):
    scan = np.zeros((200, 160), np.uint8)
    scan[98:103] = 255
    view = resize_native([scan], one_crop(0, 0, 200, 160, slope), 160)[0].astype(float)
    rows = (view * np.arange(160)[:, None]).sum(0) / view.sum(0)
    measured = np.polyfit(np.arange(160), rows, 1)[0]
    assert measured == pytest.approx(-slope * 160 / 200, abs=0.01)  # the view is taken along the slope
    assert rows.mean() == pytest.approx(80, abs=0.5)


def test_tilt_mirrors_what_lies_beyond_the_scan():
    scan = textured(64, 64)
    view = resize_native([scan], one_crop(0, 0, 64, 64, 0.5), 64)[0]
    shift = np.rint(0.5 * (np.arange(64) - 31.5)).astype(int)
    padded = np.pad(scan, ((32, 32), (0, 0)), mode="symmetric")
    expected = np.stack([padded[32 + s : 96 + s, column] for column, s in enumerate(shift)], axis=1)
    assert np.abs(view.astype(int) - expected).max() <= 1


def test_tilt_is_bounded_and_as_probable_as_set():
    sizes = np.tile([[100, 200]], (400, 1))
    slope = draw_crops(
        replace(SMALL, tilt=0.2, tilt_p=0.3), draw_uniform(0, 0, range(400), 2), sizes, None, (0.4, 1)
    ).slope
    assert 0.25 < (slope != 0).mean() < 0.35
    assert 0.09 < np.abs(slope).max() <= 0.2 * 100 / 200  # of the resized scan
    assert abs(slope.mean()) < 0.01


# ---- intensity -----------------------------------------------------------------------------------------------------


def views_with(scan: np.ndarray, n: int = 60, **settings) -> np.ndarray:
    """The first view of n samples, everything off but ``settings``; (n, 48, 48)."""
    return MultiCrop(replace(WHOLE, **settings), 0)([scan] * n, None, range(n), 0).globals[0, :, 0].numpy()


def test_gain_alone_scales():
    scan = textured(48, 48)
    views = views_with(scan, tone_p=1, gain=0.25, gamma=0, contrast=0)
    factors = views / (scan / 255)
    assert np.ptp(factors, axis=(1, 2)).max() < 0.01
    factors = factors.mean((1, 2))
    assert 0.79 < factors.min() < 0.9
    assert 1.1 < factors.max() < 1.26


def test_gamma_alone_bends_and_keeps_black_and_white():
    scan = np.tile(np.linspace(0, 255, 48).round().astype(np.uint8), (48, 1))
    views = views_with(scan, tone_p=1, gain=0, gamma=0.5, contrast=0)[:, 10]
    assert np.allclose(views[:, [0, -1]], [0, 1], atol=1e-6)
    exponents = np.log(views[:, 20]) / np.log(scan[0, 20] / 255)
    assert 0.66 < exponents.min() < 0.8
    assert 1.25 < exponents.max() < 1.51
    assert np.allclose(views, (scan[0] / 255) ** exponents[:, None], atol=1e-4)


def test_contrast_alone_spreads_around_the_mean():
    scan = textured(48, 48)
    views = views_with(scan, tone_p=1, gain=0, gamma=0, contrast=0.4)
    spread = views.std((1, 2)) / (scan / 255).std()
    assert spread.min() < 0.8
    assert spread.max() > 1.2
    assert np.abs(views.mean((1, 2)) - scan.mean() / 255).max() < 0.02


def test_speckle_alone_multiplies():
    flat = np.full((48, 48), 100, np.uint8)
    views = views_with(flat, speckle=0.3, speckle_p=1)
    deviation = views.std((1, 2)) / (100 / 255)
    assert deviation.max() == pytest.approx(0.3, abs=0.08)
    assert deviation.min() < 0.05
    assert views.mean() == pytest.approx(100 / 255, rel=0.02)
    assert len(np.unique(views.round(4).reshape(60, -1), axis=0)) == 60
    dark = views_with(flat // 4, speckle=0.3, speckle_p=1)
    assert np.allclose(
        (dark * 4).clip(max=1), views, atol=1e-5
    )  # multiplicative: proportional to the signal, up to white


def test_noise_bank_is_standardised_skewed_and_grained():
    bank = noise_bank(256)
    assert bank.mean() == pytest.approx(0, abs=1e-4)
    assert bank.std() == pytest.approx(1, abs=1e-3)
    assert (bank**3).mean() > 0.3
    correlation = [(bank * np.roll(bank, lag, 1)).mean() for lag in (1, 2, 4)]
    assert correlation[0] > 0.5
    assert correlation[1] < 0.3
    assert abs(correlation[2]) < 0.05
    assert np.array_equal(bank, noise_bank(256))


def test_blur_alone_smooths_as_a_gaussian():
    spot = np.zeros((48, 48), np.uint8)
    spot[24, 24] = 255
    views = views_with(spot, blur=(1.0, 1.5), blur_p=1)
    assert np.allclose(views.sum((1, 2)), 1, atol=1e-4)
    rows = np.arange(48) - 24
    for profile in (views.sum(1), views.sum(2)):
        sigma = np.sqrt((profile * rows**2).sum(1))
        assert 0.95 < sigma.min() < 1.1
        assert 1.4 < sigma.max() < 1.5
    flat = np.full((48, 48), 77, np.uint8)
    assert np.allclose(views_with(flat, n=4, blur=(1, 2), blur_p=1), 77 / 255, atol=1e-5)  # borders too
    assert (views_with(spot, blur_p=0.3).max((1, 2)) < 0.99).mean() == pytest.approx(0.3, abs=0.15)


def test_shadows_alone_darken_whole_columns():
    flat = np.full((48, 48), 200, np.uint8)
    views = views_with(flat, shadow=0.6, shadow_p=1)
    assert np.ptp(views, axis=1).max() == 0
    depth = 1 - views[:, 0] / (200 / 255)
    assert depth.min() >= -1e-6
    assert depth.max() > 0.4
    assert ((depth > 0.02).mean(1) < 0.6).all()
    n = (views_with(flat, shadow=0.6, shadow_p=0.3) < 200 / 255 - 1e-3).any((1, 2)).mean()
    assert n == pytest.approx(0.3, abs=0.15)


def test_strength_zero_and_probability_zero_are_the_plain_crop():
    scan = textured(70, 90)
    plain = views_with(scan, n=5)
    strengths = {"gain": 0, "gamma": 0, "contrast": 0, "speckle": 0, "shadow": 0, "tilt": 0, "blur": (0, 0)}
    probabilities = {"tone_p": 1, "speckle_p": 1, "shadow_p": 1, "tilt_p": 1, "blur_p": 1}
    assert np.allclose(views_with(scan, n=5, **strengths, **probabilities), plain, atol=1e-6)
    off = dict.fromkeys(probabilities, 0)
    assert np.array_equal(views_with(scan, n=5, speckle=0.5, shadow=0.9, tilt=0.4, gain=0.9, blur=(1, 2), **off), plain)


# ---- parity preset -------------------------------------------------------------------------------------------------


def test_parity_solarises_the_second_global_view_only():
    photometrics = draw_parity_photometrics(
        {k: v.reshape(4000, -1) for k, v in draw_uniform(0, 0, range(1000), 4).items()}, np.tile(range(4), 1000)
    )
    solarised, blurred = (
        photometrics.solarize.reshape(1000, 4).mean(0),
        (photometrics.blur > 0).reshape(1000, 4).mean(0),
    )
    assert solarised[[0, 2, 3]].max() == 0
    assert solarised[1] == pytest.approx(0.2, abs=0.04)
    assert blurred[0] == 1
    assert blurred[1] == pytest.approx(0.1, abs=0.03)
    assert blurred[2:] == pytest.approx(0.5, abs=0.05)
    assert photometrics.blur.max() <= 2
    jittered = photometrics.gain != 1
    assert jittered.mean() == pytest.approx(0.8, abs=0.03)
    for factor in (photometrics.gain, photometrics.contrast):
        assert 0.6 <= factor.min() < 0.62
        assert 1.38 < factor.max() <= 1.4


def test_parity_views_show_it():
    scan = np.full((60, 60), 30, np.uint8)
    scan[20:40, 20:40] = 250
    config = replace(WHOLE, preset="parity", flip=0)
    first, second = MultiCrop(config, 0)([scan] * 200, None, range(200), 0).globals[:, :, 0]
    # Inverted, the bright square turns dark; the dark surround, below the threshold, stays.
    assert (first[:, 24, 24] > 0.35).all()
    assert 0.08 < (second[:, 24, 24] < 0.35).float().mean() < 0.3
    assert (second[:, 2, 2] < 0.3).all()


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_scale": (0.5, 0.2)}, {"local_scale": (0, 0.2)}, {"local_scale": (0.2, 1.5)}, {"global_size": 0},
        {"local_size": -96}, {"n_local": -1}, {"ratio": (2, 1)}, {"ratio": (0, 1)}, {"flip": 1.5}, {"tilt": 2},
        {"speckle": -0.1}, {"blur": (2, 1)}, {"shadow": 1.2}, {"min_tissue": -1}, {"preset": "hue"}, {"frame": "round"},
        {"gain": float("nan")}, {"contrast": float("inf")},
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line_errors(wrong):
    option = "--augment." + next(iter(wrong)).replace("_", "-")
    with pytest.raises(InputError, match=rf"^{option} .*: must (be|have)") as error:
        check_settings(AugmentConfig(**wrong), "augment.")
    assert "\n" not in str(error.value)


def test_settings_round_trip_and_command_line(tmp_path):
    config = parse_options(AugmentConfig, ["--global-scale", "0.3", "0.9", "--preset", "parity", "--n-local", "2"])
    assert (config.global_scale, config.preset, config.n_local) == ((0.3, 0.9), "parity", 2)
    write_settings(config, tmp_path / "augment.yaml")
    assert read_settings(AugmentConfig, tmp_path / "augment.yaml") == config
    with pytest.raises(InputError, match=r"--global-scale 0\.9 0\.3: must have the smaller number first"):
        parse_options(AugmentConfig, ["--global-scale", "0.9", "0.3"])


def test_misuse_is_named():
    augment = MultiCrop(SMALL, 0)
    with pytest.raises(ValueError, match="uint8"):
        augment([np.zeros((50, 50), np.float32)], None, [0], 0)
    with pytest.raises(ValueError, match="differ"):
        augment(scans_of(2), None, [0], 0)
