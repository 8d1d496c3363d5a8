"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/encoder_layer.cpp)."""

from __future__ import annotations

import weakref
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


class Bound:
    """A layer bound to the addresses of its contiguous weights, valid while no weight has moved.

    Between kernels that fill the caches, looking at each of two dozen tensors takes longer than a
    small layer; comparing them with the tensors of the call before is quick.
    """

    def __init__(self, operands: Operands) -> None:
        x, weights, features, heads, kv_heads, kv_of, _, activation, *eps = operands
        self._constants = (features, heads, kv_heads, activation, *eps)
        self._known = [_nothing if w is None else weakref.ref(w) for w in (*weights, kv_of)]
        self._where = [address(w) for w in (*weights, kv_of)]
        self._dtype, self._d = x.dtype, x.shape[2]
        layer = operands.layer()
        dim = layer.qkv.out_features // max(heads + 2 * kv_heads, 1)
        self._heads = key_value_heads(heads, kv_heads) if kv_of is None else kv_of
        norms = zip((layer.attention_norm, layer.ffn_norm), eps, strict=True)
        attention_norm, ffn_norm = (
            cpu.kernels.Norm(weight=address(weight), bias=address(bias), eps=each)
            for (weight, bias), each in norms
        )
        self._layer = cpu.kernels.EncoderLayer(
            dtype=cpu.DTYPES[x.dtype],
            d=self._d,
            qkv=_linear(layer.qkv, self._d),
            output=_linear(layer.output, heads * dim),
            up=_linear(layer.up, self._d),
            down=_linear(layer.down, layer.up.out_features),
            attention_norm=attention_norm,
            ffn_norm=ffn_norm,
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            kv_of=self._heads.data_ptr(),
            activation=cpu.ACTIVATIONS[activation],
        )

    def knows(self, operands: Operands) -> bool:
        """Tell whether this is the layer of these operands."""
        _, weights, features, heads, kv_heads, kv_of, _, *rest = operands
        return (features, heads, kv_heads, *rest) == self._constants and all(
            ref() is w and address(w) == where
            for ref, w, where in zip(self._known, (*weights, kv_of), self._where, strict=True)
        )

    def __call__(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """Run the layer on `x` `[B, T, d]` under `key_mask` `[B, T]`."""
        batch, tokens, d = x.shape if x.dim() == 3 else (0, 0, -1)
        if d != self._d or x.dtype != self._dtype or x.device.type != "cpu":
            raise OperandError(
                f"expected x [B, T, {self._d}] of {self._dtype} on the CPU, got {tuple(x.shape)} "
                f"of {x.dtype} on {x.device}"
            )
        if key_mask is not None and key_mask.device != x.device:
            raise OperandError(f"expected key_mask on {x.device} like x, got {key_mask.device}")
        check_key_mask(key_mask, batch, tokens)
        y = x.new_empty(x.shape)
        rows = rows_of(x)
        key_mask = contiguous(key_mask)
        try:
            cpu.kernels.encoder_layer(
                layer=self._layer,
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
    # Copies are gone at the next call, which will therefore not know them.
    weights = [contiguous(w) for w in operands.weights]
    bound = Bound(operands._replace(weights=weights, kv_of=contiguous(operands.kv_of)))
    last = operands.weights[-2]
    assert last is not None
    remember(last, bound)
    return bound(operands.x, operands.key_mask)


def remember(norm: Tensor, bound: Bound) -> None:
    """Keep `bound` for as long as the weight of its last norm lives."""
    name = id(norm)
    if name not in _bound:
        weakref.finalize(norm, _bound.pop, name, None)
    _bound[name] = bound


def recall(norm: Tensor | None) -> Bound | None:
    """Return the layer last bound whose last norm has this weight."""
    return _bound.get(id(norm))


_bound: dict[int, Bound] = {}


def _nothing() -> None:
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
