"""From scores to a plan: which units go so that a budget is met."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from secateurs.plan import BlockMask, HeadMask, Mask, NeuronMask, SparsityPlan
from secateurs.sites import Sites


def removed(fraction: float, total: int) -> int:
    """Units that a fraction of `total` removes, rounded half up: any budget is met to one unit."""
    return math.floor(fraction * total + 0.5)


def allocate(
    scores: Mapping[str, Tensor],
    sites: Sites,
    budget: Mapping[str, float],
    seq_len: int = 128,
    block: tuple[int, int] = (32, 32),
) -> SparsityPlan:
    """Remove the lowest scores over the whole model.

    A budget of units (`heads`, `neurons`, `blocks`) removes that share of each kind, to one unit. A
    budget of `parameters` or `macs` removes equal shares of every kind scored, the fewest units
    that meet it. Ties go by position, so one set of scores gives one plan, and a larger budget
    removes a superset.

    Args:
        scores: by site name: `layers.I.heads` `[H]`, `layers.I.neurons` `[F]`, `layers.I.ROLE`
            `[N/bn, K/bk]`.
        budget: fractions to remove, by what they count.
        seq_len: tokens at which MACs are counted.
        block: size of the tiles, where linears are scored.
    """
    kinds = _by_kind(scores)
    order = {kind: _ascending(found) for kind, found in kinds.items()}
    total = budget.keys() & {"parameters", "macs"}

    def plan(counts: Mapping[str, int]) -> SparsityPlan:
        masks: dict[str, Mask] = {}
        for kind, found in kinds.items():
            masks |= _lowest_removed(found, order[kind][: counts[kind]], kind, block)
        return SparsityPlan(masks, sites.fingerprint())

    if not total:
        return plan({kind: removed(budget[kind], len(units)) for kind, units in order.items()})
    (measure,) = total
    sequence = _interleaved({kind: len(units) for kind, units in order.items()})
    low, high = 0, len(sequence)
    while low < high:  # the fewest units whose removal leaves at most what the budget allows
        middle = (low + high) // 2
        candidate = plan({kind: sequence[:middle].count(kind) for kind in order})
        if sites.density(candidate, seq_len)[measure] <= 1 - budget[measure]:
            high = middle
        else:
            low = middle + 1
    return plan({kind: sequence[:low].count(kind) for kind in order})


def _by_kind(scores: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    kinds: dict[str, dict[str, Tensor]] = {}
    for name, score in scores.items():
        part = name.rsplit(".", 1)[1]
        kinds.setdefault(part if part in ("heads", "neurons") else "blocks", {})[name] = score
    return kinds


def _ascending(scores: Mapping[str, Tensor]) -> Tensor:
    """Positions, in all scores of a kind laid end to end, from the lowest score to the highest."""
    joined = torch.cat([score.detach().double().cpu().flatten() for score in scores.values()])
    return torch.sort(joined, stable=True).indices


def _interleaved(sizes: Mapping[str, int]) -> list[str]:
    """Kinds in the order their units go, so that every prefix takes about the same share of each
    kind."""
    steps = [((j + 0.5) / size, kind) for kind, size in sizes.items() for j in range(size)]
    return [kind for _, kind in sorted(steps)]


def _lowest_removed(
    scores: Mapping[str, Tensor], gone: Tensor, kind: str, block: tuple[int, int]
) -> dict[str, Mask]:
    keep = torch.ones(sum(score.numel() for score in scores.values()), dtype=torch.bool)
    keep[gone] = False
    parts = keep.split([score.numel() for score in scores.values()])
    masks: dict[str, Mask] = {}
    for (name, score), part in zip(scores.items(), parts, strict=True):
        if kind == "heads":
            masks[name] = HeadMask(part.clone())
        elif kind == "neurons":
            masks[name] = NeuronMask(part.clone())
        else:
            masks[name] = BlockMask(part.clone().view(score.shape), block)
    return masks
