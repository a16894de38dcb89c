"""Pages in headless Chromium: steps on them, and what axe-core and a browser's own measures find."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
SCHEMES = {"light": 1, "dark": 0}  # as Chromium counts them

_LISTEN = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)));
const complain = console.error;
console.error = (...words) => { problems.push(words.join(" ")); complain(...words); };
</script>"""
_DO = """<script>addEventListener("load", async () => {
  const seen = {}, first = (query) => document.querySelector(query);
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const until = async (check) => { for (let i = 0; i < 100 && !check(); i++) await pause(50); };
  const ink = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
    .data.filter(Boolean).length;
  try {
    STEPS
  } catch (error) { problems.push(String(error.stack)); }
  seen.problems = problems;
  seen.title = document.title;
  const report = document.createElement("pre");
  report.id = "report";
  report.textContent = JSON.stringify(seen);
  document.body.append(report);
});</script></body>"""
_MEASURE = """
    let shift = 0;
    new PerformanceObserver((list) => { for (const {value} of list.getEntries()) shift += value; })
      .observe({type: "layout-shift", buffered: true});
    await until(() => [...document.images].every((image) => image.complete));
    await pause(100);
    const text = all("body *").filter((part) => part.checkVisibility() && !part.ownerSVGElement
      && [...part.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.textContent.trim()));
    Object.assign(seen, {shift, lang: document.documentElement.lang,
      viewport: first("meta[name=viewport]")?.content, charset: document.characterSet,
      wide: document.documentElement.scrollWidth - innerWidth,
      fetched: performance.getEntriesByType("resource").map(({name}) => name).filter((name) => !/^data:/.test(name)),
      small: text.filter((part) => parseFloat(getComputedStyle(part).fontSize) < 11)
        .map((part) => part.outerHTML.slice(0, 120))});
    all("details").forEach((details) => { details.open = true; });
    document.documentElement.style.scrollBehavior = "auto";
    OPEN
    const found = await axe.run(document, {resultTypes: ["violations"], runOnly: {type: "tag",
      values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}});
    seen.violations = found.violations.map(({id, nodes}) => [id, nodes.slice(0, 4).map(({html, any}) =>
      [html.slice(0, 160), any.map(({message}) => message)])]);
    seen.passes = found.passes.length;
    seen.dark = getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)[0] < 100;
"""


def chromium(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Headless Chromium with a profile of its own, without any network use of its own."""
    return subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder / 'profile'}", *options,
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def in_browser(page: str, folder: Path, *options: str, steps: str = "", before: str = "") -> dict:
    """What some steps put into ``seen`` on a page that was loaded, its title, and what the browser complained about.

    Args:
        steps: JavaScript, with ``first`` and ``all`` that look elements up, ``until`` and ``pause`` that wait, ``ink``
            that counts what is drawn on a canvas.
        before: a script that the page gets, too.
    """
    file = folder / "page.html"
    scripts = (f"<script>{before}</script>" if before else "") + _DO.replace("STEPS", steps)
    file.write_text(page.replace("<head>", f"<head>{_LISTEN}", 1).replace("</body>", scripts))
    dump = ["--virtual-time-budget=20000", "--enable-logging=stderr", *options, "--dump-dom", file.as_uri()]
    finished = chromium(folder, *dump)
    told = re.search(r'<pre id="report">(.*?)</pre>', finished.stdout, re.DOTALL)
    assert told, finished.stderr[-2000:]
    seen = json.loads(html.unescape(told[1]))
    seen["console"] = [line for line in finished.stderr.splitlines() if "CONSOLE" in line]
    return seen


def check_page(page: str, folder: Path, scheme: str = "light", width: int = 1400, opening: str = "") -> None:
    """Fail unless a page is right for everyone.

    axe-core finds nothing. It is as Lighthouse wants it: a language, a title, a viewport, nothing fetched, nothing that
    moves while it loads, no text below 11 px. It is no wider than the window.

    Args:
        scheme: of ``SCHEMES``; width: of the window in pixels.
        opening: JavaScript that opens what is closed, before axe looks.
    """
    package = importlib.util.find_spec("axe_core_python").submodule_search_locations[0]
    axe = Path(os.environ.get("AXE_CORE", f"{package}/axe.min.js")).read_text().replace("</script", "<\\/script")
    settings = [f"--window-size={width},1000", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
    seen = in_browser(page, folder, *settings, steps=_MEASURE.replace("OPEN", opening), before=axe)
    assert seen["problems"] == []
    assert seen["console"] == []
    assert seen["lang"] == "en"
    assert seen["charset"] == "UTF-8"
    assert seen["title"]
    assert seen["fetched"] == []
    assert seen["small"] == []
    assert "width=device-width" in seen["viewport"]
    assert "user-scalable" not in seen["viewport"]
    assert seen["wide"] <= 0
    assert seen["shift"] < 0.1
    assert seen["dark"] == (scheme == "dark")
    assert seen["passes"] > 15
    assert seen["violations"] == [], json.dumps(seen["violations"], indent=1)
