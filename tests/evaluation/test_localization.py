"""Lesion scores: exact values of the controls, the choice of a head, and what is said about the result."""

import numpy as np
import pytest
import torch
from PIL import Image

from dino_oct.errors import InputError
from dino_oct.models.backbone import load_backbone
from evaluation.bootstrap import Interval, PatientBootstrap
from evaluation.lesion_masks import read_mask
from evaluation.lesion_scores import CONTROLS, MEASURES, RATIO, control_maps, enlarge, localize, with_mean
from evaluation.localization import CHOSEN, DIFFERENCES, MODEL, attention_maps, best_head, statements, summarise


def masks(height: int = 40, width: int = 52) -> tuple[np.ndarray, np.ndarray]:
    retina, lesion = np.zeros((2, height, width), bool)
    retina[7:23], lesion[11:18, 5:16] = True, True
    return lesion, retina


def scores_of(maps: np.ndarray, *mask: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(MEASURES, localize(maps, *mask).T, strict=True))


def test_controls_have_their_exact_values():
    lesion, retina = masks()
    scan = np.full((80, 104), 90, np.uint8)
    found = scores_of(control_maps(scan, lesion, retina), lesion, retina)
    at = {name: i for i, name in enumerate(CONTROLS)}
    for name in ("uniform", "brightness"):  # a scan of one grey is uniform too
        assert found["enrichment_lesion"][at[name]] == pytest.approx(1, rel=1e-12)
        assert found["enrichment_retina"][at[name]] == pytest.approx(1, rel=1e-12)
        assert found["lesion_over_retina"][at[name]] == 1
        assert found["energy_lesion"][at[name]] == pytest.approx(lesion.mean())
    assert found["energy_retina"][at["retina band"]] == 1
    assert found["lesion_over_retina"][at["retina band"]] == 1
    assert found["enrichment_lesion"][at["retina band"]] == pytest.approx(1 / retina.mean())
    assert found["energy_lesion"][at["the mask itself"]] == found["energy_retina"][at["the mask itself"]] == 1
    assert found["enrichment_lesion"][at["the mask itself"]] == pytest.approx(1 / lesion.mean())
    assert found["lesion_over_retina"][at["the mask itself"]] == pytest.approx(retina.sum() / lesion.sum())


def test_scores_depend_on_where_a_map_is_and_not_on_its_scale():
    lesion, retina = masks()
    maps = np.random.default_rng(0).random((3, *lesion.shape))
    np.testing.assert_allclose(localize(1000 * maps, lesion, retina), localize(maps, lesion, retina), rtol=1e-12)
    beside = np.zeros((1, *lesion.shape))
    beside[0, 11:18, 30:41] = 1  # as large as the lesion, in the retina, elsewhere
    found = scores_of(beside, lesion, retina)
    assert found["energy_lesion"] == [0]
    assert found["energy_retina"] == [1]
    assert found["lesion_over_retina"] == [0]
    assert np.isnan(localize(np.zeros((1, *lesion.shape)), lesion, retina)).all()


def test_attention_is_enlarged_to_the_mask_without_moving():
    maps = np.zeros((1, 4, 5), np.float32)
    maps[0, 1, 3] = 1
    large = enlarge(maps, (46, 61))[0]
    rows, columns = np.nonzero(large)
    # centres of the pixels of patch (1, 3)
    assert ((rows + 0.5) / 46).min() >= 1 / 4
    assert ((rows + 0.5) / 46).max() < 2 / 4
    assert ((columns + 0.5) / 61).min() >= 3 / 5
    assert ((columns + 0.5) / 61).max() < 4 / 5
    assert len(rows) == pytest.approx(46 * 61 / 20, rel=0.1)
    with pytest.raises(InputError, match="finer than the mask"):
        enlarge(maps, (3, 61))
    np.testing.assert_allclose(with_mean(np.stack([maps[0], 3 * maps[0]]))[2], 2 * maps[0])


