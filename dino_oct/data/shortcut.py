"""How well can the class be told without looking at the retina? From image size, white borders, brightness, noise, the
device or the slice's place in its volume, each alone."""

from dataclasses import asdict, dataclass

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

from dino_oct.data.brightness import FEATURES
from dino_oct.data.cache import ScanCache
from dino_oct.data.index import ScanIndex
from dino_oct.scores.bootstrap import Interval, PatientBootstrap, Scale
from dino_oct.streams import short_seed_of

_FOLDS = 5
_LEAST_PATIENTS = 5  # of a class, so that each fold can hold one
_TREE_SCANS = 5000  # scans each tree sees: such features need no more


@dataclass(frozen=True)
class Shortcut:
    """Balanced accuracy of the class predicted from ``features`` in patient-grouped cross-validation.

    ``low`` and ``high`` bound its 95 % interval by patient, None where there is none; ``chance`` is 1 / classes.
    """

    features: str
    balanced_accuracy: float
    low: float | None
    high: float | None
    chance: float

    @property
    def is_usable(self) -> bool:
        """Better than chance beyond the interval."""
        return self.low is not None and self.low > self.chance


def shortcut_features(index: ScanIndex, cache: ScanCache) -> dict[str, np.ndarray]:
    """Name → (N, columns) float64 of what is no anatomy; rows of NaN where it is not known.

    Always "size", "border", "size + border", "brightness" and "noise"; "device" where two or more are known, "position"
    where the number of the slice is. Size and border are those of the files. Noise is the mean absolute mixed
    difference of neighbouring pixels, as of Immerkær 1996 with a mask of 2 x 2, which edges hardly change.
    """
    height, width = cache.original_sizes.T.astype(np.float64)
    size, border = np.stack([width, height, width / height], axis=1), cache.border.astype(np.float64)
    brightness, noise = cache.brightness.astype(np.float64), FEATURES.index("noise")
    features = {
        "size": size,
        "border": border,
        "size + border": np.concatenate([size, border], axis=1),
        "brightness": np.delete(brightness, noise, axis=1),
        "noise": brightness[:, [noise]],
    }
    devices, slices = index.fact("device"), index.fact("slice")
    names = sorted({*devices.tolist()} - {""})
    if len(names) > 1:
        features["device"] = np.where(devices[:, None] == "", np.nan, devices[:, None] == names)
    if len({*slices.tolist()} - {""}) > 1:
        features["position"] = np.array([[float(number or "nan")] for number in slices.tolist()])
    return features


def check_shortcuts(
    labels: np.ndarray, patients: np.ndarray, features: dict[str, np.ndarray], seed: int = 0
) -> tuple[list[Shortcut], list[int]]:
    """Predict the class from each kind of features alone.

    Args:
        labels: (N,) int; negative labels are ignored.
        patients: (N,) str.
        features: name → (N, columns), as ``shortcut_features`` gives them.

    Returns:
        One result for each name, over the scans where it is known; none where there are not two classes of five
        patients each among these. And the labels left out because they have fewer than five patients.
    """
    left_out = _classes(labels, patients)[1]
    results = []
    for name, table in features.items():
        known = np.flatnonzero(~np.isnan(table).any(axis=1))
        used, _ = _classes(labels[known], patients[known])
        rows = known[np.isin(labels[known], used)]
        if len(used) < 2:
            continue
        predicted = _predict(table[rows], labels[rows], patients[rows], seed)
        accuracy = _balanced_accuracy(labels[rows], predicted, patients[rows], seed)
        results.append(Shortcut(name, accuracy.point, accuracy.low, accuracy.high, 1 / len(used)))
    return results, left_out


def as_numbers(results: list[Shortcut]) -> list[dict]:
    """The results as JSON-ready dictionaries."""
    return [{**asdict(result), "better_than_chance": result.is_usable} for result in results]


def _classes(labels: np.ndarray, patients: np.ndarray) -> tuple[list[int], list[int]]:
    """Labels with enough patients, and the others."""
    counts = {label: len(set(patients[labels == label])) for label in np.unique(labels[labels >= 0]).tolist()}
    used = [label for label, count in counts.items() if count >= _LEAST_PATIENTS]
    return used, [label for label in counts if label not in used]


def _predict(table: np.ndarray, labels: np.ndarray, patients: np.ndarray, seed: int) -> np.ndarray:
    predicted = np.empty_like(labels)
    splitter = StratifiedGroupKFold(
        _FOLDS, shuffle=True, random_state=short_seed_of("folds of the shortcut check", seed)
    )
    for train, test in splitter.split(table, labels, groups=patients):
        forest = RandomForestClassifier(
            n_estimators=30,
            max_depth=8,
            min_samples_leaf=3,
            max_samples=min(1.0, _TREE_SCANS / len(train)),
            class_weight="balanced",
            random_state=short_seed_of("forests of the shortcut check", seed),
        )
        predicted[test] = forest.fit(table[train], labels[train]).predict(table[test])
    return predicted


def _balanced_accuracy(labels: np.ndarray, predicted: np.ndarray, patients: np.ndarray, seed: int) -> Interval:
    """Mean recall over the classes, with its interval by patient."""
    bootstrap = PatientBootstrap(patients, seed=seed)
    members = (labels[:, None] == np.unique(labels)).astype(float)  # (N, classes)
    hits = members * (labels == predicted)[:, None]

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return ((weights @ hits) / (weights @ members)).mean(axis=1)

    return bootstrap.interval(bootstrap.values(statistic), Scale.SHARE, bootstrap.support(labels))
