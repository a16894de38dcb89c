"""The comparison report as one page that opens offline: the template reads ``Results``, the script only what it moves.

Charts are the SVG figures that also lie beside the page. Gaps are dashes with a lettered reason.
"""

import itertools
import re
import string
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from matplotlib import colormaps

from dino_oct.errors import InputError
from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.class_summary import ClassSummary, summary_of_counts
from dino_oct.scores.text import plain, slice_words
from dino_oct.scores.units import UnitResult
from dino_oct.words import counted
from evaluation import pages
from evaluation.config import ATTENTION, Reader
from evaluation.report.cases import Case, CaseAnswer, ShownMap
from evaluation.report.leaderboard import MapLeaderboard, Row, method_title, row_title
from evaluation.report.models import CLASSIFIER, KNN, LINEAR, RECALL
from evaluation.report.results import Media, Results
from evaluation.report.table import protocol_title
from evaluation.report.volumes import ShownVolume, Slice

PAGE_LIMIT = 40_000_000  # bytes; what mail servers and browsers on a tablet still take
SECTIONS = {
    "verdict": "Answer", "cases": "Cases", "confusions": "Mix-ups", "explanations": "Explanations",
    "certainty": "How sure", "groups": "By group", "warnings": "Warnings", "models": "Tables",
    "scores": "Map scores", "embedding": "Scan maps", "severity": "Severity", "suspects": "Label errors",
    "methods": "Methods", "limits": "Limits",
}  # fmt: skip
FOR_AUTHORS = ("models", "scores", "embedding", "severity", "suspects", "methods")
SUSPECTS = 5  # shown; the others are in results.json
# Words of the page for those of the results.
_GROUPS = {KNN: "nearest neighbours (k-NN)", LINEAR: "linear classifier (probe)", CLASSIFIER: "own classifier",
           RECALL: "share recognised, by class"}  # fmt: skip
_RULES = {"seeded random": "drawn at random", "best": "most clearly right", "median": "in the middle",
          "worst": "most clearly wrong"}  # fmt: skip
_KINDS = {"leak": "patients in two sets", "duplicates": "copies", "shortcut": "shortcut", "files": "files",
          "size": "few patients", "model": "model", "other": "data"}  # fmt: skip
FLAT = "flat: says nothing"
_SETS = {"train": "training", "val": "validation", "test": "test"}
_ACROSS = 6  # models beside each other on a printed page


class Number(NamedTuple):
    """A number as the page shows it, its interval, and what it sorts by."""

    text: str
    interval: str
    value: float


class Footnotes(dict):
    """Reason of a gap → its letter (a, b, … z, aa, ab, …), in the order of their first use."""

    def __missing__(self, reason: str) -> str:
        return self.setdefault(reason, _letters(len(self)))


