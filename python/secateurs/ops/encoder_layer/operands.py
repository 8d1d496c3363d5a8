"""What one encoder layer consists of, by name: the operation's schema has it as lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Linear(NamedTuple):
    """x W^T + bias; without `values` there is no such product."""

    values: Tensor | None
    indptr: Tensor | None
    indices: Tensor | None
    bias: Tensor | None
    out_features: int


class Operands(NamedTuple):
    """The products of a layer, then weight and bias of both norms."""

    qkv: Linear
    output: Linear
    up: Linear
    down: Linear
    attention_norm: Sequence[Tensor | None]
    ffn_norm: Sequence[Tensor | None]


def operands(weights: Sequence[Tensor | None], features: Sequence[int]) -> Operands:
    """The lists of the schema, taken apart."""
    linears = [Linear(*weights[4 * i : 4 * i + 4], features[i]) for i in range(4)]
    return Operands(*linears, weights[16:18], weights[18:20])
