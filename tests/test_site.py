"""The documentation builds as a site, with warnings as errors, and fetches nothing."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    finished = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr[-3000:]
    pages = {file.parent.name: file.read_text() for file in (tmp_path / "site").rglob("index.html")}
    assert "OctModel" in pages["api"]
    assert "coverage" in pages["api"]
    for name, page in pages.items():
        fetched = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?://[^\" >]+)", page)
        assert not [address for address in fetched if "fonts" in address or "cdn" in address], name
