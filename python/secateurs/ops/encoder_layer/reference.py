"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from secateurs.ops._core.dispatch import Backend
from secateurs.ops.add_norm import operands as norm
from secateurs.ops.add_norm.reference import add_norm
from secateurs.ops.attention import operands as heads
from secateurs.ops.attention.reference import attention
from secateurs.ops.block_sparse_linear import operands as linear
from secateurs.ops.block_sparse_linear.reference import block_sparse_linear
from secateurs.ops.encoder_layer.operands import Linear, Operands
from secateurs.ops.int8_linear import operands as int8
from secateurs.ops.int8_linear.reference import int8_linear


def encoder_layer(operands: Operands) -> Tensor:
    """Compute the layer as a chain of the references of its parts."""
    x, layer = operands.x, operands.layer()
    hq, hkv = operands.heads, operands.kv_heads
    if layer.qkv.values is not None:
        joint = _linear(x, layer.qkv).unflatten(-1, (hq + 2 * hkv, -1)).transpose(1, 2)
        q, k, v = joint.split([hq, hkv, hkv], dim=1)
        scale, pattern = max(q.shape[-1], 1) ** -0.5, (None, None, None, None)
        hidden = (operands.kv_of, operands.key_mask, None, False)
        context = attention(heads.Operands(q, k, v, *hidden, scale, *pattern))
        x = _linear(context.flatten(2), layer.output, residual=x)
    x = _norm(x, layer.attention_norm, operands.attention_eps)
    if layer.up.values is not None:
        h = _linear(x, layer.up, operands.activation)
        x = _linear(h, layer.down, residual=x)
    return _norm(x, layer.ffn_norm, operands.ffn_eps)


def _linear(
    x: Tensor, part: Linear, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    values, scales, indptr, indices, bias, n = part
    assert values is not None
    assert indptr is not None
    assert indices is not None
    if scales is not None:
        coded = (values, scales, indptr, indices)
        return int8_linear(int8.Operands(x, *coded, bias, activation, None, residual))
    packed = (values, indptr, indices, n)
    return block_sparse_linear(
        linear.Operands(x, *packed, bias, activation, multiplier=None, residual=residual)
    )


def _norm(x: Tensor, scale: Sequence[Tensor | None], eps: float) -> Tensor:
    weight, bias = scale
    assert weight is not None
    return add_norm(norm.Operands(x, None, weight, bias, eps, rms=False, keep_sum=False))


BACKEND = Backend("reference", refuse=lambda _: None, run=encoder_layer)
