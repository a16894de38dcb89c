"""White borders are found whatever their shape, retina is left alone, and the fill gives nothing away."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dino_oct.data.borders import border_features, find_borders, neutralise
from dino_oct.data.tissue import coarse_levels, otsu, quantiles_of_sorted, tissue_map, tissue_mask

REAL_SCANS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "oct2017-sample"


def band_scan(height=248, width=384, seed=0, row=0.5):
    """Noise with a bright, speckled band (the retina) that runs from edge to edge."""
    rng = np.random.default_rng(seed)
    scan = rng.gamma(2, 8, (height, width))
    rows = np.arange(height)[:, None] / height
    scan += 170 * np.exp(-(((rows - row) / 0.05) ** 2)) * rng.gamma(8, 1 / 8, (height, width))
    return scan.clip(0, 255).astype(np.uint8)


def as_jpeg(scan, quality=85):
    data = io.BytesIO()
    Image.fromarray(scan).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def rotated(scan, degrees):
    """The scan turned about its centre, corners filled with white, and where they are."""
    turned = Image.fromarray(scan).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=255)
    inside = Image.fromarray(np.full_like(scan, 255)).rotate(degrees, fillcolor=0)
    return as_jpeg(np.asarray(turned)), np.asarray(inside) == 0


def padded(scan, top=0, bottom=0, left=0, right=0):
    white = np.zeros(scan.shape, dtype=bool)
    white[:top] = white[scan.shape[0] - bottom :] = True
    white[:, :left] = white[:, scan.shape[1] - right :] = True
    return as_jpeg(np.where(white, np.uint8(255), scan)), white


def widened(mask, pixels=6):
    return ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=pixels)


@pytest.mark.parametrize("degrees", [-12, -5, -2, 3, 8, 15])
def test_corners_of_a_rotated_scan_are_found(degrees):
    scan, white = rotated(band_scan(), degrees)
    borders = find_borders(scan)
    assert (borders & white).sum() > 0.995 * white.sum()
    # Nothing beyond the margin is taken for border.
    assert not (borders & ~widened(white)).any()


@pytest.mark.parametrize(
    "bars",
    [{"top": 30}, {"bottom": 12}, {"left": 3}, {"right": 20, "top": 5}, {"top": 9, "bottom": 9, "left": 9, "right": 9}],
)
def test_bars_along_the_edges_are_found(bars):
    scan, white = padded(band_scan(), **bars)
    borders = find_borders(scan)
    assert (borders & white).sum() == white.sum()
    assert not (borders & ~widened(white)).any()


@pytest.mark.parametrize("seed", range(5))
def test_retina_that_reaches_the_edge_is_no_border(seed):
    saturated = band_scan(seed=seed).astype(int)
    saturated = (saturated * 1.8).clip(0, 255).astype(np.uint8)
    assert (saturated[:, 0] >= 250).sum() > 5
    for scan in (saturated, as_jpeg(saturated), as_jpeg(band_scan(seed=seed))):
        assert not find_borders(scan).any()


def test_features_name_the_side_and_the_corners():
    _, white = padded(band_scan(), top=10)
    names = ["area", "top", "bottom", "left", "right", "top_left", "top_right", "bottom_left", "bottom_right"]
    features = dict(zip(names, border_features(white).tolist(), strict=True))
    assert features["area"] == pytest.approx(10 / 248)
    assert features["top"] == features["top_left"] == features["top_right"] == 1
    assert features["bottom"] == features["bottom_left"] == features["bottom_right"] == 0
    assert features["left"] == pytest.approx(10 / 248)


@pytest.mark.parametrize("make", [lambda s: rotated(s, 9), lambda s: padded(s, top=40, left=6)])
def test_fill_looks_like_the_background_and_changes_nothing_else(make):
    scan, white = make(band_scan())
    borders = find_borders(scan)
    filled = neutralise(scan, borders)
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(filled[~borders], scan[~borders])
    background = scan[~borders & ~tissue_mask(scan, borders)].astype(float)
    fill = filled[white].astype(float)
    assert abs(fill.mean() - background.mean()) < 0.25 * background.mean()
    assert 0.7 < fill.std() / background.std() < 1.3  # neither flat nor streaked
    assert not find_borders(filled).any()


def test_fill_depends_on_content_only():
    scan, _ = rotated(band_scan(), 9)
    borders = find_borders(scan)
    np.testing.assert_array_equal(neutralise(scan, borders), neutralise(scan.copy(), borders))
    clean = band_scan()
    np.testing.assert_array_equal(neutralise(clean, find_borders(clean)), clean)


def test_fill_manages_without_any_background():
    bright = np.random.default_rng(0).integers(90, 200, (64, 64), dtype=np.uint8)
    borders = np.zeros((64, 64), dtype=bool)
    borders[:10] = True
    bright[:10] = 255
    assert neutralise(bright, borders)[:10].max() < 200
    everything = np.ones((64, 64), dtype=bool)
    np.testing.assert_array_equal(neutralise(bright, everything), bright)


@pytest.mark.parametrize("row", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("size", [(248, 384), (496, 1024), (128, 128), (64, 90)])
def test_tissue_covers_the_retina_and_not_the_vitreous(row, size):
    scan = band_scan(*size, row=row)
    cells = tissue_map(tissue_mask(scan))
    assert cells.shape == (16, 16)
    assert cells.dtype == np.float32
    centre = int(row * 16)
    assert cells[centre].mean() > 0.7
    far = np.abs(np.arange(16) + 0.5 - row * 16) > 4
    assert cells[far].mean() < 0.05


def test_cysts_belong_to_the_tissue():
    scan = band_scan(row=0.5)
    rows, columns = np.ogrid[:248, :384]
    cyst = ((rows - 124) / 9) ** 2 + ((columns - 190) / 30) ** 2 < 1
    scan[cyst] = np.random.default_rng(1).gamma(2, 4, cyst.sum()).clip(0, 255)
    assert tissue_mask(scan)[cyst].mean() > 0.9


def test_white_border_is_no_tissue():
    scan, white = padded(band_scan(), top=60)
    cells = tissue_map(tissue_mask(scan, find_borders(scan)))
    assert cells[:4].max() < 0.1
    assert cells[7:9].mean() > 0.7
    assert white[:60].all()


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 23_561])
def test_levels_in_order_give_the_quantiles_and_the_threshold_of_any_order(count):
    mixed = np.random.default_rng(count).gamma(2, 20, count).astype(np.float32).round(1)  # with ties
    ordered, shares = np.sort(mixed), (0.0, 0.02, 0.1, 0.5, 0.97, 0.98, 1.0)
    assert (quantiles_of_sorted(ordered, shares) == np.quantile(mixed, shares)).all()
    assert otsu(ordered, ascending=True) == otsu(mixed)


@pytest.mark.parametrize("corner", [0, 40])
def test_levels_are_smoothed_means_of_blocks_without_the_border(corner):
    scan = band_scan(height=301, width=389)  # not a multiple of the reduction, 2
    borders = np.zeros(scan.shape, bool)
    borders[:corner, :corner] = True
    means, weights = (
        ndimage.gaussian_filter(
            np.array([[values[y : y + 2, x : x + 2].mean() for x in range(0, 389, 2)] for y in range(0, 301, 2)]),
            0.012 * 301 / 2, mode="reflect", truncate=3,
        )
        for values in (np.where(borders, 0.0, scan), 1.0 - borders)
    )  # fmt: skip
    levels = coarse_levels(scan, borders)
    assert (levels.measured == (weights > 0.25)).all()
    np.testing.assert_allclose(levels.level[levels.measured], (means / weights)[levels.measured], rtol=1e-5)
    flat = coarse_levels(np.full((301, 389), 77, np.uint8), None).level
    np.testing.assert_allclose(flat, 77, rtol=1e-6)  # smaller blocks at the edges weigh what they hold


@pytest.mark.skipif(not REAL_SCANS.is_dir(), reason="no real scans beside the repository")
def test_real_scans_lose_their_borders_and_keep_their_retina():
    files = sorted(REAL_SCANS.glob("*/*/*.jpeg"))[::16]
    with_border = 0
    for file in files:
        scan = np.asarray(Image.open(file).convert("L"))
        borders = find_borders(scan)
        with_border += bool(borders.any())
        assert not find_borders(neutralise(scan, borders)).any()
        if borders.any():  # a bar of one pixel has a margin of four
            assert (scan[borders] >= 200).mean() > 0.15
        assert 0.08 < tissue_map(tissue_mask(scan, borders)).mean() < 0.65
    assert with_border > len(files) // 2
