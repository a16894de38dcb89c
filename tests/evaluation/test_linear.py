"""The linear probe: its optimum, what chooses its setting, and the command as a user runs it."""

import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from dino_oct.cli import parse_options
from dino_oct.data.phantom import phantom_folder
from dino_oct.errors import InputError
from dino_oct.scores.paired import ScanSet
from dino_oct.scores.probes import (
    WITHIN,
    choose,
    choose_within,
    draw_patients,
    logistic_path,
    patient_folds,
    sgd_epochs,
)
from evaluation import linear
from evaluation.config import LinearOptions as Options
from evaluation.inputs.sources import read_run
from evaluation.protocols.linear import Features, fit_probe, label_curves

CS = (1e-4, 1e-2, 1.0, 100.0)
OF_CS = Options(c_range=(CS[0], CS[-1]), n_c=len(CS))


def overlapping(scans: int, dims: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four classes that overlap, in dimensions of different spread that are correlated."""
    rng = np.random.default_rng(seed)
    labels = np.arange(scans) % 4
    hidden = rng.normal(size=(scans, dims)) * np.arange(1, dims + 1) ** -0.5
    hidden[:, :4] += 0.5 * np.eye(4)[labels]
    return hidden @ np.random.default_rng(9).normal(size=(dims, dims)) / np.sqrt(dims) + 0.3, labels


@pytest.mark.parametrize(("scans", "dims"), [(400, 30), (60, 200)])
def test_the_path_is_scikit_learns_optimum(scans, dims):
    features, labels = overlapping(scans, dims)
    exact = logistic_path(torch.from_numpy(features), labels, 4, CS, tolerance=1e-8, max_iterations=2000)
    for c, classifier in exact:
        expected = LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(features, labels)
        np.testing.assert_allclose(classifier.weight, expected.coef_, rtol=1e-3, atol=1e-4)
        probabilities = classifier.probabilities(torch.from_numpy(features))
        np.testing.assert_allclose(probabilities, expected.predict_proba(features), atol=1e-4)


def test_accuracies_at_the_working_precision_are_scikit_learns():
    features, labels = overlapping(1200, 40)
    train, test = features[:600].astype(np.float32), features[600:].astype(np.float32)
    for c, classifier in logistic_path(torch.from_numpy(train), labels[:600], 4, CS):
        mine = classifier.probabilities(torch.from_numpy(test)).argmax(axis=1)
        other = LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(features[:600], labels[:600])
        assert (mine != other.predict(features[600:])).mean() <= 0.002  # 0.2 points of accuracy at most


def test_the_path_does_not_depend_on_where_it_starts():
    features, labels = overlapping(300, 20)
    x = torch.from_numpy(features)
    warm = dict(logistic_path(x, labels, 4, CS, tolerance=1e-9, max_iterations=1000))
    (_, cold), *_ = logistic_path(x, labels, 4, [1.0], tolerance=1e-9, max_iterations=1000)
    torch.testing.assert_close(warm[1.0].weight, cold.weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fit", [partial(logistic_path, cs=CS), partial(sgd_epochs, epochs=3)])
def test_a_class_without_training_scans_is_never_predicted_and_one_class_is_refused(fit):
    features, labels = overlapping(80, 10)
    x = torch.from_numpy(features.astype(np.float32))
    without = labels != 2
    for _, classifier in fit(x[without], labels[without], 4):
        probabilities = classifier.probabilities(x)
        assert (probabilities[:, 2] == 0).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    with pytest.raises(InputError, match="at least two"):
        list(fit(x, np.zeros(80, dtype=int), 4))


def test_sgd_learns_and_ends_with_a_learning_rate_of_nothing():
    features, labels = overlapping(800, 10)
    x = torch.from_numpy(20 * features.astype(np.float32))
    epochs = dict(sgd_epochs(x, labels, 4, epochs=40, batch_size=64))
    assert list(epochs) == list(range(1, 41))
    best = LogisticRegression(C=100, max_iter=5000).fit(features, labels).score(features, labels)
    assert (epochs[40].probabilities(x).argmax(axis=1) == labels).mean() > best - 0.04
    moved = [float((epochs[e].weight - epochs[e - 1].weight).norm()) for e in (2, 40)]
    assert moved[1] < 0.05 * moved[0]


def split_features(rng_seed: int = 0) -> tuple[Features, dict[str, ScanSet]]:
    features, labels = overlapping(600, 30, rng_seed)
    rows, sets, start = [], {}, 0
    for name, count in (("train", 200), ("val", 200), ("queries", 200)):
        part = slice(start, start + count)
        rows.append(features[part].astype(np.float32))
        sets[name] = ScanSet(labels[part], np.array([f"{name}{i // 8}" for i in range(count)]))
        start += count
    return Features(*rows), sets


def test_the_setting_is_chosen_by_validation_alone():
    features, sets = split_features()
    cs, everything = np.logspace(-5, 2, 8).tolist(), np.arange(200)
    options = Options(c_range=(cs[0], cs[-1]), n_c=len(cs))
    choice, scores = fit_probe(features, sets["train"], sets["val"], everything, options, 4)
    assert list(choice.accuracies) == cs
    assert choice.accuracies[choice.setting] == max(choice.accuracies.values())
    assert len(set(choice.accuracies.values())) > 2
    rng = np.random.default_rng(1)
    other_test = Features(features.train, features.val, rng.normal(size=(50, 30)).astype(np.float32))
    same, other_scores = fit_probe(other_test, sets["train"], sets["val"], everything, options, 4)
    assert same.setting == choice.setting
    assert torch.equal(same.classifier.weight, choice.classifier.weight)
    assert (len(scores), len(other_scores)) == (200, 50)
    # Other validation labels choose otherwise: the worst of before is then the best.
    candidates = list(logistic_path(torch.from_numpy(features.train), sets["train"].labels, 4, cs))
    val = torch.from_numpy(features.val)
    for c, classifier in (candidates[0], candidates[4]):
        wanted = classifier.probabilities(val).argmax(axis=1)
        assert choose(iter(candidates), val, wanted).accuracies[c] == 100


def test_few_labels_choose_their_setting_among_themselves():
    """Labels of validation patients beside a few training patients would make the few many."""
    features, sets = split_features()
    train = sets["train"]
    few = np.flatnonzero(np.isin(train.patients, np.unique(train.patients)[:6]))  # of 8 scans of all four classes
    choice, scores = fit_probe(features, train, None, few, OF_CS, 4)
    assert choice.by == WITHIN
    nothing = Features(features.train, np.full_like(features.val, np.nan), features.queries)
    same, same_scores = fit_probe(nothing, train, None, few, OF_CS, 4)
    assert same.setting == choice.setting
    np.testing.assert_array_equal(same_scores, scores)
    # The setting is that of the highest balanced accuracy on patients that were held out.
    x, labels, patients = (part[few] for part in (features.train, train.labels, train.patients))
    fit = partial(logistic_path, cs=CS)
    inside = choose_within(fit, torch.from_numpy(x), labels, patients, 4)
    assert list(inside.accuracies) == list(CS)
    assert inside.accuracies[inside.setting] == max(inside.accuracies.values())
    # Where patients are recognised rather than classes, held-out patients tell: 25 % by chance, not 100.
    rng = np.random.default_rng(0)
    own = np.repeat(rng.normal(size=(40, 30)), 5, axis=0) + 1e-3 * rng.normal(size=(200, 30))
    names, classes = np.repeat([f"p{i}" for i in range(40)], 5), np.repeat(rng.permutation(np.arange(40) % 4), 5)
    assert max(choose_within(fit, torch.from_numpy(own), classes, names, 4).accuracies.values()) < 60


def test_the_setting_is_fixed_where_a_class_has_one_patient():
    labels, patients = np.array([0, 0, 0, 1, 1]), np.array(["a", "b", "b", "c", "c"])
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3)))
    choice = choose_within(partial(logistic_path, cs=CS), x, labels, patients, 2, fallback=1.0)
    assert choice.setting == 1
    assert "fixed at 1, as a class has one patient only" in choice.by
    last = choose_within(partial(sgd_epochs, epochs=3), x.float(), labels, patients, 2)
    assert last.setting == 3


def test_folds_hold_whole_patients_and_leave_every_class_to_learn_from():
    labels = np.repeat(np.repeat([0, 1, 2], [9, 3, 2]), 3)
    patients = np.repeat([f"p{i}" for i in range(14)], 3)
    fold = patient_folds(labels, patients)
    assert len(set(fold.tolist())) == 5
    for k in range(5):
        assert not set(patients[fold == k]) & set(patients[fold != k])
        assert set(labels[fold != k].tolist()) == {0, 1, 2}
    assert patient_folds(labels[:-3], patients[:-3]) is None


def test_draws_are_of_whole_patients_and_hold_every_class():
    labels = np.repeat([0] * 60 + [1] * 30 + [2] * 9 + [3], 3)
    patients = np.repeat([f"p{i}" for i in range(100)], 3)
    for fraction, expected in ((0.001, 4), (0.05, 5), (0.5, 50), (1.0, 100)):
        drawn = [draw_patients(labels, patients, fraction, np.random.default_rng(seed)) for seed in range(5)]
        for positions in drawn:
            assert set(labels[positions]) == {0, 1, 2, 3}
            assert len(set(patients[positions])) == expected
            assert len(positions) == 3 * expected
        assert len({tuple(positions) for positions in drawn}) == (1 if fraction == 1 else 5)


def test_more_labels_do_better_and_rows_share_their_draws():
    features, sets = split_features()
    options = dataclasses.replace(OF_CS, fractions=(1.0, 0.04))
    draws = {"a": [], "b": []}

    def fit_row(name, labelled, within):
        draws[name].append(labelled.tolist())
        return fit_probe(features, sets["train"], None if within else sets["val"], labelled, options, 4)

    curve = label_curves(fit_row, ["a", "b"], sets["train"], sets["queries"], options)
    assert draws["a"] == draws["b"]
    assert [(point.fraction, len(point.patients)) for point in curve] == [(0.04, 3), (1.0, 1)]
    assert [set(point.setting_by) for point in curve] == [
        {"fixed at 1, as a class has one patient only"},
        {"validation patients"},
    ]
    few, everything = (point.rows["a"].accuracy for point in curve)
    assert few.low <= few.mean <= few.high < everything.mean


def test_the_command(trained, call):
    finished = call("evaluation/linear.py", "--model", trained, "--bootstrap", 200, "--fractions", 0.25, 1)
    assert finished.returncode == 0, finished.stderr
    for words in ("PHANTOMS: synthetic scans", "starting weights", "raw pixels", "model − raw pixels", "accuracy %",
                  "linear probe: the model", "16 scans of 4 patients", "25 % labels (4 p.)", "C chosen: val",
                  "4 patients are few", "sha256", "as a class has one patient only; 100 %: validation patients",
                  "lowest recall %", "always "):  # fmt: skip
        assert words in finished.stdout, finished.stdout
    folder = trained / "evaluation" / "linear"
    result = json.loads((folder / "linear_fast_test.json").read_text())
    # What was evaluated, its numbers, what they say.
    assert list(result) == ["evaluation", "model", "weights", "data", "settings", "units", "rows", "differences",
                            "by_unit", "majority", "label_fractions", "external", "verdicts", "notes"]  # fmt: skip
    assert list(result["rows"]) == ["model", "starting weights", "raw pixels"]
    for name, row in result["rows"].items():
        assert row["accuracy"]["low"] <= row["accuracy"]["point"] <= row["accuracy"]["high"]
        assert np.sum(row["confusion"]) == 16
        tried = row["val_balanced_accuracy"]
        assert len(tried) == 20
        assert tried[str(row["setting"])] == max(tried.values())
        all_labels = result["label_fractions"][-1]["rows"][name]["accuracy"]
        assert all_labels["mean"] == pytest.approx(row["accuracy"]["point"])
        assert row["lowest_recall"]["recall"]["point"] == min(recall["point"] for recall in row["recall"].values())
    few, every = result["label_fractions"]
    assert [text.split(",")[0] for text in few["setting_by"]] == ["fixed at 1.43845"] * 3
    assert every["setting_by"] == ["validation patients"]
    assert all(setting == pytest.approx(1.43845) for setting in few["rows"]["model"]["setting"])
    with Image.open(folder / "linear_fast_test.png") as image:
        assert min(image.size) > 500


def test_the_dino_protocol_in_place(trained, cache_root, monkeypatch, capsys):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    args = ["--model", str(trained), "--protocol", "dino", "--epochs", "5", "--bootstrap", "0", "--fractions", "1"]
    linear.main(parse_options(Options, args))
    result = json.loads((trained / "evaluation" / "linear" / "linear_dino_test.json").read_text())
    assert result["settings"]["features"] == {"image_feature": False, "blocks": 2, "mean_patch": False}
    assert result["rows"]["model"]["features"] == 64
    assert result["rows"]["model"]["setting"] in range(1, 6)
    assert "epoch chosen: val" in capsys.readouterr().out
    # A second evaluation finds all features on disk.
    monkeypatch.setattr("evaluation.inputs.feature_cache.extract_all", lambda *args: pytest.fail("extracted again"))
    linear.main(parse_options(Options, args))


def test_scans_from_elsewhere_are_judged_and_not_fitted(trained, cache_root, monkeypatch, tmp_path, capsys):
    """The same scans under other class names are judged as the same scans."""
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    scans = phantom_folder(read_run(trained).phantom, cache_root)
    for name, theirs in (("NORMAL", "NO"), ("DME", "Oedema"), ("CNV", "CNV")):
        shutil.copytree(scans / "test" / name, tmp_path / "other" / theirs)
    args = ["--model", str(trained), "--bootstrap", "0", "--fractions", "1", "--controls", "False"]
    args += ["--out", str(tmp_path / "out"), "--external", str(tmp_path / "other")]
    linear.main(parse_options(Options, [*args, "--external-classes", "NORMAL=NO", "DME=Oedema"]))
    result = json.loads((tmp_path / "out" / "linear_fast_test.json").read_text())
    external, own = result["external"], result["rows"]["model"]
    sets = result["data"]["sets"]["queries"]["classes"]
    assert external["by_class"] == {name: sets[name]["scans"] for name in ("NORMAL", "DME")}
    for name in ("NORMAL", "DME"):
        assert external["rows"]["model"]["recall"][name]["point"] == own["recall"][name]["point"]
    assert "on other, from elsewhere: 8 scans" in capsys.readouterr().out
    for options, message in (
        ([], None),
        (["--external-classes", "NORMAL=NOPE"], "NOPE is no class of"),
        (["--external-classes", "HEALTHY=NO"], "HEALTHY is no class of"),
        (["--external-classes", "NORMAL"], "write OWN=THEIRS"),
    ):
        if message is None:  # classes of equal names
            linear.main(parse_options(Options, args))
            assert "(CNV " in capsys.readouterr().out.partition("from elsewhere")[2]
            continue
        with pytest.raises(InputError, match=message):
            linear.main(parse_options(Options, [*args, *options]))


def noise(file) -> None:
    pixels = np.random.default_rng(len(str(file))).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def test_wrong_input_exits_with_status_2(trained, call, tmp_path):
    for label in ("CNV", "NORMAL"):
        folder = tmp_path / "scans" / "train" / label
        folder.mkdir(parents=True)
        for i in range(3):
            noise(folder / f"{label}-{i}-1.png")
    finished = call(
        "evaluation/linear.py", "--model", trained, "--data", tmp_path / "scans", "--dataset.split", "official"
    )
    assert finished.returncode == 2, finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1, finished.stderr
    assert "no labelled scans in the val split" in finished.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "nowhere", "--data", "phantom", "--phantom.patients", "12", "--phantom.scans-per-patient", "4",
          "--phantom.size", "64", "64"], "nowhere: no such file or folder"),
        (["--model", "RUN", "--data", "ONE"], "needs at least two classes"),
        (["--model", "RUN", "--data", "ONE_TRAINED", "--dataset.split", "official"], "training scans of one class"),
        (["--model", "RUN", "--fractions", "0"], "--fractions 0.0: must be above 0 and at most 1"),
        (["--model", "RUN", "--c-range", "1", "0.1"], "--c-range 1.0 0.1: must have the smaller number first"),
        (["--model", "RUN", "--draws", "0"], "--draws 0: must be from 1 to 1,000"),
        (["--model", "RUN", "--image-size", "33", "32"], "image-size 33 32 is not a multiple"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line(args, message, trained, tmp_path, cache_root, monkeypatch):
    monkeypatch.setenv("DINO_OCT_CACHE", str(cache_root))
    one_class, one_trained = tmp_path / "one", tmp_path / "trained"
    for folder in (
        one_class / "CNV",
        *(one_trained / part for part in ("train/CNV", "val/CNV", "val/DME", "test/DME")),
    ):
        folder.mkdir(parents=True)
        for i in range(3):
            noise(folder / f"{folder.name}-{i}-1.png")
    names = {"RUN": trained, "ONE": one_class, "ONE_TRAINED": one_trained}
    with pytest.raises(InputError) as error:
        linear.main(parse_options(Options, [str(names.get(arg, arg)) for arg in args]))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
