"""What the parts on a GPU share: shapes, CUDA graphs, the row for each peer.

Where few rows of x make a weight's bytes the cost, a graph goes through as many copies of the
weight as do not fit into the L2 cache. `copy_share` is the part of a device copy's bandwidth at
which the stored bytes moved, `roof_share` that of a large bfloat16 F.linear at which the stored
numbers were multiplied.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from benchmarks.on_gpu import ceilings
from torch import Tensor
from torch.nn import functional as F

from secateurs.errors import BackendError
from secateurs.measurement.environment import env_report
from secateurs.measurement.rows import row
from secateurs.measurement.timing import Measurement, Timing, measure

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
BEYOND_L2 = 128 << 20  # bytes, twice the largest L2 cache there is
MOST_COPIES = 256
CHECKED = 4096  # rows of an output, drawn anew for each problem

FEW = 16  # rows of x
SHAPES = {  # K, N
    "4096 cubed": (4096, 4096),
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
        self.backend, self.deadline, self.failed = backend, deadline, False
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
            "l2_gb_s": self._ceiling(ceilings.l2),
            "shared_gb_s": self._ceiling(ceilings.shared),
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
        """A row for each peer; one that cannot run is told and left out. So are all where our call
        cannot run, and `failed` says so unless it was refused in words.

        Args:
            ours, peers: a call for each copy of the operands.
            check: the relative error of what our call returns.
            nbytes, operations: what one call must at least move, and compute.

        Raises:
            OutOfTime: the deadline has passed.
        """
        self.in_time()
        try:
            error = check(ours[0]())
            replay = graphed(ours)
        except Exception as reason:
            tell(self.backend, facts["shape"], reason)
            self.failed |= not isinstance(reason, BackendError)
            return
        for name, calls in peers.items():
            try:
                found = self._time(len(ours), replay, graphed(calls))
            except Exception as reason:
                tell(name, facts["shape"], reason)
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

    def _ceiling(self, ceiling: Callable[[], tuple[Call, int]]) -> float | None:
        """GB a second of a memory, None where its kernel does not compile here."""
        try:
            call, nbytes = ceiling()
            return nbytes / self._time(1, graphed([call])).timing.ms / 1e6
        except Exception as reason:
            tell(ceiling.__name__, (), reason)
            return None

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


def worst_of(want: Iterable[Tensor], got: Iterable[Tensor]) -> float:
    """The largest error of several outputs, NaN before all numbers."""
    return max(map(error_of, got, want), key=lambda error: (error != error, error))


def tell(name: str, shape: tuple[int, ...], reason: Exception) -> None:
    """Print what could not run, and the first line of why."""
    told = str(reason).strip().split("\n")[0]
    print(f"{name} at {shape}: {type(reason).__name__}: {told}", file=sys.stderr, flush=True)
