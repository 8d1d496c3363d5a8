"""One layer of a Transformer encoder as one operation: packed products, attention, residuals and
norms; or several layers in turn.

Calling small operations one after the other costs as much as computing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.dispatch import AUTO, Op, forced_backend
from secateurs.ops._core.register import register
from secateurs.ops.block_sparse_linear import Weight
from secateurs.ops.encoder_layer import cpu, reference
from secateurs.ops.encoder_layer.operands import Operands, check, flops, head_dim


class BiasedWeight(Weight, Protocol):
    """x W^T + bias; with `scales`, a weight in codes as `int8_linear` takes it."""

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
    """Compute norm(a + ffn(a)) for a = norm(x + attention(x)), shape of `x`.

    The products are those of `block_sparse_linear`, or of `int8_linear` where a weight has scales,
    the rest that of `attention`, with short products where qkv has scales, and `add_norm`.
    Gradients are those of the reference, which runs wherever gradients are recorded.

    Args:
        x: `[B, T, d]`.
        attention: None where the sub-layer was removed; so is `ffn`.
        key_mask: bool `[B, T]`, True where a token may be attended.

    Raises:
        OperandError: the tensors do not fit together, or an activation is unknown.
        BackendError: the backend that is forced refuses the call.
    """
    operands = arguments(x, attention, attention_norm, ffn, ffn_norm, key_mask)
    if torch.is_grad_enabled():
        check(operands)
        return reference.encoder_layer(operands)
    return _call(operands)


def arguments(
    x: Tensor,
    attention: SelfAttention | None,
    attention_norm: LayerNorm,
    ffn: FeedForward | None,
    ffn_norm: LayerNorm,
    key_mask: Tensor | None = None,
) -> Operands:
    """Return the operands of the same call."""
    _check_inputs(x, attention, ffn)
    weights: list[Tensor | None] = []
    features: list[int] = []
    heads: tuple[int, int, Tensor | None] = (0, 0, None)
    activation = "none"
    if attention is not None:
        heads = (attention.heads, attention.kv_heads, attention.kv_of)
    if ffn is not None:
        activation = ffn.up.activation
    for part, names in ((attention, ("qkv", "output")), (ffn, ("up", "down"))):
        for name in names:
            if part is None:
                weights += [None] * 5
                features.append(0)
            else:
                w = getattr(part, name)
                weights += (w.values, getattr(w, "scales", None), w.indptr, w.indices, w.bias)
                features.append(w.shape[0])
    for norm in (attention_norm, ffn_norm):
        weights += (norm.weight, norm.bias)
    eps = (attention_norm.eps, ffn_norm.eps)
    return Operands(x, weights, features, *heads, key_mask, activation, *eps)


def _check_inputs(x: Tensor, attention: SelfAttention | None, ffn: FeedForward | None) -> None:
    """Raise OperandError unless each product has the inputs of its weight."""
    d = x.shape[-1]
    read: list[tuple[str, BiasedWeight, int]] = []
    if attention is not None:
        dim = head_dim(attention.qkv.shape[0], attention.heads, attention.kv_heads)
        read += [("qkv", attention.qkv, d), ("output", attention.output, attention.heads * dim)]
    if ffn is not None:
        read += [("up", ffn.up, d), ("down", ffn.down, ffn.up.shape[0])]
    for name, weight, k in read:
        if weight.shape[1] != k:
            raise OperandError(f"expected {name} of K = {k} inputs, got {weight.shape[1]}")


class Prepared(NamedTuple):
    """`encoder_layer` of bound weights, as a function of `x` and `key_mask`."""

    parts: tuple[SelfAttention | None, LayerNorm, FeedForward | None, LayerNorm]
    bound: cpu.BoundLayer | None  # None: the kernels do not take it

    def __call__(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        return encoder_layers([self], x, key_mask)


def prepare(
    x: Tensor,
    attention: SelfAttention | None,
    attention_norm: LayerNorm,
    ffn: FeedForward | None,
    ffn_norm: LayerNorm,
) -> Prepared:
    """Return `encoder_layer` of weights that are checked and bound once, as a function of `x` and
    `key_mask`, for callers who record nothing (`recording`), gradients neither, and pass torch's
    own tensors (`plain`).

    It is valid while each of the weights is the same tensor at the same address: the caller has to
    know. `x` stands for those to come, which have its dtype. Raises OperandError like
    `encoder_layer`.
    """
    parts = (attention, attention_norm, ffn, ffn_norm)
    operands = arguments(x, *parts)
    check(operands)
    return Prepared(parts, cpu.bind(operands))


def encoder_layers(layers: Sequence[Prepared], x: Tensor, key_mask: Tensor | None) -> Tensor:
    """Compute prepared layers one after the other, the first one of `x`: as one call where the
    kernels take all of them, with no Python in between. Who may call it, and until when, `prepare`
    tells."""
    bound = [layer.bound for layer in layers if layer.bound is not None]
    if bound and len(bound) == len(layers) and forced_backend() in (AUTO, cpu.BACKEND.name):
        return cpu.run_bound(bound, x, key_mask)
    for layer in layers:
        x = encoder_layer(x, *layer.parts, key_mask)
    return x


OP = Op("encoder_layer", check, cpu.BACKEND, reference.BACKEND)
_call = register(OP, Operands, reference.encoder_layer, flops, differentiable=False)
