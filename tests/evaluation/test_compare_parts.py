"""Parts of the comparison on data whose answer is known."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.paired import LowestRecall
from evaluation.inputs.steps import StepCache
from evaluation.report.cases import choose_cases
from evaluation.report.findings import of_data
from evaluation.report.label_errors import cross_validated, find_suspects, rivals
from evaluation.report.severity import rank_correlation
from evaluation.report.table import columns, is_urgency_known
from evaluation.scores.embeddings import nearest


@pytest.fixture
def groups():
    """Features of 3 classes that are told apart, 60 patients of 4 scans each."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60).astype(str), 4)
    labels = np.repeat(np.arange(60) % 3, 4)
    features = 4 * np.eye(3, 8)[labels] + rng.normal(size=(240, 8))
    return features.astype(np.float32), labels, patients


def test_flipped_labels_come_first(groups):
    features, labels, patients = groups
    flipped = np.array([5, 77, 130, 201])
    given = labels.copy()
    given[flipped] = (labels[flipped] + 1) % 3
    doubts = find_suspects(features, given, patients, ("A", "B", "C"), c=1.0)
    worst = doubts.worst
    assert {suspect.scan for suspect in worst[:4]} == set(flipped.tolist())
    assert [suspect.margin for suspect in worst] == sorted(suspect.margin for suspect in worst)
    assert all(suspect.margin < 0 for suspect in worst)
    assert (doubts.suspected, doubts.judged, doubts.left_out) == (len(worst), 240, "")
    assert len(worst) <= 6  # at most two right ones beside the four wrong ones
    for suspect in worst[:4]:
        assert (suspect.given, suspect.suggested) == (given[suspect.scan], labels[suspect.scan])
        near = [neighbour.scan for neighbour in suspect.neighbours]
        similarities = [neighbour.similarity for neighbour in suspect.neighbours]
        assert len(near) == 5
        assert patients[suspect.scan] not in patients[near]
        assert (labels[near] == labels[suspect.scan]).mean() > 0.7
        assert similarities == sorted(similarities, reverse=True)


@pytest.mark.parametrize("of_rare", [4, 12])
def test_a_rare_class_without_a_wrong_label_is_not_accused(of_rare):
    """The rare class looks much like the common one: the classifier finds few of its scans, whose labels are right."""
    names, sizes = ("COMMON", "SECOND", "RARE"), (100, 40, of_rare)
    accused, wrong, found_wrong = 0, 0, 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        patients = np.repeat(np.arange(sum(sizes)).astype(str), 5)
        labels = np.repeat(np.repeat([0, 1, 2], sizes), 5)
        centres = 4 * np.eye(3, 16)
        centres[2] = centres[0] + 0.3 * centres[2]
        features = centres[labels] + np.repeat(0.7 * rng.normal(size=(sum(sizes), 16)), 5, axis=0)
        features = (features + rng.normal(size=features.shape)).astype(np.float32)
        flipped = rng.choice(np.flatnonzero(labels == 0), 10, replace=False)
        given = labels.copy()
        given[flipped] = 1
        doubts = find_suspects(features, given, patients, names, c=0.003, most=1000)
        accused += sum(suspect.given == 2 for suspect in doubts.worst)
        found_wrong += len({suspect.scan for suspect in doubts.worst} & set(flipped.tolist()))
        wrong += len(flipped)
        assert "RARE (" in doubts.left_out
        _, margin, _ = rivals(cross_validated(features, given, patients, 3, c=0.003), given)
        assert (margin[labels == 2] < -0.5).mean() > 0.2  # a fixed limit would accuse these
    assert accused == 0
    assert found_wrong >= 0.5 * wrong


def test_nobody_is_accused_by_a_classifier_that_knows_no_class():
    rng = np.random.default_rng(0)
    patients, labels = np.repeat(np.arange(60).astype(str), 4), np.repeat(np.arange(60) % 3, 4)
    features = 1.2 * np.eye(3, 16)[labels] + np.repeat(rng.normal(size=(60, 16)), 4, axis=0)
    features = (features + rng.normal(size=(240, 16))).astype(np.float32)
    assert find_suspects(features, labels, patients, ("A", "B", "C"), c=0.003).worst == []


