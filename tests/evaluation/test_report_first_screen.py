"""What the report says first: the two models, how often each is right, certainty, groups, and what a clinician gets."""

import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from browser import in_browser, needs_chromium
from sklearn.metrics import roc_auc_score
from test_report_page import RANDOM, Reader, in_words, shown_models, with_suspect

from dino_oct.scores.bootstrap import Interval, PatientBootstrap
from evaluation.report import certainty, comparison
from evaluation.report import page as report_page
from evaluation.report.cases import _grey, is_flat
from evaluation.report.overview import Overview, overview
from evaluation.report.subgroups import subgroups
from evaluation.report.table import Intervals

CLASSES = ("CNV", "DME", "NORMAL")


@pytest.fixture(scope="module")
def results(compared):
    return json.loads((compared.folder / "results.json").read_text())


@pytest.fixture(scope="module")
def page(compared):
    return (compared.folder / "report.html").read_text()


@pytest.fixture
def shared():
    """40 test scans of 20 patients, two visits each, with ages of most."""
    rng = np.random.default_rng(0)
    labels, patients = np.repeat(np.arange(20) % 3, 2), np.repeat(np.arange(20).astype(str), 2)
    facts = {"visit": np.tile(["1", "2"], 20), "device": np.where(np.arange(40) < 6, "old", "new")}
    facts["group"] = np.arange(40).astype(str)
    ages = np.repeat(np.where(np.arange(20) == 7, np.nan, 40.0 + 2.5 * np.arange(20)), 2)
    index = SimpleNamespace(
        labels=labels, fact=lambda name: facts.get(name, np.full(40, "")), targets={"age": ages}, rng=rng
    )
    setting = SimpleNamespace(
        data=SimpleNamespace(index=index),
        positions={"test": np.arange(40)},
        class_names=CLASSES,
        options=SimpleNamespace(k=(5,), bootstrap=50, seed=0),
        steps=SimpleNamespace(json=lambda step, make, kind, **identity: make()),
        set_of=lambda split: SimpleNamespace(labels=labels, patients=patients),
        bootstrap=lambda of: PatientBootstrap(of, 50, 0),
    )
    setting.intervals = Intervals(setting)
    return setting


def answers_of(shared, wrong: list[int], validation: float, kind: str = "other"):
    """A model that names the class after the true one for some scans, and is sure of every answer but those."""
    labels = shared.data.index.labels
    called = labels.copy()
    called[wrong] = (labels[wrong] + 1) % 3
    scores = np.full((40, 3), 0.1)
    scores[np.arange(40), called] = 0.8
    scores[wrong, called[wrong]] = 0.45
    scores[wrong, labels[wrong]] = 0.44
    is_right = (called == labels).astype(float)
    values = 100 * shared.intervals.bootstrap.values(lambda weights: weights @ is_right / weights.sum(axis=1))
    return SimpleNamespace(
        judged_by="linear",
        by_protocol={"linear": scores},
        results={"linear": SimpleNamespace(accuracy=shared.intervals.of("accuracy", values))},
        values={"linear_accuracy": values},
        validation=validation,
        model=SimpleNamespace(kind=kind),
    )


def test_the_two_models_are_chosen_on_validation(shared):
    answers = {
        "worst": answers_of(shared, list(range(20)), 40.0),
        "best on test": answers_of(shared, [], 60.0),
        "best on validation": answers_of(shared, [0, 1, 5], 90.0),
        "second": answers_of(shared, [0, 1, 2, 3], 80.0),
    }
    shown = overview(answers, (None, None), None, shared.intervals, shared)
    assert (shown.leader, shown.rival) == ("best on validation", "second")
    assert list(shown.models) == ["best on validation", "second", "best on test", "worst"]
    assert shown.models[shown.leader].lead is None
    assert shown.models["worst"].lead.point == pytest.approx(100 * (37 - 20) / 40)
    assert shown.models["worst"].lead.is_above(0)
    # A pair of kinds goes before a better model of another kind.
    shown = overview(answers, ("worst", "second"), None, shared.intervals, shared)
    assert (shown.leader, shown.rival) == ("second", "worst")
    assert shown.is_shown
    shown = overview(answers, ("worst", None), None, shared.intervals, shared)
    assert (shown.leader, shown.rival) == ("best on validation", "worst")
    assert overview({}, (None, None), None, shared.intervals, shared) == Overview(None, None, k=5)


