"""Speeds asked for against speeds measured: does the search keep what it promises?

    python benchmarks/targets.py --json targets.jsonl

all-MiniLM-L6-v2 is searched for each shape, precision and speed-up. A row holds the time asked for,
what the table predicted, and the time that was measured again behind the search, in turns with the
model as transformers runs it: `off` is how far that is from the time asked for, relative to it, and
`spread` that of the measurement; `predicted_off` is how far the table is from what the search
measured, each relative to the model as transformers runs it at that minute. Few examples decide,
for nobody looks at quality: see frontier.py. A speed-up that is out of reach is a row too, with the
sentence that refused it; `whole` is a model that loses nothing, which may be faster than was asked.
Rows that the file holds are not made again.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.dense import Rows, calibration, embedding_model, prepare, where

from secateurs.errors import BudgetError
from secateurs.measurement.inputs import Shape
from secateurs.pruning import Budget
from secateurs.search import Search

SHAPES: tuple[Shape, ...] = ((1, 32), (1, 128), (8, 128))
SPEEDUPS = (1.3, 1.6, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)
# The dtype of the model, and in what its linears compute, where that is another.
PRECISIONS = {
    "fp32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "int8": (torch.float32, "int8"),
}
_EXAMPLES = 48


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    prepare(options)
    rows = Rows(options.json, "shape", "dtype", "speedup")
    dense = embedding_model(options)
    sentences = calibration(dense, _EXAMPLES, 16)
    for name in options.precisions:
        dtype, precision = PRECISIONS[name]
        model = copy.deepcopy(dense.model).to(dtype)
        for shape in SHAPES:
            kind = {"shape": list(shape), "dtype": name}
            wanted = [s for s in options.speedups if {**kind, "speedup": s} not in rows]
            if not wanted:
                continue
            search = Search(
                model, sentences, shapes=[shape], precision=precision, force=True, progress=False
            )
            for speedup in wanted:
                row = {**kind, "speedup": speedup, **where(options), **_asked(search, speedup)}
                rows.add(row)
                print(_told(row), flush=True)
    return 0


def _asked(search: Search, speedup: float) -> dict[str, Any]:
    """What came of one speed-up."""
    try:
        found = search.meet(Budget(speedup=speedup))
    except BudgetError as error:
        return {"refused": str(error)}
    again, table = search.timed(found.plan), search.table
    asked = again.stock / speedup
    return {
        "asked_ms": found.asked,
        "predicted_ms": found.predicted,
        "measured_ms": found.measured,
        "predicted_off": (found.predicted / table.stock) / (found.measured / found.stock) - 1,
        "again_ms": again.ms,
        "off": again.ms / asked - 1,
        "whole": not found.plan.masks,
        "spread": again.spread / again.ms,
        "table_spread": table.spread,
    }


def _told(row: dict[str, Any]) -> str:
    batch, tokens = row["shape"]
    start = f"{row['dtype']} {batch}x{tokens} {row['speedup']:g}x: "
    if "refused" in row:
        return start + row["refused"]
    off = f"{row['off']:+.1%}, predicted {row['predicted_off']:+.1%}"
    return start + f"{row['again_ms']:.2f} ms, {off} (spread {row['spread']:.1%})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--speedups", nargs="+", type=float, default=list(SPEEDUPS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", required=True, help="rows, and what is done already")
    parser.set_defaults(model="mini", max_length=128, work=".")
    return parser


if __name__ == "__main__":
    sys.exit(main())
