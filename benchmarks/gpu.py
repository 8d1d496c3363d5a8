"""The CUDA backend on a GPU, in one call: build, tests with skips as failures, compute-sanitizer on
a few of them, then benchmarks.

    python benchmarks/gpu.py --json gpu.jsonl

Both sides run in CUDA graphs, interleaved; every row is checked against float64. Linears against
F.linear (cuBLAS), torch's BSR product and our Triton kernel, 2:4 against cuSPARSELt, attention
against SDPA (flash and cuDNN) and compiled FlexAttention on the same mask. `read_share` is the
share of a device copy's bandwidth at which a weight's stored bytes were read; one that fits into
the L2 cache is read from there, and may show more than 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
sys.path.remove(str(Path(__file__).parent))
ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "gpu"

Row = dict[str, Any]
Rows = Iterator[Row]

DENSITIES = (1.0, 0.75, 0.5, 0.25, 0.1)
ROWS = (1, 16, 512, 4096, 16384)
SHAPES = {  # K, N
    "bert-base up": (768, 3072),
    "bert-base down": (3072, 768),
    "bert-large up": (1024, 4096),
    "llama-3-8b qkv": (4096, 6144),
    "llama-3-8b up": (4096, 14336),
    "llama-3-8b down": (14336, 4096),
}
LENGTHS = (512, 2048, 4096)
TOLERANCE = 1e-2


def build() -> int:
    """Compile for this machine's GPU and CPU, into the package of this checkout."""
    cmakedir = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
    configure += [f"-Dpybind11_DIR={cmakedir.strip()}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += ["-DSKBUILD_PROJECT_VERSION=0.1.0"]
    install = ["cmake", "--install", str(BUILD), "--prefix", str(ROOT / "python")]
    environment = {"SECATEURS_CUDA": "on", "SECATEURS_CUDA_ARCHS": "native", **os.environ}
    for command in (configure, ["cmake", "--build", str(BUILD)], install):
        if status := subprocess.run(command, env=environment).returncode:
            return status
    return 0


def run_tests(*prefix: str, select: str) -> int:
    """The tests of the backend on the GPU; a skip is a failure."""
    environment = {**os.environ, "SECATEURS_REQUIRE": "cuda", "PYTHONPATH": str(ROOT / "python")}
    tests = [str(ROOT / "tests" / "ops" / name) for name in ("test_cuda.py", "test_cuda_gpu.py")]
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-x", *tests, "-k", select]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


def sanitize() -> int:
    """Bad accesses and races in shared memory, on the tests of small problems."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer was not found: nothing checked", file=sys.stderr)
        return 1
    few = "gpu and (bfloat16-7 or bfloat16-40 or bfloat16-21 or bfloat16-90 or attention_patterns)"
    checks = ("memcheck", "racecheck")
    options = ("--error-exitcode", "9", "--target-processes", "all")
    return max(run_tests(tool, "--tool", check, *options, select=few) for check in checks)


class Bench:
    """Our call against its peers, all in CUDA graphs."""

    def __init__(self, deadline: float) -> None:
        import torch

        self.deadline = deadline
        self.probe = torch.zeros((), device="cuda")  # tells `measure` the device
        self.arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
        source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        milliseconds = self._time(lambda: target.copy_(source)).timing.ms
        self.bandwidth = 2 * source.nbytes / milliseconds  # bytes in a millisecond

    def rows(
        self,
        ours: Callable[[], Any],
        peers: dict[str, Callable[[], Any]],
        want: Any,
        nbytes: int = 0,
        **facts: Any,
    ) -> Rows:
        """A row for each peer; one that cannot run is told and left out. Nothing after the
        deadline."""
        from secateurs.measure import relative_error, row

        if time.monotonic() > self.deadline:
            return
        error = relative_error(ours(), want)
        replay = graphed(ours)
        for name, peer in peers.items():
            try:
                found = self._time(replay, graphed(peer))
            except (RuntimeError, NotImplementedError) as reason:
                print(f"{name} at {facts['shape']}: {reason}", file=sys.stderr)
                continue
            yield row(
                found,
                backend="cuda",
                isa=self.arch,
                dtype="bfloat16",
                baseline=name,
                rel_err=error,
                tolerance=TOLERANCE,
                read_share=nbytes / found.timing.ms / self.bandwidth if nbytes else None,
                **facts,
            )

    def _time(self, ours: Callable[[], Any], peer: Callable[[], Any] | None = None) -> Any:
        from secateurs.measure import measure

        against = None if peer is None else lambda _: peer()
        return measure(
            lambda _: ours(), self.probe, against, compare=False, min_time=0.1, min_repeats=5
        )


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """A replay of `call` as a CUDA graph, after a warm-up on a stream of its own."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def linears(bench: Bench, block: int, quick: bool) -> Rows:
    import torch
    from torch.nn import functional as F

    from secateurs import ops
    from secateurs.formats import BlockSparseWeight

    def on_triton(x: Any, weight: Any) -> Any:
        with ops.use_backend("triton"):
            return ops.block_sparse_linear(x, weight)

    for name, (k, n) in list(SHAPES.items())[: 2 if quick else None]:
        dense = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) / k**0.5
        for density in DENSITIES:
            keep = torch.rand(n // block, k // block, device="cuda").argsort(1).argsort(1)
            keep = keep < max(1, round(density * (k // block)))
            weight = dense * keep.repeat_interleave(block, 0).repeat_interleave(block, 1)
            packed = BlockSparseWeight.pack(weight, keep, (block, block))
            bsr = weight.to_sparse_bsr((block, block))
            for m in ROWS:
                x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
                peers = {
                    "F.linear": lambda x=x, w=weight: F.linear(x, w),
                    "Triton": lambda x=x, w=packed: on_triton(x, w),
                }
                if m >= 16:
                    peers["torch BSR"] = lambda x=x, w=bsr: F.linear(x, w)
                yield from bench.rows(
                    lambda x=x, w=packed: ops.block_sparse_linear(x, w),
                    peers,
                    x.double() @ weight.double().T,
                    nbytes=packed.values.nbytes if m <= 16 else 0,
                    op="block_sparse_linear",
                    shape=(m, k, n),
                    block=(block, block),
                    density=density,
                    layer=name,
                )


def patterns(bench: Bench, quick: bool) -> Rows:
    import torch
    from torch.nn import functional as F
    from torch.sparse import to_sparse_semi_structured

    from secateurs import ops
    from secateurs.formats import LibraryWeight, VectorWeight
    from secateurs.patterns import Library, VectorNM

    for name, (k, n) in list(SHAPES.items())[: 1 if quick else None]:
        dense = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) / k**0.5
        library = Library.select(dense.cpu().float(), (4, 4), 4)
        blocks = library.project(dense.cpu().float()).to(dense)
        packed: dict[str, tuple[Any, Any]] = {
            "library 4x4": (
                LibraryWeight.pack(
                    blocks, library.codes(dense.cpu().float()).cuda(), library.patterns.cuda()
                ),
                blocks,
            )
        }
        for vector in (1, 64):
            keep = VectorNM(2, 4, vector).keep(dense)
            label = "2:4" if vector == 1 else f"vector {vector}"
            packed[label] = (VectorWeight.pack(dense, keep, vector), dense * keep)
        for m in ROWS:
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            for label, (weight, sparse) in packed.items():
                if label.startswith("library") and m > 16:
                    continue
                peers = {"F.linear": lambda x=x, w=sparse: F.linear(x, w)}
                if label == "2:4":
                    with suppress(RuntimeError, NotImplementedError):
                        semi = to_sparse_semi_structured(sparse)
                        peers["cuSPARSELt"] = lambda x=x, w=semi: F.linear(x, w)
                yield from bench.rows(
                    lambda x=x, w=weight: ops.pattern_linear(x, w),
                    peers,
                    x.double() @ sparse.double().T,
                    nbytes=weight.values.nbytes if m <= 16 else 0,
                    op="pattern_linear",
                    shape=(m, k, n),
                    density=weight.density,
                    pattern=label,
                    layer=name,
                )


def attentions(bench: Bench, block: int, quick: bool) -> Rows:
    import torch
    from torch.nn import functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from secateurs import ops
    from secateurs.attention_patterns import Dense, Local, Sinks, Strided, layout

    def sdpa(kind: SDPBackend, q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(kind):
            return F.scaled_dot_product_attention(q, k, v)

    rules = {
        "dense": Dense(),
        "local 128": Local(128),
        "local 256 | sinks 4": Local(256) | Sinks(4),
        "strided 64 | local 64": Strided(64) | Local(64),
    }
    flex = torch.compile(flex_attention)
    for d in (64, 128):
        for t in LENGTHS[:1] if quick else LENGTHS:
            q, k, v = torch.randn(3, 4, 16, t, d, device="cuda", dtype=torch.bfloat16)
            at = torch.arange(t, device="cuda")
            for name, rule in rules.items():
                blocks = None if name == "dense" else layout(rule, t, t, block=block, device="cuda")
                mask = rule.allows(at[:, None], at)
                same = create_block_mask(
                    lambda b, h, i, j, mask=mask: mask[i, j], None, None, t, t, device="cuda"
                )
                peers = {
                    "SDPA flash, dense": lambda q=q, k=k, v=v: sdpa(
                        SDPBackend.FLASH_ATTENTION, q, k, v
                    ),
                    "SDPA cuDNN, dense": lambda q=q, k=k, v=v: sdpa(
                        SDPBackend.CUDNN_ATTENTION, q, k, v
                    ),
                    "flex, same mask": lambda q=q, k=k, v=v, m=same: flex(q, k, v, block_mask=m),
                }
                want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
                yield from bench.rows(
                    lambda q=q, k=k, v=v, b=blocks: ops.attention(q, k, v, pattern=b),
                    peers,
                    want.transpose(1, 2),
                    op="attention",
                    shape=tuple(q.shape),
                    block=(block, block),
                    density=1.0 if blocks is None else blocks.density,
                    pattern=name,
                )


def benchmark(options: argparse.Namespace, deadline: float) -> int:
    sys.path.insert(0, str(ROOT / "python"))
    import torch

    from secateurs import ops
    from secateurs.measure import append_rows

    failed = 0
    with ops.use_backend("cuda"), torch.inference_mode():
        bench = Bench(deadline)
        block, quick = options.block, options.quick
        parts = (linears(bench, block, quick), attentions(bench, block, quick))
        for part in (*parts, patterns(bench, quick)):
            for record in part:
                append_rows(options.json, [record])
                failed |= not record["ok"]
                print(
                    f"{record['op']:<22}{record['shape']!s:<24}{record['density']:>6.2f}"
                    f"{record['ms']:>9.4f} ms {record['speedup']:>6.2f}x {record['baseline']}"
                    f"{'' if record['ok'] else '  WRONG'}",
                    flush=True,
                )
    if time.monotonic() > deadline:
        print("out of time: the rest was left out", file=sys.stderr)
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", required=True, help="JSON lines are appended to this file")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="few shapes")
    parser.add_argument("--minutes", type=float, default=8.5, help="no benchmark starts later")
    parser.add_argument("--only", choices=("build", "tests", "sanitizer", "benchmarks"))
    options = parser.parse_args()
    if shutil.which("nvidia-smi") is None:
        print("expected an NVIDIA GPU, found no nvidia-smi", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    steps = {
        "build": build,
        "tests": lambda: run_tests(select="gpu"),
        "sanitizer": sanitize,
        "benchmarks": lambda: benchmark(options, deadline),
    }
    failed = 0
    for name, step in steps.items():
        if options.only in (None, name):
            start = time.monotonic()
            status = step()
            print(f"--- {name}: status {status}, {time.monotonic() - start:.0f} s", flush=True)
            failed |= status
            if status and name == "build":
                break
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
