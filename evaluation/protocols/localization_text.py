"""The localization result in words: tables for the terminal, and what the numbers let one say."""

import dataclasses
from dataclasses import dataclass, field

from dino_oct.scores.bootstrap import Interval
from dino_oct.scores.text import Evaluation, closing, heading, show, table
from dino_oct.words import counted, scans_of
from evaluation.config import ATTENTION
from evaluation.maps.leaderboard import Faithfulness, Leaderboard, PairedDifference, Sanity, Standing
from evaluation.maps.randomisation import LIMIT, STAGES
from evaluation.scores.lesions import CONTROLS, SIMPLE

TITLES = {
    "auprc": "average precision %",
    "pointing": "pointing game %",
    "rank_accuracy": "rank accuracy %",
    "lesion_over_retina": "lesion / retina",
    "energy": "energy on lesion %",
    "energy_retina": "on retina %",
    "enrichment": "enrichment",
    "iou_otsu": "IoU (Otsu) %",
    "iou_mass": "IoU (60 % of mass) %",
    "iou_tuned": "IoU (tuned) %",
}
PERCENT = tuple(score for score, title in TITLES.items() if title.endswith("%"))
_LISTED = 8  # names that a sentence has room for
_MAIN = ("auprc", "pointing", "rank_accuracy", "lesion_over_retina")
UNITS = (
    "means over the same scans with a lesion for every map; a map with nothing positive is a miss and scores 0, one "
    "with nothing on the retina scores 0 in lesion_over_retina; shares and IoU 0 to 1; enrichment and "
    "lesion_over_retina 1 if uniform; deletion: low is good, insertion: high is good, probability of the class 0 to 1; "
    "ms: a scan; mb: peak memory of one scan"
)


@dataclass(frozen=True)
class ModelFacts:
    """What is said about a model whose maps are scored.

    Attributes:
        kind: as ``Source.kind``; target: in words, what a class's logit is, None without classes.
        input_size: rows and columns in pixels; attention_size: short side in pixels, None: the input size.
        methods: that were used; gaps: method → why not.
    """

    kind: str
    architecture: str
    input_size: tuple[int, int]
    attention_size: int | None
    target: str | None
    methods: tuple[str, ...]
    gaps: dict[str, str]


@dataclass(frozen=True)
class Area:
    """Shares of the pixels that lesions and the retina cover."""

    lesion: Interval
    retina: Interval


@dataclass(frozen=True)
class UnitScores:
    """Row → the ranking score, mean over units of the mean over their scans with a lesion; how many units, and of how
    many patients."""

    units: int
    patients: int
    rows: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Localization(Evaluation, Leaderboard):
    """What ``localization.json`` holds beside its scans: the leaderboard, what it is of, and the ranking score
    by volume, eye and patient, where these hold several of the scans."""

    evaluation: str = "localization"
    models: dict[str, ModelFacts]
    units: str = UNITS
    area: Area
    by_unit: dict[str, UnitScores] = field(default_factory=dict, metadata={"may_be_empty": True})
    statements: list[str] = field(default_factory=list)


def report(result: Localization) -> str:
    """The result as text: what was used, tables, and what they let one say."""
    sets, area, score = result.data["sets"], result.area, result.score
    of_test = ", ".join(f"{name} {n['scans']}" for name, n in sets["test"]["classes"].items() if n["scans"])
    lines = [
        *heading("maps on lesions", result),
        *(_model_line(name, model) for name, model in result.models.items()),
        f"data: {result.data['folder']} · heads and thresholds chosen on "
        f"{scans_of(sets['validation'], 'validation')} · scored on "
        f"{scans_of(sets['test'], 'test')} ({of_test})",
        f"area: lesion {100 * area.lesion.point:.1f} %, retina {100 * area.retina.point:.1f} % of the pixels "
        f"({result.data['retina']})",
    ]
    if result.heads:
        heads = ", ".join(f"{name} {head.name}" for name, head in result.heads.items())
        lines.append(f"attention heads, by {TITLES[score].removesuffix(' %')} on validation patients: {heads}")
    lines += [text for part in _tables(result) for text in ("", part)]
    lines += [f"[95 % interval, {result.settings['bootstrap']['resamples']} resamples of patients]"]
    return "\n".join([*lines, *closing(result, result.statements)])


def _model_line(name: str, model: ModelFacts) -> str:
    size = f"{model.input_size[0]} × {model.input_size[1]} px"
    attention = f", attention at {model.attention_size} px" if model.attention_size else ""
    target = f" · {model.target}" if model.target else ""
    return f"{name}: {model.kind}, {model.architecture}, {size}{attention}{target}"


def shown(value: Interval, score: str) -> str:
    """A score as the tables show it: shares in per cent, ratios with two digits."""
    return show(value.times(100)) if score in PERCENT else show(value, 2)


