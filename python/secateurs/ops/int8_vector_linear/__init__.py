"""y = act(x W^T + bias) * multiplier + residual, with W in codes of 8 bits, neighbouring outputs
keeping the same inputs, and x rounded to such codes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.epilogue import check_inputs
from secateurs.ops._core.register import register
from secateurs.ops.int8_vector_linear import cpu, reference
from secateurs.ops.int8_vector_linear.operands import Operands, check, flops


class Weight(Protocol):
    """A weight `[N, K]` in codes, as `secateurs.formats.Int8VectorWeight` describes."""

    @property
    def values(self) -> Tensor: ...  # int8 [words, v, 4]
    @property
    def scales(self) -> Tensor: ...  # float32 [N]
    @property
    def places(self) -> Tensor: ...  # uint8 [words, 4]
    @property
    def indptr(self) -> Tensor: ...  # int32 [N / v * ceil(K / 64) + 1]
    @property
    def starts(self) -> Tensor: ...  # int32 [N / v * ceil(K / 64), v]
    @property
    def shape(self) -> tuple[int, int]: ...


def int8_vector_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    activation: str = "none",
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute act(x' W^T + bias) * multiplier + residual, shape `[..., N]`, of x' near `x`.

    What x' is, what is exact, and what NaN, infinity and tiny or huge numbers do, is as in
    `int8_linear`: an output multiplies a group of 64 inputs if it keeps any of them.

    Args:
        x: `[..., K]`.
        weight: its indices are trusted: validate them where they are made.
        bias: `[N]`.
        activation: one of `ACTIVATIONS`; "gelu" is the exact one, by erf.
        multiplier: `[..., N]`, multiplies what the activation returns.
        residual: `[..., N]`, added last.

    Raises:
        OperandError: the tensors do not fit together, or the activation is unknown.
        BackendError: the backend that is forced refuses the call.
    """
    return _call(arguments(x, weight, bias, activation, multiplier, residual))


def arguments(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    activation: str = "none",
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
) -> Operands:
    """Return the operands of the same call."""
    check_inputs(x, weight.shape)
    packed = (weight.values, weight.scales, weight.places, weight.indptr, weight.starts)
    return Operands(x, *packed, bias, activation, multiplier, residual)


OP = Op("int8_vector_linear", check, cpu.BACKEND, reference.BACKEND)
_call = register(OP, Operands, reference.int8_vector_linear, flops)
