"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/encoder_layer.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.errors import OperandError
from secateurs.ops import cpu
from secateurs.ops._dispatch import Backend
from secateurs.ops.attention.cpu import key_value_heads
from secateurs.ops.block_sparse_linear.cpu import (
    ACTIVATION_NUMBER,
    block_rows,
    refuse_weight,
)
from secateurs.ops.encoder_layer.operands import Linear, operands


def _refuse(x: Tensor, weights: list[Tensor | None], features: list[int], *_: object) -> str | None:
    if x.device.type != "cpu":
        return f"runs on the CPU, got tensors on {x.device}"
    for linear in operands(weights, features)[:4]:
        if linear.values is not None:
            reason = refuse_weight(x, linear.values, linear.indptr, linear.indices)
            if reason is not None:
                return reason
    return None


def _run(
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
) -> Tensor:
    layer = operands(weights, features)
    y = x.new_empty(x.shape)
    rows = cpu.matrix(x)
    batch, tokens, d = x.shape
    dim = layer.qkv.out_features // max(heads + 2 * kv_heads, 1)
    kv_of = key_value_heads(heads, kv_heads) if kv_of is None else kv_of.contiguous()
    key_mask = None if key_mask is None else key_mask.contiguous()
    # Views of their own: a copy must live until the kernels have run.
    norms = [None if p is None else p.contiguous() for p in weights[16:]]
    biases = [None if w is None else w.contiguous() for w in weights[3:16:4]]
    qkv, output, up, down = layer[:4]
    try:
        _C_cpu.encoder_layer(
            cpu.isa_number(),
            cpu.DTYPES[x.dtype],
            rows.data_ptr(),
            rows.stride(0),
            batch,
            tokens,
            d,
            (
                _linear(qkv, d, biases[0]),
                _linear(output, heads * dim, biases[1]),
                _linear(up, d, biases[2]),
                _linear(down, up.out_features, biases[3]),
            ),
            (
                (_address(norms[0]), _address(norms[1]), attention_eps),
                (_address(norms[2]), _address(norms[3]), ffn_eps),
            ),
            heads,
            kv_heads,
            dim,
            kv_of.data_ptr(),
            _address(key_mask),
            ACTIVATION_NUMBER[activation],
            y.data_ptr(),
            torch.get_num_threads(),
        )
    except ValueError as error:
        raise OperandError(str(error)) from None
    return y


def _linear(linear: Linear, k: int, bias: Tensor | None) -> tuple[int, ...]:
    """A product as the binding takes it."""
    values, indptr, indices, _, n = linear
    if values is None or indptr is None or indices is None:
        return (0,) * 9
    rows, bk, bn = block_rows(values, indptr)
    return (
        values.data_ptr(),
        indptr.data_ptr(),
        indices.data_ptr(),
        n,
        k,
        rows,
        bk,
        bn,
        _address(bias),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


BACKEND = Backend("cpu", _refuse, _run)
