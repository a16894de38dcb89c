"""Linear classifiers on frozen features: a path of L2 logistic regressions, and DINO's SGD protocol."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_oct.errors import InputError
from dino_oct.scores.multilabel import log_loss, macro_average_precision
from dino_oct.streams import seed_of

FOLDS = 5  # of the cross-validation within few labelled patients
SGD_BATCH = 256  # scans, of DINO's protocol
ON_VALIDATION, WITHIN = "validation patients", "cross-validation over the drawn patients"
_HISTORY = 10  # pairs of steps that L-BFGS remembers


@dataclass(frozen=True)
class LinearClassifier:
    """Softmax of ``features @ weight.T + bias``; classes never trained have a bias of minus infinity.

    Attributes:
        weight: (K, D); bias: (K,).
    """

    weight: Tensor
    bias: Tensor

    def probabilities(self, features: Tensor) -> np.ndarray:
        """Of features (M, D) like those trained on: (M, K) float64, rows sum to 1."""
        return (features @ self.weight.T + self.bias).double().softmax(dim=1).cpu().numpy()


Candidate = TypeVar("Candidate", float, str)
Fit = Callable[[Tensor, np.ndarray, int], Iterator[tuple[float, LinearClassifier]]]


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen.

    Attributes:
        setting: its C (or epoch).
        classifier: its weights.
        accuracies: balanced accuracy of every candidate by setting on the scans that chose, per cent.
        by: what chose it.
        probabilities: (N, C) that it gives the scans that chose; None where none did.
    """

    setting: float
    classifier: LinearClassifier
    accuracies: dict[float, float]
    by: str
    probabilities: np.ndarray | None = None


def choose(candidates: Iterator[tuple[float, LinearClassifier]], features: Tensor, labels: np.ndarray) -> Choice:
    """The candidate of highest balanced accuracy on validation scans; ties: lower log-loss, then the earlier.

    Args:
        candidates: settings and classifiers; features: (M, D) and labels: (M,) of the validation scans.
    """
    classifiers = dict(candidates)
    probabilities = {setting: classifier.probabilities(features) for setting, classifier in classifiers.items()}
    return _best(classifiers, probabilities, labels, ON_VALIDATION)


def best_candidate(
    probabilities: dict[Candidate, np.ndarray], labels: np.ndarray
) -> tuple[Candidate, dict[Candidate, float]]:
    """The candidate of highest balanced accuracy; ties: lower log-loss, then the earlier.

    Args:
        probabilities: candidate → (N, C); labels: (N,).

    Returns:
        Its name, and the balanced accuracy of every candidate in per cent.
    """
    accuracies, likelihoods = {}, {}
    for candidate, of_scans in probabilities.items():
        correct = of_scans.argmax(axis=1) == labels
        accuracies[candidate] = 100 * float(np.mean([correct[labels == c].mean() for c in np.unique(labels)]))
        likelihoods[candidate] = np.log(np.maximum(of_scans[np.arange(len(labels)), labels], 1e-12)).mean()
    return max(accuracies, key=lambda candidate: (accuracies[candidate], likelihoods[candidate])), accuracies


def _best(
    classifiers: dict[float, LinearClassifier], probabilities: dict[float, np.ndarray], labels: np.ndarray, by: str
) -> Choice:
    setting, accuracies = best_candidate(probabilities, labels)
    return Choice(setting, classifiers[setting], accuracies, by, probabilities[setting])


def choose_within(
    fit: Fit, features: Tensor, labels: np.ndarray, patients: np.ndarray, n_classes: int, fallback: float | None = None
) -> Choice:
    """The candidate whose setting does best in a cross-validation over these patients; no other label is used.

    Args:
        fit: from features (N, D), labels (N,) and the number of classes to settings and classifiers.
        fallback: setting where a class has one patient only, so that nothing can be held out; unset: the last one.
    """
    fold = patient_folds(labels, patients)
    classifiers = dict(fit(features, labels, n_classes))
    if fold is None:
        setting = next(reversed(classifiers)) if fallback is None else fallback
        return Choice(setting, classifiers[setting], {}, f"fixed at {setting:g}, as a class has one patient only")
    held_out = {setting: np.zeros((len(labels), n_classes)) for setting in classifiers}
    for k in np.unique(fold):
        for setting, classifier in fit(features[fold != k], labels[fold != k], n_classes):
            held_out[setting][fold == k] = classifier.probabilities(features[fold == k])
    return _best(classifiers, held_out, labels, WITHIN)


