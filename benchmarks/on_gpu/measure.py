"""One part of what is measured on a GPU: its rows printed and appended to a file; exits nonzero
when an output was wrong, a call of ours could not run, or nothing was measured.

    python -m benchmarks.on_gpu.measure --backend cuda --part linears.large --json gpu.jsonl

A part is a function of a module of this folder, that yields rows. Both sides run in CUDA graphs,
interleaved; every output is checked against float64 or the masked model.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from benchmarks.on_gpu.bench import Bench, OutOfTime

from secateurs import ops
from secateurs.measurement.rows import append_rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", required=True, choices=("cuda", "triton"))
    parser.add_argument("--part", required=True, help="MODULE.FUNCTION of this folder")
    parser.add_argument("--json", required=True, help="JSON lines are appended to this file")
    parser.add_argument("--until", type=float, help="no row starts after this Unix time")
    parser.add_argument("--commit", help="of the code, where the checkout cannot tell")
    options = parser.parse_args()
    until = math.inf if options.until is None else options.until
    deadline = time.monotonic() + until - time.time()
    # A compiled peer has a kernel for each problem, and never falls back in silence.
    strict = torch._dynamo.config.patch(recompile_limit=256, fail_on_recompile_limit_hit=True)
    module, _, function = options.part.partition(".")
    part = getattr(importlib.import_module(f"benchmarks.on_gpu.{module}"), function)
    with strict, ops.use_backend(options.backend), torch.inference_mode():
        bench, measured = Bench(options.backend, deadline), 0
        try:
            for measured, record in enumerate(part(bench), 1):  # noqa: B007
                record["commit"] = options.commit or record["commit"]
                append_rows(options.json, [record])
                bench.failed |= not record["ok"]
                print(line(record), flush=True)
        except OutOfTime:
            print(f"{options.part}: out of time, the rest was left out", file=sys.stderr)
    if not measured:
        print(f"{options.part}: no row was measured", file=sys.stderr)
    return int(bench.failed or not measured)


def line(record: Mapping[str, Any]) -> str:
    shares = [
        f"{record[share]:>5.0%} of {share.split('_')[0]}" if record.get(share) else ""
        for share in ("copy_share", "roof_share")
    ]
    name = record.get("pattern") or record.get("op") or record["model"]
    return (
        f"{name:<32}{record['shape']!s:<32}"
        f"{record['density'] or 1:>5.2f}{record['ms']:>10.4f} ms {record['speedup']:>6.2f}x "
        f"{record['baseline']:<26}{' '.join(shares)}{'' if record['ok'] else '  WRONG'}"
    )


if __name__ == "__main__":
    sys.exit(main())