def test_the_limit_of_doubt_is_that_of_the_other_class():
    """Class 1 is usually found with 0.6: more than that, and more than the given class, is a reason to doubt."""
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.45, 0.55], [0.4, 0.6], [0.4, 0.6]])
    rival, _, is_doubted = rivals(probabilities, np.array([0, 0, 0, 1, 1]))
    assert rival.tolist() == [1, 1, 1, 0, 0]
    assert is_doubted.tolist() == [False, True, False, False, False]


def test_cross_validation_never_saw_the_patient(groups):
    """Where every patient has its own features and a random class, nothing can be learnt from others."""
    _, _, patients = groups
    rng = np.random.default_rng(1)
    features = np.repeat(rng.normal(size=(60, 40)), 4, axis=0).astype(np.float32)
    labels = np.repeat(rng.integers(0, 2, 60), 4)
    probabilities = cross_validated(features, labels, patients, 2, c=100.0)
    assert 0.2 < (probabilities.argmax(axis=1) == labels).mean() < 0.8
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_margin_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    np.testing.assert_allclose(rivals(probabilities, np.array([0, 1]))[1], [0.5, -0.3])


def test_neighbours_are_of_other_patients(groups):
    features, labels, patients = groups
    near = nearest(features, patients, 7, queries=np.array([3, 100]))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row, i in enumerate((3, 100)):
        cosine = np.where(patients == patients[i], -2, unit @ unit[i])
        assert near[row].tolist() == np.argsort(-cosine)[:7].tolist()
    (suspect,) = find_suspects(features, np.where(np.arange(240) == 3, 1, labels), patients, "ABC", 1.0, most=1).worst
    similarities = [neighbour.similarity for neighbour in suspect.neighbours]
    near = [neighbour.scan for neighbour in suspect.neighbours]
    np.testing.assert_allclose(similarities, unit[near] @ unit[suspect.scan], atol=1e-5)


def test_rank_correlation_of_a_resample_is_that_of_its_scans():
    rng = np.random.default_rng(0)
    a = rng.normal(size=50)
    b = a + rng.normal(size=50)
    (plain,) = rank_correlation(np.ones((1, 50)), a, b)
    assert plain == pytest.approx(spearmanr(a, b).statistic)
    order = np.arange(50.0)
    weights = rng.integers(0, 3, (4, 50)).astype(float)
    np.testing.assert_allclose(rank_correlation(weights, order, order), 1)
    np.testing.assert_allclose(rank_correlation(weights, order, -order), -1)
    assert np.isnan(rank_correlation(np.ones((1, 50)), a, np.zeros(50)))


def test_cases_follow_their_rules_and_spread(groups):
    _, labels, patients = groups
    right = np.random.default_rng(2).random(240)
    cases = choose_cases(right, labels, patients, 9, seed=0, model="M")
    counts = {"seeded random": 3, "best": 2, "median": 2, "worst": 2}
    assert [case.rule for case in cases] == [rule for rule, count in counts.items() for _ in range(count)]
    by_rule = {rule: [case.scan for case in cases if case.rule == rule] for rule in counts}
    taken = by_rule["seeded random"]
    free = np.setdiff1d(np.arange(240), np.flatnonzero(np.isin(patients, patients[taken])))
    assert by_rule["best"][0] == free[right[free].argmax()]
    assert right[by_rule["worst"]].max() < 0.1 < 0.9 < right[by_rule["best"]].min()
    assert np.abs(right[by_rule["median"]] - np.median(right)).max() < 0.1
    for scans in by_rule.values():
        assert len(set(labels[scans].tolist())) == len(scans)
    assert len({patients[case.scan] for case in cases}) == 9
    assert cases == choose_cases(right, labels, patients, 9, seed=0, model="M")
    assert len(choose_cases(right[:3], labels[:3], patients[:3], 8, seed=0, model="M")) == 3


