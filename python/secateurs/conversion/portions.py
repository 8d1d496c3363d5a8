"""Portions: the layers that are converted and proven at a time, so that what was packed on trial
never adds up to a second model."""

from __future__ import annotations

import torch

from secateurs.architectures.sites import Sites
from secateurs.plan import ModuleMask, SparsityPlan

SHARE = 0.25  # of the weights of all layers, that the layers of one portion may keep


def portions_of(sites: Sites, plan: SparsityPlan) -> list[range]:
    """The numbers of all layers, cut where those before keep enough weights. A single portion where
    one stack reads another: its layers compute something else beside layers without their parts."""
    if len(sites.stacks) > 1:
        return [range(len(sites.layers))]
    nothing = SparsityPlan()
    total = sum(sites.keep(nothing, i).parameters() for i in range(len(sites.layers)))
    starts, held = [0], 0
    for i in range(len(sites.layers)):
        weights = sites.keep(plan, i).parameters()
        if i > starts[-1] and held + weights > SHARE * total:
            starts.append(i)
            held = 0
        held += weights
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(sites.layers)], strict=True)]


def emptied(sites: Sites) -> SparsityPlan:
    """The plan that removes every sub-layer."""
    gone = ModuleMask(torch.tensor(False))
    masks = {
        sites.name(i, sublayer.name): gone
        for i, shape in enumerate(sites.layers)
        for sublayer in shape.architecture.sublayers
    }
    return SparsityPlan(masks, sites.fingerprint())
