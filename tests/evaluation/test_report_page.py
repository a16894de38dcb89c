"""The comparison report's page: what it says of made-up results, and what a browser makes of it."""

import base64
import copy
import html
import io
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dino_oct.errors import InputError
from evaluation import report_page

HOSTILE = """</script><script>document.title='owned'</script><img src=x onerror="document.title='owned'">'&{{ 7*7 }}"""
MODELS = (
    "quickstart-1",
    "quickstart-1/start",
    "random:vit_tiny",
    "phantoms_resnet-1",
    "phantoms_vit-1",
    "phantoms_convnext-1",
)
KINDS = ("self-supervised", "starting weights", "random weights", "supervised", "supervised", "supervised")
CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
METHODS = ("attention", "rollout", "relevance", "gradcam", "gradcam++", "hirescam", "eigencam", "occlusion")
SCANS = 40
NO_LOGIT = "a backbone without a classifier has no logit to explain"


def interval(point: float, width: float) -> dict:
    return {"point": point, "low": point - width, "high": point + 0.8 * width}


def drawn_scan(rng: np.random.Generator, label: int) -> tuple[np.ndarray, np.ndarray]:
    """A layered grey picture (72, 96) and the mask of its lesion."""
    y, x = np.mgrid[:72, :96]
    depth = y - 24 - 8 * ((x - 48) / 48) ** 2 - rng.normal()
    picture = 40 + 90 * ((depth > 0) & (depth < 4)) + 60 * ((depth > 4) & (depth < 20)) + 110 * (abs(depth - 22) < 2)
    mask = (x - rng.integers(25, 70)) ** 2 + 2 * (depth - 13) ** 2 < 90
    mask &= label < 3
    return np.clip(picture + 70 * mask * (1 if label != 1 else -1) + rng.normal(0, 14, y.shape), 0, 255), mask


def encoded(array: np.ndarray, kind: str) -> str:
    with io.BytesIO() as stream:
        Image.fromarray(array.astype(np.uint8)).save(stream, kind)
        return base64.b64encode(stream.getvalue()).decode()


