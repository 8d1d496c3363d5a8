"""Both backends of ours on a GPU, in one call of less than nine minutes: build, tests with skips as
failures, the rows that decide most, compute-sanitizer, counters, then the other rows.

    python benchmarks/gpu.py --json gpu.jsonl
    python benchmarks/gpu.py --json gpu.jsonl --prebuilt modules --backend triton

Every step (`on_gpu/steps.py`) runs in processes of its own and within its time: one that hangs or
crashes costs no other, and without a CUDA module Triton goes on alone. What the steps print stands
beside the rows (gpu.build.log, ...), and a table of the rows at the end (gpu.md).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.on_gpu import running, steps, tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", required=True, type=Path, help="rows are appended to this file")
    parser.add_argument("--backend", choices=(steps.CUDA, steps.TRITON), help="only this one")
    parser.add_argument("--prebuilt", type=Path, help="a CUDA module, or a folder of modules")
    parser.add_argument("--minutes", type=float, default=8.5, help="what then runs is stopped")
    parser.add_argument("--commit", help="of the code, where the checkout cannot tell")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    rows = options.json.resolve()
    prebuilt = options.prebuilt and options.prebuilt.resolve()
    planned = steps.plan(rows, prebuilt, options.commit)
    if unknown := {*(options.only or ())} - {step.name for step in planned}:
        known = ", ".join(repr(step.name) for step in planned)
        parser.error(f"expected steps among {known}, got {', '.join(sorted(unknown))}")
    if shutil.which("nvidia-smi") is None:
        print("expected an NVIDIA GPU, found no nvidia-smi", file=sys.stderr)
        return 2
    os.environ["PATH"] += os.pathsep + "/usr/local/cuda/bin"
    chosen = [
        step
        for step in planned
        if options.backend in (None, step.backend) and step.name in (options.only or [step.name])
    ]
    rows.parent.mkdir(parents=True, exist_ok=True)
    before = tables.read(rows)
    outcomes = running.run(chosen, deadline, lambda kind: rows.with_suffix(f".{kind}.log"))
    text = tables.report(tables.read(rows)[len(before) :], outcomes)
    rows.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return int(any(outcome.told != "done" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
