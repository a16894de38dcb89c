"""The comparison report as one page that opens offline.

Every number is put into words here, once: the template prints the words and the script only places points, so table,
chart and hover cannot disagree. Gaps are dashes with a lettered reason.
"""

import itertools
import math
import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from dino_oct.class_summary import ClassSummary
from dino_oct.errors import InputError
from evaluation.embedding_figures import UNLABELLED_NAME

PAGE_LIMIT = 40_000_000  # bytes; what mail servers and browsers on a tablet still take
GAP = "–"
_NO_REASON = "no reason was recorded"
_UNDEFINED = "the number is undefined on these scans"
_ACROSS = 6  # models beside each other on a printed page
_COST_DIGITS = {"ms": 1, "mb": 0}


class Cell(NamedTuple):
    """A number as the page shows it: its text, its interval's, what it sorts by; or a gap with its reason."""

    text: str
    interval: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    best: bool = False
    mark: str = ""
    reason: str = ""

    @property
    def words(self) -> str:
        """Point and interval in one line."""
        return f"{self.text} {self.interval}".strip()


class Footnotes:
    """Reasons of gaps, lettered in the order of their first use."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def gap(self, reason: str) -> Cell:
        mark = self.reasons.setdefault(reason, _letters(len(self.reasons)))
        return Cell(GAP, mark=mark, reason=reason)


def render(results: dict[str, Any], media: dict[str, Any]) -> str:
    """The page as HTML; every name in it is escaped.

    Args:
        results: the numbers, as in ``results.json``.
        media: ``thumbnails`` (base64 JPEG of each of ``results["scans"]``) and ``cases`` (the scan, lesion mask and
            maps of each of ``results["cases"]``, base64).

    Raises:
        InputError: the page would be larger than ``PAGE_LIMIT``.
    """
    view = {
        "table": _model_table(results),
        "confusions": _confusions(results),
        "suspects": _suspects(results),
        "league": _league(results),
        "severity": _severity(results),
        "difference": number(results["verdict"]["difference"], 1, signed=True),
        "settings": list(_flat(results["settings"])),
    }
    data = {
        "classes": _classes(results),
        "scans": {**results["scans"], "image": media["thumbnails"]},
        "forest": view["table"]["forest"],
        "league": view["league"] and view["league"]["forest"],
        "confusions": view["confusions"],
        "embedding": _embedding(results),
        "cases": _cases(results, media),
        "severity": view["severity"] and view["severity"]["scatter"],
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    environment.globals["missing"] = lambda section: _missing(results, section)
    page = environment.get_template("report_page.html").render(r=results, view=view, data=_finite(data))
    size = len(page.encode())
    if size > PAGE_LIMIT:
        thumbnails, cases = media["thumbnails"], media["cases"]
        raise InputError(
            f"the page would take {size / 1e6:.0f} MB, more than {PAGE_LIMIT / 1e6:.0f} MB: thumbnails of "
            f"{len(thumbnails):,} scans take {sum(map(len, thumbnails)) / 1e6:.0f} MB, most of the rest is maps of "
            f"{len(cases)} cases; compare fewer scans, cases or models"
        )
    return page


def number(
    interval: dict[str, float | None] | None, digits: int, scale: float = 1, signed: bool = False
) -> Cell | None:
    """An interval in words; None where its point is undefined."""
    point, low, high = (_scaled((interval or {}).get(end), scale) for end in ("point", "low", "high"))
    if point is None:
        return None
    form = f"{'+' if signed else ''},.{digits}f"
    span = "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"
    return Cell(_minus(f"{point:{form}}"), _minus(span), point, low, high)


def _model_table(results: dict[str, Any]) -> dict[str, Any]:
    table, notes = results["table"], Footnotes()
    columns, best = table["columns"], table["best"]
    rows, headings, units = [], [], []
    for model, about in results["models"].items():
        found = table["rows"].get(model, {})
        cells = []
        for column in columns:
            key = column["key"]
            cell = number(found.get(key), column["digits"])
            if cell and (weakest := table["classes_of_lowest_recall"].get(model, {}).get(key)):
                cell = cell._replace(text=f"{cell.text} {weakest}")
            if cell is None:
                reason = _reason(about, key, column["group"]) or (_UNDEFINED if found.get(key) else _NO_REASON)
                cell = notes.gap(f"{model}: {reason}")
            cells.append(cell._replace(best=best.get(key) == model))
        rows.append({"model": model, "about": about, "cells": cells})
    groups = [(name, list(some)) for name, some in itertools.groupby(columns, lambda column: column["group"])]
    for _, some in groups:
        shared = len({column["unit"] for column in some}) == 1
        units += [""] * len(some) if shared else [column["unit"] for column in some]
        headings.append((some[0]["group"], len(some), some[0]["unit"] if shared else ""))
    return {
        "columns": columns,
        "groups": headings,
        "units": units,
        "starts": set(itertools.accumulate((len(some) for _, some in groups), initial=0)),
        "rows": rows,
        "sheets": [rows[i : i + _ACROSS] for i in range(0, len(rows), _ACROSS)],
        "footnotes": notes.reasons,
        "forest": [
            {
                **_chart(column["title"], column["group"], column["unit"], column["help"]),
                "rows": [_bar(row["model"], row["cells"][i]) for row in rows],
                **_differences(results, column),
            }
            for i, column in enumerate(columns)
        ],
    }


def _differences(results: dict[str, Any], column: dict[str, Any]) -> dict[str, Any]:
    """The paired differences of a column by model, and the model that they are taken from."""
    found, best = {}, None
    for name, interval in results["table"]["differences"].get(column["key"], {}).items():
        for model in results["models"]:
            if name.endswith(end := f" − {model}"):
                best = name.removesuffix(end)
                cell = number(interval, column["digits"], signed=True)
                found[model] = None if cell is None else _bar(name, cell)
    return {"best": best, "differences": found}


def _league(results: dict[str, Any]) -> dict[str, Any] | None:
    league = results["league"]
    if not league:
        return None
    notes = Footnotes()
    names = [one["name"] for one in results["classes"] if any(one["name"] in row["classes"] for row in league["rows"])]
    bodies: dict[str, list[dict[str, Any]]] = {"maps": [], "references": []}
    for row in league["rows"]:
        cells = [
            {
                "all": _score(row["scores"].get(one["key"]), one, notes),
                **{name: _score(row["classes"].get(name, {}).get(one["key"]), one, notes) for name in names},
            }
            for one in league["scores"]
        ]
        costs = [
            number(row["deletion"], 3) or Cell(GAP),
            number(row["insertion"], 3) or Cell(GAP),
            *(
                Cell(GAP) if row[key] is None else Cell(f"{row[key]:,.{digits}f}", value=row[key])
                for key, digits in _COST_DIGITS.items()
            ),
        ]
        body = bodies["references" if row["kind"] == "reference" else "maps"]
        tie = "best" if row["name"] == league["best"] else "tie" if row["name"] in league["equal_to_best"] else ""
        body.append({**row, "cells": cells, "costs": costs, "tie": tie})
    every = [*bodies["maps"], *bodies["references"]]
    return {
        "names": names,
        "bodies": bodies,
        "footnotes": notes.reasons,
        "forest": [
            {
                **_chart(one["title"], "", "%" if one["percent"] else "", one["help"]),
                "rows": [
                    {**_bar(row["name"], row["cells"][i]["all"]), "faint": row["kind"] == "reference"} for row in every
                ],
                "first": one["key"] == league["score"],
            }
            for i, one in enumerate(league["scores"])
        ],
    }


def _score(interval: dict[str, Any] | None, score: dict[str, Any], notes: Footnotes) -> Cell:
    cell = number(interval, score["digits"], 100 if score["percent"] else 1)
    return cell or notes.gap("undefined on these scans, or not measured by class")


def _confusions(results: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for model, one in results["confusions"].items():
        answers = results["answers"].get(model, {"scans": [], "called": [], "probability": []})
        labels = results["scans"]["label"]
        behind = {f"{pair['true']},{pair['called']}": pair["scans"] for pair in one["pairs"]}
        for scan, called in zip(answers["scans"], answers["called"], strict=True):
            if labels[scan] == called:
                behind.setdefault(f"{called},{called}", []).append(scan)
        totals = [sum(row) for row in one["counts"]]
        by_class = ClassSummary(
            {
                about["name"]: 100 * row[c] / total
                for c, (about, row, total) in enumerate(zip(results["classes"], one["counts"], totals, strict=True))
                if total
            }
        )
        found.append(
            {
                "model": model,
                "counts": one["counts"],
                "shares": [
                    [count / total if total else 0 for count in row]
                    for row, total in zip(one["counts"], totals, strict=True)
                ],
                "right": sum(one["counts"][i][i] for i in range(len(totals))),
                "total": sum(totals),
                "by_class": by_class.words,
                "behind": behind,
                "probability": {
                    scan: f"{100 * value:.1f} %"
                    for scan, value in zip(answers["scans"], answers["probability"], strict=True)
                    if _scaled(value) is not None
                },
            }
        )
    return found


def _suspects(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            **one,
            "probability_given": _plain(one["probability_given"], 3),
            "margin": _plain(one["margin"], 3),
            "neighbours": [{**near, "similarity": _plain(near["similarity"], 3)} for near in one["neighbours"]],
        }
        for one in (results["suspects"] or {}).get("found", [])
    ]


def _embedding(results: dict[str, Any]) -> dict[str, Any] | None:
    """What ``embedding_page.js`` draws, of the scans of the map alone."""
    embedding = results["embedding"]
    if not embedding or not embedding["panels"]:
        return None
    panels = []
    for panel in embedding["panels"]:
        purity = number(panel["purity"], 1)
        words = [panel["caption"], f"{embedding['k']}-NN purity {purity.text} % {purity.interval}" if purity else ""]
        frame = {"caption": " · ".join(filter(None, words)), "x": panel["x"], "y": panel["y"]}
        panels.append({"title": panel["title"], "near": panel["near"], "frames": [frame]})
    return {"k": embedding["k"], "scans": embedding["scans"], "panels": panels}


def _severity(results: dict[str, Any]) -> dict[str, Any] | None:
    severity = results["severity"]
    if not severity:
        return None
    notes, measures = Footnotes(), {"from_normal": "distance from normal", "by_neighbours": "by neighbours"}
    names = [
        one["name"]
        for one in results["classes"]
        if any(one["name"] in row["classes"] for row in severity["rows"].values())
    ]
    rows = []
    for model, about in results["models"].items():
        row = severity["rows"].get(model)
        reason = _reason(about, "severity") or (_UNDEFINED if row else _NO_REASON)
        parts = [row["all"] if row else {}, *(row["classes"].get(name, {}) if row else {} for name in names)]
        cells = [
            number(part.get(key), 2, signed=True) or notes.gap(f"{model}: {reason}")
            for part in parts
            for key in measures
        ]
        rows.append({"model": model, "cells": cells})
    words = {row["model"]: row["cells"][0].words for row in rows}
    return {
        "groups": ["all lesions", *names],
        "measures": list(measures.values()),
        "rows": rows,
        "footnotes": notes.reasons,
        "scatter": {
            "measure": severity["measure"],
            "panels": [
                {"title": model, "caption": f"rank correlation {words.get(model, GAP)}", **points}
                for model, points in severity["scatter"].items()
            ],
        },
    }


def _cases(results: dict[str, Any], media: dict[str, Any]) -> dict[str, Any]:
    """The case viewer's content: of every case the scan, each model's answer, and each model's maps or gaps."""
    colours = {one["name"]: one["colour"] for one in results["classes"]}
    methods = list(
        dict.fromkeys(
            method
            for case in results["cases"]
            for found in case["models"].values()
            for method in (*found["maps"], *found["gaps"])
        )
    )
    cases = []
    for case, pictures in zip(results["cases"], media["cases"], strict=True):
        models = []
        for model, about in results["models"].items():
            found, images = case["models"].get(model), pictures["maps"].get(model, {})
            why = _reason(about, "cases", "explanations") or _NO_REASON
            gaps = found["gaps"] if found else {}
            models.append(
                {
                    "called": None if found is None else found["called"],
                    "bars": _bars(found, colours) if found else [],
                    "maps": {
                        method: {"image": image, "words": _map_words(found["maps"].get(method, {}))}
                        for method, image in images.items()
                        if found
                    },
                    "gaps": {method: gaps.get(method, why) for method in methods if method not in images},
                    "gap": "" if found else why,
                }
            )
        cases.append(
            {
                "scan": case["scan"],
                "rule": case["rule"],
                "why": case["why"],
                "severity": "" if case["severity"] is None else _plain(case["severity"], 3),
                "image": pictures["scan"],
                "lesion": pictures["lesion"],
                "models": models,
            }
        )
    return {"models": list(results["models"]), "methods": methods, "cases": cases}


