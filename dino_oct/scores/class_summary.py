"""What an accuracy hides: the share of the most frequent class, and how well each class is recognised."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Majority:
    """The most frequent class of some scans; ``share`` is the accuracy, in per cent, of always naming it."""

    name: str
    share: float

    @property
    def words(self) -> str:
        """As a row or a remark names it."""
        return f"always {self.name} {self.share:.1f} %"


@dataclass(frozen=True)
class ClassSummary:
    """How a classifier does by class.

    Attributes:
        recall: class → share of its scans that are recognised, per cent; classes without scans are left out.
    """

    recall: dict[str, float]

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall, per cent."""
        return float(np.mean(list(self.recall.values())))

    @property
    def lowest(self) -> str:
        """The class of the lowest recall; of equal ones the first."""
        return min(self.recall, key=self.recall.__getitem__)

    @property
    def never_recognised(self) -> list[str]:
        """Classes of which no scan is recognised."""
        return [name for name, recall in self.recall.items() if recall == 0]

    @property
    def words(self) -> str:
        """Beside an accuracy."""
        lowest = f"lowest recall {self.lowest} {self.recall[self.lowest]:.1f} %"
        never = f", never recognised: {', '.join(self.never_recognised)}" if self.never_recognised else ""
        return f"balanced {self.balanced_accuracy:.1f} %, {lowest}{never}"


def majority(labels: np.ndarray, class_names: Sequence[str]) -> Majority:
    """Of scans with classes ``labels`` (N,), at least one; ties: the first class."""
    counts = np.bincount(labels, minlength=len(class_names))
    return Majority(class_names[counts.argmax()], 100 * float(counts.max() / len(labels)))


def summarise(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> ClassSummary:
    """Recall of every class that has scans, from classes (N,) and what each scan is called (N,)."""
    right = predicted == labels
    return ClassSummary(
        {name: 100 * float(right[labels == c].mean()) for c, name in enumerate(class_names) if (labels == c).any()}
    )


def summary_of_counts(counts: np.ndarray, class_names: Sequence[str]) -> ClassSummary:
    """As ``summarise``, from counts (C, C): true class by row, predicted class by column."""
    scans = counts.sum(axis=1)
    return ClassSummary({name: 100 * float(counts[c, c] / scans[c]) for c, name in enumerate(class_names) if scans[c]})


def never_recognised(summaries: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """One sentence for each set of classes that some classifiers never recognise.

    Args:
        summaries: name of the classifier and its ``never_recognised``.
    """
    by_classes: dict[str, list[str]] = {}
    for name, classes in summaries:
        if classes:
            by_classes.setdefault(", ".join(classes), []).append(name)
    return [f"Never recognised: {classes} (by {'; '.join(names)})." for classes, names in by_classes.items()]
