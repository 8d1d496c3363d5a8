"""The operands of `encoder_layer`, and whether they fit together: the operation's schema has the
weights as a list, a `Layer` has them by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.epilogue import ACTIVATIONS
from secateurs.ops.attention.operands import check_key_mask, check_kv_of
from secateurs.ops.block_sparse_linear.operands import check_weight, stored
from secateurs.ops.int8_linear import operands as int8


class Linear(NamedTuple):
    """x W^T + bias; without `values` there is no such product, with `scales` they are codes."""

    values: Tensor | None
    scales: Tensor | None
    indptr: Tensor | None
    indices: Tensor | None
    bias: Tensor | None
    out_features: int


class Layer(NamedTuple):
    """The products of a layer, then weight and bias of both norms."""

    qkv: Linear
    output: Linear
    up: Linear
    down: Linear
    attention_norm: Sequence[Tensor | None]
    ffn_norm: Sequence[Tensor | None]


class Operands(NamedTuple):
    """One call of `encoder_layer`, in the order of its schema."""

    x: Tensor  # [B, T, d]
    # Values, scales (or their bits as int32), indptr, indices, bias of 4 products; 2 of each norm.
    weights: list[Tensor | None]
    features: list[int]  # outputs of the products, 0 where there is none
    heads: int
    kv_heads: int
    kv_of: Tensor | None  # int32 [Hq]
    key_mask: Tensor | None  # bool [B, T]
    activation: str
    attention_eps: float
    ffn_eps: float

    def new_output(self) -> Tensor:
        """Return an uninitialised output `[B, T, d]`."""
        return self.x.new_empty(self.x.shape)

    def layer(self) -> Layer:
        """Return the weights by name."""
        weights, features = self.weights, self.features
        linears = []
        for i, outputs in enumerate(features):
            values, scales, indptr, indices, bias = weights[5 * i : 5 * i + 5]
            if scales is not None and scales.dtype == torch.int32:
                scales = scales.view(torch.float32)
            linears.append(Linear(values, scales, indptr, indices, bias, outputs))
        qkv, output, up, down = linears
        return Layer(qkv, output, up, down, weights[20:22], weights[22:24])


def head_dim(features: int, heads: int, kv_heads: int) -> int:
    """Return the dimension of a head from the outputs of qkv. Raises OperandError if none fits."""
    every = heads + 2 * kv_heads
    if heads < 1 or kv_heads < 1 or features % every:
        raise OperandError(
            f"expected outputs of qkv for {heads} query and {kv_heads} key and value heads, got "
            f"{features}"
        )
    return features // every


def check(operands: Operands) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    x, weights, features, heads, kv_heads, kv_of, key_mask, activation, *_ = operands
    if x.dim() != 3 or len(weights) != 24 or len(features) != 4:
        raise OperandError(
            "expected x [B, T, d], and values, scales, indptr, indices and bias of four products, "
            f"then weight and bias of two norms, got {x.dim()} dims, {len(features)} numbers of "
            f"outputs and {len(weights)} tensors"
        )
    if activation not in ACTIVATIONS:
        raise OperandError(
            f"expected an activation among {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    layer, (batch, tokens, d) = operands.layer(), x.shape
    if layer.qkv.values is not None:
        dim = head_dim(layer.qkv.out_features, heads, kv_heads)
        _check_product("qkv", layer.qkv, d, layer.qkv.out_features)
        _check_product("output", layer.output, heads * dim, d)
        check_kv_of(heads, kv_heads, kv_of)
    if layer.up.values is not None:
        _check_product("up", layer.up, d, layer.up.out_features)
        _check_product("down", layer.down, layer.up.out_features, d)
    for name, (weight, bias) in (
        ("attention_norm", layer.attention_norm),
        ("ffn_norm", layer.ffn_norm),
    ):
        if weight is None or weight.shape != (d,) or (bias is not None and bias.shape != (d,)):
            raise OperandError(f"expected weight and bias of {name} of shape {(d,)}")
    check_key_mask(key_mask, batch, tokens)
    for i, tensor in enumerate((*weights, kv_of, key_mask)):
        if tensor is None:
            continue
        if tensor.dtype != x.dtype and i < len(weights) and not _has_its_own_dtype(weights, i):
            raise OperandError(f"expected weights in the dtype of x, {x.dtype}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise OperandError(
                f"expected all tensors on {x.device} like x, got one on {tensor.device}"
            )


def _has_its_own_dtype(weights: list[Tensor | None], i: int) -> bool:
    """Tell whether number `i` of the weights is an index, a scale, or beside one."""
    product, part = divmod(i, 5)
    coded = product < 4 and weights[5 * product + 1] is not None
    return product < 4 and (part in (1, 2, 3) or (part == 0 and coded))


def _check_product(name: str, linear: Linear, k: int, n: int) -> None:
    values, scales, indptr, indices, bias, out_features = linear
    if values is None or indptr is None or indices is None:
        raise OperandError(f"expected values, indptr and indices of {name}")
    if out_features != n or (bias is not None and bias.shape != (n,)):
        raise OperandError(f"expected {name} to have {n} outputs and as many biases")
    if scales is None:
        check_weight(k, values, indptr, indices, n)
        return
    int8.check_weight(k, values, scales, indptr, indices)
    if len(scales) != n:
        raise OperandError(f"expected {n} scales of {name}, got {len(scales)}")


def flops(operands: Operands) -> int:
    """Count the operations of the products and of attention."""
    layer, (*_, tokens, d) = operands.layer(), operands.x.shape
    heads, kv_heads = operands.heads, operands.kv_heads
    width = heads * (layer.qkv.out_features // max(heads + 2 * kv_heads, 1))
    inputs = ((layer.qkv, d), (layer.output, width), (layer.up, d))
    products = (*inputs, (layer.down, layer.up.out_features))
    each = sum(_stored(k, p) for p, k in products)
    return 2 * operands.x.shape[:-1].numel() * (each + 2 * tokens * width)


def _stored(k: int, linear: Linear) -> int:
    """Count the entries of a product's weight."""
    values = linear.values
    if values is None:
        return 0
    count = stored if linear.scales is None else int8.stored
    return count(k, values, linear.out_features)
