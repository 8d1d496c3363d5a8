"""Attention and its rules against SDPA (flash and cuDNN, dense), and against FlexAttention compiled
for the same mask; checked against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from benchmarks.on_gpu.bench import (
    CHECKED,
    DEVICE,
    DTYPE,
    Bench,
    Call,
    Rows,
    copies_of,
    worst_of,
)
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from secateurs import ops
from secateurs.plan.attention_rules import Dense, Local, Rule, Sinks, Strided, layout


class Problem(NamedTuple):
    """Attention of `heads` (of queries, of keys) over `lengths` (queries, keys) under a rule."""

    layer: str
    batch: int
    heads: tuple[int, int]
    lengths: tuple[int, int]
    dim: int
    rule: str

    @property
    def grouped(self) -> bool:
        return self.heads[1] < self.heads[0]

    @property
    def causal(self) -> bool:
        return self.grouped and self.lengths[0] > 1


RULES: dict[str, Rule] = {
    "dense": Dense(),
    "local 128": Local(128),
    "local 64 | sinks 4": Local(64) | Sinks(4),
    "strided 64 | local 32": Strided(64) | Local(32),
    "local 1024 | sinks 4": Local(1024) | Sinks(4),
    "strided 512 | local 256": Strided(512) | Local(256),
}
DENSE, *ENCODER = ("dense", "local 128", "strided 64 | local 32", "local 64 | sinks 4")
DECODER = ("local 1024 | sinks 4", "strided 512 | local 256")
BLOCK = 64
TOKENS = 16384  # of a batch


def encoder(length: int, rule: str, heads: int = 12) -> Problem:
    batch = TOKENS // length
    return Problem("bert-base", batch, (heads, heads), (length, length), 64, rule)


def decoder(queries: int, keys: int, batch: int, rule: str) -> Problem:
    return Problem("llama-3-8b", batch, (32, 8), (queries, keys), 128, rule)


LENGTHS = (2048, 512, 8192, 1024, 4096)
PLAIN = (
    *(encoder(length, rule) for length in LENGTHS for rule in (DENSE, ENCODER[0])),
    *(decoder(4096, 4096, 1, rule) for rule in (DENSE, DECODER[0])),
    *(decoder(1, 16384, 1, rule) for rule in (DENSE, DECODER[0])),
    *(decoder(1, 4096, 16, rule) for rule in (DENSE, DECODER[0])),
    *(encoder(length, rule) for length in LENGTHS for rule in ENCODER[1:]),
    *(decoder(16384, 16384, 1, rule) for rule in (DENSE, *DECODER)),
)
FLEX = (
    *(encoder(length, rule) for length in (2048, 512) for rule in ENCODER),
    *(decoder(4096, 4096, 1, rule) for rule in DECODER),
)


def plain(bench: Bench) -> Rows:
    """Yield rows against SDPA, and of half the heads against all of ours."""
    yield from _rows(bench, PLAIN[:1], against_sdpa)
    yield from _rows(bench, [encoder(LENGTHS[0], DENSE, heads=6)], against_twelve_heads)
    yield from _rows(bench, PLAIN[1:], against_sdpa)


def flex(bench: Bench) -> Rows:
    return _rows(bench, FLEX, against_flex)


Peers = dict[str, list[Call]]
Caches = list[tuple[Tensor, Tensor]]


def _rows(
    bench: Bench,
    problems: Iterable[Problem],
    peers_of: Callable[[Problem, Tensor, Caches], Peers],
) -> Rows:
    for problem in problems:
        bench.in_time()
        layer, b, (hq, hkv), (tq, tk), d, label = problem
        rule, causal = RULES[label], problem.causal
        q = torch.randn(b, hq, tq, d, device=DEVICE, dtype=DTYPE)
        k, v = torch.randn(2, b, hkv, tk, d, device=DEVICE, dtype=DTYPE)
        count = copies_of(2 * k.nbytes) if tq == 1 else 1
        caches = [(k.clone(), v.clone()) for _ in range(count)]
        blocks, density = None, (tk + 1) / (2 * tk) if causal else 1.0
        if label != DENSE:
            blocks = layout(rule, tq, tk, block=BLOCK, causal=causal, device=DEVICE)
            density = blocks.density
        yield from bench.rows(
            [partial(ops.attention, q, *c, causal=causal, pattern=blocks) for c in caches],
            peers_of(problem, q, caches),
            against_attention(q, k, v, rule, causal),
            nbytes=2 * k.nbytes * density if tq == 1 else 0,
            operations=4 * b * hq * tq * tk * d * density,
            op="attention",
            shape=(b, hq, hkv, tq, tk, d),
            block=None if blocks is None else (BLOCK, BLOCK),
            density=density,
            pattern=label,
            layer=layer,
        )


def against_sdpa(problem: Problem, q: Tensor, caches: Caches) -> Peers:
    """Return SDPA over all keys, by the kernels that do best."""

    def sdpa(kind: SDPBackend, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kind):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=problem.causal, enable_gqa=problem.grouped
            )

    kinds = {
        "SDPA flash, dense": SDPBackend.FLASH_ATTENTION,
        "SDPA cuDNN, dense": SDPBackend.CUDNN_ATTENTION,
    }
    return {name: [partial(sdpa, kind, *c) for c in caches] for name, kind in kinds.items()}


def against_twelve_heads(problem: Problem, q: Tensor, caches: Caches) -> Peers:
    """Return our own attention of twelve heads, of which the problem has some."""
    shape = (problem.batch, 12, problem.lengths[0], problem.dim)
    operands = torch.randn(3, *shape, device=DEVICE, dtype=DTYPE)
    return {"ours, 12 heads": [partial(ops.attention, *operands)]}


def against_flex(problem: Problem, q: Tensor, caches: Caches) -> Peers:
    """Return FlexAttention, compiled for the mask of the problem."""
    compiled = torch.compile(flex_attention, dynamic=False)
    mask = create_block_mask(
        mask_of(RULES[problem.rule], problem.causal),
        None,
        None,
        *problem.lengths,
        device=DEVICE.type,
    )
    return {
        "FlexAttention, same mask": [
            partial(compiled, q, *c, block_mask=mask, enable_gqa=problem.grouped) for c in caches
        ]
    }


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
