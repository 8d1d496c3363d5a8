"""The steps of a run on a GPU, most valuable first, as data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests"
UNTIL = "{until}"  # in a command: the Unix time at which it should end by itself
MODULE = "cuda module"

BUILD, TESTING, ROWS, SANITIZER, COUNTERS = "build", "tests", "rows", "sanitizer", "counters"
CUDA, TRITON = "cuda", "triton"


@dataclass(frozen=True)
class Step:
    """Commands that run at the same time, and what becomes of the run if they fail.

    Attributes:
        kind: names the file that takes what they print.
        seconds: what they have at most.
        backend: the backend they are about, if only one.
        provides, needs: a step that needs what an earlier one should have provided and has not is
            left out.
    """

    name: str
    kind: str
    seconds: float
    commands: tuple[tuple[str, ...], ...]
    backend: str
    environment: Mapping[str, str] = field(default_factory=dict)
    provides: str | None = None
    needs: str | None = None


# One process for each operation: an illegal access hides nothing but what follows in its own.
CUDA_TESTS = (
    "gpu and attention and not test_cuda_gpu",
    "gpu and add_norm and not test_cuda_gpu",
    "gpu and (pattern or two_four) and not attention and not test_cuda_gpu",
    "gpu and not (attention or add_norm or pattern or two_four or test_cuda_gpu)",
    "test_cuda_gpu and not attention",
    "test_cuda_gpu and attention",
)
CUDA_FILES = ("ops/test_cuda.py", "ops/test_cuda_gpu.py")
# Most of their time goes to the compiler, on one core each.
TRITON_TESTS = (
    "linear and float32",
    "linear and not float32",
    "attention and float32",
    "attention and bfloat16",
    "attention and not float32 and not bfloat16",
    "captured",
)
TRITON_FILES = ("ops/test_triton_gpu.py", "integrations/test_cuda_graphs.py")
# A dozen small problems, of each kernel one or more.
SANITIZED = (
    "gpu-bfloat16-40-block or gpu-bfloat16-21 or gpu-bfloat16-4-4 or gpu-bfloat16-90-90-64 "
    "or gpu-bfloat16-1-70-128 or gpu-False-64 or gpu-385-dtype1"
)
SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "WarpStateStats",
    "Occupancy",
    "LaunchStats",
)


def plan(rows: Path, prebuilt: Path | None = None, commit: str | None = None) -> tuple[Step, ...]:
    """Return the steps of both backends.

    Args:
        rows: JSON lines are appended to this file.
        prebuilt: a CUDA module, or a folder of modules, made elsewhere; tried before a build.
        commit: of the code, where the checkout cannot tell.
    """
    build = [sys.executable, "-m", "benchmarks.on_gpu.build"]
    if prebuilt is not None:
        build += ["--prebuilt", str(prebuilt)]

    def measured(part: str, backend: str, seconds: float) -> Step:
        command = [sys.executable, "-m", "benchmarks.on_gpu.measure", "--backend", backend]
        command += ["--part", part, "--json", str(rows), "--until", UNTIL]
        if commit is not None:
            command += ["--commit", commit]
        needs = MODULE if backend == CUDA else None
        return Step(f"{part} {backend}", ROWS, seconds, (tuple(command),), backend, needs=needs)

    return (
        Step("build", BUILD, 180, (tuple(build),), CUDA, provides=MODULE),
        Step(
            "tests cuda",
            TESTING,
            75,
            tuple(_pytest(CUDA_FILES, share) for share in CUDA_TESTS),
            CUDA,
            {"SECATEURS_REQUIRE": "cuda"},
            needs=MODULE,
        ),
        measured("linears.large", TRITON, 60),
        measured("linears.large", CUDA, 45),
        measured("linears.few", CUDA, 25),
        measured("linears.few", TRITON, 30),
        measured("attention.plain", CUDA, 45),
        measured("attention.plain", TRITON, 45),
        _sanitizer(),
        _counters(),
        Step(
            "tests triton",
            TESTING,
            90,
            tuple(_pytest(TRITON_FILES, share) for share in TRITON_TESTS),
            TRITON,
            {"SECATEURS_REQUIRE": "cuda,triton"},
        ),
        measured("patterns.patterns", CUDA, 40),
        measured("patterns.norms", CUDA, 20),
        measured("models.models", TRITON, 60),
        measured("attention.flex", CUDA, 40),
        measured("attention.flex", TRITON, 40),
        measured("linears.others", CUDA, 60),
        measured("linears.others", TRITON, 60),
    )


def _sanitizer() -> Step:
    """Return the step that looks for bad accesses, and for races in shared memory."""
    tool = ("compute-sanitizer", "--error-exitcode", "9", "--target-processes", "all")
    tool += ("--kernel-regex", "kns=secateurs")  # not torch's kernels, which are most of them
    return Step(
        "sanitizer",
        SANITIZER,
        60,
        tuple(
            (*tool, "--tool", check, *_pytest(CUDA_FILES[:1], SANITIZED))
            for check in ("memcheck", "racecheck")
        ),
        CUDA,
        # Each tensor in memory of its own, so that what lies behind it belongs to nobody.
        {"SECATEURS_REQUIRE": "cuda", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        needs=MODULE,
    )


def _counters() -> Step:
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off"]
    for section in SECTIONS:
        command += ["--section", section]
    command += [sys.executable, "-m", "benchmarks.on_gpu.counters"]
    return Step("counters", COUNTERS, 45, (tuple(command),), CUDA, needs=MODULE)


def _pytest(files: tuple[str, ...], select: str) -> tuple[str, ...]:
    # A warning of another version of torch than CI's is no failure of the kernels.
    options = ("-q", "-p", "no:cacheprovider", "-W", "default", "--maxfail", "20", "-k", select)
    return (sys.executable, "-m", "pytest", *options, *(str(TESTS / name) for name in files))
