"""prune: one pass of a method over a model and its data, which ends in a plan; score: the same
which ends in scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import find_sites
from secateurs.checks import check_seed, check_weights, door, fit
from secateurs.data.batches import (
    Batch,
    check_batches,
    check_labels,
    made_for_gradients,
    shown,
)
from secateurs.errors import DataError, MethodError
from secateurs.plan import SparsityPlan
from secateurs.pruning.allocation import Allocator, Price, described
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.base import Needs, Pruner, notes_of
from secateurs.pruning.methods import check_options, make_pruner


@door
@torch.enable_grad()
def prune(
    model: nn.Module,
    batches: Iterable[Batch] | Mapping[str, Iterable[Batch]] | None = None,
    *,
    method: str = "gradient",
    budget: Budget | Mapping[str, Any] | str,
    allocator: str | Allocator | None = None,
    price: Price | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> SparsityPlan:
    """Decide what `model` can lose. The model is not changed.

    Args:
        model: a transformers model of a supported family.
        batches: dicts of tensors as the model takes them, for methods that read data; `labels` are
            optional. For a method that is `grouped`, such lists by name.
        method: a name in METHODS.
        budget: what must go, such as `Budget(heads=0.5, neurons=0.5)`, the same as a dict, or
            `"heads=0.5,neurons=0.5"`.
        allocator: how the budget is shared out: "global" (the lowest scores of the whole model
            go), "per_layer" (every layer loses the same share), or an `Allocator`. By default the
            method's own, which is "global" for all but `smp`.
        price: `price(site, units)`, the cost of keeping so many units at a site, for an allocator
            that uses it.
        seed: the same seed gives the same plan.
        progress: show a progress bar on passes longer than two seconds.
        options: of the method, and of the allocator: `min_heads` and `min_neurons` are what every
            layer keeps.

    Raises:
        MethodError: unknown method, allocator or option, a method that trains, a budget the method
        cannot serve, a loss, gradients or scores that are not finite. ArgumentError, FamilyError,
        BudgetError, DataError: as their names say.
    """
    options = check_options(method, options, allocator)
    pruner = make_pruner(method, allocator=allocator, price=price, **options)
    budget = Budget.of(budget)
    _observe(pruner, method, model, batches, budget, seed, progress)
    chosen = None if allocator is None else described(pruner.allocator)
    return replace(pruner.plan(), notes=notes_of(method, budget, seed, options, chosen))


@door
@torch.enable_grad()
def score(
    model: nn.Module,
    batches: Iterable[Batch] | Mapping[str, Iterable[Batch]] | None = None,
    *,
    method: str,
    budget: Budget | Mapping[str, Any] | str,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> dict[str, Tensor]:
    """The scores by which `prune` would decide, by site name; low ones go first.

    Args and exceptions as of `prune`. The budget says which units are scored.
    """
    pruner = make_pruner(method, **check_options(method, options))
    _observe(pruner, method, model, batches, Budget.of(budget), seed, progress)
    return dict(pruner.scores())


def check_one_shot(method: str) -> None:
    """Raise MethodError for a method that there is not, or that decides while a model trains."""
    if Needs.TRAINING in make_pruner(method).needs:
        raise MethodError(
            f"{method} decides while the model trains: expected it in a Session or PruningTrainer"
        )


def _observe(
    pruner: Pruner,
    method: str,
    model: nn.Module,
    batches: Iterable[Batch] | Mapping[str, Iterable[Batch]] | None,
    budget: Budget,
    seed: int,
    progress: bool,
) -> None:
    """Show a method all that it reads."""
    check_one_shot(method)
    check_seed(seed)
    check_weights(model)
    reads_data = bool(pruner.needs & (Needs.ACTIVATIONS | Needs.GRADIENTS))
    model = made_for_gradients(model) if reads_data else model
    pruner.start(model, find_sites(model), budget, seed)
    if not reads_data:
        return
    data = _named(batches, pruner.grouped)
    check_labels(batch for _, batch in data)
    pruner.batches = len(data)
    passes = pruner.passes()
    for number in range(passes):
        label = f"{method} {number + 1}/{passes}" if passes > 1 else method
        for pruner.group, batch in shown(data, len(data), label, progress):
            pruner.observe(batch)
        pruner.end_round()


def _named(
    batches: Iterable[Batch] | Mapping[str, Iterable[Batch]] | None, grouped: bool
) -> list[tuple[str, Batch]]:
    """Every batch with the name of its group, which is empty where there are none."""
    if not (grouped and isinstance(batches, Mapping)):
        return [("", batch) for batch in check_batches(cast("Iterable[Batch] | None", batches))]
    found: list[tuple[str, Batch]] = []
    for name, group in batches.items():
        some = list(fit(f"batches of {name}", group, Iterable, DataError))
        if not some:
            raise DataError(f"expected batches of each group, got none of {name!r}")
        found += [(name, batch) for batch in check_batches(some)]
    check_batches([batch for _, batch in found])
    return found
