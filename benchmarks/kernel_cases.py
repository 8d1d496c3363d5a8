"""What benchmarks/kernels.py times: the shapes of each op, its call, and the calls of its peers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs import ops
from secateurs.formats import (
    BlockSparseWeight,
    Int8VectorWeight,
    Int8Weight,
    LibraryWeight,
    VectorWeight,
)
from secateurs.plan.attention_rules import BlockLayout, Global, Local, layout
from secateurs.plan.weight_patterns import Library, TwoFour, VectorNM

LINEAR_SHAPES = (  # M, K, N
    (1024, 768, 3072),
    (1024, 3072, 768),
    (128, 768, 3072),
    (16, 768, 3072),
    (1, 768, 3072),
    (1024, 384, 1536),
    (1024, 1536, 384),
)
INT8_SHAPES = ((1024, 384, 1536), (1024, 1536, 384), (1024, 768, 3072), (128, 768, 3072))
FLOATS = (torch.float32, torch.bfloat16)  # of our own kernels beside those of codes
# 50 % of the weights stay; (n, m, outputs that share the choice).
VECTOR_PATTERNS = ((2, 4, 32), (2, 4, 16), (4, 8, 32), (8, 16, 32), (1, 4, 32))
DECODE_SHAPES = ((1, 3072, 3072), (2, 3072, 3072), (4, 3072, 3072), (16, 3072, 3072))
NORM_SHAPES = ((1024, 384), (1024, 768), (128, 384), (1024, 2048))
BEYOND_CACHES = 600e6  # bytes of copies of a weight that calls take in turn
ATTENTION_SHAPES = ((8, 12, 128, 64), (8, 12, 512, 64), (8, 12, 128, 32), (1, 12, 2048, 64))
PATTERN_SHAPES = ((8, 12, 512, 64), (1, 12, 2048, 64))


@dataclass(frozen=True)
class Case:
    """One shape of one op: our call, the peers' calls, the truth, and the work it is."""

    op: str
    shape: tuple[int, ...]
    density: float
    block: tuple[int, int] | None
    backend: str | None
    ours: Callable[[], Tensor]
    peers: dict[str, Callable[[], Tensor]]
    truth: Tensor
    probe: Tensor
    """Any tensor of the device to be timed."""
    flops: float
    nbytes: float


