"""How well can the class be told without looking at the retina? From image size, white borders or brightness alone."""

from dataclasses import asdict, dataclass

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

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


def check_shortcuts(
    labels: np.ndarray,
    patients: np.ndarray,
    sizes: np.ndarray,
    border: np.ndarray,
    brightness: np.ndarray,
    seed: int = 0,
) -> tuple[list[Shortcut], list[int]]:
    """Predict the class from size alone, from border alone, from both, and from brightness alone.

    Args:
        labels: (N,) int; negative labels are ignored.
        patients: (N,) str.
        sizes: (N, 2) height and width in pixels, of the files.
        border: (N, 9) features of ``borders.border_features``, before neutralising.
        brightness: (N, 9) features of ``brightness.brightness_features``.

    Returns:
        One result each for "size", "border", "size + border" and "brightness" (none where fewer than two classes have
        five patients), and the labels left out because they have fewer than five patients.
    """
    patients_of = {label: len(set(patients[labels == label])) for label in np.unique(labels[labels >= 0]).tolist()}
    used = [label for label, count in patients_of.items() if count >= _LEAST_PATIENTS]
    left_out = [label for label in patients_of if label not in used]
    if len(used) < 2:
        return [], left_out
    rows = np.isin(labels, used)
    height, width = sizes[rows].T.astype(np.float64)
    size = np.stack([width, height, width / height], axis=1)
    edges = border[rows].astype(np.float64)
    features = {
        "size": size,
        "border": edges,
        "size + border": np.concatenate([size, edges], axis=1),
        "brightness": brightness[rows].astype(np.float64),
    }
    results = []
    for name, table in features.items():
        predicted = _predict(table, labels[rows], patients[rows], seed)
        accuracy = _balanced_accuracy(labels[rows], predicted, patients[rows], seed)
        results.append(Shortcut(name, accuracy.point, accuracy.low, accuracy.high, 1 / len(used)))
    return results, left_out


def as_numbers(results: list[Shortcut]) -> list[dict]:
    """The results as JSON-ready dictionaries."""
    return [{**asdict(result), "better_than_chance": result.is_usable} for result in results]


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
