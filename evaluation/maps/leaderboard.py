"""Maps of several models scored against lesion masks: heads and thresholds from validation, scores on the test."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale, weighted_mean
from evaluation.config import ALL_SCORES, ATTENTION, LocalizationOptions
from evaluation.inputs.model import Model
from evaluation.inputs.steps import Arrays, StepCache, digest
from evaluation.maps.methods import candidates, enlarge
from evaluation.maps.randomisation import STAGES, randomised_correlations, verdict
from evaluation.maps.rows import Case, MapMaker, RawMaps, Row, list_rows, make_raw, maps_of_rows
from evaluation.scores.lesions import SIMPLE, layer_densities, lesion_over_retina
from evaluation.scores.localization import (
    FILLS,
    RankedPixels,
    deletion_insertion,
    holm,
    iou_at,
    iou_curve,
    score_map,
    tune_threshold,
)
from evaluation.scores.ranks import rank_correlations, rank_normalise

SCALES = dict.fromkeys(ALL_SCORES, Scale.SCORE) | {
    "pointing": Scale.SHARE,
    "enrichment": Scale.RATIO,
    "lesion_over_retina": Scale.RATIO,
}
TUNED = "iou_tuned"
ALPHA = 0.05  # of p values after Holm's correction


@dataclass(frozen=True)
class Measured:
    """Scores of every row on the test cases.

    Attributes:
        rows: R rows; scores: (N, R, S) float64, columns ``ALL_SCORES``; empty: (N, R) bool, maps that were 0.
        layers: (N, R, bands), NaN for a case without boundaries; no bands where none has them.
        correlations: (R, R), mean Spearman correlation between maps of the same scan, of the scans where both vary.
    """

    rows: list[Row]
    scores: np.ndarray
    empty: np.ndarray
    layers: np.ndarray
    correlations: np.ndarray


@dataclass(frozen=True)
class Head:
    """The attention head that validation chose.

    Attributes:
        position: in ``candidates``; name: of it.
        score: its mean on the validation cases; scores: of every head, by name.
    """

    position: int
    name: str
    score: float
    scores: dict[str, float]


@dataclass(frozen=True)
class SingleScans:
    """Lesion over retina of single scans: the median, and the share of scans above 1."""

    median_lesion_over_retina: float
    share_above_1: float

    @classmethod
    def of(cls, ratio: np.ndarray) -> "SingleScans":
        return cls(float(np.median(ratio)), float((ratio > 1).mean()))


@dataclass(frozen=True)
class Standing:
    """A row of the leaderboard.

    Attributes:
        model, kind, method: as ``Row``; candidate: the head that is shown.
        validation: mean ranking score on the validation cases; threshold: of ``iou_tuned``, chosen there.
        maps_of_zeros, off_the_retina: test maps with nothing positive, and with nothing on the retina.
        ms: milliseconds a scan; mb: peak memory of one scan; None where nothing was computed.
        scores: of ``ALL_SCORES``; classes: class → the same; layers: band between two boundaries → density relative to
            the retina, where boundaries are known.
    """

    model: str | None
    kind: str
    method: str
    candidate: str
    validation: float
    threshold: float
    maps_of_zeros: int
    off_the_retina: int
    ms: float | None
    mb: float | None
    scores: dict[str, Interval]
    single_scans: SingleScans
    classes: dict[str, dict[str, Interval]]
    layers: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedDifference:
    """Ranking score of row a less that of row b on the same cases, with its p value alone and after Holm."""

    a: str
    b: str
    difference: Interval
    p: float
    p_holm: float

    @property
    def is_shown(self) -> bool:
        """Whether the two differ, by Holm's correction."""
        return self.p_holm < ALPHA


@dataclass(frozen=True)
class Ranking:
    """Which rows are best.

    Attributes:
        equal_to_best: rows that are not shown to be worse; beats_simple_maps: row → whether it is shown to exceed every
            map without a network.
        to_simple_maps, between_maps: the comparisons behind them, Holm within each.
    """

    best: str
    equal_to_best: list[str]
    beats_simple_maps: dict[str, bool]
    to_simple_maps: list[PairedDifference]
    between_maps: list[PairedDifference]


