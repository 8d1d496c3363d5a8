"""Allocation: budgets, and the allocators that turn scores into plans, one row each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from secateurs.checks import fit_options
from secateurs.errors import MethodError
from secateurs.pruning.allocation.allocator import Allocator, Price, described
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.allocation.global_ranking import GlobalRanking
from secateurs.pruning.allocation.per_layer import PerLayer

__all__ = [
    "ALLOCATORS",
    "Allocator",
    "Budget",
    "GlobalRanking",
    "PerLayer",
    "Price",
    "allocator_options",
    "described",
    "make_allocator",
]

ALLOCATORS: dict[str, type[Allocator]] = {"global": GlobalRanking, "per_layer": PerLayer}


def allocator_options(kind: type[Allocator]) -> list[str]:
    """List the names of what can be set of an allocator."""
    return list(inspect.signature(kind).parameters)


def make_allocator(kind: str | type[Allocator], options: Mapping[str, Any]) -> Allocator:
    """Make an allocator by its class or its name in ALLOCATORS. Raises MethodError for an unknown
    name or option, ArgumentError for a value of another kind."""
    if isinstance(kind, str):
        if kind not in ALLOCATORS:
            raise MethodError(f"expected an allocator in {', '.join(ALLOCATORS)}; got {kind!r}")
        kind = ALLOCATORS[kind]
    known = allocator_options(kind)
    for name in options:
        if name not in known:
            raise MethodError(f"{kind.__name__} has the options {known}, got {name!r}")
    return kind(**fit_options(kind, options))