def linear_cases(options: argparse.Namespace) -> Iterator[Case]:
    block = options.block
    for shape in options.shapes or LINEAR_SHAPES:
        m, k, n = shape
        torch.manual_seed(0)
        x = torch.randn(m, k, dtype=options.dtype, device=options.device)
        dense = torch.randn(n, k, dtype=options.dtype, device=options.device) / k**0.5
        for density in options.densities:
            weight, packed = dense, BlockSparseWeight.pack_dense(dense)
            if density < 1:
                keep = _random_blocks(n // block[0], k // block[1], density).to(options.device)
                weight = dense * keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
                packed = BlockSparseWeight.pack(weight, keep, block)
            packed = packed.as_read()
            yield Case(
                op="block_sparse_linear",
                shape=shape,
                density=density,
                block=packed.block,
                backend=ops.explain_choice(ops.block_sparse_linear, x, packed).backend,
                ours=lambda x=x, p=packed: ops.block_sparse_linear(x, p),
                peers=dict(_linear_peers(x, weight)),
                truth=x.double() @ weight.double().T,
                probe=x,
                flops=2.0 * m * k * n * density,
                nbytes=float(packed.values.nbytes + x.nbytes + m * n * x.element_size()),
            )


def int8_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Codes of 8 bits; our own kernels of floats, on the same blocks, are among the peers."""
    block = options.block
    for shape in options.shapes or INT8_SHAPES:
        m, k, n = shape
        torch.manual_seed(0)
        x = torch.randn(m, k, dtype=options.dtype, device=options.device)
        dense = torch.randn(n, k, dtype=options.dtype, device=options.device) / k**0.5
        for density in options.densities:
            keep = _random_blocks(n // block[0], k // block[1], density).to(options.device)
            weight = dense * keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            if density < 1:
                packed = Int8Weight.pack(dense, keep, block)
                floats = [BlockSparseWeight.pack(weight.to(d), keep, block) for d in FLOATS]
            else:
                packed = Int8Weight.pack_dense(dense)
                floats = [BlockSparseWeight.pack_dense(weight.to(d)) for d in FLOATS]
            full, low = x.float(), x.bfloat16()
            with ops.use_backend("reference"):
                truth = ops.int8_linear(x, packed).double()
            yield Case(
                op="int8_linear",
                shape=shape,
                density=density,
                block=packed.block,
                backend=ops.explain_choice(ops.int8_linear, x, packed).backend,
                ours=lambda x=x, p=packed: ops.int8_linear(x, p),
                peers={
                    **dict(_linear_peers(x, weight)),
                    "ours fp32": lambda x=full, p=floats[0]: ops.block_sparse_linear(x, p),
                    "ours bf16": lambda x=low, p=floats[1]: ops.block_sparse_linear(x, p),
                },
                truth=truth,
                probe=x,
                flops=2.0 * m * k * n * density,
                nbytes=float(packed.values.nbytes + x.nbytes + m * n * x.element_size()),
            )


def vector_cases(options: argparse.Namespace, codes: bool = False) -> Iterator[Case]:
    """Vector N:M: `block` is (outputs that share a choice, M). In codes of 8 bits our own kernels
    of codes for all inputs, and of bfloat16 for those that are kept, are among the peers."""
    for shape in options.shapes or LINEAR_SHAPES[:3]:
        m, k, n = shape
        for kept, of, v in VECTOR_PATTERNS:
            torch.manual_seed(0)
            x = torch.randn(m, k, dtype=options.dtype, device=options.device)
            dense = torch.randn(n, k, dtype=options.dtype, device=options.device) / k**0.5
            family = VectorNM(kept, of, v)
            keep = family.keep(dense)
            weight = dense * keep
            peers = dict(_linear_peers(x, weight))
            if codes:
                packed, call = Int8VectorWeight.pack(weight, keep, v), ops.int8_vector_linear
                full, low = Int8Weight.pack_dense(weight), x.bfloat16()
                together = ops.inputs_together(x.device, low.dtype)
                few = VectorWeight.pack(weight.bfloat16(), keep, v, together)
                peers |= {
                    "ours int8": lambda x=x, p=full: ops.int8_linear(x, p),
                    "ours bf16": lambda x=low, p=few: ops.pattern_linear(x, p),
                }
                with ops.use_backend("reference"):
                    truth = call(x, packed).double()
            else:
                together = ops.inputs_together(x.device, x.dtype)
                packed, call = VectorWeight.pack(weight, keep, v, together), ops.pattern_linear
                truth = x.double() @ weight.double().T
            yield Case(
                op=f"{'int8 ' * codes}vector {kept}:{of} x{v}",
                shape=shape,
                density=family.density,
                block=(v, of),
                backend=ops.explain_choice(call, x, packed).backend,
                ours=lambda x=x, p=packed, call=call: call(x, p),
                peers=peers,
                truth=truth,
                probe=x,
                flops=2.0 * m * k * n * family.density,
                nbytes=float(packed.values.nbytes + x.nbytes + m * n * x.element_size()),
            )


def library_cases(options: argparse.Namespace) -> Iterator[Case]:
    """4 x 4 libraries at 50 % and 2:4, both sides with weights from memory: each call takes the
    next of several copies."""
    for shape in options.shapes or DECODE_SHAPES:
        m, k, n = shape
        torch.manual_seed(0)
        x = torch.randn(m, k, dtype=options.dtype, device=options.device)
        dense = torch.randn(n, k, dtype=options.dtype, device=options.device) / k**0.5
        library = Library.select(dense[: 4 * 64], (4, 4), 8, 16)
        packings = {
            "library 4x4": LibraryWeight.pack(dense, library.codes(dense), library.patterns),
            "library 2:4": LibraryWeight.pack_two_four(dense, TwoFour().keep(dense)),
        }
        copies = int(BEYOND_CACHES / dense.nbytes) + 1
        for name, packed in packings.items():
            weight = packed.to_dense()
            packs = [
                LibraryWeight(packed.values.clone(), packed.codes.clone(), packed.library, (n, k))
                for _ in range(copies)
            ]
            peers = [dict(_linear_peers(x, weight.clone())) for _ in range(copies)]
            yield Case(
                op=name,
                shape=shape,
                density=packed.density,
                block=tuple(packed.library.shape[1:]),
                backend=ops.explain_choice(ops.pattern_linear, x, packed).backend,
                ours=_in_turn([lambda p=p, x=x: ops.pattern_linear(x, p) for p in packs]),
                peers={peer: _in_turn([each[peer] for each in peers]) for peer in peers[0]},
                truth=x.double() @ weight.double().T,
                probe=x,
                flops=2.0 * m * k * n * packed.density,
                nbytes=float(packed.values.nbytes + packed.codes.nbytes + x.nbytes),
            )


def norm_cases(options: argparse.Namespace) -> Iterator[Case]:
    for m, d in options.shapes or NORM_SHAPES:
        torch.manual_seed(0)
        x, r = (torch.randn(m, d, dtype=options.dtype, device=options.device) for _ in range(2))
        w, b = (torch.randn(d, dtype=options.dtype, device=options.device) for _ in range(2))
        kinds = {  # ours, torch's, the same in float64
            "layer norm": (
                lambda x=x, w=w, b=b: ops.add_norm(x, None, w, b),
                lambda x=x, w=w, b=b: F.layer_norm(x, w.shape, w, b),
                lambda x=x, w=w, b=b: F.layer_norm(x.double(), w.shape, w.double(), b.double()),
            ),
            "add + layer norm": (
                lambda x=x, r=r, w=w, b=b: ops.add_norm(x, r, w, b),
                lambda x=x, r=r, w=w, b=b: F.layer_norm(x + r, w.shape, w, b),
                lambda x=x, r=r, w=w, b=b: F.layer_norm(
                    x.double() + r.double(), w.shape, w.double(), b.double()
                ),
            ),
            "rms norm": (
                lambda x=x, w=w: ops.add_norm(x, None, w, None, 1e-5, True),
                lambda x=x, w=w: F.rms_norm(x, w.shape, w, 1e-5),
                lambda x=x, w=w: F.rms_norm(x.double(), w.shape, w.double(), 1e-5),
            ),
        }
        for op, (ours, peer, truth) in kinds.items():
            tensors = 3 if op.startswith("add") else 2
            yield Case(
                op=op,
                shape=(m, d),
                density=1.0,
                block=None,
                backend=ops.explain_choice(ops.add_norm, x, None, w, b).backend,
                ours=ours,
                peers={"torch": peer},
                truth=truth(),
                probe=x,
                flops=8.0 * m * d,
                nbytes=float(tensors * x.nbytes),
            )


def attention_cases(options: argparse.Namespace) -> Iterator[Case]:
    """On both sides q, k and v are views of one fused product, and the output suits the next. The
    peer of a pattern or of pruned heads is attention over everything."""
    for shape in options.shapes or ATTENTION_SHAPES:
        b, h, t, d = shape
        torch.manual_seed(0)
        q, k, v = _fused_qkv(shape, options)
        for padded in (False, True):
            lengths = torch.linspace(t / 2, t, b).long() if padded else torch.full((b,), t)
            key_mask = (torch.arange(t) < lengths[:, None]).to(options.device) if padded else None
            yield _attention_case(
                "attention" + (" padded" if padded else ""),
                shape,
                float(lengths.sum()) / (b * t),
                (q, k, v),
                partial(_sdpa, q, k, v, None if key_mask is None else key_mask[:, None, None, :]),
                key_mask=key_mask,
            )
        half = _fused_qkv((b, h // 2, t, d), options)
        yield _attention_case("attention heads", shape, 0.5, half, partial(_sdpa, q, k, v))


def pattern_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Blocks of 64 x 64: the same number of random whole ones in each row of blocks, another choice
    for each head, and a rule."""
    for shape in options.shapes or PATTERN_SHAPES:
        h, t = shape[1:3]
        torch.manual_seed(0)
        q, k, v = _fused_qkv(shape, options)
        patterns = {
            f"random {density:g}": _random_pattern(h, t // 64, density) for density in (0.5, 0.25)
        }
        patterns["local"] = layout(Local(t // 10) | Global(16), t, t, block=64)
        for name, pattern in patterns.items():
            on_device = pattern.to(options.device)
            yield _attention_case(
                f"attention {name}",
                shape,
                pattern.density,
                (q, k, v),
                partial(_sdpa, q, k, v),
                pattern=on_device,
            )


def _attention_case(
    op: str,
    shape: tuple[int, ...],
    density: float,
    qkv: tuple[Tensor, Tensor, Tensor],
    peer: Callable[[], Tensor],
    **hidden: Any,
) -> Case:
    b, h, t, d = shape
    nbytes = 4 * qkv[0].numel() * qkv[0].element_size()
    with ops.use_backend("reference"):
        truth = ops.attention(*(x.double() for x in qkv), **hidden)
    pattern = hidden.get("pattern")
    return Case(
        op=op,
        shape=shape,
        density=density,
        block=None if pattern is None else (pattern.block, pattern.block),
        backend=ops.explain_choice(ops.attention, *qkv, **hidden).backend,
        ours=lambda: ops.attention(*qkv, **hidden),
        peers={"SDPA": peer},
        truth=truth,
        probe=qkv[0],
        flops=4.0 * density * b * h * t * t * d,
        nbytes=float(nbytes),
    )


def _fused_qkv(
    shape: tuple[int, ...], options: argparse.Namespace
) -> tuple[Tensor, Tensor, Tensor]:
    b, h, t, d = shape
    qkv = torch.randn(b, t, 3, h, d, dtype=options.dtype, device=options.device)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).contiguous()


def _random_pattern(heads: int, rows: int, density: float, block: int = 64) -> BlockLayout:
    kept = max(1, round(density * rows))
    columns = torch.stack([torch.randperm(rows)[:kept].sort().values for _ in range(heads * rows)])
    ends = torch.arange(heads * rows + 1, dtype=torch.int32) * kept
    return BlockLayout(
        torch.stack([ends[h * rows : (h + 1) * rows + 1] for h in range(heads)]),
        columns.flatten().to(torch.int32),
        torch.full((heads * rows * kept,), -1, dtype=torch.int32),
        torch.zeros(0, block, block, dtype=torch.bool),
        (rows * block, rows * block),
    )


CASES = {
    "block_sparse_linear": linear_cases,
    "int8_linear": int8_cases,
    "pattern_linear": vector_cases,
    "int8_vector_linear": partial(vector_cases, codes=True),
    "library": library_cases,
    "add_norm": norm_cases,
    "attention": attention_cases,
    "attention_pattern": pattern_cases,
}


def _linear_peers(x: Tensor, weight: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """torch's own products; the prepacked ones are what torch.compile with freezing uses."""
    yield "F.linear", lambda: F.linear(x, weight)
    if x.device.type != "cpu":
        return
    if torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
        pointwise = torch.ops.mkldnn._linear_pointwise
        yield "oneDNN prepacked", lambda: pointwise(x, onednn, None, "none", [], "")
    if torch.backends.mkl.is_available() and x.dtype == torch.float32:
        mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, x.shape[0])
        yield "MKL prepacked", lambda: torch.ops.mkl._mkl_linear(x, mkl, weight, None, x.shape[0])


def _in_turn(calls: list[Callable[[], Tensor]]) -> Callable[[], Tensor]:
    turn = cycle(calls)
    return lambda: next(turn)()


def _random_blocks(rows: int, columns: int, density: float) -> Tensor:
    keep = torch.zeros(rows * columns, dtype=torch.bool)
    keep[torch.randperm(rows * columns)[: round(density * rows * columns)]] = True
    return keep.view(rows, columns)