def patient_folds(labels: np.ndarray, patients: np.ndarray, folds: int = FOLDS) -> np.ndarray | None:
    """A fold (N,) for each scan, whole patients, those of each class spread over the folds; None where a class would
    be left out of a training part."""
    fold_of: dict[str, int] = {}
    for c in np.unique(labels):
        for patient in np.unique(patients[labels == c]).tolist():
            fold_of.setdefault(patient, len(fold_of) % folds)
    fold = np.array([fold_of[patient] for patient in patients.tolist()])
    whole = all(len(np.unique(fold[labels == c])) > 1 for c in np.unique(labels))
    return fold if whole else None


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of (N, D), float32; columns that are constant get a deviation of 1."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(std > 1e-6 * max(std.max(), 1e-12), std, 1).astype(np.float32)


def logistic_path(
    features: Tensor,
    labels: np.ndarray,
    n_classes: int,
    cs: Sequence[float],
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> Iterator[tuple[float, LinearClassifier]]:
    """L2 logistic regressions for several C, each started from the one before.

    Minimises Σ log-loss + ‖weight‖² / 2C, the intercept free, as scikit-learn's ``LogisticRegression`` does. L-BFGS
    (Nocedal & Wright 2006, section 7.2) starts from the inverse of Böhning's bound of the Hessian (1992), which is
    known for every C from one eigendecomposition; this is why few steps are enough.

    Args:
        features: (N, D) float32 or float64; works in this precision. Best standardised.
        labels: (N,) classes in 0 … n_classes − 1; those without a scan get probability 0.
        cs: inverse strengths of the penalty, above 0.
        tolerance: largest entry of the gradient of the mean loss at which to stop.

    Yields:
        C and its classifier, from the smallest C.

    Raises:
        InputError: a C not above 0, or scans of fewer than two classes.
    """
    if not cs or not min(cs) > 0:
        raise InputError(f"C {', '.join(f'{c:g}' for c in cs) or 'missing'}: give values above 0")
    present, target = _present(labels, features.device)
    problem = _Logistic(features, F.one_hot(target, len(present)).to(features.dtype))
    solution = torch.zeros(len(present), features.shape[1] + 1, dtype=features.dtype, device=features.device)
    for c in sorted(cs):
        solution = problem.solve(solution, 1 / (c * len(features)), tolerance, max_iterations)
        weight, centred_bias = solution[:, :-1], solution[:, -1]
        yield c, _embed(weight.clone(), centred_bias - weight @ problem.mean, present, n_classes)


@dataclass(frozen=True)
class LabelClassifier:
    """Logistic regressions of L labels, each against its absence; rows of NaN for labels that were not learned.

    Attributes:
        weight: (L, D); bias: (L,).
    """

    weight: Tensor
    bias: Tensor

    def probabilities(self, features: Tensor) -> np.ndarray:
        """Of features (M, D) like those trained on: (M, L) float64."""
        return (features @ self.weight.T + self.bias).double().sigmoid().cpu().numpy()


def one_vs_rest(fit: Fit, features: Tensor, values: np.ndarray) -> dict[float, LabelClassifier]:
    """Two-class fits of every label on the scans of which it is known.

    Args:
        fit: from features (N, D), classes (N,) and their number to settings and classifiers.
        values: (N, L) 1, 0, or negative where not known.

    Returns:
        Setting → classifier; empty where no label has both a scan with it and one without.
    """
    n_labels, width = values.shape[1], features.shape[1]
    fits: dict[float, LabelClassifier] = {}
    for i, value in enumerate(values.T):
        known = np.flatnonzero(value >= 0)
        if len(np.unique(value[known])) < 2:
            continue
        for setting, classifier in fit(features[torch.from_numpy(known).to(features.device)], value[known], 2):
            if setting not in fits:
                nothing = features.new_full((n_labels, width + 1), torch.nan)
                fits[setting] = LabelClassifier(nothing[:, :width], nothing[:, width])
            fits[setting].weight[i] = classifier.weight[1] - classifier.weight[0]
            fits[setting].bias[i] = classifier.bias[1] - classifier.bias[0]
    return fits


def logistic_labels(features: Tensor, values: np.ndarray, cs: Sequence[float]) -> dict[float, LabelClassifier]:
    """``one_vs_rest`` by ``logistic_path``; C is that of scikit-learn's two-class ``LogisticRegression``.

    Its one weight is the difference of the two here, w/2 and −w/2: their penalty ‖w‖² / 4C is that of twice the C.
    """
    fit = partial(logistic_path, cs=[c / 2 for c in cs])
    return {2 * c: classifier for c, classifier in one_vs_rest(fit, features, values).items()}


@dataclass(frozen=True)
class LabelChoice:
    """The setting that was chosen for all labels.

    Attributes:
        setting, classifier: as in ``Choice``.
        average_precisions: mean over labels, per cent, of every candidate on the scans that chose; NaN where no label
            has a scan with it and one without among them.
    """

    setting: float
    classifier: LabelClassifier
    average_precisions: dict[float, float]


def choose_labels(fits: dict[float, LabelClassifier], features: Tensor, values: np.ndarray) -> LabelChoice:
    """The candidate of the highest mean average precision on validation scans; ties: lower log-loss, then the earlier.

    One setting serves all labels: a rare label has too few validation patients to choose its own, if it has any.

    Args:
        features: (M, D) and values: (M, L) of the validation scans, 1, 0, or negative where not known.
    """
    probabilities = {setting: classifier.probabilities(features) for setting, classifier in fits.items()}
    means = {setting: macro_average_precision(values, p) for setting, p in probabilities.items()}
    losses = {setting: np.nan_to_num(log_loss(values, p)) for setting, p in probabilities.items()}
    setting = max(fits, key=lambda setting: (np.nan_to_num(means[setting]), -losses[setting]))
    return LabelChoice(setting, fits[setting], means)


def ridge_path(features: Tensor, targets: Tensor, cs: Sequence[float]) -> dict[float, tuple[Tensor, float]]:
    """Ridge regressions (Hoerl & Kennard 1970) for several C from one eigendecomposition, the intercept free.

    Minimises Σ (target − prediction)² + ‖weight‖² / C, as scikit-learn's ``Ridge`` does with alpha = 1/C.

    Args:
        features: (N, D); targets: (N,); best both standardised.
        cs: inverse strengths of the penalty, above 0.

    Returns:
        C → weight (D,) and bias.
    """
    x, y = features.double(), targets.double()
    mean, centre = x.mean(dim=0), y.mean()
    x, y = x - mean, y - centre
    if len(x) >= x.shape[1]:
        spread, back = torch.linalg.eigh(x.T @ x)
        onto = back.T @ (x.T @ y)
    else:  # weights stay in the span of the N scans
        spread, basis = torch.linalg.eigh(x @ x.T)
        onto, back = basis.T @ y, x.T @ basis
    fits = {}
    for c in cs:
        weight = back @ (onto / (spread.clamp_min(0) + 1 / c))
        fits[c] = weight.to(features.dtype), float(centre - mean @ weight)
    return fits


class _Logistic:
    """Mean log-loss + penalty/2 · ‖weight‖² of weights (K, D + 1), the bias last, on centred features."""

    def __init__(self, features: Tensor, target: Tensor):
        self.mean = features.mean(dim=0)
        # The bias is then uncorrelated with all other weights, so the preconditioner treats it by itself.
        self.x, self.target, n = features - self.mean, target, len(features)
        if n >= features.shape[1]:
            values, self._basis = torch.linalg.eigh((self.x.T @ self.x / n).double())
            self._spread = values.clamp_min(0)
        else:  # weights stay in the span of the N scans
            values, vectors = torch.linalg.eigh((self.x @ self.x.T).double() / n)
            kept = values > 1e-12 * values[-1].clamp_min(1e-300)
            self._spread = values[kept]
            self._basis = self.x.double().T @ vectors[:, kept] / (n * self._spread).sqrt()
        self._spread, self._basis = self._spread.to(features.dtype), self._basis.to(features.dtype)

    def _precondition(self, gradient: Tensor, penalty: float) -> Tensor:
        """Times the inverse of the Hessian's bound, ½ covariance + penalty (bias: ½)."""
        weight = (gradient[:, :-1] @ self._basis) / (self._spread / 2 + penalty) @ self._basis.T
        return torch.cat([weight, 2 * gradient[:, -1:]], dim=1)

    def _logits(self, weights: Tensor) -> Tensor:
        return self.x @ weights[:, :-1].T + weights[:, -1]

    def _loss(self, logits: Tensor, weights: Tensor, penalty: float) -> float:
        # Summed in float64, so that the line search sees small progress.
        fit = (logits.logsumexp(dim=1) - (logits * self.target).sum(dim=1)).double().mean()
        return float(fit + penalty / 2 * weights[:, :-1].double().square().sum())

    def _gradient(self, logits: Tensor, weights: Tensor, penalty: float) -> Tensor:
        residual = (logits.softmax(dim=1) - self.target) / len(logits)  # (N, K)
        slope = residual.T @ self.x + penalty * weights[:, :-1]
        return torch.cat([slope, residual.sum(dim=0)[:, None]], dim=1)

    def solve(self, weights: Tensor, penalty: float, tolerance: float, max_iterations: int) -> Tensor:
        logits = self._logits(weights)
        loss, gradient = self._loss(logits, weights, penalty), self._gradient(logits, weights, penalty)
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(max_iterations):
            if gradient.abs().max() <= tolerance:
                break
            direction = self._direction(gradient, steps, penalty)
            slope = float((gradient * direction).sum())
            along = self._logits(direction)  # the logits are linear in the step: trying lengths costs no pass
            for length in (0.5 ** np.arange(20)).tolist():
                moved, new_logits = weights + length * direction, logits + length * along
                new_loss = self._loss(new_logits, moved, penalty)
                if new_loss <= loss + 1e-4 * length * slope:
                    break
            else:  # rounding hides any further progress
                break
            new_gradient = self._gradient(new_logits, moved, penalty)
            step, change = moved - weights, new_gradient - gradient
            curvature = (step * change).sum()
            if curvature > 0:
                steps = [*steps[1 - _HISTORY :], (step, change, curvature)]
            weights, logits, loss, gradient = moved, new_logits, new_loss, new_gradient
        return weights

    def _direction(self, gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]], penalty: float) -> Tensor:
        rest, shares = gradient.clone(), []
        for step, change, curvature in reversed(steps):
            share = (step * rest).sum() / curvature
            rest -= share * change
            shares.append(share)
        result = self._precondition(rest, penalty)
        if steps:
            _, change, curvature = steps[-1]
            result *= curvature / (change * self._precondition(change, penalty)).sum()
        for (step, change, curvature), share in zip(steps, reversed(shares), strict=True):
            result += (share - (change * result).sum() / curvature) * step
        return -result


