"""Parts that allocators share: counts of units, floors, the search for a total, masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from secateurs.architectures.sites import Sites
from secateurs.errors import BudgetError, MethodError
from secateurs.plan import (
    BlockMask,
    HeadMask,
    Mask,
    ModuleMask,
    NeuronMask,
    PatternMask,
    SparsityPlan,
)
from secateurs.pruning.allocation.allocator import Price
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.ranking import lowest

_ON_GPU = (128, 32)  # a block's outputs by inputs: the larger tile of outputs reads x less often

Chooser = Callable[[Mapping[str, Tensor], int, int], Mapping[str, Tensor]]
"""From the scores of one kind by site, how many units go, and how many each site must keep, to
bool tensors of the scores' shapes, True at what goes."""


def removed(fraction: float, total: int) -> int:
    """Count the units that a fraction of `total` removes, rounded half up: any budget is met to
    one unit."""
    return math.floor(fraction * total + 0.5)


def in_blocks(budget: Budget, sites: Sites, device: torch.device) -> Budget:
    """The budget with the size of its blocks, where it does not give one: for a GPU the larger
    default, if that divides every linear and nothing else is to be sliced off."""
    if budget.block is not None or budget.asked().keys() != {"blocks"} or device.type != "cuda":
        return budget
    bn, bk = _ON_GPU
    shapes = [site.shape for site in sites.of_kind("linear")]
    fits = all(n % bn == 0 and k % bk == 0 for n, k in shapes)
    return replace(budget, block=_ON_GPU) if fits else budget


def kept_heads(sites: Sites, fraction: float) -> int:
    """Count the attention heads that stay when `fraction` goes. Raises BudgetError if that is
    none, or all."""
    total = sum(site.shape[0] for site in sites.of_kind("heads"))
    kept = total - removed(fraction, total)
    if not 0 < kept < total:
        raise BudgetError(
            f"expected to keep between 1 and {total - 1} of {total} heads, got heads={fraction:g}, "
            f"which keeps {kept}"
        )
    return kept