def test_classes_are_counted(shared):
    labels = shared.data.index.labels
    wrong = np.flatnonzero(labels == 1).tolist()
    (judged,) = overview(
        {"a": answers_of(shared, wrong, 1.0)}, (None, "a"), None, shared.intervals, shared
    ).models.values()
    assert judged.right == 40 - len(wrong)
    assert [(c.scans, c.patients, c.right) for c in judged.classes.values()] == [(14, 7, 14), (14, 7, 0), (12, 6, 12)]
    assert [c.share.point for c in judged.classes.values()] == [100, 0, 100]
    assert judged.classes["DME"].share.high > 5  # of seven patients


def test_the_curve_and_the_point_of_the_answers(shared):
    answers = answers_of(shared, [0, 1, 2, 3, 10, 20, 30], 1.0)
    labels, scores = shared.data.index.labels, answers.by_protocol["linear"]
    curves = certainty.roc(answers, shared.intervals, shared)
    assert list(curves) == [*CLASSES, "urgent"]
    for c, name in enumerate(CLASSES):
        curve, called = curves[name], scores.argmax(axis=1) == c
        assert curve.area.point == pytest.approx(100 * roc_auc_score(labels == c, scores[:, c]))
        assert np.trapezoid(curve.sensitivity, curve.false_alarms) == pytest.approx(curve.area.point / 100)
        assert curve.at_sensitivity.point == pytest.approx(100 * called[labels == c].mean())
        assert curve.at_specificity.point == pytest.approx(100 * (~called)[labels != c].mean())
    called = scores.argmax(axis=1) < 2
    assert curves["urgent"].at_sensitivity.point == pytest.approx(100 * called[labels < 2].mean())


def test_parts_of_the_test(shared):
    answers = {"a": answers_of(shared, [0, 2, 4], 1.0)}
    parts = subgroups(answers, ["a"], shared.intervals, shared)
    assert list(parts.kinds) == ["class", "visit", "device", "age"]
    assert parts.notes == ["group: 40 different ones, too many to show"]
    by_name = {part.name: part for part in parts.kinds["device"]}
    assert (by_name["old"].scans, by_name["old"].patients, by_name["old"].is_small) == (6, 3, True)
    assert by_name["old"].accuracy["a"].point == pytest.approx(50)
    assert (by_name["new"].patients, by_name["new"].is_small, by_name["new"].accuracy["a"].point) == (17, False, 100)
    ages = {part.name: part.patients for part in parts.kinds["age"]}
    assert ages == {"0 to 49": 4, "50 to 64": 5, "65 to 79": 6, "from 80": 4}  # one is not known


def test_a_flat_map_is_not_drawn():
    rng = np.random.default_rng(0)
    flat, spread = 0.96 + 0.04 * rng.random((8, 8)), rng.random((8, 8))
    assert is_flat(flat)
    assert is_flat(np.zeros((8, 8)))
    assert is_flat(-spread)
    assert not is_flat(spread)
    assert not is_flat(spread - 0.5)
    assert _grey(flat).max() == _grey(-spread).max() == 0
    assert _grey(spread).max() == 255


def test_the_page_says_that_a_map_is_flat(compared):
    case = compared.results.cases[0]
    answer = case.models[RANDOM]
    maps = {method: dataclasses.replace(shown, flat=True) for method, shown in answer.maps.items()}
    changed = dataclasses.replace(case, models={**case.models, RANDOM: dataclasses.replace(answer, maps=maps)})
    results = dataclasses.replace(compared.results, cases=[changed, *compared.results.cases[1:]])
    before, after = (
        report_page.render(of, compared.media).count("flat: says nothing") for of in (compared.results, results)
    )
    assert after > before