def render(results: Results, media: Media, reader: Reader = "author") -> str:
    """The page as HTML; every name in it is escaped.

    Args:
        reader: a clinician gets no settings, methods, tables and scores of maps.

    Raises:
        InputError: the page would be larger than ``PAGE_LIMIT``.
    """
    folders = [Path(__file__).parent, Path(pages.__file__).parent]
    environment = Environment(loader=FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = _breakable
    titles = {Path(figure.file).stem: figure.title for figure in results.figures}
    ticks = _ticks(results)
    methods = (m for case in results.cases for answer in case.models.values() for m in (*answer.maps, *answer.gaps))
    page = environment.get_template("page.html").render(
        r=results,
        media=media,
        author=reader == "author",
        data=_data(results, media, reader),
        sections={id: title for id, title in SECTIONS.items() if reader == "author" or id not in FOR_AUTHORS},
        serious=[finding for finding in results.warnings if finding.serious],
        suspects=results.suspects.found[:SUSPECTS] if results.suspects else [],
        kinds=_KINDS,
        rules=_RULES,
        joined=_joined,
        urgent=[c.name for c in results.classes if c.urgent],
        sets=_SETS,
        ticks=ticks,
        place=lambda share: 100 * (share - ticks[0]) / (100 - ticks[0]),
        by_unit=lambda model: _by_unit(results, model),
        badge=badge,
        best_maps=lambda board: _best_maps(board, results.models),
        method_title=method_title,
        row_title=row_title,
        group_title=lambda group: _GROUPS.get(group, group),
        before_after=lambda case: _before_after(results, case),
        across=_ACROSS,
        groups=[list(group) for _, group in itertools.groupby(results.table.columns, lambda column: column.group)],
        number=number,
        counted_units=counted,
        protocol_title=protocol_title,
        Footnotes=Footnotes,
        figures={name: (titles[name], _inline(svg, name, titles[name])) for name, svg in media.figures.items()},
        summary=lambda confusion: _by_class(summary_of_counts(confusion.counts, [c.name for c in results.classes])),
        in_any=lambda rows: [c.name for c in results.classes if any(c.name in row for row in rows)],
        gaps=gap_lines(results.gaps, SECTIONS),
        missing=lambda section: _missing(results.gaps, section),
        reason=lambda model, *names, of=None: _reason(results.models[model].gaps, names, of),
        map_words=_words,
        ratio_words=_ratio_words,
        probability_rows=_probability_rows,
        answer_words=lambda answer, label: _answer_words(answer, label, [c.name for c in results.classes]),
        slice_words=_in_volume,
        volume_of=lambda case: _volume_of(results, case),
        methods=list(dict.fromkeys(methods)),
        inferno=[
            " ".join(f"{v:.3f}" for v in channel) for channel in colormaps["inferno"](np.linspace(0, 1, 33)).T[:3]
        ],
        settings=list(_flat(results.settings)),
    )
    size = len(page.encode(errors="surrogateescape"))
    if size > PAGE_LIMIT:
        raise InputError(
            f"the page would take {size / 1e6:.0f} MB, more than {PAGE_LIMIT / 1e6:.0f} MB: thumbnails of "
            f"{len(media.thumbnails):,} scans take {sum(map(len, media.thumbnails)) / 1e6:.0f} MB, most of the rest is "
            f"maps of {len(media.cases)} cases; compare fewer scans, cases or models"
        )
    return page


def number(value: Interval | float | None, digits: int, scale: float = 1, signed: bool = False) -> Number | None:
    """A number in words, with its interval if it has one; None where it is undefined."""
    value = value if isinstance(value, Interval) else Interval(np.nan if value is None else value)
    if not np.isfinite(value.point):
        return None
    value, form = value.times(scale), f"{'+' if signed else ''},.{digits}f"
    span = "" if value.low is None or value.high is None else f"[{value.low:{form}}, {value.high:{form}}]"
    return Number(f"{value.point:{form}}".replace("-", "−"), span.replace("-", "−"), value.point)


def badge(board: MapLeaderboard) -> str | None:
    """The map that is marked as the best: only if it is shown to be better than some other one."""
    others = sum(row.kind != "reference" for row in board.rows) - 1
    return board.best if len(board.equal_to_best) < others else None


def _best_maps(board: MapLeaderboard, models: Iterable[str]) -> dict[str, Row]:
    """Of each model the map of the highest score; rows are in its order."""
    rows = [row for row in board.rows if row.kind == "map" and row.model]
    best = {row.model: row for row in reversed(rows)}
    return {model: best[model] for model in models if model in best}


def _by_unit(results: Results, model: str | None) -> dict[str, UnitResult]:
    """How the first screen's model does by eye, or by patient where eyes are not known."""
    judged = results.overview.models.get(model)
    rows = {unit: of.rows.get(model, {}) for unit, of in results.by_unit.items() if unit in ("eye", "patient")}
    known = {unit: row[judged.by] for unit, row in rows.items() if judged and judged.by in row}
    return dict(list(known.items())[:1])


def _before_after(results: Results, case: Case) -> list[tuple[str, str]]:
    """Starting weights and finished models whose attention on a case is known."""
    pairs = [(key, model.start_of) for key, model in results.models.items() if model.start_of]
    return [pair for pair in pairs if all(key in case.models and ATTENTION in case.models[key].maps for key in pair)]


def _joined(rule: str) -> str:
    """How the scans of a unit became one answer."""
    known = {"mean": "mean of its scans", "max": "its highest scan", "attention": "scans weighed by a network"}
    return known.get(rule, f"mean of its highest scans ({rule})")


def _ticks(results: Results) -> list[int]:
    """Of the axis of the first screen, in per cent, so that every interval is inside."""
    overview = results.overview
    intervals = [judged.accuracy for judged in overview.models.values()] + [overview.pixels or Interval(100)]
    lows = [interval.point if interval.low is None else interval.low for interval in intervals]
    least = min([*lows, results.verdict.majority.share])
    first, step = next((f, s) for f, s in ((80, 5), (60, 10), (0, 25)) if least >= f)
    return list(range(first, 101, step))


def _by_class(summary: ClassSummary) -> str:
    never = f"; never recognised: {', '.join(summary.never_recognised)}" if summary.never_recognised else ""
    return (
        f"mean of the classes {summary.balanced_accuracy:.1f} %, weakest {summary.lowest} "
        f"{summary.recall[summary.lowest]:.1f} %{never}"
    )


def _data(results: Results, media: Media, reader: Reader) -> dict[str, Any]:
    """What the scripts read, as JSON."""
    embedding = results.embedding if reader == "author" else None
    if embedding:
        purity = " · purity "
        embedding = replace(
            embedding,
            panels=[
                replace(panel, caption=panel.caption + (purity + panel.purity.words(unit=" %") if panel.purity else ""))
                for panel in embedding.panels
            ],
        )
    return plain(
        {
            "classes": results.classes,
            "scans": {**vars(results.scans), "image": media.thumbnails},
            "answers": results.answers,
            "embedding": embedding,
            **({"volumes": _slices(results, media)} if results.volumes else {}),
        }
    )


def _slices(results: Results, media: Media) -> list[list[dict[str, Any]]]:
    """Of each volume and slice what the case viewer shows of it, in words and pictures, the answers in the order of the
    models."""
    names = [c.name for c in results.classes]
    return [
        [
            {
                "file": of_slice.file,
                "words": _in_volume(of_slice),
                "ratio": f"{pictures.ratio:.4f}",
                "image": pictures.scan,
                "outline": pictures.outline,
                "answers": [
                    answer and [*_answer_words(answer, of_slice.label, names), _probability_rows(answer)]
                    for answer in map(of_slice.models.get, results.models)
                ],
                "maps": {
                    key: {
                        method: [png, _words(key, method, answer.maps[method]), _ratio_words(answer.maps[method])]
                        for method, png in pictures.maps[key].items()
                    }
                    for key, answer in of_slice.models.items()
                },
            }
            for of_slice, pictures in zip(volume.slices, of_volume, strict=True)
        ]
        for volume, of_volume in zip(results.volumes.shown, media.volumes, strict=True)
    ]


def _volume_of(results: Results, case: int) -> tuple[int, ShownVolume] | None:
    """The volume that a case is a slice of, and its place among those shown; None where there is none."""
    shown = results.volumes.shown if results.volumes else []
    return next(((v, volume) for v, volume in enumerate(shown) if case in volume.cases), None)


def _in_volume(of_slice: Slice) -> str:
    return slice_words(of_slice.number, of_slice.from_fovea_um)


def _answer_words(answer: CaseAnswer, label: int | None, names: list[str]) -> tuple[str, str]:
    """Whether a model is right, as a class of the page, and what it calls; no verdict where the class is not known."""
    called = names[answer.called]
    if label is None:
        return "", called
    return (
        ("right-answer", f"✓ {called}")
        if answer.called == label
        else ("wrong-answer", f"✗ {called}, is {names[label]}")
    )


def _probability_rows(answer: CaseAnswer) -> list[str]:
    """Probability of each class in per cent."""
    return [f"{100 * p:.1f}" for p in answer.probabilities.values()]


def _ratio_words(shown: ShownMap) -> str:
    """Below a small map: that it is flat, or its density on the lesion over that on the retina where it is known."""
    if shown.flat:
        return FLAT
    return "" if shown.lesion_over_retina is None else f"{number(shown.lesion_over_retina, 1).text} ×"


def _inline(svg: str, name: str, title: str) -> Markup:
    """A figure of matplotlib as an element of a page: ids of its own, no style for the rest of the page, and a title
    for who cannot see it."""
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    # Black and white are those of the page, which may be dark.
    svg = svg.replace("#000000", "currentColor").replace("#ffffff", "var(--back)")
    return Markup(svg.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(title), 1))


