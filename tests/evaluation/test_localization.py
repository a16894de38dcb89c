"""The leaderboard of maps: masks, controls with their exact values, choices on validation, and what may be said."""

import dataclasses
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dino_oct.data.index import DatasetConfig
from dino_oct.errors import InputError
from dino_oct.scores.bootstrap import Interval, PatientBootstrap
from dino_oct.scores.units import keys_of
from evaluation.config import ALL_SCORES, DataOptions, DatasetOptions, LocalizationOptions, MaskOptions
from evaluation.inputs.masks import LesionMasks, Mask
from evaluation.inputs.scans import open_data
from evaluation.inputs.steps import StepCache
from evaluation.maps import leaderboard
from evaluation.maps.leaderboard import (
    SCALES,
    Correlations,
    Measured,
    PairedDifference,
    Randomised,
    Ranked,
    Sanity,
    SingleScans,
    Standing,
    _compare,
    _intervals,
    all_scores,
    choose_heads,
    measure,
    spread_over_patients,
    tune,
)
from evaluation.maps.methods import MapSettings
from evaluation.maps.rows import Case, MapMaker, RawMaps, Row
from evaluation.protocols.localization import by_units, order_by_median
from evaluation.protocols.localization_text import Area, Localization, ModelFacts, paired, statements
from evaluation.report.severity import lesion_loads
from evaluation.scores.lesions import CONTROLS, control_maps, layer_densities, lesion_over_retina, with_mean


def masks(height: int = 40, width: int = 52) -> tuple[np.ndarray, np.ndarray]:
    retina, lesion = np.zeros((2, height, width), bool)
    retina[7:23], lesion[11:18, 5:16] = True, True
    return lesion, retina


def case(lesion: np.ndarray, retina: np.ndarray, label: str = "CNV", patient: str = "1") -> Case:
    return Case(0, "", label, patient, np.full((80, 104), 90, np.uint8), Mask(lesion, retina), None, {})


def test_controls_have_their_exact_values():
    lesion, retina = masks()
    maps = dict(zip(CONTROLS, control_maps(np.full((80, 104), 90, np.uint8), lesion, retina), strict=True))
    scores = {
        name: dict(zip(ALL_SCORES, all_scores(values, case(lesion, retina), 0.5), strict=True))
        for name, values in maps.items()
    }
    flat = scores["brightness"]  # a scan of one grey is uniform
    assert flat["energy"] == flat["auprc"] == flat["pointing"] == pytest.approx(lesion.mean())
    assert flat["enrichment"] == pytest.approx(1)
    assert flat["lesion_over_retina"] == 1
    assert flat["energy_retina"] == pytest.approx(retina.mean())
    band = scores["retina band"]
    assert band["energy_retina"] == band["lesion_over_retina"] == 1
    assert band["enrichment"] == pytest.approx(1 / retina.mean())
    perfect = scores["the mask itself"]
    assert perfect["energy"] == perfect["auprc"] == perfect["iou_tuned"] == perfect["pointing"] == 1
    assert perfect["lesion_over_retina"] == pytest.approx(retina.sum() / lesion.sum())


def test_the_random_row_is_at_chance():
    lesion, retina = masks()
    rng = np.random.default_rng(0)
    scores = [
        all_scores(
            control_maps(rng.integers(0, 255, (80, 104), dtype=np.uint8), lesion, retina)[0], case(lesion, retina), 0.5
        )
        for _ in range(60)
    ]
    mean = dict(zip(ALL_SCORES, np.mean(scores, axis=0), strict=True))
    assert mean["energy"] == pytest.approx(lesion.mean(), rel=0.02)
    assert mean["rank_accuracy"] == pytest.approx(lesion.mean(), rel=0.25)
    assert mean["lesion_over_retina"] == pytest.approx(1, abs=0.03)


