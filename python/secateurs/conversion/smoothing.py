"""Factors moved from what a linear reads into its weight, so that both are rounded better.

Source: Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", equation 4. Departures: factors are powers of two, so that moving them rounds
nothing; they are moved only where what wrote the input can take them exactly, a norm that nothing
else reads, the values of attention, or `up` where the FFN is gated or has a ReLU; and only where
they lower the error on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateurs.conversion.modules.layer import again
from secateurs.conversion.slicing import CompactLinear

MOST_STEPS = 8  # a factor is 2 to the power of -8 .. 8


def factors_of(
    inputs: Tensor, weight: Tensor, alpha: float, source: Tensor, sources: int
) -> Tensor:
    """The factor of each of so many sources `[S]` that write the columns of `inputs` `[M, K]`: near
    `max|x|^alpha / max|w|^(1 - alpha)`, powers of two around one.

    Args:
        weight: `[N, K]`, which reads the inputs.
        source: int64 `[K]`, which source writes each column.
    """
    largest = [
        t.new_zeros(sources).scatter_reduce(0, source, t.float().abs().amax(0), "amax")
        for t in (inputs, weight.float())
    ]
    used = (largest[0] > 0) & (largest[1] > 0)
    if not bool(used.any()):
        return torch.ones_like(largest[0])
    steps = alpha * largest[0].log2() - (1 - alpha) * largest[1].log2()
    steps = steps - steps[used].mean()
    steps = torch.where(used, steps.round().clamp(-MOST_STEPS, MOST_STEPS), 0.0)
    return steps.exp2()


def reading_more(linear: CompactLinear, factor: Tensor) -> CompactLinear:
    """The linear with its columns times `factor` `[K]`."""
    return replace(linear, weight=linear.weight * factor.to(linear.weight))


def writing_less(linear: CompactLinear, factor: Tensor) -> CompactLinear:
    """The linear with its outputs divided by `factor` `[N]`."""
    divisor = factor.to(linear.weight)
    bias = None if linear.bias is None else linear.bias / divisor.to(linear.bias)
    return replace(linear, weight=linear.weight / divisor[:, None], bias=bias)


def norms_less(layer: nn.Module, path: str, factor: Tensor) -> nn.Module:
    """A copy of a stock layer whose norm at `path` gives its outputs divided by `factor` `[d]`;
    all else is shared."""

    def tensor(name: str, held: Tensor) -> Tensor:
        if name not in (f"{path}.weight", f"{path}.bias"):
            return held
        less = held.detach() / factor.to(held)
        return nn.Parameter(less, held.requires_grad) if isinstance(held, nn.Parameter) else less

    return again(layer, tensor)


def may_write_less(norm: nn.Module, rms: bool) -> bool:
    """Whether what a norm gives is in proportion to its weight and bias of one dimension."""
    weight = getattr(norm, "weight", None)
    known = isinstance(norm, nn.LayerNorm) or (rms and getattr(norm, "bias", None) is None)
    return known and isinstance(weight, Tensor) and weight.dim() == 1


def weights_of(linears: Sequence[CompactLinear]) -> Tensor:
    """The weights one above the other, float32."""
    return torch.cat([linear.weight.float() for linear in linears])
