"""float32 and bfloat16 on the CPU by our own kernels (csrc/cpu/encoder_layer.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs import _C_cpu  # type: ignore[attr-defined]
from secateurs.errors import OperandError
from secateurs.ops import cpu
from secateurs.ops._dispatch import Backend
from secateurs.ops.attention import check_key_mask
from secateurs.ops.attention.cpu import key_value_heads
from secateurs.ops.block_sparse_linear.cpu import (
    ACTIVATION_NUMBER,
    block_rows,
    refuse_weight,
)
from secateurs.ops.encoder_layer.operands import Linear, operands


class Bound:
    """The call of one layer by the addresses of its weights, which must be contiguous and outlive
    it."""

    def __init__(
        self,
        d: int,
        dtype: torch.dtype,
        weights: list[Tensor | None],
        features: list[int],
        heads: int,
        kv_heads: int,
        kv_of: Tensor | None,
        activation: str,
        attention_eps: float,
        ffn_eps: float,
    ) -> None:
        layer = operands(weights, features)
        dim = layer.qkv.out_features // max(heads + 2 * kv_heads, 1)
        self._kv_of = key_value_heads(heads, kv_heads) if kv_of is None else kv_of.contiguous()
        self._dtype, self._d = dtype, d
        self._layer = (
            (
                _linear(layer.qkv, d),
                _linear(layer.output, heads * dim),
                _linear(layer.up, d),
                _linear(layer.down, layer.up.out_features),
            ),
            (
                (*map(_address, layer.attention_norm), attention_eps),
                (*map(_address, layer.ffn_norm), ffn_eps),
            ),
            heads,
            kv_heads,
            dim,
            self._kv_of.data_ptr(),
            ACTIVATION_NUMBER[activation],
        )

    def __call__(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """The layer of `x` `[B, T, d]` under `key_mask` `[B, T]`."""
        batch, tokens, d = x.shape if x.dim() == 3 else (0, 0, -1)
        if d != self._d or x.dtype != self._dtype:
            raise OperandError(
                f"expected x [B, T, {self._d}] of {self._dtype}, got {tuple(x.shape)} of {x.dtype}"
            )
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
                _address(key_mask),
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
    *rest: object,
) -> Tensor:
    weights = [None if weight is None else weight.contiguous() for weight in weights]
    bound = Bound(x.shape[2], x.dtype, weights, features, heads, kv_heads, kv_of, *rest)
    return bound(x, key_mask)


def _linear(linear: Linear, k: int) -> tuple[int, ...]:
    """A product as the binding takes it."""
    values, indptr, indices, bias, n = linear
    if values is None or indptr is None or indices is None:
        return (0,) * 9
    blocks = block_rows(values, indptr)
    return (*map(_address, (values, indptr, indices)), n, k, *blocks, _address(bias))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


BACKEND = Backend("cpu", _refuse, _run)