def test_lesion_over_retina_depends_on_where_a_map_is_and_not_on_its_scale():
    lesion, retina = masks()
    values = np.random.default_rng(0).random(lesion.shape)
    assert lesion_over_retina(1000 * values, lesion, retina) == pytest.approx(
        lesion_over_retina(values, lesion, retina)
    )
    beside = np.zeros(lesion.shape)
    beside[11:18, 30:41] = 1  # as large as the lesion, in the retina, elsewhere
    assert lesion_over_retina(beside, lesion, retina) == 0
    assert lesion_over_retina(np.zeros(lesion.shape), lesion, retina) == 0
    assert lesion_over_retina((~retina).astype(float), lesion, retina) == 0  # all beside the retina
    assert np.isnan(lesion_over_retina(values, np.zeros_like(lesion), retina))


def test_layer_densities_by_hand():
    boundaries = np.array([[2.0, 2.0], [4.0, 5.0], [6.0, 6.0]])  # bands of 2 + 3 and 2 + 1 pixels
    values = np.zeros((8, 2))
    values[2:4, 0] = 1  # two of the first band's five pixels, two of the retina's eight
    np.testing.assert_allclose(layer_densities(values, boundaries), [(2 / 5) / (2 / 8), 0])
    np.testing.assert_allclose(layer_densities(np.ones((8, 2)), boundaries), [1, 1])
    assert (layer_densities(np.zeros((8, 2)), boundaries) == 0).all()
    empty_band = np.array([[2.0, 2.0], [2.0, 2.0], [6.0, 6.0]])
    np.testing.assert_array_equal(layer_densities(np.ones((8, 2)), empty_band), [np.nan, 1])


def test_one_good_map_and_nine_misses_score_a_tenth_of_the_good_one():
    """As a leaderboard measures them: misses are not left out, and every map is scored on the same ten scans."""
    lesion, retina = masks()
    good, beside, nothing = lesion.astype(np.float32), (~retina).astype(np.float32), np.zeros(lesion.shape, np.float32)
    cases = [dataclasses.replace(case(lesion, retina, patient=str(i)), position=i) for i in range(10)]
    score = dict(zip(ALL_SCORES, all_scores(good, cases[0], 0.5), strict=True))
    for miss in (beside, nothing):
        maps = {("net", "gradcam"): [values[None] for values in (good, *[miss] * 9)]}
        net = MapMaker(SimpleNamespace(name="net", kind="supervised"), MapSettings(), ("gradcam",))
        on_cases = measure(Ranked([net], RawMaps(maps, {}, {}), {}, cases, StepCache()), [0.5] * 6)
        assert np.isfinite(on_cases.scores).all()
        assert on_cases.rows[0].name == "net: gradcam"
        scores = _intervals(on_cases.scores, PatientBootstrap(np.array([case.patient for case in cases]), 50), SCALES)[
            0
        ]
        single = SingleScans.of(on_cases.scores[:, 0, -1])
        assert scores["lesion_over_retina"].point == pytest.approx(score["lesion_over_retina"] / 10)
        assert single.median_lesion_over_retina == 0
        assert single.share_above_1 == 0.1
        assert on_cases.empty[:, 0].sum() == (9 if miss is nothing else 0)
        for name in ("pointing", "energy", "enrichment", "iou_tuned"):
            assert scores[name].point == pytest.approx(score[name] / 10), name


