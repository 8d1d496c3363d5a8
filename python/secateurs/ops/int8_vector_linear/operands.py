"""The operands of `int8_vector_linear`, and whether they fit together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.epilogue import check_epilogue
from secateurs.ops.int8_linear.operands import GROUP


class Operands(NamedTuple):
    """One call of `int8_vector_linear`, in the order of its schema."""

    x: Tensor  # [..., K]
    values: Tensor  # int8 [words, v, 4]
    scales: Tensor  # float32 [N]
    places: Tensor  # uint8 [words, 4]
    indptr: Tensor  # int32 [N / v * ceil(K / 64) + 1]
    starts: Tensor  # int32 [N / v * ceil(K / 64), v]
    bias: Tensor | None  # [N]
    activation: str
    multiplier: Tensor | None  # [..., N]
    residual: Tensor | None  # [..., N]

    def new_output(self) -> Tensor:
        """Return an uninitialised output `[..., N]`."""
        return self.x.new_empty((*self.x.shape[:-1], self.scales.shape[0]))


def check(operands: Operands) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    x, values, scales, places, indptr, starts, *_ = operands
    packed = (values, scales, places, indptr, starts)
    shapes = [tuple(t.shape) for t in packed]
    if x.dim() < 1:
        raise OperandError("expected x [..., K], got a single number")
    if [len(shape) for shape in shapes] != [3, 1, 2, 1, 2] or shapes[0][2] != 4:
        raise OperandError(
            "expected values [words, v, 4], scales [N], places [words, 4], indptr [pairs + 1] and "
            f"starts [pairs, v], got shapes {shapes}"
        )
    dtypes = [t.dtype for t in packed]
    if dtypes != [torch.int8, torch.float32, torch.uint8, torch.int32, torch.int32]:
        raise OperandError(
            "expected values of int8, scales of float32, places of uint8, indptr and starts of "
            f"int32, got {dtypes}"
        )
    (words, v, _), (n,) = values.shape, scales.shape
    if v < 1 or n % v:
        raise OperandError(f"expected outputs in groups of {v}, got {n} scales")
    pairs = n // v * -(-x.shape[-1] // GROUP)
    if shapes[2:] != [(words, 4), (pairs + 1,), (pairs, v)]:
        raise OperandError(
            f"expected places {(words, 4)}, indptr {(pairs + 1,)} and starts {(pairs, v)} for "
            f"{n} outputs of {x.shape[-1]} inputs, got {shapes[2:]}"
        )
    check_epilogue(operands, n, None, packed)


def flops(operands: Operands) -> int:
    """Count the operations of a call: two for each row of x and each stored code."""
    return 2 * operands.x.shape[:-1].numel() * operands.values.numel()