def test_the_head_with_the_highest_mean_ratio_is_chosen():
    scores = np.ones((6, 3, len(MEASURES)))
    scores[:, 1, RATIO] = 1.2
    scores[0, 2, RATIO] = 1.9  # best on one scan only
    scores[1, 1, RATIO] = np.nan
    assert best_head(scores) == 1


def test_attention_of_scans_of_mixed_sizes_keeps_their_order():
    backbone = load_backbone(
        "random:vit_tiny_patch16_224", model_args={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    ).eval()
    rng = np.random.default_rng(1)
    scans = [rng.integers(0, 255, shape, dtype=np.uint8) for shape in [(48, 48), (48, 96), (48, 48), (96, 96)]]
    maps = attention_maps(backbone, scans, 48, torch.device("cpu"))
    assert [found.shape for found in maps] == [(2, 6, 6), (2, 6, 12), (2, 6, 6), (2, 6, 6)]
    for scan, found in zip(scans, maps, strict=True):
        np.testing.assert_allclose(found, attention_maps(backbone, [scan], 48, torch.device("cpu"))[0], rtol=1e-5)


def result_of(ratio: Interval, centre: Interval, brightness: Interval) -> dict:
    row = {"lesion_over_retina": ratio, "energy_lesion": Interval(0.05)}
    differences = {"centre": centre, "brightness": brightness}
    rows = {f"{MODEL}: {CHOSEN}": row, **{name: {"lesion_over_retina": Interval(1.3)} for name in differences}}
    return {
        "rows": rows,
        DIFFERENCES: differences,
        "classes": {"CNV": {"rows": rows, DIFFERENCES: differences}},
        "data": {"synthetic": True},
        "chosen_head": {MODEL: 2},
        "area": {"lesion": Interval(0.04)},
        "lesion_over_retina_of_single_scans": {f"{MODEL}: {CHOSEN}": {"median": 1.1, "share_above_1": 0.6}},
    }


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Interval(1.5, 1.2, 1.8), "the interval excludes 1. On average over these phantoms"),
        (Interval(1.5, 0.9, 2.1), "No preference for lesions over the rest of the retina is shown"),
        (Interval(0.7, 0.5, 0.9), "BELOW 1"),
        (Interval(1.5), "nothing is shown"),
    ],
)
def test_claims_follow_the_interval(ratio, words):
    assert words in statements(result_of(ratio, Interval(0.2, 0.1, 0.3), Interval(0.2, 0.1, 0.3)))[0]


def test_a_preference_that_a_simple_map_has_too_is_not_credited_to_the_head():
    above, equal = Interval(0.2, 0.1, 0.3), Interval(0.2, -0.1, 0.5)
    said = " ".join(statements(result_of(Interval(1.5, 1.2, 1.8), equal, above)))
    assert "NOT shown to prefer lesions more than a map without a network does: centre (1.30)" in said
    assert "without a network" not in " ".join(statements(result_of(Interval(1.5, 1.2, 1.8), above, above)))


def test_summary_is_the_mean_over_scans():
    scores = np.random.default_rng(3).random((12, 2, len(MEASURES)))
    rows = summarise(scores, ["a", "b"], PatientBootstrap(np.repeat(np.arange(4), 3)))
    assert rows["b"]["lesion_over_retina"].point == pytest.approx(scores[:, 1, RATIO].mean())
    assert rows["b"]["lesion_over_retina"].low < rows["b"]["lesion_over_retina"].point


def test_masks_with_other_values_are_refused(tmp_path):
    values = np.array([[0, 128, 255], [0, 128, 128]], np.uint8)
    Image.fromarray(values).save(tmp_path / "good.png")
    lesion, retina = read_mask(tmp_path / "good.png")
    assert (lesion.sum(), retina.sum()) == (1, 4)
    Image.fromarray(values // 2).save(tmp_path / "bad.png")
    with pytest.raises(InputError, match=r"bad.png: value 64 in a mask"):
        read_mask(tmp_path / "bad.png")
