"""A backend of ours on a GPU, in one call of less than nine minutes: build, tests with skips as
failures, of the CUDA kernels compute-sanitizer on a few of them, then the benchmarks.

    python benchmarks/gpu.py --json gpu.jsonl
    python benchmarks/gpu.py --json gpu.jsonl --backend triton

Every step runs in processes of its own and within its share of the time: one that hangs or crashes
costs no other.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
TESTS = ROOT / "tests"
TIMED_OUT = 124  # as timeout(1) has it


@dataclass(frozen=True)
class Backend:
    """What there is to run of a backend."""

    required: str  # what its tests may not skip for want of
    tests: tuple[str, ...]  # files of tests
    shares: tuple[str, ...]  # of the tests, those whose names fit: they run at the same time
    script: str  # of benchmarks
    # Of what the steps before leave, the share of each part of the benchmarks.
    parts: Mapping[str, float]
    sanitized: str | None = None  # tests of small problems


BACKENDS = {
    "cuda": Backend(
        required="cuda",
        tests=("ops/test_cuda.py", "ops/test_cuda_gpu.py"),
        shares=("gpu",),
        script="gpu_kernels.py",
        parts={"linears": 0.5, "attentions": 0.5, "patterns": 0.7, "norms": 1.0},
        sanitized="gpu and not test_cuda_gpu and "
        "(bfloat16 and not attention or patterns or add_norm)",
    ),
    "triton": Backend(
        required="cuda,triton",
        tests=("ops/test_triton_gpu.py", "integrations/test_cuda_graphs.py"),
        # Most of their time goes to the compiler, on one core each.
        shares=(
            "linear and float32",
            "linear and not float32",
            "attention and float32",
            "attention and bfloat16",
            "attention and not float32 and not bfloat16",
            "captured",
        ),
        script="gpu_triton.py",
        parts={"linears": 0.4, "attentions": 0.4, "models": 1.0},
    ),
}


def run(command: Sequence[str], seconds: float, **environment: str) -> int:
    """The exit status of a command, which has so many seconds."""
    return together([command], seconds, **environment)


def together(commands: Sequence[Sequence[str]], seconds: float, **environment: str) -> int:
    """The worst exit status of commands that run at the same time."""
    everything = {**os.environ, "PYTHONPATH": str(ROOT / "python"), **environment}
    deadline, worst = time.monotonic() + seconds, 0
    # Each in a session of its own, to be stopped with all that it started.
    started = [
        subprocess.Popen(command, env=everything, cwd=ROOT, start_new_session=True)
        for command in commands
    ]
    try:
        for process in started:
            worst = max(worst, abs(process.wait(max(0.0, deadline - time.monotonic()))))
    except subprocess.TimeoutExpired as late:
        print(f"stopped after {seconds:.0f} s: {late.cmd}", file=sys.stderr)
        worst = TIMED_OUT
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return worst


def build(seconds: float) -> int:
    """Compile for this machine's GPU and CPU, into the package of this checkout."""
    cmakedir = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
    configure += [f"-Dpybind11_DIR={cmakedir.strip()}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += ["-DSKBUILD_PROJECT_VERSION=0.1.0"]
    install = ["cmake", "--install", str(BUILD), "--prefix", str(ROOT / "python")]
    wanted = {"SECATEURS_CUDA": "on", "SECATEURS_CUDA_ARCHS": "native", **_given()}
    deadline = time.monotonic() + seconds
    for command in (configure, ["cmake", "--build", str(BUILD)], install):
        if status := run(command, deadline - time.monotonic(), **wanted):
            return status
    return 0


def _given() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("SECATEURS_CUDA")}


def test(backend: Backend, seconds: float) -> int:
    """The tests of the backend on the GPU; a skip is a failure."""
    commands = [_pytest(backend, share) for share in backend.shares]
    return together(commands, seconds, SECATEURS_REQUIRE=backend.required)


def sanitize(backend: Backend, seconds: float) -> int:
    """Bad accesses and races in shared memory, on the tests of small problems."""
    if backend.sanitized is None:
        return 0
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer was not found: nothing checked", file=sys.stderr)
        return 1
    checks = [
        [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        for check in ("memcheck", "racecheck")
    ]
    # Each tensor in memory of its own, so that what lies behind it belongs to nobody.
    return together(
        [[*check, *_pytest(backend, backend.sanitized)] for check in checks],
        seconds,
        SECATEURS_REQUIRE=backend.required,
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )


def _pytest(backend: Backend, select: str) -> list[str]:
    # A warning of another version of torch than CI's is no failure of the kernels.
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", "--maxfail", "20", "-k", select]
    files = [str(TESTS / name) for name in backend.tests]
    return [sys.executable, "-m", "pytest", *options, *files]


def benchmark(backend: Backend, options: argparse.Namespace, deadline: float) -> int:
    worst = 0
    for part, share in backend.parts.items():
        if options.part not in (None, part):
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            print(f"{part}: no time was left for it", file=sys.stderr)
            worst = TIMED_OUT
            continue
        seconds = left if options.part else share * left
        command = [sys.executable, str(ROOT / "benchmarks" / backend.script), "--part", part]
        command += ["--json", str(Path(options.json).resolve()), "--seconds", str(seconds)]
        command += ["--block", str(options.block)]
        if options.commit:
            command += ["--commit", options.commit]
        worst = max(worst, run(command, seconds + 30))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", required=True, help="JSON lines are appended to this file")
    parser.add_argument("--backend", choices=BACKENDS, default="cuda")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=8.25, help="no row starts later")
    parser.add_argument("--commit", help="of the code, where the checkout cannot tell")
    parser.add_argument("--only", choices=("build", "tests", "sanitizer", "benchmarks"))
    parser.add_argument("--part", help="of the benchmarks, with --only benchmarks: this one")
    options = parser.parse_args()
    backend = BACKENDS[options.backend]
    if options.part not in (None, *backend.parts):
        parser.error(f"expected a part among {', '.join(backend.parts)}, got {options.part!r}")
    if shutil.which("nvidia-smi") is None:
        print("expected an NVIDIA GPU, found no nvidia-smi", file=sys.stderr)
        return 2
    if shutil.which("nvcc") is None:
        os.environ["PATH"] += os.pathsep + "/usr/local/cuda/bin"
    deadline = time.monotonic() + 60 * options.minutes
    steps = {
        "build": lambda: build(240),
        "tests": lambda: test(backend, 120),
        "sanitizer": lambda: sanitize(backend, 100),
        "benchmarks": lambda: benchmark(backend, options, deadline),
    }
    failed = 0
    for name, step in steps.items():
        if options.only in (None, name):
            start = time.monotonic()
            status = step()
            print(f"--- {name}: status {status}, {time.monotonic() - start:.0f} s", flush=True)
            failed |= status
            if status and name == "build":
                break
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
