"""The comparison report's page: what it says of a real small report, and what a browser makes of it."""

import dataclasses
import html
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import in_browser, needs_chromium

from dino_oct.errors import InputError
from dino_oct.scores.bootstrap import Interval
from evaluation.report import comparison
from evaluation.report import page as report_page
from evaluation.report.figures import write_figures
from evaluation.report.label_errors import Neighbour, Suspect, Suspects
from evaluation.report.overview import Overview
from evaluation.report.results import Media, Results

HOSTILE = """</script><script>document.title='owned'</script><img src=x onerror="document.title='owned'">'&{{ 7*7 }}"""
RANDOM = "random:test_resnet"  # a convolutional network without a classifier


class Reader(HTMLParser):
    """A page's elements, what it would load, its cells, and the texts of its scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.bold: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "strong":
            self.bold.append("")
        if tag == "script":
            self.scripts.append("")
        if tag not in ("meta", "link", "img", "input", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, text):
        if self.cdata_elem == "script":
            self.scripts[-1] += text
        elif self.cdata_elem != "style":
            self.text.append(text)
            if self._open[-1:] == ["strong"]:
                self.bold[-1] += text

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def rows_of(page: str, table: str) -> list[list[str]]:
    """Text of the cells of a table's body rows."""
    body = re.search(rf'id="{table}".*?</table>', page, re.DOTALL)[0]
    rows = re.findall(r"<tr(?: [^>]*)?>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [
        [html.unescape(" ".join(re.sub("<[^>]+>", " ", cell.replace("<wbr>", "")).split())) for cell in row]
        for row in cells
    ]


@pytest.fixture(scope="module")
def results(compared):
    """What ``results.json`` holds."""
    return json.loads((compared.folder / "results.json").read_text())


@pytest.fixture(scope="module")
def page(compared):
    return (compared.folder / "report.html").read_text()


@pytest.fixture(scope="module")
def reader(page):
    return Reader(page.replace("<wbr>", ""))


def in_words(interval: dict, digits: int, scale: float = 1, sign: str = "") -> str:
    point, low, high = (None if interval[end] is None else f"{scale * interval[end]:{sign}.{digits}f}"
                        for end in ("point", "low", "high"))  # fmt: skip
    return (point if low is None else f"{point} [{low}, {high}]").replace("-", "−")


def test_the_page_is_whole_and_loads_nothing(page, reader):
    outside = [attrs[name] for _, attrs in reader.tags for name in ("src", "href", "action") if name in attrs]
    assert all(re.match(r"#|data:,$|data:image/png;base64,", link) for link in outside)
    assert len(outside) > 20
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    inside = [link[1:] for _, attrs in reader.tags for name in ("href", "xlink:href") if (link := attrs.get(name, ""))]
    assert set(inside) - {"ata:,"} <= set(ids)
    sections = [attrs["id"] for tag, attrs in reader.tags if tag == "section"]
    assert sections == list(report_page.SECTIONS)
    assert "http" not in reader.scripts[1]
    assert not re.search(r"@import|url\((?!#|data:image/)", page)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert page.count("<style") == 1  # a figure's own would be for the whole page


