"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/encoder_layer.cpp)."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.errors import OperandError
from secateurs.ops._backends import cpu
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.recording import plain
from secateurs.ops.attention import check_key_mask
from secateurs.ops.attention.cpu import key_value_heads
from secateurs.ops.block_sparse_linear.cpu import (
    ACTIVATION_NUMBER,
    block_rows,
    refuse_weight,
)
from secateurs.ops.encoder_layer.operands import Linear, operands


class Bound:
    """One layer by the addresses of its contiguous weights, good for as long as they are where they
    were.

    Between kernels that fill the caches, looking at each of two dozen tensors takes longer than a
    small layer; whether they are the same ones as before is quickly told.
    """

    def __init__(
        self,
        x: Tensor,
        weights: list[Tensor | None],
        features: list[int],
        heads: int,
        kv_heads: int,
        kv_of: Tensor | None,
        activation: str,
        attention_eps: float,
        ffn_eps: float,
    ) -> None:
        self._constants = (features, heads, kv_heads, activation, attention_eps, ffn_eps)
        self._known = [_nothing if w is None else weakref.ref(w) for w in (*weights, kv_of)]
        self._where = [cpu.address(w) for w in (*weights, kv_of)]
        self._dtype, self._d = x.dtype, x.shape[2]
        layer = operands(weights, features)
        dim = layer.qkv.out_features // max(heads + 2 * kv_heads, 1)
        self._heads = key_value_heads(heads, kv_heads) if kv_of is None else kv_of
        self._layer = (
            (
                _linear(layer.qkv, self._d),
                _linear(layer.output, heads * dim),
                _linear(layer.up, self._d),
                _linear(layer.down, layer.up.out_features),
            ),
            (
                (*map(cpu.address, layer.attention_norm), attention_eps),
                (*map(cpu.address, layer.ffn_norm), ffn_eps),
            ),
            heads,
            kv_heads,
            dim,
            self._heads.data_ptr(),
            ACTIVATION_NUMBER[activation],
        )

    def knows(self, weights: list[Tensor | None], kv_of: Tensor | None, *constants: object) -> bool:
        """Whether this is the layer of these operands."""
        return constants == self._constants and all(
            ref() is w and cpu.address(w) == where
            for ref, w, where in zip(self._known, (*weights, kv_of), self._where, strict=True)
        )

    def __call__(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """The layer of `x` `[B, T, d]` under `key_mask` `[B, T]`."""
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
        rows = cpu.matrix(x)
        key_mask = None if key_mask is None else key_mask.contiguous()
        try:
            _C_cpu.encoder_layer(
                cpu.isa_number(),
                cpu.DTYPES[self._dtype],
                rows.data_ptr(),
                rows.stride(0),
                batch,
                tokens,
                d,
                cpu.address(key_mask),
                y.data_ptr(),
                torch.get_num_threads(),
                *self._layer,
            )
        except ValueError as error:
            raise OperandError(str(error)) from None
        return y


def _refuse(x: Tensor, weights: list[Tensor | None], features: list[int], *_: object) -> str | None:
    if x.device.type != "cpu":
        return f"runs on the CPU, got tensors on {x.device}"
    if x.dtype not in cpu.DTYPES:
        return f"takes float32 and bfloat16, got {x.dtype}"
    strange = next((type(w).__name__ for w in weights if not plain(w)), None)
    if strange is not None:
        return f"takes torch's own tensors, got a weight of class {strange}"
    for values, indptr, indices, *_ in operands(weights, features)[:4]:
        if values is not None and indptr is not None and indices is not None:
            reason = refuse_weight(x, values, indptr, indices)
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
    *rest: Any,
) -> Tensor:
    # Copies are gone at the next call, which will therefore not know them.
    whole = [None if w is None else w.contiguous() for w in (*weights, kv_of)]
    bound = Bound(x, whole[:-1], features, heads, kv_heads, whole[-1], *rest)
    remember(weights[-2], bound)
    return bound(x, key_mask)


def remember(norm: Tensor, bound: Bound) -> None:
    """Keep `bound` for as long as the weight of its last norm lives."""
    name = id(norm)
    if name not in _bound:
        weakref.finalize(norm, _bound.pop, name, None)
    _bound[name] = bound


def recall(norm: Tensor | None) -> Bound | None:
    """The layer last bound whose last norm has this weight."""
    return _bound.get(id(norm))


_bound: dict[int, Bound] = {}


def _nothing() -> None:
    return None


def _linear(linear: Linear, k: int) -> tuple[int, ...]:
    """A product as the binding takes it."""
    values, indptr, indices, bias, n = linear
    if values is None or indptr is None or indices is None:
        return (0,) * 9
    blocks = block_rows(values, indptr)
    return (*map(cpu.address, (values, indptr, indices)), n, k, *blocks, cpu.address(bias))


BACKEND = Backend("cpu", _refuse, _run)
