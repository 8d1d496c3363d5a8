"""Pruning: methods score what a model has, allocation turns scores into a plan."""

from secateurs.pruning.allocation import ALLOCATORS, Allocator, Price
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.head_trials import best_heads
from secateurs.pruning.methods import (
    METHODS,
    Method,
    check_option_names,
    check_options,
    make_pruner,
    option_owner,
)
from secateurs.pruning.run import prune, score
from secateurs.pruning.session import Session

__all__ = [
    "ALLOCATORS",
    "METHODS",
    "Allocator",
    "Budget",
    "Method",
    "Needs",
    "Price",
    "Pruner",
    "Session",
    "best_heads",
    "check_option_names",
    "check_options",
    "make_pruner",
    "option_owner",
    "prune",
    "score",
]
