"""A linear probe with scikit-learn's conventions: the logistic regression of the evaluations, chosen by patient."""

from os import PathLike
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from dino_oct.errors import InputError
from dino_oct.files import private_folder, read_json, replacing
from dino_oct.scores.probes import LinearClassifier, choose_within, logistic_path, standardisation
from dino_oct.scores.text import write_json

_TENSORS, _FACTS = "probe.safetensors", "probe.json"


class LinearProbe(ClassifierMixin, BaseEstimator):
    """L2-regularised logistic regression on standardised features.

    Its strength is chosen by a cross-validation that keeps a patient's scans together.

    Args:
        cs: inverse strengths that are tried.

    Attributes:
        classes_: as they were given. C_: the chosen strength. coef_: (K, D); intercept_: (K,), of features as they are.
    """

    def __init__(self, cs: tuple[float, ...] = tuple(np.logspace(-5, 2, 20).tolist())):
        self.cs = cs

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> "LinearProbe":
        """Fit to features (N, D) and classes (N,).

        Args:
            groups: (N,) patients; None: every scan is of a patient of its own.

        Raises:
            ValueError: shapes that do not belong together, values that are not finite, or fewer than two classes.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"LinearProbe: one class only ({self.classes_[0]}); two or more are needed")
        groups = np.arange(len(y)) if groups is None else np.asarray(groups)
        if groups.shape != y.shape:
            raise ValueError(f"groups of shape {groups.shape} for {len(y)} scans")
        mean, scale = standardisation(X)

        def path(rows: torch.Tensor, classes: np.ndarray, count: int):
            return logistic_path(rows, classes, count, self.cs)

        middle = min(self.cs, key=lambda c: abs(np.log(c)))
        choice = choose_within(path, torch.from_numpy((X - mean) / scale), labels, groups, len(self.classes_), middle)
        self.C_ = choice.setting
        self.coef_ = choice.classifier.weight.numpy() / scale
        self.intercept_ = choice.classifier.bias.numpy() - self.coef_ @ mean
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities (N, K) of ``classes_``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        classifier = LinearClassifier(torch.from_numpy(self.coef_), torch.from_numpy(self.intercept_))
        return classifier.probabilities(torch.from_numpy(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class of each row, (N,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def save(self, folder: str | PathLike) -> None:
        """Write tensors and facts into a folder; nothing in them is code."""
        check_is_fitted(self)
        place = private_folder(Path(folder))
        tensors = {"weight": torch.from_numpy(self.coef_), "bias": torch.from_numpy(self.intercept_)}
        with replacing(place / _TENSORS) as file:
            safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, file)
        write_json({"classes": self.classes_, "C": self.C_, "cs": self.cs}, place / _FACTS)

    @classmethod
    def load(cls, folder: str | PathLike) -> "LinearProbe":
        """What ``save`` wrote; InputError where it is missing or damaged."""
        place = Path(folder)
        try:
            facts, tensors = read_json(place / _FACTS), safetensors.torch.load_file(place / _TENSORS)
            probe = cls(tuple(facts["cs"]))
            probe.classes_, probe.C_ = np.array(facts["classes"]), facts["C"]
            probe.coef_, probe.intercept_ = tensors["weight"].numpy(), tensors["bias"].numpy()
            probe.n_features_in_ = probe.coef_.shape[1]
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise InputError(f"{folder}: no probe that can be read ({error})") from None
        return probe
