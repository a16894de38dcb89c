"""The report's page for everyone: headings, labels, contrast in both schemes, and axe-core where it is at hand."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from browser import SCHEMES, check_page, chromium, in_browser, needs_chromium
from test_report_page import with_suspect

from evaluation.report import page as report_page

COLOURS = """
  const {color, backgroundColor} = getComputedStyle(document.body);
  const fills = (query) => [...new Set(all(query).map((part) => getComputedStyle(part).fill))];
  Object.assign(seen, {body: color, back: backgroundColor,
    ink: fills(".figure text:not([style*='fill'])"), paper: fills(".figure [id$='patch_1'] path")});
"""


class Outline(HTMLParser):
    """Headings, images and controls of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.headings, self.images, self.controls, self.labels = [], [], [], 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(attrs)
        self.labels += tag == "label"
        if tag in ("input", "select"):
            self.controls.append((attrs, self.labels))

    def handle_endtag(self, tag):
        self.labels -= tag == "label"


@pytest.fixture(scope="module", params=["author", "clinician"])
def page(request, compared):
    return report_page.render(with_suspect(compared.results), compared.media, request.param)


def test_headings_do_not_skip(page):
    headings = Outline(page).headings
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_pictures_and_controls_have_names(page):
    outline = Outline(page)
    assert len(outline.images) > 20
    assert all("alt" in attrs for attrs in outline.images)
    assert len(outline.controls) > 2
    for attrs, labels in outline.controls:
        assert labels or attrs.get("aria-label"), attrs
    regions = re.findall(r'role="region" aria-label="([^"]+)"', page)
    assert len(regions) == len(set(regions))


def palettes() -> dict[str, dict[str, str]]:
    """Scheme → variable → colour, as the style sheet sets them."""
    css = (Path(report_page.__file__).parent / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*--ink[^}]*)\}", css)
    )
    return {"light": light, "dark": {**light, **dark}}


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_can_be_read_in_both_schemes(scheme):
    palette = palettes()[scheme]
    assert (luminance(palette["back"]) > 0.5) == (scheme == "light")
    pairs = [(ink, back) for ink in ("ink", "soft", "accent", "warn", "good") for back in ("back", "faint")]
    pairs += [("ink", "chosen"), ("soft", "chosen"), ("ink", "warn-back"), ("good", "good-back"), ("back", "warn")]
    pairs += [("back", "accent"), ("ink", "right"), ("ink", "wrong"), ("ink", "line")]
    for ink, back in pairs:
        bright, dim = sorted((luminance(palette[ink]), luminance(palette[back])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, back)


@needs_chromium
@pytest.mark.parametrize("scheme", SCHEMES)
def test_charts_have_the_colours_of_the_page(page, scheme, tmp_path):
    seen = in_browser(page, tmp_path, f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", steps=COLOURS)
    assert seen["problems"] == []
    assert seen["ink"] == [seen["body"]]
    assert seen["paper"] == [seen["back"]]


@needs_chromium
def test_the_page_is_right_for_everyone(page, request, tmp_path):
    scheme, width = ("dark", 480) if "clinician" in request.node.name else ("light", 1400)  # each takes long enough
    check_page(page, tmp_path, scheme, width, opening='first(".confusion .wrong button").click();')


@needs_chromium
def test_the_abstract_is_one_printed_page(page, tmp_path):
    """Header and answer alone; the rest begins on the next page."""
    assert re.search(r"@media print \{.*#verdict \{ break-after: page;", page, re.DOTALL)
    first = re.sub(r"</section>.*</main>", "</section></main>", page, flags=re.DOTALL, count=1)
    assert first.count("<section") == 1
    file = tmp_path / "first.html"
    file.write_text(re.sub(r"<script>.*?</script>", "", first, flags=re.DOTALL))
    printed = tmp_path / "page.pdf"
    done = chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={printed}", file.as_uri())
    assert done.returncode == 0
    assert len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) == 1
