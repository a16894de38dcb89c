"""Does an embedding order scans by how much lesion they show? Rank correlations of two predictors without training."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from dino_oct.bootstrap import Interval, PatientBootstrap, Scale
from dino_oct.errors import InputError
from dino_oct.features import unit
from dino_oct.files import read_json
from dino_oct.knn import neighbours
from evaluation.comparison_measures import Setting
from evaluation.comparison_models import Model
from evaluation.lesion_masks import LesionMasks
from evaluation.scan_data import ScanData

NEIGHBOURS = 10
PHANTOM, SHARE = "phantom severity", "share of the scan in the lesion mask"
PREDICTORS = ("from_normal", "by_neighbours")
_HELP = (
    "Spearman's rank correlation (1: the same order, 0: none) of the lesion load of test scans that show a lesion with "
    "two predictors from the frozen features: from_normal, 1 − cosine to the mean unit feature of normal training "
    f"scans; by_neighbours, mean lesion load of the {NEIGHBOURS} nearest training scans. No model was trained on it."
)


def lesion_loads(data: ScanData, positions: np.ndarray, masks: LesionMasks | None) -> tuple[str, np.ndarray]:
    """What is known about how much lesion some scans show: the measure's name, and (N,) ≥ 0, NaN where unknown.

    Args:
        masks: given masks; None: those beside the scans, if there are any.

    Raises:
        InputError: neither severities nor masks.
    """
    about = Path(data.index.root) / "phantom.json"
    if about.is_file() and masks is None:
        try:
            severity = {record["file"]: float(record["severity"]) for record in read_json(about)["scans"]}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{about}: damaged: no severities of scans ({type(error).__name__} {error})") from None
        return PHANTOM, np.array([severity.get(data.index.files[i], np.nan) for i in positions], dtype=float)
    masks = masks or LesionMasks(data)
    shares = [masks.read(int(i)).lesion.mean() if masks.file(int(i)) else np.nan for i in positions]
    measure = "; ".join([SHARE, *masks.notes()])
    return measure, np.array(shares, dtype=float)


def severity(models: dict[str, Model], shared: Setting, masks: LesionMasks | None) -> dict[str, Any]:
    """``results["severity"]``; ``scans`` are positions in the test.

    Raises:
        InputError: no lesion loads, or too few scans with a lesion.
    """
    measure, of_test = lesion_loads(shared.data, shared.positions["test"], masks)
    _, of_train = lesion_loads(shared.data, shared.positions["train"], masks)
    chosen = np.flatnonzero(of_test > 0)
    if len(chosen) < 3:
        raise InputError(f"{len(chosen)} test scans with a lesion whose load is known: too few to order")
    queries = shared.set_of("test")
    labels, patients, load = queries.labels[chosen], queries.patients[chosen], of_test[chosen]
    normal = _normal(shared)
    rows: dict[str, Any] = {}
    scatter: dict[str, Any] = {}
    groups = {"": np.ones(len(chosen), dtype=bool)}
    groups |= {name: labels == c for c, name in enumerate(shared.class_names) if (labels == c).sum() >= 3}
    for key, model in models.items():
        try:
            features = model.features
        except InputError as reason:
            model.gaps["severity"] = str(reason)
            continue
        predicted = _predict(features["train"], of_train, normal, features["test"][chosen])
        found = {
            name: _correlations(load[inside], {p: v[inside] for p, v in predicted.items()}, patients[inside], shared)
            for name, inside in groups.items()
        }
        rows[key] = {"all": found.pop(""), "classes": found}
        if "from_normal" in predicted:
            scatter[key] = {"scans": chosen, "severity": load, "from_normal": predicted["from_normal"]}
    return {"measure": measure, "help": _HELP, "rows": rows, "scatter": scatter}


def _normal(shared: Setting) -> np.ndarray:
    """(N,) bool, training scans of the class NORMAL."""
    of_class = [c for c, name in enumerate(shared.class_names) if name.casefold() == "normal"]
    return np.isin(shared.set_of("train").labels, of_class)


def _predict(train: np.ndarray, load: np.ndarray, normal: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Each predictor (M,) of the test scans' lesion load, as far as the training scans allow."""
    found = {}
    if normal.any():
        centre = unit(unit(train[normal]).mean(axis=0, keepdims=True))
        found["from_normal"] = 1 - (unit(test) @ centre[0]).astype(float)
    known = np.isfinite(load)
    if known.sum() >= NEIGHBOURS:
        _, near = neighbours(train[known], test, NEIGHBOURS)
        found["by_neighbours"] = load[known][near].mean(axis=1)
    return found


def _correlations(
    load: np.ndarray, predicted: dict[str, np.ndarray], patients: np.ndarray, shared: Setting
) -> dict[str, Interval]:
    bootstrap = PatientBootstrap(patients, shared.bootstrap, shared.seed)
    return {
        name: bootstrap.interval(
            bootstrap.values(partial(rank_correlation, a=load, b=predicted[name])), Scale.CORRELATION
        )
        if name in predicted
        else Interval(float("nan"))
        for name in PREDICTORS
    }


def rank_correlation(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation for each row of weights (R, N): Pearson's of the ranks among all scans, weighted.

    Returns:
        (R,); NaN where either does not vary.
    """
    x, y = (rankdata(values, method="average") for values in (a, b))
    total = weights.sum(axis=1, keepdims=True)
    x, y = (ranks - weights @ ranks[:, None] / total for ranks in (x, y))  # (R, N)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1))
        return np.where(spread > 1e-9, (weights * x * y).sum(axis=1) / spread, np.nan)