@dataclass(frozen=True)
class Correlations:
    """Spearman's correlation (R, R) between the maps of rows."""

    rows: list[str]
    spearman: np.ndarray


@dataclass(frozen=True)
class Faithfulness:
    """Deletion and insertion: model → row → ``deletion_FILL`` and ``insertion_FILL``."""

    scans: int
    patients: int
    models: dict[str, dict[str, dict[str, Interval]]]


@dataclass(frozen=True)
class Randomised:
    """Correlation of a method's maps with those after each of ``STAGES``, and what follows."""

    correlation: dict[str, Interval]
    verdict: str


@dataclass(frozen=True)
class Sanity:
    """The randomisation test: model → method → result."""

    scans: int
    patients: int
    models: dict[str, dict[str, Randomised]]


@dataclass(frozen=True)
class Leaderboard(Ranking):
    """Rows scored on the test cases, ranked by ``score``; heads: model → its chosen head."""

    score: str
    heads: dict[str, Head]
    rows: dict[str, Standing]
    correlations: Correlations
    faithfulness: Faithfulness | None
    sanity: Sanity | None


def choose_heads(
    makers: Sequence[MapMaker], raw: RawMaps, cases: Sequence[Case], score: str, steps: StepCache
) -> dict[str, Head]:
    """For each model with attention the head of highest mean score on validation cases."""
    heads = {}
    able = [maker for maker in makers if ATTENTION in maker.methods]
    for maker in able:

        def means(maker: MapMaker = maker) -> Arrays:
            of_cases = list(zip(cases, raw.maps[maker.name, ATTENTION], strict=True))
            bar = tqdm(of_cases, desc=f"heads of {maker.name}", unit="scan", disable=None, leave=False)
            scores = [[chosen_by(m, case, score) for m in enlarge(maps, case.mask.lesion.shape)] for case, maps in bar]
            return {"means": best_mean(scores)}

        names = candidates(maker.model, ATTENTION, maker.settings)
        of_heads = steps.arrays("scores of heads", means, model=maker.name, score=score, cases=[c.file for c in cases])
        scores = of_heads["means"].tolist()
        best = int(of_heads["means"].argmax())
        heads[maker.name] = Head(best, names[best], scores[best], dict(zip(names, scores, strict=True)))
    return heads


def chosen_by(values: np.ndarray, case: Case, score: str, ranked: RankedPixels | None = None) -> np.ndarray:
    """What something is chosen by on validation cases: the score of a map, (1,), or its IoU at every threshold, (T,).

    Args:
        values: (h, w) in the size of the case's mask. ranked: of it, where it is already there.
    """
    if score == TUNED:
        return iou_curve(values, case.mask.lesion, ranked)
    return np.array([one_score(values, case, score, ranked)])