def test_the_numbers_are_those_of_the_results(page, reader, results):
    header, *rows = rows_of(page, "model-table")[1:]
    assert len(header) == len(results["table"]["columns"]) + 1
    assert [row[0].split()[0] for row in rows] == list(results["models"])
    gaps = 0
    for model, row in zip(results["models"], rows, strict=True):
        for column, shown in zip(results["table"]["columns"], row[1:], strict=True):
            interval = results["table"]["rows"][model][column["key"]]
            if interval is None:
                gaps += 1
                assert shown.startswith("–")
                continue
            weakest = results["table"]["classes_of_lowest_recall"][model].get(column["key"])
            words = in_words(interval, column["digits"])
            assert shown == (words.replace(" ", f" {weakest} ", 1) if weakest and " " in words else
                             f"{words} {weakest}" if weakest else words)  # fmt: skip
    assert gaps > 4
    for unit, of_unit in results["by_unit"].items():
        shown = iter(rows_of(page, f"by-{unit}")[1:])
        for model, by_protocol in of_unit["rows"].items():
            for row in by_protocol.values():
                cells = next(shown)
                metrics = [row[metric] for metric in ("accuracy", "balanced_accuracy", "macro_auroc")]
                assert (cells[0], cells[2]) == (model, row["rule"])
                assert cells[3:] == [in_words(metric, 1) for metric in metrics]
        assert next(shown, None) is None
    (best, *_), score = rows_of(page, "leaderboard-table")[1:], results["league"]["rows"][0]["scores"]
    assert best[1].startswith(in_words(score["auprc"], 1, 100))
    severity = rows_of(page, "severity-table")[2:]
    for model, row in zip(results["severity"]["rows"], severity, strict=True):
        assert row[1] == in_words(results["severity"]["rows"][model]["all"]["from_normal"], 2, sign="+")
    verdict = results["verdict"]
    for expected in (
        in_words(verdict["difference"], 1, sign="+"),
        f"always {verdict['majority']['name']}, the most frequent class {verdict['majority']['share']:.1f} %",
        f"{verdict['scans']} scans of {verdict['patients']} patients",
        verdict["headline"],
        "PHANTOMS",
    ):
        assert expected in reader.words
    for column, pairs in results["table"]["differences"].items():
        digits = next(about["digits"] for about in results["table"]["columns"] if about["key"] == column)
        for pair, difference in pairs.items():
            assert f"{pair} {in_words(difference, digits, sign='+')}" in reader.words


def test_the_charts_are_the_figures_beside_the_page(page, reader, results, compared):
    """Every chart once, its texts those of the file, under a title, and with the table's numbers."""
    charts = {attrs["aria-label"] for tag, attrs in reader.tags if tag == "svg" and attrs.get("role") == "img"}
    files = {figure["file"]: figure["title"] for figure in results["figures"]}
    drawn = {name for name in files if not name.endswith("embedding.png")}
    assert charts == {files[name] for name in drawn if not name.endswith("confusions.png")}
    for name in drawn - {"figures/confusions.png"}:
        svg = (compared.folder / name).with_suffix(".svg").read_text()
        for text in re.findall(r"<text[^>]*>([^<]+)</text>", svg):
            assert f">{text}</text>" in page
    for row in results["table"]["rows"].values():
        for column in ("knn_3", "linear_accuracy"):
            assert in_words(row[column], 1) in reader.words
    for model in shown_models(results):
        protocol = results["overview"]["models"][model]["by"]
        error = results["table"]["rows"][model][f"{protocol}_calibration_error"]["point"]
        assert f"calibration error {error:.1f} %" in reader.words
        counts = [f"{count:,}" for count in results["reliability"][model][protocol]["counts"] if count]
        assert f" {' '.join(counts)} " in reader.words


def test_bold_is_what_the_bootstrap_separates(compared, reader):
    table = compared.results.table
    assert table.rule.removeprefix("bold: ") in reader.words
    keys = ("knn_3", "linear_accuracy")
    for winners in ({}, dict.fromkeys(keys, RANDOM)):
        best = {**dict.fromkeys(table.best), **winners}
        changed = dataclasses.replace(compared.results, table=dataclasses.replace(table, best=best))
        bold = Reader(report_page.render(changed, compared.media)).bold
        numbers = [text for text in bold if re.match(r"[\d.,]+", text.strip())]
        expected = [f"{table.rows[RANDOM][key].point:.1f}" for key in winners]
        assert sorted(numbers) == sorted(2 * expected)  # in the table of the screen, and in that of the printer