def test_only_a_map_that_is_better_than_another_is_marked(compared):
    board = compared.results.leaderboard
    rows = [row.name for row in board.rows if row.kind != "reference"]
    for equal, badges in (([], 1), (rows[2:], 1), ([name for name in rows if name != board.best], 0)):
        changed = dataclasses.replace(compared.results, leaderboard=dataclasses.replace(board, equal_to_best=equal))
        table = re.search(r'id="leaderboard-table".*?</table>', report_page.render(changed, compared.media), re.DOTALL)[
            0
        ]
        assert table.count('<span class="tie">best</span>') == badges


def test_the_first_screen_has_the_numbers_of_the_results(page, results):
    words = Reader(page.replace("<wbr>", "")).words
    first = words[words.index("The answer") : words.index("Cases are chosen")]
    shown = results["overview"]
    for model, judged in shown["models"].items():
        assert in_words(judged["accuracy"], 1) in first
        if judged["lead"]:
            assert in_words(judged["lead"], 1, sign="+") in first
        if model in shown_models(results):
            for name, of_class in judged["classes"].items():
                told = f"{of_class['right']} of {of_class['scans']} scans"
                never = "never recognised: " if not of_class["right"] else ""
                assert re.search(rf"{name} {of_class['share']['point']:.0f} % {never}{told}", first)
    assert in_words(shown["pixels"], 1).replace(" ", " % ", 1) in first
    assert "Difference shown" in first or "Difference not shown" in first
    assert first.index("patients") < first.index("Recognised by")
    for finding in results["warnings"]:
        assert (finding["text"] in first) == finding["serious"]


def test_a_class_that_is_never_recognised_is_red(compared):
    shown = compared.results.overview
    judged = shown.models[shown.leader]
    classes = {name: dataclasses.replace(c, right=int(name != "DME")) for name, c in judged.classes.items()}
    models = {**shown.models, shown.leader: dataclasses.replace(judged, classes=classes)}
    changed = dataclasses.replace(compared.results, overview=dataclasses.replace(shown, models=models))
    first = report_page.render(changed, compared.media).split("Recognised by")[1]
    assert re.findall(r'<li class="never"><b>(\w+)</b>', first) == ["DME"]


def numbers_of(value) -> set[str]:
    """Every number of the results as a page may write it: as it is or in per cent, rounded; an interval as a whole."""
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, (int, float)):
        return {f"{abs(scale * value):,.{digits}f}" for scale in (1, 100, 1e-3) for digits in (1, 2, 3)}
    if isinstance(value, str):
        return set(re.findall(r"\d[\d,]*\.\d+", value))
    whole = set()
    if isinstance(value, dict) and value.get("low") is not None:
        ends = [value[end] for end in ("point", "low", "high")]
        for scale, digits in itertools.product((1, 100), range(4)):
            point, low, high = (f"{scale * end:,.{digits}f}" for end in ends)
            whole.add(f"{point} [{low}, {high}]")
    return whole.union(*map(numbers_of, value.values() if isinstance(value, dict) else value))


def test_every_number_is_in_the_results(page, results):
    """Whatever the page writes with a decimal point or an interval, outside of charts."""
    text = re.sub(r"<svg.*?</svg>|<code>.*?</code>", " ", page.replace("<wbr>", ""), flags=re.DOTALL)
    words = " ".join(" ".join(Reader(text).text).split())
    known = numbers_of(results)
    numbers = re.findall(r"(?<![\w.])\d[\d,]*\.\d+(?![\w.])", words)
    assert len(numbers) > 300
    assert [number for number in numbers if number not in known] == []
    one = r"[+−]?\d[\d,.]*"
    intervals = re.findall(rf"({one})(?: %| [A-Z]+)? \[({one}), ({one})\]", words)
    assert len(intervals) > 100
    for point, low, high in intervals:
        assert f"{point} [{low}, {high}]".replace("+", "").replace("−", "-") in known


def test_no_identifiers_are_shown(compared):
    """Words with an underscore are for programs; names of models and files are the user's, settings are options."""
    page = report_page.render(compared.results, compared.media, "clinician").replace("<wbr>", "")
    reader = Reader(page)
    shown = [
        *reader.text,
        *(attrs[name] or "" for _, attrs in reader.tags for name in ("title", "alt", "aria-label") if name in attrs),
    ]
    names = [*compared.results.models, *compared.results.scans.file]
    words = " ".join(shown)
    for name in names:
        words = words.replace(name, "")
    assert set(re.findall(r"\w+_\w+", words)) == set()
    assert not re.search(r"k-NN|AUPRC|logit|--\w", words)