def test_steps_are_kept_by_what_they_depend_on(tmp_path, capsys):
    cache = StepCache(tmp_path / "new")
    made = [cache.json("a step", lambda x=x: {"value": x}, x=x) for x in (1, 2, 1)]
    assert made == [{"value": 1}, {"value": 2}, {"value": 1}]
    assert cache.made == ["a step", "a step"]
    for file in cache.folder.glob("*.npz"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    assert cache.json("a step", lambda: {"value": 1}, x=1) == {"value": 1}
    assert len(cache.made) == 3
    assert "damaged, made again" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert StepCache(blocked).json("s", lambda: 5) == 5  # costs time, not the result


def test_steps_of_another_model_are_other_steps(tmp_path):
    cache = StepCache(tmp_path)
    models = [cache.of(data="d").of(name, weights=name) for name in ("a", "b", "a")]
    values = [model.json("probe", lambda name=name: name) for model, name in zip(models, "abc", strict=True)]
    assert values == ["a", "b", "a"]
    assert cache.made == ["probe a", "probe b"]


def test_a_step_gives_back_the_dataclass_that_it_kept(tmp_path):
    """Nested, with a field whose key is another word, and a number that JSON has no word for."""
    lowest = LowestRecall("CNV", Interval(math.nan, reason="no scan"))
    kept = Kept(lowest, [Interval(1.0, 0.5, 2.0)], {"x": None, "y": Interval(3.0)}, None, [1, 2])
    for _ in range(2):
        given = StepCache(tmp_path).json("a step", lambda: kept, Kept)
        assert math.isnan(given.lowest.recall.point)
        assert given.lowest.recall.reason == "no scan"
        assert dataclasses.replace(given, lowest=lowest) == kept


@dataclasses.dataclass(frozen=True)
class Kept:
    lowest: LowestRecall
    intervals: list[Interval]
    by_name: dict[str, Interval | None]
    ms: float | None
    size: list[int]


def test_urgent_columns_need_classes_of_both_kinds():
    assert is_urgency_known(("CNV", "DME", "DRUSEN", "NORMAL"))
    assert is_urgency_known(("cnv", "normal"))
    assert not is_urgency_known(("CNV", "DME"))
    assert not is_urgency_known(("CNV", "AMD", "NORMAL"))
    assert not [column for column in columns((5,), ("AMD", "NORMAL")) if column.key.startswith("urgent")]


def test_leaks_and_wrong_labels_are_serious():
    report = {
        "scans": {"usable": 10},
        "patients": {
            "count": 5,
            "shared_between_splits": {
                "used: train and test": {"patients": ["7"], "scans": {"train": 2, "test": 1}},
                "published: train and test": {"patients": ["7"], "scans": {"train": 2, "test": 1}},
            },
            "in_several_classes": [],
        },
        "eyes": {"at_one_visit": [{"patient": "3", "eye": "R", "visit": "1"}], "over_visits": []},
        "duplicates": {
            "exact": {"groups": [["a", "b"]], "surplus_scans": 1, "across_classes": [["a", "b"]]},
            "near": {"pairs": []},
        },
        "borders": {"neutralised": True},
        "shortcut": {"results": [], "classes_left_out": []},
        "left_out": [{"file": "x", "reason": "not an image"}],
        "mislabelled": [],
        "notes": [],
    }
    findings = of_data(report)
    assert [finding.kind for finding in findings] == ["leak", "other", "duplicates", "duplicates", "shortcut", "files"]
    serious = [finding.text for finding in findings if finding.serious]
    assert "(e.g. patient 3, R, visit 1)" in findings[1].text
    assert "1 patient with scans in train and test" in serious[0]
    assert "at least one label is wrong" in serious[1]
    assert len(serious) == 2
