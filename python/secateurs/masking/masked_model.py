"""apply: the masked dense model, which defines what a pruned model computes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import check_weights, door
from secateurs.errors import ArgumentError, PlanError
from secateurs.masking.ruled_attention import RuledAttention, check_rules, ruled_layers
from secateurs.plan import SparsityPlan


@door
@torch.no_grad()
def apply(model: nn.Module, plan: SparsityPlan, *, inplace: bool = False) -> nn.Module:
    """A stock model with zeros where `plan` removes, and the rest on the levels it gives: as slow
    as before, and the truth that `convert` must match.

    A removed head or neuron takes its rows, columns and biases along; the bias of the projection
    behind it stays. A removed sub-layer adds nothing: its last projection is zero, bias included;
    residual and norm stay. Attention rules become hooks: weights cannot hold them, so such a model
    refuses `save_pretrained`.

    Args:
        model: a transformers model of a supported family; untouched unless `inplace`.
        plan: made for this model.

    Raises:
        FamilyError: the model is not supported, or cannot follow attention rules of the plan.
        PlanError: the plan does not fit the model, or a weight holds NaN or infinity.
    """
    if inplace:
        check_changeable(model)
    sites = find_sites(model)
    check_plan(model, sites, plan)
    if not inplace:
        model = copy.deepcopy(model)
    for index in range(len(sites.layers)):
        mask_layer(model, sites, plan, index)
    for part in (model, getattr(model, "base_model", model)) if ruled_layers(sites, plan) else ():
        vars(part)["save_pretrained"] = _refuse_to_save
    return model


def mask_layer(model: nn.Module, sites: Sites, plan: SparsityPlan, index: int) -> None:
    """Do to one layer of a live model what `apply` does to all."""
    keep = sites.keep(plan, index)
    for role in keep.shape.linears():
        linear = sites.linear(model, index, role)
        weight, bias = linear.weight, linear.bias
        weight = keep.rounded(role, weight * keep.elements(role).to(weight))
        rows, _ = keep.sides(role)
        linear.write(weight, None if bias is None else bias * rows.to(bias))
    for sublayer in keep.shape.architecture.sublayers:
        if not keep.stays[sublayer.name]:
            last = sites.linear(model, index, sublayer.last.role)
            bias = last.bias
            last.write(
                torch.zeros_like(last.weight), None if bias is None else torch.zeros_like(bias)
            )
    if keep.kept_rules is not None:
        RuledAttention(keep.rules or ()).install(model, sites, index)


def check_plan(model: nn.Module, sites: Sites, plan: SparsityPlan) -> None:
    """Raise PlanError for a plan that does not fit or weights that are not finite, FamilyError for
    a model that cannot follow the plan's attention rules."""
    plan.validate(sites, sites.fingerprint())
    check_finite(model, sites.paths)
    check_rules(model, sites, plan)


def check_changeable(model: nn.Module) -> None:
    """Raise ArgumentError for a model made under `torch.inference_mode`."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ArgumentError(
            "expected a model that can be changed in place, got one made under torch.inference_mode"
        )


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise PlanError(
        "expected a masked model whose weights say it all, got one with attention rules, which no "
        "stock file holds: save the plan, or the model that secateurs.convert makes"
    )


def check_finite(model: nn.Module, paths: Iterable[str]) -> None:
    """Raise PlanError if a weight of the layers at `paths` holds NaN or infinity: no score or
    product of it can be trusted. Raises ArgumentError for a model on the meta device."""
    check_weights(model)
    for path in paths:
        for name, parameter in model.get_submodule(path).named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise PlanError(f"expected finite weights, but {path}.{name} holds NaN or infinity")