@pytest.mark.parametrize("score", ["iou_tuned", "auprc", "energy_retina"])
def test_a_head_is_chosen_by_the_score_that_was_asked_for_and_by_no_other(score, monkeypatch):
    """The second of two heads shows the lesion; its IoU counts at the threshold that is best for it."""
    lesion, retina = masks()
    good = np.where(lesion, 1.0, 0.6).astype(np.float32) * retina  # above 60 % of the maximum it is the lesion
    heads = np.stack([(~lesion).astype(np.float32), good])
    cases = [case(lesion, retina, patient=str(i)) for i in range(2)]
    network = SimpleNamespace(blocks=[SimpleNamespace(attn=SimpleNamespace(num_heads=2))])
    net = MapMaker(SimpleNamespace(name="net", kind="supervised", model=network), MapSettings(), ("attention",))
    raw, asked = RawMaps({("net", "attention"): [heads, heads]}, {}, {}), []
    scores_of = leaderboard.score_map
    monkeypatch.setattr(leaderboard, "score_map", lambda v, m, n, r: asked.extend(n) or scores_of(v, m, n, r))
    head = choose_heads([net], raw, cases, score, StepCache())["net"]
    assert head.position == 1
    assert head.score == 1
    validation, thresholds = tune(Ranked([net], raw, {"net": 1}, cases, StepCache()), score)
    assert validation[0] == 1
    assert 0.6 <= thresholds[0] < 1
    assert set(asked) == ({score} & {"auprc"})


def test_mean_of_heads():
    heads = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 3.0)])
    np.testing.assert_allclose(with_mean(heads)[2], 2)


def measured(per_row: list[float], n: int = 24, seed: int = 0) -> tuple[Measured, PatientBootstrap]:
    """Rows of given mean scores with the same noise in each scan, and the controls at 0.1."""
    rng = np.random.default_rng(seed)
    means = np.array([*per_row, *[0.1] * len(CONTROLS)])
    scores = np.zeros((n, len(means), len(ALL_SCORES)))
    scores[..., ALL_SCORES.index("auprc")] = means + 0.05 * rng.standard_normal((n, len(means)))
    rows = [Row(f"m: {i}", "map", str(i), "m") for i in range(len(per_row))]
    rows += [Row(name, "reference", name) for name in CONTROLS]
    empty = np.zeros((n, len(rows)), bool)
    scored = Measured(rows, scores, empty, np.empty(0), np.empty(0))
    return scored, PatientBootstrap(np.arange(n) // 2, 500)


def test_rows_are_separated_only_where_patients_agree():
    ranking = _compare(*measured([0.5, 0.5, 0.2, 0.1], seed=1), ALL_SCORES.index("auprc"))
    assert {ranking.best, *ranking.equal_to_best} == {"m: 0", "m: 1"}
    assert ranking.beats_simple_maps == {"m: 0": True, "m: 1": True, "m: 2": True, "m: 3": False}
    pair = next(pair for pair in ranking.between_maps if (pair.a, pair.b) == ("m: 0", "m: 2"))
    assert pair.difference.low > 0.2
    assert pair.p <= pair.p_holm < 0.05
    assert len(ranking.to_simple_maps) == 4 * 4


def test_one_patient_separates_nothing():
    scored, _ = measured([0.9, 0.1])
    ranking = _compare(scored, PatientBootstrap(np.zeros(24), 100), ALL_SCORES.index("auprc"))
    assert ranking.equal_to_best == ["m: 1"]
    assert not any(ranking.beats_simple_maps.values())


def test_scans_spread_over_patients_and_classes():
    cases = [case(*masks(), label, patient) for label in ("CNV", "DME") for patient in "aab"]
    assert spread_over_patients(cases) == [0, 3, 2, 5, 1, 4]


def test_an_eye_of_many_scans_counts_as_one_of_few():
    patients = np.array(["p"] * 4 + ["q"] * 2 + ["r", "s"])
    facts = {"eye": np.array(list("RRRLRRLR")), "visit": np.full(8, ""), "volume": np.full(8, "")}
    keys = keys_of(patients, [f"{i}.png" for i in range(8)], facts)
    scores = {"good": np.array([0.9, 0.9, 0.6, 0.4, 0.2, 0.4, 0.9, 0.7]), "zero": np.zeros(8)}
    options = LocalizationOptions(bootstrap=200, seed=1)
    result = by_units(keys, patients, scores, options)
    assert list(result) == ["eye", "patient"]
    assert [(of_unit.units, of_unit.patients) for of_unit in result.values()] == [(5, 4), (4, 4)]
    good = result["eye"].rows["good"]
    assert good.point == pytest.approx((0.8 + 0.4 + 0.3 + 0.9 + 0.7) / 5)
    assert result["patient"].rows["good"].point == pytest.approx((0.7 + 0.3 + 0.9 + 0.7) / 4)
    assert result["eye"].rows["zero"].point == 0
    by_patient = PatientBootstrap(np.array(["p", "p", "q", "r", "s"]), 200, 1)
    expected = by_patient.mean(np.array([0.4, 0.8, 0.3, 0.9, 0.7]), SCALES[options.score])
    assert (good.low, good.high) == pytest.approx((expected.low, expected.high))
    assert by_units(keys_of(patients, [*patients], facts), patients, scores, options) == {}


def test_the_scan_of_median_score_comes_first():
    labels, scores = ["CNV"] * 5 + ["DME"] * 2, np.array([0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 0.4])
    assert order_by_median(labels, scores)[:4] == [2, 5, 3, 6]


# masks in a folder


@pytest.fixture
def folder(tmp_path):
    """Scans of 48 × 64 of two patients a split, and masks with labels 0 outside, 1 and 2 lesions, 7 retina."""
    rng = np.random.default_rng(0)
    values = np.zeros((48, 64), np.uint8)
    values[20:40], values[24:28, 10:20], values[30:34, 40:50] = 7, 1, 2
    for p, split in enumerate(("train", "val", "test")):
        for name in ("CNV", "NORMAL"):
            place = tmp_path / "scans" / split / name
            place.mkdir(parents=True)
            scan = rng.integers(0, 30, (48, 64)) + 120 * (values > 0)
            Image.fromarray(scan.astype(np.uint8)).save(place / f"{name}-{p}{name == 'CNV':d}-1.png")
            mask = tmp_path / "masks" / split / name
            mask.mkdir(parents=True)
            Image.fromarray(values * (name == "CNV")).save(mask / f"{name}-{p}{name == 'CNV':d}-1.png")
    return tmp_path


def data_of(folder, monkeypatch, cache):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache))
    given = DatasetOptions(split="official")
    return open_data(None, DataOptions(data=str(folder / "scans"), dataset=given), lambda text: None)


