"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

from torch import Tensor

from secateurs.ops._core.dispatch import Backend
from secateurs.ops.add_norm.reference import add_norm
from secateurs.ops.attention.reference import attention
from secateurs.ops.block_sparse_linear.reference import block_sparse_linear
from secateurs.ops.encoder_layer.operands import Linear, operands


def encoder_layer(
    x: Tensor,  # [B, T, d]
    weights: list[Tensor | None],
    features: list[int],
    heads: int,
    kv_heads: int,
    kv_of: Tensor | None,
    key_mask: Tensor | None,
    activation: str,
    attention_eps: float,
    ffn_eps: float,
) -> Tensor:
    layer = operands(weights, features)
    if layer.qkv.values is not None:
        joint = _linear(x, layer.qkv).unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(1, 2)
        q, k, v = joint.split([heads, kv_heads, kv_heads], dim=1)
        scale = max(q.shape[-1], 1) ** -0.5
        context = attention(q, k, v, kv_of, key_mask, None, False, scale, *(None,) * 4)
        x = _linear(context.flatten(2), layer.output, residual=x)
    x = add_norm(x, None, *layer.attention_norm, attention_eps, False, False)
    if layer.up.values is not None:
        h = _linear(x, layer.up, activation)
        x = _linear(h, layer.down, residual=x)
    return add_norm(x, None, *layer.ffn_norm, ffn_eps, False, False)


def _linear(
    x: Tensor, linear: Linear, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    values, indptr, indices, bias, n = linear
    return block_sparse_linear(x, values, indptr, indices, n, bias, activation, None, residual)


BACKEND = Backend("reference", refuse=lambda *_: None, run=encoder_layer)