def test_gaps_tell_their_reason_where_they_are_and_below(reader, results, compared):
    titles = {attrs.get("title") for tag, attrs in reader.tags if tag == "span" and attrs.get("class") == "gap"}
    of_model = f"{RANDOM}: {results['models'][RANDOM]['gaps']['classifier']}"
    of_map = results["cases"][0]["models"][RANDOM]["gaps"]["attention"]
    for reason in (of_model, of_map):
        assert reason in titles
        assert reason in reader.words
    for gap in results["gaps"]:
        section, _, why = gap.partition(": ")
        assert f"{report_page.SECTIONS[section]}: {why}" in reader.words
    # Undefined numbers, and a model without answers.
    table, models = compared.results.table, compared.results.models
    rows = {**table.rows, RANDOM: {**table.rows[RANDOM], "knn_3": Interval(float("nan"))}}
    models = {**models, RANDOM: dataclasses.replace(models[RANDOM], gaps={"cases": "it broke"})}
    cases = [dataclasses.replace(case, models={key: answer for key, answer in case.models.items() if key != RANDOM})
             for case in compared.results.cases]  # fmt: skip
    changed = dataclasses.replace(
        compared.results, table=dataclasses.replace(table, rows=rows), models=models, cases=cases
    )
    words = Reader(report_page.render(changed, compared.media)).words
    assert f"{RANDOM}: the number is undefined on these scans" in words
    assert f"{RANDOM}: no reason was recorded" in words
    assert "it broke" in words


def test_a_reason_that_several_sections_share_is_told_once():
    gaps = ["severity: no masks: none beside the scans", "explanations: no masks: none beside the scans", "cases: none"]
    assert report_page.gap_lines(gaps, {"severity": "Severity"}) == [
        "Severity, explanations: no masks: none beside the scans", "cases: none"
    ]  # fmt: skip


def test_whole_sections_may_be_missing(compared):
    verdict = dataclasses.replace(compared.results.verdict, difference=None, a=None, b=None)
    table = dataclasses.replace(compared.results.table, best=dict.fromkeys(compared.results.table.best), differences={})
    missing = dict.fromkeys(("leaderboard", "severity", "suspects", "embedding", "notice"))
    results = dataclasses.replace(
        compared.results, **missing, cases=[], confusions={}, answers={}, reliability={}, warnings=[], figures=[],
        gaps=["explanations: no masks were given"], verdict=verdict, table=table, overview=Overview(None, None), roc={},
        subgroups=None, by_unit={},
    )  # fmt: skip
    reader = Reader(report_page.render(results, dataclasses.replace(compared.media, cases=[], figures={})))
    assert reader.words.count("Not in this report.") == 9
    assert "Not in this report. no masks were given" in reader.words
    assert "PHANTOMS" not in " ".join(reader.bold)


def test_suspects_are_shown_with_their_neighbours(compared):
    page = report_page.render(with_suspect(compared.results), compared.media)
    (article, *_) = articles = re.findall(r'<article class="suspect">.*?</article>', page, re.DOTALL)
    assert len(articles) == report_page.SUSPECTS
    assert "2 more are in results.json" in Reader(page).words
    assert re.search(r"<details>(?:(?!</details>).)*<article class=.suspect", page, re.DOTALL)
    words = Reader(f"{article}<script>0</script>").words
    assert "probability of its label 0.031, less than that of the other class by 0.912" in words
    assert [int(i) for i in re.findall(r'data-scan="(\d+)"', article)] == [3, 7, 5]
    assert "· 0.980" in words


def shown_models(results: dict) -> list[str]:
    """The two models that the first screen is about."""
    return [results["overview"][which] for which in ("leader", "rival")]


def with_suspect(results: Results) -> Results:
    """Phantoms have no doubted labels, so some are made up."""
    suspect = Suspect(3, 0, 1, 0.0312, -0.9123, [Neighbour(7, 0.98), Neighbour(5, 0.97)])
    return dataclasses.replace(results, suspects=Suspects("by hand", next(iter(results.models)), 7 * [suspect]))


