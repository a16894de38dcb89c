"""Maps of several models scored against lesion masks: heads and thresholds from validation, scores on the test."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, pairwise, product

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale, weighted_mean
from evaluation.config import ALL_SCORES, ATTENTION, SCORES, LocalizationOptions
from evaluation.inputs.model import Model
from evaluation.maps.methods import candidates, enlarge
from evaluation.maps.randomisation import STAGES, randomised_correlations, verdict
from evaluation.maps.rows import Case, MapMaker, RawMaps, Row, list_rows, make_raw, scan_rows
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
ALPHA = 0.05  # of p values after Holm's correction


@dataclass(frozen=True)
class Measured:
    """Scores of every row on some cases.

    Attributes:
        rows: R rows; scores: (N, R, S) float64, columns ``ALL_SCORES``; empty: (N, R) bool, maps that were 0.
        curves: (N, R, T) IoU at every threshold, of validation cases.
        layers: (N, R, bands), NaN for a case without boundaries; no bands where none has them.
        correlations: (R, R), mean Spearman correlation between maps of the same scan, of the scans where both vary.
    """

    rows: list[Row]
    scores: np.ndarray
    empty: np.ndarray
    curves: np.ndarray
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


def choose_heads(makers: Sequence[MapMaker], raw: RawMaps, cases: Sequence[Case], score: str) -> dict[str, Head]:
    """For each model with attention the head of highest mean score on validation cases."""
    heads = {}
    for maker in makers:
        if ATTENTION not in maker.methods:
            continue
        names = candidates(maker.model, ATTENTION, maker.settings)
        of_cases = zip(raw.maps[maker.name, ATTENTION], cases, strict=True)
        scores = [[one_score(head, case, score) for head in enlarge(m, case.mask.lesion.shape)] for m, case in of_cases]
        means = np.mean(scores, axis=0)
        best = int(means.argmax())
        heads[maker.name] = Head(best, names[best], float(means[best]), dict(zip(names, means.tolist(), strict=True)))
    return heads


def one_score(values: np.ndarray, case: Case, name: str) -> float:
    """One of ``ALL_SCORES`` of a map in the size of the case's mask; ``iou_tuned`` needs a threshold and is NaN."""
    lesion, retina = case.mask.lesion, case.mask.retina
    if name in SCORES:
        return float(score_map(values, lesion, [name])[0])
    if name == "energy_retina":
        return float(values[retina].sum(dtype=np.float64) / max(values.sum(dtype=np.float64), 1e-30))
    return lesion_over_retina(values, lesion, retina) if name == "lesion_over_retina" else np.nan


def all_scores(
    values: np.ndarray, case: Case, threshold: float | None = None, ranked: RankedPixels | None = None
) -> np.ndarray:
    """``ALL_SCORES`` of a map in the size of the case's mask; ``iou_tuned`` is NaN without a threshold."""
    lesion = case.mask.lesion
    tuned = np.nan if threshold is None else float(iou_at(values, lesion, threshold, ranked))
    rest = [one_score(values, case, name) for name in ("energy_retina", "lesion_over_retina")]
    return np.array([*score_map(values, lesion, ranked=ranked), tuned, *rest])


def measure(
    makers: Sequence[MapMaker],
    raw: RawMaps,
    heads: dict[str, int],
    cases: Sequence[Case],
    thresholds: Sequence[float] | None = None,
) -> Measured:
    """Score every row on every case; without thresholds their curves are measured instead."""
    rows = list_rows(makers)
    limits = [None] * len(rows) if thresholds is None else thresholds
    bands = next((len(case.boundaries) - 1 for case in cases if case.boundaries is not None), 0)
    layers = np.full((len(cases), len(rows), bands), np.nan)
    scores, curves, empties, correlations = [], [], [], []
    for i, (case, maps, empty) in enumerate(scan_rows(makers, raw, heads, cases)):
        lesion = case.mask.lesion
        ranked = [RankedPixels(values, lesion) for values in maps]
        of_maps = zip(maps, ranked, limits, strict=True)
        scores.append([all_scores(values, case, limit, order) for values, order, limit in of_maps])
        empties.append(empty)
        if thresholds is None:
            curves.append([iou_curve(values, lesion, order) for values, order in zip(maps, ranked, strict=True)])
        else:
            correlations.append(rank_correlations([rank_normalise(values) for values in maps]))
            if case.boundaries is not None:
                layers[i] = [layer_densities(values, case.boundaries) for values in maps]
    mean_correlation = np.ma.masked_invalid(correlations).mean(axis=0).filled(np.nan) if correlations else np.empty(0)
    return Measured(rows, np.array(scores), np.array(empties), np.array(curves), layers, mean_correlation)


