"""One trial of a search, as the leaderboard and its figures show it."""

from dataclasses import dataclass

from dino_oct.scores.bootstrap import Interval

Drawn = dict[str, bool | int | float | str]  # setting → the value that was drawn


@dataclass(frozen=True)
class Row:
    """One trial of the leaderboard.

    Attributes:
        rank: by validation; None for a trial without result. model: as it was asked for; paper: the display name.
        val_balanced, val_accuracy, val_auroc: per cent, best epoch. test_accuracy, test_balanced: of a winner, with
            95 % patient intervals. val_lowest, test_lowest: the lowest recall of a class, per cent, and the class.
            val_majority, test_majority: share of the most frequent class, per cent. parameters: that learn. seconds:
            over all attempts, without what a killed one lost.
        reason: why it failed or was stopped.
    """

    rank: int | None
    trial: int
    method: str
    model: str
    paper: str
    state: str
    val_balanced: float | None
    val_accuracy: float | None
    val_lowest: str | None
    val_majority: float | None
    test_accuracy: Interval | None
    test_balanced: Interval | None
    test_lowest: str | None
    test_majority: float | None
    parameters: int | None
    epochs: int | None
    best_epoch: int | None
    seconds: float
    device: str
    settings: Drawn
    run: str
    reason: str
    attempts: int
