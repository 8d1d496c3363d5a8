"""refit: let what a plan leaves make up for what it removes, in closed form.

Source: Park, Choi and Kang 2024, "Accurate Retraining-free Pruning for Pretrained Encoder-based
Language Models" (K-prune), section 4.3: each sub-layer of the pruned model is fitted to the
residual stream of the dense one, from the first layer upwards, so that errors do not pile up.
Departures: a ridge that draws the weights to their old values, the bias is fitted too, and so are
linears with masks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.linears import LinearView, stacked
from secateurs.architectures.sites import find_sites
from secateurs.checks import door
from secateurs.data.batches import Batch, check_batches, evaluating, shown
from secateurs.errors import MethodError
from secateurs.masking.masked_model import check_changeable, check_plan, mask_layer
from secateurs.plan import SparsityPlan
from secateurs.reconstruction.admm import Admm, InputNorm
from secateurs.reconstruction.walk import Group, Run, Walk, warn_of_few_tokens
from secateurs.shells import own_module, shell_of


@door
@torch.no_grad()
def refit(
    model: nn.Module,
    plan: SparsityPlan,
    batches: Iterable[Batch],
    *,
    ridge: float = 0.01,
    inplace: bool = False,
    progress: bool = True,
) -> nn.Module:
    """A copy of `model` whose attention output and FFN output projections were fitted so that,
    under `plan`, each sub-layer gives what the dense model's residual stream has there. A linear
    with a mask or levels of its own is fitted too, under them, to what it gives in the dense model.

    No labels, no gradients: least squares, bottom-up on the model pruned so far; under a mask or on
    levels by ADMM (`secateurs.reconstruction.admm`). What the plan removes keeps its values; the
    plan stays valid for the result, so hand both to `apply`, `convert` or `distill`. The same data
    give the same weights.

    Args:
        model: a transformers model of a supported family; not changed unless `inplace`.
        plan: made for it.
        batches: dicts of tensors as the model takes them; labels and padding are left out.
        ridge: how strongly weights are drawn to their old values, relative to the mean square of
            the features.
        inplace: fit `model` itself, so that beside it only one layer and the states of the batches
            are held; an error in the middle leaves the layers below fitted.
        progress: show a progress bar over the layers.

    Raises:
        FamilyError: the model is of no supported family.
        DataError: no batches, or some that the model does not take.
        PlanError: a plan of another model, or weights that are not finite.
        MethodError: a negative ridge, activations that are not finite, a singular system.
    """
    batches = check_batches(batches)
    if not ridge >= 0:
        raise MethodError(f"expected a ridge of at least 0, got {ridge}")
    if inplace:
        check_changeable(model)
    sites = find_sites(model)
    check_plan(model, sites, plan)
    fitted = model if inplace else copy.deepcopy(model)
    fit = _Fit(Walk(sites, model, shell_of(model).eval()), plan, fitted, ridge)
    with evaluating(model), torch.no_grad():
        runs = [run for batch in batches for run in fit.walk.start(batch)]
        for index in shown(range(len(sites.layers)), len(sites.layers), "refit", progress):
            fit.layer(index, runs)
    return fitted


class _Update(NamedTuple):
    """What one linear is to become: a weight in the columns that were fitted, where `elements` is
    True, and what is added to its bias."""

    role: str
    columns: Tensor
    elements: Tensor
    weight: Tensor
    bias: Tensor

    def write(self, linear: LinearView) -> None:
        weight, bias = linear.weight.clone(), linear.bias
        old = weight[:, self.columns]
        weight[:, self.columns] = torch.where(self.elements, self.weight.to(old), old)
        linear.write(weight, None if bias is None else bias + self.bias.to(bias))


@dataclass(frozen=True)
class _Fit:
    """The fits of one plan.

    Attributes:
        walk: whose pruned model is a shell of the dense one: a layer of it is pruned, and fitted,
            for as long as the walk is there.
        fitted: gets the weights behind each layer. It may be the dense model.
    """

    walk: Walk
    plan: SparsityPlan
    fitted: nn.Module
    ridge: float

    def layer(self, index: int, runs: list[Run]) -> None:
        """Fit what the plan leaves of a layer, and take the states of all runs through it."""
        walk, updates = self.walk, list[_Update]()
        keep = walk.sites.keep(self.plan, index)
        with own_module(walk.pruned, walk.sites.layer_path(index)):
            mask_layer(walk.pruned, walk.sites, self.plan, index)
            for group in walk.groups(index):
                linears = tuple(
                    t for t in group.linears if group.is_last or _is_bound(keep, t.role)
                )
                if keep.stays[group.sublayer.name] and linears:
                    updates += self._fit(replace(group, linears=linears), keep, runs)
            for run in runs:
                walk.advance(index, run)
        for update in updates:
            update.write(walk.sites.linear(self.fitted, index, update.role))

    def _fit(self, group: Group, keep: LayerKeep, runs: list[Run]) -> list[_Update]:
        """Fit the linears of a group in the pruned model; returns what was done to each."""
        views = self.walk.views(group)
        columns = keep.sides(group.linears[0].role)[1].to(views[0].weight.device)
        sums = self.walk.equations(group, columns)
        for run in runs:
            self.walk.add(sums, group, columns, run)
        sums.gather()
        warn_of_few_tokens(sums, group)
        old = stacked([view.weight for view in views])[:, columns].double()
        best = old + sums.solve(self.ridge)
        bound = any(_is_bound(keep, linear.role) for linear in group.linears)
        norm = InputNorm(sums.damped(self.ridge)) if bound else None
        sizes = [len(view.weight) for view in views]
        weights = [
            best_one if norm is None else self._constrained(best_one, norm, keep, view, columns)
            for view, best_one in zip(views, best.split(sizes), strict=True)
        ]
        biases = sums.bias(stacked(weights) - old).split(sizes)
        updates = [
            _Update(
                view.linear.role,
                columns,
                keep.elements(view.linear.role).to(columns.device)[:, columns],
                weight.to(view.weight),
                bias * keep.sides(view.linear.role)[0].to(columns.device),
            )
            for view, weight, bias in zip(views, weights, biases, strict=True)
        ]
        for update, view in zip(updates, views, strict=True):
            update.write(view)
        return updates

    def _constrained(
        self, best: Tensor, norm: InputNorm, keep: LayerKeep, view: LinearView, columns: Tensor
    ) -> Tensor:
        """The weight under its mask and on its levels that is nearest to `best`, float64."""
        role = view.linear.role
        admm = Admm(best, norm)
        admm.hold(keep.elements(role).to(best.device)[:, columns], keep.levels.get(role))
        return admm.weight.double()


def _is_bound(keep: LayerKeep, role: str) -> bool:
    """Whether a linear has a mask or levels of its own."""
    return role in keep.weights or role in keep.levels
