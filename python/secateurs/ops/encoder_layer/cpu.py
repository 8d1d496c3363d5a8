"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/encoder_layer.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import address, contiguous, rows_of
from secateurs.ops._core.recording import plain
from secateurs.ops.attention.cpu import key_value_heads
from secateurs.ops.attention.operands import check_key_mask
from secateurs.ops.block_sparse_linear.cpu import block_rows, refuse_weight
from secateurs.ops.encoder_layer.operands import Linear, Operands
from secateurs.ops.int8_linear import cpu as int8


class BoundLayer:
    """A layer bound to the addresses of its contiguous weights: valid while they stay where they
    are."""

    def __init__(self, operands: Operands) -> None:
        x, _, _, heads, kv_heads, kv_of, _, activation, *eps = operands
        self.dtype, self.d = x.dtype, x.shape[2]
        layer = operands.layer()
        dim = layer.qkv.out_features // max(heads + 2 * kv_heads, 1)
        self._heads = key_value_heads(heads, kv_heads) if kv_of is None else kv_of
        norms = zip((layer.attention_norm, layer.ffn_norm), eps, strict=True)
        attention_norm, ffn_norm = (
            cpu.kernels.Norm(weight=address(weight), bias=address(bias), eps=each)
            for (weight, bias), each in norms
        )
        self.bound = cpu.kernels.EncoderLayer(
            dtype=cpu.DTYPES[x.dtype],
            d=self.d,
            qkv=_linear(layer.qkv, self.d),
            output=_linear(layer.output, heads * dim),
            up=_linear(layer.up, self.d),
            down=_linear(layer.down, layer.up.out_features),
            attention_norm=attention_norm,
            ffn_norm=ffn_norm,
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            kv_of=self._heads.data_ptr(),
            activation=cpu.ACTIVATIONS[activation],
        )


def run_bound(layers: Sequence[BoundLayer], x: Tensor, key_mask: Tensor | None) -> Tensor:
    """Run the layers in turn, the first one on `x` `[B, T, d]`, all under `key_mask` `[B, T]`."""
    first = layers[0]
    batch, tokens, d = x.shape if x.dim() == 3 else (0, 0, -1)
    if d != first.d or x.dtype != first.dtype or x.device.type != "cpu":
        raise OperandError(
            f"expected x [B, T, {first.d}] of {first.dtype} on the CPU, got {tuple(x.shape)} "
            f"of {x.dtype} on {x.device}"
        )
    if key_mask is not None and key_mask.device != x.device:
        raise OperandError(f"expected key_mask on {x.device} like x, got {key_mask.device}")
    check_key_mask(key_mask, batch, tokens)
    y = x.new_empty(x.shape)
    rows = rows_of(x)
    key_mask = contiguous(key_mask)
    try:
        cpu.kernels.encoder_layers(
            layers=[layer.bound for layer in layers],
            isa=cpu.isa_number(),
            x=rows.data_ptr(),
            x_stride=rows.stride(0),
            batch=batch,
            tokens=tokens,
            key_mask=address(key_mask),
            y=y.data_ptr(),
            threads=torch.get_num_threads(),
        )
    except ValueError as error:
        raise OperandError(str(error)) from None
    return y


def _refuse(operands: Operands) -> str | None:
    x = operands.x
    if (reason := cpu.refuse(x)) is not None:
        return reason
    strange = next((type(w).__name__ for w in operands.weights if not plain(w)), None)
    if strange is not None:
        return f"takes torch's own tensors, got a weight of class {strange}"
    for values, scales, indptr, indices, *_ in operands.layer()[:4]:
        if values is not None and indptr is not None and indices is not None:
            if scales is None:
                reason = refuse_weight(x, values, indptr, indices)
            else:
                reason = int8.refuse_weight(values, scales, indptr, indices)
            if reason is not None:
                return reason
    return None


def _run(operands: Operands) -> Tensor:
    weights = [contiguous(w) for w in operands.weights]
    held = operands._replace(weights=weights, kv_of=contiguous(operands.kv_of))
    return run_bound([BoundLayer(held)], operands.x, operands.key_mask)


def bind(operands: Operands) -> BoundLayer | None:
    """Bind operands that were checked; None where the kernel refuses them, or weights do not lie
    together: copies would not follow them."""
    tensors = (*operands.weights, operands.kv_of)
    if _refuse(operands) is None and all(t is None or t.is_contiguous() for t in tensors):
        return BoundLayer(operands)
    return None


def _linear(linear: Linear, k: int) -> Any:
    """Return a product as the binding takes it; without weight, one without outputs."""
    values, scales, indptr, indices, bias, n = linear
    if values is None or indptr is None or indices is None:
        return cpu.kernels.PackedLinear()
    if scales is None:
        rows, bk, bn = block_rows(values, indptr)
    else:
        rows, bk, bn = indptr.shape[0] - 1, 4 * values.shape[1], values.shape[2]
    return cpu.kernels.PackedLinear(
        values=values.data_ptr(),
        scales=address(scales),
        indptr=indptr.data_ptr(),
        indices=indices.data_ptr(),
        n=n,
        k=k,
        rows=rows,
        bk=bk,
        bn=bn,
        bias=address(bias),
    )


BACKEND = Backend("cpu", _refuse, _run)
