"""The CUDA backend against its peers on a GPU: the rows that gpu.py writes.

    python benchmarks/gpu_kernels.py --part linears --json gpu.jsonl

Linears against F.linear (cuBLAS), torch's BSR product and our Triton kernel, 2:4 also against
cuSPARSELt, attention against SDPA (flash and cuDNN) and FlexAttention compiled for the same mask,
norms against torch.compile. Both sides run in CUDA graphs, interleaved; our output is checked
against float64.

Where few rows of x make a weight's bytes the cost, a graph goes through as many copies of the
weight as do not fit into the L2 cache. `copy_share` is the part of a device copy's bandwidth at
which the stored bytes moved, `roof_share` that of a large bfloat16 F.linear at which the stored
numbers were multiplied.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
with suppress(ValueError):
    sys.path.remove(str(Path(__file__).parent))

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.sparse import to_sparse_semi_structured

from secateurs import ops
from secateurs.attention_patterns import Dense, Local, Rule, Sinks, Strided, layout
from secateurs.environment import env_report
from secateurs.formats import BlockSparseWeight, LibraryWeight, VectorWeight
from secateurs.measure import Measurement, Timing, append_rows, measure, row
from secateurs.patterns import Library, VectorNM

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
TOLERANCE = 1e-2
BEYOND_L2 = 128 << 20  # bytes, twice the largest L2 cache there is
MOST_COPIES = 256
CHECKED = 4096  # rows of an output, drawn anew for each problem

DENSITIES = (0.25, 0.5, 0.1, 0.75, 1.0)
ROWS = (1, 16, 512, 4096, 16384)
FEW = 16
SHAPES = {  # K, N
    "bert-base up": (768, 3072),
    "bert-base down": (3072, 768),
    "bert-large up": (1024, 4096),
    "llama-3-8b qkv": (4096, 6144),
    "llama-3-8b up": (4096, 14336),
    "llama-3-8b down": (14336, 4096),
}
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

Call = Callable[[], Any]
Replay = Callable[[Any], None]
Rows = Iterator[dict[str, Any]]


class OutOfTime(Exception):
    """The deadline has passed."""


class Bench:
    """Our calls against their peers', all in CUDA graphs."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.probe = torch.zeros((), device=DEVICE)  # tells `measure` the device
        source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        milliseconds = self._time(1, graphed([lambda: target.copy_(source)])).timing.ms
        self.copy = 2 * source.nbytes / milliseconds  # bytes in a millisecond
        a, b = torch.randn(2, 8192, 8192, device=DEVICE, dtype=DTYPE)
        milliseconds = self._time(1, graphed([lambda: F.linear(a, b)])).timing.ms
        self.roof = 2 * 8192**3 / milliseconds  # operations in a millisecond
        report = env_report()
        self.facts = {
            "isa": "sm_{}{}".format(*torch.cuda.get_device_capability()),
            "copy_gb_s": self.copy / 1e6,
            "roof_tflop_s": self.roof / 1e9,
            "python": platform.python_version(),
            "triton": report["versions"]["triton"],
            "torch_cuda": report["torch_cuda"]["toolkit"],
            **{name: report["kernels"]["cuda"].get(name) for name in ("toolkit", "driver")},
        }

    def rows(
        self,
        ours: list[Call],
        peers: Mapping[str, list[Call]],
        check: Callable[[Any], float],
        *,
        nbytes: float = 0,
        operations: float = 0,
        **facts: Any,
    ) -> Rows:
        """A row for each peer; one that cannot run is told and left out.

        Args:
            ours, peers: a call for each copy of the operands.
            check: the relative error of what our call returns.
            nbytes, operations: what one call must at least move, and compute.

        Raises:
            OutOfTime: the deadline has passed.
        """
        if time.monotonic() > self.deadline:
            raise OutOfTime
        error = check(ours[0]())
        replay = graphed(ours)
        for name, calls in peers.items():
            try:
                found = self._time(len(ours), replay, graphed(calls))
            except Exception as reason:
                told = str(reason).strip().split("\n")[0]
                print(f"{name} at {facts['shape']}: {told}", file=sys.stderr)
                continue
            ms = found.timing.ms
            yield row(
                found,
                backend="cuda",
                dtype=DTYPE,
                baseline=name,
                rel_err=error,
                tolerance=TOLERANCE,
                copies=len(ours),
                copy_share=nbytes / ms / self.copy if nbytes else None,
                roof_share=operations / ms / self.roof if operations else None,
                **self.facts,
                **facts,
            )

    def _time(self, calls: int, *replays: Replay) -> Measurement:
        found = measure(
            replays[0], self.probe, *replays[1:], compare=False, min_time=0.1, min_repeats=5
        )
        baseline = None if found.baseline is None else _each(found.baseline, calls)
        return replace(found, timing=_each(found.timing, calls), baseline=baseline)