@dataclass(frozen=True)
class UnitAllocator:
    """Allocate whole units; a subclass says in `choose` which units of one kind go.

    Args:
        min_heads: attention heads that every layer keeps.
        min_neurons: FFN neurons that every layer keeps.

    A floor counts in the masks of its own kind: a sub-layer that goes as a whole takes all of its
    heads or neurons with it.
    """

    min_heads: int = 0
    min_neurons: int = 0

    uses_price: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.min_heads, self.min_neurons) < 0:
            raise MethodError(
                "expected to keep at least 0 heads and neurons in each layer, got "
                f"min_heads={self.min_heads} and min_neurons={self.min_neurons}"
            )

    def choose(self, scores: Mapping[str, Tensor], count: int, floor: int) -> Mapping[str, Tensor]:
        """Return bool tensors shaped as `scores`, True at `count` units, with at least `floor`
        False ones in each."""
        raise NotImplementedError

    def allocate(
        self,
        scores: Mapping[str, Tensor],
        sites: Sites,
        budget: Budget,
        fractions: Mapping[str, float] | None = None,
        price: Price | None = None,
    ) -> SparsityPlan:
        """Return the plan that removes what the budget asks for.

        A budget of units (`heads`, `neurons`, `modules`, `blocks`, `weights`) removes that share
        of each kind, to one unit. One of `patterns` removes it from every repetition of the
        pattern, where what goes scores least in sum. One of `parameters` or `macs` removes equal
        shares of heads and neurons, the fewest units that meet it.

        Args and shapes as in `Allocator.allocate`. Raises BudgetError where floors leave too
        little to remove, MethodError for a floor of units that the budget does not name.
        """
        fractions = budget.asked() if fractions is None else fractions
        kinds = by_kind(scores, sites, budget)
        floors = self._floors(kinds)
        free = {
            kind: sum(score.numel() - floors.get(kind, 0) for score in of_kind.values())
            for kind, of_kind in kinds.items()
        }

        def plan(counts: Mapping[str, int]) -> SparsityPlan:
            masks: dict[str, Mask] = {}
            for kind, of_kind in kinds.items():
                if kind == "patterns":
                    ones = budget.kept_in_pattern(fractions[kind])
                    masks |= {name: _pattern(s, budget, ones) for name, s in of_kind.items()}
                    continue
                gone = self.choose(of_kind, counts[kind], floors.get(kind, 0))
                masks |= {name: _mask(kind, ~gone[name], budget) for name in of_kind}
            return SparsityPlan(masks, sites.fingerprint())

        totals = fractions.keys() & set(Budget.TOTALS)
        if totals:
            (measure,) = totals
            return _fewest(plan, free, measure, fractions[measure], sites, budget.seq_len)
        counts = {}
        for kind, of_kind in kinds.items():
            counts[kind] = removed(fractions[kind], sum(s.numel() for s in of_kind.values()))
            if kind in floors and counts[kind] > free[kind]:
                raise BudgetError(
                    f"expected a budget that leaves {floors[kind]} {kind} in each layer, got "
                    f"{kind}={fractions[kind]:g}, which removes {counts[kind]} where "
                    f"{free[kind]} may go"
                )
        return plan(counts)

    def _floors(self, kinds: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
        """The floors that are set, by kind."""
        floors = {"heads": self.min_heads, "neurons": self.min_neurons}
        floors = {kind: floor for kind, floor in floors.items() if floor}
        for kind, floor in floors.items():
            if kind not in kinds:
                raise MethodError(
                    f"expected min_{kind} beside a budget that removes {kind}, got one of "
                    f"{', '.join(kinds)}"
                )
            for name, score in kinds[kind].items():
                if floor > score.numel():
                    raise BudgetError(
                        f"expected min_{kind} of at most {score.numel()}, which is all that {name} "
                        f"has, got {floor}"
                    )
        return floors


def by_kind(
    scores: Mapping[str, Tensor], sites: Sites, budget: Budget
) -> dict[str, dict[str, Tensor]]:
    """Group scores by kind of unit; a linear's are of what the budget asks of linears."""
    of_linears = next((k for k in Budget.OF_LINEARS if k in budget.kinds()), "blocks")
    kind_of = {site.name: site.kind for site in sites}
    plural = {"module": "modules", "linear": of_linears}
    kinds: dict[str, dict[str, Tensor]] = {}
    for name, score in scores.items():
        kind = plural.get(kind_of[name], kind_of[name])
        kinds.setdefault(kind, {})[name] = score.detach()
    return kinds


def protected(score: Tensor, floor: int) -> Tensor:
    """True at the `floor` units of `score` that would go last, the shape of `score`."""
    (gone,) = lowest([score], score.numel() - floor)
    return ~gone


def interleaved(sizes: Mapping[str, int]) -> list[str]:
    """List kinds in the order their units go, so that every prefix takes about the same share of
    each kind."""
    steps = [((j + 0.5) / size, kind) for kind, size in sizes.items() for j in range(size)]
    return [kind for _, kind in sorted(steps)]


def _fewest(
    plan: Callable[[Mapping[str, int]], SparsityPlan],
    free: Mapping[str, int],
    measure: str,
    fraction: float,
    sites: Sites,
    seq_len: int,
) -> SparsityPlan:
    """Return the plan of the fewest units whose removal leaves at most 1 - `fraction`."""
    sequence = interleaved(free)

    def of_first(count: int) -> SparsityPlan:
        return plan({kind: sequence[:count].count(kind) for kind in free})

    low, high = 0, len(sequence)
    while low < high:
        middle = (low + high) // 2
        if sites.density(of_first(middle), seq_len)[measure] <= 1 - fraction:
            high = middle
        else:
            low = middle + 1
    smallest = of_first(low)
    if low == len(sequence) and sites.density(smallest, seq_len)[measure] > 1 - fraction:
        raise BudgetError(
            f"expected floors that let {measure}={fraction:g} go, got some that keep "
            f"{sites.density(smallest, seq_len)[measure]:.1%}"
        )
    return smallest


def _mask(kind: str, keep: Tensor, budget: Budget) -> Mask:
    if kind == "blocks":
        return BlockMask(keep, budget.tile)
    if kind == "weights":
        return BlockMask(keep, (1, 1))
    return {"heads": HeadMask, "neurons": NeuronMask, "modules": ModuleMask}[kind](keep)


def _pattern(score: Tensor, budget: Budget, ones: int) -> PatternMask:
    importance = score.float().sqrt()  # families keep the largest sums of squares
    return PatternMask(budget.family(importance, ones).keep(importance), budget.pattern_block)
