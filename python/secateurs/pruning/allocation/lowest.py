"""From scores to a plan: which units go so that a budget is met."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from secateurs.architectures.sites import Sites
from secateurs.errors import BudgetError
from secateurs.plan import (
    BlockMask,
    HeadMask,
    Mask,
    ModuleMask,
    NeuronMask,
    PatternMask,
    SparsityPlan,
)
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.ranking import lowest


def removed(fraction: float, total: int) -> int:
    """Units that a fraction of `total` removes, rounded half up: any budget is met to one unit."""
    return math.floor(fraction * total + 0.5)


def kept_heads(sites: Sites, fraction: float) -> int:
    """Attention heads that stay when `fraction` goes. Raises BudgetError if that is none, or
    all."""
    total = sum(shape.heads for shape in sites.layers)
    kept = total - removed(fraction, total)
    if not 0 < kept < total:
        raise BudgetError(
            f"expected to keep between 1 and {total - 1} of {total} heads, got heads={fraction:g}, "
            f"which keeps {kept}"
        )
    return kept


def allocate(
    scores: Mapping[str, Tensor],
    sites: Sites,
    budget: Budget,
    fractions: Mapping[str, float] | None = None,
) -> SparsityPlan:
    """Remove the lowest scores over the whole model.

    A budget of units (`heads`, `neurons`, `modules`, `blocks`, `weights`) removes that share of
    each kind, to one unit. One of `patterns` removes it from every repetition of the pattern, what
    is removed scoring least in sum. One of `parameters` or `macs` removes equal shares of heads and
    neurons, the fewest units that meet it. Ties go by position, so one set of scores gives one
    plan, and a larger budget removes a superset.

    Args:
        scores: by site name: `layers.I.heads` `[H]`, `layers.I.neurons` `[F]`, `layers.I.attention`
            `[]`, `layers.I.ROLE` `[N/bn, K/bk]`; for patterns `[N, K]`, not negative.
        fractions: to remove, by what they count; by default those the budget asks for.
    """
    fractions = budget.asked() if fractions is None else fractions
    kinds = _by_kind(scores, budget)
    total = fractions.keys() & set(Budget.TOTALS)

    def plan(counts: Mapping[str, int]) -> SparsityPlan:
        masks: dict[str, Mask] = {}
        for kind, found in kinds.items():
            if kind == "patterns":
                kept = budget.kept_in_pattern(fractions[kind])
                masks |= {name: _pattern(score, budget, kept) for name, score in found.items()}
                continue
            gone = lowest([score.detach() for score in found.values()], counts[kind])
            for name, removed in zip(found, gone, strict=True):
                masks[name] = _mask(kind, ~removed, budget)
        return SparsityPlan(masks, sites.fingerprint())

    sizes = {kind: sum(s.numel() for s in found.values()) for kind, found in kinds.items()}
    if not total:
        return plan({kind: removed(fractions[kind], size) for kind, size in sizes.items()})
    (measure,) = total
    sequence = _interleaved(sizes)
    low, high = 0, len(sequence)
    while low < high:  # the fewest units whose removal leaves at most what the budget allows
        middle = (low + high) // 2
        candidate = plan({kind: sequence[:middle].count(kind) for kind in sizes})
        if sites.density(candidate, budget.seq_len)[measure] <= 1 - fractions[measure]:
            high = middle
        else:
            low = middle + 1
    return plan({kind: sequence[:low].count(kind) for kind in sizes})


def _by_kind(scores: Mapping[str, Tensor], budget: Budget) -> dict[str, dict[str, Tensor]]:
    """Scores by kind of unit; what is scored of a linear is what the budget asks of linears."""
    of_linears = next((k for k in Budget.OF_LINEARS if k in budget.kinds()), "blocks")
    known = {"heads": "heads", "neurons": "neurons", "attention": "modules", "ffn": "modules"}
    kinds: dict[str, dict[str, Tensor]] = {}
    for name, score in scores.items():
        kinds.setdefault(known.get(name.rsplit(".", 1)[1], of_linears), {})[name] = score
    return kinds


def _interleaved(sizes: Mapping[str, int]) -> list[str]:
    """Kinds in the order their units go, so that every prefix takes about the same share of each
    kind."""
    steps = [((j + 0.5) / size, kind) for kind, size in sizes.items() for j in range(size)]
    return [kind for _, kind in sorted(steps)]


def _mask(kind: str, keep: Tensor, budget: Budget) -> Mask:
    if kind == "blocks":
        return BlockMask(keep, (budget.block, budget.block))
    if kind == "weights":
        return BlockMask(keep, (1, 1))
    return {"heads": HeadMask, "neurons": NeuronMask, "modules": ModuleMask}[kind](keep)


def _pattern(score: Tensor, budget: Budget, kept: int) -> PatternMask:
    importance = score.detach().float().sqrt()  # families keep the largest sums of squares
    return PatternMask(budget.family(importance, kept).keep(importance), budget.pattern_block)