def _each(timing: Timing, calls: int) -> Timing:
    """The time of one of the calls in a graph."""
    return replace(
        timing, ms=timing.ms / calls, ms_p20=timing.ms_p20 / calls, ms_p80=timing.ms_p80 / calls
    )


def graphed(calls: list[Call]) -> Replay:
    """Replays `calls`, one behind the other, as one CUDA graph, after a warm-up on a stream of its
    own; whatever it is called on."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return lambda _: graph.replay()


def copies_of(nbytes: int) -> int:
    """How many operands of so many bytes do not fit into the L2 cache."""
    return min(MOST_COPIES, -(-BEYOND_L2 // max(1, nbytes)))


def against_linear(x: Tensor, weight: Tensor) -> Callable[[Tensor], float]:
    """The check of x W^T: relative error of some rows of an output."""
    some = torch.randperm(x.shape[0], device=DEVICE)[:CHECKED]
    return lambda y: error_of(y[some], x[some].double() @ weight.double().T)


def error_of(got: Tensor, want: Tensor) -> float:
    """Relative RMS error; NaN if there is one."""
    return float((got.double() - want).norm() / want.norm())


def linears(bench: Bench, block: int) -> Rows:
    from torch.sparse._triton_ops import bsr_dense_mm

    def on_triton(x: Tensor, weight: Any) -> Tensor:
        with ops.use_backend("triton"):
            return ops.block_sparse_linear(x, weight)

    for density in DENSITIES:
        for name, (k, n) in SHAPES.items():
            keep = torch.rand(n // block, k // block, device=DEVICE).argsort(1).argsort(1)
            keep = keep < max(1, round(density * (k // block)))
            mask = keep.repeat_interleave(block, 0).repeat_interleave(block, 1)
            weight = torch.randn(n, k, device=DEVICE, dtype=DTYPE) / k**0.5 * mask
            packed = BlockSparseWeight.pack(weight, keep, (block, block))
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
                    peers["torch BSR"] = [
                        partial(bsr_dense_mm, bsr.clone(), x.T) for _ in range(count)
                    ]
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


PARTS: dict[str, Callable[[Bench, int], Rows]] = {
    "linears": linears,
    "attentions": attentions,
    "patterns": patterns,
    "norms": norms,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", required=True, choices=PARTS)
    parser.add_argument("--json", required=True, help="JSON lines are appended to this file")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300, help="no row starts later")
    parser.add_argument("--commit", help="of the code, where the checkout cannot tell")
    options = parser.parse_args()
    # A compiled peer has a kernel for each problem, and never falls back in silence.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    failed, deadline = 0, time.monotonic() + options.seconds
    with ops.use_backend("cuda"), torch.inference_mode():
        try:
            for record in PARTS[options.part](Bench(deadline), options.block):
                record["commit"] = options.commit or record["commit"]
                append_rows(options.json, [record])
                failed |= not record["ok"]
                print(line(record), flush=True)
        except OutOfTime:
            print(f"{options.part}: out of time, the rest was left out", file=sys.stderr)
    return int(failed)


def line(record: Mapping[str, Any]) -> str:
    shares = [
        f"{record[share]:>5.0%} of {share.split('_')[0]}" if record[share] else ""
        for share in ("copy_share", "roof_share")
    ]
    return (
        f"{record.get('pattern') or record['op']:<24}{record['shape']!s:<32}"
        f"{record['density'] or 1:>5.2f}{record['ms']:>10.4f} ms {record['speedup']:>6.2f}x "
        f"{record['baseline']:<26}{' '.join(shares)}{'' if record['ok'] else '  WRONG'}"
    )


if __name__ == "__main__":
    sys.exit(main())
