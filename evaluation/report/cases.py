"""Scans to look at, chosen by rule, and what every model says and shows about them."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.special import softmax

from dino_oct.errors import InputError
from dino_oct.features import resize
from dino_oct.streams import generator
from evaluation.config import SCORES
from evaluation.inputs.masks import LesionMasks, Mask
from evaluation.maps.methods import METHODS, candidates, enlarge, make_maps, usable
from evaluation.report.answers import Setting
from evaluation.report.models import Candidate
from evaluation.report.steps import digest
from evaluation.scores.lesions import lesion_over_retina
from evaluation.scores.localization import score_map

CHOSEN_HEAD = "attention, chosen head"  # of each model; the league names it
RULES = ("seeded random", "best", "median", "worst")
_OUTLINE = (0, 229, 255, 255)  # red, green, blue, alpha
_SIDE, _QUALITY = 384, 88  # of a scan on the page: pixels of its short side at most, and JPEG quality


@dataclass(frozen=True)
class Choice:
    """A chosen scan: its position in the test, the rule, and the rule in words."""

    scan: int
    rule: str
    why: str


@dataclass(frozen=True)
class ShownMap:
    """A map of the page.

    Attributes:
        class_: name of the class that it explains; None for a map of no class.
        peak: its highest value; shape: rows and columns.
        lesion_over_retina, auprc: agreement with the lesion mask; None without a lesion.
    """

    class_: str | None
    peak: float
    shape: list[int]
    lesion_over_retina: float | None
    auprc: float | None


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
    """A chosen scan (position in the report's scans) with every model's answer; ``severity``: its lesion load."""

    scan: int
    rule: str
    why: str
    severity: float | None
    models: dict[str, CaseAnswer]


@dataclass(frozen=True)
class Pictures:
    """Of a case, as base64: the scan (JPEG), the outline of its lesion (PNG) if there is one, and the maps (grey PNG,
    white at the map's maximum) by model and method. ``ratio``: the scan's width over its height."""

    scan: str
    ratio: float
    outline: str | None
    maps: dict[str, dict[str, str]] = field(default_factory=dict)


def choose_cases(
    right: np.ndarray, labels: np.ndarray, patients: np.ndarray, n: int, seed: int, model: str
) -> list[Choice]:
    """``n`` test scans by the four rules in turns; every rule spreads over classes and patients where it can.

    Args:
        right: (M,) probability that the reference model gives each test scan's true class.
        seed: of the random ones.
        model: name of the reference model.
    """
    order = np.argsort(-right, kind="stable")
    rank = np.empty(len(right), dtype=int)
    rank[order] = np.arange(len(right))
    orders = {
        "seeded random": generator("random cases", seed).permutation(len(right)),
        "best": order,
        "median": np.argsort(np.abs(rank - (len(right) - 1) / 2), kind="stable"),
        "worst": order[::-1],
    }
    counts = {rule: len(range(i, min(n, len(right)), len(RULES))) for i, rule in enumerate(RULES)}
    taken: set[int] = set()
    patients_taken: set[str] = set()
    choices = []
    for rule in RULES:
        per_class = dict.fromkeys(np.unique(labels).tolist(), 0)
        for _ in range(counts[rule]):
            i = next(_in_turns(orders[rule].tolist(), labels, patients, per_class, taken, patients_taken))
            per_class[int(labels[i])] += 1
            taken.add(i)
            patients_taken.add(str(patients[i]))
            why = f"{model} gives its true class {100 * right[i]:.1f} %"
            if rule == "seeded random":
                why = f"drawn by seed {seed}; {why}"
            else:
                why += f": rank {rank[i] + 1} of {len(right)} test scans from the best"
            choices.append(Choice(i, rule, why))
    return choices


def _in_turns(
    order: list[int],
    labels: np.ndarray,
    patients: np.ndarray,
    per_class: dict[int, int],
    taken: set[int],
    patients_taken: set[str],
) -> Iterator[int]:
    """Scans in order: first of the classes that were chosen least and of new patients, then those of any."""
    free = [i for i in order if i not in taken]
    least = min(per_class[int(labels[i])] for i in free)
    fair = [i for i in free if per_class[int(labels[i])] == least]
    yield from (i for i in fair if str(patients[i]) not in patients_taken)
    yield from fair


def show_cases(
    choices: Sequence[Choice],
    models: dict[str, Candidate],
    methods: Sequence[str],
    heads: dict[str, str],
    shared: Setting,
    masks: LesionMasks | None,
    loads: np.ndarray | None,
) -> tuple[list[Case], list[Pictures]]:
    """The chosen scans with what every model says about them, and their pictures.

    Args:
        heads: model → the attention head that validation patients chose, which is then shown beside the mean of heads.
        loads: (M,) lesion load of the test scans, if known.
    """
    positions = [int(shared.positions["test"][choice.scan]) for choice in choices]
    scans = [np.asarray(shared.data.scans[i]) for i in positions]
    of_scans = [_mask(masks, i) for i in positions]
    cases = [
        Case(
            **asdict(choice),
            severity=None if loads is None or not np.isfinite(loads[choice.scan]) else float(loads[choice.scan]),
            models={},
        )
        for choice in choices
    ]
    pictures = [
        Pictures(_jpeg(scan), scan.shape[1] / scan.shape[0], mask and _outline(mask, scan))
        for scan, mask in zip(scans, of_scans, strict=True)
    ]
    for key, model in models.items():
        if "cases" in model.gaps:
            continue
        answers = _ask(model, methods, heads, scans, of_scans, shared)
        for case, shown, (answer, maps) in zip(cases, pictures, answers, strict=False):
            case.models[key] = answer
            shown.maps[key] = {method: _png(_grey(values)) for method, values in maps.items()}
    return cases, pictures


def _ask(
    model: Candidate,
    methods: Sequence[str],
    heads: dict[str, str],
    scans: list[np.ndarray],
    masks: list[Mask | None],
    shared: Setting,
) -> Iterator[tuple[CaseAnswer, dict[str, np.ndarray]]]:
    """For every scan what one model says, and its maps (rows, columns) by method; nothing where it cannot answer."""
    cases = digest(*scans)

    def answer() -> dict[str, np.ndarray]:
        return {"logits": np.stack([model.classifier.logits(scan) for scan in scans])}

    try:
        logits = shared.cache.arrays(f"logits {model.key}", shared.identity(model, cases=cases), answer)["logits"]
    except InputError as reason:
        model.gaps["cases"] = str(reason)
        return
    names = list(model.classifier.class_names)
    called = logits.argmax(axis=1)
    able, gaps = usable(model.classifier, methods)
    maps: dict[str, list[np.ndarray]] = {}
    head = heads.get(model.key)
    for method in able:
        try:
            made = shared.cache.arrays(
                f"maps {model.key} {method}",
                shared.identity(model, cases=cases, method=method, settings=asdict(model.map_settings)),
                lambda method=method: _maps(model, method, scans, called.tolist()),
            )
            stacks = [made[f"map{i}"] for i in range(len(scans))]
            maps[method] = [stack.mean(axis=0) for stack in stacks]
            if method == "attention" and head in (names_of := candidates(model.classifier, method, model.map_settings)):
                maps[CHOSEN_HEAD] = [stack[names_of.index(head)] for stack in stacks]
        except InputError as reason:
            gaps[method] = str(reason)
    if heads and "attention" in gaps:
        gaps[CHOSEN_HEAD] = gaps["attention"]
    probabilities = softmax(logits, axis=1)
    for i, mask in enumerate(masks):
        of_scan = {method: by_scan[i] for method, by_scan in maps.items()}
        shown = {
            method: ShownMap(
                class_=names[called[i]] if METHODS[method.split(",")[0]].of_class else None,
                peak=float(values.max()),
                shape=list(values.shape),
                **_scores(values, mask),
            )
            for method, values in of_scan.items()
        }
        yield (
            CaseAnswer(
                called=shared.class_names.index(names[called[i]]),
                logits=dict(zip(names, logits[i].tolist(), strict=True)),
                probabilities=dict(zip(names, probabilities[i].tolist(), strict=True)),
                maps=shown,
                gaps=gaps,
            ),
            of_scan,
        )


def _maps(model: Candidate, method: str, scans: list[np.ndarray], called: list[int]) -> dict[str, np.ndarray]:
    """Maps (M, rows, columns) of every scan, M candidates each."""
    made = make_maps(model.classifier, method, scans, called, model.map_settings)
    return {f"map{i}": stack.astype(np.float32) for i, stack in enumerate(made)}


def _mask(masks: LesionMasks | None, position: int) -> Mask | None:
    return masks.read(position) if masks is not None and masks.file(position) is not None else None


def _scores(values: np.ndarray, mask: Mask | None) -> dict[str, float | None]:
    """What is known of one map's agreement with the mask; None without a lesion."""
    if mask is None or not mask.lesion.any():
        return {"lesion_over_retina": None, "auprc": None}
    large = enlarge(values[None], mask.lesion.shape)[0].clip(0)
    return {
        "lesion_over_retina": float(lesion_over_retina(large, mask.lesion, mask.retina)),
        "auprc": float(score_map(large, mask.lesion)[SCORES.index("auprc")]),
    }


def _shown_size(scan: np.ndarray) -> tuple[int, int]:
    scale = min(_SIDE / min(scan.shape), 1)
    return max(round(scan.shape[0] * scale), 1), max(round(scan.shape[1] * scale), 1)


def _jpeg(scan: np.ndarray) -> str:
    with io.BytesIO() as stream:
        Image.fromarray(resize(scan, _shown_size(scan))[0].numpy()).save(
            stream, "JPEG", quality=_QUALITY, optimize=True
        )
        return base64.b64encode(stream.getvalue()).decode()


def _outline(mask: Mask, scan: np.ndarray) -> str:
    """The lesion's edge in cyan on nothing, 3 pixels wide where the scan's short side has ``_SIDE``."""
    rows, columns = (round(_SIDE * side / min(scan.shape)) for side in scan.shape)
    lesion = np.asarray(Image.fromarray(mask.lesion).resize((columns, rows), Image.Resampling.NEAREST))
    edge = ndimage.binary_dilation(lesion, iterations=2) & ~ndimage.binary_erosion(lesion)
    return _png(np.where(edge[..., None], np.uint8(_OUTLINE), np.uint8(0)))


def _grey(values: np.ndarray) -> np.ndarray:
    """A map as 8-bit grey, 255 at its own maximum."""
    return np.round(255 * values.clip(0) / max(float(values.max()), 1e-12)).astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, "PNG", optimize=True)
        return base64.b64encode(stream.getvalue()).decode()