def resamples(cases: Sequence[Case], options: LocalizationOptions) -> PatientBootstrap:
    """Of the patients of some cases."""
    return PatientBootstrap(np.array([case.patient for case in cases]), options.bootstrap, options.seed)


def rate(
    makers: Sequence[MapMaker],
    val: Sequence[Case],
    test: Sequence[Case],
    options: LocalizationOptions,
    layer_names: Sequence[str],
) -> tuple[Leaderboard, RawMaps, np.ndarray]:
    """The whole leaderboard.

    Args:
        val, test: cases with a lesion, so that every row has every score on every one of them (a miss scores 0). Heads,
            thresholds and the best row of each model are chosen on the first.
        layer_names: of the boundaries, where cases have them.

    Returns:
        The leaderboard, the maps of the test cases, and the ranking score (N, rows) of each of them.
    """
    val_raw = make_raw(makers, val)
    heads = choose_heads(makers, val_raw, val, options.score)
    positions = {name: head.position for name, head in heads.items()}
    on_val = measure(makers, val_raw, positions, val)
    thresholds = [tune_threshold(on_val.curves[:, r]) for r in range(len(on_val.rows))]
    raw = make_raw(makers, test, measure=True)
    on_test = measure(makers, raw, positions, test, thresholds)
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
            validation=float(on_val.scores[:, r, column].mean()),
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
    leaderboard = Leaderboard(
        **vars(_compare(on_test, resampled, column)),
        score=options.score,
        heads=heads,
        rows=rows,
        correlations=Correlations(list(rows), on_test.correlations),
        faithfulness=_faithfulness(makers, raw.of(hidden), positions, [test[i] for i in hidden], options),
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


def _faithfulness(
    makers: Sequence[MapMaker], raw: RawMaps, heads: dict[str, int], cases: Sequence[Case], options: LocalizationOptions
) -> Faithfulness | None:
    """Deletion and insertion AUC for each model, of its own maps and of the maps without a network."""
    with_classes = [maker for maker in makers if maker.model.class_names]
    if not cases or not with_classes:
        return None
    resampled, rows = resamples(cases, options), list_rows(makers)
    shown = {maker.name: [r for r, row in enumerate(rows) if row.model in (maker.name, None)] for maker in with_classes}
    areas: dict[str, list] = {name: [] for name in shown}  # (N, rows, 2 · fills)
    for case, maps, _ in scan_rows(makers, raw, heads, cases):
        at_scan = enlarge(maps, case.scan.shape)
        for maker in with_classes:
            probability = partial(_probability, maker.model, case.targets[maker.name])
            maps_and_fills = product(at_scan[shown[maker.name]], FILLS)
            of_maps = [deletion_insertion(probability, case.scan, values, fill) for values, fill in maps_and_fills]
            areas[maker.name].append(np.reshape(of_maps, (-1, 2 * len(FILLS))))
    scales = {f"{what}_{fill}": Scale.SCORE for fill in FILLS for what in ("deletion", "insertion")}
    models = {}
    for name, of_cases in areas.items():
        intervals = _intervals(np.array(of_cases), resampled, scales)
        models[name] = dict(zip([rows[r].name for r in shown[name]], intervals, strict=True))
    return Faithfulness(len(cases), resampled.n_patients, models)


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
        correlations = randomised_correlations(maker, head, scans, targets, options.seed)
        of_methods = _intervals(np.stack(list(correlations.values()), axis=1), resampled, scales)
        randomised = [Randomised(stages, verdict(stages[STAGES[-1]])) for stages in of_methods]
        models[maker.name] = dict(zip(correlations, randomised, strict=True))
    return Sanity(len(cases), resampled.n_patients, models)
