"""Scans to look at, chosen by rule, and what every model says and shows about them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image
from scipy.special import softmax

from dino_oct.errors import InputError
from dino_oct.features import resize
from dino_oct.streams import generator
from evaluation.config import ATTENTION
from evaluation.inputs.masks import LesionMasks, Mask
from evaluation.inputs.steps import Arrays, digest
from evaluation.maps.methods import METHODS, candidates, enlarge, make_maps, usable
from evaluation.pages.tiles import with_outline
from evaluation.report.models import Candidate
from evaluation.report.steps import Setting
from evaluation.scores.lesions import lesion_over_retina
from evaluation.scores.localization import score_map

CHOSEN_HEAD = "attention, chosen head"  # of each model; the leaderboard names it
_OUTLINE = (0, 229, 255, 255)  # red, green, blue, alpha
_FLAT = 0.05  # of a map's maximum
_SIDE, _QUALITY = 384, 88  # of a scan on the page: pixels of its short side at most, and JPEG quality


@dataclass(frozen=True)
class ShownMap:
    """A map of the page.

    Attributes:
        class_: name of the class that it explains; None for a map of no class.
        peak: its highest value; shape: rows and columns.
        flat: it hardly differs between places, or has nothing positive.
        lesion_over_retina, auprc: agreement with the lesion mask; None without a lesion.
    """

    class_: str | None
    peak: float
    shape: list[int]
    flat: bool
    lesion_over_retina: float | None = None
    auprc: float | None = None


@dataclass(frozen=True)
class CaseAnswer:
    """What one model says of a case.

    Attributes:
        called: class; logits, probabilities: by class name of the model's classifier.
        maps: by method; gaps: method → why there is no map.
    """

    called: int
    logits: dict[str, float]
    probabilities: dict[str, float]
    maps: dict[str, ShownMap]
    gaps: dict[str, str]


@dataclass(frozen=True)
class Case:
    """A scan (position in the test, and so in the report's scans), the rule that chose it, by itself and in words, its
    lesion load where it is known, and every model's answer."""

    scan: int
    rule: str
    why: str
    severity: float | None = None
    models: dict[str, CaseAnswer] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """Of a case, as base64: the scan (JPEG), the outline of its lesion (PNG) if there is one, and the maps (grey PNG,
    white at the map's maximum) by model and method. ``ratio``: the scan's width over its height."""

    scan: str
    ratio: float
    outline: str | None
    maps: dict[str, dict[str, str]]


def choose_cases(
    right: np.ndarray, labels: np.ndarray, patients: np.ndarray, n: int, seed: int, model: str
) -> list[Case]:
    """``n`` test scans by the four rules in turns; every rule spreads over classes and patients where it can.

    Args:
        right: (M,) probability that the reference model gives each test scan's true class.
        seed: of the random ones.
        model: name of the reference model.
    """
    best_first = np.argsort(-right, kind="stable")
    rank = np.argsort(best_first)
    orders = {
        "seeded random": generator("random cases", seed).permutation(len(right)),
        "best": best_first,
        "median": np.argsort(np.abs(rank - (len(right) - 1) / 2), kind="stable"),
        "worst": best_first[::-1],
    }
    n = min(n, len(right))
    cases: list[Case] = []
    for r, (rule, order) in enumerate(orders.items()):
        per_class = dict.fromkeys(labels.tolist(), 0)
        for _ in range(r, n, len(orders)):
            taken = {case.scan for case in cases}
            known = {patients[i] for i in taken}
            free = [i for i in order.tolist() if i not in taken]
            # The first of the classes that this rule has taken least, and of a new patient if there is any.
            keys = [(per_class[labels[i]], patients[i] in known) for i in free]
            i = free[keys.index(min(keys))]
            per_class[labels[i]] += 1
            why = f"{model} gives its true class {100 * right[i]:.1f} %"
            if rule == "seeded random":
                why = f"drawn by seed {seed}; {why}"
            else:
                why += f": rank {rank[i] + 1} of {len(right)} test scans from the best"
            cases.append(Case(i, rule, why))
    return cases


def show_scans(
    positions: Sequence[int],
    models: dict[str, Candidate],
    heads: dict[str, str],
    shared: Setting,
    masks: LesionMasks | None,
) -> tuple[list[Pictures], list[dict[str, CaseAnswer]]]:
    """Pictures of some scans, and what every model says about each.

    Args:
        positions: of the scans in the data.
        heads: model → the attention head that validation patients chose, which is then shown beside the mean of heads.
    """
    pictures, scans, of_scans = [], [], []
    for position in positions:
        scan = np.asarray(shared.data.scans[position])
        mask = masks.read(position) if masks and masks.file(position) else None
        pictures.append(Pictures(_jpeg(scan), scan.shape[1] / scan.shape[0], mask and _outline(mask, scan), {}))
        scans.append(scan)
        of_scans.append(mask)
    answered: list[dict[str, CaseAnswer]] = [{} for _ in scans]
    for key, model in models.items():
        if "cases" in model.gaps:
            continue
        try:
            answers = _ask(model, heads, scans, of_scans, shared)
        except InputError as reason:
            model.gaps["cases"] = str(reason)
            continue
        for of_scan, shown, (answer, maps) in zip(answered, pictures, answers, strict=True):
            of_scan[key] = answer
            shown.maps[key] = {method: _encoded(_grey(values)) for method, values in maps.items()}
    return pictures, answered


def _ask(
    model: Candidate, heads: dict[str, str], scans: list[np.ndarray], masks: list[Mask | None], shared: Setting
) -> list[tuple[CaseAnswer, dict[str, np.ndarray]]]:
    """For every scan what one model says, and its maps (rows, columns) by method."""
    cases, methods = digest(*scans), shared.options.methods
    answer = model.steps.arrays(
        "logits", lambda: {"logits": np.stack([model.classifier.logits(scan) for scan in scans])}, cases=cases
    )
    logits, names = answer["logits"], list(model.classifier.class_names)
    called, probabilities = logits.argmax(axis=1).tolist(), softmax(logits, axis=1)
    able, gaps = usable(model.classifier, methods)
    maps: dict[str, list[np.ndarray]] = {}
    for method in able:
        try:
            made = model.steps.arrays(
                f"maps {method}",
                lambda method=method: _maps(model, method, scans, called),
                cases=cases,
                method=method,
                settings=asdict(model.map_settings),
            )
        except InputError as reason:
            gaps[method] = str(reason)
            continue
        stacks = [made[f"map{i}"] for i in range(len(scans))]
        maps[method] = [stack.mean(axis=0) for stack in stacks]
        every_head = candidates(model.classifier, method, model.map_settings) if method == ATTENTION else []
        if (head := heads.get(model.key)) in every_head:
            maps[CHOSEN_HEAD] = [stack[every_head.index(head)] for stack in stacks]
    if heads and ATTENTION in gaps:
        gaps[CHOSEN_HEAD] = gaps[ATTENTION]
    answers = []
    for i, mask in enumerate(masks):
        name, of_scan = names[called[i]], {method: by_scan[i] for method, by_scan in maps.items()}
        shown = {
            method: ShownMap(
                class_=name if method != CHOSEN_HEAD and METHODS[method].of_class else None,
                peak=float(values.max()),
                shape=list(values.shape),
                flat=is_flat(values),
                **_scores(values, mask),
            )
            for method, values in of_scan.items()
        }
        by_name = [dict(zip(names, row[i].tolist(), strict=True)) for row in (logits, probabilities)]
        answers.append((CaseAnswer(shared.class_names.index(name), *by_name, shown, gaps), of_scan))
    return answers


def _maps(model: Candidate, method: str, scans: list[np.ndarray], called: list[int]) -> Arrays:
    """Maps (M, rows, columns) of every scan, M candidates each."""
    made = make_maps(model.classifier, method, scans, called, model.map_settings)
    return {f"map{i}": stack.astype(np.float32) for i, stack in enumerate(made)}


def _scores(values: np.ndarray, mask: Mask | None) -> dict[str, float]:
    """What is known of one map's agreement with the mask; nothing without a lesion."""
    if mask is None or not mask.lesion.any():
        return {}
    large = enlarge(values[None], mask.lesion.shape)[0].clip(0)
    return {
        "lesion_over_retina": float(lesion_over_retina(large, mask.lesion, mask.retina)),
        "auprc": float(score_map(large, mask.lesion, ["auprc"])[0]),
    }


def _jpeg(scan: np.ndarray) -> str:
    scale = min(_SIDE / min(scan.shape), 1)
    size = tuple(max(round(side * scale), 1) for side in scan.shape)
    return _encoded(resize(scan, size)[0].numpy(), "JPEG", quality=_QUALITY)


def _outline(mask: Mask, scan: np.ndarray) -> str:
    """The lesion's inner edge in cyan on nothing, 3 pixels wide where the scan's short side has ``_SIDE``."""
    rows, columns = (round(_SIDE * side / min(scan.shape)) for side in scan.shape)
    return _encoded(with_outline(np.zeros((rows, columns, 4), np.uint8), mask.lesion, _OUTLINE, width=7))


def is_flat(values: np.ndarray) -> bool:
    """Whether a map says nothing about places: its positive part varies by less than a twentieth of its maximum."""
    positive = values.clip(0)
    return bool(np.ptp(positive) <= _FLAT * positive.max())


def _grey(values: np.ndarray) -> np.ndarray:
    """A map as 8-bit grey, 255 at its own maximum; nothing of a flat one, which would be bright all over."""
    if is_flat(values):
        return np.zeros(values.shape, np.uint8)
    return np.round(255 * values.clip(0) / values.max()).astype(np.uint8)


def _encoded(pixels: np.ndarray, kind: str = "PNG", **settings: int) -> str:
    """A picture as base64."""
    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, kind, optimize=True, **settings)
        return base64.b64encode(stream.getvalue()).decode()