def _tables(result: Localization) -> list[str]:
    """Rows of networks from the highest score down, then the maps without one; then what else was measured."""
    score = result.score
    main = [score, *(name for name in _MAIN if name != score)]
    further = [name for name in TITLES if name not in main]
    classes = sorted({label for row in result.rows.values() for label in row.classes})
    ranking, other_scores, by_class, by_unit, by_layer = [], [], [], [], []
    for name, row in sorted(result.rows.items(), key=lambda item: _rank(item[1], score)):
        label = f"{name} ({row.candidate})" if row.candidate else name
        sanity = result.sanity.models.get(row.model, {}).get(row.method) if result.sanity else None
        beats = result.beats_simple_maps.get(name)
        judged = ["" if beats is None else "yes" if beats else "NOT shown", sanity.verdict if sanity else ""]
        cost = ["" if row.ms is None else f"{row.ms:.1f}", "" if row.mb is None else f"{row.mb:.0f}"]
        ranking.append([label, *(shown(row.scores[column], column) for column in main), *judged, *cost])
        other_scores.append([label, *(shown(row.scores[column], column) for column in further)])
        by_class.append([label, *(shown(row.classes[column][score], score) for column in classes)])
        of_units = (shown(of_unit.rows[name], score) for of_unit in result.by_unit.values())
        by_unit.append([label, shown(row.scores[score], score), *of_units])
        if row.layers and (row.kind == "map" or name in CONTROLS):
            by_layer.append([label, *(f"{density.point:.2f}" for density in row.layers.values())])
    tables = [
        table(["map", *(TITLES[name] for name in main), "beyond simple maps", "randomisation", "ms", "MB"], ranking),
        table(["further scores", *(TITLES[name] for name in further)], other_scores),
        table([f"{TITLES[score]}, by class", *classes], by_class),
    ]
    if result.by_unit:
        units = [f"{of_unit.units} {unit}s" for unit, of_unit in result.by_unit.items()]
        scans = counted(result.data["sets"]["test"]["scans"], "scan")
        tables.append(table([f"{TITLES[score]}, mean over", scans, *units], by_unit))
    if result.faithfulness:
        tables.append(_faithfulness(result.faithfulness))
    if result.sanity:
        tables.append(_sanity(result.sanity))
    if by_layer:
        about = "density by retinal layer, relative to the whole retina (1: as everywhere)\n"
        bands = next(row.layers for row in result.rows.values() if row.layers)
        tables.append(about + table(["map", *bands], by_layer))
    return tables


def _rank(row: Standing, score: str) -> tuple[bool, float]:
    """Maps without a network last, in the order they have."""
    is_reference = row.kind == "reference"
    return is_reference, 0 if is_reference else -row.scores[score].point


def _faithfulness(faithfulness: Faithfulness) -> str:
    names = ("deletion_mean", "insertion_mean", "deletion_blur", "insertion_blur")
    rows = [
        [model, row.removeprefix(f"{model}: "), *(show(values[name], 3) for name in names)]
        for model, by_row in faithfulness.models.items()
        for row, values in by_row.items()
    ]
    header = ["model", "map", *(name.replace("_", ", ") for name in names)]
    scans = f"{counted(faithfulness.scans, 'scan')}; deletion: low is good"
    return f"probability of the class as pixels are hidden or shown ({scans})\n{table(header, rows)}"


def _sanity(sanity: Sanity) -> str:
    rows = [
        [model, method, *(show(values.correlation[stage], 2) for stage in STAGES), values.verdict]
        for model, by_method in sanity.models.items()
        for method, values in by_method.items()
    ]
    about = (
        f"rank correlation of maps before and after weights are randomised from the classifier down ({sanity.scans} "
        f"scans); passed: below {LIMIT:g} with all of them"
    )
    return about + "\n" + table(["model", "map", *STAGES, "verdict"], rows)


