"""Several labels a scan, and numbers to predict: the scores, what fits them, and the commands as a user runs them."""

import json
import re

import numpy as np
import pytest
import torch
from labelled_phantoms import COLUMNS, NAMES, write_labelled
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score, roc_auc_score

from dino_oct.errors import InputError
from dino_oct.knn import knn_votes, label_votes
from dino_oct.scores.bootstrap import PatientBootstrap, Support
from dino_oct.scores.classification import auroc, ranking
from dino_oct.scores.label_units import compare_label_units, group_labels
from dino_oct.scores.multilabel import compare_labels, describe, macro_average_precision, rank_all, unlearned
from dino_oct.scores.probes import choose_labels, logistic_labels, one_vs_rest, ridge_path, sgd_epochs
from dino_oct.scores.regression import compare_numbers, score_numbers

RNG = np.random.default_rng
UNKNOWN = -1


def some_labels(n=120, labels=3, seed=0):
    """Features, labels that lie in them, some unknown, and patients of four scans."""
    rng = RNG(seed)
    features = rng.normal(size=(n, 8))
    values = (features[:, :labels] + rng.normal(size=(n, labels)) > 0.5).astype(np.int8)
    values[rng.random((n, labels)) < 0.2] = UNKNOWN
    return features, values, np.repeat(np.arange(n // 4), 4)


# Scores


@pytest.mark.parametrize("digits", [1, 8])  # one digit: many scans of one score
def test_auroc_and_average_precision_are_scikit_learns(digits):
    rng = RNG(digits)
    scores, positive = np.round(rng.normal(size=150), digits), rng.random(150) < 0.2
    weights = np.concatenate([np.ones((1, 150)), rng.integers(0, 3, (4, 150))])
    for row, (area, precision) in zip(weights, ranking(weights, positive, scores), strict=True):
        assert area == pytest.approx(roc_auc_score(positive, scores, sample_weight=row), abs=1e-12)
        assert precision == pytest.approx(average_precision_score(positive, scores, sample_weight=row), abs=1e-12)
    assert np.array_equal(ranking(weights, positive, scores)[:, 0], auroc(weights, positive, scores))


def test_scores_of_a_label_are_those_of_the_scans_that_know_it():
    """Changing a score where the label is not known changes nothing; elsewhere it does."""
    features, values, _ = some_labels()
    scores, weights = features[:, :3], np.ones((1, len(values)))
    (result,) = rank_all(weights, values, scores)
    for i in range(3):
        known = values[:, i] >= 0
        expected = [score(values[known, i], scores[known, i]) for score in (roc_auc_score, average_precision_score)]
        assert result[i] == pytest.approx(100 * np.array(expected), abs=1e-9)
    moved = np.where(values < 0, 99.0, scores)
    assert np.array_equal(rank_all(weights, values, moved)[0], result)
    assert not np.array_equal(rank_all(weights, values, np.where(values == 0, 99.0, scores))[0], result)
    assert macro_average_precision(values, scores) == pytest.approx(result[:, 1].mean())


def test_compared_labels_have_intervals_by_patient_and_paired_differences():
    features, values, patients = some_labels()
    scores = {"a": {0: features[:, :3]}, "b": {0: features[:, :3] + RNG(1).normal(size=(len(values), 3))}}
    compared = compare_labels(scores, values, patients, ["x", "y", "z"], bootstrap=200)
    for name in "xyz":
        a, b = (compared.rows[row][0].labels[name] for row in "ab")
        difference = compared.differences["a − b"][0].labels[name]
        for metric in ("auroc", "average_precision"):
            one, other, both = (getattr(ranking, metric) for ranking in (a, b, difference))
            assert 0 <= one.low < one.point < one.high <= 100
            assert both.point == pytest.approx(one.point - other.point)
            # Paired: narrower than of two that are not of the same scans.
            assert both.high - both.low < (one.high - one.low) + (other.high - other.low)
    of_labels = [ranking.auroc.point for ranking in compared.rows["a"][0].labels.values()]
    assert compared.rows["a"][0].macro.auroc.point == pytest.approx(np.mean(of_labels))
    scans_alone = compare_labels(scores, values, np.arange(len(values)), ["x", "y", "z"], bootstrap=200)
    assert scans_alone.rows["a"][0].macro.auroc != compared.rows["a"][0].macro.auroc


def test_the_mean_of_equal_labels_is_no_surer_than_one_of_them():
    features, values, patients = some_labels(labels=1)
    one = compare_labels({"a": {0: features[:, :1]}}, values, patients, ["x"], bootstrap=200)
    scores, often = (np.repeat(rows, 9, axis=1) for rows in (features[:, :1], values))
    many = compare_labels({"a": {0: scores}}, often, patients, list("abcdefghi"), bootstrap=200)
    mean, alone = (compared.rows["a"][0].macro.auroc for compared in (many, one))
    assert (mean.low, mean.point, mean.high) == pytest.approx((alone.low, alone.point, alone.high))
    bootstrap = PatientBootstrap(patients)
    support = bootstrap.support(values[:, 0])
    assert vars(Support.of_mean([support] * 5)) == pytest.approx(vars(support))


def test_a_label_that_cannot_be_judged_is_said_in_words():
    values = np.array([[1, 0, UNKNOWN, 1], [0, 0, UNKNOWN, 1], [1, 0, UNKNOWN, 0], [0, 0, UNKNOWN, 0]], np.int8)
    compared = compare_labels(
        {"a": {0: RNG(0).random((4, 4))}}, values, np.array([1, 1, 2, 2]), ["has", "none", "unknown", "taught"],
        unfitted={"taught": "no training scan has it"}, bootstrap=20,
    )  # fmt: skip
    assert list(compared.rows["a"][0].labels) == ["has"]
    assert compared.rows["a"][0].macro.auroc.point == compared.rows["a"][0].labels["has"].auroc.point
    assert {name: label.undefined for name, label in compared.labels.items()} == {
        "has": "",
        "none": "none of the 4 scans to judge has it",
        "unknown": "known of no scan to judge",
        "taught": "no training scan has it",
    }
    assert "none: none of the 4 scans to judge has it, so it has no scores" in compared.notes
    assert describe(np.ones(3, np.int8), np.arange(3)).undefined == "all 3 scans to judge have it"
    assert unlearned(values, ["has", "none", "unknown", "taught"]) == {
        "none": "no training scan has it",
        "unknown": "known of no training scan",
    }
    assert unlearned(np.ones((2, 1)), ["x"]) == {"x": "every training scan has it"}


def test_numbers_are_scored_as_scikit_learn_and_scipy_do():
    rng = RNG(0)
    truth, predicted = rng.normal(size=60) + 50, rng.normal(size=60) + 50
    predicted += 0.5 * truth - 25
    weights = np.concatenate([np.ones((1, 60)), rng.integers(0, 3, (3, 60))])
    for row, (left, _, error) in zip(weights, score_numbers(weights, truth, predicted), strict=True):
        assert 1 - left == pytest.approx(r2_score(truth, predicted, sample_weight=row))
        assert error == pytest.approx(mean_absolute_error(truth, predicted, sample_weight=row))
    assert score_numbers(weights, truth, predicted)[0, 1] == pytest.approx(spearmanr(truth, predicted).statistic)
    assert np.isnan(score_numbers(weights, np.full(60, 0.1), predicted)[:, 0]).all()  # nothing varies
    rows, differences = compare_numbers({"a": predicted, "b": truth + 1}, truth, np.arange(60) // 3, bootstrap=100)
    assert rows["a"].r2.low < rows["a"].r2.point < rows["a"].r2.high <= 1
    assert differences["a − b"].r2.point == pytest.approx(rows["a"].r2.point - rows["b"].r2.point)
    assert rows["b"].spearman.point == pytest.approx(1)
    assert rows["b"].error.point == pytest.approx(1)


# Fits


def test_each_label_is_scikit_learns_logistic_regression_of_the_scans_that_know_it():
    features, values, _ = some_labels()
    x = torch.from_numpy(features)
    for c, classifier in logistic_labels(x, values, [0.1, 10.0]).items():
        probabilities = classifier.probabilities(x)
        for i in range(3):
            known = values[:, i] >= 0
            expected = LogisticRegression(C=c, tol=1e-9, max_iter=5000).fit(features[known], values[known, i])
            np.testing.assert_allclose(probabilities[:, i], expected.predict_proba(features)[:, 1], atol=2e-3)


def test_one_setting_is_chosen_for_all_labels_by_mean_average_precision():
    features, values, _ = some_labels()
    values[:, 2] = UNKNOWN  # cannot be learned, and does not hinder the others
    x = torch.from_numpy(features.astype(np.float32))
    fits = one_vs_rest(lambda *data: sgd_epochs(*data, epochs=4), x, values)
    choice = choose_labels(fits, x[:50], values[:50])
    assert choice.average_precisions[choice.setting] == max(choice.average_precisions.values())
    scores = fits[choice.setting].probabilities(x[:50])
    assert np.isnan(scores[:, 2]).all()
    of_learned = macro_average_precision(values[:50, :2], scores[:, :2])
    assert choice.average_precisions[choice.setting] == pytest.approx(of_learned)
    nothing = choose_labels(fits, x[:1], np.array([[1, UNKNOWN, UNKNOWN]], np.int8))  # log-loss is left
    best = min(fits, key=lambda setting: -np.log(fits[setting].probabilities(x[:1])[0, 0]))
    assert nothing.setting == best


@pytest.mark.parametrize("n", [120, 5])
def test_ridge_is_scikit_learns(n):
    features, _, _ = some_labels()
    targets = features[:n] @ np.arange(8.0) + 5 + RNG(1).normal(size=n)
    x, y = torch.from_numpy(features[:n]), torch.from_numpy(targets)
    for c, (weight, bias) in ridge_path(x, y, [1e-3, 1, 1e3]).items():
        expected = Ridge(alpha=1 / c).fit(features[:n], targets)
        np.testing.assert_allclose(weight, expected.coef_, atol=1e-8)
        assert bias == pytest.approx(expected.intercept_)


def test_votes_for_a_label_are_those_of_the_scans_that_know_it():
    features, values, patients = some_labels()
    train, test = features[:80], features[80:]
    own = patients[:80], patients[78:118]
    for apart in (None, own):
        votes = label_votes(train, values[:80], test, [3, 7], patients=apart)
        for i in range(3):
            known = values[:80, i] >= 0
            voting = (apart[0][known], apart[1]) if apart else None
            expected = knn_votes(train[known], values[:80][known, i], test, [3, 7], 2, patients=voting)
            for k in (3, 7):
                np.testing.assert_allclose(votes[k][:, i], expected[k][:, 1])
    empty = values[:80].copy()
    empty[:, 1] = UNKNOWN
    assert np.isnan(label_votes(train, empty, test, [3])[3][:, 1]).all()
    with pytest.raises(InputError, match="k = 70"):
        label_votes(train, values[:80], test, [70])


# Units


def test_a_unit_has_a_label_if_any_of_its_scans_has_it():
    keys = np.array(["b", "a", "b", "a", "", "c"])
    values = np.array([[0, 1], [0, UNKNOWN], [1, UNKNOWN], [0, 0], [1, 1], [UNKNOWN, 0]])
    grouped = group_labels(keys, values, np.array([2, 1, 2, 1, 9, 3]))
    assert grouped.unit_of_scan.tolist() == [1, 0, 1, 0, -1, 2]
    assert grouped.values.tolist() == [[0, UNKNOWN], [1, 1], [UNKNOWN, 0]]
    assert grouped.patients.tolist() == [1, 2, 3]


def test_units_are_judged_by_the_rule_that_is_best_on_validation_units():
    """One scan of a unit shows the label; the others' scores are noise of one mean, so the highest score tells."""
    rng = RNG(0)
    keys = np.repeat(np.arange(40), 6).astype(str)
    values = np.zeros((240, 1), int)
    values[:120:6] = 1
    scores = np.where(values == 1, 0.9, rng.uniform(0, 0.8, (240, 1)))
    scores[~values.astype(bool)[:, 0] & (np.arange(240) < 120)] *= 0.5  # their mean is below that of the others
    grouped = group_labels(keys, values, keys)
    by_set = {"queries": scores, "val": scores}
    arguments = {"unfitted": {}, "bootstrap": 50}
    result = compare_label_units({"a": {3: by_set}}, {"eye": {"queries": grouped, "val": grouped}}, ["x"], **arguments)
    assert result["eye"].of(3).rules == {"a": "max"}
    assert result["eye"].of(3).rows["a"].macro.auroc.point == 100
    assert result["eye"].labels["x"].scans == 40
    mean = compare_label_units({"a": {3: by_set}}, {"eye": {"queries": grouped}}, ["x"], **arguments)["eye"]
    assert mean.rules == {"a": {3: "mean"}}
    expected = roc_auc_score(grouped.values[:, 0], [scores[keys == name].mean() for name in np.unique(keys)])
    assert mean.rows["a"][3].macro.auroc.point == pytest.approx(100 * expected)


# Commands


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("labelled") / "phantoms")


def test_the_linear_probe_of_several_labels_and_a_target(trained, labelled, call, tmp_path):
    words = ("--model", trained, "--data", labelled, *COLUMNS, "--bootstrap", 100, "--out", tmp_path)
    finished = call("evaluation/linear.py", *words)
    assert finished.returncode == 0, finished.stderr
    for text in ("5 labels (cysts, drusen, fluid, hole, thickening), 1 target (thickness)", "PHANTOMS: synthetic scans",
                 "fluid       6 (4)", "mean of 4", "model minus", "points of mean AUROC over 4 labels",
                 "training median", "hole: no training scan has it", "C, one for all labels"):  # fmt: skip
        assert text in finished.stdout, finished.stdout
    assert "nan" not in finished.stdout
    tables = [line for line in finished.stdout.splitlines() if "]" in line and "data:" not in line]
    assert max(map(len, tables[:-4])) <= 80
    result = json.loads((tmp_path / "linear_fast_test.json").read_text())
    assert list(result["rows"]) == ["model", "starting weights", "raw pixels"]
    assert result["labels"]["fluid"] == {
        "scans": 12, "patients": 8, "positive": 6, "positive_patients": 4, "prevalence": 50.0, "undefined": "",
    }  # fmt: skip
    model, pixels = result["rows"]["model"], result["rows"]["raw pixels"]
    assert list(model["labels"]) == list(NAMES)
    for name in NAMES:
        for metric in ("auroc", "average_precision"):
            of_rows = (model, pixels, result["differences"]["model − raw pixels"])
            of_model, of_pixels, difference = (row["labels"][name][metric]["point"] for row in of_rows)
            assert difference == pytest.approx(of_model - of_pixels)
    assert model["val_average_precision"][str(model["setting"])] == max(model["val_average_precision"].values())
    assert "by patient, model" in finished.stdout
    assert set(result["by_unit"]) == {"patient"}
    assert result["by_unit"]["patient"]["labels"]["drusen"]["scans"] == 8
    target = result["targets"]["thickness"]
    assert target["target"]["scans"] == 12
    assert set(target["rows"]["model"]) == {"r2", "spearman", "error"}


def test_votes_of_several_labels(trained, labelled, call, tmp_path):
    ragged = write_labelled(labelled.parent / "again", wide=False)
    words = ("--model", trained, "--k", 3, 5, "--bootstrap", 50, "--controls", False, "--out", tmp_path)
    finished = call("evaluation/knn.py", "--data", ragged, *words)
    assert finished.returncode == 0, finished.stderr
    assert "5 labels (cysts, drusen, fluid, none, thickening)" in finished.stdout
    result = json.loads((tmp_path / "knn_test.json").read_text())
    assert list(result["rows"]["model"]) == ["3", "5"]
    assert set(result["labels"]) == {*NAMES, "none"}
    assert "k=3: model" in finished.stdout
    assert "mean of 5" in finished.stdout


def test_a_target_alone_and_a_target_beside_classes(trained, labelled, call, tmp_path):
    words = ("--model", trained, "--bootstrap", 50, "--controls", False, "--out", tmp_path, "--fractions", 1)
    finished = call("evaluation/linear.py", "--data", labelled, "--dataset.columns", "targets=thickness", *words)
    assert finished.returncode == 0, finished.stderr
    assert "thickness: 12 scans of 8 patients" in finished.stdout
    assert "AUROC" not in finished.stdout
    lines = labelled.read_text().splitlines()
    classes = [line.split("/")[1] for line in lines[1:]]
    table = labelled.with_name("classes.csv")
    table.write_text("\n".join([lines[0] + ",label", *map(",".join, zip(lines[1:], classes, strict=True))]))
    finished = call("evaluation/linear.py", "--data", table, "--dataset.columns", "targets=thickness", *words)
    assert finished.returncode == 0, finished.stderr
    assert "thickness: 12 scans of 8 patients" in finished.stdout
    assert "recall %" in finished.stdout
    assert json.loads((tmp_path / "linear_fast_test.json").read_text())["targets"]["thickness"]["fitted"] > 10


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("evaluation/knn.py", ["targets=thickness"], "numbers and no classes; dino-oct linear predicts numbers"),
        ("evaluation/gradcam.py", ["labels=fluid,drusen"], "a scan may have several labels .drusen, fluid."),
        ("evaluation/occlusion.py", ["labels=fluid,drusen"], "one class a scan: give --dataset.columns label="),
        ("evaluation/relevance.py", ["labels=fluid,drusen"], "this command takes one class a scan"),
        ("evaluation/side_by_side.py", ["labels=fluid,drusen"], "this command takes one class a scan"),
        ("evaluation/localization.py", ["labels=fluid,drusen"], "this command takes one class a scan"),
        ("evaluation/compare.py", ["labels=fluid,drusen"], "this command takes one class a scan"),
        ("evaluation/linear.py", ["labels=hole"], "no label can be learned: hole: no training scan has it"),
    ],
)
def test_what_takes_one_class_a_scan_says_so_in_one_line(trained, labelled, call, tmp_path, script, words, message):
    options = ("--model", trained, "--data", labelled, "--out", tmp_path / "out")
    refused = call(script, *options, "--dataset.columns", *words)
    assert refused.returncode == 2
    assert re.search(message, refused.stderr)
    assert refused.stderr.count("\n") == 1


def test_what_needs_no_class_goes_on_without(trained, labelled, call, tmp_path):
    options = ("--model", trained, "--data", labelled, *COLUMNS, "--out", tmp_path / "out", "--n", 2)
    finished = call("evaluation/attention.py", *options)
    assert finished.returncode == 0, finished.stderr


def test_other_scans_must_have_one_class_each(trained, labelled, call, tmp_path):
    several, classes = ("--data", labelled, *COLUMNS), ("--data", labelled.parent)
    words = ("--model", trained, "--out", tmp_path, "--external")
    ragged = write_labelled(labelled.parent.parent / "ragged", wide=False)
    for options in ((*several, *words, labelled.parent), (*classes, *words, ragged)):
        refused = call("evaluation/linear.py", *options)
        assert refused.returncode == 2
        assert re.search("--external.* (one class a scan|several labels)", refused.stderr)
