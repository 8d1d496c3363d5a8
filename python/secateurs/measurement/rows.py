"""Measurements as JSON lines: the only place that turns one into a row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from secateurs.errors import DataError
from secateurs.measurement.environment import git_commit
from secateurs.measurement.timing import Measurement


def row(
    measurement: Measurement,
    *,
    backend: str,
    dtype: torch.dtype | str,
    shape: Iterable[int],
    tolerance: float | None = None,
    op: str | None = None,
    model: str | None = None,
    isa: str | None = None,
    block: Iterable[int] | None = None,
    density: float | None = None,
    baseline: str | None = None,
    rel_err: float | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """One JSON-ready record of a measurement.

    Args:
        op, model: exactly one of the two names what was measured.
        isa: instruction set or GPU architecture of the kernels that ran.
        baseline: name of the peer it was compared with.
        rel_err: error against an independent truth; else that against the baseline is recorded.
        tolerance: `ok` is `rel_err <= tolerance`, and null without a tolerance.
    """
    if (op is None) == (model is None):
        raise DataError(f"expected the name of an op or of a model, got {op!r} and {model!r}")
    error = measurement.rel_err if rel_err is None else rel_err
    base = measurement.baseline
    return {
        **({"op": op} if op is not None else {"model": model}),
        "backend": backend,
        "isa": isa,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(shape),
        "block": None if block is None else list(block),
        "density": density,
        "ms": measurement.timing.ms,
        "ms_p20": measurement.timing.ms_p20,
        "ms_p80": measurement.timing.ms_p80,
        "baseline": baseline,
        "baseline_ms": None if base is None else base.ms,
        "speedup": measurement.speedup,
        # NaN is no JSON: a comparison that met one is recorded as null, and never as ok.
        "rel_err": error if error is not None and math.isfinite(error) else None,
        "ok": None if tolerance is None or error is None else error <= tolerance,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": measurement.device,
        "commit": git_commit(),
        **extra,
    }


def append_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append records to a JSON-lines file, creating its folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(r, allow_nan=False) + "\n" for r in rows)
