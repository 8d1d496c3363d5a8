"""Pruning methods: one file each, one row each in METHODS, and the driver that ends in a plan."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateurs.calibration import (
    Batch,
    check_batches,
    check_labels,
    made_for_gradients,
    shown,
)
from secateurs.checks import check_seed, check_weights, door, fit_options
from secateurs.errors import MethodError
from secateurs.plan import SparsityPlan
from secateurs.pruning.admm_pattern import AdmmPatternPruner
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.budget import Budget
from secateurs.pruning.dsp import DSPPruner
from secateurs.pruning.gradient import GradientPruner
from secateurs.pruning.magnitude import MagnitudePruner
from secateurs.pruning.random import RandomPruner
from secateurs.pruning.seven import SevenPrePruner, SevenPruner
from secateurs.pruning.smp import SMPPruner
from secateurs.pruning.snip_identity import SnipIdentityPruner
from secateurs.pruning.voita import VoitaPruner
from secateurs.sites import find_sites

__all__ = [
    "METHODS",
    "Budget",
    "Method",
    "Needs",
    "Pruner",
    "check_option_names",
    "check_options",
    "make_pruner",
    "prune",
]


@dataclass(frozen=True)
class Method:
    """One row of METHODS."""

    name: str
    pruner: type[Pruner]
    summary: str

    @property
    def produces(self) -> frozenset[str]:
        """Kinds of units the method can remove."""
        return self.pruner.produces

    @property
    def needs(self) -> Needs:
        return self.pruner.needs

    @property
    def options(self) -> list[str]:
        """Names of what can be set."""
        return list(inspect.signature(self.pruner).parameters)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("random", RandomPruner, "random units: the floor every method must beat"),
        Method("magnitude", MagnitudePruner, "units with the smallest weights"),
        Method(
            "gradient",
            GradientPruner,
            "units the loss, or the distance to the dense model, is least sensitive to",
        ),
        Method("dsp", DSPPruner, "a differentiable choice of exactly k heads"),
        Method("voita", VoitaPruner, "heads whose stochastic gates close under an L0 penalty"),
        Method("snip_identity", SnipIdentityPruner, "heads or sub-layers whose outputs stay small"),
        Method("smp", SMPPruner, "heads whose attention maps a trained network scores low"),
        Method("admm_pattern", AdmmPatternPruner, "weights off a pattern the loss is drawn to"),
        Method("seven", SevenPruner, "weights without a steady say in the loss, while training"),
        Method("seven_pre", SevenPrePruner, "the same before training, weights frozen"),
    )
}


def check_option_names(method: str, names: Iterable[str]) -> None:
    """Raise MethodError for a name that is no option of `method`."""
    known = METHODS[method].options
    for name in names:
        if name not in known:
            raise MethodError(f"{method} has the options {known}, got {name!r}")


def check_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of `method` as it takes them. Raises MethodError for an unknown method or option,
    ArgumentError for a value of another kind."""
    if method not in METHODS:
        raise MethodError(f"expected a method in {', '.join(METHODS)}; got {method!r}")
    check_option_names(method, options)
    return fit_options(METHODS[method].pruner, options)


def make_pruner(method: str, **options: Any) -> Pruner:
    """The method `method` of METHODS. Raises as `check_options`, and MethodError for values out of
    range."""
    fitting = check_options(method, options)
    return METHODS[method].pruner(**fitting)


@door
@torch.enable_grad()
def prune(
    model: nn.Module,
    batches: Iterable[Batch] | None = None,
    *,
    method: str = "gradient",
    budget: Budget | Mapping[str, Any] | str,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> SparsityPlan:
    """Decide what `model` can lose. The model is not changed.

    Args:
        model: a transformers model of a supported family.
        batches: dicts of tensors as the model takes them, for methods that read data; `labels` are
            optional.
        method: a name in METHODS.
        budget: what must go, such as `Budget(heads=0.5, neurons=0.5)`, the same as a dict, or
            `"heads=0.5,neurons=0.5"`.
        seed: the same seed gives the same plan.
        progress: show a progress bar on passes longer than two seconds.
        options: of the method.

    Raises:
        MethodError: unknown method or option, a method that trains, a budget the method cannot
        serve, a loss, gradients or scores that are not finite. ArgumentError, FamilyError,
        BudgetError, DataError: as their names say.
    """
    options = check_options(method, options)
    pruner = make_pruner(method, **options)
    if Needs.TRAINING in pruner.needs:
        raise MethodError(
            f"{method} decides while the model trains: expected it in a Session or PruningTrainer"
        )
    budget = Budget.of(budget)
    check_seed(seed)
    check_weights(model)
    reads_data = bool(pruner.needs & (Needs.ACTIVATIONS | Needs.GRADIENTS))
    model = made_for_gradients(model) if reads_data else model
    pruner.start(model, find_sites(model), budget, seed)
    if reads_data:
        found = check_batches(batches)
        check_labels(found)
        pruner.batches = len(found)
        for number in range(pruner.rounds):
            label = f"{method} {number + 1}/{pruner.rounds}" if pruner.rounds > 1 else method
            for batch in shown(found, len(found), label, progress):
                pruner.observe(batch)
            pruner.end_round()
    notes = {"method": method, "budget": str(budget), "seed": seed, "options": options}
    return replace(pruner.plan(), notes=notes)
