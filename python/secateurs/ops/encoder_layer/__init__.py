"""One layer of a Transformer encoder as one operation: packed products, attention, residuals and
norms.

Calling small operations one after the other costs as much as computing them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.dispatch import AUTO, Op, forced_backend
from secateurs.ops._core.epilogue import ACTIVATIONS
from secateurs.ops._core.recording import plain, recording
from secateurs.ops._core.register import register
from secateurs.ops.attention import check_key_mask, check_kv_of
from secateurs.ops.block_sparse_linear import Weight, check_weight, stored
from secateurs.ops.encoder_layer import cpu, reference
from secateurs.ops.encoder_layer.operands import Linear, operands


class BiasedWeight(Weight, Protocol):
    """x W^T + bias."""

    bias: Tensor | None  # [N]
    activation: str


class SelfAttention(Protocol):
    """Attention with one projection for q, k and v, in this order."""

    qkv: BiasedWeight  # [(Hq + 2 Hkv) D, d]
    output: BiasedWeight  # [d, Hq D]
    heads: int
    kv_heads: int
    kv_of: Tensor | None  # int32 [Hq], as in `attention`


class FeedForward(Protocol):
    """down(act(up(x)))."""

    up: BiasedWeight  # [neurons, d]
    down: BiasedWeight  # [d, neurons]


class LayerNorm(Protocol):
    """As `add_norm` takes it."""

    weight: Tensor  # [d]
    bias: Tensor | None  # [d]
    eps: float


def encoder_layer(
    x: Tensor,
    attention: SelfAttention | None,
    attention_norm: LayerNorm,
    ffn: FeedForward | None,
    ffn_norm: LayerNorm,
    key_mask: Tensor | None = None,
) -> Tensor:
    """norm(a + ffn(a)) of a = norm(x + attention(x)), shape of `x`.

    The products are those of `block_sparse_linear`, the rest that of `attention` and `add_norm`.
    Gradients are those of the reference, which runs wherever gradients are recorded.

    Args:
        x: `[B, T, d]`.
        attention: None where the sub-layer was removed; so is `ffn`.
        key_mask: bool `[B, T]`, True where a token may be attended.

    Raises:
        OperandError: the tensors do not fit together, or an activation is unknown.
        BackendError: the backend that is forced refuses the call.
    """
    args = arguments(x, attention, attention_norm, ffn, ffn_norm, key_mask)
    if torch.is_grad_enabled():
        check(*args)
        return reference.encoder_layer(*args)
    return _call(*args)


def arguments(
    x: Tensor,
    attention: SelfAttention | None,
    attention_norm: LayerNorm,
    ffn: FeedForward | None,
    ffn_norm: LayerNorm,
    key_mask: Tensor | None = None,
) -> tuple[Any, ...]:
    """The same call in the order of the schema."""
    _check_inputs(x, attention, ffn)
    weights: list[Tensor | None] = []
    features, heads, activation = [], (0, 0, None), "none"
    if attention is not None:
        heads = (attention.heads, attention.kv_heads, attention.kv_of)
    if ffn is not None:
        activation = ffn.up.activation
    for part, names in ((attention, ("qkv", "output")), (ffn, ("up", "down"))):
        for name in names:
            if part is None:
                weights += [None] * 4
                features.append(0)
            else:
                w = getattr(part, name)
                weights += (w.values, w.indptr, w.indices, w.bias)
                features.append(w.shape[0])
    for norm in (attention_norm, ffn_norm):
        weights += (norm.weight, norm.bias)
    eps = (attention_norm.eps, ffn_norm.eps)
    return (x, weights, features, *heads, key_mask, activation, *eps)


def _check_inputs(x: Tensor, attention: SelfAttention | None, ffn: FeedForward | None) -> None:
    """As `check_inputs` of each product."""
    d, read = x.shape[-1], []
    if attention is not None:
        dim = _head_dim(attention.qkv.shape[0], attention.heads, attention.kv_heads)
        read += [("qkv", attention.qkv, d), ("output", attention.output, attention.heads * dim)]
    if ffn is not None:
        read += [("up", ffn.up, d), ("down", ffn.down, ffn.up.shape[0])]
    for name, weight, k in read:
        if weight.shape[1] != k:
            raise OperandError(f"expected {name} of K = {k} inputs, got {weight.shape[1]}")


def _head_dim(features: int, heads: int, kv_heads: int) -> int:
    every = heads + 2 * kv_heads
    if heads < 1 or kv_heads < 1 or features % every:
        raise OperandError(
            f"expected outputs of qkv for {heads} query and {kv_heads} key and value heads, got "
            f"{features}"
        )
    return features // every


def check(
    x: Tensor,
    weights: list[Tensor | None],
    features: list[int],
    heads: int,
    kv_heads: int,
    kv_of: Tensor | None,
    key_mask: Tensor | None,
    activation: str,
    attention_eps: float,
    ffn_eps: float,
) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    if x.dim() != 3 or len(weights) != 20 or len(features) != 4:
        raise OperandError(
            "expected x [B, T, d], and values, indptr, indices and bias of four products, then "
            f"weight and bias of two norms, got {x.dim()} dims, {len(features)} numbers of outputs "
            f"and {len(weights)} tensors"
        )
    if activation not in ACTIVATIONS:
        raise OperandError(
            f"expected an activation among {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    layer, (batch, tokens, d) = operands(weights, features), x.shape
    if layer.qkv.values is not None:
        dim = _head_dim(layer.qkv.out_features, heads, kv_heads)
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
        if tensor.dtype != x.dtype and i < len(weights) and i not in _INDICES:
            raise OperandError(f"expected weights in the dtype of x, {x.dtype}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise OperandError(
                f"expected all tensors on {x.device} like x, got one on {tensor.device}"
            )


_INDICES = {place for i in range(0, 16, 4) for place in (i + 1, i + 2)}  # among the weights


def _check_product(name: str, linear: Linear, k: int, n: int) -> None:
    values, indptr, indices, bias, out_features = linear
    if values is None or indptr is None or indices is None:
        raise OperandError(f"expected values, indptr and indices of {name}")
    if out_features != n or (bias is not None and bias.shape != (n,)):
        raise OperandError(f"expected {name} to have {n} outputs and as many biases")
    check_weight(k, values, indptr, indices, n)


def flops(
    x: Tensor,
    weights: list[Tensor | None],
    features: list[int],
    heads: int,
    kv_heads: int,
    *_: object,
) -> int:
    """Of the products and of attention."""
    layer, (_, tokens, d) = operands(weights, features), x.shape
    width = heads * (layer.qkv.out_features // max(heads + 2 * kv_heads, 1))
    products = ((layer.qkv, d), (layer.output, width), (layer.up, d), (layer.down, layer.up[-1]))
    each = sum(stored(k, p.values, p.out_features) for p, k in products if p.values is not None)
    return 2 * x.shape[:-1].numel() * (each + 2 * tokens * width)


class _Remembering(Op):
    """An operation that knows the layers it has seen, and does not check them again."""

    def run(self, *args: Any) -> Tensor:
        x, weights, features, heads, kv_heads, kv_of, key_mask, *rest = args
        if forced_backend() in (AUTO, cpu.BACKEND.name):
            bound = cpu.recall(weights[-2])
            if bound and bound.knows(weights, kv_of, features, heads, kv_heads, *rest):
                return bound(x, key_mask)
        return super().run(*args)


def run(x: Tensor, *operands: Any) -> Tensor:
    """The call in the order of the schema, for callers who record no gradients: past torch's
    dispatcher unless someone is recording."""
    key_mask = operands[5]
    if recording() or not (plain(x) and plain(key_mask)):
        return _call(x, *operands)
    return OP.run(x, *operands)


OP = _Remembering("encoder_layer", check, cpu.BACKEND, reference.BACKEND)
_call = register(
    OP,
    "(Tensor x, Tensor?[] weights, int[] features, int heads, int kv_heads, Tensor? kv_of, "
    "Tensor? key_mask, str activation, float attention_eps, float ffn_eps) -> Tensor",
    lambda x, *_: x.new_empty(x.shape),
    reference.encoder_layer,
    flops,
    differentiable=False,
)
