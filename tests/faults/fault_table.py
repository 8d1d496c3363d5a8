"""Faults that a test must see: one piece of one file replaced, and the test that then fails.

`rows` holds them, a file for each floor; `run.py` tries them on a copy of the package. Faults of
the CUDA kernels stand in `tests/emulator/faults.py`, for they are all built into one program.
"""

from __future__ import annotations

import importlib
import pkgutil

import rows
from fault import Fault

TABLE: dict[str, tuple[Fault, ...]] = {
    module.name: importlib.import_module(f"rows.{module.name}").FAULTS
    for module in pkgutil.iter_modules(rows.__path__)
}
FAULTS = tuple(fault for faults in TABLE.values() for fault in faults)
