"""Our kernels against the fastest dense peer of each shape, interleaved, checked in float64.

    python benchmarks/kernels.py --device cpu --all --json kernels.jsonl
    python benchmarks/kernels.py --op block_sparse_linear --dtype bf16 --json kernels.jsonl

A row's `baseline` is the fastest peer found for its shape; `vs_linear` is the speedup over plain
F.linear. `goal` is the ratio over F.linear that an untuned prototype of the
kernel reached in fp32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.kernel_cases import CASES, Case
from benchmarks.peak import Peak, measure_peak
from torch import Tensor

from secateurs import ops
from secateurs.measurement.rows import append_rows, row
from secateurs.measurement.timing import measure, relative_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ALL_DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

DENSITIES = (1.0, 0.5, 0.25, 0.1)

GOALS = {
    ((1024, 768, 3072), 0.5): 1.7,
    ((1024, 768, 3072), 0.25): 3.4,
    ((1024, 768, 3072), 0.1): 7.3,
    ((1024, 3072, 768), 0.5): 1.7,
    ((1024, 3072, 768), 0.25): 3.5,
    ((1024, 3072, 768), 0.1): 7.8,
    ((128, 768, 3072), 0.5): 2.0,
    ((128, 768, 3072), 0.25): 3.6,
    ((128, 768, 3072), 0.1): 8.4,
}

HEADER = (
    f"{'op':<24}{'shape':<16}{'kept':>5}{'ms':>9}{'p20..p80':>17}  {'fastest peer':<16}{'ms':>9}"
    f"{'speedup':>9}{'vs linear':>10}{'goal':>6}{'% ops':>7}{'% read':>8}{'rel err':>9}"
)


def run(case: Case, options: argparse.Namespace, peak: Peak | None) -> dict[str, Any]:
    """Time one case against its fastest peer, print its line, and return its row."""

    def timed(call: Callable[[], Tensor], peer: Callable[[], Tensor] | None, seconds: float):
        other = None if peer is None else lambda _: peer()
        return measure(lambda _: call(), case.probe, other, min_time=seconds, compare=False)

    medians = {name: timed(peer, None, 0.1).timing.ms for name, peer in case.peers.items()}
    baseline = min(medians, key=medians.__getitem__)
    result = timed(case.ours, case.peers[baseline], options.min_time)
    linear = case.peers.get("F.linear")
    vs_linear = None if linear is None else timed(case.ours, linear, options.min_time).speedup
    prototyped = case.op == "block_sparse_linear" and options.dtype == torch.float32
    goal = GOALS.get((case.shape, case.density)) if prototyped and linear else None
    seconds = result.timing.ms / 1e3
    record = row(
        result,
        op=case.op,
        backend=case.backend or "none",
        isa=ops.build_info()["cpu"]["isa"] if case.probe.device.type == "cpu" else None,
        dtype=options.dtype,
        shape=case.shape,
        block=case.block,
        density=case.density,
        baseline=baseline,
        rel_err=relative_error(case.ours(), case.truth),
        tolerance=TOLERANCE[options.dtype],
        vs_linear=vs_linear,
        goal=goal,
        gflops=case.flops / seconds / 1e9,
        fma_share=None if peak is None else case.flops / seconds / 1e9 / peak.of(options.dtype),
        read_share=None if peak is None else case.nbytes / seconds / 1e9 / peak.gbytes,
    )
    print(_line(record), flush=True)
    return record


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    peak = None
    if torch.device(options.device).type == "cpu":
        peak = measure_peak(torch.get_num_threads())
    if peak is not None:
        print(
            f"{torch.get_num_threads()} threads, measured peaks: {peak.gflops:.0f} GFLOP/s fp32, "
            f"{peak.gflops_bf16:.0f} bf16, {peak.gbytes:.1f} GB/s read"
        )
    names = list(CASES) if options.all or options.op == "all" else [options.op]
    records = []
    for dtype in ALL_DTYPES if options.all else [options.dtype]:
        options.dtype = dtype
        print(HEADER)
        with torch.inference_mode():
            for case in (case for name in names for case in CASES[name](options)):
                records.append(run(case, options, peak))
                if options.json:
                    append_rows(options.json, records[-1:])
    wrong = [r for r in records if not r["ok"]]
    for record in wrong:
        print(f"WRONG: {record['op']} {record['shape']} at {record['density']:g}", file=sys.stderr)
    return 1 if wrong else 0


def _line(r: dict[str, Any]) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.0f}"

    spread = f"{r['ms_p20']:.3f}..{r['ms_p80']:.3f}"
    error = "nan" if r["rel_err"] is None else f"{r['rel_err']:.0e}"
    vs_linear = "-" if r["vs_linear"] is None else f"{r['vs_linear']:.2f}"
    return (
        f"{r['op']:<24}{'x'.join(map(str, r['shape'])):<16}{r['density']:>5.2f}{r['ms']:>9.3f}"
        f"{spread:>17}  {r['baseline']:<16}{r['baseline_ms']:>9.3f}{r['speedup']:>9.2f}"
        f"{vs_linear:>10}{r['goal'] or '-':>6}{share(r['fma_share']):>7}{share(r['read_share']):>8}"
        f"{error:>9}"
    )


def _parser() -> argparse.ArgumentParser:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("x"))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=[*CASES, "all"], default="all")
    parser.add_argument("--all", action="store_true", help="every op in fp32 and in bf16")
    parser.add_argument(
        "--dtype", type=DTYPES.__getitem__, default=torch.float32, metavar="|".join(DTYPES)
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--shapes", type=numbers, nargs="+", help="MxKxN, MxD for norms, or BxHxTxD for attention"
    )
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument(
        "--block", type=numbers, default=(32, 32), help="outputs x inputs, as 32x32"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--min-time", type=float, default=1.0, help="seconds of sampling a comparison"
    )
    parser.add_argument("--json", help="append a JSON line for each row to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
