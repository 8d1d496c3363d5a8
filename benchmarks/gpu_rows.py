"""What the benchmarks on a GPU share: shapes, CUDA graphs, the row for each peer, the command line.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
with suppress(ValueError):
    sys.path.remove(str(Path(__file__).resolve().parent))

import torch
from torch import Tensor
from torch.nn import functional as F

from secateurs import ops
from secateurs.formats import BlockSparseWeight
from secateurs.measurement.environment import env_report
from secateurs.measurement.rows import append_rows, row
from secateurs.measurement.timing import Measurement, Timing, measure

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
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

Call = Callable[[], Any]
Replay = Callable[[Any], None]
Rows = Iterator[dict[str, Any]]


class OutOfTime(Exception):
    """The deadline has passed."""


class Bench:
    """The calls of a backend of ours against their peers', all in CUDA graphs."""

    def __init__(self, backend: str, deadline: float) -> None:
        self.backend, self.deadline = backend, deadline
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
        dtype: torch.dtype = DTYPE,
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
        self.in_time()
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
                backend=self.backend,
                dtype=dtype,
                baseline=name,
                rel_err=error,
                tolerance=TOLERANCE[dtype],
                copies=len(ours),
                copy_share=nbytes / ms / self.copy if nbytes else None,
                roof_share=operations / ms / self.roof if operations else None,
                **self.facts,
                **facts,
            )

    def in_time(self) -> None:
        """Raise OutOfTime once the deadline has passed."""
        if time.monotonic() > self.deadline:
            raise OutOfTime

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


def block_sparse(
    n: int, k: int, block: int, density: float, dtype: torch.dtype = DTYPE
) -> tuple[Tensor, BlockSparseWeight]:
    """A random weight `[n, k]` with as many blocks in each row, dense and packed."""
    keep = torch.rand(n // block, k // block, device=DEVICE).argsort(1).argsort(1)
    keep = keep < max(1, round(density * (k // block)))
    weight = torch.randn(n, k, device=DEVICE, dtype=dtype) / k**0.5
    weight *= keep.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return weight, BlockSparseWeight.pack(weight, keep, (block, block))


def on_torch_bsr(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """x W^T by torch's block-sparse product, which takes rows of x sixteen at a time."""
    from torch.sparse._triton_ops import bsr_dense_mm

    return partial(bsr_dense_mm, weight, x.T)


def run_part(
    description: str, backend: str, parts: Mapping[str, Callable[[Bench, int], Rows]]
) -> int:
    """The command line of a script of benchmarks: one part, its rows printed and appended to a
    file; whether an output was wrong."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--part", required=True, choices=parts)
    parser.add_argument("--json", required=True, help="JSON lines are appended to this file")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300, help="no row starts later")
    parser.add_argument("--commit", help="of the code, where the checkout cannot tell")
    options = parser.parse_args()
    # A compiled peer has a kernel for each problem, and never falls back in silence.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    failed, deadline = 0, time.monotonic() + options.seconds
    with ops.use_backend(backend), torch.inference_mode():
        try:
            for record in parts[options.part](Bench(backend, deadline), options.block):
                record["commit"] = options.commit or record["commit"]
                append_rows(options.json, [record])
                failed |= not record["ok"]
                print(line(record), flush=True)
        except OutOfTime:
            print(f"{options.part}: out of time, the rest was left out", file=sys.stderr)
    return int(failed)


def line(record: Mapping[str, Any]) -> str:
    shares = [
        f"{record[share]:>5.0%} of {share.split('_')[0]}" if record.get(share) else ""
        for share in ("copy_share", "roof_share")
    ]
    what = record.get("pattern") or record.get("op") or record["model"]
    return (
        f"{what:<32}{record['shape']!s:<32}"
        f"{record['density'] or 1:>5.2f}{record['ms']:>10.4f} ms {record['speedup']:>6.2f}x "
        f"{record['baseline']:<26}{' '.join(shares)}{'' if record['ok'] else '  WRONG'}"
    )