def test_a_clinician_gets_the_answer_without_the_tables(compared, tmp_path):
    results = with_suspect(compared.results)
    comparison.write_report(results, compared.media, tmp_path, "clinician")
    full, short = ((tmp_path / name).read_text() for name in ("report.html", "clinician.html"))
    assert full == report_page.render(results, compared.media)
    sections = re.findall(r'<section id="(\w+)"', short)
    assert sections == [name for name in report_page.SECTIONS if name not in report_page.FOR_AUTHORS]
    words = Reader(short).words
    assert "the full one is report.html" in words[: words.index("The answer")]
    assert results.command not in words
    assert len(short) < 0.9 * len(full)
    assert results.verdict.headline in words


def test_the_page_forbids_every_request(page):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed.pop("default-src") == "'none'"
    assert "http" not in policy
    assert allowed["img-src"] == "data:"


def test_everything_can_be_read_without_scripts(page):
    assert not re.search(r'class="case-panel"[^>]*hidden', page)
    assert page.count('class="case-panel"') == 8
    assert re.search(r'class="controls screen-only" hidden', page)


STEPS = """
    const box = document.querySelector(".case-panel:not([hidden]) .training"), slider = box.querySelector("input");
    const opacities = () => all("img", box).map((image) => Number(getComputedStyle(image).opacity));
    seen.visible = box.checkVisibility();
    seen.fades = [0, 50, 100].map((value) => {
      slider.value = value;
      slider.dispatchEvent(new Event("input"));
      return opacities();
    });
    const grid = (model) => all(".case-panel:not([hidden]) .grid button")
      .find(({dataset}) => dataset.model === model && dataset.method === "attention").querySelector("img").src;
    seen.same = all("img", box).map((image, i) => image.src === grid(i ? box.dataset.after : box.dataset.before));
    seen.models = [box.dataset.before, box.dataset.after];

    const maps = document.getElementById("maps"), plot = maps.querySelector("canvas:last-child");
    plot.scrollIntoView({block: "center"});
    plot.focus();
    plot.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
    const card = maps.querySelector(".card"), within = () => {
      const [inner, outer] = [card.getBoundingClientRect(), maps.getBoundingClientRect()];
      return inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
    };
    seen.card = [!card.hidden, within()];
    document.getElementById("limits").scrollIntoView();
    seen.scrolled = [!card.hidden, within()];
"""


@needs_chromium
@pytest.mark.parametrize("width", [1280, 500])
def test_the_slider_fades_and_the_card_stays_with_its_maps(page, results, width, tmp_path):
    seen = in_browser(page, tmp_path, f"--window-size={width},900", steps=STEPS)
    assert seen["problems"] == []
    assert seen["visible"]
    before, middle, after = seen["fades"]
    assert before == [0.75, 0]
    assert middle == [0.375, 0.375]
    assert after == [0, 0.75]
    assert seen["same"] == [True, True]
    start, run = seen["models"]
    assert results["models"][start]["start_of"] == run
    assert seen["card"] == seen["scrolled"] == [True, True]


def test_interval_axis_holds_every_interval(compared):
    shown = compared.results.overview
    leader = dataclasses.replace(shown.models[shown.leader], accuracy=Interval(97.0, 91.0, 99.0))
    high = dataclasses.replace(shown, models={shown.leader: leader}, rival=None, pixels=Interval(88.0, 84.0, 90.0))
    majority = dataclasses.replace(compared.results.verdict.majority, share=83.0)
    verdict = dataclasses.replace(compared.results.verdict, majority=majority)
    assert report_page._ticks(dataclasses.replace(compared.results, overview=high, verdict=verdict)) == [
        80,
        85,
        90,
        95,
        100,
    ]
    assert report_page._ticks(compared.results) == [0, 25, 50, 75, 100]