def made_report(seed: int = 0) -> tuple[dict, dict]:
    """Results and media of six models on 40 scans, with gaps: one model has no maps, some numbers are undefined."""
    rng = np.random.default_rng(seed)
    labels = [i % 4 for i in range(SCANS)]
    scans = [drawn_scan(rng, label) for label in labels]
    table = made_table(rng)
    results = {
        "evaluation": "compare",
        "title": "Self-supervised against supervised on phantoms",
        "command": "python evaluation/compare.py runs/quickstart-1 runs/phantoms_resnet-1 --data phantom --out report",
        "made": "2026-11-24",
        "notice": "PHANTOMS: synthetic scans",
        "verdict": {
            "headline": "quickstart-1 tells the classes better than every supervised model: 90.1 % against 83.4 %.",
            "sentences": [
                "The difference to phantoms_vit-1 is 6.7 percentage points [3.9, 9.6] on 96 patients (1,152 scans).",
                "Between the three supervised models no difference is shown.",
            ],
            "patients": 96,
            "scans": 1152,
            "majority": {"name": "NORMAL", "share": 86.1},
            "difference": {"point": 6.71, "low": 3.94, "high": 9.58},
            "a": "quickstart-1",
            "b": "phantoms_vit-1",
        },
        "warnings": [
            {"kind": "leak", "serious": True, "text": "3 patients are in the training and in the test split."},
            {
                "kind": "shortcut",
                "serious": False,
                "text": "Without the retina, classes are told at 31.2 % (chance 25.0).",
            },
            {"kind": "size", "serious": False, "text": "random:vit_tiny sees scans of 64 × 64 px, the others 96 × 96."},
        ],
        "data": {
            "folder": "phantom",
            "synthetic": True,
            "sets": {
                name: {
                    "scans": 12 * patients,
                    "patients": patients,
                    "classes": {one: {"scans": 3 * patients, "patients": patients} for one in CLASSES},
                }
                for name, patients in {"train": 256, "val": 48, "test": 96}.items()
            },
        },
        "classes": [
            {"name": name, "colour": colour, "shape": shape, "urgent": name in CLASSES[:2]}
            for name, colour, shape in zip(
                CLASSES,
                ("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
                ("circle", "square", "up", "diamond"),
                strict=True,
            )
        ],
        "models": {
            model: {
                "source": f"runs/{model}",
                "kind": kind,
                "architecture": "vit_tiny_patch16_224" if i < 3 else "resnet18",
                "parameters": 5_526_346 + i,
                "ms_per_scan": 2.4 + i,
                "input_size": [96, 96],
                "sha256": f"{i}a3f" * 16,
                "classifier": "probe" if i < 3 else "own",
                "target": "linear probe, validation accuracy 88.1 %" if i < 3 else "its own classifier",
                "gaps": {"classifier": NO_LOGIT, "explanations": NO_LOGIT, "severity": "features are constant"}
                if i == 2
                else {},
            }
            for i, (model, kind) in enumerate(zip(MODELS, KINDS, strict=True))
        },
        "table": table,
        **made_answers(rng, labels),
        "scans": {
            "file": [f"test/{CLASSES[c]}/{CLASSES[c]}-{1000 + i // 2}-{i % 2}.jpeg" for i, c in enumerate(labels)],
            "label": labels,
            "patient": [str(1000 + i // 2) for i in range(SCANS)],
            "split": ["test"] * SCANS,
        },
        "suspects": {
            "rule": "Cross-validated margin below −0.5: another class is far more probable than the label.",
            "model": "quickstart-1",
            "found": [
                {
                    "scan": i,
                    "given": labels[i],
                    "suggested": (labels[i] + 1) % 4,
                    "probability_given": 0.0312 + i / 100,
                    "margin": -0.9123 + i / 100,
                    "neighbours": [{"scan": (i + 4 * n + 1) % SCANS, "similarity": 0.98 - n / 50} for n in range(5)],
                }
                for i in (3, 8, 21)
            ],
        },
        "embedding": {
            "scans": list(range(SCANS)),
            "k": 5,
            "panels": [
                {
                    "model": model,
                    "title": model,
                    "caption": f"{KINDS[m]}, {1 + m} of 6",
                    "x": (rng.integers(0, 3000, SCANS) + 2000 * np.array(labels) * (m != 2)).tolist(),
                    "y": rng.integers(0, 10_000, SCANS).tolist(),
                    "near": [[(i + 4 * n + 4) % SCANS for n in range(5)] for i in range(SCANS)] if m != 1 else None,
                    "purity": interval(80.7 - 7 * m, 2.9) if m != 3 else None,
                }
                for m, model in enumerate(MODELS)
            ],
            "note": "UMAP axes have no units; distances between groups mean nothing by themselves.",
        },
        "league": made_league(rng),
        "severity": made_severity(rng, labels),
        "cases": [],
        "gaps": ["search: no leaderboard was given"],
        "methods": [
            "Features were extracted once for each model at its own size and compared on the same 1,152 scans.",
            "Intervals are 95 % intervals by patient, from 1,000 resamples; differences are paired.",
        ],
        "versions": {"torch": "2.9.0", "timm": "1.0.31", "scikit-learn": "1.7.2"},
        "settings": {"seed": 0, "knn": {"k": [5, 10]}, "bootstrap": {"resamples": 1000}},
        "limits": ["Phantoms are simpler than scans of people.", "One seed of each model."],
        "intended_use": "For research on representations of retinal OCT. Not for diagnosis.",
        "figures": [{"file": "figures/maps.png", "title": "UMAP of features"}],
        "evaluations": {},
    }
    media = {"thumbnails": [encoded(picture, "JPEG") for picture, _ in scans], "cases": []}
    add_cases(results, media, scans, rng)
    return results, media


def made_table(rng: np.random.Generator) -> dict:
    columns = [
        ("knn_5", "k-NN, k = 5", "k-NN", "%", 1, True),
        ("knn_10", "k-NN, k = 10", "k-NN", "%", 1, True),
        ("linear", "accuracy", "linear probe", "%", 1, True),
        ("linear_balanced", "balanced accuracy", "linear probe", "%", 1, True),
        ("linear_auroc", "AUROC", "linear probe", "%", 1, True),
        ("accuracy", "accuracy", "classifier", "%", 1, True),
        ("auroc", "AUROC", "classifier", "%", 1, True),
        ("ece", "calibration error", "classifier", "%", 1, False),
        ("urgent", "sensitivity", "urgent against routine", "%", 1, True),
        ("routine", "specificity", "urgent against routine", "%", 1, True),
        *((f"recall_{name}", name, "recall of the classifier", "%", 1, True) for name in CLASSES),
        ("parameters", "parameters", "cost", "M", 2, None),
        ("ms", "ms per scan", "cost", "ms", 1, False),
    ]
    rows: dict[str, dict] = {}
    for m, model in enumerate(MODELS):
        rows[model] = {}
        for key, _, group, _, _, _ in columns:
            wide = interval(float(90.123 - 6.4 * m + rng.normal()), float(rng.uniform(1.5, 4)))
            rows[model][key] = {"point": 5.526, "low": None, "high": None} if group == "cost" else wide
            if m == 2 and group in ("classifier", "recall of the classifier", "urgent against routine"):
                rows[model][key] = None
    rows[MODELS[4]]["knn_10"] = {"point": None, "low": None, "high": None}
    return {
        "columns": [
            {
                "key": key, "title": title, "group": group, "help": f"What {title} ({group}) measures.",
                "unit": unit, "digits": digits, "higher_is_better": better,
            }
            for key, title, group, unit, digits, better in columns
        ],
        "rows": rows,
        "classes_of_lowest_recall": {MODELS[0]: {"linear_balanced": "DRUSEN"}},
        "best": {key: MODELS[0] if key in ("knn_5", "linear") else None for key, *_ in columns},
        "rule": "the best of a column whose paired difference to every other model excludes 0 (95 %, by patients).",
        "differences": {
            key: {f"{MODELS[0]} − {other}": interval(6.4 * m + 6.4, 3.1) for m, other in enumerate(MODELS[1:])}
            for key in ("knn_5", "knn_10", "linear")
        },
    }  # fmt: skip


def made_answers(rng: np.random.Generator, labels: list[int]) -> dict:
    confusions, answers = {}, {}
    for m, model in enumerate(MODELS):
        if m == 2:
            continue
        called = [c if rng.random() > 0.15 * (m + 1) else int(rng.integers(4)) for c in labels]
        counts = np.zeros((4, 4), dtype=int)
        np.add.at(counts, (labels, called), 1)
        wrong = [(t, c) for t in range(4) for c in range(4) if t != c and counts[t, c]]
        confusions[model] = {
            "counts": counts.tolist(),
            "pairs": [
                {"true": t, "called": c, "scans": [i for i in range(SCANS) if (labels[i], called[i]) == (t, c)]}
                for t, c in sorted(wrong, key=lambda pair: -counts[pair])
            ],
        }
        answers[model] = {
            "scans": list(range(SCANS)),
            "called": called,
            "probability": rng.uniform(0.4, 1, SCANS).tolist(),
        }
    return {"confusions": confusions, "answers": answers}


def made_league(rng: np.random.Generator) -> dict:
    scores = [("auprc", "AUPRC", 3, False), ("pointing", "pointing game", 1, True), ("energy", "energy", 1, True),
              ("lesion_over_retina", "lesion over retina", 2, False), ("iou_otsu", "IoU, Otsu", 3, False)]  # fmt: skip

    def scored(level: float) -> dict:
        return {key: interval(level * (3 if key == "lesion_over_retina" else 1), 0.04) for key, *_ in scores}

    rows = []
    for m, model in enumerate(MODELS):
        for w, method in enumerate(METHODS if m < 2 else METHODS[3:] if m > 2 else ()):
            level = 0.55 - 0.05 * m - 0.03 * w
            rows.append(
                {
                    "name": f"{model}: {method}", "model": model, "method": method, "kind": "map",
                    "candidate": "head 3 of block 12, chosen on validation patients" if method == "attention" else "",
                    "scores": scored(level),
                    "classes": {name: scored(level + rng.normal() / 50) for name in CLASSES[:3]},
                    "deletion": None if method == "attention" else interval(0.4, 0.05),
                    "insertion": None if method == "attention" else interval(0.6, 0.05),
                    "ms": 3.2 + w, "mb": 120.0 + w, "sanity": ("passed", "FAILED", "not tested")[w % 3],
                    "beats_simple_maps": level > 0.4,
                }
            )  # fmt: skip
    for name in ("centre", "brightness", "the mask itself"):
        level = 1 if "mask" in name else 0.2
        rows.append(
            {
                "name": name, "model": None, "method": name, "kind": "reference", "candidate": "",
                "scores": {**scored(level), "energy": {"point": None, "low": None, "high": None}},
                "classes": {}, "deletion": None, "insertion": None, "ms": None, "mb": None, "sanity": None,
                "beats_simple_maps": None,
            }
        )  # fmt: skip
    return {
        "score": "auprc",
        "scores": [
            {"key": key, "title": title, "help": f"What {title} measures.", "digits": digits, "percent": percent}
            for key, title, digits, percent in scores
        ],
        "rows": rows,
        "best": rows[0]["name"],
        "equal_to_best": [rows[1]["name"]],
        "statements": ["Attention of quickstart-1 finds lesions better than maps without a network."],
        "notes": ["Scores are means over the scans of each patient, then over patients."],
        "gaps": [{"model": MODELS[2], "method": method, "reason": NO_LOGIT} for method in METHODS],
        "patients": 72,
        "scans": 864,
    }


def made_severity(rng: np.random.Generator, labels: list[int]) -> dict:
    def both(level: float) -> dict:
        return {"from_normal": interval(level, 0.08), "by_neighbours": interval(level - 0.1, 0.09)}

    diseased = [i for i, label in enumerate(labels) if label < 3]
    used = [model for i, model in enumerate(MODELS) if i != 2]
    severity = rng.uniform(0, 1, len(diseased))
    return {
        "measure": "phantom severity",
        "help": "0 without a lesion, 1 for the largest; distance is the cosine distance to the mean of NORMAL.",
        "rows": {
            model: {"all": both(0.71 - m / 10), "classes": {name: both(0.6 - m / 10) for name in CLASSES[:3]}}
            for m, model in enumerate(used)
        },
        "scatter": {
            model: {
                "scans": diseased,
                "severity": severity.tolist(),
                "from_normal": (0.2 + severity / (2 + m) + rng.normal(0, 0.05, len(diseased))).tolist(),
            }
            for m, model in enumerate(used)
        },
    }


def add_cases(results: dict, media: dict, scans: list[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator) -> None:
    y, x = np.mgrid[:12, :16] / 12
    rules = ("seeded random", "seeded random", "seeded random", "best", "median", "worst")
    for i, rule in zip((0, 5, 7, 10, 13, 18), rules, strict=True):
        picture, mask = scans[i]
        case = {"scan": i, "rule": rule, "why": f"AUPRC {rng.random():.2f} of quickstart-1: attention",
                "severity": float(rng.random()) if i % 4 < 3 else None, "models": {}}  # fmt: skip
        images: dict[str, dict[str, str]] = {}
        for m, model in enumerate(MODELS):
            if m == 2:
                continue
            logits = dict(zip(CLASSES, rng.normal(0, 3, 4).tolist(), strict=True))
            total = sum(np.exp(value) for value in logits.values())
            usable = METHODS if m < 2 else METHODS[3:]
            images[model] = {}
            for method in usable:
                values = np.exp(-8 * ((x - rng.uniform(0.2, 1.1)) ** 2 + (y - rng.uniform(0.2, 0.8)) ** 2))
                images[model][method] = encoded(255 * values / values.max(), "PNG")
            case["models"][model] = {
                "called": int(np.argmax(list(logits.values()))),
                "logits": logits,
                "probabilities": {name: float(np.exp(value) / total) for name, value in logits.items()},
                "maps": {
                    method: {"class": None if method == "attention" else "CNV", "peak": 0.8, "shape": [12, 16],
                             "lesion_over_retina": 2.34 if mask.any() else None, "auprc": 0.41 if mask.any() else None}
                    for method in usable
                },
                "gaps": {} if m < 2 else dict.fromkeys(METHODS[:3], "not a transformer: it has no attention"),
            }  # fmt: skip
        results["cases"].append(case)
        enlarged = np.kron(picture, np.ones((4, 4)))
        media["cases"].append(
            {
                "scan": encoded(enlarged, "JPEG"),
                "lesion": encoded(255 * mask, "PNG") if mask.any() else None,
                "maps": images,
            }
        )


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
        if tag not in ("meta", "link", "img", "wbr"):
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
def report():
    return made_report()


@pytest.fixture(scope="module")
def page(report):
    return report_page.render(*report)


def test_the_page_is_whole_and_loads_nothing(page):
    reader = Reader(page)
    outside = [attrs[name] for _, attrs in reader.tags for name in ("src", "href", "action") if name in attrs]
    assert all(link.startswith("#") or link == "data:," for link in outside)
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in outside if link.startswith("#")} <= set(ids)
    sections = [attrs["id"] for tag, attrs in reader.tags if tag == "section"]
    assert sections == ["verdict", "warnings", "models", "confusions", "suspects", "embedding", "explanations", "cases",
                        "severity", "methods", "limits"]  # fmt: skip
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", reader.scripts[1])
    assert not re.search(r"@import|url\(", page)


def test_the_numbers_are_those_of_the_results(page, report):
    results, _ = report
    header, *rows = rows_of(page, "model-table")[1:]
    assert len(header) == len(results["table"]["columns"]) + 1
    assert [row[0].split()[0] for row in rows] == list(MODELS)
    for model, row in zip(MODELS, rows, strict=True):
        for column, shown in zip(results["table"]["columns"], row[1:], strict=True):
            found, digits = results["table"]["rows"][model][column["key"]], column["digits"]
            if found is None or found["point"] is None:
                assert shown.startswith("–")
            elif found["low"] is None:
                assert shown == f"{found['point']:.{digits}f}"
            else:
                point, low, high = (f"{found[end]:.{digits}f}" for end in ("point", "low", "high"))
                weakest = results["table"]["classes_of_lowest_recall"].get(model, {}).get(column["key"])
                assert shown == f"{point} {f'{weakest} ' if weakest else ''}[{low}, {high}]"
    league = rows_of(page, "league-table")[1:]
    first = results["league"]["rows"][0]["scores"]
    assert league[0][1].startswith("{point:.3f} [{low:.3f}, {high:.3f}]".format(**first["auprc"]))
    shares = {end: 100 * value for end, value in first["pointing"].items()}
    assert league[0][2].startswith("{point:.1f} [{low:.1f}, {high:.1f}]".format(**shares))
    severity = rows_of(page, "severity-table")[2:]
    found = results["severity"]["rows"][MODELS[0]]["all"]["from_normal"]
    assert severity[0][1] == "{point:+.2f} [{low:+.2f}, {high:+.2f}]".format(**found)
    words = Reader(page).words
    for expected in (
        "+6.7",
        "[+3.9, +9.6]",
        "always NORMAL, the most frequent class 86.1 %",
        "1,152 scans of 96 patients",
        results["verdict"]["headline"],
        "PHANTOMS",
    ):
        assert expected in words


def test_the_charts_place_what_the_table_says(page, report):
    results, _ = report
    for column, chart in zip(results["table"]["columns"], Reader(page).data["forest"], strict=True):
        for row in chart["rows"]:
            found = results["table"]["rows"][row["name"]][column["key"]] or {"point": None, "low": None, "high": None}
            assert [row[end] for end in found] == list(found.values())
            assert row["text"].startswith("–" if found["point"] is None else f"{found['point']:.{column['digits']}f}")
    first = Reader(page).data["forest"][0]
    assert first["best"] == MODELS[0]
    assert first["differences"][MODELS[1]]["text"] == "+6.4 [+3.3, +8.9]"


def test_bold_is_what_the_bootstrap_separates(page, report):
    results, _ = report
    best = [f"{results['table']['rows'][MODELS[0]][key]['point']:.1f}" for key in ("knn_5", "linear")]
    numbers = [text for text in Reader(page).bold if re.fullmatch(r"[\d.,]+", text.strip())]
    assert sorted(numbers) == sorted(2 * best)  # in the table of the screen, and in that of the printer
    none = copy.deepcopy(results)
    none["table"]["best"] = dict.fromkeys(none["table"]["best"])
    assert not [text for text in Reader(report_page.render(none, report[1])).bold if re.match(r"\d", text.strip())]
    assert results["table"]["rule"] in Reader(page).words


def test_gaps_tell_their_reason_where_they_are_and_below(page):
    reader = Reader(page)
    titles = {attrs.get("title") for tag, attrs in reader.tags if tag == "span" and attrs.get("class") == "gap"}
    reasons = (
        f"{MODELS[2]}: {NO_LOGIT}", f"{MODELS[2]}: features are constant",
        f"{MODELS[4]}: the number is undefined on these scans", f"{MODELS[2]}: no reason was recorded",
    )  # fmt: skip
    for reason in reasons:
        assert reason in titles
        assert reason in reader.words
    cases = reader.data["cases"]
    assert cases["methods"] == list(METHODS)
    convolutional = cases["cases"][0]["models"][3]
    assert convolutional["gaps"]["attention"] == "not a transformer: it has no attention"
    assert cases["cases"][0]["models"][2]["gap"] == NO_LOGIT
    assert "search: no leaderboard was given" in reader.words


def test_whole_sections_may_be_missing(report):
    results, media = copy.deepcopy(report)
    missing = dict.fromkeys(("league", "severity", "suspects", "embedding", "notice"))
    empty = {"cases": [], "confusions": {}, "answers": {}, "warnings": [], "figures": []}
    results |= {**missing, **empty, "gaps": ["explanations: no masks were given"]}
    results["verdict"] |= {"difference": None, "a": None, "b": None}
    results["table"]["best"], results["table"]["differences"] = {}, {}
    media["cases"] = []
    reader = Reader(report_page.render(results, media))
    assert reader.words.count("Not in this report.") == 6
    assert "Not in this report. no masks were given" in reader.words
    assert "PHANTOMS" not in " ".join(reader.bold)


def test_names_are_never_markup(report):
    results, media = hostile(report)
    reader = Reader(report_page.render(results, media))
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 2
    assert all("onerror" not in attrs for _, attrs in reader.tags)
    assert all(attrs.get("src") is None for tag, attrs in reader.tags if tag == "img")
    assert HOSTILE in " ".join(reader.text)
    assert reader.data["scans"]["file"][0] == HOSTILE
    assert "innerHTML" not in reader.scripts[1]


def hostile(report: tuple[dict, dict]) -> tuple[dict, dict]:
    """The report with a model, a class, all files, a reason and the title that try to be markup."""
    results, media = copy.deepcopy(report)
    text = json.dumps(results)
    for name in (MODELS[3], CLASSES[2], NO_LOGIT, results["title"]):
        text = text.replace(json.dumps(name)[1:-1], json.dumps(HOSTILE + name[:3])[1:-1])
    results = json.loads(text)
    for column in ("file", "patient", "split"):
        results["scans"][column] = [HOSTILE] * SCANS
    for case in media["cases"]:
        case["maps"] = {HOSTILE + "pha" if name == MODELS[3] else name: maps for name, maps in case["maps"].items()}
    return results, media


def test_undefined_numbers_do_not_stop_the_page(report):
    results, media = copy.deepcopy(report)
    results["severity"]["scatter"][MODELS[0]]["from_normal"][0] = float("nan")
    results["table"]["rows"][MODELS[0]]["knn_5"]["point"] = float("nan")
    reader = Reader(report_page.render(results, media))
    assert reader.data["severity"]["panels"][0]["from_normal"][0] is None
    assert reader.data["forest"][0]["rows"][0]["text"] == "–"


def test_a_page_too_large_to_send_is_refused(report, monkeypatch):
    monkeypatch.setattr(report_page, "PAGE_LIMIT", 100_000)
    with pytest.raises(InputError, match="compare fewer scans, cases or models") as error:
        report_page.render(*report)
    assert len(str(error.value).splitlines()) == 1


PROBE = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)));
const complain = console.error;
console.error = (...words) => { problems.push(words.join(" ")); complain(...words); };
</script>"""
STEPS = """<script>addEventListener("load", async () => {
  const found = {}, one = (query) => document.querySelector(query);
  const all = (query) => [...document.querySelectorAll(query)];
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const until = async (check) => { for (let i = 0; i < 100 && !check(); i++) await wait(50); };
  const change = (element, value) => {
    element.value = value;
    element.dispatchEvent(new Event(element.type === "range" ? "input" : "change"));
  };
  const point = (element, x, y) => element.dispatchEvent(
    new PointerEvent("pointermove", {clientX: x, clientY: y, pointerType: "mouse", bubbles: true}));
  const paper = document.createElement("canvas"), copy = paper.getContext("2d", {willReadFrequently: true});
  const ink = (canvas) => {
    [paper.width, paper.height] = [canvas.width, canvas.height];
    copy.drawImage(canvas, 0, 0);
    const values = copy.getImageData(0, 0, paper.width, paper.height).data;
    let sum = 0;
    for (let i = 0; i < values.length; i++) sum = (sum * 31 + values[i]) % 1000000007;
    return sum;
  };
  try {
    const canvas = one("#case-canvas"), tip = one(".tip");
    await until(() => canvas.width === 880);
    await until(() => [...document.images].every((image) => image.complete));
    found.images = [...document.images].map((image) => image.complete && image.naturalWidth > 0);
    found.wide = document.documentElement.scrollWidth - innerWidth;

    const order = () => all("#model-table tbody tr").map((row) => row.dataset.model);
    const sorts = () => all("#model-table thead tr:last-child th").map((head) => head.getAttribute("aria-sort"));
    const buttons = all("#model-table .sort");
    found.orders = [order()];
    for (const [button, times] of [[buttons[1], 2], [buttons[6], 1], [buttons[0], 1]]) {
      for (let i = 0; i < times; i++) button.click();
      found.orders.push(order());
    }
    found.sorts = sorts();
    found.forestOrder = all("#model-forest svg:first-of-type")[0] && all("#model-forest .charts > div:first-child g")
      .map((row) => row.getAttribute("aria-label").split(": ")[0]);

    const mark = one("#model-forest g[tabindex]"), box = mark.getBoundingClientRect();
    point(mark, box.left + 5, box.top + 5);
    found.hint = tip.hidden ? null : tip.textContent;
    mark.dispatchEvent(new PointerEvent("pointerleave"));
    found.hintGone = tip.hidden;
    change(one("#model-forest select"), 8);
    found.chart = one("#model-forest h4").textContent;

    const cell = one(".confusion .wrong button"), behind = one("#behind");
    cell.click();
    found.opened = {hidden: behind.hidden, title: behind.querySelector("h3").textContent,
      count: Number(cell.textContent), scans: behind.querySelectorAll(".scan").length,
      expanded: cell.getAttribute("aria-expanded"),
      text: behind.textContent, label: cell.getAttribute("aria-label")};
    await until(() => all("#behind img").every((image) => image.complete));
    found.opened.images = all("#behind img").map((image) => image.naturalWidth > 0);
    behind.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
    found.closed = behind.hidden;

    const seen = [ink(canvas)], look = () => seen.push(ink(canvas));
    const model = one("#case-model"), method = one("#case-method"), opacity = one("#case-opacity");
    const outline = one("#case-outline");
    found.grid = {maps: all(".grid button").length, gaps: all(".grid .gap").length, painted: ink(one(".grid canvas"))};
    change(method, 3); look();
    change(model, 1); look();
    change(opacity, 20); look();
    outline.click(); look();
    all(".grid button")[20].click(); look();
    const answers = one(".answers").textContent, before = ink(canvas);
    all(".case")[3].click();
    await until(() => ink(canvas) !== before);
    look();
    found.seen = seen;
    found.answersChanged = one(".answers").textContent !== answers;
    change(model, 3);
    change(method, 0);
    found.gap = one(".map-words").textContent;
    found.pressed = all(".case").map((button) => button.getAttribute("aria-pressed"));

    const scatter = one("#scatter canvas"), area = scatter.getBoundingClientRect(), plain = ink(scatter);
    for (let i = 0; i < 20; i++) for (let j = 0; j < 20 && tip.hidden; j++)
      point(scatter, area.left + area.width * (0.12 + 0.04 * i), area.top + area.height * (0.05 + 0.04 * j));
    found.scatter = {text: tip.textContent, linked: ink(all("#scatter canvas")[1]), changed: ink(scatter) !== plain};

    const first = () => one("#league-table tbody td [data-class]:not([hidden])").textContent;
    const last = () => all("#league-table tbody").map((body) => body.className);
    const was = first();
    change(one("#league-class"), "DME");
    all("#league-table .sort")[1].click();
    found.league = {changed: first() !== was, bodies: last()};
    found.maps = all("#maps .map canvas").map(ink);
    dispatchEvent(new Event("beforeprint"));
    found.details = all("details").every((one) => one.open);
    found.title = document.title;
  } catch (error) { problems.push(String(error.stack)); }
  found.problems = problems;
  const report = document.createElement("pre");
  report.id = "report";
  report.textContent = JSON.stringify(found);
  document.body.append(report);
});</script></body>"""


def in_browser(page: str, folder, *options: str) -> dict:
    """What the steps found on a page opened in headless Chromium, and what it complained about."""
    file = folder / "page.html"
    file.write_text(page.replace("<head>", f"<head>{PROBE}", 1).replace("</body>", STEPS))
    finished = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--enable-logging=stderr", *options,
            "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = re.search(r'<pre id="report">(.*?)</pre>', finished.stdout, re.DOTALL)
    assert told, finished.stderr[-2000:]
    found = json.loads(html.unescape(told[1]))
    found["console"] = [line for line in finished.stderr.splitlines() if "CONSOLE" in line]
    return found


@pytest.fixture(scope="module")
def browsed(page, tmp_path_factory):
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    return in_browser(page, tmp_path_factory.mktemp("browser"), "--window-size=1600,1000")


def test_a_browser_has_nothing_to_complain_about(browsed):
    assert browsed["problems"] == []
    assert browsed["console"] == []
    assert len(browsed["images"]) > 20
    assert all(browsed["images"])
    assert browsed["wide"] <= 0  # only tables scroll sideways


def test_tables_sort_and_charts_follow(browsed, report):
    results, _ = report
    rows = results["table"]["rows"]

    def by(key: str, best_first: bool) -> list[str]:
        known = [model for model in MODELS if (rows[model][key] or {}).get("point") is not None]
        ordered = sorted(known, key=lambda model: rows[model][key]["point"], reverse=best_first)
        return ordered + [model for model in MODELS if model not in known]

    start, ascending, classifier, names = browsed["orders"]
    assert start == list(MODELS)
    assert ascending == by("knn_5", False)
    assert classifier == by("accuracy", True)
    assert classifier[-1] == MODELS[2]  # a gap is last, whatever the direction
    assert names == sorted(MODELS)
    assert browsed["sorts"][0] == "ascending"
    assert set(browsed["sorts"][1:]) == {"none"}
    assert browsed["forestOrder"] == names
    assert browsed["league"]["changed"]
    assert browsed["league"]["bodies"] == ["maps", "references"]


def test_charts_tell_the_number_under_the_pointer(browsed, report):
    found = report[0]["table"]["rows"][sorted(MODELS)[0]]["knn_5"]
    expected = "{point:.1f} [{low:.1f}, {high:.1f}]".format(**found)
    assert browsed["hint"] == f"{sorted(MODELS)[0]}: {expected}"
    assert browsed["hintGone"]
    assert browsed["chart"].startswith("urgent against routine: sensitivity")
    assert re.search(r"phantom severity \d\.\d{3}, distance", browsed["scatter"]["text"])
    assert browsed["scatter"]["changed"]


def test_a_number_of_the_matrix_opens_its_scans(browsed):
    opened = browsed["opened"]
    assert not opened["hidden"]
    assert opened["scans"] == opened["count"] > 0
    assert all(opened["images"])
    assert len(opened["images"]) == opened["count"]
    assert re.search(r"patient \d{4}", opened["text"])
    assert re.search(r"\d\.\d %", opened["text"])
    assert opened["expanded"] == "true"
    assert opened["title"].split(": ")[0] == opened["label"].split(": ")[0]
    assert browsed["closed"]


def test_the_case_viewer_switches(browsed):
    seen = browsed["seen"]
    assert len(seen) == 7
    assert all(one != other for one, other in itertools.pairwise(seen))
    assert browsed["answersChanged"]
    assert browsed["grid"]["maps"] == 2 * 8 + 3 * 5
    assert browsed["grid"]["gaps"] == 8 + 3 * 3
    assert "no map, not a transformer" in browsed["gap"]
    assert browsed["pressed"] == ["false", "false", "false", "true", "false", "false"]
    assert min(browsed["maps"]) >= 0
    assert browsed["details"]


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_hostile_names_in_a_narrow_browser(report, tmp_path):
    page = report_page.render(*hostile(report))
    found = in_browser(page, tmp_path, "--window-size=480,1000")
    assert found["problems"] == []
    assert all(found["images"])
    assert found["title"] != "owned"
    assert found["wide"] <= 0
