"""The CUDA backend against its peers on a GPU: the rows that gpu.py writes.

    PYTHONPATH=python python benchmarks/gpu_kernels.py --part linears --json gpu.jsonl

Linears against F.linear (cuBLAS), torch's BSR product and our Triton kernel, 2:4 also against
cuSPARSELt, attention against SDPA (flash and cuDNN) and FlexAttention compiled for the same mask,
norms against torch.compile. Both sides run in CUDA graphs, interleaved; our output is checked
against float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from gpu_rows import (  # first: it takes this folder out of the path
    CHECKED,
    DENSITIES,
    DEVICE,
    DTYPE,
    FEW,
    ROWS,
    SHAPES,
    Bench,
    Rows,
    against_linear,
    block_sparse,
    copies_of,
    error_of,
    on_torch_bsr,
    run_part,
)

# isort: split
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.sparse import to_sparse_semi_structured

from secateurs import ops
from secateurs.formats import LibraryWeight, VectorWeight
from secateurs.plan.attention_rules import Dense, Local, Rule, Sinks, Strided, layout
from secateurs.plan.weight_patterns import Library, VectorNM

NORMS = {"bert-base": (768, False), "bert-large": (1024, False), "llama-3-8b": (4096, True)}
ENCODER: dict[str, Rule] = {
    "dense": Dense(),
    "local 128": Local(128),
    "local 64 | sinks 4": Local(64) | Sinks(4),
    "strided 64 | local 32": Strided(64) | Local(32),
}
DECODER: dict[str, Rule] = {
    "dense": Dense(),
    "local 1024 | sinks 4": Local(1024) | Sinks(4),
    "strided 512 | local 256": Strided(512) | Local(256),
}
HEADS = {  # batch, heads, key/value heads, queries, keys, dim
    "bert-base": (32, 12, 12, 512, 512, 64),
    "bert-large": (8, 16, 16, 512, 512, 64),
    "llama-3-8b": (1, 32, 8, 4096, 4096, 128),
    "llama-3-8b long": (1, 32, 8, 16384, 16384, 128),
    "llama-3-8b decode": (1, 32, 8, 1, 16384, 128),
    "llama-3-8b decode 16": (16, 32, 8, 1, 4096, 128),
}


def linears(bench: Bench, block: int) -> Rows:
    def on_triton(x: Tensor, weight: Any) -> Tensor:
        with ops.use_backend("triton"):
            return ops.block_sparse_linear(x, weight)

    for density in DENSITIES:
        for name, (k, n) in SHAPES.items():
            weight, packed = block_sparse(n, k, block, density)
            bsr = weight.to_sparse_bsr((block, block))
            for m in ROWS:
                x = torch.randn(m, k, device=DEVICE, dtype=DTYPE)
                count = copies_of(packed.values.nbytes) if m <= FEW else 1
                ours = [replace(packed, values=packed.values.clone()) for _ in range(count)]
                peers = {
                    "F.linear": [partial(F.linear, x, weight.clone()) for _ in range(count)],
                    "Triton": [partial(on_triton, x, w) for w in ours],
                }
                if m % 16 == 0:  # what it takes
                    peers["torch BSR"] = [on_torch_bsr(x, bsr.clone()) for _ in range(count)]
                yield from bench.rows(
                    [partial(ops.block_sparse_linear, x, w) for w in ours],
                    peers,
                    against_linear(x, weight),
                    nbytes=packed.values.nbytes,
                    operations=2 * m * packed.values.numel(),
                    op="block_sparse_linear",
                    shape=(m, k, n),
                    block=(block, block),
                    density=density,
                    layer=name,
                )


def patterns(bench: Bench, _block: int) -> Rows:
    for name, (k, n) in SHAPES.items():
        dense = torch.randn(n, k, device=DEVICE, dtype=DTYPE) / k**0.5
        fours, vectors = VectorNM(2, 4, 1).keep(dense), VectorNM(2, 4, 64).keep(dense)
        library = Library.select(dense.float(), (4, 4), 4)
        codes, blocks = library.codes(dense.float()), library.project(dense.float()).to(DTYPE)
        # With the bytes that say where a number stands: an eighth on top, next to none of vectors.
        packed: dict[str, tuple[Any, Tensor, float]] = {
            "2:4": (VectorWeight.pack(dense, fours, 1), dense * fours, 9 / 8),
            "vector 64": (VectorWeight.pack(dense, vectors, 64), dense * vectors, 1),
            "library 4x4": (LibraryWeight.pack(blocks, codes, library.patterns), blocks, 9 / 8),
        }
        for m in ROWS:
            x = torch.randn(m, k, device=DEVICE, dtype=DTYPE)
            for label, (weight, sparse, more) in packed.items():
                if label.startswith("library") and m > FEW:
                    continue
                count = copies_of(weight.values.nbytes) if m <= FEW else 1
                ours = [replace(weight, values=weight.values.clone()) for _ in range(count)]
                same = [sparse.clone() for _ in range(count)]
                peers = {"F.linear": [partial(F.linear, x, w) for w in same]}
                if label == "2:4" and (compressed := semi_structured(same)):
                    peers["cuSPARSELt"] = [partial(F.linear, x, w) for w in compressed]
                yield from bench.rows(
                    [partial(ops.pattern_linear, x, w) for w in ours],
                    peers,
                    against_linear(x, sparse),
                    nbytes=weight.values.nbytes * more,
                    operations=2 * m * weight.values.numel(),
                    op="pattern_linear",
                    shape=(m, k, n),
                    density=weight.density,
                    pattern=label,
                    layer=name,
                )


def semi_structured(weights: list[Tensor]) -> list[Tensor]:
    """2:4 weights as torch packs them; none, and told, where it does not."""
    try:
        return [to_sparse_semi_structured(weight) for weight in weights]
    except Exception as reason:
        print(f"cuSPARSELt at {tuple(weights[0].shape)}: {reason}", file=sys.stderr)
        return []


def norms(bench: Bench, _block: int) -> Rows:
    def layer(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + r
        return total, F.layer_norm(total, w.shape, w, None, 1e-5)

    def rms(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + r
        return total, F.rms_norm(total, w.shape, w, 1e-5)

    for name, (d, is_rms) in NORMS.items():
        formula = rms if is_rms else layer
        compiled = torch.compile(formula, fullgraph=True, dynamic=False)
        for m in ROWS[2:]:
            x, r = torch.randn(2, m, d, device=DEVICE, dtype=DTYPE)
            w = torch.randn(d, device=DEVICE, dtype=DTYPE)
            yield from bench.rows(
                [partial(ops.sum_and_norm, x, r, w, rms=is_rms)],
                {
                    "torch.compile": [partial(compiled, x, r, w)],
                    "torch": [partial(formula, x, r, w)],
                },
                partial(worst_of, formula(x.double(), r.double(), w.double())),
                nbytes=4 * x.nbytes,
                op="add_norm",
                shape=(m, d),
                pattern="RMSNorm" if is_rms else "LayerNorm",
                layer=name,
            )


def worst_of(want: Iterable[Tensor], got: Iterable[Tensor]) -> float:
    """The largest error of several outputs, NaN before all numbers."""
    return max(map(error_of, got, want), key=lambda error: (error != error, error))


def attentions(bench: Bench, block: int) -> Rows:
    def sdpa(kind: SDPBackend, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        with sdpa_kernel(kind):
            grouped = q.shape[1] != k.shape[1]
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    flex = torch.compile(flex_attention, dynamic=False)
    for name, (b, hq, hkv, tq, tk, d) in HEADS.items():
        grouped = hkv < hq
        causal = grouped and tq > 1
        q = torch.randn(b, hq, tq, d, device=DEVICE, dtype=DTYPE)
        k, v = torch.randn(2, b, hkv, tk, d, device=DEVICE, dtype=DTYPE)
        count = copies_of(2 * k.nbytes) if tq == 1 else 1
        caches = [(k.clone(), v.clone()) for _ in range(count)]
        for label, rule in (DECODER if grouped else ENCODER).items():
            blocks, density = None, (tk + 1) / (2 * tk) if causal else 1.0
            if label != "dense":
                blocks = layout(rule, tq, tk, block=block, causal=causal, device=DEVICE)
                density = blocks.density
            peers = {
                "SDPA flash, dense": [
                    partial(sdpa, SDPBackend.FLASH_ATTENTION, q, *c, causal) for c in caches
                ],
                "SDPA cuDNN, dense": [
                    partial(sdpa, SDPBackend.CUDNN_ATTENTION, q, *c, causal) for c in caches
                ],
            }
            if blocks is not None and tq > 1:
                mask = create_block_mask(
                    mask_of(rule, causal), None, None, tq, tk, device=DEVICE.type
                )
                peers["FlexAttention, same mask"] = [
                    partial(flex, q, *c, block_mask=mask, enable_gqa=grouped) for c in caches
                ]
            yield from bench.rows(
                [partial(ops.attention, q, *c, causal=causal, pattern=blocks) for c in caches],
                peers,
                against_attention(q, k, v, rule, causal),
                nbytes=2 * k.nbytes * density if tq == 1 else 0,
                operations=4 * b * hq * tq * tk * d * density,
                op="attention",
                shape=(b, hq, hkv, tq, tk, d),
                block=None if blocks is None else (block, block),
                density=density,
                pattern=label,
                layer=name,
            )


def mask_of(rule: Rule, causal: bool) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A rule as FlexAttention wants it, of as many queries as keys."""

    def mask(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return rule.allows(i, j) & (i >= j) if causal else rule.allows(i, j)

    return mask


def against_attention(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, causal: bool
) -> Callable[[Tensor], float]:
    """The check of attention over a rule: relative error of some queries of an output."""
    (_, hq, tq, d), (hkv, tk) = q.shape, k.shape[1:3]
    some = torch.randperm(tq, device=DEVICE)[: CHECKED // q.shape[0]]
    at, keys = some[:, None] + tk - tq, torch.arange(tk, device=DEVICE)
    allowed = rule.allows(at, keys) & (keys <= at) if causal else rule.allows(at, keys)

    def check(y: Tensor) -> float:
        want = []
        for h in range(hq):  # one at a time: the scores are in float64
            kh, vh = (t[:, h // (hq // hkv)].double() for t in (k, v))
            scores = q[:, h, some].double() @ kh.mT / d**0.5
            want.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ vh)
        return worst_of(want, y[:, some].unbind(2))

    return check


if __name__ == "__main__":
    sys.exit(
        run_part(
            __doc__.split("\n")[0],
            "cuda",
            {"linears": linears, "attentions": attentions, "patterns": patterns, "norms": norms},
        )
    )
