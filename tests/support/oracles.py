"""Independent formulas in float64: they judge even the reference, and share no code with the
package."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Relative error (root mean square over that of the truth) that a correct kernel of a dtype stays
# below.
TOLERANCE = {"float64": 1e-12, "float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}


def relative_error(got: Any, truth: Array) -> float:
    """Root mean square error over the root mean square of the truth; infinite where either is not
    finite."""
    got = _double(got)
    assert got.shape == truth.shape, f"shape {got.shape}, expected {truth.shape}"
    if not truth.size:
        return 0.0
    error = np.sqrt(np.mean((got - truth) ** 2)) / max(np.sqrt(np.mean(truth**2)), 1e-30)
    return float(error) if np.isfinite(error) else math.inf


def activate(name: str, x: Array) -> Array:
    """The activation `name`, element by element."""
    if name == "none":
        return x
    if name == "relu":
        return np.maximum(x, 0)
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "gelu_tanh":
        return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert name == "gelu"
    return x * 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2))


def _double(x: Any) -> Array:
    """Also of tensors whose dtype numpy lacks."""
    return np.asarray(x.double() if hasattr(x, "double") else x, dtype=np.float64)


def dense_weight(weight: Any) -> Array:
    """A block-sparse weight `[N, K]`, expanded block by block."""
    n, k = weight.shape
    values = np.asarray(weight.values.double())  # [nnz, bk, bn], or in pairs [nnz, bk / 2, bn, 2]
    indptr, indices = weight.indptr.tolist(), weight.indices.tolist()
    if values.ndim == 4:
        first, second = values[..., 0], values[..., 1]
        values = np.empty((len(first), 2 * first.shape[1], first.shape[2]))
        values[:, 0::2], values[:, 1::2] = first, second
    _, bk, bn = values.shape
    dense = np.zeros(((len(indptr) - 1) * bn, -(-k // max(bk, 1)) * bk))
    for row in range(len(indptr) - 1):
        for block in range(indptr[row], indptr[row + 1]):
            column = indices[block]
            dense[row * bn : (row + 1) * bn, column * bk : (column + 1) * bk] = values[block].T
    return dense[:n, :k]


def dense_codes(weight: Any) -> Array:
    """The codes `[N, K]` of a weight in codes, zeros where none is stored, expanded one by one."""
    if hasattr(weight, "places"):
        return _codes_of_vectors(weight)
    n, k = weight.shape
    values = np.asarray(weight.values).astype(np.int64) - 128  # [nnz, bk / 4, bn, 4]
    indptr, indices = weight.indptr.tolist(), weight.indices.tolist()
    _, quads, bn, _ = values.shape
    columns = -(-k // max(4 * quads, 1))
    codes = np.zeros(((len(indptr) - 1) * bn, columns * 4 * quads), dtype=np.int64)
    for row in range(len(indptr) - 1):
        for block in range(indptr[row], indptr[row + 1]):
            for quad in range(quads):
                column = indices[block] * 4 * quads + 4 * quad
                codes[row * bn : (row + 1) * bn, column : column + 4] = values[block, quad]
    return codes[:n, :k]


def _codes_of_vectors(weight: Any) -> Array:
    (n, k), values = weight.shape, np.asarray(weight.values).astype(np.int64)  # [words, v, 4]
    v, groups = values.shape[1], -(-k // 64)
    codes = np.zeros((n, groups * 64), dtype=np.int64)
    for pair, (begin, end) in enumerate(itertools.pairwise(weight.indptr.tolist())):
        row, first = pair // groups * v, pair % groups * 64
        for word in range(begin, end):
            for i, place in enumerate(weight.places[word].tolist()):
                codes[row : row + v, first + place] += values[word, :, i]
    return codes[:, :k]


def int8_linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    activation: str = "none",
    multiplier: Any = None,
    residual: Any = None,
) -> Array:
    """act(x' W^T + bias) * multiplier + residual, x' made of whole multiples, -127 .. 127, of one
    127th of the largest magnitude of each 64 inputs of a row. What float32 makes of that 127th and
    of x over it decides ties, so here too it is used for choosing the multiple, and for nothing
    else."""
    x = _double(x)
    near = np.zeros_like(x)
    for first in range(0, x.shape[-1], 64):
        group = x[..., first : first + 64]
        largest = np.abs(group).max(-1, keepdims=True)
        largest[largest == 0] = 1
        inverse = (np.float32(127) / largest.astype(np.float32)).astype(np.float32)
        multiples = np.rint(group.astype(np.float32) * inverse)
        near[..., first : first + 64] = multiples.astype(np.float64) * (largest / 127)
    dense = dense_codes(weight) * _double(weight.scales)[:, None]
    y = activate(activation, near @ dense.T + (0 if bias is None else _double(bias)))
    y = y if multiplier is None else y * _double(multiplier)
    return y if residual is None else y + _double(residual)


def block_sparse_linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    activation: str = "none",
    multiplier: Any = None,
    residual: Any = None,
) -> Array:
    """act(x W^T + bias) * multiplier + residual."""
    y = _double(x) @ dense_weight(weight).T
    if bias is not None:
        y = y + _double(bias)
    y = activate(activation, y)
    if multiplier is not None:
        y = y * _double(multiplier)
    return y if residual is None else y + _double(residual)


def add_norm(
    x: Any, residual: Any, weight: Any, bias: Any, eps: float, rms: bool
) -> tuple[Array, Array]:
    """x + residual and its norm, row by row, sums without rounding error."""
    total = np.asarray(x, dtype=np.float64)
    if residual is not None:
        total = total + np.asarray(residual, dtype=np.float64)
    weight = np.asarray(weight, dtype=np.float64)
    d = total.shape[-1]
    y = np.empty_like(total)
    for i in np.ndindex(total.shape[:-1]):
        row = total[i] if rms else total[i] - math.fsum(total[i]) / d
        y[i] = row / math.sqrt(math.fsum(row**2) / d + eps) * weight
    return total, y if bias is None else y + np.asarray(bias, dtype=np.float64)


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    kv_of: Any = None,
    key_mask: Any = None,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
    pattern: Any = None,
    softcap: float | None = None,
) -> Array:
    """Softmax attention `[B, Tq, Hq, D]`, one query at a time over the keys it may attend."""
    q, k, v = (np.asarray(t, dtype=np.float64) for t in (q, k, v))
    (batch, heads, tq, dim), (kv_heads, tk) = q.shape, k.shape[1:3]
    scale = dim**-0.5 if scale is None else scale
    out = np.zeros((batch, tq, heads, dim))
    bias = np.zeros((batch, heads, tq, tk))
    stored = np.ones((heads, tq, tk), dtype=bool) if pattern is None else _stored(pattern, heads)
    if mask is not None:
        mask = np.asarray(mask)
        bias = bias + (np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask)
    for b in range(batch):
        for h in range(heads):
            g = int(kv_of[h]) if kv_of is not None else h * kv_heads // heads
            for i in range(tq):
                seen = stored[h, i] & (bias[b, h, i] > -np.inf)
                if key_mask is not None:
                    seen = seen & np.asarray(key_mask)[b]
                if causal:
                    seen = seen & (np.arange(tk) <= i + tk - tq)
                if not seen.any():
                    continue
                score = scale * (k[b, g, seen] @ q[b, h, i])
                score = score if softcap is None else softcap * np.tanh(score / softcap)
                score = score + bias[b, h, i, seen]
                weight = np.exp(score - score.max())
                out[b, i, h] = weight @ v[b, g, seen] / weight.sum()
    return out


def encoder_layer(
    x: Any,
    attention_part: Any,
    attention_norm: Any,
    ffn: Any,
    ffn_norm: Any,
    key_mask: Any = None,
) -> Array:
    """norm(a + ffn(a)) of a = norm(x + attention(x)), in float64 throughout."""

    def norm(x: Array, p: Any) -> Array:
        bias = None if p.bias is None else _double(p.bias)
        return add_norm(x, None, _double(p.weight), bias, p.eps, rms=False)[1]

    state = _double(x)
    if attention_part is not None:
        p = attention_part
        joint = block_sparse_linear(state, p.qkv, p.qkv.bias)
        every = p.heads + 2 * p.kv_heads
        heads = joint.reshape(*joint.shape[:2], every, joint.shape[2] // every).swapaxes(1, 2)
        q, k, v = np.split(heads, [p.heads, p.heads + p.kv_heads], axis=1)
        context = attention(q, k, v, kv_of=p.kv_of, key_mask=key_mask)
        context = context.reshape(*context.shape[:2], context.shape[2] * context.shape[3])
        state = state + block_sparse_linear(context, p.output, p.output.bias)
    state = norm(state, attention_norm)
    if ffn is not None:
        h = block_sparse_linear(state, ffn.up, ffn.up.bias, ffn.up.activation)
        state = state + block_sparse_linear(h, ffn.down, ffn.down.bias)
    return norm(state, ffn_norm)


def _stored(pattern: Any, heads: int) -> Array:
    """Which scores the blocks of a pattern allow, bool `[heads, Tq, Tk]`."""
    tq, tk = pattern.shape
    stored = np.zeros((heads, tq, tk), dtype=bool)
    masks, size = np.asarray(pattern.masks), pattern.masks.shape[-1]
    for h in range(heads):
        ends = pattern.indptr[h if len(pattern.indptr) > 1 else 0].tolist()
        for row, (first, last) in enumerate(pairwise(ends)):
            for n in range(first, last):
                i, j, which = row * size, int(pattern.indices[n]) * size, int(pattern.partial[n])
                mask = np.ones((size, size), dtype=bool) if which < 0 else masks[which]
                stored[h, i : i + size, j : j + size] = mask[: tq - i, : tk - j]
    return stored