def best_mean(scores: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Means (R,) over cases of what ``chosen_by`` gives (N, R, 1 or T), at the best threshold where there are some."""
    return np.mean(scores, axis=0).max(axis=-1)


def one_score(values: np.ndarray, case: Case, name: str, ranked: RankedPixels | None = None) -> float:
    """One of ``ALL_SCORES`` but ``iou_tuned`` of a map in the size of the case's mask."""
    lesion, retina = case.mask.lesion, case.mask.retina
    if name == "energy_retina":
        return float(values[retina].sum(dtype=np.float64) / max(values.sum(dtype=np.float64), 1e-30))
    if name == "lesion_over_retina":
        return lesion_over_retina(values, lesion, retina)
    return float(score_map(values, lesion, [name], ranked)[0])


def all_scores(values: np.ndarray, case: Case, threshold: float, ranked: RankedPixels | None = None) -> np.ndarray:
    """``ALL_SCORES`` of a map in the size of the case's mask."""
    lesion = case.mask.lesion
    tuned = float(iou_at(values, lesion, threshold, ranked))
    rest = [one_score(values, case, name) for name in ("energy_retina", "lesion_over_retina")]
    return np.array([*score_map(values, lesion, ranked=ranked), tuned, *rest])


@dataclass(frozen=True)
class Ranked:
    """What is scored together: the makers, their maps of some cases, and the head of each.

    Attributes:
        steps: keeps what is of all models together, a step for each case.
    """

    makers: Sequence[MapMaker]
    raw: RawMaps
    heads: dict[str, int]
    cases: Sequence[Case]
    steps: StepCache

    def each(self, what: str, make: Callable[[Case, np.ndarray], Arrays], **about: Any) -> dict[str, np.ndarray]:
        """What ``make`` gives for each case and the maps of its rows (R, h, w), stacked over cases.

        Args:
            what: name of the step; about: all that it depends on beside models, heads and case.
        """
        made = []
        for i, case in enumerate(tqdm(self.cases, desc=what, unit="scan", disable=None, leave=False)):

            def of_case(i: int = i, case: Case = case) -> Arrays:
                return make(case, maps_of_rows(self.makers, self.raw, self.heads, self.cases, i))

            of_which = {"case": case.file, "targets": case.targets, "heads": self.heads}
            made.append(self.steps.arrays(what, of_case, **of_which, **about))
        return {name: np.stack([arrays[name] for arrays in made]) for name in made[0]}


def tune(ranked: Ranked, score: str) -> tuple[np.ndarray, list[float]]:
    """Of every row the mean ranking score on validation cases, (R,), and the threshold of ``iou_tuned``."""

    def make(case: Case, maps: np.ndarray) -> Arrays:
        lesion = case.mask.lesion
        orders = [RankedPixels(values, lesion) for values in maps]
        of_maps = list(zip(maps, orders, strict=True))
        return {
            "scores": np.array([chosen_by(values, case, score, order) for values, order in of_maps]),
            "curves": np.array([iou_curve(values, lesion, order) for values, order in of_maps]),
        }

    made = ranked.each("scores on validation", make, score=score)
    return best_mean(made["scores"]), [tune_threshold(curves) for curves in made["curves"].swapaxes(0, 1)]


def measure(ranked: Ranked, thresholds: Sequence[float]) -> Measured:
    """Score every row on every test case.

    Args:
        thresholds: of ``iou_tuned``, for each row.
    """
    bands = next((len(case.boundaries) - 1 for case in ranked.cases if case.boundaries is not None), 0)

    def make(case: Case, maps: np.ndarray) -> Arrays:
        orders = [RankedPixels(values, case.mask.lesion) for values in maps]
        of_maps = zip(maps, orders, thresholds, strict=True)
        layers = np.full((len(maps), bands), np.nan)
        if case.boundaries is not None:
            layers = np.array([layer_densities(values, case.boundaries) for values in maps])
        return {
            "scores": np.array([all_scores(values, case, limit, order) for values, order, limit in of_maps]),
            "empty": ~(maps.max(axis=(1, 2)) > 0),
            "layers": layers,
            "correlations": rank_correlations([rank_normalise(values) for values in maps]),
        }

    made = ranked.each("scores", make, thresholds=list(thresholds), bands=bands)
    correlations = np.ma.masked_invalid(made.pop("correlations")).mean(axis=0).filled(np.nan)
    return Measured(list_rows(ranked.makers), **made, correlations=correlations)


def resamples(cases: Sequence[Case], options: LocalizationOptions) -> PatientBootstrap:
    """Of the patients of some cases."""
    return PatientBootstrap(np.array([case.patient for case in cases]), options.bootstrap, options.seed)


def rate(
    makers: Sequence[MapMaker],
    val: Sequence[Case],
    test: Sequence[Case],
    options: LocalizationOptions,
    layer_names: Sequence[str],
    steps: StepCache,
) -> tuple[Leaderboard, RawMaps, np.ndarray]:
    """The whole leaderboard.

    Args:
        val, test: cases with a lesion, so that every row has every score on every one of them (a miss scores 0). Heads,
            thresholds and the best row of each model are chosen on the first.
        layer_names: of the boundaries, where cases have them.
        steps: keeps what is of all models together; what is of one, its maker keeps.

    Returns:
        The leaderboard, the maps of the test cases, and the ranking score (N, rows) of each of them.
    """
    val_raw = make_raw(makers, val)
    heads = choose_heads(makers, val_raw, val, options.score, steps)
    positions = {name: head.position for name, head in heads.items()}
    validation, thresholds = tune(Ranked(makers, val_raw, positions, val, steps), options.score)
    raw = make_raw(makers, test, measure=True)
    on_test = measure(Ranked(makers, raw, positions, test, steps), thresholds)
    resampled, column = resamples(test, options), ALL_SCORES.index(options.score)
    is_off = on_test.scores[..., ALL_SCORES.index("energy_retina")] == 0
    scores, of_classes = _intervals(on_test.scores, resampled, SCALES), {}
    for name in sorted({case.label for case in test}):
        members = [i for i, case in enumerate(test) if case.label == name]
        of_classes[name] = _intervals(on_test.scores[members], resamples([test[i] for i in members], options), SCALES)
    bands = [f"{upper} to {lower}" for upper, lower in pairwise(layer_names)]
    layers = _intervals(on_test.layers, resampled, dict.fromkeys(bands, Scale.RATIO))
    rows = {
        row.name: Standing(
            model=row.model,
            kind=row.kind,
            method=row.method,
            candidate=heads[row.model].name if row.method == ATTENTION else "",
            validation=float(validation[r]),
            threshold=thresholds[r],
            maps_of_zeros=int(on_test.empty[:, r].sum()),
            off_the_retina=int((is_off[:, r] & ~on_test.empty[:, r]).sum()),
            ms=raw.ms.get((row.model, row.method)),
            mb=raw.mb.get((row.model, row.method)),
            scores=scores[r],
            single_scans=SingleScans.of(on_test.scores[:, r, -1]),
            classes={name: of_rows[r] for name, of_rows in of_classes.items()},
            layers=layers[r],
        )
        for r, row in enumerate(on_test.rows)
    }
    spread = spread_over_patients(test)
    hidden, randomised = spread[: options.faithfulness], spread[: options.sanity]
    to_hide = Ranked(makers, raw.of(hidden), positions, [test[i] for i in hidden], steps)
    leaderboard = Leaderboard(
        **vars(_compare(on_test, resampled, column)),
        score=options.score,
        heads=heads,
        rows=rows,
        correlations=Correlations(list(rows), on_test.correlations),
        faithfulness=_faithfulness(to_hide, options),
        sanity=_sanity(makers, positions, [test[i] for i in randomised], options),
    )
    return leaderboard, raw, on_test.scores[..., column]


def spread_over_patients(cases: Sequence[Case]) -> list[int]:
    """Positions of the cases, a new patient each as long as there are any, in turns through the classes."""
    earlier, keys = Counter(), []  # scans of a class, and of a patient in it
    for i, case in enumerate(cases):
        keys.append((earlier[case.label, case.patient], earlier[case.label], case.label, i))
        earlier.update([(case.label, case.patient), case.label])
    return [i for *_, i in sorted(keys)]


def _intervals(values: np.ndarray, resampled: PatientBootstrap, scales: dict[str, Scale]) -> list[dict[str, Interval]]:
    """For each row the means over cases of its values (N, rows, K), by their names; none where K is 0."""
    means = resampled.values(lambda weights: weighted_mean(weights, values))  # (1 + resamples, rows, K)
    return [
        {name: resampled.interval(mean, scale) for mean, (name, scale) in zip(of_row.T, scales.items(), strict=False)}
        for of_row in means.swapaxes(0, 1)
    ]


def _compare(measured: Measured, resampled: PatientBootstrap, column: int) -> Ranking:
    """Paired differences of the ranking score: of maps to the simple maps, and between maps; Holm within each."""
    values = resampled.values(lambda weights: weighted_mean(weights, measured.scores[..., column]))  # (1 + R, rows)
    names = [row.name for row in measured.rows]

    def family(pairs: list[tuple[int, int]]) -> list[PairedDifference]:
        differences = [values[:, a] - values[:, b] for a, b in pairs]
        p_values = [resampled.p_value(difference) for difference in differences]
        # What is undefined (one patient, or no spread) is no evidence.
        adjusted = holm(np.nan_to_num(p_values, nan=1.0)).tolist()
        return [
            PairedDifference(names[a], names[b], resampled.interval(difference, Scale.DIFFERENCE), p, p_holm)
            for (a, b), difference, p, p_holm in zip(pairs, differences, p_values, adjusted, strict=True)
        ]

    networks = [r for r, row in enumerate(measured.rows) if row.kind != "reference"]
    simple = [names.index(name) for name in SIMPLE]
    to_simple_maps = family([(a, b) for a in networks for b in simple])
    between_maps = family(list(combinations(networks, 2)))
    best = names[max(networks, key=lambda r: values[0, r])]
    of_best = [{pair.a, pair.b} for pair in between_maps if pair.is_shown and best in (pair.a, pair.b)]
    separated = {best}.union(*of_best)
    return Ranking(
        best,
        [names[r] for r in networks if names[r] not in separated],
        {
            names[r]: all(pair.is_shown and pair.difference.point > 0 for pair in to_simple_maps if pair.a == names[r])
            for r in networks
        },
        to_simple_maps,
        between_maps,
    )


@torch.inference_mode()
def _probability(model: Model, target: int, scans: torch.Tensor) -> np.ndarray:
    """A class's probability (n,) in grey scans (n, 1, H, W) float32 in 0 … 255, of any size."""
    images = F.interpolate(scans.to(model.device), size=tuple(model.input_size), mode="bicubic", antialias=True)
    return model.forward(images.clamp(0, 255) / 255).double().softmax(dim=1)[:, target].cpu().numpy()


def _faithfulness(ranked: Ranked, options: LocalizationOptions) -> Faithfulness | None:
    """Deletion and insertion AUC for each model, of its own maps and of the maps without a network."""
    with_classes = [maker for maker in ranked.makers if maker.model.class_names]
    if not ranked.cases or not with_classes:
        return None
    resampled, rows = resamples(ranked.cases, options), list_rows(ranked.makers)
    shown = {maker.name: [r for r, row in enumerate(rows) if row.model in (maker.name, None)] for maker in with_classes}

    def make(case: Case, maps: np.ndarray) -> Arrays:  # (rows, 2 · fills) for each model
        at_scan, areas = enlarge(maps, case.scan.shape), {}
        for m, maker in enumerate(with_classes):
            probability = partial(_probability, maker.model, case.targets[maker.name])
            maps_and_fills = product(at_scan[shown[maker.name]], FILLS)
            of_maps = [deletion_insertion(probability, case.scan, values, fill) for values, fill in maps_and_fills]
            areas[f"model{m}"] = np.reshape(of_maps, (-1, 2 * len(FILLS)))
        return areas

    areas = ranked.each("deletion and insertion", make)
    scales = {f"{what}_{fill}": Scale.SCORE for fill in FILLS for what in ("deletion", "insertion")}
    models = {}
    for m, maker in enumerate(with_classes):
        intervals = _intervals(areas[f"model{m}"], resampled, scales)
        models[maker.name] = dict(zip([rows[r].name for r in shown[maker.name]], intervals, strict=True))
    return Faithfulness(len(ranked.cases), resampled.n_patients, models)


def _sanity(
    makers: Sequence[MapMaker], heads: dict[str, int], cases: Sequence[Case], options: LocalizationOptions
) -> Sanity | None:
    """The randomisation test of every method of every model that learnt something."""
    if not cases:
        return None
    resampled, scales = resamples(cases, options), dict.fromkeys(STAGES, Scale.CORRELATION)
    scans, models = [case.scan for case in cases], {}
    trained = [maker for maker in makers if not maker.is_control]
    for maker in tqdm(trained, desc="randomised weights", unit="model", disable=None, leave=False):
        head, targets = heads.get(maker.name, 0), [case.targets[maker.name] for case in cases]
        make = partial(randomised_correlations, maker, head, scans, targets, options.seed)
        about = {"settings": asdict(maker.settings), "targets": targets, "head": head, "seed": options.seed}
        about |= {"methods": maker.methods, "scans": digest(*scans)}
        correlations = maker.steps.arrays("randomised weights", make, **about)
        of_methods = _intervals(np.stack(list(correlations.values()), axis=1), resampled, scales)
        randomised = [Randomised(stages, verdict(stages[STAGES[-1]])) for stages in of_methods]
        models[maker.name] = dict(zip(correlations, randomised, strict=True))
    return Sanity(len(cases), resampled.n_patients, models)