def test_masks_of_several_labels(folder, monkeypatch, cache_root):
    data = data_of(folder, monkeypatch, cache_root)
    every = LesionMasks(data, MaskOptions(str(folder / "masks"), retina_values=[7]))
    (i,) = every.with_lesion("test")
    assert data.index.class_names[data.index.labels[i]] == "CNV"
    mask = every.read(i)
    assert (mask.lesion.sum(), mask.retina.sum()) == (80, 20 * 64)
    assert not every.estimates_retina
    second_label = LesionMasks(data, MaskOptions(str(folder / "masks"), lesion_values=[2]))
    assert second_label.estimates_retina
    assert second_label.read(i).lesion.sum() == 40
    assert (second_label.read(i).retina & ~second_label.read(i).lesion).sum() > 500  # from the scan's brightness
    flat = folder / "flat"
    flat.mkdir()
    for file in (folder / "masks").rglob("*.png"):
        file.rename(flat / file.name)
    assert LesionMasks(data, MaskOptions(str(flat))).with_lesion("test").tolist() == [i]


def test_a_table_names_masks_and_severities(folder, monkeypatch, cache_root):
    scans = folder / "scans"
    files = sorted(path.relative_to(scans).as_posix() for path in scans.rglob("*.png"))
    (mask, *_) = sorted((folder / "masks").rglob("*.png"))
    rows = [f"{file},{file.split('/')[0]},{file.split('/')[1]},,{i}" for i, file in enumerate(files)]
    rows[0] = rows[0].replace(",,0", f",{mask},")
    (scans / "scans.csv").write_text("\n".join(["file,split,label,mask,severity", *rows]))
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    data = open_data(None, DataOptions(data=str(scans / "scans.csv"), dataset=DatasetOptions()), lambda text: None)
    masks = LesionMasks(data, MaskOptions())
    assert [masks.file(i) for i in range(len(files))] == [mask] + [None] * (len(files) - 1)
    measure, loads = lesion_loads(data, np.arange(len(files)), None)
    assert "table" in measure
    np.testing.assert_array_equal(loads, [np.nan, *range(1, len(files))])
    (scans / "scans.csv").write_text("\n".join(["file,mask", f"{files[0]},nowhere.png"]))
    data = open_data(None, DataOptions(data=str(scans / "scans.csv"), dataset=DatasetOptions()), lambda text: None)
    with pytest.raises(InputError, match=r"nowhere\.png: no such mask, which the table names for"):
        LesionMasks(data, MaskOptions()).file(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("size", "a mask of 10 × 10 px for a scan of 48 × 64"),
        ("colour", "a mask in colours"),
        ("broken", "not a readable mask"),
        ("values", "no scan of the test split has a lesion (value 9) in its mask"),
        ("folder", "no such folder of lesion masks"),
        ("both", "given for the lesion and for the retina"),
        ("none", "no lesion masks of the test split"),
    ],
)
def test_wrong_masks_are_one_line(change, message, folder, monkeypatch, cache_root):
    data = data_of(folder, monkeypatch, cache_root)
    file = next((folder / "masks" / "test" / "CNV").glob("*.png"))
    match change:
        case "size":
            Image.fromarray(np.ones((10, 10), np.uint8)).save(file)
        case "colour":
            Image.fromarray(np.ones((48, 64, 3), np.uint8)).save(file)
        case "broken":
            file.write_bytes(b"no image")
        case "none":
            for each in (folder / "masks" / "test").rglob("*.png"):
                each.unlink()
    where = "nowhere" if change == "folder" else str(folder / "masks")
    values = [9] if change in ("values", "both") else []
    with pytest.raises(InputError) as error:
        LesionMasks(data, MaskOptions(where, values, [9] if change == "both" else [])).with_lesion("test")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_other_values_than_a_phantoms_are_refused(trained, cache_root, monkeypatch, tmp_path):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    from evaluation.inputs.sources import open_source

    data = open_data(open_source(str(trained)), DataOptions(), lambda text: None)
    masks = LesionMasks(data, MaskOptions())
    (i, *_) = masks.with_lesion("test")
    values = np.asarray(Image.open(masks.file(i)))
    monkeypatch.setattr(masks, "folder", tmp_path)
    Image.fromarray(values // 2).save(tmp_path / masks.data.index.files[i].rsplit("/", 1)[-1].replace("jpeg", "png"))
    with pytest.raises(InputError, match="value 64 in a mask"):
        masks.read(i)


def test_the_settings_of_scans_do_not_reach_masks(folder, monkeypatch, cache_root):
    """A scan that was scaled down still takes the mask of its file's size."""
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    given = DatasetOptions(split="official", max_side=50)
    data = open_data(None, DataOptions(data=str(folder / "scans"), dataset=given), lambda text: None)
    masks = LesionMasks(data, MaskOptions(str(folder / "masks"), retina_values=[7]))
    (i,) = masks.with_lesion("test")
    assert data.scans[i].shape == (38, 50)
    assert masks.read(i).lesion.shape == (48, 64)
    assert DatasetConfig().max_side > 50


def test_a_bare_name_that_two_scans_share_is_refused(folder, monkeypatch, cache_root):
    """One mask would be scored against another patient's scan."""
    for name in ("CNV", "NORMAL"):
        file = next((folder / "scans" / "test" / name).glob("*.png"))
        file.rename(file.with_name("scan_1.png"))
        next((folder / "masks" / "test" / name).glob("*.png")).rename(folder / f"{name}.png")
    data = data_of(folder, monkeypatch, cache_root)
    shutil.copy(folder / "CNV.png", folder / "masks" / "scan_1.png")
    for use in (lambda masks: masks.with_lesion("test"), lambda masks: masks.digest(), lambda masks: masks.notes()):
        with pytest.raises(InputError, match=r"mask of test/CNV/scan_1.png or of test/NORMAL/scan_1.png\?") as error:
            use(LesionMasks(data, MaskOptions(str(folder / "masks"))))
        assert "SPLIT/CLASS/NAME.png" in str(error.value)
    # CLASS/NAME.png tells them apart.
    (folder / "masks" / "scan_1.png").unlink()
    for name in ("CNV", "NORMAL"):
        (folder / "masks" / name).mkdir()
        shutil.copy(folder / f"{name}.png", folder / "masks" / name / "scan_1.png")
    (i,) = LesionMasks(data, MaskOptions(str(folder / "masks"))).with_lesion("test")
    assert data.index.files[i] == "test/CNV/scan_1.png"


def test_which_of_several_values_count_is_said(folder, monkeypatch, cache_root):
    data, place = data_of(folder, monkeypatch, cache_root), str(folder / "masks")
    (note,) = LesionMasks(data, MaskOptions(place)).notes()
    assert "1, 2, 7 all count as lesion; --lesion-values says which" in note
    assert "1, 2 all count as lesion" in LesionMasks(data, MaskOptions(place, retina_values=[7])).notes()[0]
    assert LesionMasks(data, MaskOptions(place, lesion_values=[1])).notes() == []
    assert LesionMasks(data, MaskOptions(place, retina_values=[1, 7])).notes() == []  # one is left


def test_values_of_phantoms_in_masks_of_other_scans_are_refused(folder, monkeypatch, cache_root):
    for file in (folder / "masks").rglob("*.png"):
        values = np.asarray(Image.open(file))
        Image.fromarray(np.select([values == 7, values > 0], [128, 255], 0).astype(np.uint8)).save(file)
    data, place = data_of(folder, monkeypatch, cache_root), str(folder / "masks")
    with pytest.raises(InputError, match=r"--lesion-values 255 --retina-values 128"):
        LesionMasks(data, MaskOptions(place)).with_lesion("test")
    for given in ({"retina_values": [128]}, {"lesion_values": [255]}):
        (i,) = LesionMasks(data, MaskOptions(place, **given)).with_lesion("test")
        assert LesionMasks(data, MaskOptions(place, **given)).read(i).lesion.sum() == 80


def test_masks_of_phantoms_mean_the_same_in_any_folder(trained, cache_root, monkeypatch, tmp_path):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    from evaluation.inputs.sources import open_source

    data = open_data(open_source(str(trained)), DataOptions(), lambda text: None)
    beside = LesionMasks(data, MaskOptions())
    shutil.copytree(beside.folder, tmp_path / "masks")
    copied = LesionMasks(data, MaskOptions(str(tmp_path / "masks")))
    assert copied.with_lesion("test").tolist() == beside.with_lesion("test").tolist()
    for i in beside.with_lesion("test"):
        ours, theirs = copied.read(i), beside.read(i)
        np.testing.assert_array_equal(ours.lesion, theirs.lesion)
        np.testing.assert_array_equal(ours.retina, theirs.retina)
    assert not copied.notes()
    (i, *_) = beside.with_lesion("test")
    both = LesionMasks(data, MaskOptions(str(tmp_path / "masks"), lesion_values=[128, 255]))
    assert both.read(i).lesion.sum() > 2 * beside.read(i).lesion.sum()


def test_the_digest_of_masks_is_of_what_they_say(folder, monkeypatch, cache_root):
    data, place = data_of(folder, monkeypatch, cache_root), folder / "masks"
    first = LesionMasks(data, MaskOptions(str(place))).digest()
    shutil.copytree(place, folder / "copy")
    assert LesionMasks(data, MaskOptions(str(folder / "copy"))).digest() == first
    assert LesionMasks(data, MaskOptions(str(place), lesion_values=[1])).digest() != first
    assert LesionMasks(data, MaskOptions(str(place), retina_values=[7])).digest() != first
    file = next((place / "train" / "CNV").glob("*.png"))
    values, status = np.asarray(Image.open(file)).copy(), file.stat()
    values[25, 12] = 0
    Image.fromarray(values).save(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert LesionMasks(data, MaskOptions(str(place))).digest() != first


# words


def result_of(ratio: Interval, low: float = 0.05, beats: bool = True, sanity: str = "passed") -> Localization:
    scores = {name: Interval(0.3, 0.2, 0.4) for name in ALL_SCORES} | {"lesion_over_retina": ratio}
    row = Standing(
        "run", "map", "attention", "block 2 head 1", 0.3, 0.5, 0, 2, 1.0, 1.0, scores, SingleScans(1.1, 0.6), {}
    )
    net = dataclasses.replace(row, model="net", method="gradcam", maps_of_zeros=3)
    pairs = [("run: attention", "start: attention"), ("net: gradcam", "run: attention")]
    kinds = {"run": "self-supervised", "start": "starting weights", "net": "supervised"}
    return Localization(
        best="run: attention",
        equal_to_best=[],
        beats_simple_maps={"run: attention": beats, "net: gradcam": True},
        to_simple_maps=[],
        between_maps=[PairedDifference(a, b, Interval(0.1, low, 0.2), 0.01, 0.3) for a, b in pairs],
        score="auprc",
        heads={},
        rows={"run: attention": row, "start: attention": dataclasses.replace(row, model="start"), "net: gradcam": net},
        correlations=Correlations([], np.empty((0, 0))),
        faithfulness=None,
        sanity=Sanity(8, 8, {"net": {"gradcam": Randomised({}, sanity)}}),
        model={},
        weights={},
        data={},
        models={
            name: ModelFacts(kind, "", (32, 32), None, None, ("gradcam" if name == "net" else "attention",), {})
            for name, kind in kinds.items()
        },
        settings={},
        area=Area(Interval(0.04), Interval(0.3)),
        notes=[],
    )


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Interval(1.5, 1.2, 1.8), "attends to lesions more than to the rest of the retina"),
        (Interval(1.5, 0.9, 2.1), "no preference for lesions over the rest of the retina is shown"),
        (Interval(0.7, 0.5, 0.9), "LESS than to the rest"),
        (Interval(1.5), "nothing is shown"),
    ],
)
def test_claims_follow_the_interval(ratio, words):
    assert words in " ".join(statements(result_of(ratio)))