def _words(model: str, method: str, shown: ShownMap) -> str:
    """What is known of a map of a case."""
    ratio = number(shown.lesion_over_retina, 1)
    words = [
        f"for the answer {shown.class_}" if shown.class_ else "",
        FLAT if shown.flat else f"{ratio.text} × as strong on the lesion as on the retina" if ratio else "",
        "{} × {} values".format(*shown.shape),
    ]
    return f"{model}, {method_title(method)}: {' · '.join(filter(None, words))}"


def _reason(gaps: dict[str, str], names: Iterable[str], value: Any) -> str:
    """Why a model lacks a number or a map: the first of ``names`` that its gaps tell about."""
    unknown = "no reason was recorded" if value is None else "the number is undefined on these scans"
    return next((gaps[name] for name in names if name in gaps), unknown)


def gap_lines(gaps: list[str], titles: dict[str, str] | None = None) -> list[str]:
    """Missing sections, by their titles where they have one, and why they are missing, each reason once."""
    sections: dict[str, list[str]] = {}
    for gap in gaps:
        section, _, why = gap.partition(": ")
        sections.setdefault(why, []).append((titles or {}).get(section, section))
    return [f"{', '.join(names)}: {why}" for why, names in sections.items()]


def _missing(gaps: list[str], section: str) -> str:
    """Why a whole section is missing."""
    section = "explanations" if section == "scores" else section
    reasons = [gap.removeprefix(f"{section}:").strip() for gap in gaps if gap.startswith(f"{section}:")]
    return " ".join(reasons) or "The reason is listed under “Not in this report”."


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after a separator."""
    return Markup(re.sub("([/_:])", r"\1<wbr>", str(escape(name))))


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _letters(position: int) -> str:
    before, last = divmod(position, 26)
    return (_letters(before - 1) if before else "") + string.ascii_lowercase[last]
