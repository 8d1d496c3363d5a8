"""The Triton backend on a GPU, in one call: its tests with skips as failures, then its benchmarks.

    python benchmarks/gpu_triton.py --json gpu.jsonl

Linears against F.linear (cuBLAS) and torch's BSR product, attention patterns against compiled
FlexAttention on the same mask and SDPA, and BERT-base converted against torch.compile
(max-autotune), both in CUDA graphs. Every row is checked against float64 or the dense model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
sys.path.remove(str(Path(__file__).parent))

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import BertConfig, BertModel

import secateurs as sc
from secateurs import ops
from secateurs.attention_patterns import Local, Rule, Sinks, Strided, layout
from secateurs.formats import BlockSparseWeight
from secateurs.measure import append_rows, measure, relative_error, row
from secateurs.plan import BlockMask

ROOT = Path(__file__).parents[1]
DTYPE = torch.bfloat16
TOLERANCE = 1e-2
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

Peers = dict[str, Callable[[], Tensor]]


def linears(block: int, quick: bool) -> Iterator[dict[str, Any]]:
    for name, (k, n) in list(SHAPES.items())[: 2 if quick else None]:
        dense = torch.randn(n, k, device="cuda", dtype=DTYPE) / k**0.5
        for density in DENSITIES:
            keep = torch.rand(n // block, k // block, device="cuda").argsort(1).argsort(1)
            keep = keep < max(1, round(density * (k // block)))
            weight = dense * keep.repeat_interleave(block, 0).repeat_interleave(block, 1)
            packed = BlockSparseWeight.pack(weight, keep, (block, block))
            for m in ROWS[1::2] if quick else ROWS:
                x = torch.randn(m, k, device="cuda", dtype=DTYPE)
                peers: Peers = {"F.linear": lambda x=x, w=weight: F.linear(x, w)}
                if m >= 16:
                    bsr = weight.to_sparse_bsr((block, block))
                    peers["torch BSR"] = lambda x=x, w=bsr: F.linear(x, w)
                want = x.double() @ weight.double().T
                moved = packed.values.nbytes + x.nbytes + m * n * 2
                yield from rows_of(
                    lambda x=x, w=packed: ops.block_sparse_linear(x, w),
                    peers,
                    want,
                    op="block_sparse_linear",
                    shape=(m, k, n),
                    block=(block, block),
                    density=density,
                    layer=name,
                    nbytes=moved,
                )


def attentions(block: int, quick: bool) -> Iterator[dict[str, Any]]:
    flex = torch.compile(flex_attention)
    for t in LENGTHS[:2] if quick else LENGTHS:
        q, k, v = torch.randn(3, 4, 16, t, 64, device="cuda", dtype=DTYPE)
        for name, rule in PATTERNS.items():
            blocks = layout(rule, t, t, block=block, device="cuda")
            position = torch.arange(t, device="cuda")
            mask = rule.allows(position[:, None], position)
            flex_blocks = create_block_mask(
                lambda b, h, i, j, mask=mask: mask[i, j], None, None, t, t, device="cuda"
            )
            peers: Peers = {
                "flex, same mask": lambda q=q, k=k, v=v, m=flex_blocks: flex(q, k, v, block_mask=m),
                "SDPA, dense": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
            }
            want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
            yield from rows_of(
                lambda q=q, k=k, v=v, b=blocks: ops.attention(q, k, v, pattern=b),
                peers,
                want.transpose(1, 2),
                op="attention",
                shape=tuple(q.shape),
                block=(block, block),
                density=blocks.density,
                pattern=name,
            )


def rows_of(
    ours: Callable[[], Tensor], peers: Peers, want: Tensor, **facts: Any
) -> Iterator[dict[str, Any]]:
    """Our call against each peer, interleaved; a peer that cannot run is told and left out."""
    error = relative_error(ours(), want)
    probe = torch.zeros((), device="cuda")  # tells measure the device
    for name, peer in peers.items():
        try:
            found = measure(lambda _: ours(), probe, lambda _, p=peer: p(), compare=False)
        except (RuntimeError, NotImplementedError) as reason:
            print(f"{name} at {facts['shape']}: {reason}", file=sys.stderr)
            continue
        yield row(
            found,
            backend="triton",
            isa=architecture(),
            dtype=DTYPE,
            baseline=name,
            rel_err=error,
            tolerance=TOLERANCE,
            **facts,
        )


def models() -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    dense = BertModel(BertConfig()).eval().to("cuda", DTYPE)
    masks = {}
    for site in sc.find_sites(dense):
        if site.kind == "linear":
            grid = (site.shape[0] // 64, site.shape[1] // 64)
            masks[site.name] = BlockMask(torch.rand(grid) < 0.5, (64, 64))
    plans = {
        "blocks 0.5": sc.SparsityPlan(masks),
        "heads and neurons 0.5": sc.prune(
            dense, method="random", budget=sc.Budget(heads=0.5, neurons=0.5)
        ),
    }
    for batch, length in ((32, 128), (8, 512)):
        inputs = {"input_ids": torch.randint(1000, 20000, (batch, length), device="cuda")}
        best = torch.compile(dense, mode="max-autotune")
        for name, plan in plans.items():
            runner = sc.capture(sc.convert(dense, plan), inputs, lengths=(length,))
            truth = sc.apply(dense, plan)
            with torch.inference_mode():
                error = relative_error(runner(**inputs)[0].clone(), truth(**inputs)[0])
            found = measure(runner, inputs, best, compare=False)
            yield row(
                found,
                model=f"bert-base {name}",
                backend="triton",
                isa=architecture(),
                dtype=DTYPE,
                shape=(batch, length),
                baseline="torch.compile max-autotune, dense",
                rel_err=error,
                tolerance=5e-2,
            )


def architecture() -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def run_tests() -> int:
    """The tests, of which those that want a GPU or Triton may not skip."""
    environment = {**os.environ, "SECATEURS_REQUIRE": "cuda,triton"}
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "ops"), "-k", "triton"]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", required=True, help="JSON lines are appended to this file")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="few shapes")
    parser.add_argument("--no-tests", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("expected an NVIDIA GPU, torch sees none", file=sys.stderr)
        return 2
    failed = 0 if options.no_tests else run_tests()
    with ops.use_backend("triton"), torch.inference_mode():
        parts = (linears(options.block, options.quick), attentions(options.block, options.quick))
        for part in (*parts, models()):
            for record in part:
                append_rows(options.json, [record])
                name = record.get("op", record.get("model"))
                print(
                    f"{name:<28}{record['shape']!s:<22}{record['density'] or 1:>6.2f}"
                    f"{record['ms']:>9.3f} ms {record['speedup']:>6.2f}x {record['baseline']}"
                    f"{'' if record['ok'] else '  WRONG'}",
                    flush=True,
                )
                failed |= not record["ok"]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
