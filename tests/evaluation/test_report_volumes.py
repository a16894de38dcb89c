"""Volumes in the case viewer of the report: which slices are shown, what is said of them, and how one goes through."""

import csv
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from browser import in_browser, needs_chromium
from test_report_page import HOSTILE, Reader, renamed

from dino_oct.cli import parse_options
from dino_oct.data.phantom import PhantomConfig, phantom_folder
from dino_oct.scores.units import MEAN, RULES, aggregate
from evaluation import compare
from evaluation.report import comparison
from evaluation.report import page as report_page
from evaluation.report import volumes as report_volumes
from evaluation.report.volumes import _spread

MODEL, TOTAL = "random:test_resnet", 5
PHANTOMS = PhantomConfig(patients=12, slices=TOTAL, eyes=2, visits=2, size=(48, 48))


@pytest.fixture(scope="module")
def scans(cache_root, tmp_path_factory):
    """A table of volumes in no order, with positions for the first half of the patients."""
    folder = tmp_path_factory.mktemp("volumes") / "scans"
    shutil.copytree(phantom_folder(PHANTOMS, cache_root), folder)
    with (folder / "scans.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["position_um"] = f"{1200 * (int(row['slice']) - 2)}" if int(row["patient"]) % 2 else ""
    np.random.default_rng(0).shuffle(rows)
    with (folder / "scans.csv").open("w") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "scans.csv"


@pytest.fixture(scope="module")
def make(scans, cache_root, tmp_path_factory):
    """A report on these volumes; finished steps are shared."""
    folder = tmp_path_factory.mktemp("report")
    common = ["--k", "3", "--leaderboard", "0", "--bootstrap", "20", "--methods", "gradcam", "--out", str(folder)]

    def compared(*more: str):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DINO_OCT_CACHE", str(cache_root))
            words = ["--model", MODEL, "--data", str(scans), *common, *more]
            results, media, _ = comparison.compare(parse_options(compare.Options, words), lambda text: None)
        return results, media

    return compared


@pytest.fixture(scope="module")
def report(make):
    return make("--cases", "3")


@pytest.fixture(scope="module")
def page(report):
    return report_page.render(*report)


def shown_case(results, place=0):
    """A volume, and the case that is a slice of it."""
    volume = results.volumes.shown[place]
    case, own = next(iter(volume.cases.items()))
    return volume, results.cases[case], own


def test_every_slice_is_shown_in_its_order(report):
    results, media = report
    assert results.volumes.notes == []
    assert len(results.volumes.shown) == 3
    for place, (volume, pictures) in enumerate(zip(results.volumes.shown, media.volumes, strict=True)):
        _, case, own = shown_case(results, place)
        assert [of_slice.number for of_slice in volume.slices] == list(range(TOTAL))
        assert len(pictures) == volume.total == TOTAL
        assert volume.slices[own].file == results.scans.file[case.scan]
        assert volume.slices[own].models == case.models
        assert len({shown.scan for shown in pictures}) == TOTAL
        away = [of_slice.from_fovea_um for of_slice in volume.slices]
        is_known = int(results.scans.patient[case.scan]) % 2
        assert away == ([2400, 1200, 0, 1200, 2400] if is_known else [None] * TOTAL)
        patient, eye, visit = results.scans.patient[case.scan], volume.eye, volume.visit
        assert (eye in "RL", visit in "12", volume.volume) == (True, True, f"{patient}-{eye}-{visit}")


def test_what_is_said_of_a_slice_is_what_the_report_says_of_its_scan(report):
    results, _ = report
    answered = results.answers[MODEL]
    for volume in results.volumes.shown:
        for of_slice in volume.slices:
            i = results.scans.file.index(of_slice.file)
            said = of_slice.models[MODEL]
            assert said.called == answered.called[i]
            assert max(said.probabilities.values()) == pytest.approx(answered.probability[i], abs=1e-3)
            assert of_slice.label == results.scans.label[i]


def test_the_pooled_answer_follows_the_rule_of_its_table(report):
    results, _ = report
    for volume in results.volumes.shown:
        of_volume, of_eye = volume.pooled[MODEL]
        assert (of_volume.unit, of_volume.scans) == ("volume", TOTAL)
        assert (of_eye.unit, of_eye.scans) == ("eye", 2 * TOTAL)  # of two visits
        for pooled in (of_volume, of_eye):
            rule = results.by_unit[pooled.unit].rows[MODEL]["linear"].rule
            assert pooled.rule == (rule if rule in RULES else MEAN)
        stated = np.array([list(s.models[MODEL].probabilities.values()) for s in volume.slices])
        (expected,) = aggregate(stated, np.zeros(TOTAL, dtype=int), RULES[of_volume.rule])
        names = list(volume.slices[0].models[MODEL].probabilities)
        assert of_volume.probability == pytest.approx(expected.max(), abs=1e-3)
        assert results.classes[of_volume.called].name == names[expected.argmax()]


@pytest.mark.parametrize(
    ("total", "most", "always", "kept"),
    [
        (5, 25, {2}, [0, 1, 2, 3, 4]),
        (9, 3, {4}, [0, 4, 8]),
        (9, 3, {7}, [0, 4, 7]),
        (9, 2, {3, 4, 5}, [3, 4, 5]),
        (100, 4, {34}, [0, 34, 66, 99]),
    ],
)
def test_slices_are_spread_and_hold_the_case(total, most, always, kept):
    assert _spread(total, most, always) == kept


def test_what_is_left_out_is_said(make, report, monkeypatch):
    results, media = make("--cases", "3", "--volumes", "2", "--slices", "3")
    assert len(results.volumes.shown) == len(media.volumes) == 2
    assert all(len(volume.slices) == 3 for volume in results.volumes.shown)
    few, slices = results.volumes.notes
    assert few.startswith("2 of 3 volumes of these cases are shown whole; --volumes")
    assert "--slices" in slices
    words = Reader(report_page.render(results, media)).words
    assert "2 of 3 volumes" in words
    assert "5 slices, 3 shown" in words
    results, _ = make("--cases", "3", "--volumes", "0")
    assert results.volumes.shown == []
    assert results.volumes.notes == ["0 of 3 volumes of these cases are shown whole; --volumes shows more"]
    sizes = [sum(map(report_volumes._bytes, of_volume)) for of_volume in report[1].volumes]
    monkeypatch.setattr(report_volumes, "PICTURE_BYTES", sum(sizes) - 1)
    results, media = make("--cases", "3")
    assert len(results.volumes.shown) == len(media.volumes) == 2
    assert "no room on the page" in results.volumes.notes[-1]
    assert "1 more volume;" in results.volumes.notes[-1]


def test_single_scans_have_no_volumes(compared):
    assert compared.results.volumes is None
    assert "volumes" not in json.loads((compared.folder / "results.json").read_text())
    written = (compared.folder / "report.html").read_text()
    assert 'class="volume"' not in written
    assert "mouse wheel" not in Reader(written).words
    assert "volumes" not in Reader(written).data


def test_the_page_says_it_without_scripts(page, report):
    results, _ = report
    volume, _, own = shown_case(results)
    (box,) = re.findall(rf'<div class="volume" data-volume="0" data-own="{own}">.*?</div>', page, re.DOTALL)
    words = Reader(f"{box}<script>0</script>").words
    assert words.startswith(f"slice {own}")
    assert f"eye {volume.eye} · visit {volume.visit} · volume {volume.volume}: 5 slices" in words
    assert re.search(r'<label class="screen-only" hidden>', box)  # a slider that does nothing is not shown
    bars = re.findall(r'data-slice="(\d)".*?title="([^"]+)" style="--share: ([\d.]+)%', page)[:TOTAL]
    for i, title, share in bars:
        probabilities = volume.slices[int(i)].models[MODEL].probabilities
        name = max(probabilities, key=probabilities.get)
        assert float(share) == pytest.approx(100 * probabilities[name], abs=0.06)
        assert f"{name} " in title
    pooled = volume.pooled[MODEL][1]
    said = (
        f"whole eye, {pooled.rule} of 10 slices: {results.classes[pooled.called].name} {100 * pooled.probability:.1f} %"
    )
    assert said in Reader(page).words


STEPS = """
  seen.looks = [];
  const panel = () => first(".case-panel:not([hidden])"), large = () => panel().querySelector(".large");
  const slider = () => panel().querySelector(".volume input");
  const look = () => seen.looks.push({at: Number(slider().value),
    words: panel().querySelector(".slice-words").innerText,
    scan: getComputedStyle(large()).backgroundImage, map: large().firstElementChild.src,
    grid: [...panel().querySelectorAll(".grid img")].map((image) => image.src),
    called: panel().querySelector(".answer p").textContent, spoken: slider().getAttribute("aria-valuetext"),
    shares: [...panel().querySelectorAll(".row span:nth-child(3)")].map((span) => span.textContent),
    bar: [...panel().querySelectorAll("[data-slice]")].findIndex((bar) => bar.classList.contains("current")),
    about: panel().dataset.scan});
  const key = (name) => large().dispatchEvent(new KeyboardEvent("keydown", {key: name, cancelable: true}));
  const wheel = (deltaY, more) => !large().dispatchEvent(new WheelEvent("wheel", {deltaY, cancelable: true, ...more}));
    seen.visible = slider().checkVisibility();
    seen.focusable = large().tabIndex;
    look();
    key("Home"); look();
    key("ArrowUp"); look();
    key("ArrowDown"); look();
    slider().value = 3; slider().dispatchEvent(new Event("input")); look();
    seen.stopped = [wheel(10), wheel(-10), wheel(20)];
    look();
    seen.stopped.push(wheel(25)); look();
    seen.stopped.push(wheel(100)); look();
    seen.stopped.push(wheel(-1, {deltaMode: 1})); look();
    seen.stopped.push(wheel(-100, {ctrlKey: true})); look();
    panel().querySelectorAll("[data-slice]")[1].click(); look();
    seen.wide = document.documentElement.scrollWidth - innerWidth;
    document.querySelectorAll(".case")[1].click(); look();
"""


@needs_chromium
@pytest.mark.parametrize("width", [1400, 480])
def test_one_goes_through_the_slices(page, report, tmp_path, width):
    results, media = report
    seen = in_browser(page, tmp_path, f"--window-size={width},900", steps=STEPS)
    assert seen["problems"] == []
    assert seen["console"] == []
    assert seen["visible"]
    assert seen["focusable"] == 0
    assert seen["wide"] <= 0
    volume, _, own = shown_case(results)
    *looks, other = seen["looks"]
    assert [shown["at"] for shown in looks] == [own, 0, 0, 1, 3, 3, 4, 4, 3, 3, 1]
    # A little turn of a touchpad, and a turn beyond the last slice, or with ctrl to zoom, leave the page its own.
    assert seen["stopped"] == [True, True, True, True, False, True, False]
    for shown in looks:
        i = shown["at"]
        of_slice, pictures = volume.slices[i], media.volumes[0][i]
        said = of_slice.models[MODEL]
        assert pictures.scan in shown["scan"]
        assert shown["grid"] == [f"data:image/png;base64,{pictures.maps[MODEL]['gradcam']}"]
        assert shown["map"] == shown["grid"][0]
        assert results.classes[said.called].name in shown["called"]
        assert shown["shares"] == [f"{100 * share:.1f} %" for share in said.probabilities.values()]
        assert shown["bar"] == i
        assert shown["words"].startswith(f"slice {i}")
        assert shown["words"].endswith("the case" if i == own else of_slice.file.rsplit("/", 1)[1])
        assert ("mm from the fovea" in shown["words"]) == (of_slice.from_fovea_um is not None)
        assert shown["about"] == f"scan {of_slice.file}"
    assert looks[1]["spoken"].startswith("slice 0")
    assert other["about"] == f"scan {results.scans.file[results.cases[1].scan]}"


@needs_chromium
def test_names_of_volumes_are_never_markup(report, tmp_path):
    results, media = report
    volume, _, _ = shown_case(results)
    changed = renamed(dataclasses.replace(results, volumes=None), {"DRUSEN": HOSTILE})
    slices = [dataclasses.replace(of_slice, file=HOSTILE) for of_slice in renamed(volume.slices, {"DRUSEN": HOSTILE})]
    hostile = dataclasses.replace(volume, eye=HOSTILE, visit=HOSTILE, volume=HOSTILE, slices=slices)
    shown = report_volumes.Volumes([hostile, *renamed(results.volumes.shown[1:], {"DRUSEN": HOSTILE})], [HOSTILE])
    page = report_page.render(dataclasses.replace(changed, volumes=shown), media)
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert all("onerror" not in attrs for _, attrs in reader.tags)
    assert f"volume {HOSTILE}" in reader.words
    assert reader.data["volumes"][0][0]["file"] == HOSTILE
    seen = in_browser(page, tmp_path, "--window-size=480,900", steps=STEPS)
    assert seen["problems"] == []
    assert seen["title"] != "owned"
    assert seen["wide"] <= 0
