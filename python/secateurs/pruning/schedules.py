"""Schedules: how a number moves from one value to another over the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
