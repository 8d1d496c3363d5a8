"""Schedules: how a number moves from one value to another over the steps of a training, and when
masks follow it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from secateurs.errors import MethodError

# Share of the way from `last` back to `first` that is left at a progress between 0 and 1.
_LEFT: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cubic": lambda progress: (1 - progress) ** 3,
}
SHAPES = (*_LEFT, "geometric")


@dataclass(frozen=True)
class Schedule:
    """`first` until step `begin`, `last` from step `end` on, and between them one of three shapes.

    cubic: last + (first - last) (1 - p)^3 (Zhu and Gupta 2017, arXiv 1710.01878); linear: with
    1 - p; geometric: linear in the logarithm; p is the share of the way from `begin` to `end`.

    Raises MethodError for an unknown shape, an empty span, or a geometric schedule of numbers that
    are not positive.
    """

    first: float
    last: float
    begin: int
    end: int
    shape: str = "cubic"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise MethodError(f"expected a schedule in {', '.join(SHAPES)}, got {self.shape!r}")
        if not 0 <= self.begin < self.end:
            raise MethodError(
                f"expected a schedule from a step of at least 0 to a later one, got {self.begin} "
                f"to {self.end}"
            )
        if self.shape == "geometric" and min(self.first, self.last) <= 0:
            raise MethodError(
                f"expected positive ends of a geometric schedule, got {self.first} and {self.last}"
            )

    def __call__(self, step: int) -> float:
        progress = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
        if progress in (0.0, 1.0):
            return self.last if progress else self.first
        if self.shape == "geometric":
            low, high = math.log(self.first), math.log(self.last)
            return math.exp(low + progress * (high - low))
        return self.last + (self.first - self.last) * _LEFT[self.shape](progress)

    def within(self, steps: int) -> Schedule:
        """Itself. Raises MethodError if it would still be moving when a training of `steps` steps
        ends."""
        if self.end > steps:
            raise MethodError(
                f"expected a schedule that ends within the training's {steps} steps, got one that "
                f"ends at step {self.end}"
            )
        return self


@dataclass
class GradualMasks:
    """When a training takes a mask, and what share then goes: more and more, by a cubic schedule.

    Args:
        begin, end: of the schedule, as shares of the training.
        every: steps between two masks.

    Raises MethodError for less than a step between masks.
    """

    begin: float
    end: float
    every: int
    gone: float = field(default=0.0, init=False)
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise MethodError(f"expected at least one step between masks, got {self.every}")

    def start(self, target: float, steps: int) -> None:
        """Lay the schedule to `target` over a training of `steps` steps. Raises MethodError where
        it does not fit."""
        begin, end = (round(share * steps) for share in (self.begin, self.end))
        self.schedule = Schedule(0.0, target, begin, end).within(steps)

    def due(self, done: int) -> float | None:
        """The share that goes once `done` steps are done, or None where no mask is taken."""
        share = self.schedule(done)
        if share <= self.gone or (done % self.every and done < self.schedule.end):
            return None
        self.gone = share
        return share
