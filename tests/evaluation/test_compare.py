"""The comparison report: numbers equal to those of the single commands, gaps with reasons, and steps done once."""

import contextlib
import csv
import importlib
import io
import json
import shutil

import numpy as np
import pytest
from conftest import SMALL_REPORT
from PIL import Image

from dino_oct.cli import parse_options
from dino_oct.data.phantom import phantom_folder
from dino_oct.errors import InputError
from dino_oct.scores.text import plain
from evaluation import compare
from evaluation.inputs.sources import newest_beside_start, read_run
from evaluation.maps import leaderboard as map_leaderboard
from evaluation.maps import rows as map_rows
from evaluation.report import answers as comparison_measures
from evaluation.report import comparison

RANDOM = "random:test_resnet"
COMMON = SMALL_REPORT[-4:]  # the resamples


def printed_by(module: str, args: list[object]) -> str:
    """What a command prints."""
    command = importlib.import_module(f"evaluation.{module}")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command.main(parse_options(command.Options, [str(arg) for arg in args]))
    return printed.getvalue()


@pytest.fixture(scope="module")
def own_cache(cache_root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINO_OCT_CACHE", str(cache_root))
        yield


@pytest.fixture(scope="module")
def folder(compared):
    return compared.folder


@pytest.fixture
def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_numbers_equal_those_of_the_single_commands(results, trained, tmp_path):
    """Accuracy, interval, recall and confusion of k-NN and linear probe."""
    shared = ["--model", trained, *COMMON, "--controls", False, "--out", tmp_path]
    printed_by("knn", [*shared, "--k", 3])
    printed_by("linear", [*shared, "--fractions", 1])
    whole = [json.loads((tmp_path / f"{name}_test.json").read_text()) for name in ("knn", "linear_fast")]
    knn, linear = (result["rows"] for result in whole)
    assert list(knn) == list(linear) == ["model"]  # no controls were asked for
    key = trained.name
    row, single = results["table"]["rows"][key], results["evaluations"][key]
    assert row["knn_3"] == knn["model"]["3"]["accuracy"]
    assert single["knn_3"]["confusion"] == knn["model"]["3"]["confusion"]
    for metric in ("accuracy", "balanced_accuracy", "macro_auroc"):
        assert row[f"linear_{metric}"] == linear["model"][metric]
    assert single["linear"]["setting"] == linear["model"]["setting"]
    by_patient = results["by_unit"]["patient"]
    assert list(results["by_unit"]) == ["patient"]
    of_knn, of_linear = (result["by_unit"]["patient"]["rows"]["model"] for result in whole)
    assert by_patient["rows"][key]["knn_3"] == of_knn["3"]
    assert by_patient["rows"][key]["linear"] == of_linear
    assert "attention" in of_linear["val_balanced_accuracy"]
    # The probe in a classifier's place is the same probe.
    assert results["confusions"][key]["counts"] == linear["model"]["confusion"]
    for name, recall in linear["model"]["recall"].items():
        assert row[f"recall_{name}"] == recall


def test_a_classifier_scores_as_in_its_own_test(fitted, own_cache, tmp_path):
    """A supervised run and an untrained network, on the supervised run's own scans."""
    models, nothing = [fitted, "random:test_resnet"], ["--cases", 0, "--leaderboard", 0]
    printed = printed_by("compare", [*models, "--k", 3, *nothing, "--seed", 0, "--out", tmp_path])
    results = json.loads((tmp_path / "results.json").read_text())
    tested = json.loads((fitted / "evaluation" / "supervised" / "supervised_test.json").read_text())
    row, expected = results["table"]["rows"][fitted.name], tested["rows"]["classifier"]
    for metric in ("accuracy", "balanced_accuracy", "macro_auroc", "calibration_error"):
        for end, value in expected[metric].items():
            assert row[f"classifier_{metric}"][end] == (value if value is None else pytest.approx(value, abs=1e-4))
    assert results["confusions"][fitted.name]["counts"] == expected["confusion"]
    assert results["models"]["random:test_resnet"]["kind"] == "random weights"
    assert "there is no self-supervised model to compare with" in results["verdict"]["headline"]
    assert not [warning for warning in results["warnings"] if warning["kind"] == "model"]
    assert "Self-supervised against supervised is NOT shown" in printed


def test_every_part_of_the_report_is_there(results, compared, trained, fitted):
    start = f"{trained.name}/start"
    kinds = {key: model["kind"] for key, model in results["models"].items()}
    assert kinds == {
        trained.name: "self-supervised",
        start: "starting weights",
        fitted.name: "supervised",
        RANDOM: "random weights",
    }
    assert results["models"][fitted.name]["classifier"] == "own"
    assert results["models"][trained.name]["classifier"] == results["models"][start]["classifier"] == "probe"
    columns = [column["key"] for column in results["table"]["columns"]]
    for key, row in results["table"]["rows"].items():
        assert list(row) == columns
        gaps = results["models"][key]["gaps"]
        groups = {column["key"]: column["group"] for column in results["table"]["columns"]}
        for column, value in row.items():  # a gap has its reason
            assert value is not None or column in gaps or groups[column] in gaps, (key, column)
    assert results["table"]["rows"][trained.name]["classifier_accuracy"] is None
    verdict = results["verdict"]
    assert (verdict["a"], verdict["b"]) == (trained.name, fitted.name)
    assert f"{verdict['patients']} patients" in verdict["headline"]
    assert "synthetic" in verdict["headline"]
    assert any("raw pixels" in text for text in verdict["sentences"])
    assert any("starting weights" in text for text in verdict["sentences"])
    kinds_of_warnings = [warning["kind"] for warning in results["warnings"]]
    assert kinds_of_warnings.index("size") > 0  # the audit of the data comes first
    of_models = [warning["text"] for warning in results["warnings"] if warning["kind"] == "model"]
    # The supervised run learnt from other phantoms: its classifier is no match for a probe fitted on these, and its
    # patients of equal numbers are other patients.
    (text,) = of_models
    assert f"{fitted.name}: the classifier was not trained on these scans" in text
    assert f"{fitted.name} with a linear probe" in " ".join(verdict["sentences"])
    assert {panel["model"] for panel in results["embedding"]["panels"]} == set(kinds)
    assert results["severity"]["measure"] == "phantom severity"
    assert results["league"]["best"] in [row["name"] for row in results["league"]["rows"]]
    assert [case["rule"] for case in results["cases"]] == [
        rule for rule in ("seeded random", "best", "median", "worst") for _ in range(2)
    ]
    shown = len(results["scans"]["file"])
    assert len(set(results["scans"]["file"])) == shown
    for case in results["cases"]:
        assert set(case["models"]) == set(kinds)
        assert set(case["models"][fitted.name]["maps"]) >= {"attention", "gradcam"}
    assert results["suspects"] is None
    assert "suspects: the labels of phantoms are exact, so none is doubted" in results["gaps"]
    for key, by_protocol in results["evaluations"].items():
        for protocol, result in by_protocol.items():
            lowest = result["lowest_recall"]
            assert lowest["recall"] == results["table"]["rows"][key][f"{protocol}_lowest_recall"]
            assert results["table"]["classes_of_lowest_recall"][key][f"{protocol}_lowest_recall"] == lowest["class"]
            assert bool(result["never_recognised"]) == (lowest["recall"]["point"] == 0)
    by_patient = results["by_unit"]["patient"]
    assert {key: set(of_model) for key, of_model in by_patient["rows"].items()} == {
        key: set(of_model) for key, of_model in results["evaluations"].items()
    }
    # The first model with each protocol against every other one that has it.
    others = [key for key in kinds if key != trained.name]
    assert list(by_patient["differences"]) == [f"{trained.name} − {key}" for key in others]
    assert "by patient: " in compared.printed
    most = results["verdict"]["majority"]
    assert any(f"Always naming {most['name']}" in text for text in verdict["sentences"])
    assert verdict["headline"] in compared.printed
    assert not [word for word in ("Traceback", "nan") if word in compared.printed]


def test_confusions_and_answers_open_the_scans_behind_them(results):
    labels = results["scans"]["label"]
    for key, confusion in results["confusions"].items():
        answers = results["answers"][key]
        assert sum(map(sum, confusion["counts"])) == len(answers["scans"]) == results["verdict"]["scans"]
        for pair in confusion["pairs"]:
            assert len(pair["scans"]) == confusion["counts"][pair["true"]][pair["called"]] > 0
            assert all(labels[i] == pair["true"] and answers["called"][i] == pair["called"] for i in pair["scans"])
        wrong = sum(len(pair["scans"]) for pair in confusion["pairs"])
        assert wrong == len(answers["scans"]) - sum(confusion["counts"][c][c] for c in range(len(confusion["counts"])))


def test_csv_and_figures_hold_the_same_numbers(results, folder):
    with (folder / "results.csv").open() as stream:
        rows = {row["model"]: row for row in csv.DictReader(stream)}
    assert list(rows) == list(results["models"])
    for key, row in rows.items():
        value = results["table"]["rows"][key]["linear_accuracy"]
        cells = [float(row[f"linear_accuracy{end}"]) for end in ("", "_low", "_high")]
        assert cells == [value["point"], value["low"], value["high"]]
    for figure in results["figures"]:
        with Image.open(folder / figure["file"]) as image:
            image.load()
        assert (folder / figure["file"]).with_suffix(".svg").is_file()


def test_a_calibration_error_is_that_of_its_reliability_diagram(results, folder):
    """Mean distance of a bin's accuracy from its stated probability, weighted by its scans; the figure of the first
    screen's two models names both."""
    two = results["overview"]
    shown = {(key, two["models"][key]["by"]) for key in (two["leader"], two["rival"])}
    assert len(shown) == 2
    drawn = (folder / "figures" / "reliability.svg").read_text()
    for key, by_protocol in results["reliability"].items():
        row, end = results["table"]["rows"][key], "_calibration_error"
        errors = {name.removesuffix(end): value for name, value in row.items() if name.endswith(end) and value}
        assert list(by_protocol) == list(errors)
        for protocol, diagram in by_protocol.items():
            assert len(diagram["counts"]) == 15
            assert sum(diagram["counts"]) == results["verdict"]["scans"]
            gaps = 0
            for i, count in enumerate(diagram["counts"]):
                confidence, accuracy = diagram["confidence"][i], diagram["accuracy"][i]
                assert (confidence is None) == (accuracy is None) == (count == 0)
                if count:
                    assert i / 15 <= confidence <= (i + 1) / 15
                    gaps += count * abs(accuracy - confidence)
            assert errors[protocol]["point"] == pytest.approx(100 * gaps / results["verdict"]["scans"])
            if (key, protocol) in shown:
                assert f"calibration error {errors[protocol]['point']:.1f} %" in drawn


def test_an_interrupted_report_goes_on_and_a_damaged_step_is_made_again(
    trained, fitted, results, own_cache, tmp_path, monkeypatch, capsys
):
    models = [str(trained), str(trained / "checkpoints" / "start"), str(fitted), RANDOM]
    args = [*models, *SMALL_REPORT, "--out", str(tmp_path)]
    options = parse_options(compare.Options, args)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "severity", interrupted)
        with pytest.raises(KeyboardInterrupt):
            comparison.compare(options)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("*.npz")}
    assert len(kept) > len(models) * 5
    assert not (tmp_path / "results.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(map_leaderboard, "deletion_insertion", interrupted)  # behind the choice of heads and the scores
        with pytest.raises(KeyboardInterrupt):
            comparison.compare(options)
    monkeypatch.setattr(map_rows, "make_maps", lambda *_: pytest.fail("the ranking's maps were made again"))
    monkeypatch.setattr(map_leaderboard, "RankedPixels", lambda *_: pytest.fail("maps were scored again"))
    damaged = next(file for file in kept if file.name.startswith("linear_"))
    damaged.write_bytes(damaged.read_bytes()[:-200])
    for name in ("_knn", "_classify"):
        monkeypatch.setattr(comparison_measures, name, lambda *_: pytest.fail("a finished step was repeated"))
    finished, _, cache = comparison.compare(options)
    assert [step.split()[0] for step in cache.made if step.split()[0] in ("linear", "knn", "embedding")] == ["linear"]
    assert "damaged, made again" in capsys.readouterr().err
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items() if file != damaged)
    again = plain(finished)
    for section in ("table", "confusions", "suspects", "severity", "embedding", "cases", "warnings"):
        if section == "table":  # the time of a pass is measured, not computed
            for row in (*again["table"]["rows"].values(), *results["table"]["rows"].values()):
                row.pop("ms_per_scan", None)
        assert again[section] == results[section], section


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no run under runs/"),
        (["RUN", "RUN/export"], "the same model as"),
        (["RUN", "RUN"], "name every model once"),
        (["RUN", "nowhere"], "nowhere: no such file or folder"),
        (["RUN", "--k", "999"], "k = 999: must be from 1 to"),
        (["RUN", "--cases", "-1"], "--cases -1: must be"),
        (["RUN", "--data", "ONE"], "needs at least two classes"),
        (["RUN", "--masks", "nowhere"], "no such folder of lesion masks"),
        (["RUN", "--methods", "gradcam", "gradcam"], "each once"),
    ],
)
def test_wrong_use_is_one_line(args, message, trained, own_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "one" / "CNV"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32), dtype=np.uint8)).save(
            folder / f"CNV-{i}-1.png"
        )
    given = [arg.replace("RUN", str(trained)).replace("ONE", str(folder.parent)) for arg in args]
    with pytest.raises(InputError) as error:
        printed_by("compare", [*given, "--out", tmp_path / "out"])
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_without_a_name_the_newest_run_is_compared_with_its_start(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs" / "tiny")
    assert newest_beside_start() == ("runs/tiny", "runs/tiny/checkpoints/start")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "checkpoints" / "start")
    assert newest_beside_start() == ("runs/tiny",)


