"""Volumes, eyes and patients as units: how slices are joined, what chooses the rule, and what commands say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dino_oct.errors import InputError
from dino_oct.scores import pooling
from dino_oct.scores.paired import ScanSet, compare_scores
from dino_oct.scores.pooling import Bags, GatedAttention
from dino_oct.scores.units import RULES, Grouping, aggregate, compare_units, group, keys_of, units_to_report

CLASSES = ("CNV", "NORMAL")


def keys(rows: list[tuple[str, str, str, str]]) -> dict[str, np.ndarray]:
    """Of scans of which patient ("" where not known), eye, visit and volume are given."""
    patient, eye, visit, volume = map(np.array, zip(*rows, strict=True))
    files = [f"{i}.png" for i in range(len(rows))]
    facts = {"eye": eye, "visit": visit, "volume": volume}
    return keys_of(np.where(patient == "", files, patient), files, facts)


def every(patients=2, eyes="RL", visits=2, slices=3, volume="a") -> list[tuple[str, str, str, str]]:
    return [
        (f"p{p}", eye, str(visit), volume)
        for p in range(patients) for eye in eyes for visit in range(visits) for _ in range(slices)
    ]  # fmt: skip


def test_a_unit_is_told_from_all_that_it_belongs_to():
    """Eyes of all patients are R or L, and volumes of all eyes may have one name."""
    counts = {unit: len(set(of_scans.tolist())) for unit, of_scans in keys(every()).items()}
    assert counts == {"volume": 8, "eye": 4, "patient": 2}
    unknown = keys([("p", "R", "", ""), ("p", "", "", "v"), ("", "R", "1", "v")])
    assert {unit: (of_scans != "").tolist() for unit, of_scans in unknown.items()} == {
        "volume": [False, True, False],
        "eye": [True, False, False],
        "patient": [True, True, False],
    }


@pytest.mark.parametrize(
    ("rows", "reported"),
    [
        (every(), ["volume", "eye", "patient"]),
        (every(visits=1), ["eye", "patient"]),  # each eye has one volume
        (every(visits=1, eyes="R"), ["patient"]),
        (every(slices=1), ["eye", "patient"]),
        (every(slices=1, visits=1, eyes="R"), []),
        (every(volume=""), ["eye", "patient"]),
        ([("", "R", "1", "v")] * 20, []),
        ([*every(), ("p", "", "", "")], ["volume", "eye", "patient"]),  # 24 of 25 scans
        ([*every(), *[("p", "", "", "")] * 2], ["patient"]),  # 24 of 26
    ],
)
def test_units_are_reported_where_they_are_known_and_group(rows, reported):
    assert units_to_report(keys(rows)) == reported


def test_units_of_several_classes_and_unknown_ones_are_left_out():
    scans = ScanSet(np.array([1, 0, 0, 1, 1, 0]), np.array(["p", "q", "q", "r", "p", "s"]))
    grouped = group(np.array(["p R", "q R", "", "r L", "p R", "r L"]), scans)
    assert grouped.unit_of_scan.tolist() == [0, 1, -1, -1, 0, -1]
    assert grouped.units.labels.tolist() == [1, 0]
    assert grouped.units.patients.tolist() == ["p", "q"]
    assert (grouped.mixed, grouped.unknown) == (1, 1)


def test_every_rule_by_hand():
    cnv = np.array([0.9, 0.2, 0.5, 0.4, 0.6, 0.1])
    scores, units = np.stack([cnv, 1 - cnv], axis=1), np.array([1, 0, 1, -1, 1, 0])
    # Unit 0: CNV .2 and .1, NORMAL .8 and .9. Unit 1: CNV .9, .6, .5, NORMAL .5, .4, .1.
    mean, largest, half = (aggregate(scores, units, RULES[rule]) for rule in ("mean", "max", "top 50 %"))
    np.testing.assert_allclose(mean[:, 0], [0.15, 2 / 3])
    np.testing.assert_allclose(largest[:, 0], [0.2 / 1.1, 0.9 / 1.4])
    np.testing.assert_allclose(half[:, 0], [0.2 / 1.1, 0.75 / 1.2])  # of three scans two
    for rule, share in RULES.items():
        np.testing.assert_allclose(aggregate(scores, units, share).sum(axis=1), 1, err_msg=rule)
    many = np.linspace(0, 1, 20)
    (row,) = aggregate(np.stack([many, 1 - many], axis=1), np.zeros(20, int), RULES["top 10 %"])
    np.testing.assert_allclose(row, [0.5, 0.5])
    (row,) = aggregate(np.stack([many, np.full(20, 0.5)], axis=1), np.zeros(20, int), RULES["top 10 %"])
    np.testing.assert_allclose(row[0] / row[1], many[-2:].mean() / 0.5)


def eyes(n: int, slices: int = 5, eyes_of_patient: int = 1, first: int = 0) -> tuple[ScanSet, Grouping]:
    """Eyes of two classes in turns, and their scans."""
    labels, patients = np.arange(n) // eyes_of_patient % 2, np.arange(n) // eyes_of_patient + first
    scans = ScanSet(np.repeat(labels, slices), np.repeat([f"p{p}" for p in patients], slices))
    return scans, group(np.repeat([f"{first} {i:03d}" for i in range(n)], slices), scans)


def seen_in(lesions: int, of: ScanSet, slices: int = 5, noise: float = 0.0) -> np.ndarray:
    """Probabilities (N, 2) that see CNV in the first slices of its eyes, and NORMAL in the others with less weight."""
    is_lesion = (of.labels == 0) & (np.arange(len(of.labels)) % slices < lesions)
    cnv = np.where(is_lesion, 0.95, 0.3)
    cnv = cnv + noise * np.random.default_rng(0).normal(size=len(cnv))
    return np.stack([cnv, 1 - cnv], axis=1)


def compared(val_lesions: int, test_lesions: int, **options):
    """One classifier on 20 validation and 12 test eyes, which see CNV in so many slices."""
    (val, of_val), (test, of_test) = eyes(20), eyes(12, first=100)
    by_set = {"val": seen_in(val_lesions, val), "queries": seen_in(test_lesions, test)}
    groupings = {"eye": {"val": of_val, "queries": of_test}}
    return compare_units({"model": {5: by_set}}, groupings, val, CLASSES, bootstrap=50, **options)["eye"]


def test_the_rule_is_chosen_on_validation_units_alone():
    """One slice of five tells CNV: the mean cannot see it, the maximum can."""
    rare, often = compared(1, 1), compared(5, 5)
    accuracies = rare.rows["model"][5].val_balanced_accuracy
    assert list(accuracies) == list(RULES)
    assert (accuracies["mean"], accuracies["max"]) == (50, 100)
    assert rare.rows["model"][5].rule == "max"
    assert rare.rows["model"][5].accuracy.point == 100
    assert (rare.units, rare.patients, rare.val_units, rare.classes) == (12, 12, 20, {"CNV": 6, "NORMAL": 6})
    assert often.rows["model"][5].rule == "mean"
    # The test would choose the maximum, the validation does not know.
    assert compared(5, 1).rows["model"][5].rule == "mean"
    assert compared(5, 1).rows["model"][5].accuracy.point == 50
    for lesions in (0, 1, 5):
        row = compared(1, lesions).rows["model"][5]
        assert (row.rule, row.val_balanced_accuracy) == ("max", accuracies)


def test_without_validation_the_mean_is_used_and_said():
    test, of_test = eyes(12)
    by_set = {"queries": seen_in(1, test)}
    result = compare_units(
        {"model": {5: by_set}}, {"eye": {"queries": of_test}}, test, CLASSES, why_mean="for a reason", bootstrap=0
    )["eye"]
    row = result.rows["model"][5]
    assert (row.rule, row.val_balanced_accuracy, result.val_units) == ("mean", {}, 0)
    assert result.why_mean == "for a reason"
    mixed = group(np.array(["a", "a"]), ScanSet(np.array([0, 1]), np.array(["p", "p"])))
    by_set |= {"val": np.full((2, 2), 0.5)}
    groupings = {"eye": {"queries": of_test, "val": mixed}}
    result = compare_units({"model": {5: by_set}}, groupings, test, CLASSES, bootstrap=0)["eye"]
    assert result.rows["model"][5].rule == "mean"
    assert result.why_mean == "no validation eye has one class"


def test_intervals_are_by_patient_and_differences_paired():
    """Two eyes of a patient are no two patients."""
    (val, of_val), (test, of_test) = eyes(20), eyes(24, eyes_of_patient=2, first=100)
    scores = {
        name: {5: {"val": seen_in(5, val, noise=noise), "queries": seen_in(5, test, noise=noise)}}
        for name, noise in (("model", 0.5), ("raw pixels", 1.5))
    }
    groupings = {"eye": {"val": of_val, "queries": of_test}}
    result = compare_units(scores, groupings, val, CLASSES, bootstrap=200, seed=3)["eye"]
    assert (result.units, result.patients) == (24, 12)
    joined = {
        name: {5: aggregate(by_k[5]["queries"], of_test.unit_of_scan, RULES[result.rows[name][5].rule])}
        for name, by_k in scores.items()
    }
    patients = np.repeat([f"p{100 + i}" for i in range(12)], 2)
    expected = compare_scores(joined, val, ScanSet(np.arange(24) // 2 % 2, patients), CLASSES, bootstrap=200, seed=3)
    assert result.rows["raw pixels"][5].accuracy == expected.rows["raw pixels"][5].accuracy
    assert result.rows["raw pixels"][5].accuracy.low is not None
    assert result.differences == expected.differences
    assert list(result.differences) == ["model − raw pixels"]


def test_units_that_are_left_out_are_said():
    scans = ScanSet(np.array([0, 0, 1, 1, 0, 1]), np.array(["p", "p", "q", "q", "r", "r"]))
    by_set = {"queries": np.full((6, 2), 0.5)}
    groupings = {
        "eye": {"queries": group(np.array(["p", "p", "q", "", "r", "r"]), scans)},
        "patient": {"queries": group(np.array(["a", "a", "a", "a", "b", "b"]), scans)},
    }
    result = compare_units({"model": {5: by_set}}, groupings, scans, CLASSES, bootstrap=0)
    assert result["eye"].notes[:2] == [
        "1 of 3 eyes left out: their scans have several classes",
        "1 of 6 scans left out: their eye is not known",
    ]
    assert result["patient"].rows == {}
    assert result["patient"].notes == ["2 of 2 patients left out: their scans have several classes"]


# ---- attention pooling ---------------------------------------------------------------------------------------------


def needles(n: int, seed: int, slices: int = 8, dims: int = 6) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Bags of two classes: one slice, which feature 0 marks, tells the class by feature 1, where all others have more
    noise than it has signal. Also where it is."""
    rng = np.random.default_rng(seed)
    labels, where = np.arange(n) % 2, rng.integers(slices, size=n)
    features = rng.normal(size=(n, slices, dims))
    features[:, :, 1] *= 4
    features[np.arange(n), where, 0] += 6
    features[np.arange(n), where, 1] = np.where(labels == 1, 3, -3)
    features = (features - [0.5, *[0] * (dims - 1)]) / [2, 4, *[1] * (dims - 2)]  # about standardised
    return torch.from_numpy(features.reshape(-1, dims).astype(np.float32)), labels, where


