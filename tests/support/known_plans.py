"""The plans that the first allocator made, as digests: the defaults must go on making them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from secateurs import Budget, SparsityPlan, find_sites, prune
from secateurs.pruning import make_pruner
from support.tiny_models import tiny_model

METHODS_AND_BUDGETS = (
    ("random", "heads=0.4"),
    ("random", "heads=0.25,neurons=0.6"),
    ("random", "parameters=0.45"),
    ("random", "macs=0.3,seq_len=16"),
    ("random", "modules=0.5"),
    ("random", "blocks=0.5,block=16"),
    ("random", "weights=0.7"),
    ("random", "patterns=0.75,vector=16"),
    ("random", "patterns=0.5,pattern=2:4"),
    ("random", "patterns=0.25,pattern=library"),
    ("magnitude", "heads=0.4,neurons=0.3"),
    ("magnitude", "macs=0.6"),
    ("magnitude", "blocks=0.3,block=16"),
    ("gradient", "heads=0.25,neurons=0.6"),
    ("gradient", "parameters=0.3"),
)
# Scores put into a method that would have to be trained first.
PUT_IN = (
    ("smp", "heads=0.25", ("heads",)),
    ("smp", "heads=0.5", ("heads",)),
    ("voita", "heads=0.4", ("heads",)),
    ("snip_identity", "heads=0.6", ("heads",)),
    ("snip_identity", "heads=0.25,modules=0.34", ("heads", "module")),
    ("seven", "weights=0.7", ("linear",)),
)


def batches() -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(3, 100, (3, 9), generator=random)} for _ in range(2)]


def tied_scores(sites: Any, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """Whole numbers from 0 to 6 for each unit, so that many are equal."""
    random = torch.Generator().manual_seed(2)
    return {
        site.name: torch.randint(0, 7, site.shape, generator=random).float()
        for site in sites
        if site.kind in kinds and not site.name.endswith(".layer")
    }


def known_plans() -> Iterator[tuple[str, SparsityPlan]]:
    """Every case, by a name, as it is planned now."""
    for family in ("bert", "llama"):
        for method, budget in METHODS_AND_BUDGETS:
            model = tiny_model(family)
            plan = prune(model, batches(), method=method, budget=budget, seed=5, progress=False)
            yield f"{family} {method} {budget}", plan
        for method, budget, kinds in PUT_IN:
            model = tiny_model(family)
            pruner = make_pruner(method)
            pruner.start(model, find_sites(model), Budget.of(budget), 5)
            scores = tied_scores(pruner.sites, kinds)
            pruner.scores = lambda scores=scores: scores  # type: ignore[method-assign]
            yield f"{family} {method} {budget} tied", pruner.plan()


def digest(plan: SparsityPlan) -> str:
    """Of the names, kinds, shapes and elements of a plan's masks, and of its notes."""
    text = [repr(sorted(plan.notes.items()))]
    for name, mask in sorted(plan.masks.items()):
        bits = "".join("01"[bit] for bit in mask.keep.flatten().tolist())
        block = getattr(mask, "block", None)
        text.append(f"{name} {type(mask).__name__} {tuple(mask.keep.shape)} {block} {bits}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]