def test_values_of_masks_reach_leaderboard_severity_and_cases(trained, own_cache, cache_root, tmp_path):
    """Scans that are no phantoms to the program, with masks of the same values."""
    shutil.copytree(phantom_folder(read_run(trained).phantom, cache_root), tmp_path / "scans")
    (tmp_path / "scans" / "phantom.json").unlink()
    common = [trained, "--data", tmp_path / "scans", "--dataset.split", "official", "--k", 3, "--cases", 4]
    common += ["--league", 2, "--methods", "attention", "--bootstrap", 20]  # the older name of --leaderboard

    def results_of(name, *values):
        printed_by("compare", [*common, *values, "--out", tmp_path / name])
        return json.loads((tmp_path / name / "results.json").read_text())

    narrow, wide = (
        results_of("narrow", "--lesion-values", 255, "--retina-values", 128),
        results_of("wide", "--lesion-values", 128, 255),
    )
    assert narrow["severity"]["measure"] == wide["severity"]["measure"] == "share of the scan in the lesion mask"
    for case, other in zip(narrow["cases"], wide["cases"], strict=True):
        assert case["scan"] == other["scan"]
        assert other["severity"] > 0.1 > case["severity"]
    shares = [
        next(row for row in results["league"]["rows"] if row["name"] == "random")["scores"]["auprc"]["point"]
        for results in (narrow, wide)
    ]  # of a random map: the lesion's share of the pixels
    assert shares[1] > 2 * shares[0]