def _bars(found: dict[str, Any], colours: dict[str, str]) -> list[dict[str, Any]]:
    shares, logits = found["probabilities"] or {}, found["logits"] or {}
    return [
        {
            "name": name,
            "colour": colours.get(name, "#888888"),
            "share": _scaled(shares.get(name)),
            "text": _plain(shares.get(name), 1, 100, " %"),
            "logit": _plain(logits.get(name), 2),
        }
        for name in dict.fromkeys([*shares, *logits])
    ]


def _map_words(found: dict[str, Any]) -> dict[str, str]:
    """What is said about a map, short for the grid and long for the large view."""
    ratio, auprc = found.get("lesion_over_retina"), found.get("auprc")
    short = [] if _scaled(ratio) is None else [f"{ratio:.1f} ×"]
    long = [f"of class {found['class']}"] if found.get("class") else []
    long += [] if _scaled(ratio) is None else [f"lesion over retina {ratio:.2f}"]
    long += [] if _scaled(auprc) is None else [f"AUPRC {auprc:.3f}"]
    long += [f"highest value {found['peak']:.3g}"] if _scaled(found.get("peak")) is not None else []
    long += ["{} × {} values".format(*found["shape"])] if found.get("shape") else []
    return {"short": " ".join(short), "long": " · ".join(long)}


