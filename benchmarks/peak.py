"""The machine's own limits, measured: FMA throughput and read bandwidth, for the "% of" columns."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Peak:
    gflops: float
    """fp32 fused multiply-adds counted as two operations, all threads."""
    gflops_bf16: float
    """The same for products of bf16; those of fp32 where the CPU has none of its own."""
    gbytes: float
    """Reads from memory, all threads, in GB/s."""

    def of(self, dtype: torch.dtype) -> float:
        """GFLOP/s of products of `dtype`."""
        return self.gflops_bf16 if dtype == torch.bfloat16 else self.gflops


def measure_peak(threads: int) -> Peak | None:
    """Best of several short runs; None where no C compiler is at hand."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source = Path(__file__).with_name("peak.c")
    with tempfile.TemporaryDirectory() as folder:
        built, library = Path(folder) / "peak.o", Path(folder) / "peak.so"
        options = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-c", str(source), "-o", str(built)]
        # Linked without OpenMP: it takes the runtime torch has loaded, as our kernels do.
        for step in (options, ["-shared", str(built), "-o", str(library)]):
            if subprocess.run([compiler, *step]).returncode:
                return None
        lib = ctypes.CDLL(str(library))
    sink = ctypes.c_float()
    best = {"peak_fma": 0.0, "peak_bf16": 0.0}
    gbytes = 0.0
    data = torch.ones(32 << 20)
    for _ in range(30):
        for name in best:
            loop = lib[name]
            loop.restype = ctypes.c_double
            start = time.perf_counter()
            operations = loop(ctypes.c_long(1_000_000), threads, ctypes.byref(sink))
            best[name] = max(best[name], operations / (time.perf_counter() - start) / 1e9)
        start = time.perf_counter()
        lib.peak_read(ctypes.c_void_p(data.data_ptr()), ctypes.c_size_t(data.numel()), threads)
        gbytes = max(gbytes, data.nbytes / (time.perf_counter() - start) / 1e9)
    fp32 = best["peak_fma"]
    return Peak(fp32, best["peak_bf16"] or fp32, gbytes)