def bags_of(features: torch.Tensor, n: int) -> Bags:
    return Bags(features, np.repeat(np.arange(n), len(features) // n))


@pytest.fixture(scope="module")
def needle_model():
    (train, labels, _), (val, val_labels, _) = needles(64, 0), needles(40, 1)
    return pooling.fit(bags_of(train, 64), labels, bags_of(val, 40), val_labels, 2, seed=0)


def test_attention_finds_the_slice_that_tells_where_the_mean_cannot(needle_model):
    test, labels, where = needles(100, 2)
    found = pooling.probabilities(needle_model, bags_of(test, 100))
    assert (found.argmax(axis=1) == labels).mean() > 0.85
    of_slices = test.reshape(100, 8, -1)
    attention = needle_model.attention(of_slices, torch.ones(100, 8, dtype=torch.bool))
    assert attention[torch.arange(100), where].mean() > 0.4  # of 0.125; where nothing speaks for one class, none
    mean = of_slices.mean(dim=1)[:, 1].numpy()  # of the feature that tells the class in one slice
    assert max(((mean > limit) == labels).mean() for limit in np.linspace(-1, 1, 61)) < 0.75
    grouped = Grouping(np.repeat(np.arange(100), 8), ScanSet(labels, where), 0, 0)
    flat = np.full((800, 2), 0.5)
    result = compare_units(
        {"model": {"probe": {"val": flat, "queries": flat}}},
        {"eye": {"val": grouped, "queries": grouped}},
        ScanSet(labels, where),
        CLASSES,
        bootstrap=0,
        pool=lambda row, of_unit: {"val": found, "queries": found},
    )
    chosen = result["eye"].rows["model"]["probe"]
    assert chosen.rule == "attention"
    assert chosen.accuracy.point == pytest.approx(100 * (found.argmax(axis=1) == labels).mean())


def test_attention_pooling_is_the_same_every_time_and_the_seed_counts(needle_model):
    (train, labels, _), (val, val_labels, _) = needles(64, 0), needles(40, 1)
    state = torch.get_rng_state()
    again, other = (
        pooling.fit(bags_of(train, 64), labels, bags_of(val, 40), val_labels, 2, seed=seed) for seed in (0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    weights, same, others = (model.classifier.weight for model in (needle_model, again, other))
    assert torch.equal(weights, same)
    assert not torch.equal(weights, others)


def test_a_bag_does_not_depend_on_the_bags_beside_it():
    torch.manual_seed(0)
    model, features = GatedAttention(4, 3), torch.randn(9, 4)
    together = pooling.probabilities(model, Bags(features, np.array([1, 0, 0, 1, -1, 1, 1, 0, 2])))
    for bag, members in enumerate(([1, 2, 7], [0, 3, 5, 6], [8])):
        alone = pooling.probabilities(model, Bags(features[members], np.zeros(len(members), int)))
        np.testing.assert_allclose(together[bag], alone[0], rtol=1e-5)
    shares = model.attention(features[None], torch.arange(9)[None] < 5)
    np.testing.assert_allclose(shares.sum().item(), 1, rtol=1e-6)
    assert (shares[0, 5:] == 0).all()
    # Of one scan the pooled feature is the scan's.
    torch.testing.assert_close(
        model(features[None, :1], torch.ones(1, 1, dtype=torch.bool)), model.classifier(features[:1])
    )


def test_bags_of_one_class_are_refused():
    features = torch.randn(4, 2)
    with pytest.raises(InputError, match="one class only"):
        pooling.fit(bags_of(features, 2), np.zeros(2, int), bags_of(features, 2), np.array([0, 1]), 2, 0)


# ---- commands ------------------------------------------------------------------------------------------------------

VOLUMES = ["--model", "random:test_resnet", "--bootstrap", "50", "--image-size", "32", "32", "--data", "phantom"]
VOLUMES += ["--phantom.patients", "16", "--phantom.slices", "2", "--phantom.eyes", "2", "--phantom.visits", "2"]
VOLUMES += ["--phantom.size", "64", "64"]


@pytest.mark.parametrize(
    ("evaluation", "file", "options"),
    [("knn", "knn_test", ["--k", "3", "5"]), ("linear", "linear_fast_test", ["--fractions", "1", "--n-c", "3"])],
)
def test_commands_print_and_store_units(evaluation, file, options, call, tmp_path):
    finished = call(f"evaluation/{evaluation}.py", *VOLUMES, *options, "--out", tmp_path)
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / f"{file}.json").read_text())
    assert list(result["by_unit"]) == ["volume", "eye", "patient"]
    patients = result["data"]["sets"]["queries"]["patients"]
    # Both eyes of a patient need not have one class.
    assert [of_unit["units"] for of_unit in result["by_unit"].values()][:2] == [4 * patients, 2 * patients]
    for unit, of_unit in result["by_unit"].items():
        assert list(of_unit["rows"]) == list(result["rows"]) == ["model", "raw pixels"]
        assert list(of_unit["differences"]) == list(result["differences"]) == ["model − raw pixels"]
        assert of_unit["units"] == sum(of_unit["classes"].values())
        for row in of_unit["rows"].values():
            for of_setting in row.values() if evaluation == "knn" else [row]:
                assert np.sum(of_setting["confusion"]) == of_unit["units"]
                tried = of_setting["val_balanced_accuracy"]
                assert list(tried) == [*RULES, *(["attention"] if evaluation == "linear" else [])]
                assert tried[of_setting["rule"]] == max(tried.values())
        assert f"rule: chosen by balanced accuracy on {of_unit['val_units']} validation {unit}" in finished.stdout
    assert f"by eye: {2 * patients} eyes of {patients} patients" in finished.stdout
    first = finished.stdout.index("by volume:")
    tables = finished.stdout[first : finished.stdout.index("ends rounded outwards")]
    assert max(map(len, tables.splitlines())) <= 80
    assert tables.count("model minus") == 3


def test_the_validation_scans_do_not_choose_for_themselves(call, tmp_path):
    finished = call("evaluation/knn.py", *VOLUMES, "--k", 3, "--split", "val", "--out", tmp_path)
    result = json.loads((tmp_path / "knn_val.json").read_text())
    assert {row["3"]["rule"] for row in result["by_unit"]["eye"]["rows"].values()} == {"mean"}
    assert "rule: mean, not chosen: the classified scans are those of validation" in finished.stdout


def test_a_folder_without_units_has_none(call, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in CLASSES:
            folder = tmp_path / "scans" / split / label
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(
                    folder / f"{split} {label} {i}.png"
                )
    common = ["--model", "random:test_resnet", "--image-size", 32, 32, "--bootstrap", 20, "--data", tmp_path / "scans"]
    common += ["--dataset.split", "official", "--out", tmp_path / "out"]
    for evaluation, options in (("knn", ["--k", 3]), ("linear", ["--fractions", 1, "--n-c", 3])):
        finished = call(f"evaluation/{evaluation}.py", *common, *options)
        assert finished.returncode == 0, finished.stderr
        assert "rule" not in finished.stdout
        (file,) = (tmp_path / "out").glob(f"{evaluation}*.json")
        result = json.loads(file.read_text())
        assert "by_unit" not in result
        assert ("val" in result["data"]["sets"]) == (evaluation == "linear")  # not even read by k-NN
