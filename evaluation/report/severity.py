"""Does an embedding order scans by how much lesion they show? Rank correlations of two predictors without training."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dino_oct.errors import InputError
from dino_oct.features import unit
from dino_oct.files import read_json
from dino_oct.knn import neighbours
from dino_oct.scan_data import ScanData
from dino_oct.scores.bootstrap import Interval, Scale
from dino_oct.scores.regression import rank_correlation
from evaluation.config import MaskOptions
from evaluation.inputs.masks import LesionMasks
from evaluation.report.models import Candidate
from evaluation.report.steps import Setting

NEIGHBOURS = 10
UNDEFINED = Interval(math.nan)
PHANTOM, SHARE, TOLD = "phantom severity", "share of the scan in the lesion mask", "severity in the table of scans"
_HELP = (
    "Are scans with more lesion also further from normal ones? Spearman’s rank correlation (1: the same order, 0: "
    "none) of the amount of lesion in test scans that show one with two guesses from the frozen features. Distance "
    "from normal: 1 − cosine to the mean feature of normal training scans. By similar scans: mean amount of lesion of "
    f"the {NEIGHBOURS} nearest training scans. No model was trained on it."
)


@dataclass(frozen=True)
class Correlations:
    """Spearman's rank correlation of lesion load with each predictor, −1 to 1; NaN where it is undefined.

    Attributes:
        from_normal: with 1 − cosine to the mean unit feature of normal training scans.
        by_neighbours: with the mean lesion load of the nearest training scans.
    """

    from_normal: Interval = UNDEFINED
    by_neighbours: Interval = UNDEFINED


@dataclass(frozen=True)
class SeverityRow:
    """Of one model: over all test scans with a lesion, and by class."""

    all: Correlations
    classes: dict[str, Correlations]


@dataclass(frozen=True)
class Scatter:
    """The N test scans with a lesion: positions in the report's scans, lesion load, and ``from_normal``, each (N,)."""

    scans: np.ndarray
    severity: np.ndarray
    from_normal: np.ndarray


@dataclass(frozen=True)
class Severity:
    """Whether features order scans by lesion load.

    Attributes:
        measure: of lesion load; help: what is correlated.
        rows: by model; scatter: by model, as far as there are normal training scans.
    """

    measure: str
    help: str
    rows: dict[str, SeverityRow]
    scatter: dict[str, Scatter]


def lesion_loads(data: ScanData, positions: np.ndarray, masks: LesionMasks | None) -> tuple[str, np.ndarray]:
    """What is known about how much lesion some scans show: the measure's name, and (N,) ≥ 0, NaN where unknown.

    Args:
        masks: given masks; None: the column ``severity`` of a table (a grade, a volume, a thickness: more is worse),
            else the masks beside the scans, if there are any.

    Raises:
        InputError: neither severities nor masks.
    """
    told = data.index.facts.get("severity")
    if told is not None and masks is None:
        return TOLD, np.array([float(value) if value else np.nan for value in told[positions].tolist()])
    about = Path(data.index.root) / "phantom.json"
    if about.is_file() and masks is None:
        try:
            severity = {record["file"]: float(record["severity"]) for record in read_json(about)["scans"]}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{about}: damaged: no severities of scans ({type(error).__name__} {error})") from None
        return PHANTOM, np.array([severity.get(data.index.files[i], np.nan) for i in positions], dtype=float)
    masks = masks or LesionMasks(data, MaskOptions())
    shares = [masks.read(int(i)).lesion.mean() if masks.file(int(i)) else np.nan for i in positions]
    return "; ".join([SHARE, *masks.notes()]), np.array(shares, dtype=float)


def severity(models: dict[str, Candidate], shared: Setting, masks: LesionMasks | None) -> Severity:
    """Rank correlations of every model whose features are known.

    Raises:
        InputError: no lesion loads, or too few scans with a lesion.
    """
    measure, of_test = lesion_loads(shared.data, shared.positions["test"], masks)
    _, of_train = lesion_loads(shared.data, shared.positions["train"], masks)
    with_lesion = np.flatnonzero(of_test > 0)
    if len(with_lesion) < 3:
        raise InputError(f"{len(with_lesion)} test scans with a lesion whose load is known: too few to order")
    queries, names = shared.set_of("test"), shared.class_names
    labels, patients, load = queries.labels[with_lesion], queries.patients[with_lesion], of_test[with_lesion]
    is_normal = np.isin(shared.set_of("train").labels, [c for c, n in enumerate(names) if n.casefold() == "normal"])
    groups = {name: labels == c for c, name in enumerate(names) if (labels == c).sum() >= 3}
    rows, scatter = {}, {}
    for key, model in models.items():
        try:
            features = model.features
        except InputError as reason:
            model.gaps["severity"] = str(reason)
            continue
        predicted = _predict(features["train"], of_train, is_normal, features["test"][with_lesion])
        by_class = {}
        for name, inside in groups.items():
            of_class = {predictor: values[inside] for predictor, values in predicted.items()}
            by_class[name] = _correlations(load[inside], of_class, patients[inside], shared)
        rows[key] = SeverityRow(_correlations(load, predicted, patients, shared), by_class)
        if "from_normal" in predicted:
            scatter[key] = Scatter(with_lesion, load, predicted["from_normal"])
    return Severity(measure, _HELP, rows, scatter)


def _predict(train: np.ndarray, load: np.ndarray, is_normal: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Each predictor (M,) of the test scans' lesion load, as far as the training scans allow."""
    predicted = {}
    if is_normal.any():
        centre = unit(unit(train[is_normal]).mean(axis=0, keepdims=True))
        predicted["from_normal"] = 1 - (unit(test) @ centre[0]).astype(float)
    known = np.isfinite(load)
    if known.sum() >= NEIGHBOURS:
        _, near = neighbours(train[known], test, NEIGHBOURS)
        predicted["by_neighbours"] = load[known][near].mean(axis=1)
    return predicted


def _correlations(
    load: np.ndarray, predicted: dict[str, np.ndarray], patients: np.ndarray, shared: Setting
) -> Correlations:
    intervals, bootstrap = {}, shared.bootstrap(patients)
    for name, of_scans in predicted.items():
        values = bootstrap.values(partial(rank_correlation, a=load, b=of_scans))
        intervals[name] = bootstrap.interval(values, Scale.CORRELATION)
    return Correlations(**intervals)