def renamed(value, names: dict[str, str]):
    """The same results with other names wherever they stand in texts and keys."""
    if isinstance(value, str):
        for name, other in names.items():
            value = value.replace(name, other)
        return value
    if isinstance(value, dict):
        return {renamed(key, names): renamed(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [renamed(item, names) for item in value]
    if dataclasses.is_dataclass(value):
        fields = {field.name: renamed(getattr(value, field.name), names) for field in dataclasses.fields(value)}
        return type(value)(**fields)
    return value


@pytest.fixture(scope="module")
def hostile(compared, tmp_path_factory):
    """The page of a report whose title, model, class, reasons and files try to be markup, in the figures too."""
    results = with_suspect(compared.results)
    reason = results.models[RANDOM].gaps["classifier"]
    names = {text: HOSTILE + text[:3] for text in (results.title, RANDOM, "DRUSEN", reason)}
    results = renamed(results, names)
    count = len(results.scans.file)
    columns = {name: [HOSTILE] * count for name in ("file", "patient", "split")}
    results = dataclasses.replace(results, scans=dataclasses.replace(results.scans, **columns))
    _, drawn = write_figures(results, {}, tmp_path_factory.mktemp("hostile"))
    cases = [
        dataclasses.replace(case, maps={renamed(key, names): maps for key, maps in case.maps.items()})
        for case in compared.media.cases
    ]
    return report_page.render(results, Media(compared.media.thumbnails, cases, drawn))


def test_names_are_never_markup(hostile):
    reader = Reader(hostile)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 2
    assert all("onerror" not in attrs for _, attrs in reader.tags)
    sources = [attrs.get("src") for tag, attrs in reader.tags if tag == "img"]
    assert all(source is None or source.startswith("data:image/png;base64,") for source in sources)
    assert HOSTILE in " ".join(reader.text)
    assert reader.data["scans"]["file"][0] == HOSTILE
    assert "innerHTML" not in reader.scripts[1]


def test_paths_that_are_not_utf_8_are_written_as_they_are(compared, tmp_path):
    name = os.fsdecode(b"a\xffb")
    scans = dataclasses.replace(compared.results.scans, file=[name] * len(compared.results.scans.file))
    settings = {**compared.results.settings, "masks": name}
    results = dataclasses.replace(compared.results, scans=scans, settings=settings)
    comparison.write_report(results, compared.media, tmp_path)
    assert b"a\xffb" in (tmp_path / "report.html").read_bytes()
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["masks"] == name


def test_a_page_too_large_to_send_is_refused(compared, monkeypatch):
    monkeypatch.setattr(report_page, "PAGE_LIMIT", 100_000)
    with pytest.raises(InputError, match="compare fewer scans, cases or models") as error:
        report_page.render(compared.results, compared.media)
    assert len(str(error.value).splitlines()) == 1


STEPS = """
  const change = (element, value) => {
    element.value = value;
    element.dispatchEvent(new Event(element.type === "range" ? "input" : "change"));
  };
  const paper = document.createElement("canvas"), copy = paper.getContext("2d", {willReadFrequently: true});
  const drawn = (canvas) => {
    [paper.width, paper.height] = [canvas.width, canvas.height];
    copy.drawImage(canvas, 0, 0);
    return copy.getImageData(0, 0, paper.width, paper.height).data.some((value) => value > 0);
  };
  const loaded = (image) => image.complete && image.naturalWidth > 0;
    await until(() => [...document.images].every((image) => image.complete));
    seen.images = [...document.images].filter((image) => image.checkVisibility()).map(loaded);
    seen.wide = document.documentElement.scrollWidth - innerWidth;
    seen.charts = all(".figure svg").map((chart) => [chart.clientWidth, chart.closest(".scroll").clientWidth]);
    seen.letters = all(".figure text").map((text) => parseFloat(getComputedStyle(text).fontSize)
      * text.ownerSVGElement.clientWidth / text.ownerSVGElement.viewBox.baseVal.width);

    const order = () => all("#model-table tbody tr").map((row) => row.dataset.model);
    const sorts = () => all("#model-table thead tr:last-child th").map((head) => head.getAttribute("aria-sort"));
    const buttons = all("#model-table .sort");
    const classifier = buttons.findIndex((button) => button.closest("th").classList.contains("start")
      && button.title.includes("own classifier"));
    seen.orders = [order()];
    for (const [button, times] of [[buttons[1], 2], [buttons[classifier], 1], [buttons[0], 1]]) {
      for (let i = 0; i < times; i++) button.click();
      seen.orders.push(order());
    }
    seen.sorts = sorts();

    const cell = first(".confusion .wrong button"), behind = first("#behind");
    cell.click();
    seen.opened = {hidden: behind.hidden, title: behind.querySelector("h3").textContent,
      count: Number(cell.textContent), scans: behind.querySelectorAll(".scan").length,
      expanded: cell.getAttribute("aria-expanded"), text: behind.textContent, label: cell.getAttribute("aria-label")};
    await until(() => all("#behind img").every((image) => image.complete));
    seen.opened.images = all("#behind img").map(loaded);
    behind.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
    seen.closed = behind.hidden;

    const panel = () => first(".case-panel:not([hidden])"), large = () => panel().querySelector(".large img");
    const look = () => seen.looks.push({image: large().src, words: panel().querySelector(".map-words").textContent,
      scan: getComputedStyle(panel().querySelector(".large")).backgroundImage, about: panel().dataset.scan,
      opacity: getComputedStyle(large()).opacity,
      outline: getComputedStyle(panel().querySelector(".large"), "::after").backgroundImage,
      answers: panel().querySelector(".answers").textContent,
      pressed: all(".case-panel:not([hidden]) .grid button").map((button) => button.getAttribute("aria-pressed"))});
    seen.looks = [];
    look();
    seen.grid = {maps: panel().querySelectorAll(".grid button").length,
      gaps: panel().querySelectorAll(".grid .gap").length};
    panel().querySelectorAll(".grid button")[1].click(); look();
    change(first("#case-opacity"), 20); look();
    first("#case-outline").click(); look();
    all(".case")[3].click(); look();
    seen.pressed = all(".case").map((button) => button.getAttribute("aria-pressed"));
    await until(() => large().complete);
    const {filter} = getComputedStyle(large());
    [paper.width, paper.height] = [64, 64];
    copy.filter = filter;
    const grey = copy.createLinearGradient(0, 0, 64, 0);
    grey.addColorStop(0, "black");
    grey.addColorStop(1, "white");
    copy.fillStyle = grey;
    copy.fillRect(0, 0, 64, 64);
    copy.filter = "none";
    seen.colours = [0, 32, 63].map((x) => [...copy.getImageData(x, 32, 1, 1).data]);

    const score = () => first("#leaderboard-table tbody td [data-class]:not([hidden])").textContent;
    const was = score(), chooser = first("#leaderboard-class");
    all("#leaderboard-table .sort")[1].click();
    change(chooser, chooser.options[1].value);
    seen.leaderboard = {changed: score() !== was, bodies: all("#leaderboard-table tbody").map((body) => body.className),
      hidden: all("#leaderboard-table tbody td [data-class]:not([hidden])").map((span) => span.dataset.class)};
    seen.maps = all("#maps .map canvas:first-child").map(drawn);
    dispatchEvent(new Event("beforeprint"));
    seen.details = all("details").every((details) => details.open);
"""


@pytest.fixture(scope="module", params=[1600, 480])
def browsed(request, page, tmp_path_factory):
    """The steps in a wide and in a narrow window."""
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    return in_browser(page, tmp_path_factory.mktemp("browser"), f"--window-size={request.param},1000", steps=STEPS)


def test_a_browser_has_nothing_to_complain_about(browsed):
    assert browsed["problems"] == []
    assert browsed["console"] == []
    assert len(browsed["images"]) > 10
    assert all(browsed["images"])
    assert browsed["wide"] <= 0  # only tables and charts scroll sideways


def test_charts_can_be_read(browsed):
    assert len(browsed["charts"]) == 5
    assert min(browsed["letters"]) > 8  # pixels, whatever the window: a chart scrolls, it does not shrink


def test_tables_sort(browsed, results):
    rows, models = results["table"]["rows"], list(results["models"])

    def by(key: str, best_first: bool, before: list[str]) -> list[str]:
        known = [model for model in before if rows[model][key] is not None]
        ordered = sorted(known, key=lambda model: rows[model][key]["point"], reverse=best_first)
        return ordered + [model for model in before if model not in known]

    start, ascending, classifier, names = browsed["orders"]
    assert start == models
    assert ascending == by("knn_3", False, by("knn_3", True, models))
    assert classifier == by("classifier_accuracy", True, ascending)
    assert rows[classifier[-1]]["classifier_accuracy"] is None  # a gap is last, whatever the direction
    assert names == sorted(models)
    assert browsed["sorts"][0] == "ascending"
    assert set(browsed["sorts"][1:]) == {"none"}
    assert browsed["leaderboard"]["changed"]
    assert browsed["leaderboard"]["bodies"] == ["maps", "references"]
    assert len(set(browsed["leaderboard"]["hidden"])) == 1


def test_a_number_of_the_matrix_opens_its_scans(browsed):
    opened = browsed["opened"]
    assert not opened["hidden"]
    assert opened["scans"] == opened["count"] > 0
    assert all(opened["images"])
    assert len(opened["images"]) == opened["count"]
    assert re.search(r"patient \d", opened["text"])
    assert re.search(r"\d\.\d %", opened["text"])
    assert opened["expanded"] == "true"
    assert opened["title"].split(" × ")[0] == re.sub(r"(: \d+) .*", r"\1", opened["label"])
    assert browsed["closed"]


def test_the_case_viewer_switches(browsed, results):
    start, method, opacity, outline, case = browsed["looks"]
    assert all(shown["image"].startswith("data:image/png;base64,") for shown in browsed["looks"])
    for before, after, changed in (
        (start, method, {"image", "words", "pressed"}),
        (method, opacity, {"opacity"}),
        (opacity, outline, {"outline"}),
    ):
        assert {name for name in before if before[name] != after[name]} == changed
    assert {"image", "scan", "about", "answers", "words"} <= {name for name in case if case[name] != outline[name]}
    assert case["pressed"] == outline["pressed"]  # the same model and method of another scan
    assert (start["opacity"], opacity["opacity"]) == ("0.75", "0.2")
    answers = results["cases"][0]["models"].values()
    assert browsed["grid"]["maps"] == sum(len(answer["maps"]) for answer in answers)
    assert browsed["grid"]["gaps"] == sum(len(answer["gaps"]) for answer in answers) > 0
    assert browsed["pressed"] == [str(i == 3).lower() for i in range(len(results["cases"]))]
    low, middle, high = np.array(browsed["colours"])
    assert low[3] < middle[3] < high[3]  # weak places let the scan through
    assert high[:3] == pytest.approx([252, 255, 164], abs=12)  # inferno's ends and its red middle
    assert middle[:3] == pytest.approx([188, 55, 84], abs=20)
    assert low[:3].max() < 30
    assert browsed["maps"] == [True] * len(results["models"])
    assert browsed["details"]


@needs_chromium
def test_hostile_names_in_a_narrow_browser(hostile, tmp_path):
    seen = in_browser(hostile, tmp_path, "--window-size=480,1000", steps=STEPS)
    assert seen["problems"] == []
    assert all(seen["images"])
    assert seen["title"] != "owned"
    assert seen["wide"] <= 0