def _classes(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Classes, with one more at the end for scans without a label (−1) if there are any."""
    found = [{key: one[key] for key in ("name", "colour", "shape")} for one in results["classes"]]
    return [*found, {"name": UNLABELLED_NAME, "colour": "#888888", "shape": "circle"}]


def _reason(about: dict[str, Any], *names: str) -> str | None:
    """Why a model lacks something: the first of ``names`` that its gaps tell about."""
    return next((about["gaps"][name] for name in names if name in about["gaps"]), None)


def _missing(results: dict[str, Any], section: str) -> str:
    """Why a whole section is missing."""
    starts = f"{section}:"
    found = [gap.removeprefix(starts).strip() for gap in results["gaps"] if gap.startswith(starts)]
    return " ".join(found) or "The reason is listed under “Not in this report”."


def _chart(title: str, group: str, unit: str, about: str) -> dict[str, Any]:
    return {"title": title, "group": group, "unit": unit, "help": about}


def _bar(name: str, cell: Cell) -> dict[str, Any]:
    """A row of a forest plot."""
    return {
        "name": name,
        "point": cell.value,
        "low": cell.low,
        "high": cell.high,
        "text": cell.words,
        "best": cell.best,
        "reason": cell.reason,
    }


def _plain(value: float | None, digits: int, scale: float = 1, unit: str = "") -> str:
    scaled = _scaled(value, scale)
    return GAP if scaled is None else _minus(f"{scaled:.{digits}f}{unit}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _scaled(value: float | None, scale: float = 1) -> float | None:
    return None if value is None or not math.isfinite(value) else scale * value


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after a separator."""
    return Markup("").join(
        escape(part) + (Markup("<wbr>") if part in tuple("/_:") else "") for part in re.split("([/_:])", name)
    )


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _letters(position: int) -> str:
    """a, b, … z, aa, ab, …"""
    before, last = divmod(position, 26)
    return (_letters(before - 1) if before else "") + string.ascii_lowercase[last]


def _finite(value: Any) -> Any:
    """What JSON in a browser takes: no NaN, no infinity."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