def sgd_epochs(
    features: Tensor, labels: np.ndarray, n_classes: int, epochs: int = 100, batch_size: int = SGD_BATCH, seed: int = 0
) -> Iterator[tuple[float, LinearClassifier]]:
    """DINO's linear protocol (Caron et al. 2021): SGD, momentum 0.9, no decay, lr 0.001 · batch/256 to 0 by a cosine.

    Args:
        features: (N, D) float32 as extracted; labels: (N,); classes without a scan get probability 0.
        seed: of the first weights (std 0.01) and of the order of scans.

    Yields:
        Epoch (from 1) and the classifier after it; InputError for scans of fewer than two classes.
    """
    present, target = _present(labels, features.device)
    random = torch.Generator().manual_seed(seed_of("linear probe by SGD", seed))
    weight = (0.01 * torch.randn(len(present), features.shape[1], generator=random)).to(features.device)
    weight.requires_grad_(True)
    bias = torch.zeros(len(present), device=features.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.001 * batch_size / 256, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(features), generator=random).split(batch_size):
            batch = batch.to(features.device)
            with torch.enable_grad():
                loss = F.cross_entropy(features[batch] @ weight.T + bias, target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        yield epoch, _embed(weight.detach().clone(), bias.detach().clone(), present, n_classes)


def draw_patients(labels: np.ndarray, patients: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Positions (ascending) of the scans of a random share of patients, with at least one patient of each class."""
    everyone = np.unique(patients)
    order = rng.permutation(everyone).tolist()
    drawn: list[str] = []
    for c in np.unique(labels):
        of_class = set(patients[labels == c].tolist())
        if of_class.isdisjoint(drawn):
            drawn.append(next(patient for patient in order if patient in of_class))
    others = [patient for patient in order if patient not in drawn]
    drawn += others[: max(round(fraction * len(everyone)) - len(drawn), 0)]
    return np.flatnonzero(np.isin(patients, drawn))


def _present(labels: np.ndarray, device: torch.device) -> tuple[np.ndarray, Tensor]:
    """Classes that have scans, and each scan's position among them."""
    present, target = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise InputError(f"training scans of {len(present)} class only: a classifier needs at least two")
    return present, torch.from_numpy(target).to(device)


def _embed(weight: Tensor, bias: Tensor, present: np.ndarray, n_classes: int) -> LinearClassifier:
    all_weights = weight.new_zeros(n_classes, weight.shape[1])
    all_biases = bias.new_full((n_classes,), -torch.inf)
    all_weights[present], all_biases[present] = weight, bias
    return LinearClassifier(all_weights, all_biases)