def test_one_model_alone_gives_a_report_that_says_what_is_missing(trained, own_cache, tmp_path):
    printed_by("compare", [trained, "--k", 3, "--cases", 0, "--leaderboard", 0, "--bootstrap", 20, "--out", tmp_path])
    results = json.loads((tmp_path / "results.json").read_text())
    assert "there is no supervised model to compare with" in results["verdict"]["headline"]
    assert any("NOT shown" in text for text in results["verdict"]["sentences"])
    assert set(results["table"]["best"].values()) == {None}
    assert results["cases"] == []
    assert results["league"] is None
    assert {text.split(":")[0] for text in results["gaps"]} == {"explanations", "cases", "suspects"}


def test_models_are_judged_elsewhere_by_the_same_answers(trained, fitted, call, tmp_path, cache_root):
    """The same scans under another class name are judged as the same scans."""
    scans = phantom_folder(read_run(trained).phantom, cache_root)
    for name, theirs in (("NORMAL", "NO"), ("CNV", "CNV")):
        shutil.copytree(scans / "test" / name, tmp_path / "other" / theirs)
    args = ("evaluation/compare.py", trained, fitted, *SMALL_REPORT, "--leaderboard", "0", "--cases", "0")
    args += ("--out", tmp_path / "report", "--external", tmp_path / "other")
    done = call(*args, "--external-classes", "NORMAL=NO", "CNV=CNV")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    here, there = results["evaluations"], results["external"]["rows"]
    for key, protocol in zip(there, ("linear", "classifier"), strict=True):
        confusion, elsewhere = (np.array(of["confusion"]) for of in (here[key][protocol], there[key]))
        for c in (0, 3):  # CNV and NORMAL
            np.testing.assert_array_equal(confusion[c], elsewhere[c])
    assert "on other, from elsewhere" in done.stdout
    assert "Elsewhere: other" in (tmp_path / "report" / "report.html").read_text()
    assert call(*args, "--external-classes", "NORMAL").returncode == 2
