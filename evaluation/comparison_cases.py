"""Scans to look at, chosen by rule, and what every model says and shows about them."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dino_oct.errors import InputError
from dino_oct.features import squash
from dino_oct.streams import generator
from evaluation.comparison_cache import digest
from evaluation.comparison_measures import Setting
from evaluation.comparison_models import Model
from evaluation.explanations import softmax
from evaluation.lesion_masks import LesionMasks, Mask
from evaluation.lesion_scores import lesion_over_retina
from evaluation.map_methods import METHODS, candidates, enlarge, make_maps, usable
from evaluation.map_scores import SCORES, score_map

CHOSEN_HEAD = "attention, chosen head"  # of each model; the league names it
RULES = ("seeded random", "best", "median", "worst")
_SIDE, _QUALITY = 384, 88  # of a scan on the page: pixels of its short side at most, and JPEG quality


class Case(NamedTuple):
    """A chosen scan: its position in the test, the rule, and the rule in words."""

    scan: int
    rule: str
    why: str


def choose_cases(
    right: np.ndarray, labels: np.ndarray, patients: np.ndarray, n: int, seed: int, model: str
) -> list[Case]:
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
    seen: set[str] = set()
    found = []
    for rule in RULES:
        per_class = dict.fromkeys(np.unique(labels).tolist(), 0)
        for _ in range(counts[rule]):
            i = next(_in_turns(orders[rule].tolist(), labels, patients, per_class, taken, seen))
            per_class[int(labels[i])] += 1
            taken.add(i)
            seen.add(str(patients[i]))
            said = f"{model} gives its true class {100 * right[i]:.1f} %"
            if rule == "seeded random":
                found.append(Case(i, rule, f"drawn by seed {seed}; {said}"))
            else:
                found.append(Case(i, rule, f"{said}: rank {rank[i] + 1} of {len(right)} test scans from the best"))
    return found


def _in_turns(
    order: list[int],
    labels: np.ndarray,
    patients: np.ndarray,
    per_class: dict[int, int],
    taken: set[int],
    seen: set[str],
) -> Iterator[int]:
    """Scans in order: first of the classes that were chosen least and of new patients, then those of any."""
    free = [i for i in order if i not in taken]
    least = min(per_class[int(labels[i])] for i in free)
    fair = [i for i in free if per_class[int(labels[i])] == least]
    yield from (i for i in fair if str(patients[i]) not in seen)
    yield from fair


def show_cases(
    cases: Sequence[Case],
    models: dict[str, Model],
    methods: Sequence[str],
    heads: dict[str, str],
    shared: Setting,
    masks: LesionMasks | None,
    loads: np.ndarray | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``results["cases"]`` (``scan``: position in the test) and ``media["cases"]``.

    Args:
        heads: model → the attention head that validation patients chose, which is then shown beside the mean of heads.
        loads: (M,) lesion load of the test scans, if known.
    """
    positions = [int(shared.positions["test"][case.scan]) for case in cases]
    scans = [np.asarray(shared.data.scans[i]) for i in positions]
    found = [_mask(masks, i) for i in positions]
    results = [
        {
            **case._asdict(),
            "severity": None if loads is None or not np.isfinite(loads[case.scan]) else float(loads[case.scan]),
            "models": {},
        }
        for case in cases
    ]
    media = [
        {"scan": _jpeg(scan), "lesion": mask and _lesion(mask, scan), "maps": {}}
        for scan, mask in zip(scans, found, strict=True)
    ]
    for key, model in models.items():
        if "cases" in model.gaps:
            continue
        for i, (result, maps) in enumerate(_ask(model, methods, heads.get(key), scans, shared)):
            results[i]["models"][key] = result
            media[i]["maps"][key] = {method: _png(_grey(one)) for method, one in maps.items()}
            if heads and "attention" in result["gaps"]:
                result["gaps"] = {**result["gaps"], CHOSEN_HEAD: result["gaps"]["attention"]}
            for method, one in maps.items():
                result["maps"][method] |= _scores(one, found[i])
    return results, media


def _ask(
    model: Model, methods: Sequence[str], head: str | None, scans: list[np.ndarray], shared: Setting
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """For every scan what one model says, and its maps (rows, columns) by method."""
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
    able, reasons = usable(model.classifier, methods)
    maps: dict[str, list[np.ndarray]] = {}
    for method in able:
        try:
            made = shared.cache.arrays(
                f"maps {model.key} {method}",
                shared.identity(model, cases=cases, method=method, settings=asdict(model.map_settings)),
                lambda method=method: _maps(model, method, scans, called.tolist()),
            )
            stacks = [made[f"map{i}"] for i in range(len(scans))]
            maps[method] = [one.mean(axis=0) for one in stacks]
            if method == "attention" and head in (names_of := candidates(model.classifier, method, model.map_settings)):
                maps[CHOSEN_HEAD] = [one[names_of.index(head)] for one in stacks]
        except InputError as reason:
            reasons[method] = str(reason)
    probabilities = softmax(logits)
    for i in range(len(scans)):
        of_scan = {method: one[i] for method, one in maps.items()}
        yield (
            {
                "called": shared.class_names.index(names[called[i]]),
                "logits": dict(zip(names, logits[i].tolist(), strict=True)),
                "probabilities": dict(zip(names, probabilities[i].tolist(), strict=True)),
                "maps": {
                    method: {
                        "class": names[called[i]] if METHODS[method.split(",")[0]].of_class else None,
                        "peak": float(one.max()),
                        "shape": list(one.shape),
                    }
                    for method, one in of_scan.items()
                },
                "gaps": reasons,
            },
            of_scan,
        )


def _maps(model: Model, method: str, scans: list[np.ndarray], called: list[int]) -> dict[str, np.ndarray]:
    """Maps (M, rows, columns) of every scan, M candidates each."""
    made = make_maps(model.classifier, method, scans, called, model.map_settings)
    return {f"map{i}": one.astype(np.float32) for i, one in enumerate(made)}


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
        Image.fromarray(squash(scan, _shown_size(scan))[0].numpy()).save(
            stream, "JPEG", quality=_QUALITY, optimize=True
        )
        return base64.b64encode(stream.getvalue()).decode()


def _lesion(mask: Mask, scan: np.ndarray) -> str:
    rows, columns = _shown_size(scan)
    image = Image.fromarray(255 * mask.lesion.astype(np.uint8))
    return _png(np.asarray(image.resize((columns, rows), Image.Resampling.NEAREST)))


def _grey(values: np.ndarray) -> np.ndarray:
    """A map as 8-bit grey, 255 at its own maximum."""
    return np.round(255 * values.clip(0) / max(float(values.max()), 1e-12)).astype(np.uint8)


def _png(grey: np.ndarray) -> str:
    with io.BytesIO() as stream:
        Image.fromarray(grey).save(stream, "PNG", optimize=True)
        return base64.b64encode(stream.getvalue()).decode()
