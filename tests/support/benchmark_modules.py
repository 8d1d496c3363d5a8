"""Imports modules of `benchmarks`, which is no part of the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def benchmark_module(name: str) -> ModuleType:
    """Return `benchmarks.name`, and leave the path as it is; where there are no benchmarks, the
    tests of the file are skipped."""
    if not (ROOT / "benchmarks").exists():
        pytest.skip("needs the benchmarks", allow_module_level=True)
    before = list(sys.path)
    sys.path.append(str(ROOT))
    try:
        return importlib.import_module(f"benchmarks.{name}")
    finally:
        sys.path[:] = before
