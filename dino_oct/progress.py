"""How far a run is, counted in training scans seen, so that it may go on by another plan."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What settings and data make of a run."""

    epochs: int
    steps_per_epoch: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole plan."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Handover:
    """From the values of an earlier plan to those of the present one, along a line over some steps.

    Attributes:
        start: position in the present plan where it begins; over: steps that it takes.
        before: the last values of the earlier plan.
    """

    start: int
    over: int
    before: dict[str, float]

    def values(self, planned: dict[str, float], position: int) -> dict[str, float]:
        """The values at a position of the present plan, which plans ``planned`` there."""
        share = min(max(position - self.start + 1, 0) / self.over, 1.0)
        return {name: share * value + (1 - share) * self.before.get(name, value) for name, value in planned.items()}


class Progress:
    """Steps done and place in the plan.

    Attributes:
        plan: of the present settings.
        step: optimiser steps done, by any plan: the number in logs and checkpoints.
        scans_seen: training scans of these steps, as often as each was shown.
        handover: from an earlier plan; None without.
    """

    def __init__(self, plan: Plan):
        self.plan, self.step, self.scans_seen = plan, 0, 0
        self.handover: Handover | None = None

    @property
    def position(self) -> int:
        """Steps of the present plan that are done."""
        return self.scans_seen // self.plan.batch_size

    @property
    def last_step(self) -> int:
        """``step`` at the end of the plan."""
        return self.step + max(self.plan.steps - self.position, 0)

    @property
    def epoch(self) -> float:
        """Passes over the scans that are done."""
        return self.position / self.plan.steps_per_epoch

    @property
    def is_complete(self) -> bool:
        """Whether the plan is done."""
        return self.position >= self.plan.steps

    def advance(self) -> None:
        """One optimiser step more."""
        self.step += 1
        self.scans_seen += self.plan.batch_size

    def state_dict(self) -> dict:
        """Plain values for a checkpoint."""
        return {
            "step": self.step,
            "scans_seen": self.scans_seen,
            "plan": dataclasses.asdict(self.plan),
            "handover": dataclasses.asdict(self.handover) if self.handover else None,
        }

    def resume(self, state: dict) -> str:
        """Go on from ``state_dict``; scans of a batch that the present plan would cut are shown again.

        Returns:
            How the plan differs from the checkpoint's; empty where it does not.

        Raises:
            ValueError: a state that is no ``state_dict``.
        """
        before = Plan(**state["plan"])
        counts = {"step": state["step"], "scans_seen": state["scans_seen"], **dataclasses.asdict(before)}
        if state["handover"]:
            counts |= {name: state["handover"][name] for name in ("start", "over")}
        if wrong := [name for name, count in counts.items() if type(count) is not int or count < 0]:
            raise ValueError(f"{wrong[0]} {counts[wrong[0]]!r} is no count")
        self.step, self.scans_seen = state["step"], state["scans_seen"]
        self.scans_seen = self.position * self.plan.batch_size
        self.handover = Handover(**state["handover"]) if state["handover"] else None
        if before == self.plan:
            return ""
        self.handover = None
        was = f"{before.epochs} epochs of {before.steps_per_epoch} steps of {before.batch_size} scans"
        is_now = f"{self.plan.epochs} of {self.plan.steps_per_epoch} of {self.plan.batch_size}"
        return (
            f"the plan was {was} and is now {is_now}: {state['scans_seen']:,} scans were seen, "
            f"{self.epoch:.2f} of {self.plan.epochs} epochs"
        )

    def values(self, planned: dict[str, float], position: int | None = None) -> dict[str, float]:
        """Scheduled values at a position (unset: the present one), going over from an earlier plan's in an epoch.

        Args:
            planned: values that the present plan has there.
        """
        if self.handover is None:
            return planned
        return self.handover.values(planned, self.position if position is None else position)

    def hand_over(self, before: dict[str, float], planned: dict[str, float]) -> bool:
        """Go over from the last values of an earlier plan, if the present one has others.

        Args:
            before: the values of the last step; planned: those that the present plan has for it.

        Returns:
            whether they differ.
        """
        if self.position == 0 or self.values(planned, self.position - 1) == before:
            return False
        left = max(self.plan.steps - self.position, 1)
        self.handover = Handover(self.position, min(self.plan.steps_per_epoch, left), before)
        return True
