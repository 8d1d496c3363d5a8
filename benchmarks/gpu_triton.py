"""The Triton backend on a GPU, in one call: its tests with skips as failures, then its benchmarks.

    python benchmarks/gpu.py --json gpu.jsonl --only build  # or pip install .
    PYTHONPATH=python python benchmarks/gpu_triton.py --json gpu.jsonl

Linears against F.linear (cuBLAS) and torch's BSR product, attention patterns against compiled
FlexAttention on the same mask and SDPA, and BERT-base converted against torch.compile
(max-autotune). Both sides run in CUDA graphs, except torch's BSR product. Every row is checked
against float64 or the masked model.

Each part is a process of its own with a limit of time, so that one that hangs or compiles for long
costs neither the others nor what it has written itself. `read_share` is the share of a device
copy's bandwidth at which a weight's stored bytes were read: few rows of x rotate among copies of
the weight that do not fit into the L2 cache together.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
sys.path.remove(str(Path(__file__).resolve().parent))

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import BertConfig, BertModel

import secateurs as sc
from secateurs import ops
from secateurs.attention_patterns import Local, Rule, Sinks, Strided, layout
from secateurs.formats import BlockSparseWeight
from secateurs.measure import Measurement, append_rows, measure, row
from secateurs.ops._tuning import trial
from secateurs.plan import BlockMask

ROOT = Path(__file__).parents[1]
LIMITS = {"tests": 150, "linears": 170, "attention": 70, "models": 140}  # seconds
DEVICE = "cuda"
DTYPE = torch.bfloat16
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
COLD = 1 << 28  # bytes that no L2 cache holds
DENSITIES = (1.0, 0.75, 0.5, 0.25, 0.1)
ROWS = (1, 16, 512, 2048, 8192, 16384)
SHAPES = {  # K, N
    "bert-base up": (768, 3072),
    "bert-base down": (3072, 768),
    "bert-large up": (1024, 4096),
    "llama-3-8b qkv": (4096, 6144),
    "llama-3-8b up": (4096, 14336),
    "llama-3-8b down": (14336, 4096),
}
PATTERNS: dict[str, Rule] = {
    "local 128": Local(128),
    "local 256 | sinks 4": Local(256) | Sinks(4),
    "strided 64 | local 64": Strided(64) | Local(64),
}
LENGTHS = (512, 1024, 2048, 4096)

Call = Callable[[], Any]
Rows = Iterator[dict[str, Any]]


def linears(block: int, quick: bool) -> Rows:
    for dtype in (DTYPE, torch.float32):
        few = quick or dtype == torch.float32
        for name, (k, n) in list(SHAPES.items())[: 2 if few else None]:
            for density in (0.5,) if few else DENSITIES:
                for m in (16, 2048) if few else ROWS:
                    yield from linear(name, m, k, n, density, block, dtype)


def linear(
    name: str, m: int, k: int, n: int, density: float, block: int, dtype: torch.dtype
) -> Rows:
    order = torch.rand(n // block, k // block, device=DEVICE).argsort(1).argsort(1)
    keep = order < max(1, round(density * (k // block)))
    weight = torch.randn(n, k, device=DEVICE, dtype=dtype) / k**0.5
    weight *= keep.repeat_interleave(block, 0).repeat_interleave(block, 1)
    packed = BlockSparseWeight.pack(weight, keep, (block, block))
    x = torch.randn(m, k, device=DEVICE, dtype=dtype)
    stored = packed.values.nbytes
    copies = min(16, math.ceil(COLD / stored)) if m <= 16 else 1
    sparse = [replace(packed, values=packed.values.clone()) for _ in range(copies)]
    dense = [weight.clone() for _ in range(copies)]
    ours = [lambda w=w: ops.block_sparse_linear(x, w) for w in sparse]
    cublas = [lambda w=w: F.linear(x, w) for w in dense]
    facts = {
        "op": "block_sparse_linear",
        "shape": (m, k, n),
        "block": (block, block),
        "density": density,
        "layer": name,
        "dtype": dtype,
    }
    want = x.double() @ weight.double().T
    nbytes = stored if m <= 16 else 0
    yield from against("F.linear", ours, graphed(cublas), want, nbytes, **facts)
    if m >= 16 and copies == 1:
        bsr = weight.to_sparse_bsr((block, block))
        plain = [lambda: F.linear(x, bsr)]
        yield from against("torch BSR, no graph", ours, plain[0], want, **facts)
    if density == 0.5 and torch.cuda.get_device_capability()[0] >= 9:
        from secateurs.ops.block_sparse_linear import triton as kernels

        given = (x, packed.values)
        config = kernels.TABLE.choose(x.device, kernels.key(*given))
        with trial(replace(config, descriptors=True)):
            facts["operands"] = "tensor descriptors"
            yield from against("F.linear", ours, graphed(cublas), want, nbytes, **facts)


def attentions(block: int, quick: bool) -> Rows:
    flex = torch.compile(flex_attention, dynamic=False)
    for t in LENGTHS[:2] if quick else LENGTHS:
        q, k, v = torch.randn(3, 4, 16, t, 64, device=DEVICE, dtype=DTYPE)
        for name, rule in PATTERNS.items():
            blocks = layout(rule, t, t, block=block, device=DEVICE)
            position = torch.arange(t, device=DEVICE)
            mask = rule.allows(position[:, None], position)
            same = create_block_mask(
                lambda b, h, i, j, mask=mask: mask[i, j], None, None, t, t, device=DEVICE
            )
            peers: dict[str, Call] = {
                "flex, same mask": lambda q=q, k=k, v=v, m=same: flex(q, k, v, block_mask=m),
                "SDPA, dense": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
            }
            want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
            for peer, call in peers.items():
                yield from against(
                    peer,
                    [lambda q=q, k=k, v=v, b=blocks: ops.attention(q, k, v, pattern=b)],
                    graphed([call]),
                    want.transpose(1, 2),
                    op="attention",
                    shape=tuple(q.shape),
                    block=(block, block),
                    density=blocks.density,
                    pattern=name,
                    dtype=DTYPE,
                )


def against(
    name: str, ours: Sequence[Call], peer: Call, want: Tensor, nbytes: int = 0, **facts: Any
) -> Rows:
    """Our calls in one graph against as many of a peer, interleaved. A peer that cannot run is told
    and left out. nbytes: stored bytes that one of our calls reads, for `read_share`."""
    error = distance(ours[0](), want)
    replay = graphed(ours)
    try:
        found = per_call(timed(replay, peer), len(ours))
    except (RuntimeError, NotImplementedError) as reason:
        print(f"{name} at {facts['shape']}: {reason}", file=sys.stderr)
        return
    yield row(
        found,
        backend="triton",
        isa=architecture(),
        baseline=name,
        rel_err=error,
        tolerance=TOLERANCE[facts["dtype"]],
        read_share=nbytes / found.timing.ms / bandwidth() if nbytes else None,
        **facts,
    )


def graphed(calls: Sequence[Call]) -> Call:
    """A replay of `calls`, one after the other, as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:  # compiles, and fills caches outside the graph
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def timed(ours: Call, peer: Call | None = None) -> Measurement:
    probe = torch.zeros((), device=DEVICE)  # tells `measure` the device
    other = None if peer is None else lambda _: peer()
    return measure(lambda _: ours(), probe, other, compare=False, min_time=0.1, min_repeats=5)


