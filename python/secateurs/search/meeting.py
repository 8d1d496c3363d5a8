"""Meeting a time: sizes are chosen by the table, measured, and chosen again where they are off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from secateurs.errors import BudgetError, MethodError
from secateurs.plan import SparsityPlan
from secateurs.pruning import Budget
from secateurs.search.latency_table import LatencyTable
from secateurs.search.local_search import Candidate
from secateurs.search.sizes import Size

EFFORTS = {"quick": 0, "normal": 24, "long": 24}
"""Choices that a search tries beside those it begins with."""
_TOLERANCE = 0.05  # of the time asked for, below which a result is not searched again
# Of the limit, at which to aim, round by round: half of all measurements lie above their median.
MARGINS = (0.99, 0.98, 0.96, 0.94, 0.92)
_ROUNDS = 10  # at most, as long as nothing meets the time; else as many as there are margins
_LOWER = 1.05  # times as low to aim where the same sizes come out again


def check_target(budget: Budget | Mapping[str, Any] | str, effort: str) -> Budget:
    """A budget of time. Raises BudgetError for one of fractions, MethodError for an effort that is
    not one of EFFORTS."""
    budget = Budget.of(budget)
    if not budget.is_timed:
        raise BudgetError(f"expected a budget of latency or speedup, got {budget}: see `prune`")
    if effort not in EFFORTS:
        raise MethodError(f"expected an effort in {', '.join(EFFORTS)}, got {effort!r}")
    return budget


@dataclass(frozen=True)
class Times:
    """Milliseconds of a converted model and of the stock one, measured in turns."""

    ms: float
    spread: float
    stock: float


def limit_of(budget: Budget, stock: float) -> float:
    """The milliseconds that a budget allows."""
    if budget.speedup is not None:
        return stock / budget.speedup
    assert isinstance(budget.latency, float)
    return budget.latency


def met(
    budget: Budget,
    candidate: Candidate,
    table: LatencyTable,
    timed: Callable[[SparsityPlan], Times],
) -> tuple[list[Size], Times]:
    """The sizes of least error, as a candidate weighs it, whose measured time meets the budget.

    Raises BudgetError where none of some rounds meets it.
    """
    choices, weights = candidate
    ratio, found = 1.0, None
    tried: dict[tuple[Size, ...], Times] = {}
    for number in range(_ROUNDS):
        if found is not None and number >= len(MARGINS):
            break
        margin = MARGINS[min(number, len(MARGINS) - 1)]
        try:
            sizes = choices.of_least_error(margin * limit_of(budget, table.stock) / ratio, weights)
        except BudgetError:
            if not tried:
                raise
            break
        if tuple(sizes) in tried:
            if found is not None:
                break
            ratio *= _LOWER
            continue
        times = tried[tuple(sizes)] = timed(choices.plan(sizes))
        allowed = limit_of(budget, times.stock)
        if times.ms <= allowed:
            if found is None or times.ms > found[1].ms:
                found = sizes, times
            if times.ms >= (1 - _TOLERANCE) * allowed or choices.is_whole(sizes):
                break
        # How far the prediction is off, each relative to what was allowed when it was made.
        ratio = times.ms / allowed / (table.predict(sizes) / limit_of(budget, table.stock))
    if found is None:
        nearest = min(tried.values(), key=lambda times: times.ms / times.stock)
        raise BudgetError(
            f"expected {budget} to be met, got {nearest.ms:.3g} ms, "
            f"{nearest.stock / nearest.ms:.3g} times as fast as it is, as the nearest measured"
        )
    return found
