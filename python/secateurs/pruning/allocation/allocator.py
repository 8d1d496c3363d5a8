"""Allocator: how scores, a budget and perhaps prices become a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from secateurs.architectures.sites import Sites
from secateurs.plan import Site, SparsityPlan
from secateurs.pruning.allocation.budget import Budget

Price = Callable[[Site, int], float]
"""The cost of keeping so many units at a site, in any unit of measure, such as milliseconds. The
caller passes it in: pruning itself knows no machine."""


@runtime_checkable
class Allocator(Protocol):
    """Decides how much of each site goes; the scores say which units go first.

    An allocator is one file here and one row of ALLOCATORS. It keeps to what the tests of
    allocators check: it is deterministic, changes none of its arguments, and meets the budget to
    one unit or raises.
    """

    uses_price: ClassVar[bool]
    """Whether `allocate` needs a price; a price for an allocator without this is refused."""

    def allocate(
        self,
        scores: Mapping[str, Tensor],
        sites: Sites,
        budget: Budget,
        fractions: Mapping[str, float] | None = None,
        price: Price | None = None,
    ) -> SparsityPlan:
        """Return the plan that meets the budget by `scores`, of which low ones go first.

        Args:
            scores: finite, by site name: `layers.I.heads` `[H]`, `layers.I.neurons` `[F]`,
                `layers.I.attention` and `layers.I.ffn` `[]`, `layers.I.ROLE` `[N/bn, K/bk]`; for
                patterns `[N, K]`, not negative.
            sites: of the model that is pruned.
            budget: how much goes, and in which blocks or patterns.
            fractions: to remove instead of the budget's own, by what they count; a method with
                rounds asks for a part of the budget in each one.
            price: the cost of keeping so many units at a site.

        Raises BudgetError for a budget that cannot be met.
        """
        ...


def described(allocator: Allocator) -> str:
    """Name an allocator and its settings in words that are the same in every process."""
    return repr(allocator) if is_dataclass(allocator) else type(allocator).__name__
