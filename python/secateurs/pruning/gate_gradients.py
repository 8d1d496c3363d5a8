"""Derivatives by gates: how an output of the model moves with each unit, for each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.data.batches import (
    Batch,
    batch_size,
    evaluating,
    is_label,
    loss_of,
    main_output,
    run,
    to_device,
    token_weights,
)
from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.plan import SparsityPlan


def gate_gradients(
    model: nn.Module,
    sites: Sites,
    units: Mapping[str, tuple[int, ...]],
    gone: SparsityPlan,
    batch: Batch,
    target: Callable[[Any], Tensor],
) -> dict[str, Tensor]:
    """The derivatives of `target(output)` by the gates of all units, `[B, *shape]` by site.

    Args:
        units: the shape of the gates of each site.
        gone: what is gated off while the model runs.
        batch: on the device of `model`.
        target: of the model's output on the batch, a sum over examples.

    Raises MethodError for derivatives that are not finite.
    """
    size = batch_size(batch)
    with evaluating(model), Gates(model, sites) as gates:
        gates.set_plan(gone)
        like = next(model.parameters())
        leaves = {}
        for name, shape in units.items():
            start = gates[name] if name in gates else like.new_ones(shape)
            leaves[name] = start.detach().expand(size, *shape).clone().requires_grad_()
            gates[name] = leaves[name]
        total = target(run(model, batch))
        gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    found = dict(zip(leaves, gradients, strict=True))
    for name, gradient in found.items():
        if not bool(torch.isfinite(gradient).all()):
            raise MethodError(f"expected finite gradients, got NaN or infinity at {name}")
    return found


def measuring(holder: Tensor, values: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return gates `[B, *shape]` of the `values` `[*shape]` for the passes of a training: in place
    of its gradient, `holder` `[*shape]` gets the sum over examples of |dL/d gate|.

    Args:
        inputs: the model's keyword inputs, of B examples.

    Raises MethodError for inputs without a batch.
    """
    sizes = (len(x) for x in inputs.values() if isinstance(x, Tensor) and x.dim())
    examples = next(sizes, None)
    if examples is None:
        raise MethodError(
            f"expected the model's inputs by name, to measure each example, got {[*inputs]}"
        )
    gates: Tensor = _Measuring.apply(holder, values, examples)  # type: ignore[no-untyped-call]
    return gates


class _Measuring(torch.autograd.Function):
    """The gates are what `values` say, the gradient is that of `measuring`."""

    @staticmethod
    def forward(context: Any, holder: Tensor, values: Tensor, examples: int) -> Tensor:
        return values.expand(examples, *values.shape).clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.abs().sum(0), None, None


def importance_sums(
    model: nn.Module,
    sites: Sites,
    units: Mapping[str, tuple[int, ...]],
    gone: SparsityPlan,
    batch: Batch,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], int]:
    """Sums over the examples of `batch` of |dL/d gate|, float64 on the CPU by site, and 1; without
    labels, of the squared derivatives along a direction, and 2, their power.

    Args as of `gate_gradients`; `generator` draws the directions.
    """
    batch = to_device(batch, model)
    labelled = any(map(is_label, batch))
    power = 1 if labelled else 2

    def target(output: Any) -> Tensor:
        if labelled:  # the loss is the batch mean: size times it, per example
            return loss_of(output).sum() * batch_size(batch)
        return along_a_direction(output, batch, generator)

    gradients = gate_gradients(model, sites, units, gone, batch, target)
    sums = {n: gradient.double().abs().pow(power).sum(0).cpu() for n, gradient in gradients.items()}
    return sums, power


def along_a_direction(output: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """The main output along one Gaussian direction for each example, padding left out: the squares
    of its derivatives estimate the curvature of the squared distance without bias."""
    out = main_output(output)
    probe = torch.randn(out.shape, generator=generator).to(out)
    return (out * probe * token_weights(out, batch)).sum()