def test_claims_follow_the_tests():
    text = " ".join(statements(result_of(Interval(1.5, 1.2, 1.8))))
    assert "Against the best head before training (start): +10.0 [+5.0, +20.0] points, better" in text
    assert "run: attention against net: gradcam" in text
    assert "-10.0 [-20.0, -5.0] points, WORSE" in text
    assert "FAILED" not in text
    assert "Shown to exceed every map without a network (random, centre, retina band, brightness): run: att" in text
    assert "NOT shown" not in text
    assert "misses that score 0: net: gradcam 3." in text
    assert "nothing on the retina, misses whose lesion / retina is 0: run: attention 2, start: attention 2" in text
    doubtful = " ".join(statements(result_of(Interval(1.5, 1.2, 1.8), low=-0.05, beats=False, sanity="FAILED")))
    assert "no difference is shown" in doubtful
    assert "NOT shown to exceed every map without a network" in doubtful
    assert "FAILED the randomisation test" in doubtful


def test_a_comparison_can_be_read_from_both_sides():
    turned = paired(result_of(Interval(1)), "run: attention", "net: gradcam").difference
    assert (turned.point, turned.low, turned.high) == (-0.1, -0.2, -0.05)
    with pytest.raises(KeyError):
        paired(result_of(Interval(1)), "run: attention", "nothing")
