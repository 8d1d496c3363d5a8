"""Modules that link no OpenMP runtime, so that they share torch's: one set of threads, governed by
`torch.set_num_threads`.

torch loads its runtime for the whole process on x86-64, and for itself alone on ARM, where nobody
else would find it.
"""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path
from types import ModuleType

import torch

NAMES = ("libgomp", "libomp", "libiomp")
MAPS = Path("/proc/self/maps")  # of Linux; elsewhere our modules use no OpenMP


def load(name: str) -> ModuleType:
    """Import a module that resolves against the runtime."""
    for path in runtimes():
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module(name)


def runtimes() -> list[str]:
    """Return the files of the runtimes that this process has loaded: those that came with torch,
    else any."""
    if not MAPS.exists():
        return []
    lines = MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    files = dict.fromkeys("".join(line.partition("/")[1:]) for line in lines)
    found = [file for file in files if Path(file).name.startswith(NAMES)]
    package = Path(torch.__file__).parent
    own = [
        file for file in found if {package, package.with_name("torch.libs")} & {*Path(file).parents}
    ]
    return own or found