def statements(result: Localization) -> list[str]:
    """What the numbers let one say, in plain words."""
    rows, best, equal = result.rows, result.best, result.equal_to_best
    title, simple = TITLES[result.score].removesuffix(" %"), ", ".join(SIMPLE)
    sentences = [f"Highest {title}: {best} ({shown(rows[best].scores[result.score], result.score)})."]
    if equal:
        pairs = f"paired by patient, Holm over {counted(len(result.between_maps), 'pair')}"
        sentences[0] += f" Not shown to be worse: {', '.join(equal)} ({pairs})."
    else:
        sentences[0] += " Every other map is shown to be worse (paired by patient, Holm)."
    beats = result.beats_simple_maps
    sure, doubtful = ([name for name, is_shown in beats.items() if is_shown == wanted] for wanted in (True, False))
    if sure:
        sentences.append(f"Shown to exceed every map without a network ({simple}): {', '.join(sure)}.")
    if doubtful:
        some = f"the {len(doubtful)} other maps" if sure else f"all {len(doubtful)} maps"
        which = ", ".join(doubtful) if len(doubtful) <= _LISTED else some
        sentences.append(f"NOT shown to exceed every map without a network ({simple}): {which}.")
    sentences += _attention_statements(result)
    sentences += _between_kinds(result, title)
    tested = result.sanity.models if result.sanity else {}
    failed = [
        f"{model}: {method}"
        for model, by_method in tested.items()
        for method, result_of_method in by_method.items()
        if result_of_method.verdict == "FAILED"
    ]
    if failed:
        sentences.append(
            f"FAILED the randomisation test (the map hardly changes with random weights, so it shows the scan rather "
            f"than the network): {', '.join(failed)}."
        )
    for column, text in (
        ("maps_of_zeros", "Maps with nothing positive, misses that score 0"),
        ("off_the_retina", "Maps with nothing on the retina, misses whose lesion / retina is 0"),
    ):
        if missed := [f"{name} {getattr(row, column)}" for name, row in rows.items() if getattr(row, column)]:
            sentences.append(f"{text}: {', '.join(missed)}.")
    energy, area = rows[best].scores["energy"].point, result.area.lesion.point
    sentences.append(
        f"{100 * energy:.1f} % of the best map lies on lesions, which cover {100 * area:.1f} % of the pixels: a "
        "tendency, not a segmentation."
    )
    return sentences


def _attention_statements(result: Localization) -> list[str]:
    """What the chosen head of each pretrained network may be credited with."""
    sentences = []
    for model, about in result.models.items():
        if about.kind != "self-supervised" or ATTENTION not in about.methods:
            continue
        row = result.rows[f"{model}: {ATTENTION}"]
        ratio, single = row.scores["lesion_over_retina"], row.single_scans
        number = (
            f"Attention of {model} ({row.candidate}): lesion over retina {show(ratio, 2)}, median "
            f"{single.median_lesion_over_retina:.2f}, above 1 in {100 * single.share_above_1:.0f} % of the scans"
        )
        if ratio.low is None:
            sentences.append(f"{number}; without an interval nothing is shown about a preference for lesions.")
        elif ratio.is_above(1):
            sentences.append(f"{number}: on average it attends to lesions more than to the rest of the retina.")
        elif ratio.is_below(1):
            sentences.append(f"{number}: it attends to lesions LESS than to the rest of the retina.")
        else:
            sentences.append(f"{number}: no preference for lesions over the rest of the retina is shown.")
        for control in (name for name, other in result.models.items() if other.kind == "starting weights"):
            if f"{control}: {ATTENTION}" in result.rows:
                comparison = paired(result, f"{model}: {ATTENTION}", f"{control}: {ATTENTION}")
                sentences.append(
                    f"Against the best head before training ({control}): {_difference(comparison, result.score)}."
                )
    return sentences


def _between_kinds(result: Localization, title: str) -> list[str]:
    """Attention of the best self-supervised network against Grad-CAM of the best supervised one, best on validation."""
    attention = _best_on_validation(result, "self-supervised", ATTENTION)
    gradcam = _best_on_validation(result, "supervised", "gradcam")
    if attention is None or gradcam is None:
        return []
    comparison = paired(result, attention, gradcam)
    return [
        f"Does self-supervised attention localise better than supervised Grad-CAM? {attention} against {gradcam} "
        f"(each the best of its kind on validation patients), {title}: {_difference(comparison, result.score)}."
    ]


def _best_on_validation(result: Localization, kind: str, method: str) -> str | None:
    of_kind = {
        name: row.validation
        for name, row in result.rows.items()
        if row.model and result.models[row.model].kind == kind and row.method == method
    }
    return max(of_kind, key=of_kind.get) if of_kind else None


def paired(result: Localization, a: str, b: str) -> PairedDifference:
    """The comparison of row a with row b among ``between_maps``, turned so that the difference is a − b."""
    for comparison in result.between_maps:
        if (comparison.a, comparison.b) == (a, b):
            return comparison
        if (comparison.a, comparison.b) == (b, a):
            return dataclasses.replace(comparison, a=a, b=b, difference=comparison.difference.times(-1))
    raise KeyError(f"{a} − {b}")


def _difference(comparison: PairedDifference, score: str) -> str:
    """A comparison that was planned before the test scans were seen: its own interval decides, uncorrected."""
    value = comparison.difference
    number = show(value.times(100), signed=True) + " points" if score in PERCENT else show(value, 2, signed=True)
    if value.is_above(0) or value.is_below(0):
        judgement = "better" if value.point > 0 else "WORSE"
    else:
        judgement = "no difference is shown"
    return f"{number}, {judgement} (one planned comparison; among all pairs p {comparison.p_holm:.2g} after Holm)"