def per_call(found: Measurement, calls: int) -> Measurement:
    timings = {
        name: replace(t, ms=t.ms / calls, ms_p20=t.ms_p20 / calls, ms_p80=t.ms_p80 / calls)
        for name in ("timing", "baseline")
        if (t := getattr(found, name)) is not None
    }
    return replace(found, **timings)


@cache
def bandwidth() -> float:
    """Bytes that a device copy reads and writes in a millisecond."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source)).timing.ms


def distance(got: Tensor, want: Tensor) -> float:
    """Relative RMS error, computed where the tensors are; NaN if either has one."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def models(block: int, quick: bool) -> Rows:
    torch.manual_seed(0)
    dense = BertModel(BertConfig()).eval().to(DEVICE, DTYPE)
    masks = {}
    for site in sc.find_sites(dense):
        if site.kind == "linear":
            grid = (site.shape[0] // block, site.shape[1] // block)
            masks[site.name] = BlockMask(torch.rand(grid) < 0.5, (block, block))
    plans = {
        "blocks 0.5": sc.SparsityPlan(masks),
        "heads and neurons 0.5": sc.prune(
            dense, method="random", budget=sc.Budget(heads=0.5, neurons=0.5)
        ),
    }
    for batch, length in ((8, 512),) if quick else ((32, 128), (8, 512)):
        inputs = {"input_ids": torch.randint(1000, 20000, (batch, length), device=DEVICE)}
        torch._dynamo.reset()  # or the second shape would be compiled for any shape
        best = torch.compile(dense, mode="max-autotune", dynamic=False)
        for name, plan in plans.items():
            runner = sc.capture(sc.convert(dense, plan), inputs, lengths=(length,))
            error = distance(runner(**inputs)[0].clone(), sc.apply(dense, plan)(**inputs)[0])
            found = measure(runner, inputs, best, compare=False, min_time=0.5)
            yield row(
                found,
                model=f"bert-base {name}",
                backend="auto",  # not every operation of a model has a Triton kernel
                isa=architecture(),
                dtype=DTYPE,
                shape=(batch, length),
                baseline="torch.compile max-autotune, dense",
                rel_err=error,
                tolerance=5e-2,
            )


def architecture() -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


PARTS = {"linears": linears, "attention": attentions, "models": models}


def benchmark(part: str, options: argparse.Namespace) -> int:
    failed = False
    with ops.use_backend("auto" if part == "models" else "triton"), torch.inference_mode():
        for record in PARTS[part](options.block, options.quick):
            append_rows(options.json, [record])
            failed |= not record["ok"]
            share = record.get("read_share")
            print(
                f"{record.get('op', record.get('model')):<32}{record['shape']!s:<22}"
                f"{record['density'] or 1:>6.2f}{record['ms']:>9.4f} ms "
                f"{record['speedup']:>6.2f}x {record['baseline']}"
                f"{'' if share is None else f', {share:.2f} of copy bandwidth'}"
                f"{'' if record['ok'] else '  WRONG'}",
                flush=True,
            )
    return int(failed)


def run_part(part: str, arguments: Sequence[str]) -> int:
    """A part in a process of its own. Out of time is no failure, except for the tests; what was
    measured by then is written."""
    command = [sys.executable, __file__, "--only", part, *arguments]
    environment = dict(os.environ)
    if part == "tests":  # those that want a GPU and Triton may not skip
        environment["SECATEURS_REQUIRE"] = "cuda,triton"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/ops/test_triton_gpu.py"]
    start = time.monotonic()
    try:
        status = subprocess.run(command, env=environment, cwd=ROOT, timeout=LIMITS[part]).returncode
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped after {LIMITS[part]} s", file=sys.stderr)
        return int(part == "tests")
    print(f"--- {part}: status {status}, {time.monotonic() - start:.0f} s", flush=True)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", required=True, help="JSON lines are appended to this file")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="few shapes")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--only", choices=PARTS, help="one part, in this process and unbounded")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("expected an NVIDIA GPU, torch sees none", file=sys.stderr)
        return 2
    if options.only:
        return benchmark(options.only, options)
    arguments = ["--json", str(Path(options.json).resolve()), "--block", str(options.block)]
    arguments += ["--quick"] if options.quick else []
    parts = [part for part in LIMITS if not (options.no_tests and part == "tests")]
    return int(any([run_part(part, arguments) for part in parts]))


if __name__ == "__main__":
    sys.exit(main())
